"""A comparison as pictures: layers, measured and predicted, under the roofline; where the step's time goes."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from costmodel.compare.analysis import Comparison, LayerRow
from costmodel.reports.pictures import LIGHT, Theme, blank_figure, draw_roofline, dress
from costmodel.reports.units import share, si


@dataclass(frozen=True)
class Dot:
    """A layer as `draw_roofline` takes it: its dot is the prediction, its diamond what was measured."""

    name: str
    useful_flops: float
    intensity: float
    bound: str
    seconds: float
    share: float
    measured_seconds: float | None
    receptive_field: tuple[int, ...] | None = None


def dots(comparison: Comparison) -> list[Dot]:
    """The dots of layers in the arithmetic that most layers have. Where no plan is predicted, the roofline is used."""
    rows = [row for row in comparison.layers if row.dtype == named(comparison)]
    whole = sum(row.step_seconds for row in rows) or 1.0
    return [_dot(row, whole) for row in rows]


def named(comparison: Comparison) -> str:
    dtype, precision = comparison.arithmetic
    return "tf32" if precision == "tf32" else dtype


def _dot(row: LayerRow, whole: float) -> Dot:
    predicted = row.predicted_seconds or row.roofline_seconds
    part = row.step_seconds / whole
    return Dot(row.label.partition(" ")[2], row.useful_flops, row.intensity, row.bound, predicted, part, row.measured_seconds)


def drawn(comparison: Comparison, theme: Theme = LIGHT, titled: bool = True) -> dict[str, Figure]:
    """The pictures by name: "roofline" where there are layers, "time" where there are steps or layers."""
    pictures = {}
    if comparison.layers:
        dtype, precision = comparison.arithmetic
        pictures["roofline"] = blank_figure(9.2, 5.8, theme)
        title = f"Measured (diamonds) and predicted (dots) on {comparison.device.name}, {named(comparison)}" if titled else ""
        peak, bandwidth = comparison.device.rate(dtype, precision), comparison.device.bandwidth * 1e9
        draw_roofline(pictures["roofline"].subplots(), dots(comparison), peak, bandwidth, title, theme)
    bars = kinds(comparison)
    if bars:
        pictures["time"] = blank_figure(9.2, 1.1 + 0.36 * len(bars), theme)
        draw_kinds(pictures["time"].subplots(), bars, "Where a step's time goes" if titled else "", theme)
    return pictures


def kinds(comparison: Comparison) -> list[tuple[str, float]]:
    """Bars of seconds, the longest first and the GPU's idle time last. Without steps, the layers that take longest."""
    if comparison.kinds:
        bars = sorted(comparison.kinds.items(), key=lambda item: -item[1])
        return bars + ([("GPU idle", comparison.wall - comparison.busy)] if comparison.idle_share else [])
    rows = sorted(comparison.layers, key=lambda row: -row.step_seconds)[:12]
    return [(row.label, row.step_seconds) for row in rows]


def draw_kinds(axes: Axes, bars: list[tuple[str, float]], title: str, theme: Theme) -> None:
    """Draws one bar per kind, with seconds and share at its end."""
    dress(axes, title, theme)
    whole = sum(seconds for _, seconds in bars) or 1.0
    places = range(len(bars), 0, -1)
    colours = {"convolution": theme.compute, "layout copies": theme.cache, "GPU idle": theme.line}
    axes.barh(list(places), [seconds for _, seconds in bars], height=0.7,
              color=[colours.get(name, theme.memory) for name, _ in bars])  # fmt: skip
    axes.set_yticks(list(places), [name if len(name) < 44 else name[:43] + "…" for name, _ in bars], fontsize=9)
    axes.set_xticks([])
    axes.set_xlim(0, max(seconds for _, seconds in bars) * 1.3)
    for place, (_, seconds) in zip(places, bars, strict=True):
        text = f"{si(seconds, 's')}, {share(seconds / whole)}"
        axes.annotate(text, (seconds, place), (5, 0), textcoords="offset points", va="center", fontsize=9, color=theme.ink)
