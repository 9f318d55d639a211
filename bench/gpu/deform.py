"""Deformable convolutions to try on a GPU: forward and all gradients in one call, held against torch's operators in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

import tritonconv
from bench.gpu.convolutions import NUMBERS
from bench.gpu.functions import in_float64, planned, rows, tensor
from bench.gpu.item import Item, Tensors
from bench.tolerance import TF32_INPUT_UNIT, UNIT
from tritonconv.layout import channels_last_strides

#: Input, filters, groups, stride, offset groups, masked. The padding is 1 and the filter 3x3.
LAYERS = {
    "3x3": ((2, 32, 14, 13), 48, 1, 1, 1, True),
    "3x3 stride 2": ((2, 32, 15, 14), 48, 1, 2, 2, True),
    "3x3 in groups": ((2, 48, 9, 14), 32, 2, 1, 3, False),
}
#: The allowed error of a gradient, in roundings of the largest element.
ROUNDINGS = 8


def deform_item(name: str, numbers: str, last: bool = True) -> Item:
    shape, filters, groups, stride, offset_groups, masked = LAYERS[name]
    dtype, precision = getattr(torch, NUMBERS[numbers][0]), NUMBERS[numbers][1]
    size = [(n + 2 - 3) // stride + 1 for n in shape[2:]]
    weight, out = (filters, shape[1] // groups, 3, 3), (shape[0], filters, *size)
    moved, factors = ((shape[0], taps * offset_groups, *size) for taps in (18, 9))
    strides = channels_last_strides if last else rows

    def inputs(device: str) -> Tensors:
        offset = tensor(moved, rows(moved), dtype, device, 1)
        if device != "meta":  # odd sixteenths of a pixel up to 3: every type holds them, and there is a derivative
            offset.mul_(8).round_().clamp_(-24, 24).div_(8).add_(0.0625)
        return [
            tensor(shape, strides(shape), dtype, device, 0),
            offset,
            tensor(weight, rows(weight), dtype, device, 2).mul_((9 * shape[1] // groups) ** -0.5),
            tensor((filters,), (1,), dtype, device, 3),
            tensor(factors, rows(factors), dtype, device, 4) if masked else None,
            tensor(out, strides(out), dtype, device, 5),
        ]

    def computed(tensors: Sequence[Any]) -> Sequence[torch.Tensor]:
        """The result, and the gradients of all tensors for the last one given."""
        leaves = [None if t is None else t.detach().requires_grad_() for t in tensors[:-1]]
        x, offset, w, b, mask = leaves
        assert x is not None and offset is not None and w is not None
        y = tritonconv.deform_conv2d(x, offset, w, b, stride, 1, mask=mask)
        return (y, *torch.autograd.grad(y, [t for t in leaves if t is not None], tensors[-1]))

    def call(*tensors: Any) -> Sequence[torch.Tensor]:
        return tuple(t.detach() for t in computed(tensors))

    def judge(tensors: Tensors, results: Sequence[torch.Tensor]) -> float:
        """The largest error over `ROUNDINGS` of the largest element of its result."""
        tf32 = precision == "tf32" and dtype == torch.float32
        unit = TF32_INPUT_UNIT if tf32 else 2 * UNIT[dtype]
        worst = 0.0
        for got, want in zip(results, computed(in_float64(tensors)), strict=True):
            off = (got.double().cpu() - want.detach()).abs().max() / want.detach().abs().max()
            worst = max(worst, float(off) / (ROUNDINGS * unit))
        return worst

    def explained(tensors: Tensors) -> str:
        x, offset, w, b, mask, _ = tensors
        return planned(tritonconv.deform_conv2d, x, offset, w, b, stride, 1, mask=mask)

    words = f"deform {name} {numbers} {'channels_last' if last else 'contiguous'}"
    return Item(words, inputs, call, judge, precision=precision, explained=explained)


def deform_items(numbers: str, every: bool) -> Iterator[Item]:
    yield deform_item("3x3", numbers)
    if every:
        yield deform_item("3x3", numbers, False)
        yield deform_item("3x3 stride 2", numbers)
        yield deform_item("3x3 in groups", numbers)
