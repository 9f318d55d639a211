"""`unfold` and `fold` of this project among a network's operators: what they count and how their tensors lie, for the plans of
`costmodel.unfold`. torch's im2col and col2im are operators of the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from costmodel.alignment import unit_and_align
from costmodel.count import Cost
from costmodel.networks.convolutions import arguments
from costmodel.networks.operators import name_of
from costmodel.problem import Pass
from costmodel.tiling import Operand, itemsize
from costmodel.unfold import UnfoldCall, Unfolding

PASSES = {"tritonconv::unfold": Pass.FPROP, "tritonconv::fold": Pass.DGRAD}


def columns(func: Any, args: Sequence[Any], out: Any) -> UnfoldCall | None:
    """The call that `func` is; None where it is neither of the two."""
    which = PASSES.get(name_of(func))
    if which is None:
        return None
    named = arguments(func, args)
    image, columns_out = (named["x"], out) if which == Pass.FPROP else (out, named["y"])
    assert isinstance(out, torch.Tensor)
    unfolding = Unfolding.of(image.shape, *(named[name] for name in ("kernel_size", "dilation", "padding", "stride")))
    image, columns_out = (Operand(*unit_and_align(tuple(t.shape), t.stride())) for t in (image, columns_out))
    return UnfoldCall(unfolding, which, str(out.dtype).removeprefix("torch."), image, columns_out)


def cost(call: UnfoldCall) -> Cost:
    """The bytes that a call moves at least. Each addition of fold counts as one FLOP; unfold has none."""
    moved = int(call.unfolding.compulsory(itemsize(call.dtype), call.which))
    added = int(call.unfolding.additions) if call.which == Pass.DGRAD else 0
    return Cost(other_flops=added, bytes=moved, im2col_bytes=moved)
