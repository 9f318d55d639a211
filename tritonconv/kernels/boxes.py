"""Boxes of pixels that TMA copies by coordinates, with zeros outside the tensor."""

import triton
import triton.language as tl


@triton.jit
def floor_div(value, DIVISOR: tl.constexpr):
    """value // DIVISOR, rounded down, for values above -2^20 * DIVISOR; Triton's own // rounds towards zero."""
    if DIVISOR == 1:
        quotient = value
    elif DIVISOR == 2:
        quotient = value >> 1
    else:
        quotient = (value + DIVISOR * 1048576) // DIVISOR - 1048576
    return quotient


@triton.jit
def load_pixels(a, image, at, channel, fold, corner, STRIDE: tl.constexpr, RANK: tl.constexpr):
    """The box of `a` whose first pixel lies at corner * STRIDE + at; everything outside the tensor is zero.

    The descriptor splits a strided axis in two, [size / stride, stride]; the index on the second one is the same for the whole
    box. A descriptor has five axes at most, so the second axis of the columns is folded into the channels, with `fold` elements
    per column.
    """
    i_w = floor_div(at[2], STRIDE[2])
    channel += (at[2] - i_w * STRIDE[2]) * fold
    i_h = floor_div(at[1], STRIDE[1])
    if RANK == 1:
        box = a.load([image, corner[2] + i_w, channel])
    elif RANK == 3:
        box = a.load([image, corner[0] + at[0], corner[1] + i_h, corner[2] + i_w, channel])
    elif STRIDE[1] == 1:
        box = a.load([image, corner[1] + i_h, corner[2] + i_w, channel])
    else:
        box = a.load([image, corner[1] + i_h, at[1] - i_h * STRIDE[1], corner[2] + i_w, channel])
    return box
