"""2-D depthwise convolution on tensor cores: a channel's filter is a banded matrix that multiplies windows of pixels."""

from typing import NamedTuple

import triton
import triton.language as tl

from tritonconv.kernels.epilogue import finish, rounded
from tritonconv.kernels.index import inside, load_inside, strides, unpack


class Band(NamedTuple):
    """Sizes of a launch, packed. "in" is the tensor whose windows are read, "out" the one that is split into blocks: y,
    or dx for dgrad, dy for wgrad."""

    images: int
    in_h: int
    in_w: int  # in vectors of 8
    out_h: int
    out_w: int  # likewise
    low: int  # rows by which a window starts above its block
    lead: int  # columns by which it starts before its block, rounded up to a multiple of 8 and divided by 8
    tiles: int  # programs per channel
    b: int  # stride of the bias


@triton.constexpr_function
def pitch(S):
    """Elements of a row of the table: whole vectors of 8 that hold S taps moved by 1 to 8."""
    return (S - 1) // 8 * 8 + 16


@triton.jit
def table_kernel(
    w_ptr,
    table_ptr,  # [C, R, 8, pitch(S)]
    w_strides,  # Strides of w [C, 1, 1, R, S]
    KERNEL: tl.constexpr,  # (R, S)
    FLIP: tl.constexpr,  # dgrad: taps in reverse
    W_ALIGN: tl.constexpr,
    W_UNIT: tl.constexpr,
    CHUNKS: tl.constexpr,  # programs per channel
    BLOCK: tl.constexpr,
):
    """table[c, r, d, e] = w[c, 0, r, e + d - 8], 0 beyond the taps.

    A row of taps is stored in eight positions, so that 8 neighbouring elements of any column of the band are one aligned
    vector."""
    R: tl.constexpr = KERNEL[0]
    S: tl.constexpr = KERNEL[1]
    PITCH: tl.constexpr = pitch(S)
    w_c, _, _, w_r, w_s = strides(w_strides, W_ALIGN, W_UNIT, tl.int64)
    channel = (tl.program_id(0) // CHUNKS).to(tl.int64)
    offset = tl.program_id(0) % CHUNKS * BLOCK + tl.arange(0, BLOCK)
    r = offset // (8 * PITCH)
    s = offset % PITCH + offset // PITCH % 8 - 8
    exists = offset < R * 8 * PITCH
    taps = exists & inside(s, S)
    if FLIP:
        r = R - 1 - r
        s = S - 1 - s
    w = tl.load(w_ptr + channel * w_c + (r * w_r + s * w_s), mask=taps, other=0.0)
    tl.store(table_ptr + channel * (R * 8 * PITCH) + offset, w, mask=exists)


@triton.jit
def blocks_of(row, sizes, out_w, BOX: tl.constexpr):
    """(image, first row, first column, exists) of rows that count blocks of BOX outputs, images fastest."""
    images = unpack(sizes.images)
    blocks_p = tl.cdiv(unpack(sizes.out_h), BOX[0])
    blocks_q = tl.cdiv(out_w, BOX[1])
    block = row // images
    return row % images, block // blocks_q * BOX[0], block % blocks_q * BOX[1], block < blocks_p * blocks_q


@triton.jit
def band_kernel(
    x_ptr,
    table_ptr,  # as `table_kernel` makes it
    b_ptr,
    y_ptr,
    x_strides,  # Strides of the tensor whose windows are read: x, or dy for dgrad
    y_strides,  # Strides of the output: y, or dx
    sizes,  # Band
    KERNEL: tl.constexpr,  # (R, S)
    BOX: tl.constexpr,  # rows and columns of a block of outputs
    ROWS: tl.constexpr,  # rows of a window per trip
    GAP: tl.constexpr,  # columns by which a window starts early
    HAS_BIAS: tl.constexpr,
    INDEX: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    fused=None,  # kernels.epilogue.Fused
    FUSED: tl.constexpr = False,
    ACTIVATION: tl.constexpr = "",
    SLOPE: tl.constexpr = 0.0,
    R_ALIGN: tl.constexpr = 1,
    R_UNIT: tl.constexpr = 1,
    CLAMP: tl.constexpr = False,  # masked addresses lie inside of the tensors (`kernels.index.load_inside`)
):
    """y[m, (p, q)] = b + sum over (i, j) of x[m, (i, j)] * band[(i, j), (p, q)] for each channel, where m is a block of one
    image, (i, j) a pixel of its window, and band[(i, j), (p, q)] = w[i - p, j - q - GAP], 0 where there is no such tap.

    All blocks share the band. A program makes BLOCK_M blocks and leaves out the rows and columns of the window that lie
    outside of the image for all of them.
    """
    R: tl.constexpr = KERNEL[0]
    S: tl.constexpr = KERNEL[1]
    PITCH: tl.constexpr = pitch(S)
    COLUMNS: tl.constexpr = BLOCK_K // ROWS
    x_n, x_c, _, x_h, _ = strides(x_strides, 8, 4, INDEX)
    y_n, y_c, _, y_h, _ = strides(y_strides, 8, 4, INDEX)
    in_h = unpack(sizes.in_h)
    in_w = unpack(sizes.in_w) * 8
    out_w = unpack(sizes.out_w) * 8
    low = unpack(sizes.low)
    lead = unpack(sizes.lead) * 8
    tiles = unpack(sizes.tiles)
    pid_m = tl.program_id(0) % tiles
    channel = (tl.program_id(0) // tiles).to(tl.int64)

    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    image, top, left, exists = blocks_of(offs_m, sizes, out_w, BOX)
    first_t, end_t, first_j, end_j = window_of(
        pid_m * BLOCK_M, pid_m * BLOCK_M + BLOCK_M, sizes, in_w, out_w, lead, BOX, R, S, GAP
    )
    trips_j = tl.maximum(tl.cdiv(end_j - first_j, COLUMNS), 1)
    trips = tl.maximum(tl.cdiv(end_t - first_t, ROWS) * trips_j, 1)

    offs_k = tl.arange(0, BLOCK_K)
    k_row = offs_k // COLUMNS
    k_column = offs_k % COLUMNS
    h = (top - low + first_t)[:, None] + k_row[None, :]  # of the first trip
    j = (left - lead)[:, None] + k_column[None, :]
    h = tl.where(exists[:, None], h, in_h)
    x_ptrs = (x_ptr + channel * x_c) + (image.to(INDEX)[:, None] * x_n + h.to(INDEX) * x_h + j)

    offs_n = tl.arange(0, BLOCK_N)
    p = offs_n // BOX[1]
    q = offs_n % BOX[1]
    moved = -q - GAP
    tap_row = k_row[:, None] - p[None, :] + first_t
    position = k_column[:, None] + ((moved >> 3) * 8 + 8)[None, :]  # in a row of the table
    table_ptrs = (table_ptr + channel * (R * 8 * PITCH)) + (tap_row * (8 * PITCH) + ((moved & 7) * PITCH)[None, :] + position)
    x_kept = None
    table_kept = None
    if CLAMP:
        x_offset = image.to(INDEX)[:, None] * x_n + h.to(INDEX) * x_h + j
        table_offset = tap_row * (8 * PITCH) + ((moved & 7) * PITCH)[None, :] + position
        x_kept = (x_ptr + channel * x_c, x_offset, (offs_k % 8)[None, :])
        table_kept = (table_ptr + channel * (R * 8 * PITCH), table_offset, (offs_k % 8)[:, None])
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    t = first_j * 0
    c = first_j
    for i in range(trips):
        c = tl.multiple_of(c, 8)
        # Two comparisons per bound, not one unsigned: Triton then sees that a vector lies inside or outside as a whole.
        x_mask = inside(h + t, in_h) & (j + c >= 0) & (j + c < in_w)
        mask = inside(tap_row + t, R) & (position + c >= 0) & (position + c < PITCH)
        x = load_inside(x_ptrs, t.to(INDEX) * x_h + c, x_mask, x_kept, i < trips, CLAMP)
        band = load_inside(table_ptrs, t * (8 * PITCH) + c, mask, table_kept, i < trips, CLAMP)
        if UPCAST:  # the interpreter multiplies raw bfloat16 bits
            x = x.to(tl.float32)
            band = band.to(tl.float32)
        acc = tl.dot(x, band, acc)
        c += COLUMNS
        t = tl.where(c >= end_j, t + ROWS, t)
        c = tl.where(c >= end_j, first_j, c)
    if HAS_BIAS and not FUSED:
        acc += tl.load(b_ptr + channel * unpack(sizes.b)).to(tl.float32)
    y_row = top[:, None] + p[None, :]
    y_column = left[:, None] + q[None, :]
    y_mask = exists[:, None] & (y_row < unpack(sizes.out_h)) & (y_column < out_w)
    y_offset = image.to(INDEX)[:, None] * y_n + y_row.to(INDEX) * y_h + y_column
    if FUSED:
        r_ptrs = None
        z_ptrs = None
        if fused.residual is not None:
            r_n, r_c, _, r_h, r_w = strides(fused.residual_strides, R_ALIGN, R_UNIT, INDEX)
            r_offset = image.to(INDEX)[:, None] * r_n + y_row.to(INDEX) * r_h + y_column.to(INDEX) * r_w
            r_ptrs = (fused.residual + channel * r_c) + r_offset
        if fused.z is not None:
            z_ptrs = (fused.z + channel * y_c) + y_offset
        one = channel + tl.zeros((1, 1), tl.int64)
        acc = finish(acc, one, one >= 0, b_ptr, sizes.b, r_ptrs, z_ptrs, y_mask, fused, HAS_BIAS, ACTIVATION, SLOPE, UPCAST)
    tl.store((y_ptr + channel * y_c) + y_offset, rounded(acc, y_ptr.dtype.element_ty, UPCAST), mask=y_mask)


@triton.jit
def window_of(begin, end, sizes, in_w, out_w, lead, BOX: tl.constexpr, R: tl.constexpr, S: tl.constexpr, GAP: tl.constexpr):
    """(first row, end, first column, end) of the window that some block of rows begin to end - 1 has inside its image."""
    images = unpack(sizes.images)
    blocks_p = tl.cdiv(unpack(sizes.out_h), BOX[0])
    blocks_q = tl.cdiv(out_w, BOX[1])
    low = unpack(sizes.low)
    first = begin // images
    last = tl.minimum((end - 1) // images, blocks_p * blocks_q - 1)
    first_p = first // blocks_q
    last_p = last // blocks_q
    # blocks of several rows take every column between them
    first_q = tl.where(first_p == last_p, first % blocks_q, 0)
    last_q = tl.where(first_p == last_p, last % blocks_q, blocks_q - 1)
    first_t = tl.maximum(low - last_p * BOX[0], 0)
    end_t = tl.minimum(unpack(sizes.in_h) + low - first_p * BOX[0], BOX[0] + R - 1)
    first_j = tl.maximum(lead - last_q * BOX[1], 0)
    end_j = tl.minimum(in_w + lead - first_q * BOX[1], BOX[1] + S - 1 + GAP)
    return first_t, end_t, first_j, end_j
