"""Boxes of pixels that TMA copies: by coordinates, zeros outside of the tensor."""

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
    """The box of `a` whose first pixel lies at corner * STRIDE + at; everything outside of the tensor is zero.

    A strided axis is two, [size / stride, stride]: the second one's index is the same for the whole box. That of the columns
    is folded into the channels, `fold` elements from one to the next, since a descriptor has five axes at most.
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
