"""Measured rows as pictures: under the roofline, as sorted ratios, and beside the predicted times. They have the style of
`costmodel.reports.pictures`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, NullFormatter

from bench.compared import KINDS, Compared
from bench.rows import Measurement, geometric_mean
from bench.table import microseconds
from costmodel.count import cost
from costmodel.device import Device
from costmodel.reports.pictures import LIGHT, Theme, blank_figure, dress, label_points
from costmodel.reports.units import middle, si

#: A colour per kind of layer, in the order of `KINDS`. Neighbours also differ in greys and for the colour-blind.
COLOURS = ("#0b62a8", "#5aa9e6", "#117a65", "#8a8f98", "#d4a017", "#b3420b", "#7a3e9d", "#c2557f")
COLOUR = dict(zip(KINDS, COLOURS, strict=True))
NAMED = 5
TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20, 30, 50, 100)

Predicted = tuple[Measurement, float, float, float]


def charts(
    entries: Sequence[Compared], predicted: Sequence[Predicted], device: Device, theme: Theme = LIGHT
) -> dict[str, Figure]:
    """The pictures for which there are rows, by name: "roofline", "ratios", "predicted"."""
    timed = [entry for entry in entries if entry.ratio is not None]
    figures: dict[str, Figure] = {}
    if timed:
        figures["roofline"] = blank_figure(9.2, 5.8, theme)
        draw_roofline(figures["roofline"].subplots(), timed, device, theme)
        figures["ratios"] = blank_figure(9.2, 5.0, theme)
        draw_ratios(figures["ratios"].subplots(), timed, theme)
    if predicted:
        figures["predicted"] = blank_figure(7.2, 6.4, theme)
        draw_predicted(figures["predicted"].subplots(), predicted, theme)
    return figures


def draw_roofline(axes: Axes, entries: Sequence[Compared], device: Device, theme: Theme) -> None:
    """Attained useful FLOP/s over useful FLOP per compulsory byte, in the dtype that most passes have.

    A dot is ours, and the ring on its line is torch's fastest setting. The dashed roof is that of the FMA units, which
    depthwise layers use.
    """
    works = Counter((e.verdict.line.work.dtype, e.verdict.line.work.precision) for e in entries)
    (dtype, precision), _ = works.most_common(1)[0]
    shown = [e for e in entries if (e.verdict.line.work.dtype, e.verdict.line.work.precision) == (dtype, precision)]
    peak, fma, bandwidth = device.rate(dtype, precision), device.rate(dtype, precision, "fma"), device.bandwidth * 1e9
    spots = []
    for entry in shown:
        verdict, work = entry.verdict, entry.verdict.line.work
        assert verdict.ours and verdict.torch
        spent = cost(work.problem, work.which, dtype=dtype)
        rates = [spent.useful_flops / (microseconds(row) / 1e6) for row in (verdict.ours, verdict.torch)]
        spots.append((entry, spent.intensity, *rates))
    ridge = peak / bandwidth
    left, right = min([ridge / 30, *(x / 2 for _, x, _, _ in spots)]), max([ridge * 8, *(x * 2 for _, x, _, _ in spots)])
    low = min([left * bandwidth, *(min(a, b) / 2 for _, _, a, b in spots)])
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(low, peak * 2.6))
    dress(axes, f"Measured on {device.name}, {dtype}: {len(shown)} passes", theme)
    axes.grid(True, which="major", color=theme.line, linewidth=0.7)
    axes.plot([left, ridge, right], [left * bandwidth, peak, peak], color=theme.ink, linewidth=1.8, zorder=2)
    axes.plot([fma / bandwidth, right], [fma, fma], color=theme.faint, linewidth=1.2, linestyle=(0, (5, 3)), zorder=2)
    for entry, x, own, theirs in spots:
        colour = COLOUR[entry.kind]
        axes.plot([x, x], [own, theirs], color=colour, linewidth=0.7, alpha=0.6, zorder=3)
        axes.scatter([x], [theirs], s=20, facecolors=theme.paper, edgecolors=colour, linewidths=0.9, zorder=4)
        axes.scatter([x], [own], s=26, color=colour, edgecolors=theme.paper, linewidths=0.5, zorder=5)
    axes.set_ylabel("useful FLOP/s")
    axes.set_xlabel("useful FLOP per compulsory byte")
    axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    paper = {"facecolor": theme.paper, "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
    text: dict[str, Any] = {"ha": "right", "fontsize": 9, "textcoords": "offset points", "bbox": paper, "zorder": 6}
    axes.annotate(f"{si(peak, 'FLOP/s')} peak", (right, peak), (-2, 5), color=theme.ink, **text)
    axes.annotate(f"{si(fma, 'FLOP/s')}, FMA units", (right, fma), (-2, 5), color=theme.faint, **text)
    slope = (left * ridge) ** 0.5
    axes.annotate(si(bandwidth, "B/s"), (slope, slope * bandwidth), (-6, 6), color=theme.ink, **text)
    handles = [axes.scatter([], [], s=30, color=theme.ink, label="tritonconv")]
    handles.append(axes.scatter([], [], s=24, facecolors=theme.paper, edgecolors=theme.ink, label="torch's fastest setting"))
    _legend(axes, {e.kind for e in shown}, theme, handles, loc="lower right")


def draw_ratios(axes: Axes, entries: Sequence[Compared], theme: Theme) -> None:
    """Torch's fastest time over ours: one bar per pass, starting at 1, the lowest first; hatched where the row is stale."""
    ordered = sorted(entries, key=lambda entry: entry.ratio or 0)
    ratios = [entry.ratio or 0 for entry in ordered]
    low, high = min(0.7, *(r / 1.3 for r in ratios)), max(1.5, *(r * 1.6 for r in ratios))
    axes.set(yscale="log", ylim=(low, high), xlim=(-1.5, len(ordered) + 0.5))
    slower = sum(ratio < 1 for ratio in ratios)
    title = f"{len(ordered)} passes: {geometric_mean(ratios):.2f}x in the geometric mean, {slower} below 1"
    dress(axes, title, theme)
    axes.grid(True, axis="y", color=theme.line, linewidth=0.7)
    for place, (entry, ratio) in enumerate(zip(ordered, ratios, strict=True)):
        bottom, top = min(1.0, ratio), max(1.0, ratio)
        hatch = "////" if entry.stale else None
        style: dict[str, Any] = {"color": COLOUR[entry.kind], "hatch": hatch, "edgecolor": theme.paper, "linewidth": 0.4}
        axes.bar(place, top - bottom, bottom=bottom, width=0.9, zorder=2, **style)
    axes.axhline(1.0, color=theme.ink, linewidth=1.2, zorder=3)
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in TICKS if low <= tick <= high]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("torch's fastest time over tritonconv's")
    axes.set_xticks([])
    axes.set_xlabel("passes, the lowest ratio first")
    _legend(axes, {entry.kind for entry in ordered}, theme, [], loc="upper left")
    ends = [*range(min(NAMED, len(ordered))), *range(max(NAMED, len(ordered) - NAMED), len(ordered))]
    named = [((place, ratios[place]), middle(ordered[place].name, 44), 1.0) for place in ends]
    avoid = [((place, level), 6.0) for place, ratio in enumerate(ratios) for level in np.geomspace(ratio, 1.0, 12)]
    label_points(axes, named, avoid, theme)


def draw_predicted(axes: Axes, rows: Sequence[Predicted], theme: Theme) -> None:
    """Measured over predicted microseconds: one dot per row, with each family's interval as a band."""
    families = sorted({row.family for row, *_ in rows})
    times = [value for row, us, _, _ in rows for value in (us, microseconds(row))]
    ends = np.array([min(times) / 1.6, max(times) * 1.6])
    axes.set(xscale="log", yscale="log", xlim=tuple(ends), ylim=tuple(ends))
    errors = [abs(us / microseconds(row) - 1) for row, us, _, _ in rows]
    dress(axes, f"{len(rows)} rows: error {np.median(errors):.1%} in the median, {np.mean(errors):.1%} in the mean", theme)
    axes.grid(True, which="major", color=theme.line, linewidth=0.7)
    axes.plot(ends, ends, color=theme.ink, linewidth=1.2, zorder=2)
    colours = dict(zip(families, (theme.memory, theme.compute, theme.cache, theme.launch), strict=False))
    for family in families:
        own = [entry for entry in rows if entry[0].family == family]
        low, high = own[0][2] / own[0][1], own[0][3] / own[0][1]
        colour = colours.get(family, theme.launch)
        axes.fill_between(ends, ends * low, ends * high, color=colour, alpha=0.10, linewidth=0, zorder=1)
        label = f"{family}: {len(own)} rows, interval x{low:.2f} to x{high:.2f}"
        axes.scatter(
            [us for _, us, _, _ in own],
            [microseconds(row) for row, *_ in own],
            s=16,
            color=colour,
            alpha=0.75,
            edgecolors=theme.paper,
            linewidths=0.3,
            zorder=3,
            label=label,
        )
    axes.legend(loc="upper left", facecolor=theme.paper, edgecolor="none", labelcolor=theme.ink, fontsize=9)
    axes.set_xlabel("predicted µs")
    axes.set_ylabel("measured µs")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _legend(axes: Axes, kinds: set[str], theme: Theme, handles: Sequence[Artist], loc: str) -> None:
    shown = [*handles, *(axes.scatter([], [], s=40, marker="s", color=COLOUR[k], label=k) for k in KINDS if k in kinds)]
    look: dict[str, Any] = {"loc": loc, "labelcolor": theme.ink, "fontsize": 8.5, "ncols": 2, "columnspacing": 1.2}
    axes.legend(handles=shown, facecolor=theme.paper, edgecolor="none", framealpha=0.9, **look)
