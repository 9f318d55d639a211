"""Predicted time of a network's operators on one device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from costmodel import ahead, causal, deform, deform_backward, unfold, video
from costmodel.calibration import PRIOR, PRIOR_SOURCE
from costmodel.count import Cost
from costmodel.deform import Deformation, DeformCall
from costmodel.device import Device
from costmodel.forecast import choose, predict
from costmodel.problem import ConvProblem, Pass
from costmodel.prologue import Prologue
from costmodel.tiling import channels_last
from costmodel.timing import Prediction
from costmodel.unfold import UnfoldCall
from costmodel.video import Chunk

#: What a convolution may be besides a plain pass of a problem: a call of a function that has plans of its own, or a pass with a
#: prologue.
Called = Chunk | causal.Kind | Deformation | UnfoldCall | Prologue
#: Element types for which a `Device` may have a peak.
DTYPES = ("float16", "bfloat16", "float32", "float64")


class Time(NamedTuple):
    """The predicted time of one operator; the fields mean what they mean in `costmodel.timing.Prediction`."""

    seconds: float
    bound: str
    low: float
    high: float
    source: str
    plan: str = ""


@dataclass(frozen=True)
class Step:
    """One operator of a pass: it computes a forward result, or (a part of) a gradient."""

    op: str
    which: str  # the pass of a convolution; "" for other operators
    cost: Cost
    problem: ConvProblem | None = None  # the problem of that pass
    call: Called | None = None  # a call of a function with plans of its own, instead of a pass


class Clock:
    """Predicts the time of operators on one device. Each different convolution is planned once."""

    def __init__(self, device: Device, precision: str) -> None:
        self.device = device
        self.precision = precision
        self.planned: dict[tuple[ConvProblem | None, str, Called | None, str], Time] = {}

    def time(self, step: Step, dtype: str) -> Time:
        """The time of one operator on tensors of `dtype`."""
        if step.call is None and not (step.problem is not None and step.which):
            return self._operator(step.cost, dtype)
        key = (step.problem, step.which, step.call, dtype)
        if key not in self.planned:
            prediction, plan = self._convolution(step.problem, step.which, step.call, dtype)
            self.planned[key] = Time(
                prediction.seconds, prediction.bound, prediction.low, prediction.high, prediction.source, plan
            )
        return self.planned[key]

    def _convolution(self, problem: ConvProblem | None, which: str, call: Called | None, dtype: str) -> tuple[Prediction, str]:
        """The time of a convolution, of unfold or of fold under the plan that the library takes, and that plan in words."""
        device, precision = self.device, self.precision
        if isinstance(call, UnfoldCall):
            columns = replace(call, dtype=dtype)
            tile = unfold.select(columns, device)
            return unfold.predict(columns, tile, device), str(tile)
        device.rate(dtype, precision)
        assert problem is not None
        if isinstance(call, Chunk):
            own = video.select(call, dtype, precision, device)
            return video.predict(call, own, dtype, precision, device), str(own)
        if isinstance(call, Deformation):
            moved = DeformCall(call, dtype, precision)
            if which == Pass.DGRAD:  # the time of all gradients
                return deform_backward.predict(moved, device), str(deform_backward.select(moved, Pass.DGRAD, device))
            best = deform.select(moved, device)
            return deform.predict(moved, best, device), str(best)
        if isinstance(call, Prologue):
            plain = channels_last(problem, Pass.FPROP, dtype, precision)
            both = ahead.Ways(replace(plain, prologue=call), plain)
            first = ahead.quickest(both, device)[0]
            return ahead.predict(both, first, device), str(first)
        if call is not None:
            (taps,), (length,) = problem.kernel_size, problem.output_size
            row = causal.problem_of(problem.batch, problem.in_channels, length, taps)
            one = channels_last(row, Pass.FPROP, dtype)
            walk = causal.select(one, device, call)
            return causal.predict(one, walk, device, call), str(walk)
        plan = choose(problem, which, device, dtype=dtype, precision=precision)
        return predict(problem, which, plan, device, dtype=dtype, precision=precision), str(plan)

    def _operator(self, cost: Cost, dtype: str) -> Time:
        """The time of any other operator: one launch, plus the longer of its arithmetic and its memory traffic."""
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
