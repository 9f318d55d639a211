"""The families "copied-...": convolutions whose padding holds pixels, by a family that pads with zeros. Plain arithmetic.

A kernel first writes x out with its padding, and the other family's plan runs on that. For the input gradient the other family
computes the gradient of x with its padding, and a kernel then adds up the images of each pixel.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from costmodel.algebra import product
from costmodel.device import Device
from costmodel.families.matrix import MatrixPlan
from costmodel.families.protocol import Counted, Family
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import MAX_ALIGN, Call, Operand, Plan, channels_last, itemsize
from costmodel.timing import Prediction, from_dram, overhead, traffic

PREFIX = "copied-"
#: The family that serves the same calls without a copy.
BY_INDEX = "padded"
#: The field of a call that is x, or its gradient.
PLACE = {Pass.FPROP: "a", Pass.DGRAD: "out", Pass.WGRAD: "b"}


def copied_bytes(problem: ConvProblem, which: Pass, size: int, sums: int) -> int:
    """Bytes that the kernel around a pass adds, with `size` bytes per element. It reads x and writes x with its padding. For
    the input gradient the product writes to a buffer of `sums` bytes per element; what this adds to a gradient of x's type
    counts, and the kernel reads the buffer and writes dx."""
    inside, whole = product(problem.input_shape), product(problem.written_out.input_shape)
    if which != Pass.DGRAD:
        return int(size * (inside + whole))
    return int((sums - size) * whole + sums * whole + size * inside)


def is_copied(plan: Plan) -> bool:
    """Whether a plan is of one of these families."""
    return plan.family.startswith(PREFIX)


class Copied(Family):
    """A family behind the copy. Its plans are those of `inner` under another name."""

    modes = True

    def __init__(self, inner: Family) -> None:
        self.inner, self.name, self.plan = inner, PREFIX + inner.name, inner.plan
        self.kernels, self.executed, self.narrow = inner.kernels, inner.executed, inner.narrow

    def written(self, call: Call) -> Call:
        """The call that `inner` runs. Matrix products get a channels-last x; other families get its layout as it was, without
        gaps."""
        problem, place = call.problem.written_out, PLACE[call.which]
        x = getattr(call, place)
        dense = channels_last(problem, Pass.FPROP, call.dtype).a
        if x.unit != 1 and not issubclass(self.plan, MatrixPlan):
            sizes = problem.input_size
            align = math.gcd(MAX_ALIGN, *(product(sizes[axis:]) for axis in range(len(sizes))))
            dense = Operand(4, align, align)
        operand: dict[str, Any] = {place: replace(dense, far=x.far)}
        return replace(call, problem=problem, **operand)

    def within(self, plan: Plan) -> Plan:
        """The plan of `inner`."""
        return replace(plan, family=self.inner.name)

    def own(self, plan: Plan) -> Plan:
        """The plan of this family behind which a plan of `inner` runs."""
        return replace(plan, family=self.name)

    def sums(self, dtype: str) -> int:
        """Bytes per element of dgrad's buffer: at least four, so that the sum of a pixel's images is rounded once. Kernels
        for narrow groups fill it in x's type."""
        return itemsize(dtype) if self.narrow else max(4, itemsize(dtype))

    def copied_bytes(self, call: Call) -> int:
        return copied_bytes(call.problem, call.which, itemsize(call.dtype), self.sums(call.dtype))

    def _seconds(self, call: Call, device: Device) -> float:
        """Seconds of the kernel around a pass."""
        constants = device.calibration(self.inner.name)
        return overhead(1, device, constants) + from_dram(self.copied_bytes(call), device, constants)

    def refusal(self, call: Call, plan: Any, device: Device | None) -> str:
        return self.inner.refusal(self.written(call), self.within(plan), device)

    def is_left_out(self, call: Call) -> bool:
        """Whether a choice leaves these plans out; `plan=` still takes them. It leaves out a gather that fills a buffer of 32
        bits from 16: with large tiles the compiler spilled, and with the others "padded" launches the same kernel. It also
        leaves out plans that round each image to 16 bits, unless the call has groups that would leave tiles of "padded"
        empty."""
        if call.which != Pass.DGRAD:
            return False
        if self.sums(call.dtype) > itemsize(call.dtype):
            return issubclass(self.plan, MatrixPlan) and not self.plan.boxed
        return itemsize(call.dtype) < 4 and call.problem.groups == 1

    def candidates(self, call: Call, device: Device) -> list[Plan]:
        if self.is_left_out(call):
            return []
        return [self.own(plan) for plan in self.inner.candidates(self.written(call), device)]

    def quickest(self, call: Call, device: Device, below: float) -> tuple[float, Plan | None]:
        if self.is_left_out(call):
            return below, None
        copy = self._seconds(call, device)
        seconds, plan = self.inner.quickest(self.written(call), device, below - copy)
        return (below, None) if plan is None else (seconds + copy, self.own(plan))

    def predict(self, call: Call, plan: Any, device: Device) -> Prediction:
        prediction = self.inner.predict(self.written(call), self.within(plan), device)
        return prediction.beside(self._seconds(call, device), self.copied_bytes(call), "copies")

    def counted(self, call: Call, plan: Any) -> Counted:
        inner = self.written(call)
        issued, extra, launches = self.inner.counted(inner, self.within(plan))
        extra += traffic(inner).compulsory - traffic(call).compulsory
        extra += self.copied_bytes(call)
        return Counted(issued, extra, launches + 1)

    def completed(self, call: Call, plan: Any) -> Plan:
        return self.own(self.inner.completed(self.written(call), self.within(plan)))

    def exists(self, call: Call, plan: Any, capability: int) -> bool:
        return self.inner.exists(self.written(call), self.within(plan), capability)
