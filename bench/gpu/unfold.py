"""Windows as columns and back, to try on a GPU: bits against torch's windows, sums against torch's in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

import tritonconv
from bench.gpu.convolutions import NUMBERS
from bench.gpu.functions import planned, rows, same_bits, tensor
from bench.gpu.item import Item, Tensors
from bench.tolerance import UNIT
from costmodel.unfold import Unfolding
from tritonconv.columns import cpu
from tritonconv.layout import channels_last_strides

#: Image [N, C, *size], kernel, dilation, padding, stride.
WINDOWS: dict[str, tuple[tuple[int, ...], ...]] = {
    "3x3": ((2, 24, 15, 16), (3, 3), (1, 1), (1, 1), (1, 1)),
    "7x7 stride 4": ((2, 3, 30, 29), (7, 7), (1, 1), (2, 2), (4, 4)),
    "1-D": ((3, 40, 333), (5,), (2,), (4,), (2,)),
    "3-D": ((1, 20, 5, 9, 10), (2, 3, 3), (1, 1, 2), (0, 1, 2), (1, 2, 1)),
}
#: The allowed error of a sum, in roundings of the largest element.
ROUNDINGS = 2


def unfold_item(name: str, numbers: str, last: bool = True) -> Item:
    """Both functions in one call. `last`: the channels of the image, and the rows of the columns, are contiguous."""
    shape, *window = WINDOWS[name]
    unfolding, dtype = Unfolding.of(shape, *window), getattr(torch, NUMBERS[numbers][0])
    strides = channels_last_strides if last else rows

    def inputs(device: str) -> Tensors:
        return [
            tensor(shape, strides(shape), dtype, device, seed)
            for seed, shape in enumerate((unfolding.problem.input_shape, unfolding.columns_shape))
        ]

    def call(x: torch.Tensor, y: torch.Tensor) -> Sequence[torch.Tensor]:
        return tritonconv.unfold(x, *window), tritonconv.fold(y, shape[2:], *window)

    def judge(tensors: Tensors, results: Sequence[torch.Tensor]) -> float:
        """Infinite where a window has other bits, else the largest error of a sum over `ROUNDINGS`."""
        x, y = (t.cpu() for t in tensors if t is not None)
        windows, sums = results
        want = cpu.fold(unfolding, y.double())
        off = (sums.cpu().double() - want).abs().max() / want.abs().max()
        return max(same_bits(windows, cpu.unfold(unfolding, x)), float(off) / (ROUNDINGS * UNIT[dtype]))

    def explained(tensors: Tensors) -> str:
        x, y = tensors
        return "; ".join([planned(tritonconv.unfold, x, *window), planned(tritonconv.fold, y, shape[2:], *window)])

    words = f"unfold {name} {numbers} {'channels_last' if last else 'contiguous'}"
    return Item(words, inputs, call, judge, explained=explained)


def unfold_items(numbers: str, every: bool) -> Iterator[Item]:
    yield unfold_item("3x3", numbers)
    if every:
        for name in WINDOWS:
            yield unfold_item(name, numbers, False)
