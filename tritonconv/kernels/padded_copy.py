"""x with its padding written out, for plans of families that pad with zeros."""

import triton
import triton.language as tl

from tritonconv.kernels.epilogue import TRANSPOSED, load_transposed, store_transposed
from tritonconv.kernels.index import pixels_of, unpack
from tritonconv.kernels.modes import mapped
from tritonconv.kernels.reduce import offsets_of


@triton.jit
def padded_copy_kernel(
    x_ptr,
    padded_ptr,
    x_strides,  # Strides of x [N, C, D, H, W]
    padded_strides,  # Strides of the result [N, C, D', H', W']
    results,  # reduce.Results, of the result
    size,  # (d, h, w) of x, packed
    low,  # (d, h, w) padding that is written out before the first pixel, packed
    X_ALIGN: tl.constexpr,
    X_UNIT: tl.constexpr,
    P_ALIGN: tl.constexpr,
    P_UNIT: tl.constexpr,
    C_ALIGN: tl.constexpr,
    MODE_D: tl.constexpr,  # what stands in the padding of an axis; "zeros" for one whose padding is not written out
    MODE_H: tl.constexpr,
    MODE_W: tl.constexpr,
    RANK: tl.constexpr,
    INDEX: tl.constexpr,  # type of the numbers of an image's pixels
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """padded[n, c, d', h', w'] = x[n, c, the pixel that stands at d' - low_d, that at h' - low_h, that at w' - low_w]

    One program writes BLOCK_M pixels of BLOCK_N channels.
    """
    channels = unpack(results.c) * C_ALIGN
    tiles_n = tl.cdiv(channels, BLOCK_N)
    image, n, d, h, w = pixels_of(
        tl.program_id(0) // tiles_n, unpack(results.d), unpack(results.h), unpack(results.w), BLOCK_M, RANK, INDEX
    )
    c = (tl.program_id(0) % tiles_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (n < unpack(results.n) - image)[:, None] & (c < channels)[None, :]
    pixel = (
        mapped(d - unpack(low[0]), unpack(size[0]), MODE_D),
        mapped(h - unpack(low[1]), unpack(size[1]), MODE_H),
        mapped(w - unpack(low[2]), unpack(size[2]), MODE_W),
    )
    place = x_ptr + offsets_of(x_strides, X_ALIGN, X_UNIT, image, n, pixel, c, RANK)
    if X_UNIT == 1 or not TRANSPOSED:
        x = tl.load(place, mask=mask, other=0.0)
    else:
        x = load_transposed(place, mask)
    place = padded_ptr + offsets_of(padded_strides, P_ALIGN, P_UNIT, image, n, (d, h, w), c, RANK)
    if P_UNIT == 1 or not TRANSPOSED:
        tl.store(place, x, mask=mask)
    else:
        store_transposed(place, x, mask)
