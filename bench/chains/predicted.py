"""The predicted times of a chain's ways, and the table of them in docs: `python -m bench chains --predicted`. Nothing in it was
measured.

Each way is traced on stand-ins. In every way this library's operators take the time of their plans, and torch's operators that
of eager PyTorch by `costmodel.library`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import nn

import costmodel
from bench.chains.chain import OURS, TORCH, Chain, Input, Way
from costmodel.device import Device, find_device
from tritonconv.launch import fp32_precision


class Ran(nn.Module):
    """A way, for `costmodel.trace`."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.way = way

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.way(*given)


class Times(NamedTuple):
    """Predicted seconds of a way's operators of this library and of torch's, and the plans of the former."""

    ours: float
    others: float
    plans: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return self.ours + self.others


def named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def times(way: Way, inputs: Sequence[Input], dtype: torch.dtype, device: Device) -> Times:
    """The times of a way. Raises ValueError for float64, because no times of torch are known for it."""
    return _times(way, tuple(inputs), dtype, device, fp32_precision())


@cache
def _times(way: Way, inputs: tuple[Input, ...], dtype: torch.dtype, device: Device, precision: str) -> Times:
    given = [torch.empty_strided(i.shape, i.strides, dtype=dtype, device="meta") for i in inputs]
    network = costmodel.trace(Ran(way), *given)
    planned = network.on(device, named(dtype), precision=precision)
    today = network.on(device, named(dtype), precision=precision, library="cudnn")
    rows = [*zip(planned.rows, today.rows, strict=True)]
    own = [mine.layer.operator.startswith("tritonconv::") for mine, _ in rows]
    return Times(
        sum(mine.seconds for (mine, _), is_own in zip(rows, own, strict=True) if is_own),
        sum(theirs.seconds for (_, theirs), is_own in zip(rows, own, strict=True) if not is_own),
        tuple(mine.plan for (mine, _), is_own in zip(rows, own, strict=True) if is_own and mine.plan),
    )


def predicted(ways: dict[str, Way], inputs: Sequence[Input], dtype: torch.dtype, device: Device) -> dict[str, float]:
    """`Chain.predicted` of ways that can be traced; nothing in float64."""
    return {} if dtype == torch.float64 else {name: times(way, inputs, dtype, device).seconds for name, way in ways.items()}


def plans(chain: Chain, device: Device) -> str:
    """The distinct plans of our way, in words."""
    distinct = dict.fromkeys(times(chain.ways[OURS], chain.inputs, chain.dtype, device).plans)
    return ", ".join(f"`{plan}`" for plan in distinct)


def summary(
    lists: Sequence[Callable[[torch.dtype, Device], Iterator[Chain]]], device: str = "h100", dtype: torch.dtype = torch.float16
) -> str:
    """The table of the chains of some lists, in microseconds, with a column for every way that one of them has."""
    gpu = find_device(device)
    every = [chain for chains in lists for chain in chains(dtype, gpu)]
    ways = dict.fromkeys((TORCH, *(way for chain in every for way in chain.predicted if way != OURS), OURS))
    lines = [
        f"| {named(dtype)}, {device.upper()} (predicted, µs) | {' | '.join(ways)} | plans |",
        "|---|" + "---|" * (len(ways) + 1),
    ]
    for chain in every:
        cells = (f"{1e6 * chain.predicted[way]:.0f}" if way in chain.predicted else "" for way in ways)
        lines.append(f"| {chain.suite}: {chain.layer} | {' | '.join(cells)} | {plans(chain, gpu)} |")
    return "\n".join(lines)
