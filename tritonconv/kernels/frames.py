"""Frames of a chunk of video: where a known frame lies, the frames of the next cache, the pixel that a tap sees."""

from typing import NamedTuple

import triton
import triton.language as tl

from tritonconv.kernels.prologue import frame_values, normalized


class Frames(NamedTuple):
    """Sizes, packed. c, x_n and cache_n are divided by C_ALIGN first, k by K_ALIGN; c and k are those of a group."""

    h: int  # height of a frame of x
    w: int  # width of a frame of x
    c: int
    k: int
    o: int  # frames of the result
    p: int  # height of the result
    q: int  # width of the result
    cached: int  # frames of the cache
    known: int  # known frames: those of the cache, then those of x
    front: int  # frames before the first known one that the first result sees
    low_h: int
    low_w: int
    x_n: int  # stride of x per image
    cache_n: int  # stride of the cache per image
    kept: int  # frames of the next cache
    b: int  # stride of the bias
    tiles_m: int  # m tiles of all results
    programs: int  # programs that compute results; the ones after them fill the next cache


@triton.jit
def frame_at(known, cached, x_base, cache_base, frame_size, REPLICATE: tl.constexpr):
    """A scalar pointer to a known frame. With REPLICATE, frames before the first are the first one; otherwise the caller masks
    them."""
    if REPLICATE:
        known = tl.maximum(known, 0)
    return tl.where(known < cached, cache_base, x_base) + known * frame_size


@triton.jit
def copy_frames(
    pid,  # number of the program among those that copy
    next_ptr,  # [N, kept, frame_size]
    x_ptr,
    cache_ptr,
    x_n,
    cache_n,
    cached,
    known,
    kept,
    frame_size,
    channels,
    prologue,  # Prologue, or None; applied to frames of x
    REPLICATE: tl.constexpr,
    BLOCK: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    ACC: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """next[n, j] = known frame `known - kept + j` of image n; frames before the first are the first one, or zeros."""
    offs = pid % tl.cdiv(frame_size, BLOCK) * BLOCK + tl.arange(0, BLOCK)
    place = (pid // tl.cdiv(frame_size, BLOCK)).to(tl.int64)
    image = place // kept
    frame = known - kept + place % kept
    x_base = x_ptr + image * x_n - cached * frame_size
    source = frame_at(frame, cached, x_base, cache_ptr + image * cache_n, frame_size, REPLICATE)
    mask = offs < frame_size
    read = mask if REPLICATE else tl.where(frame >= 0, mask, False)  # Triton 3.9's interpreter takes no block & scalar
    value = tl.load(source + offs, mask=read, other=0.0)
    if prologue is not None:
        if REPLICATE:
            frame = tl.maximum(frame, 0)
        of_x = tl.where(frame >= cached, read, False)
        frame -= cached
        scale = None
        shift = None
        rstd = None
        if prologue.scale is not None:
            at = frame_values(prologue.scale, image, frame, prologue.scale_n, prologue.scale_t)
            scale = tl.load(at + offs % channels, mask=of_x, other=0.0).to(ACC)
        if prologue.shift is not None:
            at = frame_values(prologue.shift, image, frame, prologue.shift_n, prologue.shift_t)
            shift = tl.load(at + offs % channels, mask=of_x, other=0.0).to(ACC)
        if prologue.rstd is not None:
            area = frame_size // channels
            pixels = (image * (known - cached) + frame) * area + offs // channels
            rstd = tl.load(prologue.rstd + pixels, mask=of_x, other=0.0).to(ACC)
        value = tl.where(of_x, normalized(value, scale, shift, rstd, ACTIVATION, SLOPE, ACC, UPCAST), value)
    tl.store(next_ptr + place * frame_size + offs, value, mask=mask)


@triton.jit
def seen_at(corner, r, s, DILATION: tl.constexpr, width, pixel, INDEX: tl.constexpr):
    """Offset in a frame, relative to the tile's own pixel, of the pixel that tap (r, s) sees in the upsampled frame."""
    h = (corner[0] + r * DILATION[1]) >> 1
    return (h.to(INDEX) * width + ((corner[1] + s * DILATION[2]) >> 1)) * pixel
