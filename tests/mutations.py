"""Breaks the kernels on purpose, one line at a time, and checks that a test turns red each time.

`python tests/mutations.py [part of a kernel's name]` (or `make mutate`): copies the checkout, applies each mutation to the
copy and runs the tests that the mutation names on it in the interpreter. Exits with 1 if the unbroken copy fails or a
mutation survives.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from mutants import MUTATIONS, Mutation

ROOT = Path(__file__).parent.parent


def passes(tests: tuple[str, ...], copy: Path) -> bool:
    """Whether tests pass on the copy."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not gpu and not aot", *tests]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):  # 1: a test failed; anything else says nothing about the kernels
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    return done.returncode == 0


def survives(mutation: Mutation, copy: Path) -> bool:
    """Whether its tests pass on the copy with a mutation."""
    path = copy / "tritonconv" / "kernels" / mutation.file
    text = path.read_text()
    if text.count(mutation.old) != 1:
        raise SystemExit(f"{mutation.file} holds {mutation.old!r} {text.count(mutation.old)} times, not once")
    path.write_text(text.replace(mutation.old, mutation.new))
    try:
        return passes(mutation.tests, copy)
    finally:
        path.write_text(text)


def main(only: str = "") -> None:
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory)
        for name in ("tritonconv", "costmodel", "bench", "tests", "pyproject.toml"):
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
        chosen = [mutation for mutation in MUTATIONS if only in mutation.kernel]
        for tests in dict.fromkeys(mutation.tests for mutation in chosen):
            if not passes(tests, copy):
                raise SystemExit(f"{' '.join(tests)} fails without any mutation")
        alive = []
        for mutation in chosen:
            red = not survives(mutation, copy)
            print(f"{'red     ' if red else 'SURVIVED'} {mutation.kernel:8} {mutation.what}", flush=True)
            alive += [] if red else [mutation]
        print(f"{len(alive)} of {len(chosen)} mutations turned no test red")
        sys.exit(bool(alive))


if __name__ == "__main__":
    main(*sys.argv[1:2])
