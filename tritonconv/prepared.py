"""A launch without its tensors, and what every launch is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from costmodel.tiling import Operand, Plan
from tritonconv.kernels.index import Strides, pack
from tritonconv.layout import five

TensorKey = tuple[tuple[int, ...], tuple[int, ...]]  # shape, strides
INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Prepared:
    """A launch without its tensors. `workspace` is the shape of wgrad's partial sums, `reduce` the launch that adds them."""

    plan: Plan
    programs: int
    arguments: tuple[Any, ...]  # after the tensors
    constants: dict[str, Any]
    workspace: tuple[int, ...] = ()
    reduce: Prepared | None = None


def key(tensor: torch.Tensor) -> TensorKey:
    return tuple(tensor.shape), tensor.stride()


def packed_strides(tensor: TensorKey, described: Operand) -> Strides:
    """Strides as the kernels take them: 5 axes, divided by the alignment (but the unit one), packed."""
    shape, strides = tensor
    real = five(strides, 0)
    sizes = five(shape, 1)
    return Strides(
        *(
            pack(0 if size == 1 or axis == described.unit else stride // described.align)
            for axis, (size, stride) in enumerate(zip(sizes, real, strict=True))
        )
    )
