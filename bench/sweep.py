"""`python -m bench sweep`: measures every candidate plan of a layer, and shows how good the predicted choice was.

Plans are measured in rounds, by increasing predicted time and `AT_ONCE` per line in turns, so that a sweep that runs out of
time has seen the most promising plans of every line. Rows are checked as in `bench run` and have the setting "sweep": they do
not count as measurements of the library's choice, even where it is the same plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.calls import work_of
from bench.choice import qualities, show
from bench.machine import Gpu, Machine
from bench.measure import describe, one_line, race
from bench.provenance import committed_results, results_dir
from bench.providers import Contender
from bench.providers.ours import call_of, contender
from bench.rows import Measurement, append, latest, load
from bench.run import FIRST_LINE_SECONDS, lines_of
from bench.table import name_of
from bench.work import Line, float32_in
from bench.workloads.lists import sample
from costmodel.device import Device
from costmodel.plan import candidates, predict
from costmodel.tiling import Plan

SETTING = "sweep"
AT_ONCE = 8
#: Most plans per line that are measured by default. Depthwise layers have hundreds.
MOST = 40


def ranked(line: Line, device: Device, most: int | None) -> list[Plan]:
    """A line's candidates, by increasing predicted time."""
    call = call_of(line.work)
    return sorted(candidates(call, device), key=lambda plan: predict(call, plan, device).seconds)[:most]


def rounds(lines: Sequence[Line], device: Device, most: int | None) -> Iterator[tuple[Line, list[Plan]]]:
    """The first `AT_ONCE` plans of each line, then the next ones of each."""
    plans = [(line, ranked(line, device, most)) for line in lines]
    for start in range(0, max((len(ranking) for _, ranking in plans), default=0), AT_ONCE):
        for line, ranking in plans:
            if ranking[start:]:
                yield line, ranking[start : start + AT_ONCE]


@dataclass
class Swept:
    """The outcome of a sweep. `failed` are messages that make the exit code nonzero."""

    new_rows: int
    left: int  # batches of plans that there was no time for
    failed: list[str]
    notes: list[str]


def sweep(
    lines: Sequence[Line],
    machine: Machine,
    out: Path,
    earlier: Sequence[Path] = (),
    minutes: float | None = None,
    most: int | None = MOST,
    console: Console | None = None,
) -> Swept:
    """Measures what has no row yet in `out` or in `earlier`. New rows go to `out`. It ends before `minutes` have passed."""
    began, slowest, result = machine.now(), FIRST_LINE_SECONDS, Swept(0, 0, [], [])
    done = set(latest(load(*earlier, out)))
    batches = list(rounds(lines, machine.model, most))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console or Console()) as progress:
        task = progress.add_task("", total=len(batches))
        for i, (line, plans) in enumerate(batches):
            progress.update(task, description=name_of(line))
            start = machine.now()
            if minutes is not None and start - began + slowest > 60 * minutes:
                result.left = len(batches) - i
                break
            try:
                rows = measure(line, plans, machine, done, result)
            except Exception as error:  # one layer must not end the sweep
                result.failed.append(f"{name_of(line)}: {one_line(error)}")
                machine.release()
                rows = []
            append(out, rows)
            done |= {row.identity for row in rows}
            result.new_rows += len(rows)
            result.failed += [f"{name_of(line)}: {row.plan} failed, {row.note}" for row in rows if not row.ok]
            if rows:
                slowest = machine.now() - start if slowest == FIRST_LINE_SECONDS else max(slowest, machine.now() - start)
            progress.advance(task)
        progress.update(task, description="done")
    return result


def measure(
    line: Line, plans: Sequence[Plan], machine: Machine, done: set[tuple[object, ...]], result: Swept
) -> list[Measurement]:
    """The rows of plans that have none yet, measured in one race; no rows where they do not fit the memory."""
    with float32_in(line.work.precision):
        entries: list[tuple[Contender, Measurement]] = []
        for plan in plans:
            entry = replace(contender(line.work, plan), setting=SETTING)
            row = describe(line, entry, machine)
            if row.identity not in done:
                entries.append((entry, row))
        if not entries:
            return []
        needed = line.work.memory(machine.model.l2_bytes, len(entries))
        if needed > machine.memory:
            result.notes.append(f"{name_of(line)}: skipped, needs about {needed / 1e9:.1f} GB")
            return []
        rows = race(line.work, entries, machine)
    machine.release()
    return rows


def command(
    suites: Sequence[str],
    problems: Sequence[str],
    lists: Sequence[str],
    count: int | None,
    passes: Sequence[str],
    dtype: str,
    layout: str,
    most: int | None,
    minutes: float | None,
    out: Path | None,
) -> None:
    """What `python -m bench sweep` does. Raises ValueError for unknown arguments, SystemExit(1) where a plan failed."""
    lines = sample(count) if count else []
    if suites or problems or lists or not count:
        lines = [*lines, *lines_of(suites, problems, lists, passes, dtype, layout)]
    console, machine = Console(), Gpu()
    path = (out or results_dir()) / "sweep.jsonl"
    earlier = (committed_results(), path.parent)
    result = sweep(lines, machine, path, earlier, minutes, most, console)
    works = {line.work for line in lines}
    rows = [row for row in load(*earlier) if row.gpu == machine.facts["gpu"] and work_of(row) in works]
    show(qualities(rows, machine.model), console)
    for text in dict.fromkeys(result.notes):
        console.print(text, style="yellow", soft_wrap=True)
    for text in result.failed:
        console.print(text, style="red", soft_wrap=True)
    if result.left:
        console.print(f"{result.left} batches of plans are left: the time is up. The same command goes on there")
    console.print(f"{result.new_rows} new rows: {path}", soft_wrap=True)
    if result.failed:
        raise SystemExit(1)
