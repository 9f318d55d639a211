"""What may come before a convolution: a normalisation's scale and shift, and an activation, of every input that is read.

`normalized` is applied while pixels are gathered; `apply_kernel` writes its result once, for a convolution that reads it.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from tritonconv.kernels.epilogue import activated, rounded
from tritonconv.kernels.index import load_inside, strides, unpack, wide


class Prologue(NamedTuple):
    """The values of act(x * rstd * scale + shift). Pointers are None where there is nothing to do; channels are contiguous."""

    scale: Any  # [N, T, C], by its strides
    shift: Any  # [N, T, C], by its strides
    rstd: Any  # [N, T, H, W], dense
    scale_n: int  # packed, as all strides
    scale_t: int
    shift_n: int
    shift_t: int


class Region(NamedTuple):
    """Sizes of a tensor [N, C, T, H, W], packed; c is divided by its alignment."""

    t: int
    h: int
    w: int
    c: int


@triton.jit
def normalized(x, scale, shift, rstd, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, ACC: tl.constexpr, UPCAST: tl.constexpr):
    """act(x * rstd * scale + shift) in ACC, rounded to x's type; the last three broadcast against x, or are None."""
    z = x.to(ACC)
    if rstd is not None:
        z = z * rstd
    if scale is not None:
        z = z * scale
    if shift is not None:
        z = z + shift
    return rounded(activated(z, ACTIVATION, SLOPE), x.dtype, UPCAST)


@triton.jit
def frame_values(ptr, image, frame, stride_n, stride_t):
    """A pointer to the values per channel of a frame; None where there are none. `image` has 64 bits."""
    values = None
    if ptr is not None:
        values = ptr + image * unpack(stride_n) + frame * unpack(stride_t).to(tl.int64)
    return values


@triton.jit
def prepared(
    x,  # [BLOCK_M, BLOCK_K]
    mask,  # [BLOCK_M, BLOCK_K] what of it was read
    rows,  # [BLOCK_M] pixels that were read
    prologue,  # Prologue
    image,
    frame,  # of x; negative for a frame of the cache
    frames,  # frames of x
    pixel,  # [BLOCK_M] number in the frame
    area,  # pixels of a frame
    c,  # [BLOCK_K] channel in the group
    channels,  # of the group
    first_channel,  # of the group
    live,  # whether this is a trip, and none that a software pipeline starts after the last one
    C_ALIGN: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    ACC: tl.constexpr,
    UPCAST: tl.constexpr,
    CLAMP: tl.constexpr,
):
    """x with the prologue where it was read from a frame of x. Frames of the cache have it behind them, and padding stays 0."""
    of_x = frame >= 0
    frame = tl.maximum(frame, 0)
    columns = c < channels
    scale = None
    shift = None
    rstd = None
    if prologue.scale is not None:
        at = frame_values(prologue.scale, image, frame, prologue.scale_n, prologue.scale_t) + first_channel
        scale = load_inside(at + c, 0, columns, (at, c, c % C_ALIGN), live, CLAMP).to(ACC)[None, :]
    if prologue.shift is not None:
        at = frame_values(prologue.shift, image, frame, prologue.shift_n, prologue.shift_t) + first_channel
        shift = load_inside(at + c, 0, columns, (at, c, c % C_ALIGN), live, CLAMP).to(ACC)[None, :]
    if prologue.rstd is not None:
        at = prologue.rstd + (image * frames + frame) * area
        read = tl.where(of_x, rows, False)
        rstd = load_inside(at + pixel, 0, read, (at, pixel, tl.zeros_like(pixel)), live, CLAMP).to(ACC)[:, None]
    z = normalized(x, scale, shift, rstd, ACTIVATION, SLOPE, ACC, UPCAST)
    return tl.where(tl.where(of_x, mask, False), z, x)


@triton.jit
def apply_kernel(
    x_ptr,
    y_ptr,
    x_strides,  # Strides of x [N, C, T, H, W]
    sizes,  # Region
    prologue,  # Prologue
    X_ALIGN: tl.constexpr,
    X_UNIT: tl.constexpr,
    C_ALIGN: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    ACC: tl.constexpr,
    UPCAST: tl.constexpr,
    INDEX: tl.constexpr,  # type of offsets in a frame
    LINEAR: tl.constexpr,  # the pixels of a frame of x are so many strides of the width apart
    BLOCK_M: tl.constexpr,  # pixels
    BLOCK_C: tl.constexpr,
):
    """y[n, c, t, h, w] = act(x * rstd[n, t, h, w] * scale[n, t, c] + shift[n, t, c]), y dense and channels-last.

    One program writes BLOCK_M pixels of a frame and BLOCK_C channels; channel blocks follow one another.
    """
    width = unpack(sizes.w)
    pixels = unpack(sizes.h).to(INDEX) * width
    channels = unpack(sizes.c) * C_ALIGN
    pid = tl.program_id(0)
    c_tiles = tl.cdiv(channels, BLOCK_C)
    m_tiles = tl.cdiv(pixels, BLOCK_M).to(tl.int32)
    c = pid % c_tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    pixel = (pid // c_tiles % m_tiles).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    place = (pid // c_tiles // m_tiles).to(tl.int64)  # image and frame
    image = place // unpack(sizes.t)
    frame = place % unpack(sizes.t)
    _, x_c, _, x_h, x_w = strides(x_strides, X_ALIGN, X_UNIT, INDEX)
    base = x_ptr + image * wide(x_strides.outer, X_ALIGN, X_UNIT == 0) + frame * wide(x_strides.depth, X_ALIGN, False)
    rows = pixel < pixels
    columns = c < channels
    mask = rows[:, None] & columns[None, :]
    if LINEAR:
        offset = pixel * x_w
    else:
        offset = pixel // width * x_h + pixel % width * x_w
    x = tl.load(base + offset[:, None] + c[None, :] * x_c, mask=mask, other=0.0)
    scale = None
    shift = None
    rstd = None
    if prologue.scale is not None:
        at = frame_values(prologue.scale, image, frame, prologue.scale_n, prologue.scale_t)
        scale = tl.load(at + c, mask=columns, other=0.0).to(ACC)[None, :]
    if prologue.shift is not None:
        at = frame_values(prologue.shift, image, frame, prologue.shift_n, prologue.shift_t)
        shift = tl.load(at + c, mask=columns, other=0.0).to(ACC)[None, :]
    if prologue.rstd is not None:
        rstd = tl.load(prologue.rstd + place * pixels + pixel, mask=rows, other=0.0).to(ACC)[:, None]
    y = normalized(x, scale, shift, rstd, ACTIVATION, SLOPE, ACC, UPCAST)
    offset = pixel[:, None] * channels + c[None, :]
    tl.store(y_ptr + place * pixels * channels + offset, y, mask=mask)
