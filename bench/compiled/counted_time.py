"""The time of a plan by the counts of its executed code, beside the predicted time by which plans are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from costmodel.device import Device
from costmodel.families.depthwise import DepthwisePlan, launch_of, registers, shape_of, tile_of, work_of
from costmodel.families.depthwise import extra_bytes as extra_depthwise
from costmodel.families.depthwise_choice import Option, pace_of, rates_of, seconds_of, terms_of
from costmodel.families.matrix import MatrixPlan, arithmetic_of
from costmodel.families.matrix import trips as matrix_trips
from costmodel.families.matrix_time import parts, seconds
from costmodel.plan import predict
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Call, Plan, itemsize
from costmodel.timing import multiply_clocks

#: Warp instructions that a multiprocessor issues per clock.
SCHEDULERS = 4


@dataclass(frozen=True)
class Counts:
    """What one program of a plan's main kernel does, on average over a launch of `trips` trips of its loop."""

    instructions: float  # of warps
    lines: float  # of 128 bytes of global memory
    wavefronts: float  # of shared memory
    trips: float  # 0 where a program does the same whatever the batch and the image

    def at(self, trips: float) -> Counts:
        """The counts of a program of `trips` trips."""
        times = trips / self.trips if self.trips else 1.0
        return Counts(self.instructions * times, self.lines * times, self.wavefronts * times, trips)

    def beyond(self, shorter: Counts) -> Counts:
        """What the trips do that a shorter launch lacks."""
        return Counts(
            self.instructions - shorter.instructions,
            self.lines - shorter.lines,
            self.wavefronts - shorter.wavefronts,
            self.trips - shorter.trips,
        )


@dataclass(frozen=True)
class Timed:
    """A plan with its time in seconds, as predicted for the choice and by counts. `bound` takes most clocks of a program."""

    plan: str
    predicted: float
    counted: float
    bound: str


def trips(problem: ConvProblem, plan: Plan) -> float:
    """Trips of a program, where its work depends on batch and image; else 0."""
    if isinstance(plan, DepthwisePlan):
        return launch_of(shape_of(problem, plan.which), tile_of(plan), plan.rows, plan.split).trips
    if isinstance(plan, MatrixPlan):
        return matrix_trips(problem, plan) if plan.which == Pass.WGRAD else 0.0
    raise ValueError(f"no counts are taken of {plan}: it is of neither a matrix product nor the depthwise kernels")


def timed(call: Call, plan: Plan, counts: Counts, device: Device) -> Timed:
    """The time by counts: the cost model's, with counted instead of estimated clocks of a program."""
    counts = counts.at(trips(call.problem, plan))
    counted, bound = (_depthwise if isinstance(plan, DepthwisePlan) else _matrix)(call, plan, counts, device)
    return Timed(str(plan), predict(call, plan, device).seconds, counted, bound)


def _counted_clocks(counts: Counts, issue: float) -> dict[str, float]:
    """Clocks that a multiprocessor takes for one program, by each of the counts alone."""
    return {
        "instruction issue": counts.instructions / (SCHEDULERS * issue),
        "cache lines": counts.lines,
        "shared memory": counts.wavefronts,
    }


def _matrix(call: Call, plan: Plan, counts: Counts, device: Device) -> tuple[float, str]:
    assert isinstance(plan, MatrixPlan)
    kernel, tiles, n_trips, moved, launches = parts(call, plan, device)
    arithmetic = n_trips * multiply_clocks(plan.tile, arithmetic_of(call, plan), kernel.constants, device)
    clocks = {"arithmetic": arithmetic, **_counted_clocks(counts, kernel.constants.issue)}
    bound = _longest(clocks)
    counted = kernel._replace(clocks=clocks[bound] / max(n_trips, 1), epilogue=0.0)
    return seconds(counted, tiles, n_trips, moved, launches, device), bound


def _depthwise(call: Call, plan: Plan, counts: Counts, device: Device) -> tuple[float, str]:
    assert isinstance(plan, DepthwisePlan)
    shape, tile, pace = shape_of(call.problem, call.which), tile_of(plan), pace_of(device)
    launch = launch_of(shape, tile, plan.rows, plan.split)
    option = Option(tile, work_of(call, tile.columns, tile.taps), registers(call, plan))
    per_trip = 1 / (tile.warps * max(1, launch.trips))  # from the counts of a program to those of a warp and trip
    rates = rates_of(call, shape, option, pace)
    rates = rates._replace(
        prologue=0.0, trip=counts.instructions * per_trip, lines=max(counts.lines, counts.wavefronts) * per_trip
    )
    moved = itemsize(call.dtype) * shape.elements + extra_depthwise(call, plan)
    terms = terms_of(rates, launch, tile, moved, pace)
    issue = _longest(_counted_clocks(counts, pace.issue))
    bound = _longest({"DRAM": terms.dram, issue: terms.issue, "latency": terms.latency, "L2": terms.l2})
    return seconds_of(rates, terms, pace), bound


def _longest(clocks: Mapping[str, float]) -> str:
    return max(clocks, key=lambda name: clocks[name])
