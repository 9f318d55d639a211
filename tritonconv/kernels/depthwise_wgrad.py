"""Weight gradient of narrow groups: partial sums of strips of the output, then their sum in a fixed order."""

import triton
import triton.language as tl

from tritonconv.kernels.epilogue import rounded
from tritonconv.kernels.index import inside, strides, unpack, wide
from tritonconv.kernels.window import column_masks, highest, lanes_of, meets_row, read_row, spread, tap_offsets, zeros


@triton.jit
def strip_kernel(
    dy_ptr,
    x_ptr,
    partial_ptr,  # workspace [parts, T * R * S, K * C / G] in the accumulator's type
    dy_strides,  # Strides of dy [N, K, O, P, Q]
    x_strides,  # Strides of x [N, C, D, H, W]
    sizes,  # Extents: in is x, out is dy; the low padding (shift_w divided by X_WIDTH and rounded up)
    runs,  # (runs of rows of one part, of all parts), packed
    KERNEL: tl.constexpr,  # (T, R, S)
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    BLOCK_R: tl.constexpr,  # filter rows per program: R or 1
    BLOCK_S: tl.constexpr,  # taps per filter row of a program
    LAG: tl.constexpr,  # rows of dy that wait for more rows of x
    RANK: tl.constexpr,
    PER_FILTER: tl.constexpr,  # channels of x that a filter sums, C / G
    FILTERS: tl.constexpr,  # filters per group, K / G
    DY_ALIGN: tl.constexpr,
    DY_UNIT: tl.constexpr,
    X_ALIGN: tl.constexpr,
    X_UNIT: tl.constexpr,
    C_ALIGN: tl.constexpr,  # of K * C / G
    EVEN_C: tl.constexpr,
    X_WIDTH: tl.constexpr,  # columns that a load of x brings
    LEAD: tl.constexpr,  # columns by which the first load starts early
    DY_WIDTH: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
    CHANNELS: tl.constexpr,  # pairs (k, i) per program
    GROUPS: tl.constexpr,  # column tiles per program
    COLUMNS: tl.constexpr,  # columns per tile
):
    """partial[strip, (t, r, s), (k, i)] = sum over the rows and columns of a strip of dy[n, k, o, p, q] * x[n, group(k) * C / G
    + i, o*s_d - low_d + t*d_d, p*.., q*..]

    A lane is a filter k with one channel i of its group. A program walks down the rows, in 1-D along its row, with BLOCK_R x
    BLOCK_S sums in registers. Each row of x is read once and meets the LAG + 1 rows of dy that its taps reach.
    """
    T: tl.constexpr = KERNEL[0]
    R: tl.constexpr = KERNEL[1]
    S: tl.constexpr = KERNEL[2]
    IN_H: tl.constexpr = STRIDE[1]  # rows of x of a step
    ROWS: tl.constexpr = tap_offsets(1, BLOCK_R, STRIDE[1], DILATION[1], 0, 0, False)
    COLS: tl.constexpr = tap_offsets(COLUMNS, BLOCK_S, STRIDE[2], DILATION[2], 0, 0, False)
    DY_COLS: tl.constexpr = tap_offsets(COLUMNS, 1, 1, 1, 0, 0, False)
    WINDOW: tl.constexpr = 1 + highest(COLS)
    LANES: tl.constexpr = CHANNELS * GROUPS
    LANED: tl.constexpr = GROUPS > 1 or not EVEN_C
    _, y_k, y_o, y_p, y_q = strides(dy_strides, DY_ALIGN, DY_UNIT, INDEX)
    _, x_c, x_d, x_h, x_w = strides(x_strides, X_ALIGN, X_UNIT, INDEX)
    pairs = unpack(sizes.channels) * C_ALIGN
    size_o = unpack(sizes.out_d)
    size_p = unpack(sizes.out_h)
    size_q = unpack(sizes.out_w)
    rows = unpack(sizes.rows)

    # program -> (pairs, taps, column tiles, part), pairs fastest; programs of other taps read the same rows next
    pid = tl.program_id(0)
    tiles_c = tl.cdiv(pairs, CHANNELS)
    walk = 1  # 1-D has no rows: a program walks along its only row instead
    if RANK < 2:
        walk = rows
    tiles_q = tl.cdiv(size_q, COLUMNS * GROUPS * walk)
    pid_c = pid % tiles_c
    pid = pid // tiles_c
    S_BLOCKS: tl.constexpr = (S + BLOCK_S - 1) // BLOCK_S
    s_first = (pid % S_BLOCKS) * BLOCK_S
    pid = pid // S_BLOCKS
    r_first = (pid % (R // BLOCK_R)) * BLOCK_R
    pid = pid // (R // BLOCK_R)
    t = pid % T
    pid = pid // T
    part = pid  # (split, column tile)
    pid_q = pid % tiles_q
    split = pid // tiles_q

    pair, tile = lanes_of((pid_q * walk).to(INDEX), CHANNELS, GROUPS, X_UNIT == 4)
    pair += pid_c * CHANNELS
    lanes = pair < pairs  # [LANES]
    channel = pair // (FILTERS * PER_FILTER) * PER_FILTER
    if PER_FILTER > 1:
        channel += pair % PER_FILTER
    s_shift = s_first * DILATION[2]
    x_column = (tile * (COLUMNS * STRIDE[2] // X_WIDTH) - unpack(sizes.shift_w)) * X_WIDTH + s_shift
    y_column = tile * COLUMNS
    x_offset = channel * x_c + x_column * x_w
    y_offset = (pair // PER_FILTER) * y_k + y_column * y_q
    LOADS: tl.constexpr = (LEAD + WINDOW + X_WIDTH - 1) // X_WIDTH
    x_masks = column_masks(x_column, unpack(sizes.in_w), lanes, LOADS, X_WIDTH, LANED)
    y_masks = column_masks(y_column, size_q, lanes, COLUMNS // DY_WIDTH, DY_WIDTH, LANED)

    sums = zeros(BLOCK_R * BLOCK_S, LANES, ACC)
    runs_h = tl.cdiv(size_p, rows)
    begin = split * unpack(runs[0])
    for step in range(0, tl.minimum(unpack(runs[0]), unpack(runs[1]) - begin)):
        run = begin + step
        first = (run * 0).to(INDEX)
        image = run
        plane_ok = tl.full((), True, tl.int1)
        x_plane = (run * 0).to(INDEX)
        y_plane = (run * 0).to(INDEX)
        if RANK >= 2:
            first = ((run % runs_h) * rows).to(INDEX)
            image = run // runs_h
        if RANK >= 3:
            o = (image % size_o).to(INDEX)
            image = image // size_o
            d = o * STRIDE[0] + (t * DILATION[0] - unpack(sizes.shift_d))
            plane_ok = inside(d, unpack(sizes.in_d))
            x_plane += d * x_d
            y_plane += o * y_o
        x_base = x_ptr + image.to(tl.int64) * wide(x_strides.outer, X_ALIGN, X_UNIT == 0)
        y_base = dy_ptr + image.to(tl.int64) * wide(dy_strides.outer, DY_ALIGN, DY_UNIT == 0)
        x_ptrs = spread(x_base, x_offset + x_plane, x_w, X_WIDTH)
        y_ptrs = spread(y_base, y_offset + y_plane, y_q, DY_WIDTH)
        end = first + rows
        if RANK >= 2:
            end = tl.minimum(first + rows, size_p)
        # rows i - LAG to i - 1 of dy, as loaded: Triton 3.6's compiler aborts on converted values that a loop carries
        older = zeros(LAG * COLUMNS, LANES, dy_ptr.dtype.element_ty)
        for i in range(first, end + LAG):
            window = ()  # [(row of the step, column)]
            for e in tl.static_range(IN_H):
                if meets_row(ROWS, e, IN_H):
                    x_ok = plane_ok
                    if RANK < 2:
                        x_walked = i * (GROUPS * COLUMNS * STRIDE[2])
                        x_row = x_walked * x_w
                        x_masks = column_masks(x_column + x_walked, unpack(sizes.in_w), lanes, LOADS, X_WIDTH, LANED)
                    if RANK >= 2:
                        h = i * IN_H + (e + r_first * DILATION[1] - unpack(sizes.shift_h))
                        x_ok = x_ok & inside(h, unpack(sizes.in_h))
                        x_row = h * x_h
                    window = window + read_row(x_ptrs + x_row, x_w, x_masks, x_ok, COLS, X_WIDTH, LEAD, WINDOW, ACC)
                else:
                    window = window + zeros(WINDOW, LANES, ACC)
            y_ok = plane_ok
            if RANK < 2:
                y_walked = i * (GROUPS * COLUMNS)
                y_row = y_walked * y_q
                y_masks = column_masks(y_column + y_walked, size_q, lanes, COLUMNS // DY_WIDTH, DY_WIDTH, LANED)
            if RANK >= 2:
                y_ok = y_ok & (i < end)
                y_row = i * y_p
            older = older + read_row(y_ptrs + y_row, y_q, y_masks, y_ok, DY_COLS, DY_WIDTH, 0, COLUMNS, dy_ptr.dtype.element_ty)
            added = ()
            for r in tl.static_range(BLOCK_R):
                for s in tl.static_range(BLOCK_S):
                    acc = sums[r * BLOCK_S + s]
                    for j in tl.static_range(COLUMNS):
                        dy = older[(LAG - ROWS[r] // IN_H) * COLUMNS + j].to(ACC)
                        acc += dy * window[ROWS[r] % IN_H * WINDOW + COLS[j * BLOCK_S + s]]
                    added = added + (acc,)
            sums = added
            older = older[COLUMNS:]

    pair = pid_c * CHANNELS + tl.arange(0, CHANNELS)
    base = partial_ptr + part.to(tl.int64) * (T * R * S) * pairs
    for r in tl.static_range(BLOCK_R):
        for s in tl.static_range(BLOCK_S):
            acc = sums[r * BLOCK_S + s]
            if GROUPS > 1 and X_UNIT == 4:
                acc = tl.sum(tl.reshape(acc, (CHANNELS, GROUPS)), 1)
            elif GROUPS > 1:
                acc = tl.sum(tl.reshape(acc, (GROUPS, CHANNELS)), 0)
            tap = ((t * R + r_first + r) * S + s_first + s).to(INDEX)
            tl.store(base + (tap * pairs + pair), acc, mask=tl.where(s_first + s < S, pair < pairs, False))


@triton.jit
def strip_reduce_kernel(
    partial_ptr,  # workspace [parts, T * R * S, K * C / G]
    dw_ptr,
    dw_strides,  # Strides of dw [K, C / G, T, R, S]
    sizes,  # (elements of dw, parts, K * C / G), packed
    KERNEL: tl.constexpr,
    PER_FILTER: tl.constexpr,
    DW_ALIGN: tl.constexpr,
    DW_UNIT: tl.constexpr,
    ACC: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dw[k, i, t, r, s] = sum over strips of partial[strip, (t, r, s), (k, i)]

    The kernel keeps BLOCK_PARTS sums side by side and always adds in the same order.
    """
    elements = unpack(sizes[0])
    parts = unpack(sizes[1])
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    lane = tl.arange(0, BLOCK_PARTS)
    acc = tl.zeros((BLOCK_PARTS, BLOCK), ACC)
    for first in range(0, parts, BLOCK_PARTS):
        part = first + lane
        ptrs = partial_ptr + (part.to(tl.int64)[:, None] * elements + offs[None, :])
        acc += tl.load(ptrs, mask=(part < parts)[:, None] & (offs < elements)[None, :], other=0.0)
    pairs = unpack(sizes[2])
    pair = offs % pairs
    tap = offs // pairs
    s = tap % KERNEL[2]
    r = (tap // KERNEL[2]) % KERNEL[1]
    t = tap // (KERNEL[2] * KERNEL[1])
    w_k, w_c, w_t, w_r, w_s = strides(dw_strides, DW_ALIGN, DW_UNIT, tl.int64)
    dw = rounded(tl.sum(acc, 0), dw_ptr.dtype.element_ty, UPCAST)
    offs_w = (pair // PER_FILTER) * w_k + (pair % PER_FILTER) * w_c + t * w_t + r * w_r + s * w_s
    tl.store(dw_ptr + offs_w, dw, mask=offs < elements)
