"""Reads a profiler's counters of one kernel, where one is installed, to compare the cost model's counts with the GPU's."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from bench.gpu.calls import items
from bench.gpu.item import perform
from bench.gpu.supervise import Tally
from bench.provenance import ROOT

#: The item whose kernel is counted, and the kernel's name.
ITEM, KERNEL = "gather fprop fp16 channels_last", "fprop_kernel"
#: Sectors and requests of global memory, conflicts and wavefronts of shared memory, instructions, registers, time.
METRICS = (
    "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum",
    "l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum",
    "l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum",
    "l1tex__t_requests_pipe_lsu_mem_global_op_st.sum",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum",
    "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum",
    "lts__t_sectors.sum",
    "sm__inst_executed.sum",
    "launch__registers_per_thread",
    "gpu__time_duration.sum",
)


def profiler() -> str | None:
    """The path of the profiler, where a CUDA toolkit has it."""
    roots = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    return shutil.which("ncu") or shutil.which("ncu", path=os.pathsep.join(f"{root}/bin" for root in roots if root))


def parsed(text: str) -> dict[str, float]:
    """The metrics of the first kernel in the profiler's CSV, which stands among the program's own output."""
    lines = text.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if first is None:
        return {}
    counted: dict[str, float] = {}
    for row in csv.DictReader(lines[first:]):
        name, value = row.get("Metric Name"), (row.get("Metric Value") or "").replace(",", "")
        if name in METRICS and name not in counted:
            try:
                counted[str(name)] = float(value)
            except ValueError:
                continue
    return counted


def run(path: Path, facts: Mapping[str, str], seconds: float, say: Callable[[str], None]) -> Tally:
    """Counts and writes the answer to `path`. Where there is no profiler, or counting is not permitted, one line says so."""
    program = profiler()
    if program is None:
        say("ncu is not installed: nothing is counted")
        return Tally()
    command = [program, "--clock-control", "none", "--csv", "--metrics", ",".join(METRICS)]
    command += ["--kernel-name", f"regex:^{KERNEL}", "--launch-count", "1", sys.executable, "-m", "bench.gpu.counters"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        say(f"ncu gave no answer within {seconds:.0f} s")
        return Tally(left=1)
    counted = parsed(done.stdout)
    if not counted:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        why = next((line for line in lines if "ERR" in line or "Error" in line or "Failed" in line), (lines or ["nothing"])[-1])
        say(f"ncu counted nothing: {why}"[:300])
        return Tally(unserved=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"item": ITEM, "kernel": KERNEL, **counted, **facts}, indent=1) + "\n")
    for name, value in counted.items():
        say(f"{KERNEL} {name}: {value:,.0f}")
    return Tally(ok=1)


def main() -> None:
    """Runs the item, for the profiler to count."""
    result = perform(items()[ITEM], "cuda")
    if result.status != "ok":
        raise SystemExit(f"{result.name}: {result.note}")


if __name__ == "__main__":
    main()
