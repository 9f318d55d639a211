"""A traced network as a person reads it: modules, parameters, multiply-adds, memory, predicted time. Standard library only."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING

from costmodel.algebra import product
from costmodel.reports.notation import by
from costmodel.reports.units import duration, interval, middle, several, si
from costmodel.tiling import itemsize

if TYPE_CHECKING:
    from costmodel.networks.network import Network
    from costmodel.networks.timed import Timed

#: Most rows of the table: modules are gathered by as many parts of their path as stay within it.
ROWS = 24


def summary(network: Network, device: str = "h100", width: int | None = None) -> str:
    """The table of modules and the totals of `print(network)`, its times on `device` in the arithmetic that `on` takes."""
    width = width or shutil.get_terminal_size().columns
    forward, step = network.on(device), network.on(device, training=True)
    kind = forward.arithmetic.dtype
    lines = [f"{network.name}, input {', '.join(map(str, network.inputs))}, {forward.arithmetic.word}", ""]
    lines += _columns(("module", "output", "parameters", "MAC", "result", "time"), _rows(network, forward, kind), width)
    size = itemsize(kind)
    trainable = f", {si(network.trainable)} trainable" if network.trainable != network.parameters else ""
    cost, whole = network.inference, network.training_step
    least, most = (network.memory.peak(training, kind) for training in (False, True))
    kinds = several(len(network.layers), "operator"), several(len(network.convolutions), "convolution")
    totals = [
        ("layers", f"{kinds[0]}, {kinds[1]} among them"),
        ("parameters", f"{network.parameters:,} ({si(size * network.parameters, 'B')}){trainable}"),
        ("MAC, forward pass", f"{si(cost.dense_macs)} dense, {si(cost.useful_macs)} useful; 1 MAC = 2 FLOP"),
        ("MAC, training step", f"{si(whole.dense_macs)} dense, {si(whole.useful_macs)} useful"),
        ("peak activations", f"{si(least, 'B')} forward, {si(most, 'B')} training"),
        (f"time on {device}", f"{duration(forward.seconds)} forward ({interval(forward.low, forward.high)})"),
        ("", f"{duration(step.seconds)} training step ({interval(step.low, step.high)})"),
    ]
    lines += ["", *(f"{name:<20}{text}" for name, text in totals)]
    if network.unknown:
        calls = ", ".join(f"{name} ({calls} x)" for name, calls in network.unknown.items())
        lines.append(f"FLOP not known, and not counted: {calls}")
    return "\n".join([*lines, *network.notes])


def _rows(network: Network, timed: Sequence[Timed], dtype: str) -> list[tuple[str, ...]]:
    """One row per module, by as many parts of the paths as give no more than `ROWS` rows."""
    groups: dict[str, list[Timed]] = {}
    for depth in count(1):
        deeper: dict[str, list[Timed]] = {}
        for row in timed:
            deeper.setdefault(".".join(row.layer.module.split(".")[:depth]) or row.layer.name, []).append(row)
        if groups and (len(deeper) > ROWS or deeper.keys() == groups.keys()):
            break
        groups = deeper
    rows = []
    for name, members in groups.items():
        layers = [row.layer for row in members]
        macs = sum(layer.forward.dense_macs for layer in layers)
        output = layers[-1].output_shape
        parameters = sum(layer.parameters for layer in layers)
        written = itemsize(dtype) * product(output)
        time = duration(sum(row.seconds for row in members))
        counts = (si(number) if number else "–" for number in (parameters, macs))
        rows.append((name, by(output) or "scalar", *counts, si(written, "B"), time))
    return rows


def _columns(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Columns of text, the first to the left and shortened in its middle where a line would be wider than `width`."""
    widths = [max(len(row[place]) for row in [heads, *rows]) for place in range(len(heads))]
    spare = width - sum(widths[1:]) - 2 * (len(heads) - 1)
    widths[0] = max(8, min(widths[0], spare))

    def line(row: Sequence[str]) -> str:
        cells = [f"{middle(row[0], widths[0]):<{widths[0]}}"]
        cells += [f"{cell:>{size}}" for cell, size in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells)

    return [line(heads), "─" * min(width, sum(widths) + 2 * (len(heads) - 1)), *map(line, rows)]
