"""Weight gradient of a convolution: a GEMM whose reduction runs over the output pixels, split between programs."""

import triton
import triton.language as tl

from tritonconv.kernels.boxes import first_box, load_pixels, next_box
from tritonconv.kernels.epilogue import rounded
from tritonconv.kernels.index import fold_taps, inside, inside_of, load_inside, strides, unpack, wide


@triton.jit
def new_pixels(start, i, size, BOX: tl.constexpr, WITHIN: tl.constexpr):
    """(first, mask) of the box that starts at `start` on an axis: which of its pixels first + i count.

    WITHIN shifts the last box back so that it lies within the axis (BOX <= size), and masks the pixels that the box before it
    had. Masked zeros of dy then multiply only pixels that belong to this tap's sum, so no inf * 0 appears that the exact sum
    lacks.
    """
    first = start
    mask = i < size - start
    if WITHIN:
        first = tl.minimum(start, size - BOX)
        mask = i >= start - first
    return first, mask


@triton.jit
def store_filters(
    acc,  # [BLOCK_M, BLOCK_N]
    dw_ptr,  # the weights' gradient, or with SPLIT the workspace [split, k, t, r, s, c]
    dw_strides,  # Strides of dw [K, C / G, T, R, S]
    ALIGN: tl.constexpr,
    UNIT: tl.constexpr,
    at,  # (split, groups, group, filters of a group, channels of a group)
    filter,  # [BLOCK_M] of the group
    c,  # [BLOCK_N] channel of the group
    tap,  # (t, r, s), scalars or [BLOCK_N]
    mask,
    KERNEL: tl.constexpr,
    INDEX: tl.constexpr,
    SPLIT: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Writes a tile of sums to the weights' gradient, or unrounded to the share of its split in the workspace."""
    if SPLIT:
        row = at[0].to(tl.int64) * at[1] * at[3] + at[2] * at[3]
        filter_size = at[4].to(INDEX) * (KERNEL[0] * KERNEL[1] * KERNEL[2])
        base = dw_ptr + row * filter_size
        column = ((tap[0] * KERNEL[1] + tap[1]) * KERNEL[2] + tap[2]) * at[4].to(INDEX) + c
        tl.store(base + (filter[:, None] * filter_size + column[None, :]), acc, mask=mask)
    else:
        w_k, w_c, w_t, w_r, w_s = strides(dw_strides, ALIGN, UNIT, INDEX)
        base = dw_ptr + at[2] * at[3] * wide(dw_strides.outer, ALIGN, UNIT == 0)
        column = c * w_c + tap[0] * w_t + tap[1] * w_r + tap[2] * w_s
        dw = rounded(acc, dw_ptr.dtype.element_ty, UPCAST)
        tl.store(base + ((filter * w_k)[:, None] + column[None, :]), dw, mask=mask)


@triton.jit
def wgrad_kernel(
    dy_ptr,
    x,  # a pointer, or with BOXED a descriptor as `load_pixels` takes it
    dw_ptr,  # dw, or with SPLIT the workspace [splits, K, T, R, S, C / G] in the accumulator's type
    dy_strides,  # Strides of dy [N, K, O, P, Q]
    x_strides,  # Strides of x [N, C, D, H, W]
    dw_strides,  # Strides of dw [K, C / G, T, R, S]
    sizes,  # Sizes; tiles = reduction steps of one split
    groups,  # packed
    KERNEL: tl.constexpr,  # (T, R, S)
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    RANK: tl.constexpr,
    PATCH: tl.constexpr,  # windows tile the input: the n axis holds taps and channels
    BOUNDS: tl.constexpr,  # "none" or "range"
    DY_ALIGN: tl.constexpr,
    DY_UNIT: tl.constexpr,
    X_ALIGN: tl.constexpr,
    X_UNIT: tl.constexpr,
    DW_ALIGN: tl.constexpr,
    DW_UNIT: tl.constexpr,
    C_ALIGN: tl.constexpr,
    K_ALIGN: tl.constexpr,
    X_FOLD: tl.constexpr,  # the patch axis runs (t, r, s, c) instead of (c, t, r, s)
    EVEN_M: tl.constexpr,
    EVEN_N: tl.constexpr,
    SPLIT: tl.constexpr,  # whether partial sums go to a workspace
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STEP: tl.constexpr,  # output pixels of one reduction step: (n, o, p, q), powers of two
    BOXED: tl.constexpr = False,  # TMA copies x
    CLAMP: tl.constexpr = False,  # masked addresses lie inside of the tensors (`kernels.index.load_inside`)
):
    """dw[k, c, t, r, s] = sum over n, o, p, q of dy[n, k, o, p, q] * x[n, c, o*s_d - low_d + t*d_d, p*.., q*..]

    GEMM axes: m = k, n = c (one tap per program; (c, t, r, s) where PATCH), k = output pixels. The pixels are walked in boxes
    of STEP with carried scalars, so the loop holds no division; every offset inside a box is hoisted.

    With BOXED, one copy by coordinates brings a box of x, without masks or addresses. Its columns may hold channels of other
    groups, which are not stored. Its pixels all belong to the tap (`new_pixels`), or to images beyond the last, which are zero.
    """
    BOX_O: tl.constexpr = STEP[1]
    BOX_P: tl.constexpr = STEP[2]
    BOX_Q: tl.constexpr = STEP[3]
    BLOCK_K: tl.constexpr = STEP[0] * BOX_O * BOX_P * BOX_Q
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    y_n, y_k, y_o, y_p, y_q = strides(dy_strides, DY_ALIGN, DY_UNIT, INDEX)
    x_n, x_c, x_d, x_h, x_w = strides(x_strides, X_ALIGN, X_UNIT, INDEX)
    channels = unpack(sizes.c) * C_ALIGN
    filters = unpack(sizes.k) * K_ALIGN
    size_n = unpack(sizes.n)
    size_o = unpack(sizes.o)
    size_p = unpack(sizes.p)
    size_q = unpack(sizes.q)
    columns_total = channels
    if PATCH:
        columns_total = channels * TAPS

    # program -> (m tile, n tile, tap, group, split), m fastest: neighbours share the x tile
    tiles_m = tl.cdiv(filters, BLOCK_M)
    tiles_n = tl.cdiv(columns_total, BLOCK_N)
    pid = tl.program_id(0)
    pid_m = pid % tiles_m
    pid = pid // tiles_m
    pid_n = pid % tiles_n
    pid = pid // tiles_n
    tap = pid * 0
    if not PATCH:
        tap = pid % TAPS
        pid = pid // TAPS
    n_groups = unpack(groups)
    group = pid % n_groups
    split = pid // n_groups
    tap_s = tap % KERNEL[2]
    tap_r = (tap // KERNEL[2]) % KERNEL[1]
    tap_t = tap // (KERNEL[2] * KERNEL[1])

    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    filters_mask = offs_m < filters  # [BLOCK_M]
    columns = offs_n < columns_total  # [BLOCK_N]
    c, t, r, s = fold_taps(offs_n, channels, KERNEL if PATCH else (1, 1, 1), X_FOLD)  # [BLOCK_N]

    # The box: pixel i of a step is (n0 + i_n, o0 + i_o, p0 + i_p, q0 + i_q)
    i = tl.arange(0, BLOCK_K)
    i_q = i % BOX_Q
    i_p = (i // BOX_Q) % BOX_P
    i_o = (i // (BOX_Q * BOX_P)) % BOX_O
    i_n = i // (BOX_Q * BOX_P * BOX_O)
    dy_offset = i_n * y_n + i_q * y_q
    x_offset = i_n * x_n + i_q * (STRIDE[2] * x_w)  # like all offsets of x, unused with BOXED
    # Patches have neither a tap of their own nor padding, and a constant 0 keeps the alignment of their rows known.
    w_shift = 0 if PATCH else tap_s.to(INDEX) * DILATION[2] - unpack(sizes.low_w)
    x_tap = w_shift * x_w
    h_shift = w_shift
    d_shift = w_shift
    if RANK >= 2:
        dy_offset += i_p * y_p
        x_offset += i_p * (STRIDE[1] * x_h)
        h_shift = 0 if PATCH else tap_r.to(INDEX) * DILATION[1] - unpack(sizes.low_h)
        x_tap += h_shift * x_h
    if RANK >= 3:
        dy_offset += i_o * y_o
        x_offset += i_o * (STRIDE[0] * x_d)
        d_shift = 0 if PATCH else tap_t.to(INDEX) * DILATION[0] - unpack(sizes.low_d)
        x_tap += d_shift * x_d
    dy_base = dy_ptr + group * filters * wide(dy_strides.channel, DY_ALIGN, DY_UNIT == 1)
    dy_ptrs = dy_base + ((offs_m * y_k)[:, None] + dy_offset[None, :])  # [BLOCK_M, BLOCK_K]
    if not BOXED:
        x_base = x + group * channels * wide(x_strides.channel, X_ALIGN, X_UNIT == 1)
        column_offset = c * x_c
        if PATCH:
            column_offset += t * x_d + r * x_h + s * x_w
        x_ptrs = x_base + (x_offset[:, None] + column_offset[None, :])  # [BLOCK_K, BLOCK_N]

    dy_kept = None
    x_kept = None
    if CLAMP:
        dy_inside = ((offs_m % K_ALIGN) * y_k)[:, None]
        if DY_UNIT == 4:
            dy_inside = (i_q % DY_ALIGN)[None, :]
        dy_kept = (dy_base, (offs_m * y_k)[:, None] + dy_offset[None, :], dy_inside)
        if not BOXED:
            x_inside = inside_of(offs_n, C_ALIGN, KERNEL if PATCH else (1, 1, 1), X_FOLD, x_c, x_w)[None, :]
            if X_UNIT == 4 and not PATCH:
                x_inside = (i_q % X_ALIGN)[:, None]
            x_kept = (x_base, x_offset[:, None] + column_offset[None, :], x_inside)

    steps = unpack(sizes.tiles)
    n0, o0, p0, q0 = first_box(split * steps, (size_o, size_p, size_q), STEP, RANK)

    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for step in range(0, tl.maximum(steps, 1)):
        q1, fresh = new_pixels(q0, i_q, size_q, BOX_Q, BOXED)
        dy_start = n0.to(INDEX) * y_n + q1 * y_q
        x_start = n0.to(INDEX) * x_n + x_tap + q1 * (STRIDE[2] * x_w)
        pixels = (i_n < size_n - n0) & fresh  # [BLOCK_K]
        p1 = p0
        o1 = o0
        if RANK >= 2:
            p1, fresh = new_pixels(p0, i_p, size_p, BOX_P, BOXED)
            dy_start += p1 * y_p
            x_start += p1 * (STRIDE[1] * x_h)
            pixels = pixels & fresh
        if RANK >= 3:
            o1, fresh = new_pixels(o0, i_o, size_o, BOX_O, BOXED)
            dy_start += o1 * y_o
            x_start += o1 * (STRIDE[0] * x_d)
            pixels = pixels & fresh
        x_pixels = pixels
        if BOUNDS == "range":
            x_pixels = x_pixels & inside((q0 + i_q).to(INDEX) * STRIDE[2] + w_shift, unpack(sizes.w))
            if RANK >= 2:
                x_pixels = x_pixels & inside((p0 + i_p).to(INDEX) * STRIDE[1] + h_shift, unpack(sizes.h))
            if RANK >= 3:
                x_pixels = x_pixels & inside((o0 + i_o).to(INDEX) * STRIDE[0] + d_shift, unpack(sizes.d))
        dy_mask = pixels[None, :]
        if not EVEN_M:
            dy_mask = dy_mask & filters_mask[:, None]
        dy = load_inside(dy_ptrs, dy_start, dy_mask, dy_kept, step < steps, CLAMP)
        if BOXED:
            at = (tl.cast(d_shift, tl.int32), tl.cast(h_shift, tl.int32), tl.cast(w_shift, tl.int32))
            channel = group * channels + pid_n * BLOCK_N
            pixels_x = load_pixels(x, n0, at, channel, x_w.to(tl.int32), (o1, p1, q1), STRIDE, RANK)
            x_tile = pixels_x.reshape(BLOCK_K, BLOCK_N)
        else:
            x_mask = x_pixels[:, None]
            if not EVEN_N:
                x_mask = x_mask & columns[None, :]
            x_tile = load_inside(x_ptrs, x_start, x_mask, x_kept, step < steps, CLAMP)
        if UPCAST:  # the interpreter multiplies raw bfloat16 bits
            dy = dy.to(tl.float32)
            x_tile = x_tile.to(tl.float32)
        acc = tl.dot(dy, x_tile, acc, input_precision=PRECISION, out_dtype=ACC)
        n0, o0, p0, q0 = next_box(n0, o0, p0, q0, (size_o, size_p, size_q), STEP, RANK)

    mask = filters_mask[:, None] & columns[None, :]
    if not PATCH:
        t += tap_t
        r += tap_r
        s += tap_s
    store_filters(
        acc,
        dw_ptr,
        dw_strides,
        DW_ALIGN,
        DW_UNIT,
        (split, n_groups, group, filters, channels),
        offs_m,
        c,
        (t, r, s),
        mask,
        KERNEL,
        INDEX,
        SPLIT,
        UPCAST,
    )
