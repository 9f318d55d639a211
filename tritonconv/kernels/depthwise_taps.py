"""Forward pass and input gradient of narrow groups for filters of any size: a loop over the taps, a few of them unrolled."""

import triton
import triton.language as tl

from tritonconv.kernels.epilogue import per_channel
from tritonconv.kernels.index import strides, unpack, wide
from tritonconv.kernels.window import (
    added_by_channel,
    column_masks,
    first_taps,
    highest,
    laid_over,
    lanes_of,
    place_of,
    read_row,
    spread,
    store_row,
    tap_offsets,
    weights_of,
)


@triton.jit
def walk(
    out, low, size, KERNEL: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, STEP: tl.constexpr, DGRAD: tl.constexpr
):
    """The taps of one axis that meet output coordinate `out` inside the gathered tensor of length `size`.

    Returns (input coordinate, tap) of number 0 and the range of numbers; from number to number the tap grows by STEP and the
    input coordinate by `walk_step`. STEP: stride / gcd(stride, dilation) for dgrad, 1 for fprop.
    """
    if DGRAD:
        DELTA: tl.constexpr = DILATION * STEP // STRIDE
        first = KERNEL + 0 * out
        for j in tl.static_range(STEP):
            first = tl.where((out + low - j * DILATION) % STRIDE == 0, j, first)
        start = (out + low - first * DILATION) // STRIDE  # exact where there is a tap
        end = tl.minimum((KERNEL - first + STEP - 1) // STEP, tl.maximum(start + DELTA, 0) // DELTA)
        begin = tl.cdiv(tl.maximum(start - size + 1, 0), DELTA)
    else:
        first = 0 * out
        start = out * STRIDE - low
        end = tl.minimum(KERNEL, tl.cdiv(tl.maximum(size - start, 0), DILATION))
        begin = tl.cdiv(tl.maximum(-start, 0), DILATION)
    return start, first, begin, end


@triton.jit
def add_taps(
    acc,  # COLUMNS tensors [LANES]
    x_ptrs,  # at the window's first column
    x_step,
    column,  # that column's coordinate
    width,
    w_ptrs,  # [LANES] at the first tap
    w_step,
    lanes,
    OFFSETS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TAPS: tl.constexpr,
    RADIX: tl.constexpr,  # entries of OFFSETS per column
    X_WIDTH: tl.constexpr,
    LEAD: tl.constexpr,
    LANED: tl.constexpr,
    ACC: tl.constexpr,
):
    """acc[j] += sum over TAPS neighbouring taps of one filter row"""
    USED: tl.constexpr = first_taps(OFFSETS, RADIX, TAPS)
    WINDOW: tl.constexpr = 1 + highest(USED)
    masks = column_masks(column, width, lanes, (LEAD + WINDOW + X_WIDTH - 1) // X_WIDTH, X_WIDTH, LANED)
    row = read_row(x_ptrs, x_step, masks, tl.full((), True, tl.int1), USED, X_WIDTH, LEAD, WINDOW, ACC)
    for s in tl.static_range(TAPS):
        weight = tl.load(w_ptrs + s * w_step, mask=lanes, other=0.0).to(ACC)
        added = ()
        for j in tl.static_range(COLUMNS):
            if USED[j * TAPS + s] >= 0:
                added = added + (acc[j] + row[USED[j * TAPS + s]] * weight,)
            else:
                added = added + (acc[j],)
        acc = added
    return acc


@triton.jit
def taps_kernel(
    x_ptr,
    w_ptr,
    b_ptr,
    y_ptr,
    x_strides,  # Strides of the gathered tensor: x, or dy for dgrad
    w_strides,  # Strides of w [K, C / G, T, R, S]
    y_strides,  # Strides of the output: y, or dx
    sizes,  # Extents; of shift_d and shift_h the low padding
    KERNEL: tl.constexpr,  # (T, R, S)
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    PHASE: tl.constexpr,  # PHASE, REACH and LEAD are those of the columns
    REACH: tl.constexpr,
    STEP: tl.constexpr,  # (t, r): taps from one that meets a pixel to the next; fprop: 1
    CHUNK: tl.constexpr,  # taps of a filter row that are unrolled
    CHUNK_SPAN: tl.constexpr,  # input columns that they span
    DGRAD: tl.constexpr,
    RANK: tl.constexpr,
    PER_GROUP: tl.constexpr,  # channels of a group that the pass computes
    SUMMED: tl.constexpr,  # channels that each of them sums
    X_ALIGN: tl.constexpr,
    X_UNIT: tl.constexpr,
    W_ALIGN: tl.constexpr,
    W_UNIT: tl.constexpr,
    Y_ALIGN: tl.constexpr,
    Y_UNIT: tl.constexpr,
    C_ALIGN: tl.constexpr,
    EVEN_C: tl.constexpr,
    X_WIDTH: tl.constexpr,
    LEAD: tl.constexpr,
    Y_WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
    UPCAST: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    fused=None,  # kernels.epilogue.Fused
    FUSED: tl.constexpr = False,
    ACTIVATION: tl.constexpr = "",
    SLOPE: tl.constexpr = 0.0,
    R_ALIGN: tl.constexpr = 1,
    R_UNIT: tl.constexpr = 1,
):
    """Computes what `slide_kernel` does, for filters, dilations or channel sums that do not fit in registers.

    A program makes one output row, a loop over (channel of the group, t, r, chunk of s) with CHUNK taps unrolled: a
    window of input columns and CHUNK weights are read, and every weight meets every column.
    """
    T: tl.constexpr = KERNEL[0]
    R: tl.constexpr = KERNEL[1]
    S: tl.constexpr = KERNEL[2]
    COLS: tl.constexpr = tap_offsets(COLUMNS, CHUNK, STRIDE[2], DILATION[2], PHASE, REACH, DGRAD)
    IN_D: tl.constexpr = -(DILATION[0] * STEP[0] // STRIDE[0]) if DGRAD else DILATION[0]  # input rows from tap to tap
    IN_H: tl.constexpr = -(DILATION[1] * STEP[1] // STRIDE[1]) if DGRAD else DILATION[1]
    IN_W: tl.constexpr = 1 if DGRAD else STRIDE[2]
    OUT_W: tl.constexpr = STRIDE[2] if DGRAD else 1
    LANES: tl.constexpr = CHANNELS * GROUPS
    LANED: tl.constexpr = GROUPS > 1 or not EVEN_C
    _, x_c, x_d, x_h, x_w = strides(x_strides, X_ALIGN, X_UNIT, INDEX)
    w_k, w_c, w_t, w_r, w_s = strides(w_strides, W_ALIGN, W_UNIT, INDEX)
    _, y_c, y_d, y_h, y_w = strides(y_strides, Y_ALIGN, Y_UNIT, INDEX)
    channels = unpack(sizes.channels) * C_ALIGN
    in_w = unpack(sizes.in_w)
    out_w = unpack(sizes.out_w)

    # program -> (channels, column tiles, row, depth, image)
    pid_c, pid_q, pid = place_of(tl.program_id(0), channels, tl.cdiv(out_w, COLUMNS * GROUPS), CHANNELS)
    d = pid * 0
    t = d
    t_begin = d
    t_end = d + 1
    p = d
    h = d
    r = d
    r_begin = d
    r_end = d + 1
    y_row = (pid * 0).to(INDEX)
    out_depth = pid * 0
    if RANK >= 2:
        out_h = unpack(sizes.out_h)
        p = (pid % out_h).to(INDEX)
        pid = pid // out_h
        y_row += p * y_h
        h, r, r_begin, r_end = walk(p, unpack(sizes.shift_h), unpack(sizes.in_h), R, STRIDE[1], DILATION[1], STEP[1], DGRAD)
    if RANK >= 3:
        out_d = unpack(sizes.out_d)
        o = (pid % out_d).to(INDEX)
        out_depth = o
        pid = pid // out_d
        y_row += o * y_d
        d, t, t_begin, t_end = walk(o, unpack(sizes.shift_d), unpack(sizes.in_d), T, STRIDE[0], DILATION[0], STEP[0], DGRAD)
    image = pid.to(tl.int64)

    channel, tile = lanes_of(pid_q.to(INDEX), CHANNELS, GROUPS, X_UNIT == 4)
    channel += pid_c * CHANNELS
    lanes = channel < channels  # [LANES]
    x_base = x_ptr + image * wide(x_strides.outer, X_ALIGN, X_UNIT == 0)
    y_base = y_ptr + image * wide(y_strides.outer, Y_ALIGN, Y_UNIT == 0)
    x_column = (tile * (COLUMNS // OUT_W * IN_W // X_WIDTH) - unpack(sizes.shift_w)) * X_WIDTH
    y_column = tile * COLUMNS
    x_ptrs = spread(x_base, (channel // PER_GROUP) * (SUMMED * x_c) + x_column * x_w, x_w, X_WIDTH)
    y_ptrs = spread(y_base, channel * y_c + (y_column * y_w + y_row), y_w, Y_WIDTH)
    w_offset, w_m = weights_of(channel, w_k, w_c, PER_GROUP, SUMMED, DGRAD)
    w_ptrs = w_ptr + w_offset

    scale = None
    if FUSED:
        if fused.scale is not None:
            scale = per_channel(fused.scale, fused.scale_stride, channel, lanes, ACC)
    added = added_by_channel(b_ptr, sizes.b, scale, fused, channel, lanes, HAS_BIAS, FUSED, ACC)
    acc = ()
    for _ in tl.static_range(COLUMNS):
        acc = acc + (added if scale is None else tl.zeros((LANES,), ACC),)
    for m in range(0, SUMMED):
        for i in range(t_begin, t_end):
            for k in range(r_begin, r_end):
                x_at = (d + i * IN_D) * x_d + (h + k * IN_H) * x_h + m * x_c
                w_at = (t + i * STEP[0]) * w_t + (r + k * STEP[1]) * w_r + m * w_m
                for chunk in range(0, S // CHUNK):
                    acc = add_taps(
                        acc,
                        x_ptrs + (x_at + chunk * CHUNK_SPAN * x_w),
                        x_w,
                        x_column + chunk * CHUNK_SPAN,
                        in_w,
                        w_ptrs + (w_at + chunk * CHUNK * w_s),
                        w_s,
                        lanes,
                        COLS,
                        COLUMNS,
                        CHUNK,
                        CHUNK,
                        X_WIDTH,
                        LEAD,
                        LANED,
                        ACC,
                    )
                if S % CHUNK > 0:
                    acc = add_taps(
                        acc,
                        x_ptrs + (x_at + S // CHUNK * CHUNK_SPAN * x_w),
                        x_w,
                        x_column + S // CHUNK * CHUNK_SPAN,
                        in_w,
                        w_ptrs + (w_at + S // CHUNK * CHUNK * w_s),
                        w_s,
                        lanes,
                        COLS,
                        COLUMNS,
                        S % CHUNK,
                        CHUNK,
                        X_WIDTH,
                        LEAD,
                        LANED,
                        ACC,
                    )
    if scale is not None:
        scaled = ()
        for j in tl.static_range(COLUMNS):
            scaled = scaled + (acc[j] * scale + added,)
        acc = scaled
    r_ptrs = None
    r_w = 0
    z_ptrs = None
    z_w = 0
    if FUSED:
        if fused.residual is not None:
            r_ptrs, r_h, r_w = laid_over(
                fused.residual, fused.residual_strides, R_ALIGN, R_UNIT, image, channel, y_column, out_depth, Y_WIDTH, INDEX
            )
            r_ptrs += p * r_h
        if fused.z is not None:
            z_ptrs, z_h, z_w = laid_over(
                fused.z, y_strides, Y_ALIGN, Y_UNIT, image, channel, y_column, out_depth, Y_WIDTH, INDEX
            )
            z_ptrs += p * z_h
    y_masks = column_masks(y_column, out_w, lanes, COLUMNS // Y_WIDTH, Y_WIDTH, LANED)
    store_row(
        y_ptrs,
        y_w,
        acc,
        y_masks,
        tl.full((), True, tl.int1),
        r_ptrs,
        r_w,
        z_ptrs,
        z_w,
        y_ptr.dtype.element_ty,
        COLUMNS,
        Y_WIDTH,
        ACTIVATION,
        SLOPE,
        UPCAST,
    )
