"""`python -m bench run`: measures lines one after another, keeps each row as it comes, and prints a table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.machine import Gpu, Machine
from bench.measure import Outcome, measure, one_line
from bench.provenance import committed_results, results_dir
from bench.providers import DEFAULT, PROVIDERS
from bench.rows import append, latest, load
from bench.table import Verdict, name_of, summary, table
from bench.work import LAYOUTS, Line, Work, pass_of_layer
from bench.workloads import load as load_workloads
from bench.workloads.lists import LISTS, layout_of, line_of
from costmodel.problem import Pass
from costmodel.reports.notation import parse

#: How long one line is assumed to take before anything has been measured.
FIRST_LINE_SECONDS = 20.0
WORDS = (
    "ratios: times over tritonconv's. torch's best: the fastest of contiguous and channels-last with cudnn.benchmark off and "
    "on, copies between layouts included; default: off, as the tensors lie. roofline: the share of it. error: of the tolerance"
)
DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "tf32": "float32", "fp64": "float64"}


def lines_of(
    suites: Sequence[str], problems: Sequence[str], lists: Sequence[str], passes: Sequence[str], dtype: str, layout: str
) -> list[Line]:
    """The lines that the command line asks for. A list has its own passes and dtypes. Raises ValueError for unknown words."""
    name, precision = DTYPES.get(dtype, dtype), "tf32" if dtype == "tf32" else "ieee"
    if name not in DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if layout not in ("", *LAYOUTS):
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    which = [Pass(word) for word in passes]
    lines: list[Line] = []
    for suite in suites:
        layers = [w for w in load_workloads(suite) if w.op.startswith("conv")]  # leaves out deformable operators
        lines += [line_of(layer, step, name, precision, layout) for layer in layers for step in which]
    for text in problems:
        work = parse(text)
        layout_ = layout or layout_of(work.problem.rank)
        for step in which:
            step = pass_of_layer(step, work.transposed)
            lines.append(Line(Work(work.problem, step, name, precision, layout_, work.transposed)))
    for word in lists:
        if word not in LISTS:
            raise ValueError(f"list must be one of {', '.join(LISTS)}, got {word!r}")
        lines += LISTS[word]()
    if not lines:
        raise ValueError("nothing to measure: name a --suite, a --problem or a --list")
    return lines


def known_providers(names: Sequence[str]) -> Sequence[str]:
    for name in names:
        if name not in PROVIDERS:
            raise ValueError(f"provider must be one of {', '.join(PROVIDERS)}, got {name!r}")
    return names


@dataclass
class Run:
    """The outcome of all lines. `failed` are messages that make the run's exit code nonzero."""

    verdicts: list[Verdict] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    new_rows: int = 0
    left: int = 0  # lines for which there was no time


def run(
    lines: Sequence[Line],
    providers: Sequence[str],
    machine: Machine,
    out: Path,
    earlier: Sequence[Path] = (),
    minutes: float | None = None,
    console: Console | None = None,
) -> Run:
    """Measures what has no row yet in `out` or in the files and directories `earlier`. New rows go to `out`.

    It ends before `minutes` have passed since the call, judged by the slowest line so far.
    """
    console = console or Console()
    began, slowest = machine.now(), FIRST_LINE_SECONDS
    rows, result = latest(load(*earlier, out)), Run()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(lines))
        for i, line in enumerate(lines):
            progress.update(task, description=name_of(line))
            start = machine.now()
            if minutes is not None and start - began + slowest > 60 * minutes:
                result.left = len(lines) - i
                break
            try:
                outcome = measure(line, providers, machine, rows.keys())
            except Exception as error:  # one layer must not end the run
                result.failed.append(f"{name_of(line)}: {one_line(error)}")
                machine.release()
                outcome = Outcome(line)
            append(out, outcome.rows)
            rows |= latest(outcome.rows)
            result.new_rows += len(outcome.rows)
            judge(result, outcome, Verdict.of(outcome, rows))
            slowest = machine.now() - start if i == 0 else max(slowest, machine.now() - start)
            progress.advance(task)
        progress.update(task, description="done")
    return result


def judge(result: Run, outcome: Outcome, verdict: Verdict) -> None:
    """Adds a line's verdict and its failures. The run fails where ours fails, or torch fails in every setting."""
    name = name_of(outcome.line)
    result.verdicts.append(verdict)
    if outcome.skipped:
        result.notes.append(f"{name}: skipped, {outcome.skipped}")
    result.notes += [f"{provider} left out: {why}" for provider, why in outcome.unserved.items() if provider != "matmul"]
    for row in verdict.failed:
        text = f"{name}: {row.provider} {row.setting}".rstrip() + f" failed, {row.note}"
        fatal = row.provider == "tritonconv" or (row.provider == "cudnn" and verdict.torch is None)
        (result.failed if fatal else result.notes).append(text)


def show(result: Run, machine: Machine, out: Path, console: Console) -> None:
    """Prints tables and messages. Raises SystemExit(1) where something failed."""
    title = f"{machine.facts['gpu']}, torch {machine.facts['torch']}, cuDNN {machine.facts['cudnn']}"
    console.print(table(result.verdicts, title))
    console.print(summary(result.verdicts))
    console.print(WORDS)
    for text in dict.fromkeys(result.notes):
        console.print(text, style="yellow", soft_wrap=True)
    for text in result.failed:
        console.print(text, style="red", soft_wrap=True)
    if result.left:
        console.print(f"{result.left} lines are left: the time is up. The same command goes on there")
    console.print(f"{result.new_rows} new rows: {out}", soft_wrap=True)
    if result.failed:
        raise SystemExit(1)


def demo(out: Path) -> None:
    """Measures ResNet-50's layers (forward, float16) beside torch, with rows and tables as in `command`."""
    console, machine, path = Console(), Gpu(cudnn_plans=1), out / "resnet50.jsonl"
    lines = lines_of(["resnet50"], [], [], ["fprop"], "fp16", "")
    show(run(lines, DEFAULT, machine, path, console=console), machine, path, console)


def command(
    suites: Sequence[str],
    problems: Sequence[str],
    lists: Sequence[str],
    passes: Sequence[str],
    dtype: str,
    layout: str,
    providers: Sequence[str],
    minutes: float | None,
    out: Path | None,
    dry_run: bool,
) -> None:
    """What `python -m bench run` does. Raises ValueError for unknown arguments, SystemExit(1) where a result is wrong."""
    console = Console()
    lines = lines_of(suites, problems, lists, passes, dtype, layout)
    known_providers(providers)
    if dry_run:
        for line in lines:
            console.print(f"{line.group or line.suite}: {line.layer} {line.work}".strip(), soft_wrap=True, highlight=False)
        return
    machine = Gpu(cudnn_plans=1)
    path = (out or results_dir()) / f"{lists[0] if lists else 'layers'}.jsonl"
    result = run(lines, providers, machine, path, (committed_results(), path.parent), minutes, console)
    show(result, machine, path, console)
