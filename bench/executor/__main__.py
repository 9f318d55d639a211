"""`python -m bench.executor compile`: compile the engine, so that processes that start later load it from the cache.

`python -m bench.executor forms FILE.ptx ...`: list the instruction forms of kernels; forms that are not known come first.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

from bench.executor.program import UnknownInstruction, decode
from bench.executor.text import statements

KEPT_DAYS = 30


def compile_engine() -> None:
    """Compile or load every routine, and delete the machine code of versions that were not used for a month."""
    started, used = time.perf_counter(), time.process_time()
    from bench.executor.engine import programs  # noqa: F401
    from bench.executor.native import ROUTINES, cache_root

    seconds, own = time.perf_counter() - started, time.process_time() - used
    print(f"{len(ROUTINES)} routines in {seconds:.1f} s ({own:.1f} s of this process): {cache_root()}")
    for folder in cache_root().iterdir():
        if time.time() - max(path.stat().st_atime for path in [folder, *folder.rglob("*")]) > KEPT_DAYS * 86400:
            shutil.rmtree(folder, ignore_errors=True)


def forms(paths: list[str]) -> int:
    """Print how often each instruction form occurs in the kernels. Returns 1 where a form is not known."""
    counts: Counter[str] = Counter()
    unknown = 0
    for path in paths:
        ptx = Path(path).read_text()
        for statement in statements(ptx):
            if statement.kind == "instruction":
                counts[re.sub(r"^@!?[%\w$]+\s+", "", statement.text).split()[0]] += 1
        try:
            decode(ptx)
        except UnknownInstruction as error:
            unknown = 1
            print(f"{path}: {error}")
    for form, count in sorted(counts.items()):
        print(f"{count:8} {form}")
    print(f"{len(counts)} forms in {len(paths)} kernels")
    return unknown


if __name__ == "__main__":
    if sys.argv[1:] == ["compile"]:
        compile_engine()
    elif sys.argv[1:2] == ["forms"] and len(sys.argv) > 2:
        raise SystemExit(forms(sys.argv[2:]))
    else:
        raise SystemExit(__doc__)
