"""Geometry of the "band" family: a pass as its kernels see it, windows cut to the image, and the programs and trips of a
launch. Plain arithmetic, standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from costmodel.algebra import ceil_div
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Plan, plan_option

#: Elements of a vector. The kernels align windows and taps to whole vectors.
VECTOR = 8


@dataclass(frozen=True)
class BandPlan(Plan):
    """A plan of "band". `step` is the box of outputs of a block; its product is `block_n` (wgrad: `block_m`). A trip (wgrad: a
    tile) takes `block_k` (wgrad: `block_n`) pixels of a window, in `rows` rows. The remaining block size counts blocks of
    outputs. `split` programs share wgrad's sum. `pack` names the tensors that are first copied to rows of whole vectors."""

    split: int = plan_option("split", 1)
    step: tuple[int, int, int, int] | None = plan_option("step", None, 4)
    rows: int = plan_option("rows", 1)
    pack: tuple[str, ...] = plan_option("pack-", ())


class Shape(NamedTuple):
    """One pass as the kernels see it. "in" is the tensor whose windows are read. "out" is the tensor that is cut into blocks:
    y for fprop, dx for dgrad, dy for wgrad. Widths are rounded up to whole vectors."""

    images: int
    channels: int
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    kernel: tuple[int, int]
    low: tuple[int, int]  # rows and columns that a window starts before its block

    @property
    def lead(self) -> int:
        """`low` of the columns, rounded up to whole vectors."""
        return rounded_up(self.low[1])

    @property
    def gap(self) -> int:
        return self.lead - self.low[1]

    @property
    def pitch(self) -> int:
        """Elements per row of the table of taps: whole vectors that hold a row of taps shifted by 1 to 8 elements."""
        return (self.kernel[1] - 1) // VECTOR * VECTOR + 2 * VECTOR


def rounded_up(columns: int) -> int:
    """The number of columns, rounded up to whole vectors."""
    return -(-columns // VECTOR) * VECTOR


@lru_cache(maxsize=1024)
def shape_of(problem: ConvProblem, which: Pass) -> Shape:
    """The shape of a pass of a 2-D problem of stride 1."""
    (height, width), (rows, columns), (r, c) = problem.input_size, problem.output_size, problem.kernel_size
    x, y = (height, rounded_up(width)), (rows, rounded_up(columns))
    low = problem.padding[0][0], problem.padding[1][0]
    if which == Pass.DGRAD:
        return Shape(problem.batch, problem.in_channels, y, x, (r, c), (r - 1 - low[0], c - 1 - low[1]))
    return Shape(problem.batch, problem.in_channels, x, y, (r, c), low)


class Band(NamedTuple):
    """A plan's tile: `blocks` blocks of `box` outputs, times `rows` x `columns` pixels of a window per trip. For wgrad the
    pixels are those of a tile, and a trip takes one block of each of `blocks` images."""

    blocks: int
    box: tuple[int, int]
    rows: int
    columns: int


def band_of(plan: BandPlan) -> Band:
    assert plan.step is not None
    wgrad = plan.which == Pass.WGRAD
    window = plan.block_n if wgrad else plan.block_k
    return Band(plan.block_k if wgrad else plan.block_m, plan.step[2:], plan.rows, window // plan.rows)


class Window(NamedTuple):
    """The rows and columns of a window that lie inside the image for at least one of the blocks."""

    first_t: int
    end_t: int
    first_j: int
    end_j: int


def window_of(shape: Shape, box: tuple[int, int], first: int, last: int) -> Window:
    """The window of blocks `first` to `last`, as the kernels cut it."""
    across = ceil_div(shape.outputs[1], box[1])
    (first_p, first_q), (last_p, last_q) = divmod(first, across), divmod(last, across)
    if first_p != last_p:
        first_q, last_q = 0, across - 1
    return Window(
        max(shape.low[0] - last_p * box[0], 0),
        min(shape.inputs[0] + shape.low[0] - first_p * box[0], box[0] + shape.kernel[0] - 1),
        max(shape.lead - last_q * box[1], 0),
        min(shape.inputs[1] + shape.lead - first_q * box[1], box[1] + shape.kernel[1] - 1 + shape.gap),
    )


def blocks_of(shape: Shape, box: tuple[int, int]) -> int:
    """Blocks of an image."""
    return ceil_div(shape.outputs[0], box[0]) * ceil_div(shape.outputs[1], box[1])


class Launch(NamedTuple):
    """The programs of a launch, and the sum of their trips."""

    tiles: int  # tiles per channel, without splits
    splits: int
    programs: int
    trips: int
    read: float  # upper bound of the share of the band's vectors that are read; the others are known to be zeros


@lru_cache(maxsize=4096)
def launch_of(shape: Shape, which: Pass, band: Band, split: int) -> Launch:
    """The launch of a tile."""
    if which == Pass.WGRAD:
        whole = window_of(shape, band.box, 0, blocks_of(shape, band.box) - 1)
        tiles_t = ceil_div(band.box[0] + shape.kernel[0] - 1, band.rows)
        tiles_j = max(1, ceil_div(whole.end_j - whole.first_j, band.columns))
        across, trips = ceil_div(shape.outputs[1], band.box[1]), 0
        for tile in range(tiles_t):
            first, end = rows_met(shape, band, tile)
            steps = max(0, end - first) * across * ceil_div(shape.images, band.blocks)
            trips += max(1, ceil_div(steps, split)) * split
        tiles = tiles_t * tiles_j
        return Launch(tiles, split, shape.channels * tiles * split, shape.channels * tiles_j * trips, 1.0)
    tiles, trips, read = ceil_div(shape.images * blocks_of(shape, band.box), band.blocks), 0, 0
    for programs, down, right in cuts(shape, band):
        trips += programs * max(1, down * max(1, right))
        read += programs * rows_read(shape, band, down) * columns_read(shape, band, right)
    return Launch(tiles, 1, shape.channels * tiles, shape.channels * trips, read / (trips * band.rows * band.columns))


def cuts(shape: Shape, band: Band) -> Iterator[tuple[int, int, int]]:
    """(programs, trips down, trips across) of a channel's programs; programs that are cut alike are counted together.

    A program belongs to the row of blocks where it starts. Rows of blocks whose windows lie inside the image from top to
    bottom repeat after `period` rows.
    """
    across, last = ceil_div(shape.outputs[1], band.box[1]), ceil_div(shape.outputs[0], band.box[0]) - 1
    row, size = across * shape.images, band.blocks
    begin = min(last, ceil_div(max(0, shape.low[0]), band.box[0]))
    end = (shape.inputs[0] + shape.low[0] - (band.box[0] + shape.kernel[0] - 1)) // band.box[0] + 1
    end = max(begin, min(last, end))
    period = size // math.gcd(size, row)
    runs_of: dict[int, list[tuple[int, int]]] = {}
    for p in (*range(min(end, begin + period)), *range(end, last + 1)):
        times = ceil_div(end - p, period) if begin <= p < end else 1
        phase = -p * row % size
        if p == last or phase not in runs_of:
            runs_of[phase] = runs(shape, band, phase, p == last)
        inside = runs_of[phase]
        down, _ = steps_of(shape, band, p * across, p * across)
        for programs, right in inside:
            yield times * programs, down, right
        start = phase + size * sum(programs for programs, _ in inside)
        if start < row and p < last:  # one more starts here and ends in another row
            first, end_ = p * row + start, min(p * row + start + size, (last + 1) * row)
            yield times, *steps_of(shape, band, first // shape.images, (end_ - 1) // shape.images)


def runs(shape: Shape, band: Band, start: int, is_last: bool) -> list[tuple[int, int]]:
    """(programs, trips across) of the programs inside one row of blocks. The first of them starts `start` blocks into the row;
    the last program of the last row may be cut short."""
    row, size, shares = ceil_div(shape.outputs[1], band.box[1]) * shape.images, band.blocks, []
    begin = ceil_div(max(0, shape.lead), band.box[1])
    end = (shape.inputs[1] + shape.lead - (band.box[1] + shape.kernel[1] - 1 + shape.gap)) // band.box[1] + 1
    while start + (1 if is_last else size) <= row:
        first, last = start // shape.images, (min(start + size, row) - 1) // shape.images
        # programs that start before `limit` are cut alike: their windows have all columns inside, or begin in the same block
        limit = end * shape.images if begin <= last and first < end else (first + 1) * shape.images - size + 1
        programs = max(1, ceil_div(min(limit, row - size + 1) - start, size))
        shares.append((programs, steps_of(shape, band, first, last)[1]))
        start += programs * size
    return shares


def steps_of(shape: Shape, band: Band, first: int, last: int) -> tuple[int, int]:
    """Trips down and across the window of blocks `first` to `last`."""
    cut = window_of(shape, band.box, first, last)
    return max(0, ceil_div(cut.end_t - cut.first_t, band.rows)), max(0, ceil_div(cut.end_j - cut.first_j, band.columns))


def rows_read(shape: Shape, band: Band, steps: int) -> int:
    """Most rows of taps that one output meets in `steps` trips down."""
    return min(shape.kernel[0], steps * band.rows)


def columns_read(shape: Shape, band: Band, steps: int) -> int:
    """Most table elements per row of taps that one output reads in `steps` trips across."""
    return min(shape.pitch, steps * band.columns)


def rows_met(shape: Shape, band: Band, tile: int) -> tuple[int, int]:
    """For wgrad, the range (first, end) of rows of blocks for which tile number `tile` of the window meets the image."""
    first, down = tile * band.rows, ceil_div(shape.outputs[0], band.box[0])
    # row p * box - low + t lies inside for some t of the tile
    begin = max(0, ceil_div(shape.low[0] - (first + band.rows - 1), band.box[0]))
    end = min(down, (shape.inputs[0] - 1 + shape.low[0] - first) // band.box[0] + 1)
    return begin, end


def planned(problem: ConvProblem, plan: BandPlan) -> Launch:
    """The launch of a plan."""
    return launch_of(shape_of(problem, plan.which), plan.which, band_of(plan), plan.split)
