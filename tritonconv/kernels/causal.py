"""Causal depthwise convolution of sequences. A lane is a channel, or a run of columns of one channel (`kernels.window`)."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from tritonconv.kernels.epilogue import per_channel
from tritonconv.kernels.index import strides, unpack, wide
from tritonconv.kernels.window import column_masks, lanes_of, place_of, read_row, spread, store_row, tap_offsets, within


class Sequences(NamedTuple):
    """The operands of a call besides x, w and b. Pointers are None where there is no such operand."""

    state: Any  # [sequence, C, TAPS - 1], the columns before each sequence
    ids: Any  # int32 [B, L], the sequence of each column, negative for none
    starts: Any  # int32 [sequences + 1], where each starts in a packed row; None where a row is a sequence
    state_strides: tuple[int, int, int]  # packed
    count: Any  # sequences, packed


class Lengths(NamedTuple):
    """Sizes, packed (`kernels.index.pack`)."""

    channels: int  # divided by their alignment
    length: int
    b: int  # stride of the bias
    rows: int  # tiles of columns that a program computes


@triton.constexpr_function
def early_of(BEFORE, WIDTH):
    """Loads of WIDTH columns by which a window starts early if it needs BEFORE columns before its tile."""
    return (BEFORE + WIDTH - 1) // WIDTH


@triton.jit
def read_columns(
    ptrs,  # [LANES] or [LANES, WIDTH] at column `first`
    step,
    first,  # scalar or [LANES]: WIDTH * early_of(BEFORE, WIDTH) before the tile
    length,
    lanes,
    BEFORE: tl.constexpr,
    COUNT: tl.constexpr,
    WIDTH: tl.constexpr,
    LANED: tl.constexpr,
    ACC: tl.constexpr,
):
    """COUNT columns of a sequence from BEFORE a tile on, zero outside: a tuple of [LANES]. Widths divide the length."""
    LEAD: tl.constexpr = early_of(BEFORE, WIDTH) * WIDTH - BEFORE
    ALL: tl.constexpr = tap_offsets(COUNT, 1, 1, 1, 0, 0, False)
    masks = column_masks(first, length, lanes, (LEAD + COUNT + WIDTH - 1) // WIDTH, WIDTH, LANED)
    return read_row(ptrs, step, masks, tl.full((), True, tl.int1), ALL, WIDTH, LEAD, COUNT, ACC)


@triton.jit
def read_ids(ids_ptr, first, length, COUNT: tl.constexpr):
    """The sequences of COUNT columns, -1 outside: scalars or [LANES]."""
    ids = ()
    for v in tl.static_range(COUNT):
        ids = ids + (tl.load(ids_ptr + (first + v), mask=within(first + v, length), other=-1),)
    return ids


@triton.jit
def with_state(window, ptrs, step, column, lanes, COUNT: tl.constexpr, TAPS: tl.constexpr, ACC: tl.constexpr):
    """A window that begins TAPS - 1 before `column`, with the state in its columns before 0. ptrs: [LANES] at state 0."""
    filled = ()
    for v in tl.static_range(COUNT):
        value = window[v]
        if v < TAPS - 1:  # column + v of the state
            mask = tl.where(column + v < TAPS - 1, lanes, False)
            value += tl.load(ptrs + (column + v) * step, mask=mask, other=0.0).to(ACC)
        filled = filled + (value,)
    return filled


@triton.jit
def seen(
    window,  # COUNT + TAPS - 1 columns, the first one TAPS - 1 before `column`
    ids,  # their sequences
    sequences,  # Sequences
    state_ptrs,  # [LANES] at sequence 0, state 0
    column,
    lanes,
    COUNT: tl.constexpr,
    TAPS: tl.constexpr,
    IDS: tl.constexpr,
    PACKED: tl.constexpr,  # rows hold several sequences, each with a state
    ACC: tl.constexpr,
):
    """Entry j * TAPS + d: what column j sees d columns back. Zero in another sequence; its own state where it has one."""
    columns_seen = ()
    for j in tl.static_range(COUNT):
        for d in tl.static_range(TAPS):
            value = window[j + TAPS - 1 - d]
            if IDS and d > 0:
                value = tl.where(ids[j + TAPS - 1 - d] == ids[j + TAPS - 1], value, 0.0)
            columns_seen = columns_seen + (value,)
    if PACKED:
        changes = tl.max((ids[0] != ids[COUNT + TAPS - 2] + tl.zeros_like(lanes).to(tl.int32)).to(tl.int32), 0)
        if changes > 0:  # few tiles meet the start of a sequence
            columns_seen = before_starts(columns_seen, ids, sequences, state_ptrs, column, lanes, COUNT, TAPS, ACC)
    return columns_seen


@triton.jit
def before_starts(
    values, ids, sequences, state_ptrs, column, lanes, COUNT: tl.constexpr, TAPS: tl.constexpr, ACC: tl.constexpr
):
    """The values of `seen`, with a sequence's state where a column sees what lies before its start."""
    columns_seen = ()
    for j in tl.static_range(COUNT):
        own = ids[j + TAPS - 1]
        known = (own >= 0) & (own < unpack(sequences.count))
        start = tl.load(sequences.starts + own, mask=known, other=0)
        state = own.to(tl.int64) * unpack(sequences.state_strides[0])
        for d in tl.static_range(TAPS):
            value = values[j * TAPS + d]
            if d > 0:
                place = column + (j + TAPS - 1 - d) - start  # in the state, whatever `starts` holds
                mask = tl.where(known & (place >= 0) & (place < TAPS - 1), lanes, False)
                at = state + place * unpack(sequences.state_strides[2]).to(tl.int64)
                value += tl.load(state_ptrs + at, mask=mask, other=0.0).to(ACC)
            columns_seen = columns_seen + (value,)
    return columns_seen


@triton.jit
def summed(values, weights, start, COUNT: tl.constexpr, TAPS: tl.constexpr):
    """start + the sum over taps, for each of COUNT columns of `seen`."""
    made = ()
    for j in tl.static_range(COUNT):
        acc = start
        for d in tl.static_range(TAPS):
            acc += values[j * TAPS + d] * weights[TAPS - 1 - d]
        made = made + (acc,)
    return made


@triton.jit
def read_weights(w_ptr, w_strides, channel, lanes, W_ALIGN: tl.constexpr, W_UNIT: tl.constexpr, TAPS: tl.constexpr, ACC):
    """w[c, s] of each lane's channel, a tuple of TAPS tensors [LANES]."""
    w_c, _, _, _, w_s = strides(w_strides, W_ALIGN, W_UNIT, tl.int64)
    weights = ()
    for s in tl.static_range(TAPS):
        weights = weights + (tl.load(w_ptr + (channel * w_c + s * w_s), mask=lanes, other=0.0).to(ACC),)
    return weights


@triton.jit
def bias_of(b_ptr, stride, channel, lanes, LANES: tl.constexpr, ACC: tl.constexpr):
    start = tl.zeros((LANES,), ACC)
    if b_ptr is not None:
        start = per_channel(b_ptr, stride, channel, lanes, ACC)
    return start


@triton.jit
def causal_kernel(
    x_ptr,
    w_ptr,
    b_ptr,
    y_ptr,
    sequences,  # Sequences
    x_strides,  # Strides of x [B, C, L]
    w_strides,  # Strides of w [C, 1, TAPS]
    y_strides,  # Strides of y [B, C, L]
    sizes,  # Lengths
    TAPS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_STATE: tl.constexpr,
    IDS: tl.constexpr,
    PACKED: tl.constexpr,  # the ids are of sequences packed in one row
    X_ALIGN: tl.constexpr,
    X_UNIT: tl.constexpr,
    W_ALIGN: tl.constexpr,
    W_UNIT: tl.constexpr,
    Y_ALIGN: tl.constexpr,
    Y_UNIT: tl.constexpr,
    C_ALIGN: tl.constexpr,
    EVEN_C: tl.constexpr,  # every lane has a channel
    X_WIDTH: tl.constexpr,  # columns per load
    Y_WIDTH: tl.constexpr,  # columns per store, a power of two that divides COLUMNS and the length
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
    UPCAST: tl.constexpr,
    CHANNELS: tl.constexpr,  # channels per program
    GROUPS: tl.constexpr,  # column tiles per program
    COLUMNS: tl.constexpr,  # columns per tile
):
    """y[n, c, t] = act(b[c] + sum over d < TAPS of w[c, TAPS - 1 - d] * seen[n, c, t - d])

    `seen` is x within the sequence of t; before its start it is the sequence's state, or zero. A program walks along a row,
    tile by tile.
    """
    LANES: tl.constexpr = CHANNELS * GROUPS
    LANED: tl.constexpr = GROUPS > 1 or not EVEN_C
    WINDOW: tl.constexpr = COLUMNS + TAPS - 1
    EARLY: tl.constexpr = early_of(TAPS - 1, X_WIDTH)
    Y_MASKS: tl.constexpr = COLUMNS // Y_WIDTH
    _, x_c, _, _, x_w = strides(x_strides, X_ALIGN, X_UNIT, INDEX)
    _, y_c, _, _, y_w = strides(y_strides, Y_ALIGN, Y_UNIT, INDEX)
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
    x_base = x_ptr + image * wide(x_strides.outer, X_ALIGN, X_UNIT == 0)
    y_base = y_ptr + image * wide(y_strides.outer, Y_ALIGN, Y_UNIT == 0)
    x_ptrs = spread(x_base, channel * x_c + x_column * x_w, x_w, X_WIDTH)
    y_ptrs = spread(y_base, channel * y_c + column * y_w, y_w, Y_WIDTH)
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
    for i in range(0, rows):
        walked = i * (GROUPS * COLUMNS)
        x_row = x_ptrs + walked * x_w
        window = read_columns(x_row, x_w, x_column + walked, length, lanes, TAPS - 1, WINDOW, X_WIDTH, LANED, ACC)
        if HAS_STATE and not PACKED:
            window = with_state(window, state_ptrs, state_step, column + walked, lanes, WINDOW, TAPS, ACC)
        ids = ()
        if IDS:
            ids = read_ids(ids_ptr, column + walked - (TAPS - 1), length, WINDOW)
        values = seen(window, ids, sequences, state_ptrs, column + walked, lanes, COLUMNS, TAPS, IDS, PACKED and HAS_STATE, ACC)
        made = summed(values, weights, start, COLUMNS, TAPS)
        if IDS:  # a column without a sequence is zero
            kept = ()
            for j in tl.static_range(COLUMNS):
                kept = kept + (tl.where(ids[j + TAPS - 1] >= 0, made[j], 0.0),)
            made = kept
        masks = column_masks(column + walked, length, lanes, Y_MASKS, Y_WIDTH, LANED)
        store_row(
            y_ptrs + walked * y_w,
            y_w,
            made,
            masks,
            tl.full((), True, tl.int1),
            None,
            0,
            None,
            0,
            y_ptr.dtype.element_ty,
            COLUMNS,
            Y_WIDTH,
            ACTIVATION,
            0.0,
            UPCAST,
        )
