"""The end of an input gradient under padding modes: each pixel's images in the padding are added to it."""

import triton
import triton.language as tl

from tritonconv.kernels.epilogue import TRANSPOSED, add_bias, load_transposed, rounded, store_transposed
from tritonconv.kernels.index import pixels_of, unpack
from tritonconv.kernels.modes import image_of, images_of
from tritonconv.kernels.reduce import offsets_of


@triton.jit
def padded_fold_kernel(
    padded_ptr,  # the gradient of x with its padding written out
    b_ptr,
    dx_ptr,
    padded_strides,  # Strides of it [N, C, D', H', W']
    dx_strides,  # Strides of dx [N, C, D, H, W]
    results,  # reduce.Results, of dx
    low,  # (d, h, w) padding that was written out, packed
    high,
    P_ALIGN: tl.constexpr,
    P_UNIT: tl.constexpr,
    DX_ALIGN: tl.constexpr,
    DX_UNIT: tl.constexpr,
    C_ALIGN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    MODE_D: tl.constexpr,  # what stands in the padding of an axis
    MODE_H: tl.constexpr,
    MODE_W: tl.constexpr,
    RANK: tl.constexpr,
    ACC: tl.constexpr,  # type of the sums
    INDEX: tl.constexpr,  # type of the numbers of an image's pixels
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """dx[n, c, d, h, w] = b[c] + the sum of `padded` over all places that hold pixel (d, h, w)

    A pixel is added first, then its images in the padding, those along w fastest, so every run gives the same bits. Pixels
    without images read one value. One program writes BLOCK_M pixels of BLOCK_N channels.
    """
    channels = unpack(results.c) * C_ALIGN
    size_d, size_h, size_w = unpack(results.d), unpack(results.h), unpack(results.w)
    low_d, low_h, low_w = unpack(low[0]), unpack(low[1]), unpack(low[2])
    high_d, high_h, high_w = unpack(high[0]), unpack(high[1]), unpack(high[2])
    tiles_n = tl.cdiv(channels, BLOCK_N)
    image, n, d, h, w = pixels_of(tl.program_id(0) // tiles_n, size_d, size_h, size_w, BLOCK_M, RANK, INDEX)
    c = (tl.program_id(0) % tiles_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = c < channels
    rows = n < unpack(results.n) - image
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for e_d in range(images_of(low_d, high_d, MODE_D)):
        at_d, there_d = image_of(d, e_d, size_d, low_d, high_d, MODE_D)
        for e_h in range(images_of(low_h, high_h, MODE_H)):
            at_h, there_h = image_of(h, e_h, size_h, low_h, high_h, MODE_H)
            for e_w in range(images_of(low_w, high_w, MODE_W)):
                at_w, there_w = image_of(w, e_w, size_w, low_w, high_w, MODE_W)
                there = rows & there_d & there_h & there_w
                mask = there[:, None] & columns[None, :]
                at = (at_d + low_d, at_h + low_h, at_w + low_w)
                place = padded_ptr + offsets_of(padded_strides, P_ALIGN, P_UNIT, image, n, at, c, RANK)
                if P_UNIT == 1 or not TRANSPOSED:
                    acc += tl.load(place, mask=mask, other=0.0).to(ACC)
                else:
                    acc += load_transposed(place, mask).to(ACC)
    acc = add_bias(acc, b_ptr, c * unpack(results.b).to(tl.int64), columns, HAS_BIAS)
    place = dx_ptr + offsets_of(dx_strides, DX_ALIGN, DX_UNIT, image, n, (d, h, w), c, RANK)
    dx = rounded(acc, dx_ptr.dtype.element_ty, UPCAST)
    mask = rows[:, None] & columns[None, :]
    if DX_UNIT == 1 or not TRANSPOSED:
        tl.store(place, dx, mask=mask)
    else:
        store_transposed(place, dx, mask)
