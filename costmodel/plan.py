"""Which plan a call takes: the candidates of every family, and the choice by least predicted time.

Nothing here runs or times a kernel, and no family is named here: `costmodel.families` has them all.
"""

from __future__ import annotations

import math

from costmodel.device import Device
from costmodel.families import family, serving
from costmodel.tiling import Call, Operand, Plan, arithmetic
from costmodel.timing import Prediction

__all__ = ["Call", "Operand", "Plan", "call_key", "candidates", "measured", "predict", "select"]


def candidates(call: Call, device: Device) -> list[Plan]:
    """Every plan worth predicting. In the interpreter these are the plans of one family, the first that serves the call."""
    plans: list[Plan] = []
    for member in serving(call.problem, call.prologue is not None):
        if plans and device.interpreted:
            break
        plans += member.candidates(call, device)
    return plans


def predict(call: Call, plan: Plan, device: Device) -> Prediction:
    """The predicted time of a plan of any family."""
    return family(plan.family).predict(call, plan, device)


def call_key(call: Call) -> str:
    """Everything that a call's choice depends on, as words: the key of the table of measured plans."""
    layouts = " ".join(f"{operand.unit}/{operand.align}/{operand.outside}" for operand in (call.a, call.b, call.out))
    kind = f"{call.dtype} tf32" if arithmetic(call.dtype, call.precision) == "tf32" else call.dtype
    after = f" then {call.epilogue}" if call.epilogue else ""
    before = f" after {call.prologue}" if call.prologue is not None else ""
    return f"{call.which} of {call.problem} in {kind}, {layouts}{after}{before}"


def measured(call: Call, device: Device) -> Plan | None:
    """The plan that was measured fastest for exactly this call on this device; None where the table has none that is a
    candidate."""
    words = device.fastest.get(call_key(call)) if device.fastest else None
    plan = Plan.parse(words) if words else None
    return plan if plan is not None and plan in candidates(call, device) else None


def select(call: Call, device: Device) -> Plan:
    """The plan that was measured fastest for exactly this call, else the candidate with the least predicted time.

    This is plain arithmetic, which callers cache. Raises RuntimeError where no kernel serves the call.
    """
    if (known := measured(call, device)) is not None:
        return known
    least, best = math.inf, None
    for member in serving(call.problem, call.prologue is not None):
        if best is not None and device.interpreted:
            break
        least, plan = member.quickest(call, device, least)
        best = plan or best
    if best is None:
        raise RuntimeError(f"no plan for {call.which} of {call.problem} in {call.dtype} on {device.name}")
    return best
