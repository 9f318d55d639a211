"""Index arithmetic that the kernels share: packed sizes and strides, tiles, pixels, bounds.

Triton specialises every integer on being 1 or a multiple of 16, inside tuples even where `do_not_specialize` is asked, so a
new image size could mean a new compile. `pack` sends 2 v + 3 instead: odd, and above 1 for v >= 0, so one kernel serves all
sizes. What the compiler does need to know, that strides are multiples of a vector width, travels as a constexpr (`align`).
"""

from typing import NamedTuple

import triton
import triton.language as tl


class Strides(NamedTuple):
    """Element strides, divided by `align` and packed. Activations: (n, c, d, h, w); weights: (k, c, t, r, s)."""

    outer: int
    channel: int
    depth: int
    height: int
    width: int


class Sizes(NamedTuple):
    """Sizes of one group's problem, packed; c and k are divided by their `align` first."""

    n: int
    d: int
    h: int
    w: int
    o: int
    p: int
    q: int
    c: int
    k: int
    low_d: int
    low_h: int
    low_w: int
    b: int  # stride of the bias
    tiles: int  # tiles along m (fprop, dgrad) or reduction steps of one split (wgrad)


def pack(value: int) -> int:
    """An odd number that Triton does not specialise on; `unpack` is its inverse."""
    return 2 * value + 3


@triton.jit
def unpack(value):
    return (value - 3) >> 1


@triton.jit
def strides(packed, ALIGN: tl.constexpr, UNIT: tl.constexpr, INDEX: tl.constexpr):
    """(outer, channel, depth, height, width); the axis numbered UNIT has stride 1, the others are multiples of ALIGN."""
    outer = unpack(packed.outer).to(INDEX) * ALIGN
    channel = unpack(packed.channel).to(INDEX) * ALIGN
    depth = unpack(packed.depth).to(INDEX) * ALIGN
    height = unpack(packed.height).to(INDEX) * ALIGN
    width = unpack(packed.width).to(INDEX) * ALIGN
    one = 1
    if INDEX == tl.int64:  # a factor of it may take 64 bits
        one = tl.full((), 1, tl.int64)
    if UNIT == 0:
        outer = one
    if UNIT == 1:
        channel = one
    if UNIT == 4:
        width = one
    return outer, channel, depth, height, width


@triton.jit
def wide(packed_stride, ALIGN: tl.constexpr, IS_UNIT: tl.constexpr):
    """One stride in 64 bits, for the base pointer of a tile."""
    stride = unpack(packed_stride).to(tl.int64) * ALIGN
    if IS_UNIT:
        stride = tl.full((), 1, tl.int64)
    return stride


@triton.jit
def tile_of(pid, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """(m tile, n tile, rest) of a program: all n tiles of GROUP_M m tiles run together, so that both operands stay in L2."""
    per_rest = tiles_m * tiles_n
    rest = pid // per_rest
    pid = pid % per_rest
    per_group = GROUP_M * tiles_n
    first = (pid // per_group) * GROUP_M
    height = tl.minimum(tiles_m - first, GROUP_M)
    inside = pid % per_group
    return first + inside % height, inside // height, rest


@triton.jit
def pixels_of(pid_m, size_d, size_h, size_w, BLOCK_M: tl.constexpr, RANK: tl.constexpr, INDEX: tl.constexpr):
    """The BLOCK_M pixels of a tile, counted over [batch, size_d, size_h, size_w].

    Returns the tile's first image (64 bit, so that more than 2^31 pixels are safe) and n (relative to it), d, h, w.
    """
    per_image = size_w.to(tl.int64)
    if RANK >= 2:
        per_image *= size_h
    if RANK >= 3:
        per_image *= size_d
    start = pid_m.to(tl.int64) * BLOCK_M
    image = start // per_image
    pixel = (start - image * per_image).to(INDEX) + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    w = pixel % size_w
    n = pixel // size_w
    h = tl.zeros_like(w)
    d = tl.zeros_like(w)
    if RANK >= 2:
        h = n % size_h
        n = n // size_h
    if RANK >= 3:
        d = n % size_d
        n = n // size_d
    return image, n, d, h, w


@triton.jit
def inside(coordinate, size):
    return (coordinate >= 0) & (coordinate < size)


@triton.jit
def inside_bits(start, step, size, COUNT: tl.constexpr):
    """Bit i says whether start + i * step lies in [0, size); COUNT <= 32."""
    bits = tl.zeros_like(start).to(tl.int32)
    for i in tl.static_range(COUNT):
        bits |= inside(start + i * step, size).to(tl.int32) << i
    return bits


@triton.jit
def window_bits(rows, start, step, size, COUNTS: tl.constexpr, RANK: tl.constexpr):
    """Bit (t * R + r) * S + s of each row says that tap (t, r, s) lies inside; none where the row does not exist."""
    bits = tl.where(rows, inside_bits(start[2], step[2], size[2], COUNTS[2]), 0)
    if RANK >= 2:
        bits = outer_product(inside_bits(start[1], step[1], size[1], COUNTS[1]), bits, COUNTS[1], COUNTS[2])
    if RANK >= 3:
        bits = outer_product(inside_bits(start[0], step[0], size[0], COUNTS[0]), bits, COUNTS[0], COUNTS[1] * COUNTS[2])
    return bits


@triton.jit
def outer_product(high, low, HIGH: tl.constexpr, LOW: tl.constexpr):
    """Bit i * LOW + j is set where bit i of high and bit j of low are."""
    bits = tl.zeros_like(low)
    for i in tl.static_range(HIGH):
        bits |= tl.where(((high >> i) & 1) != 0, low << (i * LOW), 0)
    return bits


@triton.jit
def fold_taps(index, channels, KERNEL: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """(c, t, r, s) of positions on an axis that holds channels and taps together, in the order that is contiguous in memory."""
    T: tl.constexpr = KERNEL[0]
    R: tl.constexpr = KERNEL[1]
    S: tl.constexpr = KERNEL[2]
    if T * R * S == 1:
        c = index
        t = tl.zeros_like(index)
        r = tl.zeros_like(index)
        s = tl.zeros_like(index)
    elif CHANNELS_LAST:
        c = index % channels
        tap = index // channels
        s = tap % S
        r = (tap // S) % R
        t = tap // (S * R)
    else:
        s = index % S
        r = (index // S) % R
        t = (index // (S * R)) % T
        c = index // (S * R * T)
    return c, t, r, s


@triton.jit
def inside_of(index, ALIGN: tl.constexpr, KERNEL: tl.constexpr, CHANNELS_LAST: tl.constexpr, c_step, s_step):
    """Offsets within the first pixel (or row of taps) of an axis that `fold_taps` splits, contiguous in the same runs."""
    RUN: tl.constexpr = KERNEL[2] & -KERNEL[2]  # the largest power of two that divides a row of taps
    if CHANNELS_LAST or KERNEL[0] * KERNEL[1] * KERNEL[2] == 1:
        return (index % ALIGN) * c_step
    else:
        return (index % RUN) * s_step


@triton.jit
def load_inside(ptrs, move, mask, kept, live, CLAMP: tl.constexpr):
    """The values at ptrs + move, 0 where masked off.

    With CLAMP, kept = (base of ptrs, their offsets from it, offsets inside the tensor): masked lanes use an address inside the
    tensor. So do all lanes of a trip that is not `live`, which a software pipeline starts after the last one.

    Triton copies a masked-off element by a cp.async of zero bytes from the element's own address. Machine code for sm_100 may
    read that address, and where it lies outside every tensor this is an illegal access. The kernel selects offsets, not
    pointers: Triton takes the divisibility of a selected pointer in bytes for one in elements, and would halve the copies.
    """
    if CLAMP:
        offset = tl.where(tl.where(live, mask, False), kept[1] + move, kept[2])
        value = tl.load(kept[0] + offset, mask=mask, other=0.0)
    else:
        value = tl.load(ptrs + move, mask=mask, other=0.0)
    return value
