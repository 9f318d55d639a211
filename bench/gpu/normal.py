"""An item of a normalisation before a convolution: the statistics of groups and of pixels, and the kernel that applies them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from bench.gpu.convolutions import NUMBERS
from bench.gpu.functions import in_float64, rows, tensor
from bench.gpu.item import Item, Tensors
from bench.tolerance import C_LIMIT, UNIT
from tritonconv.layout import channels_last_strides

_OPS = torch.ops.tritonconv
SHAPE, GROUPS, EPS = (2, 48, 2, 9, 10), 3, 1e-3


def normal_item(numbers: str, last: bool = True) -> Item:
    """The item: scale and shift of groups, rstd of pixels, and x with all three and a SiLU."""
    dtype = getattr(torch, NUMBERS[numbers][0])
    strides_of = channels_last_strides if last else rows

    def inputs(device: str) -> Tensors:
        channels = SHAPE[1:2]
        values = (tensor(channels, (1,), dtype, device, seed) for seed in (1, 2))
        return [tensor(SHAPE, strides_of(SHAPE), dtype, device, 0), *values]

    def call(x: Any, w: Any, b: Any) -> Sequence[torch.Tensor]:
        scale, shift = _OPS.group_scale(x, w, b, GROUPS, EPS, False)
        rstd = _OPS.rms_rstd(x, EPS)
        return scale, shift, rstd, _OPS.normalize(x, scale, shift, rstd, "silu")

    def judge(tensors: Tensors, results: Sequence[torch.Tensor]) -> float:
        """Sums of n squares have a relative error of c * u * sqrt(n). The values that use them have one rounding more."""
        x, w, b = in_float64(tensors)
        groups = x.reshape(SHAPE[0], GROUPS, -1)
        variance, mean = torch.var_mean(groups, -1, correction=0)
        scale = w * (variance + EPS).rsqrt().repeat_interleave(SHAPE[1] // GROUPS, 1)
        shift = b - mean.repeat_interleave(SHAPE[1] // GROUPS, 1) * scale
        rstd = (x.square().mean(1) + EPS).rsqrt()
        per_channel = (*SHAPE[:2], 1, 1, 1)
        y = torch.nn.functional.silu(x * rstd.unsqueeze(1) * scale.view(per_channel) + shift.view(per_channel))
        unit = C_LIMIT * UNIT[torch.float64 if dtype == torch.float64 else torch.float32] * groups.shape[-1] ** 0.5
        worst = 0.0
        for got, want in zip(results, (scale.unsqueeze(1), shift.unsqueeze(1), rstd, y), strict=True):
            room = (unit + (UNIT[dtype] if got.dtype == dtype else 0.0)) * (want.abs() + want.abs().max())
            worst = max(worst, float(((got.cpu().double() - want).abs() / room).nan_to_num(torch.inf).max()))
        return worst

    layout = "channels_last" if last else "contiguous"
    return Item(f"prologue {numbers} {layout}", inputs, call, judge, explained=lambda tensors: "forward")


def normal_items(numbers: str, every: bool) -> Iterator[Item]:
    if numbers != "tf32":
        for last in (True, False) if every else (True,):
            yield normal_item(numbers, last)
