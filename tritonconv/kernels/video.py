"""Causal convolution of a chunk of frames: a cache supplies the frames before it, and the kernel writes the next cache."""

from typing import NamedTuple

import triton
import triton.language as tl

from tritonconv.kernels.epilogue import TRANSPOSED, add_bias, rounded, store_transposed
from tritonconv.kernels.index import inside, load_inside, strides, tile_of, unpack, wide, window_bits


class Frames(NamedTuple):
    """Sizes, packed. c, x_n and cache_n are divided by C_ALIGN first, k by K_ALIGN."""

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
    REPLICATE: tl.constexpr,
    BLOCK: tl.constexpr,
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
    channels,
    width,  # width of a frame of x
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
):
    """acc[m, n] += sum over t >= first, r, s, c of frame[t][m shifted by (r, s), c] * w[n, t, r, s, c]

    One flat loop, channels fastest. The frame is a scalar, so no pixel needs to know which tensor it comes from.
    """
    TAPS: tl.constexpr = KERNEL[1] * KERNEL[2]
    UNIT: tl.constexpr = x_ptrs.dtype.element_ty.primitive_bitwidth // 8 * C_ALIGN  # bytes of C_ALIGN elements
    k = tl.arange(0, BLOCK_K)
    blocks = tl.cdiv(channels, BLOCK_K)
    known = frame + first * DILATION[0]
    # Offsets in x count units of C_ALIGN elements, so that 32 bits reach from the cache to x.
    pixel = (channels // C_ALIGN).to(REACH)
    back = (blocks - 1) * (BLOCK_K // C_ALIGN)  # from the last block of channels to the first
    frame_units = frame_size // C_ALIGN
    jump = ((x_base.to(tl.int64) - cache_base.to(tl.int64)) // UNIT).to(REACH)
    left_t = tl.cdiv(cached - known, DILATION[0])  # taps in time that see the cache
    x_tap = ((tl.maximum(known, 0) if REPLICATE else known) * frame_units).to(REACH) + tl.where(left_t <= 0, jump, 0)
    place = tl.full((), 0, REACH)
    if UP == 1:
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
    w_ptrs += first * TAPS * channels
    w_tap = tl.full((), 0, INDEX)
    r = 0
    s = 0
    c = 0
    bit = 1  # 1 << (r * S + s)
    trips = (KERNEL[0] - first) * (TAPS * blocks)
    for i in range(0, tl.maximum(trips, 1)):
        if BOUNDS == "bits":
            x_mask = ((bits & bit) != 0)[:, None]
        elif BOUNDS == "range":
            ok = inside(start[0] + r * DILATION[1], size[0]) & inside(start[1] + s * DILATION[2], size[1])
            x_mask = (rows & ok)[:, None]
        else:
            x_mask = rows[:, None]
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
        x = load_inside(x_ptrs, x_tap.to(tl.int64) * C_ALIGN, x_mask, x_kept, i < trips, CLAMP)
        if UPCAST:  # the interpreter multiplies raw bfloat16 bits
            x = x.to(tl.float32)
            w = w.to(tl.float32)
        acc = tl.dot(x, w, acc, input_precision=PRECISION, out_dtype=acc.dtype)
        c += BLOCK_K
        # After the last channel comes the next tap along s, then r, then t.
        wrap = c >= channels
        c = tl.where(wrap, 0, c)
        if EVEN_K:
            w_tap += BLOCK_K
        else:
            w_tap += tl.where(wrap, channels - back * C_ALIGN, BLOCK_K)
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
            if UP > 1:
                before = place
                place = seen_at(corner, r, s, DILATION, width, pixel, REACH)
                step += place - before
        over = next_t
        if REPLICATE:
            ahead = tl.maximum(known + DILATION[0], 0) - tl.maximum(known, 0)
            over += (ahead * frame_units).to(REACH)
            known += tl.where(wrap, DILATION[0], 0)
        over = tl.where(left_t == 1, over + jump, over)  # after the last tap that sees the cache, jump to x
        left_t -= tl.where(wrap, 1, 0)
        x_tap += tl.where(wrap, over, step)
    return acc


@triton.jit
def video_kernel(
    x_ptr,  # [N, T, H, W, C], each image dense
    cache_ptr,  # [N, F, H, W, C], likewise
    w_ptr,  # [K, T, R, S, C], dense
    b_ptr,
    y_ptr,
    next_ptr,  # [N, kept, H, W, C], dense
    y_strides,  # Strides of y [N, K, O, P, Q]
    sizes,  # Frames
    KERNEL: tl.constexpr,  # (T, R, S)
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    UP: tl.constexpr,  # 1 or 2: x is upsampled by this in height and width, each pixel repeated
    REPLICATE: tl.constexpr,
    BOUNDS: tl.constexpr,  # how a tap outside a frame is found: "none", "bits", "range"
    C_ALIGN: tl.constexpr,
    K_ALIGN: tl.constexpr,
    Y_ALIGN: tl.constexpr,
    Y_UNIT: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN_N: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,  # type of offsets in a frame, in the weights and in a frame of y
    REACH: tl.constexpr,  # type of offsets between frames, in units of C_ALIGN elements
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    COPY: tl.constexpr,  # elements of the next cache that a program copies
    CLAMP: tl.constexpr = False,  # masked addresses lie inside of the tensors (`kernels.index.load_inside`)
):
    """y[n, k, o, p, q] = b[k] + sum over c, t, r, s of w[k, c, t, r, s] * known[n, c, o*s_t - front + t*d_t, p*.., q*..]

    known = the frames of the cache, then those of x. GEMM axes: m = (p, q) of one frame of y (with UP, those of one parity),
    n = k, k = (t, r, s, c). One program writes one [BLOCK_M, BLOCK_N] tile of y; programs after the last tile write blocks of
    the next cache.
    """
    height = unpack(sizes.h)
    width = unpack(sizes.w)
    channels = unpack(sizes.c) * C_ALIGN
    cached = unpack(sizes.cached)
    frame_size = height.to(tl.int64) * width * channels
    x_n = unpack(sizes.x_n).to(tl.int64) * C_ALIGN
    cache_n = unpack(sizes.cache_n).to(tl.int64) * C_ALIGN
    pid = tl.program_id(0)
    programs = unpack(sizes.programs)
    if pid >= programs:
        copy_frames(
            pid - programs,
            next_ptr,
            x_ptr,
            cache_ptr,
            x_n,
            cache_n,
            cached,
            unpack(sizes.known),
            unpack(sizes.kept),
            frame_size,
            REPLICATE,
            COPY,
        )
        return

    filters = unpack(sizes.k) * K_ALIGN
    size_p = unpack(sizes.p)
    size_q = unpack(sizes.q)
    pid_m, pid_n, _ = tile_of(pid, unpack(sizes.tiles_m), tl.cdiv(filters, BLOCK_N), GROUP_M)
    tile_p = tl.cdiv(size_p, UP)  # pixels of one parity
    tile_q = tl.cdiv(size_q, UP)
    tiles = tl.cdiv(tile_p.to(INDEX) * tile_q, BLOCK_M).to(tl.int32)
    place = pid_m // tiles
    pixel = (pid_m % tiles).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    parity_p = place % (UP * UP) // UP
    parity_q = place % UP
    place = place // (UP * UP)
    o = place % unpack(sizes.o)
    image = (place // unpack(sizes.o)).to(tl.int64)
    i = pixel // tile_q
    j = pixel % tile_q
    p = i * UP + parity_p
    q = j * UP + parity_q
    rows = (p < size_p) & (q < size_q)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = offs_n < filters  # [BLOCK_N]

    h0 = p * STRIDE[1] - unpack(sizes.low_h)  # upsampled coordinates at tap 0
    w0 = q * STRIDE[2] - unpack(sizes.low_w)
    size = (height * UP, width * UP)
    bits = tl.zeros((BLOCK_M,), tl.int32)
    if BOUNDS == "bits":
        bits = window_bits(rows, (h0, h0, w0), DILATION, (height, size[0], size[1]), KERNEL, 2)
    corner = (0, 0)
    offset = (h0 * width + w0) * channels
    if UP > 1:
        corner = (parity_p - unpack(sizes.low_h), parity_q - unpack(sizes.low_w))
        offset = (i * width + j) * channels
    frame = o * STRIDE[0] - unpack(sizes.front)  # known frame at tap 0
    first = 0
    if not REPLICATE:
        first = tl.maximum(0, tl.cdiv(-frame, DILATION[0]))  # earlier taps see zeros only
    offs_k = tl.arange(0, BLOCK_K)
    depth = channels * (KERNEL[0] * KERNEL[1] * KERNEL[2])
    x_kept = None
    w_kept = None
    if CLAMP:
        x_kept = (cache_ptr + image * cache_n, offset[:, None] + offs_k[None, :], (offs_k % C_ALIGN)[None, :])
        w_kept = (w_ptr, offs_n[None, :].to(INDEX) * depth + offs_k[:, None], (offs_k % C_ALIGN)[:, None])
    acc = frames_gemm(
        tl.zeros((BLOCK_M, BLOCK_N), ACC),
        x_base=x_ptr + image * x_n - cached * frame_size,
        cache_base=cache_ptr + image * cache_n,
        x_ptrs=cache_ptr + image * cache_n + (offset[:, None] + offs_k[None, :]),
        w_ptrs=w_ptr + (offs_n[None, :].to(INDEX) * depth + offs_k[:, None]),
        rows=rows,
        columns=columns,
        bits=bits,
        start=(h0, w0),
        size=size,
        corner=corner,
        frame=frame,
        first=first,
        cached=cached,
        channels=channels,
        width=width,
        frame_size=frame_size,
        KERNEL=KERNEL,
        DILATION=DILATION,
        UP=UP,
        REPLICATE=REPLICATE,
        BOUNDS=BOUNDS,
        C_ALIGN=C_ALIGN,
        EVEN_K=EVEN_K,
        EVEN_N=EVEN_N,
        BLOCK_K=BLOCK_K,
        INDEX=INDEX,
        REACH=REACH,
        PRECISION=PRECISION,
        UPCAST=UPCAST,
        x_kept=x_kept,
        w_kept=w_kept,
        CLAMP=CLAMP,
    )

    acc = add_bias(acc, b_ptr, offs_n * unpack(sizes.b).to(INDEX), columns, HAS_BIAS)
    _, y_k, _, y_p, y_q = strides(y_strides, Y_ALIGN, Y_UNIT, INDEX)
    base = y_ptr + image * wide(y_strides.outer, Y_ALIGN, Y_UNIT == 0) + o * wide(y_strides.depth, Y_ALIGN, False)
    y_ptrs = base + ((p * y_p + q * y_q)[:, None] + offs_n[None, :] * y_k)
    mask = rows[:, None] & columns[None, :]
    y = rounded(acc, y_ptr.dtype.element_ty, UPCAST)
    if Y_UNIT == 1 or not TRANSPOSED:
        tl.store(y_ptrs, y, mask=mask)
    else:
        store_transposed(y_ptrs, y, mask)
