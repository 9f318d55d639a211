"""Causal convolution of a chunk of frames: a cache supplies the frames before it, and the kernel writes the next cache."""

import triton
import triton.language as tl

from tritonconv.kernels.epilogue import TRANSPOSED, add_bias, load_transposed, rounded, store_transposed
from tritonconv.kernels.frames import copy_frames, frames_gemm
from tritonconv.kernels.index import strides, tile_of, unpack, wide, window_bits


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
    BOUNDS: tl.constexpr,  # how a tap outside a frame is found: "none", "bits", "range"; or a padding mode (`kernels.modes`)
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
    ACTIVATION: tl.constexpr = "",  # of the prologue
    SLOPE: tl.constexpr = 0.01,
    PROLOGUE: tl.constexpr = False,  # whether there is one: Triton 3.6 does not compare a tuple that holds a None
    prologue=None,  # Prologue, applied to the frames of x that are read or kept
    FUSED: tl.constexpr = False,  # whether a residual is added, likewise
    fused=None,  # Fused of a residual
    R_ALIGN: tl.constexpr = 1,
    R_UNIT: tl.constexpr = -1,
    GROUPS: tl.constexpr = 1,
    SUMMED: tl.constexpr = False,  # w is [4, K, T, R, S, C], by parity; a tap is a pixel of x, 2 of the upsampled frame
    SHARED: tl.constexpr = False,  # programs share the channels; y is partial sums [shares, N, O, P, Q, K], which another adds
):
    """y[n, k, o, p, q] = b[k] + sum over c, t, r, s of w[k, c, t, r, s] * known[n, c, o*s_t - front + t*d_t, p*.., q*..]

    plus a residual. known = the frames of the cache, then those of x with the prologue. GEMM axes: m = (p, q) of one frame of y
    (with UP, those of one parity), n = k, k = (t, r, s, c), channels and filters of one group. One program writes one
    [BLOCK_M, BLOCK_N] tile of y; programs after the last tile write blocks of the next cache.
    """
    height = unpack(sizes.h)
    width = unpack(sizes.w)
    channels = unpack(sizes.c) * C_ALIGN
    cached = unpack(sizes.cached)
    area = height.to(tl.int64) * width
    frame_size = area * (channels * GROUPS)
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
            channels * GROUPS,
            prologue,
            PROLOGUE,
            REPLICATE,
            COPY,
            ACTIVATION,
            SLOPE,
            ACC,
            UPCAST,
        )
        return

    filters = unpack(sizes.k) * K_ALIGN
    size_p = unpack(sizes.p)
    size_q = unpack(sizes.q)
    pid_m, pid_n, part = tile_of(pid, unpack(sizes.tiles_m), tl.cdiv(filters, BLOCK_N) * GROUPS, GROUP_M)
    group = 0
    if GROUPS > 1:
        group = pid_n // tl.cdiv(filters, BLOCK_N)
        pid_n = pid_n % tl.cdiv(filters, BLOCK_N)
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
    if GROUPS > 1:
        offs_n += group * filters

    h0 = p * STRIDE[1] - unpack(sizes.low_h)  # upsampled coordinates at tap 0
    w0 = q * STRIDE[2] - unpack(sizes.low_w)
    if SUMMED:  # of the first of two that are one pixel
        h0 &= -2
        w0 &= -2
    size = (height * UP, width * UP)
    bits = tl.zeros((BLOCK_M,), tl.int32)
    if BOUNDS == "bits":
        bits = window_bits(rows, (h0, h0, w0), DILATION, (height, size[0], size[1]), KERNEL, 2)
    corner = (0, 0)
    place = h0 * width + w0
    if UP > 1:
        corner = (parity_p - unpack(sizes.low_h), parity_q - unpack(sizes.low_w))
        if SUMMED:
            corner = (corner[0] & -2, corner[1] & -2)
        place = i * width + j
    offset = place * (channels * GROUPS) + group * channels
    if BOUNDS != "none" and BOUNDS != "bits" and BOUNDS != "range":
        offset = tl.zeros_like(place) + group * channels
    frame = o * STRIDE[0] - unpack(sizes.front)  # known frame at tap 0
    first = 0
    if not REPLICATE:
        first = tl.maximum(0, tl.cdiv(-frame, DILATION[0]))  # earlier taps see zeros only
    start = 0
    length = channels
    if SHARED:
        share = unpack(sizes.share) * BLOCK_K
        start = part * share
        length = tl.where(channels - start < share, channels - start, share)
        y_ptr += part.to(tl.int64) * unpack(sizes.apart)
        offset += start
        w_ptr += start
    offs_k = tl.arange(0, BLOCK_K)
    depth = channels * (KERNEL[0] * KERNEL[1] * KERNEL[2])
    if SUMMED:
        w_ptr += (parity_p * 2 + parity_q).to(tl.int64) * (filters * GROUPS) * depth
    x_kept = None
    w_kept = None
    if CLAMP:
        x_kept = (cache_ptr + image * cache_n, offset[:, None] + offs_k[None, :], (offs_k % C_ALIGN)[None, :])
        w_kept = (w_ptr, offs_n[None, :].to(INDEX) * depth + offs_k[:, None], (offs_k % C_ALIGN)[:, None])
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    if FUSED:  # the sums begin with it: behind them, its addresses would find no registers
        _, r_k, _, r_p, r_q = strides(fused.residual_strides, R_ALIGN, R_UNIT, INDEX)
        base = fused.residual + image * wide(fused.residual_strides.outer, R_ALIGN, R_UNIT == 0)
        base += o * wide(fused.residual_strides.depth, R_ALIGN, False)
        r_ptrs = base + ((p * r_p + q * r_q)[:, None] + offs_n[None, :] * r_k)
        r_mask = rows[:, None] & columns[None, :]
        if R_UNIT == 1 or not TRANSPOSED:
            acc += tl.load(r_ptrs, mask=r_mask, other=0.0).to(ACC)
        else:
            acc += load_transposed(r_ptrs, r_mask).to(ACC)
    acc = frames_gemm(
        acc,
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
        channels=length,
        tap_size=channels,
        pixel_size=channels * GROUPS,
        width=width,
        area=area,
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
        prologue=prologue,
        PROLOGUE=PROLOGUE,
        image=image,
        frames=unpack(sizes.known) - cached,
        pixels=place,
        first_channel=group * channels + start,
        SHARED=SHARED,
        ACTIVATION=ACTIVATION,
        SLOPE=SLOPE,
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
