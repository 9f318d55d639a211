"""Predicted time of a network's operators on one device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from costmodel import causal, deform, deform_backward, video
from costmodel.calibration import PRIOR, PRIOR_SOURCE
from costmodel.count import Cost
from costmodel.deform import Deformation, DeformCall
from costmodel.device import Device
from costmodel.forecast import choose, predict
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import channels_last
from costmodel.timing import Prediction
from costmodel.video import Chunk

#: Element types whose peak a `Device` knows.
DTYPES = ("float16", "bfloat16", "float32", "float64")


class Time(NamedTuple):
    """Of one operator, as `costmodel.timing.Prediction` has it."""

    seconds: float
    bound: str
    low: float
    high: float
    source: str
    plan: str = ""


@dataclass(frozen=True)
class Step:
    """One operator of a pass: by which its gradient is made, or the forward result."""

    op: str
    which: str  # a convolution's pass, "" for other operators
    cost: Cost
    problem: ConvProblem | None = None  # of that pass
    call: Chunk | causal.Kind | Deformation | None = None  # of a function whose plan is its own


class Clock:
    """Predicted time of operators on one device; a convolution met again is not planned again."""

    def __init__(self, device: Device, precision: str) -> None:
        self.device = device
        self.precision = precision
        self.planned: dict[tuple[ConvProblem, str, Chunk | causal.Kind | Deformation | None, str], Time] = {}

    def time(self, of: Step, dtype: str) -> Time:
        """Of one operator on tensors of `dtype`."""
        if of.problem is None or not (of.which or of.call is not None):
            return self._operator(of.cost, dtype)
        key = (of.problem, of.which, of.call, dtype)
        if key not in self.planned:
            found, plan = self._convolution(of.problem, of.which, of.call, dtype)
            self.planned[key] = Time(found.seconds, found.bound, found.low, found.high, found.source, plan)
        return self.planned[key]

    def _convolution(
        self, problem: ConvProblem, which: str, call: Chunk | causal.Kind | Deformation | None, dtype: str
    ) -> tuple[Prediction, str]:
        """By the plan that the library takes, and its words."""
        device, precision = self.device, self.precision
        device.rate(dtype, precision)
        if isinstance(call, Chunk):
            own = video.select(call, dtype, precision, device)
            return video.predict(call, own, dtype, precision, device), str(own)
        if isinstance(call, Deformation):
            moved = DeformCall(call, dtype, precision)
            if which == Pass.DGRAD:  # of all gradients
                return deform_backward.predict(moved, device), str(deform_backward.select(moved, Pass.DGRAD, device))
            best = deform.select(moved, device)
            return deform.predict(moved, best, device), str(best)
        if call is not None:
            (taps,), (length,) = problem.kernel_size, problem.output_size
            row = causal.problem_of(problem.batch, problem.in_channels, length, taps)
            one = channels_last(row, Pass.FPROP, dtype)
            walk = causal.select(one, device, call)
            return causal.predict(one, walk, device, call), str(walk)
        plan = choose(problem, which, device, dtype=dtype, precision=precision)
        return predict(problem, which, plan, device, dtype=dtype, precision=precision), str(plan)

    def _operator(self, cost: Cost, dtype: str) -> Time:
        """By one launch, and the longer of arithmetic and memory."""
        if cost == Cost():
            return Time(0.0, "nothing", 0.0, 0.0, PRIOR_SOURCE)
        multiplies = dtype if dtype in DTYPES else "float32"
        arithmetic = 2 * cost.useful_macs / self.device.rate(multiplies, self.precision)
        arithmetic += (cost.bias_flops + cost.other_flops) / self.device.rate("float32")
        memory = (cost.bytes + cost.read_again) / (self.device.bandwidth * 1e9)
        seconds, bound = max((arithmetic, "arithmetic"), (memory, "DRAM"))
        bound = "launch" if self.device.launch_overhead > seconds else bound
        seconds += self.device.launch_overhead
        return Time(seconds, bound, PRIOR[0] * seconds, PRIOR[1] * seconds, PRIOR_SOURCE)
