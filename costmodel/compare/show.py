"""A comparison in a terminal of 80 columns and as CSV rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from costmodel.compare.analysis import Comparison, NetworkRow
from costmodel.reports.terminal import optional, table
from costmodel.reports.units import duration, share, si


def show(out: Console, comparison: Comparison, top: int) -> None:
    """Prints the layers that take longest, totals, losses with advice, findings and notes."""
    out.print(Text(f"{comparison.source} on {comparison.device.name}", style="bold"))
    if comparison.layers:
        _layers(out, comparison, top)
    if comparison.kinds:
        _kinds(out, comparison)
    if comparison.networks:
        _networks(out, comparison.networks, top)
    if comparison.losses:
        out.print(Text("Largest losses against this package's prediction, of a step", style="bold"))
        for row in comparison.losses:
            out.print(f"{duration(row.gap or 0.0)}: {row.label}, {row.advice}.", markup=False)
    for sentence in totals(comparison):
        out.print(sentence, markup=False)
    findings = comparison.findings
    if findings:
        out.print(Text(f"{len(findings)} below the roofline", style="bold red"))
        for name, words in findings[: top or None]:
            out.print(f"{name}: {words}.", markup=False)
        if top and len(findings) > top:
            out.print(f"{len(findings) - top} more; --top 0 shows all.")
    elif comparison.layers or any(row.roofline_seconds for row in comparison.networks):
        out.print("Nothing is below its roofline.")
    for line in comparison.notes:
        out.print(line[:1].upper() + line[1:] + ".", markup=False)


def counted(number: int, what: str) -> str:
    """ "1 layer", "2 layers"."""
    return f"{number} {what}{'s' if number != 1 else ''}"


def totals(comparison: Comparison) -> list[str]:
    """Sentences about all layers: their medians, and the step."""
    rows = []
    ratios = [row.ratio for row in comparison.layers if row.ratio]
    if ratios:
        shares = sorted(row.roofline_share for row in comparison.layers)
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        layers = counted(len(comparison.layers), "layer")
        rows.append(
            f"{layers}: {share(shares[len(shares) // 2])} of the roofline in the median, {mean:.2f} "
            "times what this package's plans are predicted to take, in the geometric mean. Its kernels were not measured here."
        )
    off = sorted(abs(row.library_seconds / row.measured_seconds - 1) for row in comparison.layers if row.library_seconds)
    if off:
        rows.append(f'What library="cudnn" predicts is off by {share(off[len(off) // 2])} in the median.')
    if comparison.kinds:
        whole = sum(comparison.kinds.values())
        rides = sum(comparison.kinds.get(kind, 0.0) for kind in ("pointwise", "normalisation"))
        rows.append(
            f"Pointwise operators and normalisation take {share(rides / whole)} of the kernels' time. Were they to ride along "
            f"with their neighbours, {duration(whole - rides)} would be left of {duration(whole)}."
        )
    if comparison.idle_share is not None and comparison.idle_share > 0:
        rows.append(f"The GPU is idle in {share(comparison.idle_share)} of a step of {duration(comparison.wall)}.")
    return rows


def _layers(out: Console, comparison: Comparison, top: int) -> None:
    ordered = sorted(comparison.layers, key=lambda row: -row.step_seconds)
    shown = table("By time in a step", gap=0)
    shown.add_column("layer", overflow="fold", width=17)
    for name in ("pass", "x", "time", "copies", "FLOP/s", "B/s", "roof", "by", "plan", "ratio"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in ordered[: top or None]:
        style = "red" if row.finding else ""
        shown.add_row(
            Text(row.name, style=style),
            row.passes.replace("forward", "fwd"),
            f"{row.calls:.0f}" if row.calls >= 10 else f"{row.calls:.2g}",
            si(row.measured_seconds, "s"),
            si(row.copies, "s", 2) if row.copies else "–",
            si(row.useful_rate, digits=2),
            si(row.bytes_rate, digits=2),
            f"{100 * row.roofline_share:.0f}%",
            row.bound[:3],
            optional(row.predicted_seconds, lambda value: si(value, "s")),
            optional(row.ratio, lambda value: f"{value:.2g}" if value >= 10 else f"{value:.1f}"),
        )
    out.print(shown)
    if top and len(ordered) > top:
        out.print(f"{len(ordered) - top} more layers; --top 0 shows all.")


def _kinds(out: Console, comparison: Comparison) -> None:
    whole = sum(comparison.kinds.values())
    shown = table("Where the kernels' time goes")
    shown.add_column("kind")
    for name in ("a step", "share"):
        shown.add_column(name, justify="right")
    for kind, seconds in sorted(comparison.kinds.items(), key=lambda item: -item[1]):
        shown.add_row(kind, duration(seconds), share(seconds / whole))
    out.print(shown)


def _networks(out: Console, rows: Sequence[NetworkRow], top: int) -> None:
    shown = table("Networks, a step", gap=0)
    shown.add_column("model", overflow="fold", min_width=16)
    for name in ("size", "batch", "time", "roofline", "fused", "plans", "cudnn", "off"):
        shown.add_column(name, justify="right", no_wrap=True)
    usable = [row for row in rows if row.roofline_seconds]
    for row in usable[: top or None]:
        theirs = row.library_seconds
        shown.add_row(
            Text(row.model, style="red" if row.finding else ""),
            str(row.image),
            str(row.batch),
            duration(row.measured_seconds),
            *(optional(value, duration) for value in (row.roofline_seconds, row.fused_seconds, row.predicted_seconds, theirs)),
            "–" if theirs is None else f"{100 * (theirs / row.measured_seconds - 1):+.0f}%",
        )
    if usable:
        out.print(shown)
        off = sorted(abs((row.library_seconds or 0) / row.measured_seconds - 1) for row in usable)
        out.print(f'library="cudnn" is off by {share(off[len(off) // 2])} in the median of {len(usable)} networks.')
    for row in rows:
        if row.reason:
            out.print(f"{row.model} at {row.image} is left out: {row.reason}.", markup=False)
