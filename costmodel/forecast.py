"""The predicted time of a pass, for a caller who has a problem and a device and no tensors."""

from __future__ import annotations

from costmodel.device import Device, find_device
from costmodel.plan import select
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Call, Plan
from costmodel.timing import Prediction
from costmodel.timing import predict as predict_call


def predict(
    problem: ConvProblem,
    which: Pass | str = Pass.FPROP,
    plan: Plan | str | None = None,
    device: Device | str = "h100",
    *,
    dtype: str = "bfloat16",
    precision: str = "ieee",
) -> Prediction:
    """Seconds of one pass of `problem` on channels-last tensors, with an interval and what bounds it.

    `plan` is a Plan or its words; None takes the one that the library would choose. `device` is as `find_device` reads it.
    Raises ValueError for an unknown device, a plan of another pass or a dtype that the device does not multiply.
    """
    which, device = Pass(which), find_device(device) if isinstance(device, str) else device
    plan = Plan.parse(plan) if isinstance(plan, str) else plan
    if plan is not None and plan.which != which:
        raise ValueError(f"plan {plan} is for {plan.which}, the prediction asked for is of {which}")
    device.rate(dtype, precision)
    call = Call(problem, which, dtype, precision)
    return predict_call(call, plan or select(call, device), device)
