"""Groups of few channels, depthwise above all: the geometry that their kernels unroll, their tiles and registers.

Plain arithmetic, standard library only. A tile is `block_m` output columns x `block_n` channels x `block_k` column tiles; a
lane is one channel of one column tile, and sums over the channels of its group. `depthwise_choice` has the menu and the family.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from costmodel.algebra import ceil_div, product
from costmodel.device import Device
from costmodel.problem import ConvProblem, Pass
from costmodel.resources import memory_refusal
from costmodel.tiling import Call, Operand, Plan, itemsize, pack_refusal, plan_option, reach_refusal

#: Most channels, and most filters, of a group that has several of both. With 4 channels a 3x3 filter takes 36 multiply-adds
#: per output, about as many as a GPU issues in the time that DRAM needs for two elements. Beyond, tensor cores are better.
NARROW = 4

#: Most registers per thread, as `registers` estimates them. The compiler has 255 and uses the others to load ahead. Above these
#: counts it spilled (wgrad on sm_100 at 149 with Triton 3.6, at 167 with 3.7.1).
MAX_REGISTERS = 192
MAX_REGISTERS_WGRAD_100 = 144
MAX_REGISTERS_FUSED = 176  # Triton 3.9 keeps six values on the stack at 192
MAX_REGISTERS_FUSED_100 = 112  # Triton 3.6 keeps a value on the stack at 116
#: The block of the kernel that sums wgrad's parts: one element per thread, so that the sums need no shared memory.
REDUCE_PARTS, REDUCE_BLOCK = 16, 128


@dataclass(frozen=True)
class DepthwisePlan(Plan):
    """A tile of columns x channels (wgrad: pairs of a filter and a channel) x column tiles. `split` programs share wgrad's sum.
    A program walks down `rows` groups of output rows. `taps` are the filter rows and columns that it unrolls; with None it
    unrolls all of them, in a window that slides down the rows. `pack` "b": the weights are copied first."""

    split: int = plan_option("split", 1)
    rows: int = plan_option("rows", 1)
    taps: tuple[int, int] | None = plan_option("taps", None, 2)
    pack: tuple[str, ...] = plan_option("pack-", ())


class Axis(NamedTuple):
    """One axis as `kernels.window.tap_offsets` sees it: groups of outputs, each with a window on the gathered tensor.

    fprop: group i is output i, and its window starts at input i * stride - shift. dgrad: group i is the `stride` inputs from
    i * stride on, and its window starts at output i - shift. A row of the gathered tensor lies in the windows of `lag` + 1
    groups.
    """

    kernel: int
    stride: int
    dilation: int
    phase: int
    reach: int
    lag: int
    shift: int

    def window(self, outputs: int, dgrad: bool) -> int:
        """Input pixels that `outputs` neighbouring outputs see."""
        if dgrad:
            return (outputs - 1 + self.phase) // self.stride + self.reach + 1
        return (outputs - 1) * self.stride + (self.kernel - 1) * self.dilation + 1


@lru_cache(maxsize=1024)
def axis_of(problem: ConvProblem, which: Pass, number: int, kernel: int | None = None) -> Axis:
    """Axis `number` of a pass; with `kernel`, as if the filter had only its first `kernel` taps there. wgrad has fprop's axes,
    because it pairs the same pixels."""
    k, s, d = kernel or problem.kernel_size[number], problem.stride[number], problem.dilation[number]
    low = problem.padding[number][0]
    if which != Pass.DGRAD:
        return Axis(k, s, d, 0, 0, (k - 1) * d // s, low)
    phase = low % s
    # input pixel j of a group meets tap r where j + phase - r * d divides by s, at output (j + phase - r * d) / s + low // s
    reach = ((k - 1) * d - phase) // s
    return Axis(k, s, d, phase, reach, reach + (s - 1 + phase) // s, reach - low // s)


@lru_cache(maxsize=1024)
def full_of(problem: ConvProblem) -> ConvProblem:
    """The problem with three spatial axes."""
    return problem.with_unit_axes()


def is_narrow(problem: ConvProblem) -> bool:
    """Whether these kernels serve a problem: its groups have one channel, one filter, or up to NARROW of both, and 32 bits can
    count the coordinates of its windows."""
    c, k = problem.channels_per_group, problem.filters_per_group
    return bool(min(c, k) == 1 or max(c, k) <= NARROW) and not reach_refusal(problem)


class Shape(NamedTuple):
    """One pass of a problem as the kernels see it, with three spatial axes: what no plan changes."""

    which: Pass
    rank: int
    batch: int
    channels: int  # one per lane: channels of the output; for wgrad pairs of a filter and a channel of its group
    per_group: int  # `channels` per group
    summed: int  # channels of the gathered tensor that a lane sums over
    inputs: tuple[int, int, int]  # size of the gathered tensor (x for wgrad)
    outputs: tuple[int, int, int]  # size of the result (of dy for wgrad)
    out_group: tuple[int, int, int]  # outputs per group
    in_step: tuple[int, int, int]  # inputs from one group's window to the next
    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]
    dilation: tuple[int, int, int]
    tap_step: tuple[int, int, int]  # distance between neighbouring taps that meet the same pixel
    lag: int  # `Axis.lag` of the rows, for all taps
    macs: int
    elements: int  # elements that the pass moves at least
    weights: int

    @property
    def row_groups(self) -> int:
        return ceil_div(self.outputs[1], self.out_group[1])


@lru_cache(maxsize=1024)
def shape_of(problem: ConvProblem, which: Pass) -> Shape:
    full, dgrad = full_of(problem), which == Pass.DGRAD
    c, k, one = problem.channels_per_group, problem.filters_per_group, (1, 1, 1)
    channels, per_group, summed = {
        Pass.FPROP: (problem.out_channels, k, c),
        Pass.DGRAD: (problem.in_channels, c, k),
        Pass.WGRAD: (problem.out_channels * c, c * k, 1),
    }[which]
    strides = zip(full.stride, full.dilation, strict=True)
    steps = tuple(s // math.gcd(s, d) for s, d in strides) if dgrad else one
    return Shape(
        which,
        problem.rank,
        problem.batch,
        channels,
        per_group,
        summed,
        full.output_size if dgrad else full.input_size,
        full.input_size if dgrad else full.output_size,
        full.stride if dgrad else one,
        one if dgrad else full.stride,
        full.kernel_size,
        full.stride,
        full.dilation,
        steps,
        axis_of(full, which, 1).lag,
        int(problem.macs),
        int(problem.bytes(1, which)),
        product(problem.weight_shape),
    )


class Tile(NamedTuple):
    """A plan's tile: what its code unrolls and what a thread holds, whatever the length of a program's walk."""

    columns: int
    channels: int
    groups: int  # column tiles
    warps: int
    taps: tuple[int, int] | None
    pack: tuple[str, ...]

    @property
    def lanes(self) -> int:
        return self.channels * self.groups

    @property
    def lanes_per_thread(self) -> int:
        """Lanes per thread."""
        return max(1, self.channels * self.groups // (32 * self.warps))


def tile_of(plan: DepthwisePlan) -> Tile:
    return Tile(plan.block_m, plan.block_n, plan.block_k, plan.num_warps, plan.taps, plan.pack)


def gathered(call: Call) -> Operand:
    """The tensor whose windows are read."""
    return call.b if call.which == Pass.WGRAD else call.a


def is_planes(call: Call) -> bool:
    """Whether the gathered tensor is read along its rows (channels-first) and not along its channels."""
    return gathered(call).unit == 4


def load_width(call: Call, plan: DepthwisePlan) -> int:
    """Columns of the gathered tensor per load: 1 where lanes are channels."""
    return width_of(call, plan.block_m, plan.taps)


def width_of(call: Call, columns: int, taps: tuple[int, int] | None) -> int:
    """`load_width` of a tile of `columns` that unrolls `taps`."""
    if not is_planes(call):
        return 1
    shape = shape_of(call.problem, call.which)
    step = columns // shape.out_group[2] * shape.in_step[2]
    width = math.gcd(gathered(call).outside, shape.inputs[2], step, max(1, 16 // itemsize(call.dtype)))
    if taps is not None and taps[1] < shape.kernel[2]:
        width = math.gcd(width, taps[1] * shape.dilation[2] // (shape.stride[2] if shape.which == Pass.DGRAD else 1))
    return width & -width


def store_width(call: Call, plan: DepthwisePlan) -> int:
    """Columns of the output per store (for wgrad: of dy per load)."""
    return together_of(call, plan.block_m)


def together_of(call: Call, columns: int) -> int:
    """`store_width` of a tile of `columns`: the largest power of two that divides the columns, every row and its offset."""
    other = call.a if call.which == Pass.WGRAD else call.out
    if not is_planes(call) or other.unit != 4:
        return 1
    width = math.gcd(columns, other.outside, shape_of(call.problem, call.which).outputs[2])
    return width & -width


def loads_together(call: Call, taps: tuple[int, int] | None) -> bool:
    """Whether one load brings all channels of a pixel that a lane sums over: a power of two of contiguous channels."""
    summed, read = shape_of(call.problem, call.which).summed, gathered(call)
    whole = summed > 1 and summed & (summed - 1) == 0 and summed * itemsize(call.dtype) <= 16
    return whole and taps is None and read.unit == 1 and read.outside % summed == 0


class Launch(NamedTuple):
    """The programs of a launch, and how long each runs."""

    tiles_c: int
    tiles_q: int
    repeats: int  # product of the runs of rows, depths, images and wgrad's blocks of taps
    trips: int  # most trips of a program's main loop
    splits: int  # wgrad: splits that have work; each has one part per column tile
    runs: int  # runs of rows per split

    @property
    def programs(self) -> int:
        return self.tiles_c * self.tiles_q * self.repeats


def launch_of(shape: Shape, tile: Tile, rows: int, split: int) -> Launch:
    """The launch of a tile whose programs walk `rows` groups of rows. wgrad's reduction is shared `split` ways."""
    (t, r, s), height = shape.kernel, shape.outputs[1]
    tiles_c = -(-shape.channels // tile.channels)
    tiles_q = -(-shape.outputs[2] // (tile.columns * tile.groups * (rows if walks_columns(shape, tile.taps) else 1)))
    if shape.which == Pass.WGRAD:
        block_r, block_s = tile.taps or (r, s)
        total = row_runs(shape, rows)
        runs = -(-total // split)
        splits = -(-total // runs)
        lag = shape.lag if block_r == r else 0
        steps = rows if walks_columns(shape, tile.taps) else min(rows, height) + lag
        return Launch(tiles_c, tiles_q, t * (r // block_r) * -(-s // block_s) * splits, runs * steps, splits, runs)
    outer = shape.outputs[0] * shape.batch
    if tile.taps is not None:
        met = -(-t // shape.tap_step[0]) * -(-r // shape.tap_step[1]) * shape.summed
        return Launch(tiles_c, tiles_q, height * outer, met * -(-s // tile.taps[1]), 1, 1)
    if walks_columns(shape, None):
        return Launch(tiles_c, tiles_q, outer, rows, 1, 1)
    groups = shape.row_groups
    return Launch(tiles_c, tiles_q, -(-groups // rows) * outer, min(rows, groups) + shape.lag, 1, 1)


def walks_columns(shape: Shape, taps: tuple[int, int] | None) -> bool:
    """Whether a program walks `rows` tiles along a row, because there is only one row: the sliding window in 1-D, and wgrad in
    1-D."""
    return shape.rank < 2 and (shape.which == Pass.WGRAD or taps is None)


def row_runs(shape: Shape, rows: int) -> int:
    """wgrad's runs of rows of dy, which its parts share out."""
    return shape.batch * shape.outputs[0] * -(-shape.outputs[1] // rows)


def planned(problem: ConvProblem, plan: DepthwisePlan) -> Launch:
    """The launch of a plan."""
    return launch_of(shape_of(problem, plan.which), tile_of(plan), plan.rows, plan.split)


class Work(NamedTuple):
    """What a thread does in one trip, and holds, for each of its lanes."""

    held: int  # values in registers from trip to trip
    read: int  # values gathered
    loads: int  # loads that gather them where a thread has one lane
    beside: int  # values read of dy (wgrad) or of the weights (taps in a loop)
    beside_loads: int  # loads that read those
    multiply_adds: int
    stored: int


def work_of(call: Call, columns: int, taps: tuple[int, int] | None) -> Work:
    """Counts of the unrolled code of a trip."""
    shape, full = shape_of(call.problem, call.which), full_of(call.problem)
    dgrad, width = shape.which == Pass.DGRAD, width_of(call, columns, taps)
    t, r, s = shape.kernel
    block_r, block_s = taps or (r, s)
    window = axis_of(full, shape.which, 2, block_s).window(columns, dgrad)
    loads = ceil_div(window, width) + (1 if width > 1 else 0)
    products = columns // shape.out_group[2] * block_s  # a tap meets one output of a group
    if shape.which == Pass.WGRAD:
        rows = min(block_r, shape.in_step[1])
        lag = axis_of(full, shape.which, 1, block_r).lag
        held = block_r * block_s + (lag + 1) * columns
        paired = columns // together_of(call, columns)
        return Work(held, rows * window, rows * loads, columns, paired, block_r * products, 0)
    if taps is not None:
        return Work(columns + block_s, window, loads, block_s, block_s, products, 0)
    rows = t * min(r, shape.in_step[1])
    sums = (shape.lag + 1) * shape.out_group[1] * columns
    loads *= rows if loads_together(call, taps) else rows * shape.summed
    stored = shape.out_group[1] * columns
    return Work(
        shape.summed * t * r * s + sums, shape.summed * rows * window, loads, 0, 0, shape.summed * t * r * products, stored
    )


def registers(call: Call, plan: DepthwisePlan) -> int:
    """Registers a thread needs, roughly: what it holds, what it reads, and addresses."""
    return int(
        40 + tile_of(plan).lanes_per_thread * registers_per_lane(call, work_of(call, plan.block_m, plan.taps), plan.taps)
    )


def registers_per_lane(call: Call, work: Work, taps: tuple[int, int] | None) -> float:
    """Registers per lane. Where a window slides down the rows, a row of 16-bit values stays packed until it is used."""
    size = itemsize(call.dtype)
    wide = 2 if size == 8 else 1
    slides = taps is None and call.which != Pass.WGRAD and call.problem.rank > 1
    return work.held * wide + (work.read + work.beside) * (0.5 if size == 2 and slides else wide)


def max_registers(call: Call, device: Device) -> int:
    if call.epilogue:
        return MAX_REGISTERS_FUSED_100 if device.capability >= 100 else MAX_REGISTERS_FUSED
    return MAX_REGISTERS_WGRAD_100 if call.which == Pass.WGRAD and device.capability >= 100 else MAX_REGISTERS


def can_slide(shape: Shape) -> bool:
    """Whether a window may slide. For dgrad the depth must have stride 1, because a longer stride leaves outputs between those
    of a window."""
    return shape.which != Pass.DGRAD or shape.stride[0] == 1


def shared_bytes(call: Call, plan: DepthwisePlan) -> int:
    """Shared memory of a program, at most: rows stay in registers, but wgrad may hand its sums to other threads on their way to
    memory, one of each lane at a time. No plan of the menu takes more than 8 KiB."""
    return max(4, itemsize(call.dtype)) * tile_of(plan).lanes if call.which == Pass.WGRAD else 0


def refusal(call: Call, plan: DepthwisePlan, device: Device | None = None) -> str:
    """Why a depthwise plan cannot serve a call; "" where it can."""
    problem, shape = call.problem, shape_of(call.problem, call.which)
    if reason := reach_refusal(problem) or pack_refusal(plan.pack):
        return reason
    if not is_narrow(problem):
        return f"groups of {problem.channels_per_group} channels and {problem.filters_per_group} filters"
    for name, block in (("block_n", plan.block_n), ("block_k", plan.block_k), ("warps", plan.num_warps)):
        if block < 1 or block & (block - 1):
            return f"{name} must be a power of two, got {block}"
    if plan.block_m < 1 or plan.rows < 1 or plan.split < 1 or (plan.split > 1 and call.which != Pass.WGRAD):
        return "columns, rows and split must be positive, and split 1 but for wgrad"
    if plan.block_m % shape.out_group[2]:
        return f"columns must be a multiple of the stride {shape.stride[2]}"
    if "a" in plan.pack or (plan.pack and call.which == Pass.WGRAD):
        return "only weights are copied"
    if plan.taps is None:
        if not can_slide(shape):
            return "a sliding window serves dgrad without a stride along the depth"
    elif call.which == Pass.WGRAD:
        if plan.taps[0] not in (1, shape.kernel[1]) or plan.taps[1] < 1:
            return f"taps must be 1 or {shape.kernel[1]} rows of at least one column"
    elif plan.taps[0] != 1 or plan.taps[1] < 1 or plan.taps[1] % shape.tap_step[2]:
        return f"taps must be 1 x a multiple of {shape.tap_step[2]}"
    return memory_refusal(plan.tile, shared_bytes(call, plan), device)


def extra_bytes(call: Call, plan: DepthwisePlan) -> int:
    """Bytes beyond the compulsory ones: the copy of the weights, wgrad's workspace, each read and written."""
    return moved_besides(call, shape_of(call.problem, call.which), plan.pack, planned(call.problem, plan))


def moved_besides(call: Call, shape: Shape, pack: tuple[str, ...], launch: Launch) -> int:
    """`extra_bytes` of a launch."""
    size = itemsize(call.dtype)
    total = 2 * size * shape.weights * len(pack)
    if shape.which == Pass.WGRAD:
        total += 2 * max(4, size) * shape.weights * launch.splits * launch.tiles_q
    return total


def issued_macs(problem: ConvProblem, plan: DepthwisePlan) -> int:
    """Multiply-adds that the plan's lanes compute, including those on padding, on masked lanes and on rows that only fill the
    window."""
    work, launch = work_of(Call(problem, plan.which, "float16"), plan.block_m, plan.taps), planned(problem, plan)
    return launch.programs * launch.trips * work.multiply_adds * tile_of(plan).lanes
