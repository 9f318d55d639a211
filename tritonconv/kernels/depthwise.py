"""Forward pass and input gradient of narrow groups whose taps fit in registers: a window slides down the rows."""

import triton
import triton.language as tl

from tritonconv.kernels.epilogue import per_channel
from tritonconv.kernels.index import inside, strides, unpack, wide
from tritonconv.kernels.window import (
    added_by_channel,
    column_masks,
    highest,
    laid_over,
    lanes_of,
    meets_row,
    place_of,
    read_channels,
    spread,
    store_row,
    tap_offsets,
    weights_of,
    zeros,
)


@triton.jit
def slide_kernel(
    x_ptr,
    w_ptr,
    b_ptr,
    y_ptr,
    x_strides,  # Strides of the gathered tensor: x, or dy for dgrad
    w_strides,  # Strides of w [K, C / G, T, R, S]
    y_strides,  # Strides of the output: y, or dx
    sizes,  # Extents
    KERNEL: tl.constexpr,  # (T, R, S)
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    PHASE: tl.constexpr,  # dgrad: low padding modulo the stride; fprop: 0
    REACH: tl.constexpr,  # dgrad: offset of the window's last group; fprop: 0
    LAG: tl.constexpr,  # groups of output rows that wait for more input rows
    DGRAD: tl.constexpr,
    RANK: tl.constexpr,
    PER_GROUP: tl.constexpr,  # channels of a group that the pass computes: of y, or of dx for dgrad
    SUMMED: tl.constexpr,  # channels that each of them sums: of x, or of dy for dgrad
    TOGETHER: tl.constexpr,  # one load brings the summed channels of a pixel
    X_ALIGN: tl.constexpr,
    X_UNIT: tl.constexpr,
    W_ALIGN: tl.constexpr,
    W_UNIT: tl.constexpr,
    Y_ALIGN: tl.constexpr,
    Y_UNIT: tl.constexpr,
    C_ALIGN: tl.constexpr,
    EVEN_C: tl.constexpr,  # every lane has a channel
    X_WIDTH: tl.constexpr,  # columns that a load brings
    LEAD: tl.constexpr,  # columns by which the first load starts early
    Y_WIDTH: tl.constexpr,  # columns per store, a power of two that divides COLUMNS and the width
    HAS_BIAS: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
    UPCAST: tl.constexpr,
    CHANNELS: tl.constexpr,  # channels per program
    GROUPS: tl.constexpr,  # column tiles per program
    COLUMNS: tl.constexpr,  # columns per tile
    fused=None,  # kernels.epilogue.Fused
    FUSED: tl.constexpr = False,
    ACTIVATION: tl.constexpr = "",
    SLOPE: tl.constexpr = 0.0,
    R_ALIGN: tl.constexpr = 1,
    R_UNIT: tl.constexpr = 1,
):
    """y[n, k, o, p, q] = b[k] + sum over i, t, r, s of w[k, i, t, r, s] * x[n, group(k) * C / G + i, o*s_d - low_d + t*d_d,
    p*.., q*..] or, for dgrad, dx[n, c, d, h, w] = b[c] + sum over j and the (t, o), (r, p), (s, q) with d = o*s_d - low_d +
    t*d_d, ... of w[k, c % (C / G), t, r, s] * dy[n, k, o, p, q] with k = group(c) * K / G + j.

    A lane makes one channel of the output and sums over the channels of its group. A program walks down the rows. Each input
    row is read once and meets all its taps: it completes the oldest group of output rows and adds to the LAG groups that wait
    in registers. A group is one row; for dgrad `stride` rows, so that which taps meet is known at compile time and no
    multiply-add meets a structural zero.
    """
    T: tl.constexpr = KERNEL[0]
    R: tl.constexpr = KERNEL[1]
    S: tl.constexpr = KERNEL[2]
    OUT_H: tl.constexpr = STRIDE[1] if DGRAD else 1  # output rows of a group
    OUT_W: tl.constexpr = STRIDE[2] if DGRAD else 1
    IN_D: tl.constexpr = 1 if DGRAD else STRIDE[0]
    IN_H: tl.constexpr = 1 if DGRAD else STRIDE[1]  # input rows of a step
    IN_W: tl.constexpr = 1 if DGRAD else STRIDE[2]
    # ROWS[e * R + r] and COLS[j * S + s]: the offset in the window at which output e of a group meets tap r, -1 if it does not.
    ROWS: tl.constexpr = tap_offsets(OUT_H, R, STRIDE[1], DILATION[1], PHASE[1], REACH[1], DGRAD)
    COLS: tl.constexpr = tap_offsets(COLUMNS, S, STRIDE[2], DILATION[2], PHASE[2], REACH[2], DGRAD)
    DEPTHS: tl.constexpr = tap_offsets(1, T, STRIDE[0], DILATION[0], PHASE[0], REACH[0], DGRAD)
    WINDOW: tl.constexpr = 1 + highest(COLS)
    LANES: tl.constexpr = CHANNELS * GROUPS
    LANED: tl.constexpr = GROUPS > 1 or not EVEN_C
    _, x_c, x_d, x_h, x_w = strides(x_strides, X_ALIGN, X_UNIT, INDEX)
    w_k, w_c, w_t, w_r, w_s = strides(w_strides, W_ALIGN, W_UNIT, INDEX)
    _, y_c, y_d, y_h, y_w = strides(y_strides, Y_ALIGN, Y_UNIT, INDEX)
    channels = unpack(sizes.channels) * C_ALIGN
    out_h = unpack(sizes.out_h)
    out_w = unpack(sizes.out_w)
    rows = unpack(sizes.rows)

    # program -> (channels, column tiles, run of rows, depth, image)
    walk = 1  # 1-D has no rows: a program walks along its only row instead
    if RANK < 2:
        walk = rows
    pid_c, pid_q, pid = place_of(tl.program_id(0), channels, tl.cdiv(out_w, COLUMNS * GROUPS * walk), CHANNELS)
    first = (pid * 0).to(INDEX)
    groups_h = 1
    if RANK >= 2:
        groups_h = tl.cdiv(out_h, OUT_H)
        runs = tl.cdiv(groups_h, rows)
        first = ((pid % runs) * rows).to(INDEX)
        pid = pid // runs
    o = first * 0
    if RANK >= 3:
        size_o = unpack(sizes.out_d)
        o = (pid % size_o).to(INDEX)
        pid = pid // size_o
    image = pid.to(tl.int64)

    channel, tile = lanes_of((pid_q * walk).to(INDEX), CHANNELS, GROUPS, X_UNIT == 4)
    channel += pid_c * CHANNELS
    lanes = channel < channels  # [LANES]
    x_base = x_ptr + image * wide(x_strides.outer, X_ALIGN, X_UNIT == 0)
    y_base = y_ptr + image * wide(y_strides.outer, Y_ALIGN, Y_UNIT == 0)
    x_column = (tile * (COLUMNS // OUT_W * IN_W // X_WIDTH) - unpack(sizes.shift_w)) * X_WIDTH
    y_column = tile * COLUMNS
    x_offset = (channel // PER_GROUP) * (SUMMED * x_c) + x_column * x_w
    y_offset = channel * y_c + y_column * y_w
    if RANK >= 3:
        y_offset += o * y_d
    x_ptrs = spread(x_base, x_offset, 1, SUMMED) if TOGETHER else spread(x_base, x_offset, x_w, X_WIDTH)
    y_ptrs = spread(y_base, y_offset, y_w, Y_WIDTH)
    LOADS: tl.constexpr = (LEAD + WINDOW + X_WIDTH - 1) // X_WIDTH
    in_w = unpack(sizes.in_w)
    x_masks = column_masks(x_column, in_w, lanes, LOADS, X_WIDTH, LANED)
    y_masks = column_masks(y_column, out_w, lanes, COLUMNS // Y_WIDTH, Y_WIDTH, LANED)

    scale = None
    if FUSED:
        if fused.scale is not None:
            scale = per_channel(fused.scale, fused.scale_stride, channel, lanes, ACC)
    start = added_by_channel(b_ptr, sizes.b, scale, fused, channel, lanes, HAS_BIAS, FUSED, ACC)
    r_ptrs = None
    r_h = 0
    r_w = 0
    z_ptrs = None
    z_h = 0
    z_w = 0
    if FUSED:
        if fused.residual is not None:
            r_ptrs, r_h, r_w = laid_over(
                fused.residual, fused.residual_strides, R_ALIGN, R_UNIT, image, channel, y_column, o, Y_WIDTH, INDEX
            )
        if fused.z is not None:
            z_ptrs, z_h, z_w = laid_over(fused.z, y_strides, Y_ALIGN, Y_UNIT, image, channel, y_column, o, Y_WIDTH, INDEX)
    # taps stay in registers, scaled already: weights[((i * T + t) * R + r) * S + s] [LANES]
    w_offset, w_i = weights_of(channel, w_k, w_c, PER_GROUP, SUMMED, DGRAD)
    weights = ()
    for i in tl.static_range(SUMMED):
        for t in tl.static_range(T):
            for r in tl.static_range(R):
                for s in tl.static_range(S):
                    tap = i * w_i + t * w_t + r * w_r + s * w_s
                    weight = tl.load(w_ptr + (w_offset + tap), mask=lanes, other=0.0).to(ACC)
                    weights = weights + (weight if scale is None else weight * scale,)

    waiting = ()  # [(group, row of the group, column)], the oldest group first
    for _ in tl.static_range(LAG * OUT_H * COLUMNS):
        waiting = waiting + (start,)
    last = rows
    if RANK >= 2:
        last = tl.minimum(first + rows, groups_h) + LAG
    for i in range(first, last):
        window = ()  # [(row of the step, t, channel, column)]
        for e in tl.static_range(IN_H):
            h = i * IN_H + (e - unpack(sizes.shift_h))
            for t in tl.static_range(T):
                row_ok = inside(h, unpack(sizes.in_h))
                x_row = h * x_h
                if RANK < 2:
                    row_ok = tl.full((), True, tl.int1)
                    x_walked = i * (GROUPS * COLUMNS // OUT_W * IN_W)
                    x_row = x_walked * x_w
                    x_masks = column_masks(x_column + x_walked, in_w, lanes, LOADS, X_WIDTH, LANED)
                if RANK >= 3:
                    d = o * IN_D - unpack(sizes.shift_d) + DEPTHS[t]
                    row_ok = row_ok & inside(d, unpack(sizes.in_d))
                    x_row += d * x_d
                if meets_row(ROWS, e, IN_H):
                    window = window + read_channels(
                        x_ptrs + x_row,
                        x_c,
                        x_w,
                        x_masks,
                        row_ok,
                        COLS,
                        X_WIDTH,
                        LEAD,
                        WINDOW,
                        SUMMED,
                        TOGETHER,
                        LANED,
                        ACC,
                    )
                else:
                    window = window + zeros(SUMMED * WINDOW, LANES, ACC)
        made = ()
        for slot in tl.static_range(LAG + 1):
            for e_out in tl.static_range(OUT_H):
                for j in tl.static_range(COLUMNS):
                    acc = waiting[(slot * OUT_H + e_out) * COLUMNS + j] if slot < LAG else start
                    for r in tl.static_range(R):
                        if ROWS[e_out * R + r] >= 0 and ROWS[e_out * R + r] // IN_H == LAG - slot:
                            for s in tl.static_range(S):
                                if COLS[j * S + s] >= 0:
                                    for t in tl.static_range(T):
                                        for c in tl.static_range(SUMMED):
                                            acc += (
                                                window[
                                                    ((ROWS[e_out * R + r] % IN_H * T + t) * SUMMED + c) * WINDOW
                                                    + COLS[j * S + s]
                                                ]
                                                * weights[((c * T + t) * R + r) * S + s]
                                            )
                    made = made + (acc,)
        p = (i - LAG) * OUT_H
        for e_out in tl.static_range(OUT_H):
            row_ok = (p + e_out >= first * OUT_H) & (p + e_out < out_h)
            y_row = (p + e_out) * y_h
            y_walked = i * 0
            if RANK < 2:
                row_ok = tl.full((), True, tl.int1)
                y_walked = i * (GROUPS * COLUMNS)
                y_row = y_walked * y_w
                y_masks = column_masks(y_column + y_walked, out_w, lanes, COLUMNS // Y_WIDTH, Y_WIDTH, LANED)
            r_row = None
            z_row = None
            if r_ptrs is not None:
                r_row = r_ptrs + (y_walked * r_w if RANK < 2 else (p + e_out) * r_h)
            if z_ptrs is not None:
                z_row = z_ptrs + (y_walked * z_w if RANK < 2 else (p + e_out) * z_h)
            store_row(
                y_ptrs + y_row,
                y_w,
                made[e_out * COLUMNS : (e_out + 1) * COLUMNS],
                y_masks,
                row_ok,
                r_row,
                r_w,
                z_row,
                z_w,
                y_ptr.dtype.element_ty,
                COLUMNS,
                Y_WIDTH,
                ACTIVATION,
                SLOPE,
                UPCAST,
            )
        waiting = made[OUT_H * COLUMNS :]
