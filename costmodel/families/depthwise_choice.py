"""The "depthwise" family: its menu, the predicted time of each tile, and the choice of the fastest.

Rates are those of the device's datasheet times its calibration. Plain arithmetic, standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from costmodel.algebra import ceil_div
from costmodel.device import Device
from costmodel.families.depthwise import (
    DepthwisePlan,
    Launch,
    Shape,
    Tile,
    Work,
    can_slide,
    extra_bytes,
    gathered,
    is_narrow,
    is_planes,
    issued_macs,
    launch_of,
    max_registers,
    moved_besides,
    refusal,
    registers,
    registers_per_lane,
    row_runs,
    shape_of,
    tile_of,
    walks_columns,
    work_of,
)
from costmodel.families.depthwise_lines import touched_lines
from costmodel.families.protocol import Counted, Family
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import MAX_ALIGN, Call, Plan, itemsize
from costmodel.timing import INTERPRETED_ELEMENT, INTERPRETED_TRIP, Prediction, borrowed, overhead

#: Clocks that the load unit takes for a warp whose lanes each read one weight, `taps` elements apart.
WAVEFRONT = 4
#: Share of the smaller terms that the largest term does not hide.
UNHIDDEN = 0.1
#: Taps per filter row that the kernel for large filters unrolls.
CHUNK = 8
#: Most parts of wgrad's workspace.
MAX_PARTS = 1024
#: (warps, lanes per thread) of the menu.
THREADS = ((1, 8), (1, 4), (1, 2), (1, 1), (4, 8), (4, 4), (4, 2), (4, 1))


class Option(NamedTuple):
    """A tile of the menu that fits the registers."""

    tile: Tile
    work: Work
    registers: int

    def plan(self, which: Pass, rows: int, split: int) -> DepthwisePlan:
        columns, channels, groups, warps, taps, pack = self.tile
        return DepthwisePlan(
            which, "depthwise", columns, channels, groups, warps, 3, split=split, pack=pack, rows=rows, taps=taps
        )


def candidates(call: Call, device: Device) -> list[Plan]:
    """Every plan worth predicting: the plans that serve the call and fit the registers."""
    shape = shape_of(call.problem, call.which)
    return [o.plan(call.which, *walk) for o in options(call, shape, device) for walk in walks(shape, o.tile, device)]


def options(call: Call, shape: Shape, device: Device) -> Iterator[Option]:
    """Tiles of lanes x columns, with all taps in registers and with a few."""
    if not is_narrow(call.problem):
        return
    limit, wgrad = max_registers(call, device), shape.which == Pass.WGRAD
    leaks = wgrad and is_planes(call) and itemsize(call.dtype) == 2
    s, step = shape.kernel[2], shape.tap_step[2]
    blocks: list[tuple[int, int] | None] = [None] if can_slide(shape) else []
    if wgrad:
        blocks += [(1, size) for size in dict.fromkeys((min(s, 8), min(s, 16)))]
    else:
        blocks += [(1, min(ceil_div(CHUNK, step), ceil_div(s, step)) * step)]
    packs: list[tuple[str, ...]] = [()]
    if not wgrad and call.b.unit != 0 and not is_planes(call) and not device.interpreted:
        packs.append(("b",))
    sized = []
    for columns in sizes_of_columns(call, shape):
        works = ((taps, work_of(call, columns, taps)) for taps in blocks)
        sized.append((columns, [(taps, work, registers_per_lane(call, work, taps)) for taps, work in works]))
    for warps, lanes_per_thread in THREADS:
        if device.interpreted and (warps, lanes_per_thread) != (4, 1):
            continue
        for columns, unrolled in sized:
            for channels, groups in lanes(call, shape, columns, 32 * warps * lanes_per_thread, lanes_per_thread):
                if channels * groups < 32 and lanes_per_thread > 1 and not device.interpreted:
                    continue
                held_lanes = max(1, channels * groups // (32 * warps))
                for taps, work, per_lane in unrolled:
                    if leaks and columns == 8 and taps == (1, 16) and held_lanes > 1:
                        continue  # Triton 3.8.0 keeps two values on the stack, however few registers it takes
                    needed = int(40 + held_lanes * per_lane)
                    if needed <= limit:
                        for pack in packs:
                            yield Option(Tile(columns, channels, groups, warps, taps, pack), work, needed)


def lanes(call: Call, shape: Shape, columns: int, count: int, lanes_per_thread: int) -> list[tuple[int, int]]:
    """The ways (channels, column tiles) to use up to `count` lanes, of which each thread has `lanes_per_thread`."""
    tiles = 1 << (ceil_div(shape.outputs[2], columns) - 1).bit_length()
    widest = min(count, 1 << (shape.channels - 1).bit_length())
    if is_planes(call):  # neighbouring columns first
        groups = min(count, tiles, 32)
        return [(min(count // groups, widest), groups)]
    exact = min(count, shape.channels & -shape.channels)  # no lane lacks a channel; taken where a pixel still fills a sector
    choices = [widest] if exact == widest or exact < lanes_per_thread or exact * itemsize(call.dtype) < 32 else [widest, exact]
    return [(channels, min(count // channels, tiles)) for channels in choices]


def sizes_of_columns(call: Call, shape: Shape) -> list[int]:
    """The possible numbers of columns of a tile. dgrad takes multiples of the stride, so that each column's taps are known."""
    unit = shape.out_group[2]
    if is_planes(call):
        width = math.gcd(gathered(call).outside, MAX_ALIGN, max(1, 16 // itemsize(call.dtype)))
        widths = {width * unit // math.gcd(width, unit), 4 * unit, 2 * unit}
        if shape.which == Pass.WGRAD and call.dtype == "float16" and shape.kernel[0] > 1:
            widths -= {4}  # Triton 3.7.1 keeps two values of such a row on the stack, however few registers it takes
    else:
        widths = {unit * n for n in (1, 2, 4, 8, 16)}
    return sorted(n for n in widths if n <= 16 or n == unit)


def walks(shape: Shape, tile: Tile, device: Device) -> Iterator[tuple[int, int]]:
    """Every (rows, split): the lengths of the walk down the rows, and for wgrad the ways to share its sum."""
    groups = shape.row_groups
    if shape.which != Pass.WGRAD:
        if walks_columns(shape, tile.taps):
            lengths = {1, 4, 16}
        else:
            lengths = {1} if tile.taps else {ceil_div(groups, n) for n in (1, 2, 4, 8)}
        for rows in sorted(lengths):
            yield rows, 1
        return
    lengths = {groups, ceil_div(groups, 4)}
    if walks_columns(shape, tile.taps):
        least = ceil_div(launch_of(shape, tile, 1, 1).tiles_q, MAX_PARTS)
        lengths = {max(least, n) for n in (1, 4, 16)}
    for rows in sorted(lengths):
        alone = launch_of(shape, tile, rows, 1)
        max_split = min(row_runs(shape, rows), MAX_PARTS // min(MAX_PARTS, alone.tiles_q))
        wanted = 1 if device.interpreted else 32 * device.sm_count // (tile.warps * alone.programs)
        for split in sorted({min(max(1, wanted // n), max(1, max_split)) for n in (1, 2, 4)}):
            yield rows, split


class Rates(NamedTuple):
    """What a tile takes on a device, whatever the length of a program's walk. Clocks are those of one multiprocessor."""

    prologue: float  # warp instructions before the loop
    trip: float  # warp instructions per trip
    lines: float  # cache lines that a warp touches per trip
    resident: int  # warps that fit a multiprocessor
    l2: float  # clocks per lane and trip for values from L2
    overhead: float  # seconds of the launches
    fixed: int  # bytes that are moved whatever the walk


class Pace(NamedTuple):
    """A device in clocks of one multiprocessor."""

    sm_count: int
    a_second: float  # clocks per second
    dram: float  # clocks per byte from DRAM
    l2: float
    issue: float  # instructions per clock of one scheduler
    latency: float  # clocks of a load that nothing hides
    warps: int  # most resident warps of a multiprocessor
    blocks: int  # most resident programs of a multiprocessor
    registers: int  # 32-bit registers of a multiprocessor
    launch: float  # seconds per launch


def pace_of(device: Device, family: str = "depthwise") -> Pace:
    """The pace of a family of depthwise kernels."""
    a_second, constants = device.clock * 1e6, device.calibration(family)
    return Pace(
        sm_count=device.sm_count,
        a_second=a_second,
        dram=a_second / (device.bandwidth * constants.dram * 1e9),
        l2=a_second / (device.l2_bandwidth * constants.l2 * 1e9),
        issue=constants.issue,
        latency=constants.latency,
        warps=device.warps_per_sm,
        blocks=device.blocks_per_sm,
        registers=device.registers_per_sm,
        launch=overhead(1, device, constants),
    )


def rates_of(call: Call, shape: Shape, option: Option, pace: Pace) -> Rates:
    """The rates of a tile, which depend on its columns, taps, pack and lanes per thread only."""
    tile, work, needed = option
    size, planes, lanes_each = itemsize(call.dtype), is_planes(call), tile.lanes_per_thread
    slides = tile.taps is None and shape.which != Pass.WGRAD
    # one load serves several lanes of a thread where they are neighbours in memory
    vector = lanes_each if planes else ceil_div(lanes_each * size, 16)
    gathers, beside, share = lanes_each, vector, (shape.per_group, 1)
    if shape.which == Pass.WGRAD:
        c = call.problem.channels_per_group
        gathers, beside, share = (
            (vector if shape.per_group == c else lanes_each),
            (vector if c == 1 else lanes_each),
            (shape.per_group // c, c),
        )
    elif shape.per_group == 1 and shape.summed == 1:
        gathers = vector
    # warp instructions: every load and store has an address and a mask, every 16-bit value a conversion
    narrow = 1 if size == 2 else 0
    wide = 2 if size == 8 else 1  # float64 multiplies at half the rate
    transfers = work.loads * gathers + work.beside_loads * beside + work.stored * vector
    converted = work.read + work.beside + work.stored / 2
    trip = 20 + 3 * transfers + lanes_each * (wide * work.multiply_adds + narrow * converted)
    scattered = not (call.b.unit == 0 or tile.pack or planes)  # every lane reads weights of its own
    taps = math.prod(shape.kernel) * shape.summed if slides else 0
    prologue = 100 + taps * lanes_each * (3 + WAVEFRONT * (min(31, taps * size // 4) if scattered else 0) / 4)
    if tile.taps is not None and shape.which != Pass.WGRAD:
        trip += tile.taps[1] * lanes_each * WAVEFRONT * (16 if scattered else 0) / 4
    # the lanes of one group read the same pixels; half of the rows that programs share come from the first-level cache
    values = work.read / share[0] + (work.beside / share[1] if shape.which == Pass.WGRAD else 0)
    resident = max(1, min(pace.warps, pace.blocks * tile.warps, pace.registers // (32 * min(255, needed))))
    launches = 1 + len(tile.pack) + (shape.which == Pass.WGRAD)
    fixed = size * shape.elements + 2 * size * shape.weights * len(tile.pack)
    lines = touched_lines(call, shape, tile, work)
    return Rates(prologue, trip, lines, resident, values * size / 2 * pace.l2, launches * pace.launch, fixed)


class Terms(NamedTuple):
    """The clocks that a pass takes by each limit alone. The unit that loads and the schedulers work side by side."""

    dram: float
    issue: float  # instruction issue, or cache lines where those take longer
    latency: float
    l2: float


def terms_of(rates: Rates, launch: Launch, tile: Tile, moved: float, pace: Pace) -> Terms:
    """The clocks of a launch that moves `moved` bytes."""
    programs, trips = launch.programs, launch.trips
    warps_per_sm = -(-programs * tile.warps // pace.sm_count)
    issue = warps_per_sm * max((rates.prologue + trips * rates.trip) / (4 * pace.issue), trips * rates.lines)
    latency = -(-warps_per_sm // rates.resident) * (2 * pace.latency + trips * (pace.latency + rates.trip))
    return Terms(moved * pace.dram, issue, latency, programs * trips * tile.lanes * rates.l2)


def least_seconds(shape: Shape, tile: Tile, rates: Rates, pace: Pace) -> float:
    """A lower bound of `seconds_of` for any walk: each row is read once, every wave is full and all latency is hidden."""
    trips = (
        -(-shape.channels // tile.channels) * (shape.outputs[2] / (tile.columns * tile.groups)) * shape.batch * shape.outputs[0]
    )
    if shape.which == Pass.WGRAD:
        t, r, s = shape.kernel
        block_r, block_s = tile.taps or (r, s)
        trips *= t * (r // block_r) * -(-s // block_s) * shape.outputs[1]
    elif tile.taps is None:
        trips *= shape.row_groups
    else:
        trips *= shape.outputs[1]
    issue = trips * tile.warps / pace.sm_count * max(rates.trip / (4 * pace.issue), rates.lines)
    return seconds_of(rates, Terms(rates.fixed * pace.dram, issue, 0.0, trips * tile.lanes * rates.l2), pace)


def seconds_of(rates: Rates, terms: Terms, pace: Pace) -> float:
    """The launches, plus the largest term, plus a share of the others (`UNHIDDEN`)."""
    return rates.overhead + ((1 - UNHIDDEN) * max(terms) + UNHIDDEN * sum(terms)) / pace.a_second


def interpreted(work: Work, launch: Launch, lanes: int) -> float:
    """Seconds of Triton's interpreter."""
    operations = work.multiply_adds + 3 * (work.loads + work.beside_loads + work.stored)
    trip = INTERPRETED_TRIP / 100 * operations + (work.read + work.beside) * lanes * INTERPRETED_ELEMENT
    return launch.programs * (1 + launch.trips) * trip


def predict(call: Call, plan: DepthwisePlan, device: Device) -> Prediction:
    """The time of the launches plus mainly the largest of DRAM, L2, instruction issue and exposed latency (`seconds_of`)."""
    shape, tile = shape_of(call.problem, call.which), tile_of(plan)
    work = work_of(call, tile.columns, tile.taps)
    launch = launch_of(shape, tile, plan.rows, plan.split)
    moved = itemsize(call.dtype) * shape.elements + moved_besides(call, shape, tile.pack, launch)
    tile_use = min(1.0, shape.macs / max(1.0, launch.programs * launch.trips * work.multiply_adds * tile.lanes))
    if device.interpreted:
        seconds, waves, bound = interpreted(work, launch, tile.lanes), float(launch.programs), "the interpreter"
    else:
        pace = pace_of(device)
        rates = rates_of(call, shape, Option(tile, work, registers(call, plan)), pace)
        terms = terms_of(rates, launch, tile, moved, pace)
        seconds = seconds_of(rates, terms, pace)
        waves = launch.programs * tile.warps / (device.sm_count * rates.resident)
        issue = "cache lines" if rates.lines * 4 * pace.issue > rates.trip else "instruction issue"
        bound = ("DRAM", issue, "latency", "L2")[terms.index(max(terms))]
        bound = "launch" if rates.overhead > seconds - rates.overhead else bound
    constants = device.calibration("depthwise")
    interval = constants.low * seconds, constants.high * seconds
    return Prediction(seconds, launch.programs, waves, tile_use, moved, bound, *interval, constants.source + borrowed(device))


def quickest(call: Call, device: Device, below: float = math.inf) -> tuple[float, Plan | None]:
    """(predicted seconds, plan) of the candidate of least time; (below, None) where none takes less than `below`.

    The times are those of `predict`, but work that candidates share is done once, and tiles are tried in the order of their
    lower bounds.
    """
    shape, size, pace = shape_of(call.problem, call.which), itemsize(call.dtype), pace_of(device)
    least: float = below
    best: Plan | None = None
    if device.interpreted:
        for option in options(call, shape, device):
            for rows, split in walks(shape, option.tile, device):
                time = interpreted(option.work, launch_of(shape, option.tile, rows, split), option.tile.lanes)
                if time < least:
                    least, best = time, option.plan(shape.which, rows, split)
        return least, best
    known: dict[tuple[int, tuple[int, int] | None, tuple[str, ...], int], Rates] = {}
    ranked = []
    for number, option in enumerate(options(call, shape, device)):
        tile = option.tile
        key = tile.columns, tile.taps, tile.pack, tile.lanes_per_thread
        if key not in known:
            known[key] = rates_of(call, shape, option, pace)
        ranked.append((least_seconds(shape, tile, known[key], pace), number, option, known[key]))
    first = 0  # of candidates that take equally long, the first of the menu is taken
    for floor, number, option, rates in sorted(ranked):
        if floor > least:
            break
        for rows, split in walks(shape, option.tile, device):
            launch = launch_of(shape, option.tile, rows, split)
            moved = size * shape.elements + moved_besides(call, shape, option.tile.pack, launch)
            time = seconds_of(rates, terms_of(rates, launch, option.tile, moved, pace), pace)
            if time < least or (time == least and number < first):
                least, best, first = time, option.plan(shape.which, rows, split), number
    return least, best


class Depthwise(Family):
    """The family."""

    name, plan, narrow = "depthwise", DepthwisePlan, True
    kernels = ("depthwise", "depthwise_taps", "depthwise_wgrad")
    executed = (80, 90)

    def is_for(self, problem: ConvProblem, device: Device) -> bool:
        """Whether the kernels are candidates. In the interpreter they are the only candidates for groups of one channel or one
        filter, and none for other groups, which run on them only where `plan=` asks for it."""
        alone = 1 in (problem.channels_per_group, problem.filters_per_group)
        return is_narrow(problem) and (alone or not device.interpreted)

    def refusal(self, call: Call, plan: DepthwisePlan, device: Device | None) -> str:
        return refusal(call, plan, device)

    def candidates(self, call: Call, device: Device) -> list[Plan]:
        return candidates(call, device) if self.is_for(call.problem, device) else []

    def quickest(self, call: Call, device: Device, below: float) -> tuple[float, Plan | None]:
        return quickest(call, device, below) if self.is_for(call.problem, device) else (below, None)

    def predict(self, call: Call, plan: DepthwisePlan, device: Device) -> Prediction:
        return predict(call, plan, device)

    def counted(self, call: Call, plan: DepthwisePlan) -> Counted:
        launched = 1 + len(plan.pack) + (plan.which == Pass.WGRAD)
        return Counted(issued_macs(call.problem, plan), extra_bytes(call, plan), launched)


FAMILIES = (Depthwise(),)
