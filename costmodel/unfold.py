"""Windows of an image as columns (unfold, im2col), and columns summed into an image (fold, col2im): what a call counts, the
tile that its kernel takes, and its time. Plain arithmetic, standard library only.

Neither multiplies. Both are bound by bandwidth: unfold writes each pixel as often as windows hold it, fold reads it as often. A
plan's pass says which runs: "fprop" is unfold, "dgrad" is fold, which is the gradient of unfold as unfold is that of fold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

from costmodel.algebra import ceil_div, product
from costmodel.device import Device
from costmodel.families import depthwise_choice as choice
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import MAX_ALIGN, Operand, Plan, itemsize, plan_option, tile_refusal
from costmodel.timing import INTERPRETED_ELEMENT, INTERPRETED_TRIP, Prediction, borrowed

FAMILY = "unfold"
#: Clocks of a load that the first-level cache answers (Luo et al. 2024, arXiv:2402.13499, table of latencies: 38 on A100, 41 on
#: H100).
CACHED = 40
#: Bytes that the load unit moves per clock, and lanes of a warp.
LINE, LANES = 128, 32
#: Warps of a program, and elements of its tile in the menu. fold has none of 128: with one sum per thread ptxas lays all taps
#: of a volume together in 32 registers, and spills two (sm_80, float64, Triton 3.9).
WARPS, SIZES = 4, {Pass.FPROP: (128, 256, 512, 1024), Pass.DGRAD: (256, 512, 1024)}
#: Most channels of a tile of the menu, by whether neighbouring channels are contiguous.
MOST_CHANNELS = {True: 64, False: 16}
#: The interpreter's tile: its time depends on the number of programs and trips.
INTERPRETED_PLACES, INTERPRETED_VALUES = 4096, 1 << 16
#: A contiguous image, and contiguous columns.
ROWS = Operand(4)


@dataclass(frozen=True)
class UnfoldPlan(Plan):
    """A plan of "unfold". fprop: `block_m` places x `block_n` channels, `block_k` taps for a program. dgrad: `block_m` pixels x
    `block_n` channels, all of whose taps one program sums, so `block_k` is 1. `pack` "a": what the kernel reads is first copied
    so that it is contiguous."""

    pack: tuple[str, ...] = plan_option("pack-", ())


@dataclass(frozen=True)
class Unfolding:
    """A call, described by a depthwise convolution with the same windows and one filter per channel. It has no weights.

    >>> unfolding = Unfolding.of((2, 3, 5, 6), (3, 3), (1, 1), (1, 1), (1, 1))
    >>> unfolding.columns_shape, unfolding.compulsory(2, Pass.FPROP) == 2 * (2 * 3 * 30 + 2 * 27 * 30), unfolding.additions
    ((2, 27, 30), True, 1068)
    """

    problem: ConvProblem

    @classmethod
    def of(cls, image: Any, kernel: Any, dilation: Any, padding: Any, stride: Any, *, checked: bool = True) -> Unfolding:
        """The call for an image [N, C, *size]; the others have an entry per axis of it. Raises ShapeError where a kernel is
        larger than the padded image."""
        channels = image[1]
        return cls(ConvProblem.conv(image, (channels, 1, *kernel), stride, padding, dilation, channels, checked=checked))

    @property
    def places(self) -> Any:
        """Windows of an image."""
        return product(self.problem.output_size)

    @property
    def columns_shape(self) -> tuple[Any, Any, Any]:
        problem = self.problem
        return (problem.batch, problem.in_channels * problem.taps, self.places)

    @property
    def _planes(self) -> Any:
        return self.problem.batch * self.problem.in_channels

    @property
    def met(self) -> Any:
        """Elements of the columns that are pixels and not padding."""
        return self._planes * product(self.problem.valid_pairs)

    @property
    def touched(self) -> Any:
        """Pixels that a window holds."""
        return self._planes * product(self.problem.touched_size)

    @property
    def additions(self) -> Any:
        """Additions of fold: all but the first of the elements that meet each pixel."""
        return self.met - self.touched

    def compulsory(self, size: int, which: Pass) -> Any:
        """Bytes that a call moves at least, `size` bytes per element: unfold reads the pixels that a window holds and writes
        all columns; fold reads the columns that meet a pixel and writes all pixels."""
        if which == Pass.FPROP:
            return size * (self.touched + product(self.columns_shape))
        return size * (self.met + product(self.problem.input_shape))

    def __str__(self) -> str:
        return f"windows of {self.problem}"


@dataclass(frozen=True)
class UnfoldCall:
    """A call to plan: how the image and the columns lie, as `costmodel.tiling.Operand` says it."""

    unfolding: Unfolding
    which: Pass
    dtype: str
    image: Operand = ROWS
    columns: Operand = ROWS

    @property
    def elements(self) -> int:
        """Elements of what the kernel reads."""
        return int(product(self.unfolding.problem.input_shape if self.which == Pass.FPROP else self.unfolding.columns_shape))

    @property
    def source(self) -> Operand:
        """What the kernel reads."""
        return self.image if self.which == Pass.FPROP else self.columns

    def after(self, pack: tuple[str, ...]) -> UnfoldCall:
        """The call as the kernel sees it, behind the copy of a plan."""
        if not pack:
            return self
        if self.which == Pass.DGRAD:
            return replace(self, columns=Operand(4, math.gcd(MAX_ALIGN, self.unfolding.places)))
        sizes = self.unfolding.problem.input_size
        align = math.gcd(MAX_ALIGN, *(product(sizes[axis:]) for axis in range(len(sizes))))
        return replace(self, image=Operand(4, align))

    @property
    def points(self) -> int:
        """Places that unfold writes in each image, or pixels that fold does."""
        problem = self.unfolding.problem
        return int(product(problem.output_size if self.which == Pass.FPROP else problem.input_size))


def periods(problem: ConvProblem) -> tuple[int, ...]:
    """Per axis, the distance between the taps that meet a pixel."""
    return tuple(s // math.gcd(s, d) for s, d in zip(problem.stride, problem.dilation, strict=True))


def inverses(problem: ConvProblem) -> tuple[int, ...]:
    """Per axis, the inverse of dilation / gcd(stride, dilation) modulo the period."""
    pairs = zip(problem.stride, problem.dilation, periods(problem), strict=True)
    return tuple(pow(d // math.gcd(s, d), -1, period) if period > 1 else 0 for s, d, period in pairs)


def trips(call: UnfoldCall, plan: UnfoldPlan) -> int:
    """Trips of a program's loop: the taps of its share, or those that may meet a pixel."""
    problem = call.unfolding.problem
    if call.which == Pass.FPROP:
        return min(plan.block_k, problem.taps)
    return product(ceil_div(n, period) for n, period in zip(problem.kernel_size, periods(problem), strict=True))


def shares(call: UnfoldCall, plan: UnfoldPlan) -> int:
    """Programs that share the taps of a block."""
    return ceil_div(call.unfolding.problem.taps, plan.block_k) if call.which == Pass.FPROP else 1


def blocks(call: UnfoldCall, plan: UnfoldPlan) -> tuple[int, int]:
    """(blocks of places or pixels, blocks of channels) of an image."""
    return ceil_div(call.points, plan.block_m), ceil_div(call.unfolding.problem.in_channels, plan.block_n)


def programs(call: UnfoldCall, plan: UnfoldPlan) -> int:
    return call.unfolding.problem.batch * shares(call, plan) * product(blocks(call, plan))


def refusal(call: UnfoldCall, plan: Plan) -> str:
    """Why the kernel cannot run a call under a plan; "" where it can."""
    name = "unfold" if call.which == Pass.FPROP else "fold"
    if plan.which != call.which or not isinstance(plan, UnfoldPlan):
        return f"{name} takes plans {call.which}:{FAMILY}, got {plan.which}:{plan.family}"
    for word, block in (("block_m", plan.block_m), ("block_n", plan.block_n)):
        if block < 1 or block & (block - 1):
            return f"{word} must be a power of two, got {block}"
    if plan.block_k < 1 or (plan.which == Pass.DGRAD and plan.block_k != 1):
        least = "1, for one program sums all taps" if plan.which == Pass.DGRAD else "a number of taps of at least 1"
        return f"block_k must be {least}, got {plan.block_k}"
    if not {*plan.pack} <= {"a"}:
        return f"pack may name a, what the kernel reads, got {', '.join(plan.pack)}"
    return tile_refusal(replace(plan, block_k=1))


def checked(call: UnfoldCall, plan: Plan) -> UnfoldPlan:
    """A forced plan. Raises ValueError where it cannot run the call."""
    if reason := refusal(call, plan):
        raise ValueError(f"plan {plan} cannot run {call.unfolding}: {reason}")
    assert isinstance(plan, UnfoldPlan)
    return plan


def candidates(call: UnfoldCall, device: Device) -> list[UnfoldPlan]:
    """The plans worth predicting: blocks of places that a row of threads fills, more channels where places are few or where
    neighbouring channels are contiguous, and taps shared out where programs are few; each also behind a copy of what the kernel
    reads, where that is not contiguous along its rows."""
    plans = _menu(call, device)
    if device.interpreted or call.source.unit == 4:
        return plans
    return plans + [replace(plan, pack=("a",)) for plan in _menu(call.after(("a",)), device)]


def _menu(call: UnfoldCall, device: Device) -> list[UnfoldPlan]:
    problem = call.unfolding.problem
    places, channels = (1 << (int(n) - 1).bit_length() for n in (call.points, problem.in_channels))
    if device.interpreted:
        m = min(places, INTERPRETED_PLACES)
        return [_plan(call, m, min(channels, INTERPRETED_VALUES // m), problem.taps)]
    limit = min(channels, MOST_CHANNELS[call.source.unit == 1])
    counts = {problem.taps} if call.which == Pass.DGRAD else {ceil_div(problem.taps, n) for n in (1, 4, 16, 64)}
    plans = []
    for size in SIZES[call.which]:
        for n in (2**i for i in range(limit.bit_length())):
            m = size // n
            if (m < LANES and m < places) or m > max(2 * places, LANES):
                continue
            plans += [_plan(call, m, n, count) for count in sorted(counts, reverse=True)]
    return plans or [_plan(call, LANES, limit, problem.taps)]


def _plan(call: UnfoldCall, m: int, n: int, taps: int) -> UnfoldPlan:
    return UnfoldPlan(call.which, FAMILY, m, n, taps if call.which == Pass.FPROP else 1, WARPS, 1)


class Trip(NamedTuple):
    """What a warp does in one trip."""

    instructions: float
    lines: float  # cache lines of `LINE` bytes that its loads and stores touch; the load unit handles one per clock


def trip_of(call: UnfoldCall, plan: UnfoldPlan) -> Trip:
    """A trip of a program's loop. Threads lie along what the trip stores (unfold) or loads (fold) contiguously; where an
    image's channels are contiguous, unfold exchanges its elements through shared memory. `tests/test_unfold_aot.py` holds the
    instructions against compiled kernels."""
    size, problem = itemsize(call.dtype), call.unfolding.problem
    per_thread = max(1.0, plan.block_m * plan.block_n / (LANES * plan.num_warps))  # elements of a thread
    rank, tested = problem.rank, problem.rank * problem.needs_bounds
    if call.which == Pass.DGRAD:
        strided = sum(period > 1 for period in periods(problem))
        places = max(1.0, plan.block_m / (LANES * plan.num_warps))
        instructions = 10 + 9 * per_thread + places * (8 * rank + 4.5 * strided)
        return Trip(instructions, per_thread * _spread(call.columns, size, periods(problem)[-1]))
    if call.image.unit == 1 and plan.block_n > 1:
        width = min(math.gcd(call.image.align, problem.in_channels, max(1, 16 // size)), per_thread)
        exchanged = 3 * per_thread if size > 2 else 0
        instructions = 16 + per_thread / width * (14 + 5 * tested) + exchanged
        run = min(LINE, size * min(plan.block_n, problem.in_channels))  # bytes of a pixel that lie side by side
        return Trip(instructions, per_thread * LANES * size * (1 / run + 3 / LINE))
    width = _width(call.columns, size, per_thread)
    instructions = 16 + per_thread * (5 + 7 * tested)
    return Trip(instructions, per_thread * (_spread(call.image, size, problem.stride[-1] * width) + LANES * size / LINE))


def _width(operand: Operand, size: int, per_thread: float) -> float:
    """Elements that a thread stores at once along the places."""
    return min(math.gcd(operand.align, max(1, 16 // size)), per_thread) if operand.unit == 4 else 1


def _spread(operand: Operand, size: int, step: float) -> float:
    """Cache lines that one load of a warp touches where neighbouring lanes are `step` elements apart."""
    return min(LANES, max(1.0, LANES * size * step / LINE)) if operand.unit == 4 else LANES


#: Warp instructions before and after the loop, which compute the coordinates of each place.
PROLOGUE = 200


def from_l2(call: UnfoldCall) -> float:
    """Bytes that multiprocessors exchange with the L2 cache. Taps of a row that see the same pixels read it once."""
    size, problem = itemsize(call.dtype), call.unfolding.problem
    if call.which == Pass.DGRAD:
        return float(call.unfolding.compulsory(size, call.which))
    columns, taps = product(call.unfolding.columns_shape), problem.kernel_size[-1]
    return float(size * columns * (1 + min(1.0, problem.stride[-1] / taps)))


@lru_cache(maxsize=4096)
def predict(call: UnfoldCall, plan: UnfoldPlan, device: Device) -> Prediction:
    """Seconds of a call under a plan: the launch, plus mainly the largest of DRAM, L2, instruction issue, cache lines and
    exposed latency (`depthwise_choice.seconds_of`)."""
    problem, size = call.unfolding.problem, itemsize(call.dtype)
    constants, count, trips_each = device.calibration(FAMILY), programs(call, plan), trips(call, plan)
    copied = 2 * size * call.elements * len(plan.pack)
    moved, block = int(call.unfolding.compulsory(size, call.which)) + copied, plan.block_m * plan.block_n
    use = min(1.0, problem.batch * problem.in_channels * call.points / max(1, count / shares(call, plan) * block))
    if device.interpreted:
        seconds = count * (1 + trips_each) * (INTERPRETED_TRIP + block * INTERPRETED_ELEMENT)
        waves, bound = float(count), "the interpreter"
    else:
        pace, trip = choice.pace_of(device, FAMILY), trip_of(call.after(plan.pack), plan)
        start = pace.launch * (1 + len(plan.pack))
        resident = min(pace.warps, pace.blocks * plan.num_warps)
        warps = -(-count * plan.num_warps // pace.sm_count)
        issue = warps * (PROLOGUE + trips_each * trip.instructions) / (4 * pace.issue)
        lines = warps * trips_each * trip.lines
        rows = ceil_div(trips_each, problem.kernel_size[-1]) if call.which == Pass.FPROP else trips_each
        walk = (2 + rows) * pace.latency + trips_each * (CACHED + trip.instructions)
        latency = -(-warps // resident) * walk
        terms = choice.Terms(moved * pace.dram, max(issue, lines), latency, (from_l2(call) + copied) * pace.l2)
        rates = choice.Rates(PROLOGUE, trip.instructions, trip.lines, resident, 0.0, start, moved)
        seconds = choice.seconds_of(rates, terms, pace)
        waves = count * plan.num_warps / (device.sm_count * resident)
        names = ("DRAM", "cache lines" if lines > issue else "instruction issue", "latency", "L2")
        bound = names[terms.index(max(terms))]
        bound = "launch" if start > seconds - start else bound
    interval = constants.low * seconds, constants.high * seconds
    return Prediction(seconds, count, waves, use, moved, bound, *interval, constants.source + borrowed(device))


def select(call: UnfoldCall, device: Device) -> UnfoldPlan:
    """The candidate of least predicted time."""
    return min(candidates(call, device), key=lambda plan: predict(call, plan, device).seconds)
