"""A depthwise convolution followed by a pointwise one: what one fused kernel takes, and whether two kernels are faster.

A plan of "separable" is one of fprop: `block_m` output pixels x `block_n` filters, `block_k` channels at a time. `step` is the
strip of output pixels (1, 1, rows, columns) that a thread computes per channel. `pack` "b": the depthwise weights are first
copied so that their channels are contiguous. Plain arithmetic, standard library only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from costmodel import plan as plans
from costmodel.algebra import ceil_div, product
from costmodel.device import Device
from costmodel.families.depthwise import axis_of
from costmodel.families.depthwise_choice import UNHIDDEN
from costmodel.problem import ConvProblem, Pass
from costmodel.resources import Resources, compiled_for, memory_refusal
from costmodel.tiling import (
    LARGEST_BOX,
    Call,
    Operand,
    Plan,
    Tile,
    arithmetic,
    itemsize,
    plan_option,
    reach_refusal,
    tile_refusal,
)
from costmodel.timing import INTERPRETED_TRIP, L2_SHARE, Prediction, borrowed, from_dram, kernel, on_chip, overhead, trip_clocks

FAMILY = "separable"
#: Bits per word that says which rows and columns of a strip's window exist.
MAX_WINDOW = 32


@dataclass(frozen=True)
class SeparablePlan(Plan):
    """A plan of the fused kernel. This module's docstring says what the fields mean."""

    step: tuple[int, int, int, int] | None = plan_option("step", None, 4)
    pack: tuple[str, ...] = plan_option("pack-", ())


@dataclass(frozen=True)
class Pair:
    """Both convolutions: the depthwise one, with one filter per channel, and the number of filters of the pointwise one."""

    depthwise: ConvProblem
    filters: int

    @property
    def pointwise(self) -> ConvProblem:
        shape = self.depthwise.output_shape
        return ConvProblem.conv(shape, (self.filters, shape[1], 1, 1), (1, 1), (0, 0), (1, 1))

    @property
    def flops(self) -> int:
        """Dense FLOP, 2 * MAC, of both."""
        return int(self.depthwise.flops + self.pointwise.flops)

    def bytes(self, size: int) -> int:
        """The bytes that one kernel moves at least: x, y and the weights of both, with `size` bytes per element."""
        return int(self.depthwise.bytes(size, Pass.FPROP) + self.pointwise.bytes(size, Pass.FPROP) - 2 * self.between(size))

    def between(self, size: int) -> int:
        """The bytes of the depthwise result, which two kernels write and read."""
        return size * product(self.depthwise.output_shape)

    def __str__(self) -> str:
        return f"{self.depthwise}, then k1x1 -> {self.filters}"


@dataclass(frozen=True)
class PairCall:
    """A pair to plan: its tensors, and the epilogue of each convolution (`costmodel.tiling.Call.epilogue`)."""

    pair: Pair
    dtype: str
    precision: str
    x: Operand
    w1: Operand
    z: Operand  # the depthwise result, as two kernels would store it
    w2: Operand
    y: Operand
    between: str
    epilogue: str

    def apart(self) -> tuple[Call, Call]:
        """The two calls that compute the same."""
        first, second = self.pair.depthwise, self.pair.pointwise
        return (
            Call(first, Pass.FPROP, self.dtype, self.precision, self.x, self.w1, self.z, self.between),
            Call(second, Pass.FPROP, self.dtype, self.precision, self.z, self.w2, self.y, self.epilogue),
        )


def strip(plan: SeparablePlan) -> tuple[int, int]:
    """(rows, columns) of a thread's strip of output pixels."""
    assert plan.step is not None
    return plan.step[2], plan.step[3]


def grid(pair: Pair, plan: SeparablePlan) -> tuple[int, int]:
    """(tiles of strips, tiles of filters)."""
    (p, q), (rows, columns) = pair.depthwise.output_size, strip(plan)
    strips = pair.depthwise.batch * ceil_div(p, rows) * ceil_div(q, columns)
    return ceil_div(strips, plan.block_m // (rows * columns)), ceil_div(pair.filters, plan.block_n)


def window(pair: Pair, shape: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of x that a strip reads."""
    down, across = (axis_of(pair.depthwise, Pass.FPROP, i).window(n, False) for i, n in enumerate(shape))
    return down, across


class Entry(NamedTuple):
    """A tile (pixels x filters x channels) and a strip (rows x columns), with the limits up to which they compile without a
    spill: most taps, most pixels that a strip reads, largest stride. `tests/test_separable_aot.py` holds them."""

    tile: Tile
    strip: tuple[int, int]
    taps: int
    pixels: int
    stride: int
    scattered: bool = False  # a candidate also without a copy of the depthwise weights, whose taps are then read one by one
    tight: bool = False  # a candidate only where `leaves_registers` holds


#: The menu by arithmetic. Strips of two or more rows keep all taps in registers, strips of one row keep one row of taps.
MENU: dict[str, tuple[Entry, ...]] = {
    "half": (
        Entry(Tile(64, 64, 64, 4, 1), (4, 2), 9, 45, 2, True),
        Entry(Tile(128, 64, 32, 4, 1), (4, 2), 9, 45, 2, True),
        Entry(Tile(128, 32, 32, 4, 1), (4, 2), 9, 45, 2),
        Entry(Tile(64, 128, 64, 4, 1), (4, 2), 9, 24, 1, tight=True),
        Entry(Tile(64, 256, 64, 8, 1), (1, 8), 25, 60, 1, tight=True),
        Entry(Tile(64, 64, 32, 4, 1), (1, 4), 25, 55, 2, tight=True),
    ),
    "tf32": (Entry(Tile(64, 64, 32, 4, 1), (4, 2), 9, 45, 2),),
    "fp32": (Entry(Tile(64, 32, 16, 4, 1), (4, 2), 9, 45, 2),),
    "fp64": (Entry(Tile(32, 32, 16, 4, 1), (4, 2), 9, 45, 2),),
}
_WIDE = Entry(Tile(64, 256, 64, 8, 1), (4, 2), 9, 45, 2, True)
_FLAT = Entry(Tile(64, 64, 64, 4, 1), (1, 8), 25, 60, 1, tight=True)
#: Further entries by architecture, which only these compile without a spill.
MENU_OF = {80: (_WIDE,), 90: (_WIDE, _FLAT), 100: (_FLAT,)}
#: The interpreter's menu. Its time depends on the number of programs and trips.
INTERPRETED_MENU = tuple(Entry(Tile(m, n, 64, 4, 1), (4, 2), 1 << 30, 1 << 30, 1 << 30) for m in (64, 512) for n in (16, 64))
#: Registers per thread that a kernel may take. Three programs of four warps fit a multiprocessor with FEW, two with ALL.
FEW, ALL = 168, 255


def refusal(call: PairCall, plan: Plan, device: Device) -> str:
    """Why the kernel cannot run a call under a plan; "" where it can."""
    if plan.which != Pass.FPROP or not isinstance(plan, SeparablePlan):
        return f"it is of {plan.which}:{plan.family}, not of fprop:{FAMILY}"
    for name, block in (("block_m", plan.block_m), ("block_n", plan.block_n), ("block_k", plan.block_k)):
        if block < 16 or block & (block - 1):
            return f"{name} must be a power of two of at least 16, got {block}"
    if reason := tile_refusal(plan) or reach_refusal(call.pair.depthwise):
        return reason
    if plan.step is None or plan.step[:2] != (1, 1) or any(n < 1 or n & (n - 1) for n in plan.step):
        return f"step must be 1x1 and powers of two, a strip of pixels, got {plan.step}"
    if product(plan.step) > plan.block_m:
        return f"step {plan.step} must fit block_m {plan.block_m}"
    if max(window(call.pair, strip(plan))) > MAX_WINDOW:
        return f"a strip's window must have at most {MAX_WINDOW} rows and columns, got {window(call.pair, strip(plan))}"
    if not {*plan.pack} <= {"b"}:
        return f"pack may name b, the depthwise weights, got {', '.join(plan.pack)}"
    return memory_refusal(plan.tile, resources(call, plan, device.capability).shared, device)


class Work(NamedTuple):
    """What a thread does per trip."""

    outputs: float  # values of the depthwise result that it computes
    channels: int  # neighbouring channels per load
    pixels: float  # values of x that it loads and converts
    weights: int  # depthwise weights that it loads and converts
    sums: int  # sums of the pointwise product that it holds


def work_of(call: PairCall, plan: SeparablePlan) -> Work:
    threads, (rows, columns), problem = 32 * plan.num_warps, strip(plan), call.pair.depthwise
    strips = plan.block_m // (rows * columns)
    lanes = max(1.0, strips * plan.block_k / threads)  # pairs of a strip and a channel per thread
    widest = max(1, 16 // itemsize(call.dtype))
    channels = math.gcd(call.x.align, widest, problem.in_channels) if call.x.unit == 1 else 1
    channels = min(channels, max(1, int(lanes)))
    met = [len(met_of(problem, i, n)) for i, n in enumerate((rows, columns))]
    held = plan.block_m * plan.block_n // threads
    return Work(lanes * rows * columns, channels, lanes * product(met), channels * problem.taps, held)


def met_of(problem: ConvProblem, axis: int, outputs: int) -> set[int]:
    """The pixels of a window, along one axis, that `outputs` neighbouring outputs read; the others lie between taps."""
    step, dilation = problem.stride[axis], problem.dilation[axis]
    return {o * step + tap * dilation for o in range(outputs) for tap in range(problem.kernel_size[axis])}


def trip_instructions(call: PairCall, plan: SeparablePlan, capability: int) -> float:
    """Warp instructions per trip. `tests/test_separable_aot.py` holds them against compiled kernels."""
    work, size, problem = work_of(call, plan), itemsize(call.dtype), call.pair.depthwise
    # a masked load takes an address, a mask and zeros; a 16-bit value takes a conversion, and sometimes a shift
    load = 4 + ceil_div(work.channels * size, 8)
    narrow = 1.4 if size == 2 else 0.0
    gathered = work.pixels * (load / work.channels + narrow)
    weights = work.weights * ((3 / work.channels if call.w1.unit == 0 or plan.pack else 1) + narrow)
    after = {"": 0, "channels": 2, "heavy": 12}[call.between] + (1 if size == 2 else 0)
    product_loads = plan.block_n * plan.block_k / (32 * plan.num_warps) / max(1, 16 // size) * 6
    kind = arithmetic(call.dtype, call.precision)
    if kind == "fp32":
        product_loads += plan.block_m * plan.block_n * plan.block_k / (32 * plan.num_warps)
    elif compiled_for(capability) == 80 or size == 8 or plan.block_n < 64:  # matrix instructions per warp, with their loads
        product_loads += 5.5 * plan.block_m * plan.block_n * plan.block_k * size / (4096 * plan.num_warps)
    wide = 2 if size == 8 else 1  # float64 multiplies at half the rate
    return 80 + gathered + weights + work.outputs * (wide * problem.taps + after) + product_loads


def program_instructions(call: PairCall, plan: SeparablePlan) -> float:
    """Warp instructions outside the loop: coordinates before it, stores behind it. Tests hold them as those of a trip."""
    return 380 + 25 * sum(window(call.pair, strip(plan))) + 8.2 * work_of(call, plan).sums


def lines(call: PairCall, plan: SeparablePlan) -> float:
    """Cache lines of 128 bytes that the loads of x and of the depthwise weights touch per warp and trip; the load unit handles
    one per clock. Without a copy (`pack` "b") the weights take as many loads, each of which touches all lines of its
    channels."""
    work, size, taps = work_of(call, plan), itemsize(call.dtype), call.pair.depthwise.taps
    strips = max(1.0, 32 * work.channels / plan.block_k)  # strips per load of a warp
    gathered = work.pixels / work.channels * strips * ceil_div(plan.block_k * size, 128)
    if call.w1.unit == 0 or plan.pack:
        return gathered + taps * ceil_div(plan.block_k * size, 128)
    return gathered + taps * work.channels * ceil_div(plan.block_k * taps * size, 128)


def registers(call: PairCall, plan: SeparablePlan, capability: int) -> int:
    """Registers per thread that the kernel is compiled for: `FEW` where a thread needs no more, otherwise `ALL`."""
    if compiled_for(capability) == 80:
        return ALL
    even = bool(plan.pack) or call.w1.unit == 0 or call.pair.depthwise.in_channels % plan.block_k == 0
    if not (leaves_registers(call) and even):
        return ALL
    work = work_of(call, plan)
    held = (work.sums + work.outputs + work.weights) * (2 if itemsize(call.dtype) == 8 else 1)
    return FEW if held <= 100 and work.pixels <= 96 and plan.num_warps == 4 else ALL


def resources(call: PairCall, plan: SeparablePlan, capability: int) -> Resources:
    """What the kernel needs, from counts that `tests/test_separable_aot.py` holds against the compiler. Shared memory has the
    pixels of a trip once and its weights once per stage."""
    shared = (plan.block_m + plan.num_stages * plan.block_n) * plan.block_k * itemsize(call.dtype)
    return Resources(registers(call, plan, capability), shared, 0, round(trip_instructions(call, plan, capability)))


def has_wide_loads(call: PairCall) -> bool:
    """Whether the channels of x and those of y are contiguous, and one load brings at least 4 bytes of them."""
    wide = math.gcd(call.x.align, call.pair.depthwise.in_channels) * itemsize(call.dtype) >= 4
    return call.x.unit == 1 and call.y.unit == 1 and wide


def leaves_registers(call: PairCall) -> bool:
    """Whether the loop leaves registers free beside the sums: loads bring 16 bytes, and no exponential stands between."""
    return call.pair.depthwise.in_channels * itemsize(call.dtype) % 16 == 0 and call.between != "heavy"


def candidates(call: PairCall, device: Device) -> list[SeparablePlan]:
    """The plans worth predicting; none where a lane would load less than 4 bytes of channels."""
    problem, kind = call.pair.depthwise, arithmetic(call.dtype, call.precision)
    packed = call.w1.unit == 0
    choices: list[SeparablePlan] = []
    if not device.interpreted and not has_wide_loads(call):
        return choices
    menu = MENU[kind] + (MENU_OF[compiled_for(device.capability)] if kind == "half" else ())
    for entry in INTERPRETED_MENU if device.interpreted else menu:
        plan = SeparablePlan(Pass.FPROP, FAMILY, *entry.tile, step=(1, 1, *entry.strip))
        met = product(len(met_of(problem, i, n)) for i, n in enumerate(entry.strip))
        if problem.taps > entry.taps or met > entry.pixels or max(problem.stride) > entry.stride or refusal(call, plan, device):
            continue
        if entry.tight and not leaves_registers(call):
            continue
        # at stride 2 ptxas keeps a value on the stack for sm_100
        scattered = entry.scattered and (compiled_for(device.capability) != 100 or max(problem.stride) == 1)
        if packed or scattered or device.interpreted:
            choices.append(plan)
        if not packed and not device.interpreted:
            choices.append(replace(plan, pack=("b",)))
    return choices


def smallest(call: PairCall) -> SeparablePlan:
    """A plan with strips of one pixel, for calls that the menu does not serve and that ask for one kernel."""
    tile = MENU[arithmetic(call.dtype, call.precision)][-1].tile
    return SeparablePlan(Pass.FPROP, FAMILY, *tile, step=(1, 1, 1, 1), pack=() if call.w1.unit == 0 else ("b",))


def from_l2(call: PairCall, plan: SeparablePlan) -> int:
    """Elements per trip that come from L2: the pixels that a tile's strips read, once, and weights."""
    (rows, columns), problem = strip(plan), call.pair.depthwise
    strips, row = plan.block_m // (rows * columns), ceil_div(problem.output_size[1], columns)
    across = min(strips, row)
    met = window(call.pair, (rows * ceil_div(strips, across), columns * across))
    return plan.block_k * (product(met) + plan.block_n + problem.taps)


def predict(call: PairCall, plan: SeparablePlan, device: Device) -> Prediction:
    """The time of the fused kernel, and of the copy of weights before it."""
    size, pair, kind = itemsize(call.dtype), call.pair, arithmetic(call.dtype, call.precision)
    tiles_m, tiles_n = grid(pair, plan)
    tiles, trips = tiles_m * tiles_n, ceil_div(pair.depthwise.in_channels, plan.block_k)
    x = size * product(pair.depthwise.input_shape)
    moved = pair.bytes(size) + 2 * size * product(pair.depthwise.weight_shape) * len(plan.pack)
    if x > device.l2_bytes * L2_SHARE:
        moved += (tiles_n - 1) * x  # each block of filters computes the whole depthwise result again
    m, n, k, *_ = plan.tile
    needs = resources(call, plan, device.capability)
    tile_kernel = kernel(FAMILY, plan.tile, needs, kind, size, (LARGEST_BOX, LARGEST_BOX), device)
    share, slots = from_l2(call, plan) / ((m + n) * k), 4 * tile_kernel.constants.issue / plan.num_warps
    clocks, bound = max(
        (tile_kernel.clocks, tile_kernel.bound),
        (needs.trip / slots, "instruction issue"),
        (lines(call, plan) * plan.num_warps, "loads"),
    )
    tile_kernel = tile_kernel._replace(
        clocks=clocks,
        bound=bound,
        from_l2=tile_kernel.from_l2 * share,
        from_l2_alone=tile_kernel.from_l2_alone * share,
        # a trip waits for its pixels, then for shared memory between writing the product's operand and multiplying it
        exposed=1.5 * tile_kernel.exposed,
        epilogue=max(tile_kernel.epilogue, program_instructions(call, plan) / slots),
    )
    launched = 1 + len(plan.pack)
    bound = tile_kernel.bound if tile_kernel.clocks >= trip_clocks(tile_kernel, tiles, device) else "L2"
    if device.interpreted:
        work = work_of(call, plan)
        per = work.outputs * pair.depthwise.taps + 3 * work.pixels
        total = tiles * (1 + trips) * (INTERPRETED_TRIP / 100 * per / max(1.0, work.outputs / product(strip(plan))))
    else:
        busy, dram = on_chip(tile_kernel, tiles, trips, device), from_dram(moved, device, tile_kernel.constants)
        # as with the depthwise kernels, the longer of the two hides the other only in part
        total = overhead(launched, device, tile_kernel.constants) + max(busy, dram) + UNHIDDEN * min(busy, dram)
        bound = "DRAM" if dram > busy else bound
        bound = "launch" if overhead(launched, device, tile_kernel.constants) > max(busy, dram) else bound
    between = tiles * trips * k * m * (n + pair.depthwise.taps)
    return Prediction(
        seconds=total,
        tiles=tiles,
        waves=tiles / (device.sm_count * tile_kernel.resident),
        tile_use=min(1.0, pair.flops / 2 / max(1, between)),
        bytes=moved,
        bound=bound,
        low=total * tile_kernel.constants.low,
        high=total * tile_kernel.constants.high,
        source=tile_kernel.constants.source + borrowed(device),
    )


def plans_apart(call: PairCall, device: Device) -> tuple[Plan, Plan]:
    """The plans of the two separate kernels."""
    first, second = (plans.select(one, device) for one in call.apart())
    return first, second


def apart(call: PairCall, device: Device) -> tuple[Prediction, Prediction]:
    """The predictions for the two separate kernels."""
    calls = zip(call.apart(), plans_apart(call, device), strict=True)
    first, second = (plans.predict(one, plan, device) for one, plan in calls)
    return first, second


def select(call: PairCall, device: Device, fused: bool = False) -> SeparablePlan | None:
    """The plan of least predicted time; None where two kernels take less. With `fused` one kernel is taken in any case.

    Raises RuntimeError where one kernel is asked for and none serves the call.
    """
    choices = candidates(call, device)
    if not choices and not fused:
        return None
    if not choices:
        plan = smallest(call)
        if reason := refusal(call, plan, device):
            raise RuntimeError(f"no single kernel serves {call.pair}: {reason}")
        return plan
    times = [predict(call, plan, device).seconds for plan in choices]
    least = min(times)
    if fused or least < sum(one.seconds for one in apart(call, device)):
        return choices[times.index(least)]
    return None
