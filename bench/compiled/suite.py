"""Runs the interpreter's test files on compiled code, file by file, and keeps a row of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import triton

from bench.compiled import store
from bench.compiled.store import TestRow

ROOT = Path(__file__).parent.parent.parent
#: Test files whose cases launch kernels. They include PyTorch's own samples of the six functions.
FILES = tuple(
    f"tests/test_{name}.py"
    for name in (
        "opinfo",
        "paths",
        "padded",
        "copied",
        "tma",
        "tma_wgrad",
        "band",
        "depthwise",
        "depthwise_groups",
        "narrow_groups",
        "separable",
        "deform",
        "deform_gradients",
        "unfold",
        "causal",
        "video",
        "video_op",
        "video_modes",
        "prologue",
        "conv_prologue",
        "statistics",
        "fused",
        "fused_op",
        "fused_gradients",
        "functions",
        "autograd",
        "offsets",
        "convert",
        "compile",
        "errors",
        "fuzz",
        "reference",
    )
)
#: Architectures, each with the device whose plans are chosen.
ARCHS = {80: "a100", 90: "h200"}
#: Files whose plans need a newer architecture: no GPU before Hopper copies boxes by TMA.
NEED = {"tests/test_tma.py": 90, "tests/test_tma_wgrad.py": 90}
CHOSEN = "not gpu and not aot and not compiled"


def pairs(files: Iterable[str] = FILES, archs: Iterable[int] = tuple(ARCHS)) -> list[tuple[str, int]]:
    """Each test file with each architecture on which its plans can run."""
    return [(file, arch) for arch in archs for file in files if arch >= NEED.get(file, 0)]


def stale(files: Iterable[str] = FILES, archs: Iterable[int] = tuple(ARCHS)) -> list[tuple[str, int]]:
    """The files and architectures that have no current row without a failure."""
    rows = store.test_rows()
    return [pair for pair in pairs(files, archs) if pair not in rows or not rows[pair].current or rows[pair].failed]


def run_file(file: str, arch: int) -> tuple[TestRow | None, str]:
    """(a file's row or None where pytest recorded nothing, the end of pytest's output)."""
    device = ARCHS[arch]
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record.json"
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        command = [sys.executable, "-m", "pytest", "--no-header", "-q", "-p", "no:cacheprovider", "--tb=short", "-m", CHOSEN]
        command += ["--compiled", f"sm_{arch}={device}", "--compiled-record", str(record), file]
        done = subprocess.run(command, cwd=ROOT, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if not record.exists():
            return None, (done.stdout + done.stderr)[-2000:]
        outcome = json.loads(record.read_text())
    source = store.source_of_families(outcome["kernels"])
    row = TestRow(file=file, arch=arch, device=device, triton=triton.__version__, source=source, **outcome)
    return row, done.stdout[-4000:] if row.failed else ""


def run(minutes: float | None, jobs: int, report: Callable[[str], None]) -> int:
    """Runs what is stale, until the time is up. Returns how many files failed. Each row is kept as it is made."""
    todo, began, wrong = stale(), time.monotonic(), 0
    report(f"{len(todo)} of {len(pairs())} test files to run on compiled code")

    def timely(file: str, arch: int) -> tuple[TestRow | None, str] | None:
        late = minutes is not None and time.monotonic() - began > 60 * minutes
        return None if late else run_file(file, arch)

    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(timely, file, arch): (file, arch) for file, arch in todo}
        for i, future in enumerate(as_completed(running), 1):
            (file, arch), result = running[future], future.result()
            if result is None:
                continue
            row, text = result
            if row is None or row.failed:
                wrong += 1
            if row is not None:
                store.append(store.TESTS, [row])
                text = f"{row.passed} passed, {row.failed} failed, {row.skipped} skipped, {row.launches} launches\n{text}"
            report(f"{i}/{len(todo)} {file} sm_{arch}: {text.strip()}")
    return wrong
