"""Whether a convolution's prologue is applied to the pixels that its kernel gathers ("together") or by a kernel before it
("apart"): both are predicted, and the quicker is taken. Plain arithmetic, standard library only."""

from __future__ import annotations

import math
from typing import NamedTuple

from costmodel import plan as plans
from costmodel.algebra import product
from costmodel.device import Device
from costmodel.families import family, serving
from costmodel.prologue import Prologue, applied
from costmodel.tiling import Call, Plan, itemsize
from costmodel.timing import Prediction


class Ways(NamedTuple):
    """The two ways to run a call with a prologue. `together` applies it in the convolution's kernel; `apart` convolves what a
    kernel of the prologue wrote before, which is channels-last."""

    together: Call
    apart: Call

    @property
    def prologue(self) -> Prologue:
        assert self.together.prologue is not None
        return self.together.prologue

    def call_for(self, plan: Plan) -> Call:
        """The call that a plan is for."""
        return self.together if is_together(plan) else self.apart


def is_together(plan: Plan) -> bool:
    """Whether a plan applies the prologue to the pixels that it gathers."""
    return bool(getattr(plan, "together", False))


def predict(ways: Ways, plan: Plan, device: Device) -> Prediction:
    """The time of a call with its prologue. A plan for `ways.apart` runs the prologue in a kernel of its own, whose time is
    added."""
    prediction = plans.predict(ways.call_for(plan), plan, device)
    if is_together(plan) or device.interpreted:
        return prediction
    size = itemsize(ways.apart.dtype)
    moved, first = applied(product(ways.apart.problem.input_shape), ways.prologue, size, device, plan.family)
    return prediction.beside(first, moved)


def quickest(ways: Ways, device: Device, name: str = "") -> list[Plan]:
    """The quickest plan of each way that has one, sorted by predicted time. `name` restricts them to one family. In the
    interpreter the plan that applies the prologue while it gathers comes first."""
    fastest = []
    for call in ways:
        best, least = None, math.inf
        for member in [family(name)] if name else serving(call.problem, call.prologue is not None):
            if member.padding_refusal(call.problem, call.prologue is not None) or (best is not None and device.interpreted):
                continue
            least, plan = member.quickest(call, device, least)
            best = plan or best
        if call.prologue is None and not name and (known := plans.measured(call, device)) is not None:
            best = known
        fastest += [] if best is None else [best]
    return fastest if device.interpreted else sorted(fastest, key=lambda plan: predict(ways, plan, device).seconds)
