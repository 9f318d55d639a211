"""Weight gradient of a 2-D depthwise convolution on tensor cores: products of blocks of dy and windows of x, summed along their
diagonals."""

import triton
import triton.language as tl

from tritonconv.kernels.band import window_of
from tritonconv.kernels.epilogue import rounded
from tritonconv.kernels.index import inside, load_inside, strides, unpack


@triton.jit
def first_columns(sizes, in_w, out_w, lead, BOX: tl.constexpr, KERNEL: tl.constexpr, GAP: tl.constexpr, COLUMNS: tl.constexpr):
    """(column where the first tile of the windows starts, tiles along their rows), of all blocks."""
    blocks = tl.cdiv(unpack(sizes.out_h), BOX[0]) * tl.cdiv(out_w, BOX[1])
    _, _, first_j, end_j = window_of(0, blocks * unpack(sizes.images), sizes, in_w, out_w, lead, BOX, KERNEL[0], KERNEL[1], GAP)
    return first_j, tl.maximum(tl.cdiv(end_j - first_j, COLUMNS), 1)


@triton.jit
def wrapped(acc, down, across):
    """[BLOCK_M, BLOCK_N] -> [BLOCK_N]: the sum of the rows where both masks hold."""
    return tl.sum(tl.where(down & across, acc, 0.0), axis=0)


@triton.jit
def diagonal_kernel(
    dy_ptr,
    x_ptr,
    part_ptr,  # [SPLIT, C, tiles, 2, 2, BLOCK_N]
    x_strides,  # Strides of x
    y_strides,  # Strides of dy
    sizes,  # kernels.band.Band
    KERNEL: tl.constexpr,  # (R, S)
    BOX: tl.constexpr,  # rows and columns of a block of dy
    ROWS: tl.constexpr,  # rows of a window per tile
    GAP: tl.constexpr,  # columns by which a window starts early
    SPLIT: tl.constexpr,
    INDEX: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CLAMP: tl.constexpr = False,  # masked addresses lie inside of the tensors (`kernels.index.load_inside`)
):
    """g[(p, q), (t, j)] = sum over blocks and images of dy[m, (p, q)] * x[m, (t, j)], the gradient of the band of each channel;
    part[t - p, j - q] = sum over the diagonal of g.

    A tile of g has ROWS x COLUMNS pixels of a window, no fewer than a block has, so that a diagonal leaves it once at most
    along each axis: it goes on at the other side, and what lies there is summed on its own. A program's blocks are those of
    which some row of the tile lies inside the image.
    """
    COLUMNS: tl.constexpr = BLOCK_N // ROWS
    x_n, x_c, _, x_h, _ = strides(x_strides, 8, 4, INDEX)
    y_n, y_c, _, y_h, _ = strides(y_strides, 8, 4, INDEX)
    images = unpack(sizes.images)
    in_h = unpack(sizes.in_h)
    in_w = unpack(sizes.in_w) * 8
    out_h = unpack(sizes.out_h)
    out_w = unpack(sizes.out_w) * 8
    low = unpack(sizes.low)
    lead = unpack(sizes.lead) * 8
    tiles = unpack(sizes.tiles)
    tile = tl.program_id(0) % tiles
    place = tl.program_id(0) // tiles
    channel = (place // SPLIT).to(tl.int64)
    share = place % SPLIT
    first_j, tiles_j = first_columns(sizes, in_w, out_w, lead, BOX, KERNEL, GAP, COLUMNS)
    t = tile // tiles_j * ROWS
    j = tile % tiles_j * COLUMNS + first_j

    # rows of blocks with a row of the tile inside the image, in trips over the columns of blocks and the images of each
    blocks_q = tl.cdiv(out_w, BOX[1])
    begin = tl.cdiv(tl.maximum(low - t - ROWS + 1, 0), BOX[0])
    end = tl.minimum(tl.cdiv(out_h, BOX[0]), tl.cdiv(tl.maximum(in_h + low - t, 0), BOX[0]))
    trips_n = tl.cdiv(images, BLOCK_K)
    trips = tl.cdiv(tl.maximum(end - begin, 0) * blocks_q * trips_n, SPLIT)
    first = share * trips
    n = first % trips_n * BLOCK_K
    q = first // trips_n % blocks_q * BOX[1]
    p = (begin + first // trips_n // blocks_q) * BOX[0]

    offs_k = tl.arange(0, BLOCK_K)
    offs_m = tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    dp = offs_m // BOX[1]
    dq = offs_m % BOX[1]
    dt = offs_n // COLUMNS
    dj = offs_n % COLUMNS
    dy_ptrs = (dy_ptr + channel * y_c) + ((dp.to(INDEX) * y_h + dq)[:, None] + (offs_k.to(INDEX) * y_n)[None, :])
    x_ptrs = (x_ptr + channel * x_c) + ((offs_k.to(INDEX) * x_n)[:, None] + (dt.to(INDEX) * x_h + dj)[None, :])
    dy_kept = None
    x_kept = None
    if CLAMP:
        dy_offset = (dp.to(INDEX) * y_h + dq)[:, None] + (offs_k.to(INDEX) * y_n)[None, :]
        x_offset = (offs_k.to(INDEX) * x_n)[:, None] + (dt.to(INDEX) * x_h + dj)[None, :]
        dy_kept = (dy_ptr + channel * y_c, dy_offset, (offs_m % 8)[:, None])
        x_kept = (x_ptr + channel * x_c, x_offset, (offs_n % 8)[None, :])
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for i in range(tl.maximum(trips, 1)):
        q = tl.multiple_of(q, 8)
        exists = offs_k + tl.where(p < end * BOX[0], n, images) < images
        dy_mask = (dp + p < out_h) & (dq + q < out_w)
        h = p - low + t
        column = q - lead + j
        column = tl.multiple_of(column, 8)
        x_mask = inside(dt + h, in_h) & (dj + column >= 0) & (dj + column < in_w)
        dy_start = n.to(INDEX) * y_n + p.to(INDEX) * y_h + q
        dy = load_inside(dy_ptrs, dy_start, dy_mask[:, None] & exists[None, :], dy_kept, i < trips, CLAMP)
        x_start = n.to(INDEX) * x_n + h.to(INDEX) * x_h + column
        x = load_inside(x_ptrs, x_start, exists[:, None] & x_mask[None, :], x_kept, i < trips, CLAMP)
        if UPCAST:  # the interpreter multiplies raw bfloat16 bits
            dy = dy.to(tl.float32)
            x = x.to(tl.float32)
        acc = tl.dot(dy, x, acc)
        n += BLOCK_K
        q = tl.where(n >= images, q + BOX[1], q)
        n = tl.where(n >= images, 0, n)
        p = tl.where(q >= out_w, p + BOX[0], p)
        q = tl.where(q >= out_w, 0, q)

    # g[(p, q), (p + t, q + j)], around the edges of the tile
    down = dt[None, :] + dp[:, None]
    across = dj[None, :] + dq[:, None]
    skewed = tl.gather(acc, down % ROWS * COLUMNS + across % COLUMNS, 1)
    down = down < ROWS
    across = across < COLUMNS
    part_ptrs = (
        part_ptr + ((share * (tl.num_programs(0) // SPLIT)).to(tl.int64) + channel * tiles + tile) * (4 * BLOCK_N) + offs_n
    )
    tl.store(part_ptrs, wrapped(skewed, down, across))
    tl.store(part_ptrs + BLOCK_N, wrapped(skewed, down, ~across))
    tl.store(part_ptrs + 2 * BLOCK_N, wrapped(skewed, ~down, across))
    tl.store(part_ptrs + 3 * BLOCK_N, wrapped(skewed, ~down, ~across))


@triton.jit
def diagonal_reduce_kernel(
    part_ptr,
    dw_ptr,
    dw_strides,  # Strides of dw [C, 1, 1, R, S]
    sizes,  # kernels.band.Band, as above
    channels,  # packed
    KERNEL: tl.constexpr,
    BOX: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GAP: tl.constexpr,
    DW_ALIGN: tl.constexpr,
    DW_UNIT: tl.constexpr,
    SPLIT: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dw[c, 0, r, s] = sum over the parts of tap (r, s): of each split, those of the tile that a diagonal starts in and of the
    next one along each axis, which it goes on in."""
    R: tl.constexpr = KERNEL[0]
    S: tl.constexpr = KERNEL[1]
    PIXELS: tl.constexpr = ROWS * COLUMNS
    channels = unpack(channels)
    tiles = unpack(sizes.tiles)
    in_w = unpack(sizes.in_w) * 8
    out_w = unpack(sizes.out_w) * 8
    first_j, tiles_j = first_columns(sizes, in_w, out_w, unpack(sizes.lead) * 8, BOX, KERNEL, GAP, COLUMNS)
    tiles_t = tiles // tiles_j
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = element < channels.to(tl.int64) * (R * S)
    channel = element // (R * S)
    tap = (element % (R * S)).to(tl.int32)
    r = tap // S
    s = tap % S
    moved = s + GAP - first_j + COLUMNS  # negative where no column that is kept meets the tap
    tile_t = r // ROWS
    tile_j = moved // COLUMNS - 1
    pixel = r % ROWS * COLUMNS + moved % COLUMNS
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    for share in range(SPLIT):
        first = (share * channels.to(tl.int64) + channel) * tiles
        for down in tl.static_range(2):
            for across in tl.static_range(2):
                t = tile_t + down
                j = tile_j + across
                mask = exists & (moved >= 0) & (t < tiles_t) & inside(j, tiles_j)
                part = (first + t * tiles_j + j) * 4 + (2 * down + across)
                acc += tl.load(part_ptr + part * PIXELS + pixel, mask=mask, other=0.0)
    w_c, _, _, w_r, w_s = strides(dw_strides, DW_ALIGN, DW_UNIT, tl.int64)
    tl.store(dw_ptr + channel * w_c + r * w_r + s * w_s, rounded(acc, dw_ptr.dtype.element_ty, UPCAST), mask=exists)
