"""Depthwise convolutions: the geometry that their kernels unroll, their tiles, registers and predicted time.

Plain arithmetic, standard library only. A tile is `block_m` output columns x `block_n` channels x `block_k` column tiles; a
lane is one channel of one column tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from costmodel.algebra import ceil_div, product
from costmodel.device import Device
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import MAX_ALIGN, Call, Plan, itemsize
from costmodel.timing import INTERPRETED_ELEMENT, INTERPRETED_TRIP, Prediction, from_dram, overhead

#: Registers a thread that a plan may count on by `registers`. The compiler has 255 and takes what is left to load ahead; above
#: these counts it spilled (wgrad on sm_100 at 149 by Triton 3.6, at 167 by 3.7.1).
MAX_REGISTERS = 192
MAX_REGISTERS_WGRAD_100 = 144
MAX_REGISTERS_FUSED_100 = 112  # Triton 3.6 keeps a value on the stack at 116
#: Clocks of the load unit for a warp that reads one weight per lane, `taps` elements apart.
WAVEFRONT = 4
#: Share of the terms below the largest that it does not hide.
UNHIDDEN = 0.1
#: Taps of a filter row that the kernel for large filters unrolls.
CHUNK = 8
#: Most parts of wgrad's workspace, and the block of its sum.
MAX_PARTS = 1024
REDUCE_PARTS, REDUCE_BLOCK = 32, 32


class Axis(NamedTuple):
    """One axis as `kernels.window.tap_offsets` sees it: groups of outputs, each with a window on the gathered tensor.

    fprop: group i is output i, and its window starts at input i * stride - shift. dgrad: group i is the `stride` inputs from
    i * stride on, and its window starts at output i - shift. `lag`: in how many groups' windows a row lies, less one.
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
    """Axis `number` of a pass, of its first `kernel` taps alone where given. wgrad pairs the pixels that fprop pairs."""
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


@lru_cache(maxsize=1024)
def totals(problem: ConvProblem, which: Pass) -> tuple[int, int]:
    """(multiply-adds, elements that a pass moves at least), which every candidate asks for."""
    return int(problem.macs), int(problem.bytes(1, which))


def is_depthwise(problem: ConvProblem) -> bool:
    """Whether every input channel is a group of its own."""
    return bool(problem.groups == problem.in_channels)


class Shape(NamedTuple):
    """What the kernels gather from and write to, with three spatial axes each."""

    channels: int  # of the output; of wgrad's dw
    inputs: tuple[int, int, int]
    outputs: tuple[int, int, int]
    out_group: tuple[int, int, int]  # outputs of a group, and inputs from a group's window to the next
    in_step: tuple[int, int, int]


@lru_cache(maxsize=1024)
def shape_of(problem: ConvProblem, which: Pass) -> Shape:
    """For wgrad the input is x and the output dy."""
    full = full_of(problem)
    sizes = full.input_size, full.output_size
    one = (1, 1, 1)
    if which == Pass.DGRAD:
        return Shape(problem.in_channels, sizes[1], sizes[0], full.stride, one)
    return Shape(problem.out_channels, *sizes, one, full.stride)


@lru_cache(maxsize=4096)
def tap_step(problem: ConvProblem, which: Pass, axis: int) -> int:
    """Taps from one that meets a pixel to the next."""
    s, d = problem.stride[axis], problem.dilation[axis]
    return s // math.gcd(s, d) if which == Pass.DGRAD else 1


def is_planes(call: Call) -> bool:
    """Whether the gathered tensor is read along its rows: channels-first. Otherwise along its channels."""
    gathered = call.b if call.which == Pass.WGRAD else call.a
    return gathered.unit == 4


def load_width(call: Call, plan: Plan) -> int:
    """Columns of the gathered tensor that one load brings: 1 where lanes are channels."""
    if not is_planes(call):
        return 1
    gathered = call.b if call.which == Pass.WGRAD else call.a
    shape = shape_of(call.problem, call.which)
    step = plan.block_m // shape.out_group[2] * shape.in_step[2]
    width = math.gcd(gathered.align, shape.inputs[2], step, max(1, 16 // itemsize(call.dtype)))
    if plan.taps is not None and plan.taps[1] < call.problem.kernel_size[-1]:
        full = full_of(call.problem)
        width = math.gcd(width, plan.taps[1] * full.dilation[2] // (full.stride[2] if call.which == Pass.DGRAD else 1))
    return width & -width


def store_width(call: Call, plan: Plan) -> int:
    """Columns of the output (for wgrad: of dy, which it loads) that go together: all of a tile or one."""
    other = call.a if call.which == Pass.WGRAD else call.out
    columns = plan.block_m
    whole = columns & (columns - 1) == 0 and other.align % columns == 0
    whole = whole and shape_of(call.problem, call.which).outputs[2] % columns == 0
    return columns if is_planes(call) and other.unit == 4 and whole else 1


def grid(problem: ConvProblem, plan: Plan) -> tuple[int, int, int]:
    """(channel tiles, column tiles, repeats) of a launch; repeats are runs of rows, depths, images, and wgrad's taps."""
    shape = shape_of(problem, plan.which)
    tiles_c = ceil_div(shape.channels, plan.block_n)
    along = plan.rows if walks_columns(problem, plan) else 1
    tiles_q = ceil_div(shape.outputs[2], plan.block_m * plan.block_k * along)
    if plan.which != Pass.WGRAD:
        runs = shape.outputs[1] if plan.taps else ceil_div(ceil_div(shape.outputs[1], shape.out_group[1]), plan.rows)
        return tiles_c, tiles_q, runs * shape.outputs[0] * problem.batch
    t, r, s = full_of(problem).kernel_size
    block_r, block_s = plan.taps or (r, s)
    return tiles_c, tiles_q, t * (r // block_r) * ceil_div(s, block_s) * parts(problem, plan)[0]


def walks_columns(problem: ConvProblem, plan: Plan) -> bool:
    """Whether a program walks `rows` tiles along a row, for want of rows: the sliding window in 1-D."""
    return problem.rank < 2 and plan.which != Pass.WGRAD and plan.taps is None


def row_runs(problem: ConvProblem, plan: Plan) -> int:
    """wgrad's runs of rows of dy, which its parts share out."""
    shape = shape_of(problem, plan.which)
    return int(problem.batch * shape.outputs[0] * ceil_div(shape.outputs[1], plan.rows))


def parts(problem: ConvProblem, plan: Plan) -> tuple[int, int]:
    """(splits that have work, runs of each) of wgrad; every split has a part for each column tile."""
    runs = row_runs(problem, plan)
    each = ceil_div(runs, plan.split)
    return ceil_div(runs, each), each


def trips(problem: ConvProblem, plan: Plan) -> float:
    """Main-loop trips of one program, at most."""
    full = full_of(problem)
    shape = shape_of(problem, plan.which)
    t, r, s = full.kernel_size
    if plan.which == Pass.WGRAD:
        lag = axis_of(full, plan.which, 1, (plan.taps or (r, s))[0]).lag
        return parts(problem, plan)[1] * (min(plan.rows, shape.outputs[1]) + lag)
    if walks_columns(problem, plan):
        return plan.rows
    if plan.taps is None:
        groups = ceil_div(shape.outputs[1], shape.out_group[1])
        return min(plan.rows, groups) + axis_of(full, plan.which, 1).lag
    met = t * r
    if plan.which == Pass.DGRAD:
        met = (
            ceil_div(t, tap_step(full, plan.which, 0)) * ceil_div(r, tap_step(full, plan.which, 1)) * problem.filters_per_group
        )
    return met * ceil_div(s, plan.taps[1])


class Work(NamedTuple):
    """What a thread does in one trip, and holds, per channel of its own."""

    held: int  # values in registers from trip to trip
    read: int  # values read,
    loads: int  # in so many loads where a thread has one channel
    multiply_adds: int
    stored: int


def work_of(call: Call, plan: Plan) -> Work:
    """Counts of the unrolled code of a trip."""
    full, dgrad = full_of(call.problem), call.which == Pass.DGRAD
    shape = shape_of(call.problem, call.which)
    t, r, s = full.kernel_size
    columns, width = plan.block_m, load_width(call, plan)
    block_r, block_s = plan.taps or (r, s)
    axis = axis_of(full, call.which, 2, block_s)
    window = axis.window(columns, dgrad)
    loads = ceil_div(window, width) + (1 if width > 1 else 0)
    density = full.stride[2] // math.gcd(full.stride[2], full.dilation[2]) if dgrad else 1
    products = ceil_div(columns * block_s, density)
    if call.which == Pass.WGRAD:
        rows = min(block_r, shape.in_step[1])
        lag = axis_of(full, call.which, 1, block_r).lag
        held = block_r * block_s + (lag + 1) * columns
        return Work(held, rows * window + columns, rows * loads + columns // store_width(call, plan), block_r * products, 0)
    if plan.taps is not None:
        return Work(columns + block_s, window + block_s, loads + block_s, products, 0)
    rows = t * min(r, shape.in_step[1])
    made = (axis_of(full, call.which, 1).lag + 1) * shape.out_group[1] * columns
    met = ceil_div(r * products, tap_step(full, call.which, 1) // shape.out_group[1] or 1)
    return Work(t * r * s + made, rows * window, rows * loads, t * met, shape.out_group[1] * columns)


def channels_per_thread(plan: Plan) -> int:
    return max(1, plan.block_n * plan.block_k // (32 * plan.num_warps))


def registers(call: Call, plan: Plan) -> int:
    """Registers a thread needs, roughly: what it holds, what it reads, and addresses.

    Where a window slides down the rows, a row of 16-bit values stays packed until it is used.
    """
    work, size = work_of(call, plan), itemsize(call.dtype)
    wide = 2 if size == 8 else 1
    slides = plan.taps is None and plan.which != Pass.WGRAD and call.problem.rank > 1
    each = work.held * wide + work.read * (0.5 if size == 2 and slides else wide)
    return int(40 + channels_per_thread(plan) * each)


def max_registers(call: Call, device: Device) -> int:
    if call.epilogue and device.capability >= 100:
        return MAX_REGISTERS_FUSED_100
    return MAX_REGISTERS_WGRAD_100 if call.which == Pass.WGRAD and device.capability >= 100 else MAX_REGISTERS


def serves(call: Call, plan: Plan) -> str:
    """Why a depthwise plan cannot serve a call; "" where it can."""
    problem, full = call.problem, full_of(call.problem)
    if not is_depthwise(problem):
        return f"groups of {problem.channels_per_group} channels"
    for name, block in (("block_n", plan.block_n), ("block_k", plan.block_k), ("warps", plan.num_warps)):
        if block < 1 or block & (block - 1):
            return f"{name} must be a power of two, got {block}"
    if plan.block_m < 1 or plan.rows < 1 or plan.split < 1 or (plan.split > 1 and call.which != Pass.WGRAD):
        return "columns, rows and split must be positive, and split 1 but for wgrad"
    if plan.block_m % shape_of(problem, call.which).out_group[2]:
        return f"columns must be a multiple of the stride {full.stride[2]}"
    if "a" in plan.pack or (plan.pack and call.which == Pass.WGRAD):
        return "only weights are copied"
    if plan.taps is None:
        if call.which == Pass.DGRAD and (problem.filters_per_group > 1 or full.stride[0] > 1):
            return "a sliding window serves dgrad without multiplier or stride along the depth"
        return ""
    if call.which == Pass.WGRAD:
        if plan.taps[0] not in (1, full.kernel_size[1]) or plan.taps[1] < 1:
            return f"taps must be 1 or {full.kernel_size[1]} rows of at least one column"
    elif plan.taps[0] != 1 or plan.taps[1] < 1 or plan.taps[1] % tap_step(full, call.which, 2):
        return f"taps must be 1 x a multiple of {tap_step(full, call.which, 2)}"
    return ""


def candidates(call: Call, device: Device) -> list[Plan]:
    """Every depthwise plan worth predicting: those that serve the call and fit the registers."""
    most = max_registers(call, device)
    tiles = [plan for plan in menu(call, device) if not serves(call, plan) and registers(call, plan) <= most]
    return [plan for tile in tiles for plan in with_rows(call, tile, device)]


def menu(call: Call, device: Device) -> Iterator[Plan]:
    """Tiles of lanes x columns, with all taps in registers and with a few."""
    problem, which = call.problem, call.which
    full = full_of(problem)
    s = full.kernel_size[2]
    step = tap_step(full, which, 2)
    chunk = min(ceil_div(CHUNK, step), ceil_div(s, step)) * step
    blocks: list[tuple[int, int] | None] = [None, (1, chunk)]
    if which == Pass.WGRAD:
        blocks = [None, *((1, size) for size in dict.fromkeys((min(s, 8), min(s, 16))))]
    packs: list[tuple[str, ...]] = [()]
    if which != Pass.WGRAD and call.b.unit != 0 and not is_planes(call) and not device.interpreted:
        packs.append(("b",))
    for warps, each in [(1, 8), (1, 4), (1, 2), (1, 1), (4, 8), (4, 4), (4, 2), (4, 1)]:
        if device.interpreted and (warps, each) != (4, 1):
            continue
        for columns in sizes_of_columns(call, device):
            for channels, groups in lanes(call, columns, 32 * warps * each, each):
                if channels * groups < 32 and each > 1 and not device.interpreted:
                    continue
                for taps in blocks:
                    for pack in packs:
                        yield Plan(which, "depthwise", columns, channels, groups, warps, 3, taps=taps, pack=pack)


def lanes(call: Call, columns: int, count: int, each: int) -> list[tuple[int, int]]:
    """How up to `count` lanes may be shared between channels and column tiles, `each` of them to a thread."""
    shape = shape_of(call.problem, call.which)
    tiles = 1 << (ceil_div(shape.outputs[2], columns) - 1).bit_length()
    if is_planes(call):  # neighbouring columns first
        groups = min(count, tiles, 32)
        return [(min(count // groups, 1 << (shape.channels - 1).bit_length()), groups)]
    widest = min(count, 1 << (shape.channels - 1).bit_length())
    exact = min(count, shape.channels & -shape.channels)  # no lane without a channel, where a pixel still fills a sector
    found = [widest] if exact == widest or exact < each or exact * itemsize(call.dtype) < 32 else [widest, exact]
    return [(channels, min(count // channels, tiles)) for channels in found]


def sizes_of_columns(call: Call, device: Device) -> list[int]:
    """Columns of a tile: for dgrad multiples of the stride, so that the taps of each are known."""
    unit = shape_of(call.problem, call.which).out_group[2]
    if is_planes(call):
        gathered = call.b if call.which == Pass.WGRAD else call.a
        width = math.gcd(gathered.align, MAX_ALIGN, max(1, 16 // itemsize(call.dtype)))
        found = {width * unit // math.gcd(width, unit), 4 * unit, 2 * unit}
        if call.which == Pass.WGRAD and call.dtype == "float16" and full_of(call.problem).kernel_size[0] > 1:
            found -= {4}  # Triton 3.7.1 keeps two values of such a row on the stack, however few registers it takes
    else:
        found = {unit * n for n in (1, 2, 4, 8, 16)}
    return sorted(n for n in found if n <= 16 or n == unit)


def with_rows(call: Call, base: Plan, device: Device) -> Iterator[Plan]:
    """A plan for each length of the walk down the rows, and for wgrad each split."""
    shape = shape_of(call.problem, call.which)
    groups = ceil_div(shape.outputs[1], shape.out_group[1])
    if base.which != Pass.WGRAD:
        walks = {1} if base.taps else {ceil_div(groups, n) for n in (1, 2, 4, 8)}
        if walks_columns(call.problem, base):
            walks = {1, 4, 16}
        for rows in sorted(walks):
            yield replace(base, rows=rows)
        return
    for rows in sorted({groups, ceil_div(groups, 4)}):
        plan = replace(base, rows=rows)
        programs = product(grid(call.problem, plan))
        most = min(
            row_runs(call.problem, plan), MAX_PARTS // min(MAX_PARTS, ceil_div(shape.outputs[2], base.block_m * base.block_k))
        )
        wanted = 1 if device.interpreted else 32 * device.sm_count // (base.num_warps * programs)
        for split in sorted({min(max(1, wanted // n), max(1, most)) for n in (1, 2, 4)}):
            yield replace(plan, split=split)


def extra_bytes(call: Call, plan: Plan) -> int:
    """Bytes beyond the compulsory ones: the copy of the weights, wgrad's workspace, each read and written."""
    weights = product(call.problem.weight_shape)
    total = 2 * itemsize(call.dtype) * weights * len(plan.pack)
    if plan.which == Pass.WGRAD:
        total += 2 * max(4, itemsize(call.dtype)) * weights * parts(call.problem, plan)[0] * grid(call.problem, plan)[1]
    return int(total)


def issued_macs(problem: ConvProblem, plan: Plan) -> int:
    """Multiply-adds that the plan's lanes compute, on padding, masked lanes and rows that only fill the window too."""
    work = work_of(Call(problem, plan.which, "float16"), plan)
    lanes = plan.block_n * plan.block_k
    return round(product(grid(problem, plan)) * trips(problem, plan) * work.multiply_adds * lanes)


def predict(call: Call, plan: Plan, device: Device) -> Prediction:
    """Launches, then the largest of DRAM, L2, instruction issue and exposed latency."""
    problem, size = call.problem, itemsize(call.dtype)
    programs, n_trips, work = product(grid(problem, plan)), trips(problem, plan), work_of(call, plan)
    each = channels_per_thread(plan)
    lanes = plan.block_n * plan.block_k
    macs, elements = totals(problem, call.which)
    moved = size * elements + extra_bytes(call, plan)
    constants = device.calibration("depthwise")
    tile_use = min(1.0, macs / max(1.0, programs * n_trips * work.multiply_adds * lanes))
    if device.interpreted:
        operations = work.multiply_adds + 3 * (work.loads + work.stored)
        seconds = programs * (1 + n_trips) * (INTERPRETED_TRIP / 100 * operations + work.read * lanes * INTERPRETED_ELEMENT)
        interval = constants.low * seconds, constants.high * seconds
        return Prediction(seconds, programs, float(programs), tile_use, moved, "the interpreter", *interval)
    clock = device.clock * 1e6
    warps_per_sm = ceil_div(programs * plan.num_warps, device.sm_count)
    resident = max(1, min(device.warps_per_sm, device.registers_per_sm // (32 * min(255, registers(call, plan)))))

    # instructions of a warp: every load and store has its address and mask, every 16-bit value its conversion
    narrow = 1 if size == 2 else 0
    wide = 2 if size == 8 else 1  # float64 multiplies at half the rate
    transfers = (work.loads + work.stored) * (ceil_div(each * size, 16) if not is_planes(call) else each)
    trip = 20 + 3 * transfers + each * (wide * work.multiply_adds + narrow * (work.read + work.stored / 2))
    taps = 0 if plan.taps or plan.which == Pass.WGRAD else problem.taps
    spread = 0 if call.b.unit == 0 or plan.pack or is_planes(call) else min(31, taps * size // 4)
    prologue = 100 + taps * each * (3 + WAVEFRONT * spread / 4)
    if plan.taps is not None and plan.which != Pass.WGRAD:
        trip += plan.taps[1] * each * WAVEFRONT * (0 if call.b.unit == 0 or plan.pack or is_planes(call) else 16) / 4
    issue = warps_per_sm * (prologue + n_trips * trip) / (4 * constants.issue)
    latency = ceil_div(warps_per_sm, resident) * (2 * constants.latency + n_trips * (constants.latency + trip))
    read = (work.read if plan.taps is None or plan.which == Pass.WGRAD else work.read - plan.taps[1]) * lanes * size
    # half of the rows that neighbouring programs share come from the first-level cache
    from_l2 = programs * n_trips * read / 2 / (device.l2_bandwidth * constants.l2 * 1e9) * clock
    dram = from_dram(moved, device, constants) * clock
    terms = {"DRAM": dram, "instruction issue": issue, "latency": latency, "L2": from_l2}
    bound = max(terms, key=lambda name: terms[name])
    clocks = (1 - UNHIDDEN) * terms[bound] + UNHIDDEN * sum(terms.values())
    launches = 1 + len(plan.pack) + (plan.which == Pass.WGRAD)
    launching = overhead(launches, device, constants)
    if launching * clock > clocks:
        bound = "launch"
    waves = programs * plan.num_warps / (device.sm_count * resident)
    seconds = launching + clocks / clock
    interval = constants.low * seconds, constants.high * seconds
    return Prediction(seconds, programs, waves, tile_use, moved, bound, *interval, constants.source)
