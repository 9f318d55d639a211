"""An item of a convolution with a prologue and a residual, in one kernel and in two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

import tritonconv
from bench.gpu.convolutions import NUMBERS
from bench.gpu.functions import in_float64, planned, rows, tensor
from bench.gpu.item import Item, Tensors
from bench.tolerance import C_LIMIT, STEEPEST, UNIT, Expected
from tritonconv.layout import channels_last_strides

X, W = (3, 24, 5, 6), (16, 24, 3, 3)  # 30 results per image, so that a tile of rows spans images
Y = (X[0], W[0], *X[2:])
WAYS = ("fprop:padded", "fprop:gather")


def normalised_item(numbers: str, last: bool = True) -> Item:
    """A call with scale, shift, rstd, a SiLU and a residual. The kernel of padding modes computes the first result, a prologue
    apart the second."""
    dtype, precision = getattr(torch, NUMBERS[numbers][0]), NUMBERS[numbers][1]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    strides_of = channels_last_strides if last else rows

    def inputs(device: str) -> Tensors:
        pixels = (X[0], *X[2:])
        values = (tensor(shape, rows(shape), wide, device, seed) for seed, shape in ((3, X[:2]), (4, X[:2]), (5, pixels)))
        x, w, residual = (tensor(shape, strides_of(shape), dtype, device, seed) for seed, shape in enumerate((X, W, Y)))
        return [x, w, residual, *values]

    def settings(plan: str | None, residual: Any, scale: Any, shift: Any, rstd: Any) -> dict[str, Any]:
        prologue = tritonconv.Prologue(scale, shift, rstd, "silu")
        return {"padding": 1, "prologue": prologue, "residual": residual, "plan": plan}

    def call(x: Any, w: Any, *given: Any) -> Sequence[torch.Tensor]:
        return tuple(tritonconv.conv2d_fused(x, w, **settings(way, *given)) for way in WAYS)

    def judge(tensors: Tensors, results: Sequence[torch.Tensor]) -> float:
        """The input of the convolution is off by four roundings of the sums' type, which the activation may increase, and by
        one rounding to x's type."""
        x, w, residual, scale, shift, rstd = in_float64(tensors)
        scale, shift, rstd = scale[..., None, None], shift[..., None, None], rstd.unsqueeze(1)
        z = x * rstd * scale + shift
        known = F.silu(z)
        off = 4 * UNIT[wide] * (STEEPEST * ((x * rstd * scale).abs() + shift.abs()) + known.abs()) + UNIT[dtype] * known.abs()

        def conv(image: torch.Tensor) -> torch.Tensor:
            return F.conv2d(image, w.abs(), padding=1)

        exact = F.conv2d(known, w, padding=1) + residual
        want = Expected(exact, conv(known.abs()) + residual.abs(), torch.full_like(exact, 9.0 * W[1]))
        room = want.rounding(dtype) + C_LIMIT * want.accumulation(dtype, precision == "tf32") + conv(off)
        worst = [float((want.difference(got) / room).nan_to_num(torch.inf).max()) for got in results]
        return max(worst)

    def explained(tensors: Tensors) -> str:
        x, w, residual, scale, shift, rstd = tensors
        return planned(tritonconv.conv2d_fused, x, w, **settings(None, residual, scale, shift, rstd))

    name = f"convolution with a prologue {numbers} {'channels_last' if last else 'contiguous'}"
    return Item(name, inputs, call, judge, precision=precision, explained=explained)


def normalised_items(numbers: str, every: bool) -> Iterator[Item]:
    for last in (True, False) if every else (True,):
        yield normalised_item(numbers, last)
