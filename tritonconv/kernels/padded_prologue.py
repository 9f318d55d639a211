"""A prologue (`kernels.prologue`) of pixels that are gathered row by row, where a tile of rows may span several images."""

import triton
import triton.language as tl

from tritonconv.kernels.index import load_inside, unpack
from tritonconv.kernels.prologue import normalized


@triton.jit
def per_channel(
    ptr,
    stride_n,  # packed
    image,
    n,  # [BLOCK_M] image of a row, relative to `image`
    rows,  # [BLOCK_M] rows that exist
    c,  # [BLOCK_K] channel in the group
    columns,  # [BLOCK_K] channels that exist
    first_channel,  # of the group
    live,
    C_ALIGN: tl.constexpr,
    ONE_IMAGE: tl.constexpr,
    ACC: tl.constexpr,
    CLAMP: tl.constexpr,
):
    """The values per channel of each row's image: [1, BLOCK_K] where all rows have the same, else [BLOCK_M, BLOCK_K]."""
    step = unpack(stride_n).to(tl.int64)
    base = ptr + image * step + first_channel
    if ONE_IMAGE:
        value = load_inside(base + c, 0, columns, (base, c, c % C_ALIGN), live, CLAMP)[None, :]
    else:
        offset = (n.to(tl.int64) * step)[:, None] + c[None, :]
        mask = rows[:, None] & columns[None, :]
        value = load_inside(base + offset, 0, mask, (base, offset, (c % C_ALIGN)[None, :]), live, CLAMP)
    return value.to(ACC)


@triton.jit
def prepared_rows(
    x,  # [BLOCK_M, BLOCK_K]
    mask,  # what of it was read, broadcasts against it
    prologue,  # kernels.prologue.Prologue; its values are per image, not per frame
    image,
    n,  # [BLOCK_M] image of a row, relative to `image`
    rows,  # [BLOCK_M] rows that exist
    read,  # [BLOCK_M] rows of which a pixel was read
    pixel,  # [BLOCK_M] number of that pixel, counted from the first of `image`
    area,  # pixels of an image
    c,  # [BLOCK_K] channel in the group
    columns,  # [BLOCK_K] channels that exist
    first_channel,  # of the group
    live,  # whether this is a trip, and none that a software pipeline starts after the last one
    C_ALIGN: tl.constexpr,
    ONE_IMAGE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    ACC: tl.constexpr,
    UPCAST: tl.constexpr,
    CLAMP: tl.constexpr,
):
    """x with the prologue where it was read; zeros of the padding stay 0."""
    scale = None
    shift = None
    rstd = None
    if prologue.scale is not None:
        scale = per_channel(
            prologue.scale,
            prologue.scale_n,
            image,
            n,
            rows,
            c,
            columns,
            first_channel,
            live,
            C_ALIGN,
            ONE_IMAGE,
            ACC,
            CLAMP,
        )
    if prologue.shift is not None:
        shift = per_channel(
            prologue.shift,
            prologue.shift_n,
            image,
            n,
            rows,
            c,
            columns,
            first_channel,
            live,
            C_ALIGN,
            ONE_IMAGE,
            ACC,
            CLAMP,
        )
    if prologue.rstd is not None:
        base = prologue.rstd + image * area
        rstd = load_inside(base + pixel, 0, read, (base, pixel, tl.zeros_like(pixel)), live, CLAMP).to(ACC)[:, None]
    z = normalized(x, scale, shift, rstd, ACTIVATION, SLOPE, ACC, UPCAST)
    return tl.where(mask, z, x)
