"""The statistics of a normalisation, in a fixed order of sums: a group's mean and deviation, a pixel's mean square.

Means and sums of squared deviations are taken in two passes with a correction and merged by Chan's formula, so that a large
mean costs no digits (Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983).
"""

from typing import NamedTuple

import triton
import triton.language as tl

from tritonconv.kernels.index import strides, unpack, wide


class Extent(NamedTuple):
    """Sizes of a tensor [N, C, T, H, W] and of what its statistics are taken over, packed."""

    t: int
    h: int
    w: int
    c: int  # divided by C_ALIGN
    frames: int  # frames of one set of statistics: all of an image, or 1
    shares: int  # programs that share the pixels of a set
    each: int  # pixels of a share


@triton.jit
def merged(count, mean, squares, more, its_mean, its_squares):
    """(count, mean, sum of squared deviations) of two sets together; the first may be empty, the second not."""
    total = count + more
    apart = its_mean - mean
    part = more / total
    return total, mean + apart * part, squares + its_squares + apart * apart * (count * part)


@triton.jit
def moments_kernel(
    x_ptr,
    partial_ptr,  # [sets, shares, 2, C]: means, then sums of squared deviations
    x_strides,  # Strides of x [N, C, T, H, W]
    sizes,  # Extent
    X_ALIGN: tl.constexpr,
    X_UNIT: tl.constexpr,
    C_ALIGN: tl.constexpr,
    LINEAR: tl.constexpr,  # the pixels of an image are so many strides of the width apart
    INDEX: tl.constexpr,  # type of offsets in an image
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The mean and the squared deviations of each channel over a share of the pixels of a set."""
    channels = unpack(sizes.c) * C_ALIGN
    frames = unpack(sizes.frames)
    width = unpack(sizes.w)
    area = unpack(sizes.h).to(INDEX) * width
    pid = tl.program_id(0)
    c_tiles = tl.cdiv(channels, BLOCK_C)
    c = pid % c_tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    columns = c < channels
    share = pid // c_tiles % unpack(sizes.shares)
    place = (pid // c_tiles // unpack(sizes.shares)).to(tl.int64)  # number of the set
    sets = unpack(sizes.t) // frames  # of an image
    _, x_c, x_t, x_h, x_w = strides(x_strides, X_ALIGN, X_UNIT, INDEX)
    base = x_ptr + place // sets * wide(x_strides.outer, X_ALIGN, X_UNIT == 0)
    base += place % sets * frames * wide(x_strides.depth, X_ALIGN, False)
    begin = share.to(INDEX) * unpack(sizes.each)
    end = tl.minimum(begin + unpack(sizes.each), area * frames)
    mean = tl.zeros((BLOCK_C,), ACC)
    squares = tl.zeros((BLOCK_C,), ACC)
    count = tl.zeros((), ACC)
    for start in range(begin, end, BLOCK_M):
        pixel = start + tl.arange(0, BLOCK_M)
        rows = pixel < end
        if LINEAR:
            offset = pixel * x_w
        else:
            inner = pixel % area
            offset = pixel // area * x_t + inner // width * x_h + inner % width * x_w
        mask = rows[:, None] & columns[None, :]
        x = tl.load(base + offset[:, None] + c[None, :] * x_c, mask=mask, other=0.0).to(ACC)
        more = tl.minimum(end - start, BLOCK_M).to(ACC)
        its_mean = tl.sum(x, 0) / more
        off = tl.where(mask, x - its_mean[None, :], 0.0)
        fix = tl.sum(off, 0) / more  # of the mean, which a long sum of large values leaves inexact
        its_squares = tl.sum(off * off, 0) - more * fix * fix
        count, mean, squares = merged(count, mean, squares, more, its_mean + fix, its_squares)
    at = partial_ptr + (place * unpack(sizes.shares) + share) * 2 * channels + c
    tl.store(at, mean, mask=columns)
    tl.store(at + channels, squares, mask=columns)


@triton.jit
def group_kernel(
    partial_ptr,  # of `moments_kernel`
    w_ptr,  # [C], or None
    b_ptr,  # [C], or None
    scale_ptr,  # [sets, C]
    shift_ptr,  # [sets, C]
    sizes,  # Extent
    GROUP: tl.constexpr,  # channels of a group
    C_ALIGN: tl.constexpr,
    EPS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,  # partial results that are merged at once
    BLOCK_C: tl.constexpr,  # at least GROUP
):
    """scale = w * rstd and shift = b - mean * scale of one group of a set."""
    channels = unpack(sizes.c) * C_ALIGN
    shares = unpack(sizes.shares)
    each = unpack(sizes.each)
    area = unpack(sizes.h).to(tl.int64) * unpack(sizes.w) * unpack(sizes.frames)
    groups = channels // GROUP
    pid = tl.program_id(0)
    first = pid % groups * GROUP
    place = (pid // groups).to(tl.int64)
    mean = tl.zeros((), ACC)
    squares = tl.zeros((), ACC)
    count = tl.zeros((), ACC)
    for start in range(0, shares * GROUP, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        exists = entry < shares * GROUP
        share = entry // GROUP
        at = partial_ptr + (place * shares + share) * 2 * channels + first + entry % GROUP
        means = tl.load(at, mask=exists, other=0.0)
        seen = tl.where(exists, tl.minimum(area - share.to(tl.int64) * each, each), 0).to(ACC)
        more = tl.sum(seen, 0)
        its_mean = tl.sum(seen * means, 0) / more
        off = means - its_mean
        fix = tl.sum(seen * off, 0) / more
        its_squares = tl.sum(tl.load(at + channels, mask=exists, other=0.0) + seen * off * off, 0) - more * fix * fix
        count, mean, squares = merged(count, mean, squares, more, its_mean + fix, its_squares)
    rstd = 1.0 / tl.sqrt(squares / count + EPS)
    c = tl.arange(0, BLOCK_C)
    mask = c < GROUP
    scale = tl.full((BLOCK_C,), 1.0, ACC) * rstd
    if w_ptr is not None:
        scale *= tl.load(w_ptr + first + c, mask=mask, other=0.0).to(ACC)
    shift = -mean * scale
    if b_ptr is not None:
        shift += tl.load(b_ptr + first + c, mask=mask, other=0.0).to(ACC)
    tl.store(scale_ptr + place * channels + first + c, scale, mask=mask)
    tl.store(shift_ptr + place * channels + first + c, shift, mask=mask)


@triton.jit
def square_kernel(
    x_ptr,
    rstd_ptr,  # [N, T, H, W], dense
    x_strides,  # Strides of x [N, C, T, H, W]
    sizes,  # Extent
    X_ALIGN: tl.constexpr,
    X_UNIT: tl.constexpr,
    C_ALIGN: tl.constexpr,
    LINEAR: tl.constexpr,  # the pixels of a frame are so many strides of the width apart
    INDEX: tl.constexpr,  # type of offsets in a frame
    EPS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """rstd = 1 / sqrt(mean of x^2 over the channels + EPS) of BLOCK_M pixels of a frame."""
    channels = unpack(sizes.c) * C_ALIGN
    width = unpack(sizes.w)
    area = unpack(sizes.h).to(INDEX) * width
    tiles = tl.cdiv(area, BLOCK_M).to(tl.int32)
    pid = tl.program_id(0)
    place = (pid // tiles).to(tl.int64)  # image and frame
    pixel = (pid % tiles).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = pixel < area
    _, x_c, _, x_h, x_w = strides(x_strides, X_ALIGN, X_UNIT, INDEX)
    base = x_ptr + place // unpack(sizes.t) * wide(x_strides.outer, X_ALIGN, X_UNIT == 0)
    base += place % unpack(sizes.t) * wide(x_strides.depth, X_ALIGN, False)
    if LINEAR:
        offset = (pixel * x_w)[:, None]
    else:
        offset = (pixel // width * x_h + pixel % width * x_w)[:, None]
    total = tl.zeros((BLOCK_M,), ACC)
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        x = tl.load(base + offset + c[None, :] * x_c, mask=rows[:, None] & (c < channels)[None, :], other=0.0).to(ACC)
        total += tl.sum(x * x, 1)
    tl.store(rstd_ptr + place * area + pixel, 1.0 / tl.sqrt(total / channels + EPS), mask=rows)
