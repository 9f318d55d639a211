"""Tables for a terminal of 80 columns. rich turns colour off where the output is piped or NO_COLOR is set."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from costmodel.device import Device
from costmodel.reports.notation import Convolution, by
from costmodel.reports.rows import EstimateRow, LayerRow, PassRow, figures
from costmodel.reports.units import apart, duration, exact, interval, share, si
from costmodel.resources import LEAST_CAPABILITY

if TYPE_CHECKING:
    from costmodel.networks.crosscheck import Comparison
    from costmodel.reports.report import Report

#: Words short enough for a column, and their colours, by what limits a row.
LIMITS = {
    "arithmetic": ("arith.", "yellow"),
    "instruction issue": ("issue", "yellow"),
    "DRAM": ("DRAM", "cyan"),
    "L2": ("L2", "cyan"),
    "cache lines": ("lines", "cyan"),
    "launch": ("launch", "dim"),
}


def console() -> Console:
    """Standard output. Numbers keep the colour of their cell."""
    return Console(highlight=False)


def printed(show: Callable[[Console], None], width: int | None = None) -> str:
    """What `show` prints, as text without trailing blanks."""
    out = io.StringIO()
    show(Console(file=out, width=width, highlight=False))
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def table(title: str = "", gap: int = 1) -> Table:
    """A table in the form all of them share; columns stand `gap` and one more spaces apart."""
    form: dict[str, Any] = {"box": SIMPLE_HEAD, "show_edge": False, "pad_edge": False, "padding": (0, gap, 0, 0)}
    return Table(title=title, title_justify="left", title_style="bold", **form)


def optional(value: Any, text: Callable[[Any], str] = str) -> str:
    return "–" if value is None else text(value)


def show_derivation(out: Console, text: str) -> None:
    """Prints prose and indented formulas. A line that is too long continues on the next one, indented further."""
    for line in text.splitlines():
        inset = line[: len(line) - len(line.lstrip())]
        folded = textwrap.wrap(line, out.width, subsequent_indent=inset and inset + "  ", break_long_words=False)
        out.print("\n".join(folded), markup=False, soft_wrap=True)


def passes_table(rows: Sequence[PassRow]) -> Table:
    """The passes of a layer side by side."""

    def time(row: PassRow) -> str:
        return optional(row.seconds, lambda seconds: si(seconds, "s"))

    def spread(row: PassRow) -> str:
        return "–" if row.low is None or row.high is None else interval(row.low, row.high)

    def plan(row: PassRow) -> str:
        # two lines, since three plans side by side do not fit 80 columns
        kernel, family, tile, *rest = (row.plan or "–::").split(":")
        return "\n".join(line for line in (f"{kernel} {family}".strip(), tile, " ".join(rest)) if line)

    lines: list[tuple[str, Callable[[PassRow], str]] | None] = [
        ("result", lambda row: by(row.output_shape)),
        None,
        ("useful MAC", lambda row: si(row.useful_macs, "MAC")),
        ("dense MAC", lambda row: si(row.dense_macs, "MAC")),
        ("issued MAC", lambda row: optional(row.issued_macs, lambda macs: si(macs, "MAC"))),
        ("useful FLOP", lambda row: si(row.useful_flops, "FLOP")),
        ("dense FLOP", lambda row: si(row.dense_flops, "FLOP")),
        ("issued FLOP", lambda row: optional(row.issued_flops, lambda flops: si(flops, "FLOP"))),
        ("padding waste", lambda row: share(row.padding_waste)),
        ("tile waste", lambda row: optional(row.tile_waste, share)),
        None,
        ("compulsory bytes", lambda row: si(row.bytes, "B")),
        ("with im2col", lambda row: si(row.im2col_bytes, "B")),
        ("useful FLOP/byte", lambda row: f"{row.intensity:.1f}"),
    ]
    if any(row.ridge is not None for row in rows):
        lines += [
            ("ridge, FLOP/byte", lambda row: optional(row.ridge, lambda ridge: f"{ridge:.1f}")),
            ("roof that binds", lambda row: optional(row.roof)),
            ("compute-bound from", lambda row: "never" if row.crossing_batch is None else f"batch {row.crossing_batch:,}"),
            None,
            ("roofline time", lambda row: optional(row.roofline_seconds, lambda seconds: si(seconds, "s"))),
            ("predicted time", time),
            ("  interval", spread),
            ("  limited by", lambda row: optional(row.limit)),
            ("plan", plan),
        ]
    shown = table()
    shown.add_column("", no_wrap=True)
    for row in rows:
        shown.add_column(row.what, justify="right")
    for line in lines:
        if line is None:
            shown.add_section()
        else:
            shown.add_row(line[0], *(line[1](row) for row in rows))
    return shown


def show_passes(
    out: Console, layer: Convolution, rows: Sequence[PassRow], device: Device | None, arithmetic: str, remark: str = ""
) -> None:
    """Prints a layer, its shapes and its passes. `remark` adds what the name of the arithmetic does not say."""
    out.print(Text(layer.words, style="bold"))
    shapes = f"input {by(layer.input_shape)}, weight {by(layer.problem.weight_shape)}, output {by(layer.output_shape)}"
    out.print(shapes)
    out.print(arithmetic + (f" on {device.name}" if device else ""), markup=False)
    if remark:
        out.print(f"{remark}.", markup=False)
    unplanned = passes_table([replace(row, plan=None) for row in rows])  # a plan's words may go on below, numbers not
    if Console(width=1000).measure(unplanned).maximum <= out.width:
        out.print(passes_table(rows))
    else:  # one under another
        for row in rows:
            out.print(passes_table([row]))
    if device is None:
        out.print(
            "1 MAC = 2 FLOP. Add --device h100, or from Python layer.table('h100'), for the roofline, the plan and its "
            "predicted time."
        )
        return
    sources = dict.fromkeys(row.source for row in rows if row.source)
    for source in sources:
        out.print(f"1 MAC = 2 FLOP. The predicted interval is {source}.")
    if any(row.plan is None for row in rows):
        out.print(f"A dash: no compiled kernel serves that pass on {device.name}, so there is no plan to time.")


def show_estimate(out: Console, rows: Sequence[EstimateRow], heading: str, work: Sequence[tuple[str, float, float]]) -> None:
    """Prints an estimate. `work` has (what, dense MAC of one sample and layer, dense MAC of all), `EstimateRow` the times."""
    shown = table(heading)
    for name, side in (("dense count", "left"), ("one layer, one sample", "right"), ("everything", "right")):
        shown.add_column(name, justify="right" if side == "right" else "left")
    for what, one, all_ in work:
        shown.add_row(what, *(f"{si(macs, 'MAC')} = {si(2 * macs, 'FLOP')}" for macs in (one, all_)))
    out.print(shown)
    times = table()
    times.add_column("sustained rate assumed")
    for name in ("of peak", "forward", "training"):
        times.add_column(name, justify="right")
    for row in rows:
        rate = si(row.rate, row.unit) + ("" if row.origin == "given" else f", {row.origin}")
        times.add_row(rate, optional(row.share, share), duration(row.forward_seconds), duration(row.training_seconds))
    out.print(times)
    out.print(
        "A rate given in FLOPS is read both ways: as MAC/s by those who count a multiply-add as one operation, as FLOP/s by "
        "datasheets (1 MAC = 2 FLOP). Training is fprop, dgrad and wgrad; the first layer needs no dgrad."
    )


def show_devices(out: Console, known: Sequence[Device]) -> None:
    """Prints peaks, bandwidth and ridge of every device."""
    heads = ("name", "SM", "fp16", "bf16", "tf32", "fp32", "fp64", "memory", "L2 MB", "ridge")
    lines = []
    for device in known:
        peaks = [getattr(device, rate) for rate in ("fp16", "bf16", "tf32", "fp32")] + [device.fp64_tensor or device.fp64]
        ridge = device.rate("float16") / (device.bandwidth * 1e9) if device.fp16 else None
        lines.append((
            device.aliases[0] if device.aliases else device.name,
            str(device.sm_count),
            *(optional(peak, lambda value: f"{value:.4g}") for peak in peaks),
            f"{device.bandwidth:.0f}",
            f"{device.l2_bytes / 2**20:.0f}",
            optional(ridge, lambda value: f"{value:.0f}"),
        ))  # fmt: skip
    spare = ("L2 MB", "fp64", "fp32", "SM", "ridge", "tf32")
    title = "Dense peaks in TFLOP/s, float32 accumulation; memory in GB/s"
    out.print(fitted(title, heads, lines, out.width, spare))
    out.print("Ridge: FLOP per byte at which fp16 arithmetic begins to bind. fp64 is the tensor cores' where they have it.")
    if old := [device.aliases[0] for device in known if device.capability < LEAST_CAPABILITY]:
        least = f"{LEAST_CAPABILITY / 10:.1f}"
        out.print(f"Predicted for, but tritonconv does not run there (it needs compute capability {least}): {', '.join(old)}.")


def show_sources(out: Console, devices: Iterable[Device]) -> None:
    """Prints every figure of every device and where it is from."""
    for device in devices:
        shown = table(f"{device.name}  ({', '.join(device.aliases)})")
        shown.add_column("figure", no_wrap=True)
        shown.add_column("value", justify="right", no_wrap=True)
        shown.add_column("source", overflow="fold")
        for figure in figures(device):
            shown.add_row(figure.figure, exact(figure.value, figure.unit), figure.source)
        out.print(shown)


def show_report(out: Console, report: Report, top: int) -> None:
    """Prints the rows that take longest, totals, and what is not known."""
    out.print(Text(report.model, style="bold"))
    inputs = ", ".join(map(str, report.inputs))
    parameters = si(report.parameters) + (
        f", {si(report.trainable)} trainable" if report.trainable != report.parameters else ""
    )
    out.print(f"input {inputs}, {parameters} parameters, {report.arithmetic} on {report.device}", markup=False)
    ordered = sorted(report.rows, key=lambda row: -row.seconds)
    shown = ordered[:top] if top else ordered
    out.print(_layers_table(shown, f"By predicted time of the {report.timed}", out.width))
    rest = ordered[len(shown) :]
    if rest:
        out.print(f"{len(rest)} more rows take {share(sum(row.share for row in rest))} of the time; --top 0 shows all.")
    heads = ("", "useful MAC", "dense MAC", "other FLOP", "bytes", "roofline", "predicted")
    lines = [
        (
            total.what,
            *(si(count) for count in (total.useful_macs, total.dense_macs, total.other_flops, total.bytes)),
            duration(total.roofline_seconds),
            optional(total.seconds, duration),
        )
        for total in report.totals
    ]
    out.print(fitted("Totals", heads, lines, out.width, spare=("other FLOP", "useful MAC", "bytes", "roofline")))
    memory = f"{si(report.forward_memory, 'B')} forward, {si(report.training_memory, 'B')} in training"
    out.print(f"Peak activations: {memory}.")
    for total in report.totals:
        if total.low is not None and total.high is not None:
            out.print(f"Interval of the {total.what}: {interval(total.low, total.high)}.")
        elif total.what == "training step":
            out.print("Add --train, or from Python training=True, for the predicted time of the training step.")
    if report.checks is not None:
        _show_checks(out, report.checks)
    for line in (*report.notes, *report.assumptions):
        out.print(line, markup=False)
    if report.unknown:
        calls = ", ".join(f"{name} ({count} x)" for name, count in report.unknown.items())
        out.print(Text(f"FLOP not known, and not counted: {calls}", style="bold red"))
    else:
        out.print("Every operator is known.")


def _show_checks(out: Console, checks: Sequence[Comparison]) -> None:
    shown = table("Dense FLOP of forward and backward, beside torch's FlopCounterMode")
    shown.add_column("operator")
    for name in ("here", "torch"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("", overflow="fold")
    for check in checks:
        shown.add_row(Text(check.op), si(check.ours, digits=5), si(check.torch, digits=5), check.explanation or "equal")
    out.print(shown)


def _layers_table(rows: Sequence[LayerRow], title: str, width: int) -> Table:
    """Rows of a network in `width` columns: the rarer figures are left out before a name becomes shorter than `NAME`."""
    heads = ("layer", "output", "MAC", "FLOP", "byte", "FLOP/B", "limit", "time", "share")
    lines: list[tuple[str | Text, ...]] = []
    for row in rows:
        word, style = LIMITS.get(row.bound, (row.bound[:6], ""))
        flops = row.useful_flops + row.other_flops
        lines.append((
            row.name,
            by(row.output_shape[1:]) or "–",
            si(row.useful_macs) if row.useful_macs else "–",
            (si(flops) if flops else "–") if row.known else "?",
            si(row.bytes),
            f"{row.intensity:.1f}" if row.intensity else "–",
            Text(word, style=style),
            si(row.seconds, "s"),
            share(row.share).removesuffix(" %") + "%",
        ))  # fmt: skip
    return fitted(title, heads, lines, width, spare=("FLOP/B", "FLOP", "byte", "output", "MAC", "limit", "share"))


#: Letters of a name below which columns are left out for it.
NAME = 18


def fitted(
    title: str, heads: Sequence[str], rows: Sequence[Sequence[str | Text]], width: int, spare: Sequence[str] = ()
) -> Table:
    """A table no wider than `width`: without the columns of `spare`, in this order, that do not fit, and with its first column
    shortened in the middle, so that rows still differ."""
    left = list(range(len(heads)))

    def room() -> int:
        others = (max(len(str(row[place])) for row in [heads, *rows]) for place in left[1:])
        return width - sum(1 + size for size in others)

    names = [str(row[0]) for row in rows]
    needed = min(NAME, max(map(len, [heads[0], *names])))
    for head in spare:
        if room() < needed:
            left.remove(heads.index(head))
    size = max(room(), len(heads[0]), 4)
    shown = table(title, gap=0)
    shown.add_column(heads[0], no_wrap=True)
    for place in left[1:]:
        shown.add_column(heads[place], justify="right", no_wrap=True)
    for row, name in zip(rows, apart(names, size), strict=True):
        shown.add_row(Text(name), *(row[place] for place in left[1:]))
    return shown
