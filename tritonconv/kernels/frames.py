"""Frames of a chunk of video: where a known frame lies, the frames of the next cache, the sum over the taps that see them."""

from typing import NamedTuple

import triton
import triton.language as tl

from tritonconv.kernels.index import inside, load_inside
from tritonconv.kernels.modes import mapped
from tritonconv.kernels.prologue import frame_values, normalized, prepared


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
    share: int  # blocks of channels that a program sums, where several share a reduction
    apart: int  # elements from the partial sums of one share to those of the next


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
    prologue,  # Prologue, with PROLOGUE; applied to frames of x
    PROLOGUE: tl.constexpr,
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
    if PROLOGUE:
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


@triton.jit
def frames_gemm(
    acc,  # [BLOCK_M, BLOCK_N]
    x_base,  # pointer to where known frame 0 of the image would be if it were in x
    cache_base,  # pointer to known frame 0 of the image
    x_ptrs,  # [BLOCK_M, BLOCK_K] at tap (0, 0), channel 0 of known frame 0
    w_ptrs,  # [BLOCK_K, BLOCK_N] at tap 0, channel 0
    rows,  # [BLOCK_M] whether the pixel exists
    columns,  # [BLOCK_N] whether the filter exists
    bits,  # [BLOCK_M] validity of the taps in a frame, where BOUNDS is "bits"
    start,  # (h, w) [BLOCK_M] coordinates at tap (0, 0), upsampled
    size,  # (h, w) of a frame, upsampled
    corner,  # (h, w) coordinates at tap (0, 0) of the first pixel of this parity, upsampled; 0 where UP is 1
    frame,  # known frame that tap 0 in time sees
    first,  # tap in time to start with
    cached,
    channels,  # that are summed: those of a group, or of a share of them
    tap_size,  # channels of a group
    pixel_size,  # channels of all groups
    width,  # width of a frame of x
    area,  # pixels of a frame of x
    frame_size,
    KERNEL: tl.constexpr,
    DILATION: tl.constexpr,
    UP: tl.constexpr,
    REPLICATE: tl.constexpr,
    BOUNDS: tl.constexpr,
    C_ALIGN: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    INDEX: tl.constexpr,
    REACH: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    x_kept,  # with CLAMP the `kept` of `load_inside`
    w_kept,
    CLAMP: tl.constexpr,
    prologue,  # Prologue, with PROLOGUE; of frames of x only
    PROLOGUE: tl.constexpr,
    image,
    frames,  # frames of x
    pixels,  # [BLOCK_M] number of the pixel at tap (0, 0) in a frame of x
    first_channel,  # that is summed
    SHARED: tl.constexpr,  # whether programs share a reduction
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
):
    """acc[m, n] += sum over t >= first, r, s, c of frame[t][m shifted by (r, s), c] * w[n, t, r, s, c]

    One flat loop, channels fastest. The frame is a scalar, so no pixel needs to know which tensor it comes from.
    """
    TAPS: tl.constexpr = KERNEL[1] * KERNEL[2]
    MAPPED: tl.constexpr = BOUNDS != "none" and BOUNDS != "bits" and BOUNDS != "range"
    UNIT: tl.constexpr = x_ptrs.dtype.element_ty.primitive_bitwidth // 8 * C_ALIGN  # bytes of C_ALIGN elements
    k = tl.arange(0, BLOCK_K)
    blocks = tl.cdiv(channels, BLOCK_K)
    known = frame + first * DILATION[0]
    seen = known  # carried with a prologue only, which frames of the cache have behind them
    # Offsets in x count units of C_ALIGN elements, so that 32 bits reach from the cache to x.
    pixel = (pixel_size // C_ALIGN).to(REACH)
    back = (blocks - 1) * (BLOCK_K // C_ALIGN)  # from the last block of channels to the first
    frame_units = frame_size // C_ALIGN
    jump = ((x_base.to(tl.int64) - cache_base.to(tl.int64)) // UNIT).to(REACH)
    left_t = tl.cdiv(cached - known, DILATION[0])  # taps in time that see the cache
    x_tap = ((tl.maximum(known, 0) if REPLICATE else known) * frame_units).to(REACH) + tl.where(left_t <= 0, jump, 0)
    place = tl.full((), 0, REACH)
    if MAPPED:
        next_s = (0 - back).to(REACH)
        next_r = next_s
        next_t = next_s
    elif UP == 1:
        next_s = (pixel * DILATION[2] - back).to(REACH)
        next_r = next_s + pixel * (width * DILATION[1] - KERNEL[2] * DILATION[2])
        next_t = next_r - pixel * (KERNEL[1] * width * DILATION[1])
    else:
        place = seen_at(corner, 0, 0, DILATION, width, pixel, REACH)
        x_tap += place
        next_s = (0 - back).to(REACH)
        next_r = next_s
        next_t = next_s + place - seen_at(corner, KERNEL[1] - 1, KERNEL[2] - 1, DILATION, width, pixel, REACH)
    if not REPLICATE:
        next_t += (frame_units * DILATION[0]).to(REACH)
    w_tap = tl.full((), 0, INDEX)
    if CLAMP:  # whose addresses are offsets from `w_kept`
        w_tap += first * TAPS * tap_size
    else:
        w_ptrs += first * TAPS * tap_size
    r = 0
    s = 0
    c = 0
    bit = 1  # 1 << (r * S + s)
    trips = (KERNEL[0] - first) * (TAPS * blocks)
    for i in range(0, tl.maximum(trips, 1)):
        if BOUNDS == "bits":
            there = (bits & bit) != 0
        elif BOUNDS == "range":
            ok = inside(start[0] + r * DILATION[1], size[0]) & inside(start[1] + s * DILATION[2], size[1])
            there = rows & ok
        else:
            there = rows
        x_move = x_tap.to(tl.int64) * C_ALIGN
        spot = pixels
        if MAPPED:
            row = mapped(start[0] + r * DILATION[1], size[0], BOUNDS)
            column = mapped(start[1] + s * DILATION[2], size[1], BOUNDS)
            spot = (row // UP) * width + column // UP
            x_move += (spot.to(tl.int64) * pixel_size)[:, None]
        x_mask = there[:, None]
        if EVEN_K:
            if EVEN_N:
                w_move = w_tap
                if CLAMP:
                    w_move = tl.where(i < trips, w_tap, 0)
                w = tl.load(w_ptrs + w_move)
            else:
                w_mask = columns[None, :]
                w = load_inside(w_ptrs, w_tap, w_mask, w_kept, i < trips, CLAMP)
        else:
            left = k < channels - c
            x_mask = x_mask & left[None, :]
            w_mask = columns[None, :] & left[:, None]
            w = load_inside(w_ptrs, w_tap, w_mask, w_kept, i < trips, CLAMP)
        x = load_inside(x_ptrs, x_move, x_mask, x_kept, i < trips, CLAMP)
        if PROLOGUE:
            here = tl.maximum(seen, 0) if REPLICATE else seen
            if MAPPED:
                pass
            elif UP == 1:
                spot += r * (DILATION[1] * width) + s * DILATION[2]
            else:
                spot += seen_at(corner, r, s, DILATION, width, 1, INDEX)
            x = prepared(
                x,
                x_mask,
                there,
                prologue,
                image,
                here - cached,
                frames,
                spot,
                area,
                k + c,
                channels,
                first_channel,
                i < trips,
                C_ALIGN,
                ACTIVATION,
                SLOPE,
                acc.dtype,
                UPCAST,
                CLAMP,
            )
        if UPCAST:  # the interpreter multiplies raw bfloat16 bits
            x = x.to(tl.float32)
            w = w.to(tl.float32)
        acc = tl.dot(x, w, acc, input_precision=PRECISION, out_dtype=acc.dtype)
        c += BLOCK_K
        # After the last channel comes the next tap along s, then r, then t.
        wrap = c >= channels
        c = tl.where(wrap, 0, c)
        if EVEN_K and not SHARED:
            w_tap += BLOCK_K
        else:
            w_tap += tl.where(wrap, tap_size - back * C_ALIGN, BLOCK_K)
        step = tl.where(wrap, next_s, BLOCK_K // C_ALIGN)
        if TAPS > 1:
            bit = tl.where(wrap, bit << 1, bit)
            s += tl.where(wrap, 1, 0)
            wrap = s >= KERNEL[2]
            s = tl.where(wrap, 0, s)
            r += tl.where(wrap, 1, 0)
            step = tl.where(wrap, next_r, step)
            wrap = r >= KERNEL[1]
            r = tl.where(wrap, 0, r)
            bit = tl.where(wrap, 1, bit)
            if UP > 1 and not MAPPED:
                before = place
                place = seen_at(corner, r, s, DILATION, width, pixel, REACH)
                step += place - before
        if PROLOGUE:
            seen += tl.where(wrap, DILATION[0], 0)
        over = next_t
        if REPLICATE:
            ahead = tl.maximum(known + DILATION[0], 0) - tl.maximum(known, 0)
            over += (ahead * frame_units).to(REACH)
            known += tl.where(wrap, DILATION[0], 0)
        over = tl.where(left_t == 1, over + jump, over)  # after the last tap that sees the cache, jump to x
        left_t -= tl.where(wrap, 1, 0)
        x_tap += tl.where(wrap, over, step)
    return acc
