"""This package's counts beside those of torch's own counter, operator by operator. Each difference has an explanation, or the
remark that there is none.

`torch.utils.flop_counter.FlopCounterMode` runs on the same fake tensors, forward and backward. It counts FLOP = 2 * MAC of
matrix products and convolutions (dense, padding included), no bias and nothing else. Up to torch 2.13 at least it multiplies
the weight gradient of a grouped convolution by the number of groups; a small convolution with two groups shows whether it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from costmodel.count import Cost
from costmodel.networks.network import Layer, Network, trace
from costmodel.networks.operators import CPU_ATTENTION
from costmodel.networks.stage import Stage, run, torch_dtype
from costmodel.problem import Pass

UNEXPLAINED = "unexplained"


@dataclass(frozen=True)
class Comparison:
    """Dense FLOP of one operator over the whole network, forward and backward. `explanation` is "" where the counts agree."""

    op: str
    ours: int
    torch: int
    explanation: str

    @property
    def explained(self) -> bool:
        return self.explanation != UNEXPLAINED


def crosscheck(
    model: nn.Module,
    *inputs: Any,
    train: bool = False,
    dtype: Any = None,
    network: Network | None = None,
    **keywords: Any,
) -> list[Comparison]:
    """A row per operator that either side counts. The arguments are those of `trace`, whose result may be given as `network`.

    Raises ValueError as `trace` does.
    """
    network = network or trace(model, *inputs, train=train, dtype=dtype, **keywords)
    counter = FlopCounterMode(display=False)
    run(Stage(model, inputs, torch_dtype(dtype), keywords), counter, train)
    counted = counter.get_flop_counts().get("Global", {})
    theirs = {str(packet).removeprefix("aten.").replace(".", "::"): int(flops) for packet, flops in counted.items()}
    ours: dict[str, int] = {}
    for op, cost in _operators(network.layers):
        ours[op] = ours.get(op, 0) + 2 * cost.dense_macs
    names = [name for name, flops in ours.items() if flops] + [name for name in theirs if not ours.get(name)]
    return [_compare(name, ours.get(name, 0), theirs.get(name, 0), network) for name in names]


def _operators(layers: Sequence[Layer]) -> list[tuple[str, Cost]]:
    """Every operator of the trace, by torch's name."""
    steps = []
    for layer in layers:
        steps.append((layer.operator, layer.forward))
        steps += [(step.op, step.cost) for step in layer.backward]
    return steps


def _compare(op: str, ours: int, theirs: int, network: Network) -> Comparison:
    return Comparison(op, ours, theirs, "" if ours == theirs else _explanation(op, ours, theirs, network))


def _explanation(op: str, ours: int, theirs: int, network: Network) -> str:
    if op == "convolution_backward":
        surplus = sum(
            2 * step.cost.dense_macs * (layer.problem.groups - 1)
            for layer in network.convolutions
            for step in layer.backward
            if layer.problem is not None and step.which == Pass.WGRAD and step.op == op
        )
        if counts_groups_of_weight_gradients() and theirs - ours == surplus:
            return "torch multiplies the weight gradient of a grouped convolution by its number of groups"
    if theirs == 0 and op.startswith(CPU_ATTENTION):
        return "torch has a formula for fused attention on a GPU, none for it on a CPU"
    if theirs == 0:
        return "torch has no formula for this operator"
    if ours == 0 and op in network.unknown:
        return "an operator that is not known here, see the list"
    return UNEXPLAINED


@cache
def counts_groups_of_weight_gradients() -> bool:
    """Whether this torch counts the weight gradient of a convolution with two groups twice."""
    with FlopCounterMode(display=False) as counter:
        x = torch.empty(1, 4, 8, device="meta")
        w = torch.empty(4, 2, 3, device="meta", requires_grad=True)
        y = torch.nn.functional.conv1d(x, w, groups=2)
        forward = counter.get_total_flops()
        torch.autograd.grad(y, w, torch.empty_like(y))
    return counter.get_total_flops() - forward == 2 * forward
