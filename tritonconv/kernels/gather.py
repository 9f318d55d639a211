"""The main loop of fprop and dgrad: pixels of one tensor gathered tap by tap, times weights, on the tensor cores."""

import triton
import triton.language as tl

from tritonconv.kernels.index import fold_taps, inside, inside_of, load_inside


@triton.jit
def gather_gemm(
    acc,  # [BLOCK_M, BLOCK_N]
    a_ptrs,  # [BLOCK_M, BLOCK_K] pointers at tap 0, channel 0
    b_ptrs,  # [BLOCK_K, BLOCK_N] likewise
    rows,  # [BLOCK_M] whether the pixel exists
    columns,  # [BLOCK_N] whether the output channel exists (and the phase has a tap)
    bits,  # [BLOCK_M] validity of every tap, where BOUNDS is "bits"
    start,  # (d, h, w) [BLOCK_M] coordinates at tap 0
    size,  # (d, h, w) of the gathered tensor
    step,  # (d, h, w) coordinate step from tap to tap
    counts,  # (t, r, s) taps of this tile
    a_step,  # (t, r, s, c) offset steps in the gathered tensor
    b_step,  # (t, r, s, c) offset steps in the weights
    channels,  # length of the channel axis
    COUNTS: tl.constexpr,  # most taps per axis: the radix of `bits`
    BOUNDS: tl.constexpr,  # "none", "bits" or "range"
    RANK: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    a_kept,  # with CLAMP the `kept` of `load_inside`: masked lanes get offsets [1, BLOCK_K] in the gathered tensor
    b_kept,  # likewise for the weights: offsets [BLOCK_K, 1] or [1, BLOCK_N]
    CLAMP: tl.constexpr,
):
    """acc[m, n] += sum over taps and channels of a[m shifted by tap, c] * b[tap, c, n]

    One flat loop, channels fastest; everything but two scalar offsets is hoisted out of it. The trip count is at least 1, since
    Triton 3.6 otherwise waits after every tensor-core instruction. A tile without taps has all its loads masked.
    """
    SINGLE: tl.constexpr = COUNTS[0] * COUNTS[1] * COUNTS[2] == 1
    k = tl.arange(0, BLOCK_K)
    trips = counts[0] * counts[1] * counts[2] * tl.cdiv(channels, BLOCK_K)
    t = 0
    r = 0
    s = 0
    c = 0
    bit = 1  # 1 << ((t * COUNTS[1] + r) * COUNTS[2] + s)
    zero = tl.full((), 0, INDEX)  # a tap's number times its step may take 64 bits where the offsets do
    a_tap = zero
    b_tap = zero
    for i in range(0, tl.maximum(trips, 1)):
        live = i < trips
        if BOUNDS == "bits":
            a_mask = ((bits & bit) != 0)[:, None]
        elif BOUNDS == "range":
            ok = rows & inside(start[2] + (zero + s) * step[2], size[2])
            if RANK >= 2:
                ok = ok & inside(start[1] + (zero + r) * step[1], size[1])
            if RANK >= 3:
                ok = ok & inside(start[0] + (zero + t) * step[0], size[0])
            a_mask = ok[:, None]
        else:
            a_mask = rows[:, None]
        if EVEN_K:
            if EVEN_N:
                b_move = b_tap + c * b_step[3]
                if CLAMP:
                    b_move = tl.where(live, b_move, 0)
                b = tl.load(b_ptrs + b_move)
            else:
                b_mask = columns[None, :]
                b = load_inside(b_ptrs, b_tap + c * b_step[3], b_mask, b_kept, live, CLAMP)
        else:
            left = k < channels - c
            a_mask = a_mask & left[None, :]
            b_mask = columns[None, :] & left[:, None]
            b = load_inside(b_ptrs, b_tap + c * b_step[3], b_mask, b_kept, live, CLAMP)
        a = load_inside(a_ptrs, a_tap + c * a_step[3], a_mask, a_kept, live, CLAMP)
        if UPCAST:  # the interpreter multiplies raw bfloat16 bits
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)
        c += BLOCK_K
        if not SINGLE:
            # After the last channel comes the next tap along s, then r, then t.
            wrap = c >= channels
            c = tl.where(wrap, 0, c)
            s += tl.where(wrap, 1, 0)
            bit = tl.where(wrap, bit << 1, bit)
            a_tap += tl.where(wrap, a_step[2], 0)
            b_tap += tl.where(wrap, b_step[2], 0)
            if RANK >= 2:
                wrap = s >= counts[2]
                s = tl.where(wrap, 0, s)
                r += tl.where(wrap, 1, 0)
                bit = tl.where(wrap, bit << (COUNTS[2] - counts[2]), bit)
                a_tap += tl.where(wrap, a_step[1] - counts[2] * a_step[2], 0)
                b_tap += tl.where(wrap, b_step[1] - counts[2] * b_step[2], 0)
            if RANK >= 3:
                wrap = r >= counts[1]
                r = tl.where(wrap, 0, r)
                t += tl.where(wrap, 1, 0)
                bit = tl.where(wrap, bit << ((COUNTS[1] - counts[1]) * COUNTS[2]), bit)
                a_tap += tl.where(wrap, a_step[0] - counts[1] * a_step[1], 0)
                b_tap += tl.where(wrap, b_step[0] - counts[1] * b_step[1], 0)
    return acc


@triton.jit
def patch_gemm(
    acc,  # [BLOCK_M, BLOCK_N]
    a_rows,  # [BLOCK_M] pointers at the corner of each patch
    b_columns,  # [BLOCK_N] pointers at each filter's first weight
    rows,  # [BLOCK_M]
    columns,  # [BLOCK_N]
    a_step,  # (t, r, s, c) strides inside a patch
    b_step,  # (t, r, s, c) strides inside a filter
    channels,
    KERNEL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    a_kept,  # with CLAMP: base of a_rows and their offsets from it
    b_kept,  # likewise for b_columns
    C_ALIGN: tl.constexpr,
    CLAMP: tl.constexpr,
):
    """acc[m, n] += sum over i = (c, t, r, s) of patch[m, i] * b[i, n]: windows that neither overlap nor leave the input."""
    depth = channels * (KERNEL[0] * KERNEL[1] * KERNEL[2])
    for start in range(0, tl.maximum(depth, 1), BLOCK_K):
        i = start + tl.arange(0, BLOCK_K)
        c, t, r, s = fold_taps(i, channels, KERNEL, CHANNELS_LAST)
        a_offset = c * a_step[3] + t * a_step[0] + r * a_step[1] + s * a_step[2]  # [BLOCK_K]
        b_offset = c * b_step[3] + t * b_step[0] + r * b_step[1] + s * b_step[2]
        a_mask = rows[:, None]
        b_mask = columns[None, :]
        if not EVEN_K:
            a_mask = a_mask & (i < depth)[None, :]
            b_mask = b_mask & (i < depth)[:, None]
        kept_a = None
        kept_b = None
        if CLAMP:
            a_inside = inside_of(i, C_ALIGN, KERNEL, CHANNELS_LAST, a_step[3], a_step[2])
            b_inside = inside_of(i, C_ALIGN, KERNEL, CHANNELS_LAST, b_step[3], b_step[2])
            kept_a = (a_kept[0], a_kept[1][:, None], a_inside[None, :])
            kept_b = (b_kept[0], b_kept[1][None, :], b_inside[:, None])
        a = load_inside(a_rows[:, None], a_offset[None, :], a_mask, kept_a, start < depth, CLAMP)
        b = load_inside(b_columns[None, :], b_offset[:, None], b_mask, kept_b, start < depth, CLAMP)
        if UPCAST:  # the interpreter multiplies raw bfloat16 bits
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)
    return acc
