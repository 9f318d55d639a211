"""The constants of a kernel family (`costmodel.calibration`) fitted to measured times.

The sum of |log(measured / predicted)| over the rows is minimised one constant at a time, by golden section on its logarithm,
until a round over all constants gains next to nothing. Absolute deviations keep a few rows that the model does not understand
from bending the rest; they are rounded off below `ROUNDING`, so that the descent does not stop at a corner.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from costmodel.calibration import BOUNDS, SHARE_BOUNDS, Calibration
from costmodel.device import Device
from costmodel.plan import predict
from costmodel.tiling import Call, Plan, arithmetic

ROUNDING = 0.02
#: A constant is changed only where that lowers the mean error by this much; a round that gains less is the last.
GAIN = 1e-4
ROUNDS = 8
#: Fewest rows bound by a tile's arithmetic for which the tile gets a share of the peak of its own.
ROWS_OF_A_TILE = 8
GRID = 9
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Sample:
    """A plan of a call, and the seconds it took."""

    call: Call
    plan: Plan
    seconds: float

    @property
    def kind(self) -> str:
        return arithmetic(self.call.dtype, self.call.precision)

    @property
    def tile(self) -> str:
        return f"{self.kind} {self.plan.block_m}x{self.plan.block_n}x{self.plan.block_k}"


def with_constants(device: Device, family: str, constants: Calibration) -> Device:
    """The device with these constants for one family and the defaults for the others."""
    return replace(device, calibrations=((family, constants),), fastest={})


def log_ratios(samples: Sequence[Sample], device: Device) -> np.ndarray:
    """log(measured / predicted) of each sample."""
    return np.array([math.log(s.seconds / predict(s.call, s.plan, device).seconds) for s in samples])


def absolute_errors(samples: Sequence[Sample], device: Device) -> np.ndarray:
    """|predicted / measured - 1| of each sample."""
    return np.abs(np.expm1(-log_ratios(samples, device)))


def fit(samples: Sequence[Sample], device: Device, family: str) -> Calibration:
    """The constants that fit the samples of one family. A constant keeps its default where that fits as well."""

    def off(constants: Calibration) -> float:
        ratios = log_ratios(samples, with_constants(device, family, constants))
        return fmean(np.hypot(ratios, ROUNDING))

    best = Calibration()
    kinds = sorted({s.kind for s in samples})
    # the latency comes last, because it can stand in for any other constant where few rows tell them apart
    steps = [_constant(name, *BOUNDS[name]) for name in ("launch", "dram", "l2", "issue")]
    steps += [*(_share(kind) for kind in kinds), _constant("latency", *BOUNDS["latency"])]
    least = off(best)
    for _ in range(ROUNDS):
        before = least
        for step in steps:
            best, least = _lower(best, least, step, off)
        if before - least < GAIN:
            break
    for tile in _bound_tiles(samples, with_constants(device, family, best)):
        best, least = _lower(best, least, _share(tile), off)
    return best


@dataclass(frozen=True)
class Step:
    """One constant: how to set it, and between which values."""

    put: Callable[[Calibration, float], Calibration]
    low: float
    high: float


def _constant(name: str, low: float, high: float) -> Step:
    return Step(lambda constants, value: replace(constants, **{name: value}), low, high)  # type: ignore[arg-type]


def _share(name: str) -> Step:
    def put(constants: Calibration, value: float) -> Calibration:
        return replace(constants, shares=tuple(sorted({**dict(constants.shares), name: value}.items())))

    return Step(put, *SHARE_BOUNDS)


def _lower(best: Calibration, least: float, step: Step, off: Callable[[Calibration], float]) -> tuple[Calibration, float]:
    """The pair (constants, mean error) with one constant at its best value, or the pair as given where no value is better."""

    def at(log: float) -> float:
        return off(step.put(best, math.exp(log)))

    low, high = math.log(step.low), math.log(step.high)
    ends = at(low), at(high)
    if abs(ends[0] - least) < GAIN and abs(ends[1] - least) < GAIN:
        return best, least  # no row depends on it
    grid = np.linspace(low, high, GRID)
    values = [ends[0], *(at(log) for log in grid[1:-1]), ends[1]]
    middle = int(np.argmin(values))
    log = golden_section(at, grid[max(0, middle - 1)], grid[min(GRID - 1, middle + 1)])
    value, log = min((values[middle], grid[middle]), (at(log), log))
    if least - value < GAIN:
        return best, least
    return step.put(best, min(step.high, max(step.low, math.exp(log)))), value


def golden_section(function: Callable[[float], float], low: float, high: float, tolerance: float = 5e-3) -> float:
    """The argument between two values at which a function with a single minimum is least."""
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    of_left, of_right = function(left), function(right)
    while high - low > tolerance:
        if of_left < of_right:
            high, right, of_right = right, left, of_left
            left = high - GOLDEN * (high - low)
            of_left = function(left)
        else:
            low, left, of_left = left, right, of_right
            right = low + GOLDEN * (high - low)
            of_right = function(right)
    return (low + high) / 2


def _bound_tiles(samples: Sequence[Sample], device: Device) -> list[str]:
    """Tiles whose arithmetic sets the time of enough samples."""
    bound = [s.tile for s in samples if predict(s.call, s.plan, device).bound == "arithmetic"]
    return sorted(tile for tile in set(bound) if bound.count(tile) >= ROWS_OF_A_TILE)
