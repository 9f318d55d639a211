"""What the depthwise kernels share: which taps meet which pixels, and rows of pixels as tuples of registers.

A program's lanes are channels, or channels times neighbouring column tiles. Each lane owns COLUMNS output columns, known by
their number at compile time, so that a row is a tuple of 1-D tensors [LANES] and no multiply-add needs an index.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from tritonconv.kernels.epilogue import conclude, per_channel, rounded
from tritonconv.kernels.index import strides, wide


class Extents(NamedTuple):
    """Sizes of a depthwise launch, packed (`kernels.index.pack`). "in" is the tensor that is gathered, dy for dgrad."""

    in_d: int
    in_h: int
    in_w: int
    out_d: int
    out_h: int
    out_w: int
    channels: int  # channels of the output (for wgrad pairs of a filter and a channel), divided by their alignment
    shift_d: int  # input coordinate of tap offset 0 of output group 0, negated
    shift_h: int
    shift_w: int  # divided by the load width, rounded up
    b: int  # stride of the bias
    rows: int  # groups of output rows that a program computes


@triton.constexpr_function
def tap_offsets(OUTPUTS, KERNEL, STRIDE, DILATION, PHASE, REACH, DGRAD):
    """Entry j * KERNEL + tap: the position in the window of the input pixel that output j meets at a tap, -1 if there is none.

    fprop: the window of outputs 0, 1, ... starts at input -low. dgrad: outputs 0, 1, ... are pixels of dx, the first one PHASE
    above a multiple of the stride, and the window lies in dy.
    """
    offsets = []
    for j in range(OUTPUTS):
        for tap in range(KERNEL):
            reached = j + PHASE - tap * DILATION
            if not DGRAD:
                offsets.append(j * STRIDE + tap * DILATION)
            else:
                offsets.append(reached // STRIDE + REACH if reached % STRIDE == 0 else -1)
    return tuple(offsets)


@triton.constexpr_function
def first_taps(OFFSETS, KERNEL, TAPS):
    """The entries of `tap_offsets` for the first TAPS taps."""
    return tuple(OFFSETS[j * KERNEL + tap] for j in range(len(OFFSETS) // KERNEL) for tap in range(TAPS))


@triton.constexpr_function
def highest(OFFSETS):
    return max(OFFSETS)


@triton.constexpr_function
def holds(OFFSETS, offset):
    return offset in OFFSETS


@triton.constexpr_function
def meets_row(OFFSETS, row, ROWS):
    """Whether any tap meets row `row` of the ROWS input rows of a step."""
    return any(offset >= 0 and offset % ROWS == row for offset in OFFSETS)


@triton.jit
def within(coordinate, size):
    """0 <= coordinate < size in one comparison: as an unsigned number a negative coordinate is above every size.

    The coordinate's type holds both. A size of 2^30 or more travels in 64 bits, one that has few elements in 32.
    """
    size = size.to(coordinate.dtype)
    if coordinate.dtype == tl.int64:
        return coordinate.to(tl.uint64, bitcast=True) < size.to(tl.uint64, bitcast=True)
    else:
        return coordinate.to(tl.uint32, bitcast=True) < size.to(tl.uint32, bitcast=True)


@triton.jit
def lanes_of(tile, CHANNELS: tl.constexpr, GROUPS: tl.constexpr, PLANES: tl.constexpr):
    """(channel, column tile) of every lane of a program; the column tile is a scalar where a program has only one."""
    lane = tl.arange(0, CHANNELS * GROUPS)
    if GROUPS == 1:
        channel = lane
        column = tile
    elif PLANES:  # neighbouring columns are neighbours in memory
        channel = lane // GROUPS
        column = tile * GROUPS + lane % GROUPS
    else:
        channel = lane % CHANNELS
        column = tile * GROUPS + lane // CHANNELS
    return channel, column


@triton.jit
def place_of(pid, channels, columns, CHANNELS: tl.constexpr):
    """(tile of channels, tile of columns, rest) of a program, channels fastest, since the channels of a pixel are contiguous.

    `columns`: the number of column tiles.
    """
    tiles_c = tl.cdiv(channels, CHANNELS)
    pid_c = pid % tiles_c
    pid = pid // tiles_c
    return pid_c, pid % columns, pid // columns


@triton.jit
def spread(base, offset, step, WIDTH: tl.constexpr):
    """base + offset [LANES], or with WIDTH > 1 the pointers [LANES, WIDTH] of WIDTH elements, `step` apart."""
    if WIDTH == 1:
        return base + offset
    else:
        return base + (offset[:, None] + (tl.arange(0, WIDTH) * step)[None, :])


@triton.jit
def weights_of(channel, w_k, w_c, PER_GROUP: tl.constexpr, SUMMED: tl.constexpr, DGRAD: tl.constexpr):
    """(offset [LANES] of the weights that an output channel meets, step per channel that it sums).

    w [K, C / G, ...]: fprop sums the channels of a filter, dgrad the filters of its group.
    """
    if not DGRAD:
        return channel * w_k, w_c
    else:
        offset = (channel // PER_GROUP) * (SUMMED * w_k)
        if PER_GROUP > 1:
            offset += (channel % PER_GROUP) * w_c
        return offset, w_k


@triton.jit
def zeros(COUNT: tl.constexpr, LANES: tl.constexpr, ACC: tl.constexpr):
    """COUNT tensors [LANES] of zeros."""
    tensors = ()
    for _ in tl.static_range(COUNT):
        tensors = tensors + (tl.zeros((LANES,), ACC),)
    return tensors


@triton.jit
def split_columns(tile, WIDTH: tl.constexpr):
    """The columns of tile [LANES, WIDTH] as a tuple of WIDTH tensors [LANES]; WIDTH is a power of two."""
    if WIDTH == 1:
        return (tl.reshape(tile, (tile.shape[0],)),)
    elif WIDTH == 2:
        even, odd = tl.split(tile)
        return (even, odd)
    else:
        even, odd = tl.split(tl.reshape(tile, (tile.shape[0], WIDTH // 2, 2)))
        evens = split_columns(even, WIDTH // 2)
        odds = split_columns(odd, WIDTH // 2)
        columns = ()
        for i in tl.static_range(WIDTH // 2):
            columns = columns + (evens[i], odds[i])
        return columns


@triton.jit
def join_columns(columns, WIDTH: tl.constexpr):
    """The inverse of `split_columns`."""
    if WIDTH == 1:
        return tl.reshape(columns[0], (columns[0].shape[0], 1))
    elif WIDTH == 2:
        return tl.join(columns[0], columns[1])
    else:
        evens = ()
        odds = ()
        for i in tl.static_range(WIDTH // 2):
            evens = evens + (columns[2 * i],)
            odds = odds + (columns[2 * i + 1],)
        even = join_columns(evens, WIDTH // 2)
        odd = join_columns(odds, WIDTH // 2)
        return tl.reshape(tl.join(even, odd), (even.shape[0], WIDTH))


@triton.jit
def column_masks(first, size, lanes, COUNT: tl.constexpr, WIDTH: tl.constexpr, LANED: tl.constexpr):
    """COUNT masks of the columns from `first` on, WIDTH to a mask: scalars, [LANES], or with WIDTH > 1 [LANES, 1].

    LANED: the mask is per lane, because `first` is, or because some lanes do not exist. `first` and `size` are multiples of
    WIDTH (`costmodel.families.depthwise.load_width`, `store_width`).
    """
    masks = ()
    for i in tl.static_range(COUNT):
        if WIDTH == 1:
            ok = within(first + i, size)
            if LANED:
                ok = tl.where(ok, lanes, False)  # Triton 3.9's interpreter takes no block & scalar
        else:
            ok = (lanes & within(first + i * WIDTH, size))[:, None]
        masks = masks + (ok,)
    return masks


@triton.jit
def read_row(
    ptrs,
    step,
    masks,
    row_ok,
    OFFSETS: tl.constexpr,
    WIDTH: tl.constexpr,
    LEAD: tl.constexpr,
    WINDOW: tl.constexpr,
    ACC: tl.constexpr,
):
    """The WINDOW columns of one input row, zero outside, in the accumulator's type.

    OFFSETS: which columns are used. WIDTH > 1: ptrs is [LANES, WIDTH] and starts LEAD columns early, at a multiple of WIDTH, so
    that one load brings WIDTH columns.
    """
    row = ()
    if WIDTH == 1:
        for v in tl.static_range(WINDOW):
            if holds(OFFSETS, v):
                row = row + (tl.load(ptrs + v * step, mask=tl.where(row_ok, masks[v], False), other=0.0).to(ACC),)
            else:
                row = row + (0.0,)
        return row
    else:
        for g in tl.static_range((LEAD + WINDOW + WIDTH - 1) // WIDTH):
            tile = tl.load(ptrs + g * WIDTH * step, mask=tl.where(row_ok, masks[g], False), other=0.0)
            row = row + split_columns(tile.to(ACC), WIDTH)
        return row[LEAD : LEAD + WINDOW]


@triton.jit
def read_channels(
    ptrs,
    channel_step,
    step,
    masks,
    row_ok,
    OFFSETS: tl.constexpr,
    WIDTH: tl.constexpr,
    LEAD: tl.constexpr,
    WINDOW: tl.constexpr,
    SUMMED: tl.constexpr,
    TOGETHER: tl.constexpr,
    LANED: tl.constexpr,
    ACC: tl.constexpr,
):
    """`read_row` of each of SUMMED channels: [(channel, column)].

    TOGETHER: ptrs is [LANES, SUMMED], since the channels of a pixel are contiguous and one load brings them.
    """
    rows = ()
    if TOGETHER:
        pixels = ()  # [(column, channel)]
        for v in tl.static_range(WINDOW):
            if holds(OFFSETS, v):
                mask = tl.where(row_ok, masks[v], False)
                if LANED:
                    mask = mask[:, None]
                tile = tl.load(ptrs + v * step, mask=mask, other=0.0)
                pixels = pixels + split_columns(tile.to(ACC), SUMMED)
            else:
                for _ in tl.static_range(SUMMED):
                    pixels = pixels + (0.0,)
        for i in tl.static_range(SUMMED):
            for v in tl.static_range(WINDOW):
                rows = rows + (pixels[v * SUMMED + i],)
    else:
        for i in tl.static_range(SUMMED):
            rows = rows + read_row(ptrs + i * channel_step, step, masks, row_ok, OFFSETS, WIDTH, LEAD, WINDOW, ACC)
    return rows


@triton.jit
def added_by_channel(
    b_ptr, b_stride, scale, fused, channel, lanes, HAS_BIAS: tl.constexpr, FUSED: tl.constexpr, ACC: tl.constexpr
):
    """b * scale + shift [LANES], which is added to the scaled sums of a lane's channel. `scale` is None without a scale."""
    added = tl.zeros((channel.shape[0],), ACC)
    if HAS_BIAS:
        added = per_channel(b_ptr, b_stride, channel, lanes, ACC)
        if scale is not None:
            added *= scale
    if FUSED:
        if fused.shift is not None:
            added += per_channel(fused.shift, fused.shift_stride, channel, lanes, ACC)
    return added


@triton.jit
def laid_over(
    ptr,
    packed,
    ALIGN: tl.constexpr,
    UNIT: tl.constexpr,
    image,
    channel,
    column,
    depth,
    WIDTH: tl.constexpr,
    INDEX: tl.constexpr,
):
    """(pointers at a tile's columns of row 0, steps of row and column) of a residual, or of z: [LANES] or [LANES, WIDTH]."""
    _, r_c, r_d, r_h, r_w = strides(packed, ALIGN, UNIT, INDEX)
    base = ptr + image * wide(packed.outer, ALIGN, UNIT == 0)
    return spread(base, channel * r_c + (column * r_w + depth * r_d), r_w, WIDTH), r_h, r_w


@triton.jit
def store_row(
    ptrs,  # [LANES] or [LANES, WIDTH] at the row's first column
    step,
    row,  # COLUMNS tensors [LANES]
    masks,
    row_ok,
    r_ptrs,  # pointers to the residual, of the shape of `ptrs`; None without one
    r_step,
    z_ptrs,  # pointers that receive the value before the activation; None where it is not needed
    z_step,
    DTYPE: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Applies the epilogue to one output row, rounds it once and stores it."""
    for j in tl.static_range(COLUMNS // WIDTH):
        piece = row[j] if WIDTH == 1 else join_columns(row[j * WIDTH : (j + 1) * WIDTH], WIDTH)
        mask = tl.where(row_ok, masks[j], False)
        residual_at = None
        z_at = None
        if r_ptrs is not None:
            residual_at = r_ptrs + j * WIDTH * r_step
        if z_ptrs is not None:
            z_at = z_ptrs + j * WIDTH * z_step
        piece = conclude(piece, residual_at, z_at, mask, ACTIVATION, SLOPE, UPCAST)
        tl.store(ptrs + j * WIDTH * step, rounded(piece, DTYPE, UPCAST), mask=mask)
