"""`python -m bench report`: the committed rows as tables and pictures, and the README's block.

The lowest ratios come first, so that no slow layer hides in a mean. A dagger marks rows of kernels or plans that have changed
since.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markdown import Markdown

from bench.calls import call_of_row, device_of, fresh, ours
from bench.charts import charts
from bench.choice import GOALS, Summary, qualities
from bench.compared import Compared, Group, by_gpu, committed, compared, grouped
from bench.provenance import ROOT
from bench.rows import Measurement, latest
from bench.table import FLOOR_FROM_US, microseconds, times
from costmodel.device import Device
from costmodel.plan import predict
from costmodel.reports.pictures import render
from costmodel.tiling import Plan

NOTHING = "Nothing has been measured yet: `bench/results/` holds no rows. `make gpu` makes them on a machine with a GPU."
README = ROOT / "README.md"
#: The README lists this many passes one by one: those with the lowest ratios.
SLOWEST = 8
MARK = "†"


def tables(rows: Sequence[Measurement], full: bool = False) -> str:
    """Markdown for every GPU of the rows; `full` adds every suite and every pass to what the README has."""
    return "\n\n".join(_of_gpu(members, full) for members in by_gpu(rows).values()) or NOTHING


def _of_gpu(rows: Sequence[Measurement], full: bool) -> str:
    entries = compared(rows)
    parts = [_heading(rows, entries)]
    timed = [entry for entry in entries if entry.ratio is not None]
    if timed:
        listed = timed if full else timed[:SLOWEST]
        parts += [f"{'Every pass' if full else f'The {len(listed)} lowest ratios'}, the lowest first:", _passes(listed)]
        if goals := grouped(timed, "goal"):
            parts += ["By goal, geometric means:", _goals(goals)]
        if full:
            parts += ["By suite, geometric means:", _suites(grouped(timed, "suite"))]
    parts += _prediction(rows)
    failed = [f"{e.name}: {row.provider} {row.setting}".rstrip() + f", {row.note}" for e in entries for row in e.verdict.failed]
    if failed:
        shown = failed if full else failed[:SLOWEST]
        rest = f"; and {len(failed) - len(shown)} more" if len(failed) > len(shown) else ""
        parts.append(f"Failed: {'; '.join(shown)}{rest}.")
    if stale := [entry for entry in entries if entry.stale]:
        kernels = sum(entry.stale == "kernels" for entry in stale)
        changed = [f"{kernels} of kernels"] * bool(kernels) + [f"{len(stale) - kernels} of plans"] * (len(stale) > kernels)
        parts.append(f"{MARK} with rows measured before a change: {' and '.join(changed)} that have changed since.")
    return "\n\n".join(parts)


def _heading(rows: Sequence[Measurement], entries: Sequence[Compared]) -> str:
    used = [row for entry in entries for row in (entry.verdict.ours, entry.verdict.torch) if row] or rows
    versions = []
    for word, name in (("torch", "torch"), ("cuDNN", "cudnn"), ("Triton", "triton"), ("driver", "driver")):
        versions += [f"{word} {value}" for value in sorted({getattr(row, name) for row in used}) if value]
    return (
        f"**{rows[0].gpu}**, {', '.join(versions)}: {len(entries)} passes. A ratio is the time of torch's fastest setting "
        "(contiguous and channels-last, `cudnn.benchmark` off and on, copies between layouts included) over tritonconv's: "
        "above 1 tritonconv is faster."
    )


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _marked(text: str, stale: object) -> str:
    return f"{text} {MARK}" if stale else text


def _passes(entries: Sequence[Compared]) -> str:
    rows = []
    for entry in entries:
        verdict = entry.verdict
        assert verdict.ours and verdict.torch and entry.share  # the entry has a ratio
        torch = f"{microseconds(verdict.torch):.1f} ({verdict.torch.setting})"
        figures = (f"{microseconds(verdict.ours):.1f}", torch, times(verdict.against(verdict.default)), f"{entry.share:.0%}")
        rows.append((_marked(entry.name, entry.stale), times(entry.ratio), *figures))
    return markdown_table(("layer", "ratio", "µs", "torch's fastest, µs", "against torch's default", "of the roofline"), rows)


def _goals(groups: Sequence[Group]) -> str:
    rows = []
    for group in groups:
        line = group.line
        goal = "-" if line.goal is None else f"{line.goal:.1f}x"
        floor = "-" if line.floor is None else f"{line.floor:.2f}x"
        means = times(group.ratio), goal, times(group.lowest), floor, times(group.default), f"{group.share:.0%}"
        rows.append((_marked(group.name, group.stale), str(len(group.members)), *means))
    lowest = f"lowest where torch takes above {FLOOR_FROM_US:.0f} µs"
    return markdown_table(
        ("goal", "passes", "ratio", "goal", lowest, "floor", "against torch's default", "of the roofline"), rows
    )


def _suites(groups: Sequence[Group]) -> str:
    rows = []
    for group in groups:
        means = times(group.ratio), times(min(group.ratios)), times(group.default), f"{group.share:.0%}"
        rows.append((_marked(group.name, group.stale), str(len(group.members)), *means))
    return markdown_table(("suite", "passes", "ratio", "lowest", "against torch's default", "of the roofline"), rows)


def predictions(rows: Sequence[Measurement], device: Device) -> list[tuple[Measurement, float, float, float]]:
    """(row, predicted µs, low, high) by today's model, for every good row of today's kernels."""
    good = []
    for row in latest(rows).values():
        if ours(row) and fresh(row):
            p = predict(call_of_row(row), Plan.parse(row.plan), device)
            good.append((row, 1e6 * p.seconds, 1e6 * p.low, 1e6 * p.high))
    return good


def _prediction(rows: Sequence[Measurement]) -> list[str]:
    """A sentence on predicted times, and one on the choice of plans where a sweep was made."""
    device, sentences = device_of(rows[0].gpu), []
    if good := predictions(rows, device):
        errors = [abs(predicted / microseconds(row) - 1) for row, predicted, _, _ in good]
        inside = np.mean([low <= microseconds(row) <= high for row, _, low, high in good])
        sentences.append(
            f"Predicted times of {len(good)} rows: error {np.median(errors):.1%} in the median (goal "
            f"{GOALS['median error']:.0%}), {np.mean(errors):.1%} in the mean (goal {GOALS['mean error']:.0%}); "
            f"{inside:.0%} lie in their interval."
        )
    if calls := qualities(rows, device):
        summary = Summary.of(calls)
        sentences.append(
            f"The plan of least predicted time has {summary.median_share:.1%} of the fastest plan's speed in the median "
            f"(goal {GOALS['median share']:.0%}) and {summary.p5_share:.1%} at the fifth percentile (goal "
            f"{GOALS['p5 share']:.0%}), over {summary.calls} calls and {summary.plans} plans; rank correlation "
            f"{summary.correlation:.2f}."
        )
    return sentences


def put(readme: str, block: str, name: str = "measured") -> str:
    """The README's text with `block` between the markers of a name. Raises ValueError unless they occur exactly once."""
    pattern = re.compile(rf"(?<=<!-- {name} -->\n).*(?=\n<!-- /{name} -->)", re.S)
    if len(pattern.findall(readme)) != 1:
        raise ValueError(f"README.md has not the lines <!-- {name} --> and <!-- /{name} --> once")
    return pattern.sub(lambda _: block, readme)


def run(gpu: str, out: Path, readme: bool, rows: Sequence[Measurement] | None = None) -> None:
    """Prints the full report and saves it and the pictures in `out`. With `readme` it only rewrites the README's block.

    Raises ValueError for a GPU without rows.
    """
    rows = committed() if rows is None else rows
    if readme:
        README.write_text(put(README.read_text(), tables(rows)))
        return
    console = Console()
    if gpu:
        known = by_gpu(rows)
        rows = [row for row in rows if gpu.lower() in row.gpu.lower()]
        if not rows:
            raise ValueError(f"gpu {gpu!r} has no rows; there are rows of {', '.join(known) or 'none'}")
    text = tables(rows, full=True)
    console.print(Markdown(text))
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(text + "\n")
    for name, members in by_gpu(rows).items():
        device = device_of(name)
        fresh_rows = predictions(members, replace(device, fastest={}))
        for kind, figure in charts(compared(members), fresh_rows, device).items():
            path = out / f"{name.lower().replace(' ', '-')}-{kind}.png"
            path.write_bytes(render(figure, "png"))
            console.print(f"picture: {path}", soft_wrap=True)
    console.print(f"report: {out / 'report.md'}", soft_wrap=True)
