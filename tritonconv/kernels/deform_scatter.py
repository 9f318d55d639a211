"""The input's gradient of the deformable convolution: gradients of samples, summed by the pixels that the samples are made of.

A sample's place is made of four pixels, so a pixel belongs to as many places as the offsets say. `targets_kernel` numbers the
pixels of each place, torch sorts the numbers and keeps equal ones in their order, and `scatter_kernel` sums each pixel's list.
"""

import triton
import triton.language as tl

from tritonconv.kernels.deform import corners_of, factor_of, place_of, places_from, shares_of
from tritonconv.kernels.epilogue import TRANSPOSED, rounded, store_transposed
from tritonconv.kernels.index import pixels_of, strides, unpack, wide


@triton.jit
def targets_kernel(
    offset_ptr,
    mask_ptr,
    targets_ptr,  # [D, R * S, 4, pixels] int32
    weights_ptr,  # likewise, in the accumulator's type
    offset_strides,
    mask_strides,
    sizes,  # Deformed
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    OFFSET_ALIGN: tl.constexpr,
    OFFSET_UNIT: tl.constexpr,
    MASK_ALIGN: tl.constexpr,
    MASK_UNIT: tl.constexpr,
    HAS_MASK: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The four pixels around each place, as numbers over [D, N, H, W], and the weights of the place in them, mask included. A
    pixel that does not exist, or counts nothing, is numbered D N H W. One program has BLOCK output pixels of one tap."""
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1]
    size = (unpack(sizes.h), unpack(sizes.w))
    size_p = unpack(sizes.p)
    size_q = unpack(sizes.q)
    batch = unpack(sizes.n)
    pixels = batch * size_p * size_q
    tiles = unpack(sizes.tiles)
    channel = tl.program_id(0) // tiles
    pid_m = tl.program_id(0) % tiles
    tap = channel % TAPS
    image, n, _, p, q = pixels_of(pid_m, 1, size_p, size_q, BLOCK, 2, tl.int32)
    rows = n < batch - image  # [BLOCK]
    n = tl.where(rows, n, 0)
    offset_ptrs, o_c = places_from(offset_ptr, offset_strides, OFFSET_ALIGN, OFFSET_UNIT, image, n, p, q)
    h = p * STRIDE[0] - unpack(sizes.low_h) + tap // KERNEL[1] * DILATION[0]
    w = q * STRIDE[1] - unpack(sizes.low_w) + tap % KERNEL[1] * DILATION[1]
    low_h, low_w, share_h, share_w, live = place_of(offset_ptrs, o_c, channel, rows, (h, w), size, ACC, True)
    factor = tl.full((BLOCK,), 1.0, ACC)
    if HAS_MASK:
        mask_ptrs, m_c = places_from(mask_ptr, mask_strides, MASK_ALIGN, MASK_UNIT, image, n, p, q)
        factor = factor_of(mask_ptrs, m_c, channel, rows, True, ACC)
    plane = size[0] * size[1]
    nowhere = unpack(sizes.groups) * batch * plane
    first = (channel // TAPS * batch + image.to(tl.int32) + n) * plane
    offsets, masks = corners_of(low_h, low_w, live, size, first, size[1], 1)
    shares = shares_of(share_h, share_w, 1.0)
    out = channel.to(tl.int64) * 4 * pixels + pid_m * BLOCK + tl.arange(0, BLOCK)
    for i in tl.static_range(4):
        counts = masks[i] & (shares[i] > 0.0)  # which a NaN is not
        tl.store(targets_ptr + out + i * pixels, tl.where(counts, offsets[i], nowhere), mask=rows)
        tl.store(weights_ptr + out + i * pixels, shares[i] * factor, mask=rows)


@triton.jit
def scatter_kernel(
    columns_ptr,  # [N, P, Q, R, S, C] in the accumulator's type
    order_ptr,  # int64: the entries of `targets_kernel` by number of the pixel, equal ones in their order
    bounds_ptr,  # [D N H W + 1] int32: where each pixel's entries begin
    weights_ptr,
    dx_ptr,
    dx_strides,  # Strides of dx [N, C, H, W]
    sizes,  # Deformed
    KERNEL: tl.constexpr,
    DX_ALIGN: tl.constexpr,
    DX_UNIT: tl.constexpr,
    C_ALIGN: tl.constexpr,
    EVEN_N: tl.constexpr,
    ACC: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """dx[n, c, h, w] = sum over the entries of pixel (n, h, w), in order, of their weight times their column's c

    One program has BLOCK_M pixels and BLOCK_N channels of one offset group, and as many trips as the longest of its lists.
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1]
    batch = unpack(sizes.n)
    height = unpack(sizes.h)
    width = unpack(sizes.w)
    pixels = batch * unpack(sizes.p) * unpack(sizes.q)
    shared = unpack(sizes.shared) * C_ALIGN
    channels = unpack(sizes.groups) * shared
    tiles_n = tl.cdiv(shared, BLOCK_N)
    pid_n = tl.program_id(0) % tiles_n
    pid_m = tl.program_id(0) // tiles_n
    tiles = unpack(sizes.tiles)
    d = pid_m // tiles
    pid_m = pid_m % tiles
    image, n, _, h, w = pixels_of(pid_m, 1, height, width, BLOCK_M, 2, tl.int32)
    rows = n < batch - image  # [BLOCK_M]
    c = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = c < shared
    c += d * shared
    at = d * (batch * height * width) + pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    begin = tl.load(bounds_ptr + at, mask=rows, other=0)
    count = tl.load(bounds_ptr + at + 1, mask=rows, other=0) - begin
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for i in range(0, tl.max(count, 0)):
        live = i < count
        entry = tl.load(order_ptr + begin + i, mask=live, other=0).to(tl.int32)
        weight = tl.load(weights_ptr + entry, mask=live, other=0.0)
        row = (entry % pixels).to(tl.int64) * TAPS + entry // pixels // 4 % TAPS
        mask = live[:, None]
        if not EVEN_N:
            mask = mask & columns[None, :]
        value = tl.load(columns_ptr + (row * channels)[:, None] + c[None, :], mask=mask, other=0.0)
        acc += tl.where(mask, weight[:, None] * value, 0.0)
    x_n, x_c, _, x_h, x_w = strides(dx_strides, DX_ALIGN, DX_UNIT, tl.int32)
    base = dx_ptr + image * wide(dx_strides.outer, DX_ALIGN, DX_UNIT == 0)
    place = (n * x_n + h * x_h + w * x_w)[:, None] + (c * x_c)[None, :]
    dx = rounded(acc, dx_ptr.dtype.element_ty, UPCAST)
    if DX_UNIT == 1 or not TRANSPOSED:
        tl.store(base + place, dx, mask=rows[:, None] & columns[None, :])
    else:
        store_transposed(base + place, dx, rows[:, None] & columns[None, :])
