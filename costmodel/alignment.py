"""How a tensor lies in memory, from its shape and strides. Plain arithmetic, standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence

from costmodel.tiling import MAX_ALIGN


def unit_and_align(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, int]:
    """(`unit`, `align`) of `costmodel.tiling.Operand` for a tensor [outer, channel, *spatial] of one group. Nothing is read
    along an axis of size 1.

    >>> unit_and_align((2, 6, 4, 4), (96, 1, 24, 6)), unit_and_align((2, 6, 4, 4), (96, 16, 4, 1))
    ((1, 2), (4, 4))
    """
    axes = {1: 1, 0: 0, 4: len(shape) - 1} if shape[1] > 1 else {0: 0, 4: len(shape) - 1}
    unit = next((axis for axis, at in axes.items() if strides[at] == 1 and (shape[at] > 1 or axis == 4)), -1)
    align = MAX_ALIGN
    for axis, (size, stride) in enumerate(zip(shape, strides, strict=True)):
        if size > 1 and not (unit >= 0 and axes[unit] == axis):
            align = math.gcd(align, stride)
    return unit, align
