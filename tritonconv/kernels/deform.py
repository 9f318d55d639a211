"""Deformable convolution, forward: pixels are gathered at shifted places and go straight into the product."""

from typing import NamedTuple

import triton
import triton.language as tl

from tritonconv.kernels.epilogue import TRANSPOSED, add_bias, rounded, store_transposed
from tritonconv.kernels.fprop import placed
from tritonconv.kernels.index import inside_of, load_inside, pixels_of, strides, tile_of, unpack, wide

#: Larger offsets count as this: it is beyond every image, and a coordinate plus it fits 32 bits.
FAR = tl.constexpr(1 << 30)


class Deformed(NamedTuple):
    """Sizes of a call, packed. c, run and shared are divided by C_ALIGN first, k by K_ALIGN."""

    n: int
    h: int
    w: int
    p: int
    q: int
    c: int  # channels of a weight group
    k: int  # filters of a weight group
    run: int  # channels that one weight group and one offset group have in common: both are whole numbers of runs
    shared: int  # channels of an offset group
    groups: int  # offset groups
    low_h: int
    low_w: int
    b: int  # stride of the bias
    tiles: int  # m tiles (forward, columns) or trips of one split (weight gradient)


@triton.jit
def places_from(
    ptr,
    packed,  # Strides of offset or mask [N, channels, P, Q]
    ALIGN: tl.constexpr,
    UNIT: tl.constexpr,
    image,
    n,  # [ROWS] relative to image, as p and q
    p,
    q,
):
    """(pointers to channel 0 of each row, step from channel to channel)"""
    s_n, s_c, _, s_p, s_q = strides(packed, ALIGN, UNIT, tl.int32)
    return ptr + image * wide(packed.outer, ALIGN, UNIT == 0) + (n * s_n + p * s_p + q * s_q), s_c


@triton.jit
def coordinate(start, offset):
    """(low, share) of start + offset: the pixel at or before it, and how far the place lies behind that, from 0 to 1.

    `start` is an integer and only the offset is split, so the share is exact whatever the size of the image. A NaN gives pixel
    0 and a share of NaN; an offset beyond all images a pixel outside.
    """
    number = offset == offset
    whole = tl.floor(tl.minimum(tl.maximum(tl.where(number, offset, 0.0), -1.0 * FAR), 1.0 * FAR))
    return tl.where(number, start + whole.to(tl.int32), 0), offset - whole


@triton.jit
def reaches(low, share, size, BORDER: tl.constexpr):
    """Whether a coordinate is above -1 and below `size`, so that one of its two pixels exists. BORDER: -1 itself is outside."""
    if BORDER:
        return (low < size) & ((low >= 0) | ((low == -1) & (share != 0)))
    else:
        return (low >= -1) & (low < size)


@triton.jit
def place_of(
    offset_ptrs,  # [ROWS] pointers at the row's (offset group 0, tap 0) along h
    offset_step,  # from channel to channel of the offsets
    channel,  # offset group * taps + tap
    rows,  # [ROWS]
    start,  # (h, w) [ROWS] of the tap without offset
    size,  # (h, w)
    COORDINATE: tl.constexpr,
    BORDER: tl.constexpr,
):
    """(low_h, low_w, share_h, share_w, live) of a tap of each row; `live` says whether its place touches the image. A share of
    a place that is not live is 0, so that its weights are numbers."""
    at = offset_ptrs + 2 * channel * offset_step
    low_h, share_h = coordinate(start[0], tl.load(at, mask=rows, other=0.0).to(COORDINATE))
    low_w, share_w = coordinate(start[1], tl.load(at + offset_step, mask=rows, other=0.0).to(COORDINATE))
    live = rows & reaches(low_h, share_h, size[0], BORDER) & reaches(low_w, share_w, size[1], BORDER)
    return low_h, low_w, tl.where(live, share_h, 0.0), tl.where(live, share_w, 0.0), live


@triton.jit
def corners_of(low_h, low_w, live, size, row, x_h, x_w):
    """(offsets, masks) of the four pixels around a place, in the order (0, 0), (0, 1), (1, 0), (1, 1). `row` is added to each
    offset. Offsets of pixels that do not exist lie in the image too."""
    above = live & (low_h >= 0)
    below = live & (low_h < size[0] - 1)
    left = low_w >= 0
    right = low_w < size[1] - 1
    h0 = row + tl.minimum(tl.maximum(low_h, 0), size[0] - 1) * x_h
    h1 = row + tl.minimum(tl.maximum(low_h + 1, 0), size[0] - 1) * x_h
    w0 = tl.minimum(tl.maximum(low_w, 0), size[1] - 1) * x_w
    w1 = tl.minimum(tl.maximum(low_w + 1, 0), size[1] - 1) * x_w
    return (h0 + w0, h0 + w1, h1 + w0, h1 + w1), (above & left, above & right, below & left, below & right)


@triton.jit
def shares_of(share_h, share_w, factor):
    """The weights of the four corners, times `factor`."""
    top = (1.0 - share_h) * factor
    bottom = share_h * factor
    return top * (1.0 - share_w), top * share_w, bottom * (1.0 - share_w), bottom * share_w


@triton.jit
def factor_of(mask_ptrs, mask_step, channel, rows, HAS_MASK: tl.constexpr, COORDINATE: tl.constexpr):
    """[ROWS] the modulation of a tap, 1 without a mask."""
    if HAS_MASK:
        return tl.load(mask_ptrs + channel * mask_step, mask=rows, other=0.0).to(COORDINATE)
    else:
        return tl.where(rows, 1.0, 0.0).to(COORDINATE)


@triton.jit
def sampled(
    x_base,
    offsets,  # 4 x [ROWS]
    masks,  # 4 x [ROWS]
    weights,  # 4 x [ROWS]
    columns,  # [COLUMNS] offsets of the channels
    kept,  # [COLUMNS] offsets inside of the tensor
    exists,  # [COLUMNS] whether the channel exists, unused with EVEN
    EVEN: tl.constexpr,
    CLAMP: tl.constexpr,
):
    """[ROWS, COLUMNS] values between the pixels, in the weights' precision."""
    value = tl.zeros((offsets[0].shape[0], columns.shape[0]), weights[0].dtype)
    for i in tl.static_range(4):
        mask = masks[i][:, None]
        if not EVEN:
            mask = mask & exists[None, :]
        place = offsets[i][:, None] + columns[None, :]
        # a masked row has an offset inside of the image already, and so its channels need no address of their own
        corner = load_inside(x_base + place, 0, mask, (x_base, place, offsets[i][:, None] + kept[None, :]), True, CLAMP)
        value += weights[i][:, None] * corner.to(weights[i].dtype)
    return value


@triton.jit
def deform_kernel(
    x_ptr,
    offset_ptr,
    mask_ptr,
    w_ptr,
    b_ptr,
    y_ptr,
    x_strides,  # Strides of x [N, C, H, W]
    offset_strides,  # Strides of offset [N, D * R * S * 2, P, Q]
    mask_strides,  # Strides of mask [N, D * R * S, P, Q]
    w_strides,  # Strides of w [K, C / G, R, S]
    y_strides,  # Strides of y [N, K, P, Q]
    sizes,  # Deformed
    KERNEL: tl.constexpr,  # (R, S)
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    X_ALIGN: tl.constexpr,
    X_UNIT: tl.constexpr,
    OFFSET_ALIGN: tl.constexpr,
    OFFSET_UNIT: tl.constexpr,
    MASK_ALIGN: tl.constexpr,
    MASK_UNIT: tl.constexpr,
    W_ALIGN: tl.constexpr,
    W_UNIT: tl.constexpr,
    Y_ALIGN: tl.constexpr,
    Y_UNIT: tl.constexpr,
    C_ALIGN: tl.constexpr,
    K_ALIGN: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN_N: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACC: tl.constexpr,  # also the type of coordinates
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    CLAMP: tl.constexpr = False,  # masked addresses lie inside of the tensors (`kernels.index.load_inside`)
):
    """y[n, k, p, q] = b[k] + sum over c, r, s of w[k, c, r, s] * mask[n, d, r, s, p, q] * x[n, c] at the place
    (p*s_h - low_h + r*d_h, q*s_w - low_w + s*d_w) + offset[n, d, r, s, :, p, q], with d the offset group of c

    GEMM axes: m = (n, p, q), n = k, k = (run, r, s, c). One program writes one [BLOCK_M, BLOCK_N] tile of y. The places of a
    tap are found once for all channels of a run.
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1]
    INDEX: tl.constexpr = tl.int32  # what 32 bits do not reach from a program's first image is refused
    x_n, x_c, _, x_h, x_w = strides(x_strides, X_ALIGN, X_UNIT, INDEX)
    w_k, w_c, _, w_r, w_s = strides(w_strides, W_ALIGN, W_UNIT, INDEX)
    channels = unpack(sizes.c) * C_ALIGN
    filters = unpack(sizes.k) * K_ALIGN
    run = unpack(sizes.run) * C_ALIGN
    size = (unpack(sizes.h), unpack(sizes.w))
    pid_m, pid_n, group = tile_of(tl.program_id(0), unpack(sizes.tiles), tl.cdiv(filters, BLOCK_N), GROUP_M)
    image, n, _, p, q = pixels_of(pid_m, 1, unpack(sizes.p), unpack(sizes.q), BLOCK_M, 2, INDEX)
    rows = n < unpack(sizes.n) - image  # [BLOCK_M]
    n = tl.where(rows, n, 0)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = offs_n < filters  # [BLOCK_N]
    offs_k = tl.arange(0, BLOCK_K)

    x_base = x_ptr + image * wide(x_strides.outer, X_ALIGN, X_UNIT == 0)
    x_base += group * channels * wide(x_strides.channel, X_ALIGN, X_UNIT == 1)
    w_base = w_ptr + group * filters * wide(w_strides.outer, W_ALIGN, W_UNIT == 0)
    offset_ptrs, o_c = places_from(offset_ptr, offset_strides, OFFSET_ALIGN, OFFSET_UNIT, image, n, p, q)
    mask_ptrs = offset_ptrs
    m_c = o_c
    if HAS_MASK:
        mask_ptrs, m_c = places_from(mask_ptr, mask_strides, MASK_ALIGN, MASK_UNIT, image, n, p, q)
    h0 = p * STRIDE[0] - unpack(sizes.low_h)
    w0 = q * STRIDE[1] - unpack(sizes.low_w)
    inside_x = inside_of(offs_k, C_ALIGN, (1, 1, 1), True, x_c, 0)
    w_place = offs_n[None, :] * w_k + offs_k[:, None] * w_c
    w_kept = (w_base, w_place, inside_of(offs_k, C_ALIGN, (1, 1, 1), True, w_c, 0)[:, None])

    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for step in range(0, channels // run * TAPS):
        first = step // TAPS * run  # channel of the group
        tap = step % TAPS
        r = tap // KERNEL[1]
        s = tap % KERNEL[1]
        channel = (group * channels + first) // (unpack(sizes.shared) * C_ALIGN) * TAPS + tap
        start = (h0 + r * DILATION[0], w0 + s * DILATION[1])
        low_h, low_w, share_h, share_w, live = place_of(offset_ptrs, o_c, channel, rows, start, size, ACC, True)
        offsets, masks = corners_of(low_h, low_w, live, size, n * x_n, x_h, x_w)
        weights = shares_of(share_h, share_w, factor_of(mask_ptrs, m_c, channel, rows, HAS_MASK, ACC))
        w_tap = first * w_c + r * w_r + s * w_s
        for c in range(0, run, BLOCK_K):
            left = offs_k < run - c
            value = sampled(x_base + (first + c) * x_c, offsets, masks, weights, offs_k * x_c, inside_x, left, EVEN_K, CLAMP)
            if EVEN_K and EVEN_N:
                w = tl.load(w_base + (w_place + (w_tap + c * w_c)))
            else:
                w_mask = columns[None, :]
                if not EVEN_K:
                    w_mask = w_mask & left[:, None]
                w = load_inside(w_base + w_place, w_tap + c * w_c, w_mask, w_kept, True, CLAMP)
            value = rounded(value, w.dtype, UPCAST)
            if UPCAST:  # the interpreter multiplies raw bfloat16 bits
                value = value.to(tl.float32)
                w = w.to(tl.float32)
            acc = tl.dot(value, w, acc, input_precision=PRECISION, out_dtype=ACC)

    acc = add_bias(acc, b_ptr, (group * filters + offs_n) * unpack(sizes.b), columns, HAS_BIAS)
    base, row, step_k = placed(y_ptr, y_strides, Y_ALIGN, Y_UNIT, image, group * filters, n, (p, p, q), 2, INDEX)
    y = rounded(acc, y_ptr.dtype.element_ty, UPCAST)
    if Y_UNIT == 1 or not TRANSPOSED:
        tl.store(base + (row[:, None] + offs_n[None, :] * step_k), y, mask=rows[:, None] & columns[None, :])
    else:
        store_transposed(base + (row[:, None] + offs_n[None, :] * step_k), y, rows[:, None] & columns[None, :])
