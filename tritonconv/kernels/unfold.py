"""Windows of an image as columns (im2col), and columns summed into an image (col2im). Both gather: every element of a result is
written once, by one program, from what it is made of.

Columns are [N, C * T * R * S, O * P * Q]: rows in the order (c, t, r, s), places in the order (o, p, q).
"""

from typing import NamedTuple

import triton
import triton.language as tl

from tritonconv.kernels.epilogue import rounded
from tritonconv.kernels.index import inside, strides, unpack, wide


class Unfolded(NamedTuple):
    """Sizes of a call, packed. c is divided by C_ALIGN first, points by M_ALIGN."""

    c: int
    points: int  # places that unfold writes in each image, pixels that fold does
    d: int
    h: int
    w: int
    o: int
    p: int
    q: int
    low_d: int
    low_h: int
    low_w: int
    tiles: int  # blocks of places (unfold) or of pixels (fold)
    shares: int  # programs that share the taps of a block
    taps: int  # taps of one of them


@triton.jit
def coordinates(count, size_h, size_w, RANK: tl.constexpr):
    """(d, h, w) of numbers that count the points of a grid [*, size_h, size_w]."""
    d = tl.zeros_like(count)
    h = tl.zeros_like(count)
    w = count
    if RANK >= 2:
        w = count % size_w
        h = count // size_w
    if RANK >= 3:
        d = h // size_h
        h = h % size_h
    return d, h, w


@triton.jit
def block_of(pid, tiles, shares, channels, BLOCK_N: tl.constexpr):
    """(block of places or pixels, share of the taps, first channel, image) of a program. Neighbouring programs have
    neighbouring blocks, then shares of the same block, then channels."""
    blocks = tl.cdiv(channels, BLOCK_N)
    rest = pid // tiles
    block = rest // shares
    return pid % tiles, rest % shares, block % blocks * BLOCK_N, block // blocks


@triton.jit
def unfold_kernel(
    x_ptr,
    y_ptr,
    x_strides,  # Strides of x [N, C, D, H, W]
    y_strides,  # Strides of the columns [N, C * T * R * S, 1, 1, O * P * Q]
    sizes,  # Unfolded
    KERNEL: tl.constexpr,  # (T, R, S)
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    RANK: tl.constexpr,
    PADDED: tl.constexpr,  # whether a window may reach beyond the image
    INDEX: tl.constexpr,  # type of offsets from a program's first channel
    X_ALIGN: tl.constexpr,
    X_UNIT: tl.constexpr,
    Y_ALIGN: tl.constexpr,
    Y_UNIT: tl.constexpr,
    C_ALIGN: tl.constexpr,
    M_ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """y[n, (c, t, r, s), (o, p, q)] = x[n, c, o * s_d - low_d + t * d_d, p * s_h - low_h + r * d_h, q * s_w - low_w + s * d_w],
    0 outside of the image

    One program writes BLOCK_N channels of BLOCK_M places, for all taps or a share of them, so that overlapping windows come
    from the cache of its multiprocessor.
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    _, x_c, x_d, x_h, x_w = strides(x_strides, X_ALIGN, X_UNIT, INDEX)
    _, y_c, _, _, y_w = strides(y_strides, Y_ALIGN, Y_UNIT, INDEX)
    channels = unpack(sizes.c) * C_ALIGN
    tile, share, first, image = block_of(tl.program_id(0), unpack(sizes.tiles), unpack(sizes.shares), channels, BLOCK_N)
    place = tile.to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    size_d = unpack(sizes.d).to(INDEX)
    size_h = unpack(sizes.h).to(INDEX)
    size_w = unpack(sizes.w).to(INDEX)
    out_h = unpack(sizes.p).to(INDEX)
    out_w = unpack(sizes.q).to(INDEX)
    exists = place < unpack(sizes.points).to(INDEX) * M_ALIGN
    d, h, w = coordinates(place, out_h, out_w, RANK)
    d = d * STRIDE[0] - unpack(sizes.low_d)
    h = h * STRIDE[1] - unpack(sizes.low_h)
    w = w * STRIDE[2] - unpack(sizes.low_w)
    channel = tl.arange(0, BLOCK_N)
    rows = (channel < channels - first)[:, None]

    x_base = x_ptr + image * wide(x_strides.outer, X_ALIGN, X_UNIT == 0) + first * wide(x_strides.channel, X_ALIGN, X_UNIT == 1)
    y_base = y_ptr + image * wide(y_strides.outer, Y_ALIGN, Y_UNIT == 0)
    y_base += first.to(tl.int64) * TAPS * wide(y_strides.channel, Y_ALIGN, Y_UNIT == 1)
    x_place = channel[:, None] * x_c + (d * x_d + h * x_h + w * x_w)[None, :]
    y_place = channel[:, None] * (TAPS * y_c) + (place * y_w)[None, :]
    begin = share * unpack(sizes.taps)
    for tap in range(begin, tl.minimum(begin + unpack(sizes.taps), TAPS)):
        t = tap // (KERNEL[1] * KERNEL[2]) * DILATION[0]
        r = tap // KERNEL[2] % KERNEL[1] * DILATION[1]
        s = tap % KERNEL[2] * DILATION[2]
        live = exists
        if PADDED:
            live = live & inside(w + s, size_w)
            if RANK >= 2:
                live = live & inside(h + r, size_h)
            if RANK >= 3:
                live = live & inside(d + t, size_d)
        value = tl.load(x_base + (x_place + (t * x_d + r * x_h + s * x_w)), mask=rows & live[None, :], other=0.0)
        tl.store(y_base + (y_place + tap * y_c), value, mask=rows & exists[None, :])


@triton.jit
def first_tap(shifted, STRIDE: tl.constexpr, PERIOD: tl.constexpr, INVERSE: tl.constexpr):
    """The lowest tap of an axis that meets a pixel, where any does. `shifted` is the pixel's coordinate in the padded image, of
    which tap r of place p sees p * STRIDE + r * dilation. Further taps follow PERIOD apart."""
    if PERIOD == 1:
        return tl.zeros_like(shifted)
    else:
        return shifted // (STRIDE // PERIOD) % PERIOD * INVERSE % PERIOD


@triton.jit
def met(shifted, tap, size, TAPS: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, PERIOD: tl.constexpr):
    """(the place whose tap meets a pixel, whether there is one) along one axis."""
    begin = shifted - tap * DILATION
    place = begin // STRIDE
    live = (begin >= 0) & (place < size) & (tap < TAPS)
    if STRIDE != PERIOD:  # stride and dilation have a divisor in common
        live = live & (begin % STRIDE == 0)
    return place, live


@triton.jit
def fold_kernel(
    y_ptr,
    x_ptr,
    y_strides,  # Strides of the columns [N, C * T * R * S, 1, 1, O * P * Q]
    x_strides,  # Strides of x [N, C, D, H, W]
    sizes,  # Unfolded
    KERNEL: tl.constexpr,  # (T, R, S)
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    PERIOD: tl.constexpr,  # per axis, stride / gcd(stride, dilation): every so many taps meet a pixel
    INVERSE: tl.constexpr,  # per axis, of dilation / gcd(stride, dilation) modulo PERIOD
    RANK: tl.constexpr,
    INDEX: tl.constexpr,  # type of offsets from a program's first channel
    X_ALIGN: tl.constexpr,
    X_UNIT: tl.constexpr,
    Y_ALIGN: tl.constexpr,
    Y_UNIT: tl.constexpr,
    C_ALIGN: tl.constexpr,
    M_ALIGN: tl.constexpr,
    ACC: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """x[n, c, d, h, w] = the sum of y[n, (c, t, r, s), (o, p, q)] over the taps and places that meet the pixel, in the order of
    (t, r, s)

    One program writes BLOCK_N channels of BLOCK_M pixels. Of the taps of an axis it visits only those that can meet a pixel,
    which with a stride are others for each pixel.
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    MEET_T: tl.constexpr = (KERNEL[0] + PERIOD[0] - 1) // PERIOD[0]
    MEET_R: tl.constexpr = (KERNEL[1] + PERIOD[1] - 1) // PERIOD[1]
    MEET_S: tl.constexpr = (KERNEL[2] + PERIOD[2] - 1) // PERIOD[2]
    _, x_c, x_d, x_h, x_w = strides(x_strides, X_ALIGN, X_UNIT, INDEX)
    _, y_c, _, _, y_w = strides(y_strides, Y_ALIGN, Y_UNIT, INDEX)
    channels = unpack(sizes.c) * C_ALIGN
    tile, _, first, image = block_of(tl.program_id(0), unpack(sizes.tiles), 1, channels, BLOCK_N)
    pixel = tile.to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    size_h = unpack(sizes.h).to(INDEX)
    size_w = unpack(sizes.w).to(INDEX)
    out_d = unpack(sizes.o).to(INDEX)
    out_h = unpack(sizes.p).to(INDEX)
    out_w = unpack(sizes.q).to(INDEX)
    exists = pixel < unpack(sizes.points).to(INDEX) * M_ALIGN
    d, h, w = coordinates(pixel, size_h, size_w, RANK)
    x_place = (d * x_d + h * x_h + w * x_w)[None, :]
    d += unpack(sizes.low_d)
    h += unpack(sizes.low_h)
    w += unpack(sizes.low_w)
    channel = tl.arange(0, BLOCK_N)
    rows = (channel < channels - first)[:, None]

    x_base = x_ptr + image * wide(x_strides.outer, X_ALIGN, X_UNIT == 0) + first * wide(x_strides.channel, X_ALIGN, X_UNIT == 1)
    y_base = y_ptr + image * wide(y_strides.outer, Y_ALIGN, Y_UNIT == 0)
    y_base += first.to(tl.int64) * TAPS * wide(y_strides.channel, Y_ALIGN, Y_UNIT == 1)
    y_row = channel[:, None] * (TAPS * y_c)
    first_t = first_tap(d, STRIDE[0], PERIOD[0], INVERSE[0])
    first_r = first_tap(h, STRIDE[1], PERIOD[1], INVERSE[1])
    first_s = first_tap(w, STRIDE[2], PERIOD[2], INVERSE[2])

    acc = tl.zeros((BLOCK_N, BLOCK_M), ACC)
    for i in range(0, MEET_T * MEET_R * MEET_S):
        s = first_s + i % MEET_S * PERIOD[2]
        place, live = met(w, s, out_w, KERNEL[2], STRIDE[2], DILATION[2], PERIOD[2])
        tap = s
        live = live & exists
        if RANK >= 2:
            r = first_r + i // MEET_S % MEET_R * PERIOD[1]
            p, live_h = met(h, r, out_h, KERNEL[1], STRIDE[1], DILATION[1], PERIOD[1])
            live = live & live_h
            place += p * out_w
            tap += r * KERNEL[2]
        if RANK >= 3:
            t = first_t + i // (MEET_S * MEET_R) * PERIOD[0]
            o, live_d = met(d, t, out_d, KERNEL[0], STRIDE[0], DILATION[0], PERIOD[0])
            live = live & live_d
            place += o * out_h * out_w
            tap += t * (KERNEL[1] * KERNEL[2])
        offset = y_row + (tap * y_c + place * y_w)[None, :]
        acc += tl.load(y_base + offset, mask=rows & live[None, :], other=0.0).to(ACC)
    value = rounded(acc, x_ptr.dtype.element_ty, UPCAST)
    tl.store(x_base + (channel[:, None] * x_c + x_place), value, mask=rows & exists[None, :])
