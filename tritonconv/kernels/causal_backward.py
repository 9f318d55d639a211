"""Gradients of the causal convolution: the gradient of x, and partial sums of those of the weight and the bias."""

import triton
import triton.language as tl

from tritonconv.kernels.causal import bias_of, early_of, read_columns, read_ids, read_weights, seen, summed, with_state
from tritonconv.kernels.epilogue import sigmoid
from tritonconv.kernels.index import strides, unpack, wide
from tritonconv.kernels.window import column_masks, lanes_of, place_of, spread, store_row, within, zeros


@triton.jit
def through(dy, z, ACTIVATION: tl.constexpr):
    """dy * act'(z)"""
    if ACTIVATION == "silu":
        s = sigmoid(z)
        dy = dy * (s * (1.0 + z * (1.0 - s)))
    else:
        tl.static_assert(ACTIVATION == "", "an activation without a derivative")
    return dy


@triton.jit
def causal_backward_kernel(
    dy_ptr,
    x_ptr,
    w_ptr,
    b_ptr,
    dfinal_ptr,  # [sequence, C, TAPS - 1], the gradient of the final states; None without one
    dx_ptr,  # None where dx is not needed
    partial_ptr,  # workspace [part, TAPS + 1, C] in the accumulator's type, the bias last; None where neither is needed
    sequences,  # Sequences
    dy_strides,  # Strides of dy [B, C, L]
    x_strides,  # Strides of x
    w_strides,  # Strides of w [C, 1, TAPS]
    dx_strides,  # Strides of dx
    dfinal_strides,  # packed
    sizes,  # Lengths
    TAPS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_STATE: tl.constexpr,
    IDS: tl.constexpr,
    PACKED: tl.constexpr,
    DY_ALIGN: tl.constexpr,
    DY_UNIT: tl.constexpr,
    X_ALIGN: tl.constexpr,
    X_UNIT: tl.constexpr,
    W_ALIGN: tl.constexpr,
    W_UNIT: tl.constexpr,
    DX_ALIGN: tl.constexpr,
    DX_UNIT: tl.constexpr,
    C_ALIGN: tl.constexpr,
    EVEN_C: tl.constexpr,
    DY_WIDTH: tl.constexpr,  # columns per load of dy
    X_WIDTH: tl.constexpr,
    DX_WIDTH: tl.constexpr,  # columns per store: 1 or COLUMNS
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
    UPCAST: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """z is the value before the activation, recomputed, dz = dy * act'(z), and every d < TAPS stays within one sequence:

    dx[n, c, t] = sum over d of w[c, TAPS - 1 - d] * dz[n, c, t + d], plus dfinal where t is one of the last TAPS - 1
    partial[part, TAPS - 1 - d, c] = sum over a program's columns t of dz[n, c, t] * seen[n, c, t - d]
    partial[part, TAPS, c] = sum over them of dz[n, c, t]

    A tile computes dz for its own columns and for the TAPS - 1 after them.
    """
    LANES: tl.constexpr = CHANNELS * GROUPS
    LANED: tl.constexpr = GROUPS > 1 or not EVEN_C
    DX: tl.constexpr = dx_ptr is not None
    MADE: tl.constexpr = COLUMNS + TAPS - 1 if dx_ptr is not None else COLUMNS  # columns of dz
    READ: tl.constexpr = MADE if ACTIVATION != "" else COLUMNS  # columns whose taps are read
    WINDOW: tl.constexpr = READ + TAPS - 1
    EARLY: tl.constexpr = early_of(TAPS - 1, X_WIDTH)
    _, y_c, _, _, y_w = strides(dy_strides, DY_ALIGN, DY_UNIT, INDEX)
    _, x_c, _, _, x_w = strides(x_strides, X_ALIGN, X_UNIT, INDEX)
    _, dx_c, _, _, dx_w = strides(dx_strides, DX_ALIGN, DX_UNIT, INDEX)
    channels = unpack(sizes.channels) * C_ALIGN
    length = unpack(sizes.length)
    rows = unpack(sizes.rows)
    pid_c, pid_q, pid = place_of(tl.program_id(0), channels, tl.cdiv(length, COLUMNS * GROUPS * rows), CHANNELS)
    image = pid.to(tl.int64)
    channel, tile = lanes_of(pid_q * rows, CHANNELS, GROUPS, X_UNIT == 4)
    channel += pid_c * CHANNELS
    lanes = channel < channels  # [LANES]
    column = tile * COLUMNS
    x_column = (tile * (COLUMNS // X_WIDTH) - EARLY) * X_WIDTH
    y_base = dy_ptr + image * wide(dy_strides.outer, DY_ALIGN, DY_UNIT == 0)
    x_base = x_ptr + image * wide(x_strides.outer, X_ALIGN, X_UNIT == 0)
    y_ptrs = spread(y_base, channel * y_c + column * y_w, y_w, DY_WIDTH)
    x_ptrs = spread(x_base, channel * x_c + x_column * x_w, x_w, X_WIDTH)
    dx_ptrs = None
    if DX:
        dx_base = dx_ptr + image * wide(dx_strides.outer, DX_ALIGN, DX_UNIT == 0)
        dx_ptrs = spread(dx_base, channel * dx_c + column * dx_w, dx_w, DX_WIDTH)
    start = bias_of(b_ptr, sizes.b, channel, lanes, LANES, ACC)
    weights = read_weights(w_ptr, w_strides, channel, lanes, W_ALIGN, W_UNIT, TAPS, ACC)
    state_ptrs = None
    state_step = 0
    if HAS_STATE:
        state_ptrs = sequences.state + channel.to(tl.int64) * unpack(sequences.state_strides[1])
        state_step = unpack(sequences.state_strides[2]).to(tl.int64)
        if not PACKED:
            state_ptrs += image * unpack(sequences.state_strides[0])
    ids_ptr = None
    if IDS:
        ids_ptr = sequences.ids + image * length
    sums = zeros(TAPS + 1, LANES, ACC)
    for i in range(0, rows):
        walked = i * (GROUPS * COLUMNS)
        here = column + walked
        x_row = x_ptrs + walked * x_w
        window = read_columns(x_row, x_w, x_column + walked, length, lanes, TAPS - 1, WINDOW, X_WIDTH, LANED, ACC)
        if HAS_STATE and not PACKED:
            window = with_state(window, state_ptrs, state_step, here, lanes, WINDOW, TAPS, ACC)
        ids = ()
        if IDS:
            ids = read_ids(ids_ptr, here - (TAPS - 1), length, MADE + TAPS - 1)
        values = seen(window, ids, sequences, state_ptrs, here, lanes, READ, TAPS, IDS, PACKED and HAS_STATE, ACC)
        dz = read_columns(y_ptrs + walked * y_w, y_w, here, length, lanes, 0, MADE, DY_WIDTH, LANED, ACC)
        if ACTIVATION != "":
            z = summed(values, weights, start, READ, TAPS)
            passed = ()
            for j in tl.static_range(MADE):  # after the end z is meaningless and may be infinite
                passed = passed + (tl.where(within(here + j, length), through(dz[j], z[j], ACTIVATION), 0.0),)
            dz = passed
        if IDS:
            kept = ()
            for j in tl.static_range(MADE):
                kept = kept + (tl.where(ids[j + TAPS - 1] >= 0, dz[j], 0.0),)
            dz = kept
        if partial_ptr is not None:
            added = ()
            for s in tl.static_range(TAPS):
                acc = sums[s]
                for j in tl.static_range(COLUMNS):
                    acc += dz[j] * values[j * TAPS + (TAPS - 1 - s)]
                added = added + (acc,)
            acc = sums[TAPS]
            for j in tl.static_range(COLUMNS):
                acc += dz[j]
            sums = added + (acc,)
        if DX:
            made = ()
            for j in tl.static_range(COLUMNS):
                acc = tl.zeros((LANES,), ACC)
                for d in tl.static_range(TAPS):
                    product = dz[j + d] * weights[TAPS - 1 - d]
                    if IDS and d > 0:
                        product = tl.where(ids[j + d + TAPS - 1] == ids[j + TAPS - 1], product, 0.0)
                    acc += product
                if dfinal_ptr is not None:
                    sequence = image
                    end = length
                    if PACKED:
                        own = tl.minimum(tl.maximum(ids[j + TAPS - 1], 0), unpack(sequences.count) - 1)
                        sequence = own.to(tl.int64)
                        end = tl.load(sequences.starts + own + 1)
                    place = here + j - end + (TAPS - 1)
                    reached = (place >= 0) & (here + j < end)
                    if PACKED:
                        reached = reached & (ids[j + TAPS - 1] >= 0)
                    at = sequence * unpack(dfinal_strides[0]) + place * unpack(dfinal_strides[2]).to(tl.int64)
                    at += channel.to(tl.int64) * unpack(dfinal_strides[1])
                    acc += tl.load(dfinal_ptr + at, mask=tl.where(reached, lanes, False), other=0.0).to(ACC)
                made = made + (acc,)
            masks = column_masks(here, length, lanes, COLUMNS // DX_WIDTH, DX_WIDTH, LANED)
            store_row(
                dx_ptrs + walked * dx_w,
                dx_w,
                made,
                masks,
                tl.full((), True, tl.int1),
                None,
                0,
                None,
                0,
                dx_ptr.dtype.element_ty,
                COLUMNS,
                DX_WIDTH,
                "",
                0.0,
                UPCAST,
            )

    if partial_ptr is not None:
        part = pid * tl.cdiv(length, COLUMNS * GROUPS * rows) + pid_q
        owner = pid_c * CHANNELS + tl.arange(0, CHANNELS)
        base = partial_ptr + part.to(tl.int64) * ((TAPS + 1) * channels)
        for s in tl.static_range(TAPS + 1):
            acc = sums[s]
            if GROUPS > 1 and X_UNIT == 4:
                acc = tl.sum(tl.reshape(acc, (CHANNELS, GROUPS)), 1)
            elif GROUPS > 1:
                acc = tl.sum(tl.reshape(acc, (GROUPS, CHANNELS)), 0)
            tl.store(base + (s * channels + owner), acc, mask=owner < channels)
