"""Gradients of the deformable convolution, without atomics: each result is summed by one program, in a fixed order.

The gradient of a sample is the product of the output's gradient and the weights of its tap. `columns_kernel` makes it, reduces
it over channels to the gradients of offset and mask, and writes it for the input's (`kernels.deform_scatter`). The weight's
gradient samples again.
"""

import triton
import triton.language as tl

from tritonconv.kernels.deform import corners_of, factor_of, place_of, places_from, sampled, shares_of
from tritonconv.kernels.epilogue import rounded
from tritonconv.kernels.index import inside_of, load_inside, pixels_of, strides, tile_of, unpack, wide


@triton.jit
def columns_kernel(
    dy_ptr,
    x_ptr,
    offset_ptr,
    mask_ptr,
    w_ptr,
    doffset_ptr,  # contiguous [N, D * R * S * 2, P, Q]
    dmask_ptr,  # contiguous [N, D * R * S, P, Q]
    columns_ptr,  # [N, P, Q, R, S, C] in the accumulator's type
    dy_strides,
    x_strides,
    offset_strides,
    mask_strides,
    w_strides,
    sizes,  # Deformed
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    DY_ALIGN: tl.constexpr,
    DY_UNIT: tl.constexpr,
    X_ALIGN: tl.constexpr,
    X_UNIT: tl.constexpr,
    OFFSET_ALIGN: tl.constexpr,
    OFFSET_UNIT: tl.constexpr,
    MASK_ALIGN: tl.constexpr,
    MASK_UNIT: tl.constexpr,
    W_ALIGN: tl.constexpr,
    W_UNIT: tl.constexpr,
    C_ALIGN: tl.constexpr,
    K_ALIGN: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN_N: tl.constexpr,
    HAS_MASK: tl.constexpr,
    OFFSETS: tl.constexpr,  # the gradients of offset and mask are asked for
    COLUMNS: tl.constexpr,  # the gradients of the samples are
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    CLAMP: tl.constexpr = False,
):
    """columns[n, p, q, r, s, c] = sum over k of dy[n, k, p, q] * w[k, c, r, s], and of it, summed over the channels c of an
    offset group d: dmask[n, d, r, s, p, q], times the sample; doffset, times the sample's slope and the mask.

    GEMM axes: m = (n, p, q), n = c, k = the filters of c's weight group. One program has BLOCK_M places: one tap of one offset
    group, all of whose channels it walks.
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1]
    y_n, y_k, _, y_p, y_q = strides(dy_strides, DY_ALIGN, DY_UNIT, tl.int32)
    x_n, x_c, _, x_h, x_w = strides(x_strides, X_ALIGN, X_UNIT, tl.int32)
    w_k, w_c, _, w_r, w_s = strides(w_strides, W_ALIGN, W_UNIT, tl.int32)
    per_group = unpack(sizes.c) * C_ALIGN
    filters = unpack(sizes.k) * K_ALIGN
    run = unpack(sizes.run) * C_ALIGN
    shared = unpack(sizes.shared) * C_ALIGN
    size = (unpack(sizes.h), unpack(sizes.w))
    size_p = unpack(sizes.p)
    size_q = unpack(sizes.q)
    # all taps of GROUP_M tiles run together, so that dy and x stay in L2
    pid_m, tap, d = tile_of(tl.program_id(0), unpack(sizes.tiles), TAPS, GROUP_M)
    image, n, _, p, q = pixels_of(pid_m, 1, size_p, size_q, BLOCK_M, 2, tl.int32)
    rows = n < unpack(sizes.n) - image  # [BLOCK_M]
    n = tl.where(rows, n, 0)
    r = tap // KERNEL[1]
    s = tap % KERNEL[1]
    channel = d * TAPS + tap
    offs_n = tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    dy_base = dy_ptr + image * wide(dy_strides.outer, DY_ALIGN, DY_UNIT == 0)
    dy_place = (n * y_n + p * y_p + q * y_q)[:, None] + offs_k[None, :] * y_k
    dy_kept = (dy_base, dy_place, ((offs_k % K_ALIGN) * y_k)[None, :])
    w_place = offs_k[:, None] * w_k + offs_n[None, :] * w_c
    w_kept = (w_ptr, w_place, ((offs_k % K_ALIGN)[:, None] * w_k + (offs_n % C_ALIGN)[None, :] * w_c))
    if OFFSETS:
        offset_ptrs, o_c = places_from(offset_ptr, offset_strides, OFFSET_ALIGN, OFFSET_UNIT, image, n, p, q)
        start = (p * STRIDE[0] - unpack(sizes.low_h) + r * DILATION[0], q * STRIDE[1] - unpack(sizes.low_w) + s * DILATION[1])
        low_h, low_w, share_h, share_w, live = place_of(offset_ptrs, o_c, channel, rows, start, size, ACC, False)
        offsets, masks = corners_of(low_h, low_w, live, size, n * x_n, x_h, x_w)
        x_base = x_ptr + image * wide(x_strides.outer, X_ALIGN, X_UNIT == 0)
        inside_x = inside_of(offs_n, C_ALIGN, (1, 1, 1), True, x_c, 0)
        sum_00 = tl.zeros((BLOCK_M,), ACC)
        sum_01 = tl.zeros((BLOCK_M,), ACC)
        sum_10 = tl.zeros((BLOCK_M,), ACC)
        sum_11 = tl.zeros((BLOCK_M,), ACC)
    # rows are pixels in order, so a tile's columns lie one behind another
    width = unpack(sizes.groups) * shared * TAPS
    line = columns_ptr + pid_m.to(tl.int64) * BLOCK_M * width + tap * (width // TAPS)
    line_place = (tl.arange(0, BLOCK_M) * width)[:, None] + offs_n[None, :]

    blocks = tl.cdiv(run, BLOCK_N)
    for block in range(0, shared // run * blocks):
        c = block % blocks * BLOCK_N  # of the run
        first = d * shared + block // blocks * run + c  # of all channels
        group = first // per_group
        left = offs_n < run - c
        acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
        w_tap = group * filters * w_k + (first - group * per_group) * w_c + r * w_r + s * w_s
        for k in range(0, filters, BLOCK_K):
            exists = offs_k < filters - k
            dy_mask = rows[:, None]
            w_mask = left[None, :]
            if not EVEN_K:
                dy_mask = dy_mask & exists[None, :]
                w_mask = w_mask & exists[:, None]
            dy = load_inside(dy_base + dy_place, (group * filters + k) * y_k, dy_mask, dy_kept, True, CLAMP)
            w = load_inside(w_ptr + w_place, w_tap + k * w_k, w_mask, w_kept, True, CLAMP)
            if UPCAST:  # the interpreter multiplies raw bfloat16 bits
                dy = dy.to(tl.float32)
                w = w.to(tl.float32)
            acc = tl.dot(dy, w, acc, input_precision=PRECISION, out_dtype=ACC)
        if COLUMNS:
            tl.store(line + first + line_place, acc, mask=rows[:, None] & left[None, :])
        if OFFSETS:
            x_first = x_base + first * x_c
            columns = offs_n * x_c
            sum_00 += against(acc, x_first, offsets[0], masks[0], columns, inside_x, left, EVEN_N, CLAMP)
            sum_01 += against(acc, x_first, offsets[1], masks[1], columns, inside_x, left, EVEN_N, CLAMP)
            sum_10 += against(acc, x_first, offsets[2], masks[2], columns, inside_x, left, EVEN_N, CLAMP)
            sum_11 += against(acc, x_first, offsets[3], masks[3], columns, inside_x, left, EVEN_N, CLAMP)

    if OFFSETS:
        plane = size_p * size_q
        pixel = p * size_q + q
        by_h = (1.0 - share_w) * (sum_10 - sum_00) + share_w * (sum_11 - sum_01)
        by_w = (1.0 - share_h) * (sum_01 - sum_00) + share_h * (sum_11 - sum_10)
        by_h += share_h - share_h  # NaN where the place is none, whichever coordinate is
        by_w += share_w - share_w
        channels = unpack(sizes.groups) * TAPS  # of the mask
        if HAS_MASK:
            mask_ptrs, m_c = places_from(mask_ptr, mask_strides, MASK_ALIGN, MASK_UNIT, image, n, p, q)
            factor = factor_of(mask_ptrs, m_c, channel, rows, True, ACC)
            by_h *= factor
            by_w *= factor
            w00, w01, w10, w11 = shares_of(share_h, share_w, 1.0)
            made = w00 * sum_00 + w01 * sum_01 + w10 * sum_10 + w11 * sum_11
            out = dmask_ptr + ((image + n) * channels + channel) * plane + pixel
            tl.store(out, rounded(made, dmask_ptr.dtype.element_ty, UPCAST), mask=rows)
        out = doffset_ptr + 2 * ((image + n) * channels + channel) * plane + pixel
        tl.store(out, rounded(by_h, doffset_ptr.dtype.element_ty, UPCAST), mask=rows)
        tl.store(out + plane, rounded(by_w, doffset_ptr.dtype.element_ty, UPCAST), mask=rows)


@triton.jit
def against(
    acc,
    x_base,
    offset,  # [BLOCK_M]
    mask,  # [BLOCK_M]
    columns,  # [BLOCK_N]
    kept,
    exists,
    EVEN: tl.constexpr,
    CLAMP: tl.constexpr,
):
    """[BLOCK_M] sum over channels of acc times one of the four pixels around each place."""
    mask = mask[:, None]
    if not EVEN:
        mask = mask & exists[None, :]
    place = offset[:, None] + columns[None, :]
    value = load_inside(x_base + place, 0, mask, (x_base, place, offset[:, None] + kept[None, :]), True, CLAMP)
    return tl.sum(tl.where(mask, acc * value.to(acc.dtype), 0.0), 1)


@triton.jit
def weights_kernel(
    dy_ptr,
    x_ptr,
    offset_ptr,
    mask_ptr,
    dw_ptr,  # dw, or with SPLIT the workspace [splits, K, R, S, C / G] in the accumulator's type
    dy_strides,
    x_strides,
    offset_strides,
    mask_strides,
    dw_strides,  # Strides of dw [K, C / G, R, S]
    sizes,  # Deformed; tiles = trips of one split
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    DY_ALIGN: tl.constexpr,
    DY_UNIT: tl.constexpr,
    X_ALIGN: tl.constexpr,
    X_UNIT: tl.constexpr,
    OFFSET_ALIGN: tl.constexpr,
    OFFSET_UNIT: tl.constexpr,
    MASK_ALIGN: tl.constexpr,
    MASK_UNIT: tl.constexpr,
    DW_ALIGN: tl.constexpr,
    DW_UNIT: tl.constexpr,
    C_ALIGN: tl.constexpr,
    K_ALIGN: tl.constexpr,
    EVEN_M: tl.constexpr,
    EVEN_N: tl.constexpr,
    HAS_MASK: tl.constexpr,
    SPLIT: tl.constexpr,  # whether partial sums go to a workspace
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CLAMP: tl.constexpr = False,
):
    """dw[k, c, r, s] = sum over n, p, q of dy[n, k, p, q] * the sample of c at tap (r, s) of pixel (n, p, q)

    GEMM axes: m = k, n = the channels of a run, k = (n, p, q). One program has one tap and one share of the pixels.
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1]
    y_n, y_k, _, y_p, y_q = strides(dy_strides, DY_ALIGN, DY_UNIT, tl.int32)
    x_n, x_c, _, x_h, x_w = strides(x_strides, X_ALIGN, X_UNIT, tl.int32)
    per_group = unpack(sizes.c) * C_ALIGN
    filters = unpack(sizes.k) * K_ALIGN
    run = unpack(sizes.run) * C_ALIGN
    size = (unpack(sizes.h), unpack(sizes.w))
    batch = unpack(sizes.n)
    channels = unpack(sizes.groups) * unpack(sizes.shared) * C_ALIGN
    # program -> (m tile, n tile, tap, run, split), m fastest: neighbours share the samples
    tiles_m = tl.cdiv(filters, BLOCK_M)
    tiles_n = tl.cdiv(run, BLOCK_N)
    pid = tl.program_id(0)
    pid_m = pid % tiles_m
    pid = pid // tiles_m
    c = pid % tiles_n * BLOCK_N  # of the run
    pid = pid // tiles_n
    tap = pid % TAPS
    pid = pid // TAPS
    first = pid % (channels // run) * run + c  # of all channels
    split = pid // (channels // run)
    group = first // per_group
    r = tap // KERNEL[1]
    s = tap % KERNEL[1]
    channel = first // (unpack(sizes.shared) * C_ALIGN) * TAPS + tap
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    exists = offs_m < filters
    left = offs_n < run - c
    inside_x = inside_of(offs_n, C_ALIGN, (1, 1, 1), True, x_c, 0)
    k_place = (offs_m * y_k)[:, None]
    k_inside = ((offs_m % K_ALIGN) * y_k)[:, None]

    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for step in range(0, unpack(sizes.tiles)):
        image, n, _no_depth, p, q = pixels_of(
            split * unpack(sizes.tiles) + step, 1, unpack(sizes.p), unpack(sizes.q), BLOCK_K, 2, tl.int32
        )
        rows = n < batch - image  # [BLOCK_K]
        n = tl.where(rows, n, 0)
        image = tl.minimum(image, batch - 1)  # of a trip behind the last pixel
        offset_ptrs, o_c = places_from(offset_ptr, offset_strides, OFFSET_ALIGN, OFFSET_UNIT, image, n, p, q)
        start = (p * STRIDE[0] - unpack(sizes.low_h) + r * DILATION[0], q * STRIDE[1] - unpack(sizes.low_w) + s * DILATION[1])
        low_h, low_w, share_h, share_w, live = place_of(offset_ptrs, o_c, channel, rows, start, size, ACC, True)
        offsets, masks = corners_of(low_h, low_w, live, size, n * x_n, x_h, x_w)
        factor = tl.where(rows, 1.0, 0.0).to(ACC)
        if HAS_MASK:
            mask_ptrs, m_c = places_from(mask_ptr, mask_strides, MASK_ALIGN, MASK_UNIT, image, n, p, q)
            factor = factor_of(mask_ptrs, m_c, channel, rows, True, ACC)
        weights = shares_of(share_h, share_w, factor)
        x_base = x_ptr + image * wide(x_strides.outer, X_ALIGN, X_UNIT == 0) + first * x_c
        value = sampled(x_base, offsets, masks, weights, offs_n * x_c, inside_x, left, EVEN_N, CLAMP)
        dy_base = dy_ptr + image * wide(dy_strides.outer, DY_ALIGN, DY_UNIT == 0) + group * filters * y_k
        pixel = (n * y_n + p * y_p + q * y_q)[None, :]
        dy_mask = rows[None, :]
        if not EVEN_M:
            dy_mask = dy_mask & exists[:, None]
        kept = (dy_base, k_place + pixel, k_inside + pixel)
        dy = load_inside(dy_base + (k_place + pixel), 0, dy_mask, kept, True, CLAMP)
        value = rounded(value, dy.dtype, UPCAST)
        if UPCAST:  # the interpreter multiplies raw bfloat16 bits
            value = value.to(tl.float32)
            dy = dy.to(tl.float32)
        acc = tl.dot(dy, value, acc, input_precision=PRECISION, out_dtype=ACC)

    mask = exists[:, None] & left[None, :]
    c = first - group * per_group + offs_n
    if SPLIT:
        row = split.to(tl.int64) * (channels // per_group * filters) + group * filters
        base = dw_ptr + row * (per_group * TAPS)
        tl.store(base + ((offs_m * (per_group * TAPS))[:, None] + (tap * per_group + c)[None, :]), acc, mask=mask)
    else:
        w_k, w_c, _, w_r, w_s = strides(dw_strides, DW_ALIGN, DW_UNIT, tl.int32)
        base = dw_ptr + group * filters * wide(dw_strides.outer, DW_ALIGN, DW_UNIT == 0) + (r * w_r + s * w_s)
        dw = rounded(acc, dw_ptr.dtype.element_ty, UPCAST)
        tl.store(base + ((offs_m * w_k)[:, None] + (c * w_c)[None, :]), dw, mask=mask)
