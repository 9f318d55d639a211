"""`python -m bench gpu`: the stages, their limits, and how they run one after another."""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from bench.gpu import counters, supervise
from bench.gpu.supervise import Tally
from bench.prepared.launchers import Launchers
from bench.prepared.store import install
from bench.provenance import ROOT, provenance, results_dir

#: Seconds for all stages together. One stage takes the time that the others do not use.
TOTAL_SECONDS = 480.0
#: The folder of kernels that were compiled elsewhere, if it exists.
PREPARED = ROOT / "build" / "gpu-cache"
#: The subfolder of the results that holds everything except the rows of measurements.
FOLDER = "gpu"
#: Seconds after a stage's limit in which a command may end by itself.
GRACE_SECONDS = 10.0
#: Number of pytest's processes.
JOBS = os.environ.get("GPU_JOBS", "8")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Context:
    """Where a stage runs, where it writes, and for how long."""

    device: str
    out: Path
    facts: Mapping[str, str]
    seconds: float
    say: Say


@dataclass(frozen=True)
class Stage:
    name: str
    seconds: float
    what: str
    run: Callable[[Context], Tally]
    rest: bool = False  # whether it takes the time that the others leave


def items(module: str, context: Context) -> Tally:
    """Runs a stage of items, whose rows go to a file of its own."""
    stage = module.rsplit(".", 1)[1]
    names = list(importlib.import_module(module).items())
    path = context.out / FOLDER / f"{stage}.jsonl"
    return supervise.run(stage, module, names, context.device, path, context.facts, context.seconds, context.say)


def count(context: Context) -> Tally:
    return counters.run(context.out / FOLDER / "counters.json", context.facts, context.seconds, context.say)


def command(arguments: Sequence[str], context: Context) -> Tally:
    """Runs a command of this Python, which prints to our output. It is asked to stop at the limit, and killed shortly after."""
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, start_new_session=True)
    try:
        status = process.wait(timeout=context.seconds)
    except subprocess.TimeoutExpired:
        return Tally(left=1)
    finally:
        stop(process)
    return Tally(ok=1) if status == 0 else Tally(failed=[f"exit status {status}"])


def stop(process: subprocess.Popen[Any]) -> None:
    """Ends a process and everything that it started, first by SIGTERM."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def goals(context: Context) -> Tally:
    minutes = f"{(context.seconds - GRACE_SECONDS) / 60:.2f}"
    return command(["-m", "bench", "run", "--list", "goals", "--minutes", minutes, "--out", str(context.out)], context)


def probe(context: Context) -> Tally:
    return command(["-m", "bench", "probe", "--out", str(context.out)], context)


def tests(context: Context) -> Tally:
    words = ["-m", "pytest", "--no-header", "--dist", "worksteal", "-n", JOBS, "-m", "gpu", "-rs", "--durations=10", "tests"]
    return command(words, context)


#: The stages in their order, the most telling first.
STAGES = {
    stage.name: stage
    for stage in (
        Stage("calls", 120, "one call of every family, pass, dtype, layout and epilogue against float64",
              functools.partial(items, "bench.gpu.calls")),
        Stage("bits", 50, "results that are exact in any order, and copies, against the CPU's bits",
              functools.partial(items, "bench.gpu.bits")),
        Stage("counters", 30, "sectors and bank conflicts of one kernel by the profiler", count),
        Stage("goals", 110, "the first rows of the goals, timed against torch", goals),
        Stage("probe", 60, "what the design leaves open", probe),
        Stage("tests", 90, "the tests that need a GPU, as far as they go", tests, rest=True),
    )
}  # fmt: skip


@functools.cache
def sources() -> str:
    """A hash of the library's and the cost model's files. Results of other files are stale."""
    digest = hashlib.sha256()
    for package in ("tritonconv", "costmodel"):
        for path in sorted((ROOT / package).rglob("*")):
            if path.suffix in (".py", ".json", ".toml") and "__pycache__" not in path.parts:
                digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def facts() -> dict[str, str]:
    versions = provenance()
    return {"gpu": versions["device"], "torch": versions["torch"], "triton": versions["triton"], "sources": sources()}


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Inside the block SIGTERM ends the program as an exception does, so that what was started is ended too."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(names: Sequence[str], device: str, out: Path, say: Say, total: float = TOTAL_SECONDS) -> dict[str, Tally]:
    """Runs the named stages in their order. A stage that fails does not keep the others from running."""
    began, tallies = time.monotonic(), dict[str, Tally]()
    chosen = [stage for stage in STAGES.values() if stage.name in names]
    with ended_by_signals():
        for stage in chosen:
            left = total - (time.monotonic() - began)
            seconds = left if stage.rest else min(stage.seconds, left)
            say(f"--- {stage.name}: {stage.what}, {max(0.0, seconds):.0f} s at most")
            if seconds <= 0:
                tallies[stage.name] = Tally(left=1)
                continue
            start = time.monotonic()
            try:
                tallies[stage.name] = stage.run(Context(device, out, facts(), seconds, say))
            except Exception as error:  # the other stages still run
                tallies[stage.name] = Tally(failed=[f"{type(error).__name__}: {error}"[:300]])
            say(f"--- {stage.name}: {tallies[stage.name]}, {time.monotonic() - start:.0f} s")
    return tallies


def summary(tallies: Mapping[str, Tally], say: Say) -> None:
    """Prints the outcome of the stages, and failures by name. Raises SystemExit(1) where anything failed."""
    for name, tally in tallies.items():
        say(f"{name}: {tally}")
        for failed in tally.failed:
            say(f"  failed: {failed}")
    if any(tally.failed for tally in tallies.values()):
        raise SystemExit(1)


def prepare(folder: Path, say: Say) -> None:
    """Files kernels that were compiled elsewhere in Triton's cache, and builds their launchers."""
    if not folder.is_dir():
        say(f"no kernels are prepared ({folder} is not there): each is compiled where it is first launched")
        return
    try:
        say(f"prepared kernels: {install(folder)}")
        built, seconds = Launchers(folder).build()
        say(f"{built} launchers built in {seconds:.1f} s")
    except Exception as error:  # they only save time
        say(f"the prepared kernels are not all of use: {type(error).__name__}: {error}"[:300])


def main(names: Sequence[str], out: Path | None, prepared: Path) -> None:
    """What `python -m bench gpu` does. Raises ValueError for an unknown stage, SystemExit(1) where something failed."""
    for name in names:
        if name not in STAGES:
            raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {name!r}")
    if not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here; 'python -m bench warm' compiles for one, and 'make test' needs none")
    say = functools.partial(print, flush=True)
    out = out or results_dir()
    say(f"{facts()}: results in {out}")
    began = time.monotonic()
    prepare(prepared, say)
    spent = time.monotonic() - began
    summary(run(list(names) or list(STAGES), "cuda", out, say, TOTAL_SECONDS - spent), say)
