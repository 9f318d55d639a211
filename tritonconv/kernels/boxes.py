"""Boxes of pixels: those that a weight gradient walks over, and those that TMA copies by coordinates, with zeros outside the
tensor.
"""

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


@triton.jit
def first_box(number, size, STEP: tl.constexpr, RANK: tl.constexpr):
    """(n, o, p, q) where box `number` of a result begins. Boxes are STEP pixels large and are counted along q first, then along
    p, o and n; `size` is (o, p, q)."""
    boxes_q = tl.cdiv(size[2], STEP[3])
    boxes_p = tl.cdiv(size[1], STEP[2])
    boxes_o = tl.cdiv(size[0], STEP[1])
    q = (number % boxes_q) * STEP[3]
    number = number // boxes_q
    p = tl.zeros_like(q)
    o = tl.zeros_like(q)
    if RANK >= 2:
        p = (number % boxes_p) * STEP[2]
        number = number // boxes_p
    if RANK >= 3:
        o = (number % boxes_o) * STEP[1]
        number = number // boxes_o
    return number * STEP[0], o, p, q


@triton.jit
def next_box(n, o, p, q, size, STEP: tl.constexpr, RANK: tl.constexpr):
    """(n, o, p, q) of the box that follows one: the next along q, after the last of which the next along p, then o, then n."""
    q += STEP[3]
    wrap = q >= size[2]
    q = tl.where(wrap, 0, q)
    if RANK >= 2:
        p += tl.where(wrap, STEP[2], 0)
        wrap = p >= size[1]
        p = tl.where(wrap, 0, p)
    if RANK >= 3:
        o += tl.where(wrap, STEP[1], 0)
        wrap = o >= size[0]
        o = tl.where(wrap, 0, o)
    n += tl.where(wrap, STEP[0], 0)
    return n, o, p, q
