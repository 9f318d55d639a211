"""Published times beside predicted ones as pictures, in the style of the reports: layers by GPU, networks by layout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from bench.measured import evidence
from bench.measured.library import held_out_gpu, held_out_half
from costmodel.reports.pictures import LIGHT, Theme, blank_figure, dress

COLOURS = ("#0b62a8", "#b3420b", "#117a65", "#7a3e9d", "#d4a017", "#6f7780")


def drawn(theme: Theme = LIGHT) -> dict[str, Figure]:
    """The pictures by name: "layers" and "networks"."""
    return {"layers": _layers(theme), "networks": _networks(theme)}


def _layers(theme: Theme) -> Figure:
    """Tensor-core layers, each predicted without its GPU."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for sample, seconds in zip(evidence.layer_samples(), evidence.guesses("gpu"), strict=True):
        if sample.row.tensor_cores:
            name = sample.row.device.name.removeprefix("NVIDIA ").removesuffix(" 80GB HBM3").removesuffix("-SXM4-40GB")
            groups.setdefault(f"{name}, {'16 bit' if sample.seen.arithmetic == 'half' else 'TF32'}", []).append(
                (1e3 * sample.row.seconds, 1e3 * seconds)
            )
    figure = blank_figure(7.6, 6.2, theme)
    _scatter(figure.subplots(), groups, "cuDNN's layers on tensor cores, the GPU left out of the fit", "ms", theme)
    return figure


def _networks(theme: Theme) -> Figure:
    figure = blank_figure(11.5, 5.2, theme)
    left, right = figure.subplots(1, 2)
    for axes, pairs, title in (
        (left, held_out_half("channels_last"), "timm's networks, the other half fitted"),
        (right, held_out_gpu("channels_last", "NVIDIA GeForce RTX 3090"), "fitted to the RTX 3090"),
    ):
        groups: dict[str, list[tuple[float, float]]] = {}
        for run, seconds in pairs:
            per_image = 1e6 / run.batch
            name = run.gpu.removeprefix("NVIDIA GeForce ")
            groups.setdefault(name, []).append((per_image * run.seconds, per_image * seconds))
        _scatter(axes, groups, title, "µs per image", theme)
    return figure


def _scatter(axes: Axes, groups: dict[str, list[tuple[float, float]]], title: str, unit: str, theme: Theme) -> None:
    """Draws predicted over measured times, one dot per time, with lines at equality, twice and half."""
    values = np.array([value for pairs in groups.values() for pair in pairs for value in pair])
    ends = np.array([values.min() / 1.5, values.max() * 1.5])
    axes.set(xscale="log", yscale="log", xlim=tuple(ends), ylim=tuple(ends))
    dress(axes, title, theme)
    axes.grid(True, which="major", color=theme.line, linewidth=0.7)
    axes.plot(ends, ends, color=theme.ink, linewidth=1.2, zorder=2)
    for factor in (0.5, 2.0):
        axes.plot(ends, factor * ends, color=theme.faint, linewidth=0.8, linestyle=(0, (4, 3)), zorder=2)
    for (name, pairs), colour in zip(sorted(groups.items()), COLOURS, strict=False):
        off = _median(pairs)
        measured, predicted = zip(*pairs, strict=True)
        label = f"{name}: {len(pairs)}, {off:.0%} off in the median"
        axes.scatter(measured, predicted, s=13, color=colour, alpha=0.65, linewidths=0, zorder=3, label=label)
    axes.legend(loc="upper left", facecolor=theme.paper, edgecolor="none", labelcolor=theme.ink, fontsize=8.5)
    axes.set_xlabel(f"measured by others, {unit}")
    axes.set_ylabel(f"predicted, {unit}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _median(pairs: Sequence[tuple[float, float]]) -> float:
    return float(np.median([abs(predicted / measured - 1) for measured, predicted in pairs]))
