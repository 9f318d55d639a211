"""The predicted time of a pass, for a caller who has a problem and a device and no tensors."""

from __future__ import annotations

from costmodel.device import Device, find_device
from costmodel.legality import checked
from costmodel.plan import predict as predict_call
from costmodel.plan import select
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Plan, channels_last
from costmodel.timing import Prediction


def choose(
    problem: ConvProblem, which: Pass | str, device: Device | str, *, dtype: str | None = None, precision: str = "ieee"
) -> Plan:
    """The plan that the library takes for one pass on dense channels-last tensors. Dtype and errors are as in `predict`."""
    device = find_device(device) if isinstance(device, str) else device
    dtype, _ = dtype_of(dtype, device)
    device.rate(dtype, precision)
    return select(channels_last(problem, Pass(which), dtype, precision), device)


def predict(
    problem: ConvProblem,
    which: Pass | str = Pass.FPROP,
    plan: Plan | str | None = None,
    device: Device | str = "h100",
    *,
    dtype: str | None = None,
    precision: str = "ieee",
) -> Prediction:
    """Seconds of one pass of `problem` on dense channels-last tensors, with an interval and what bounds it.

    `plan` is a Plan or its words; None takes the one that the library would choose. `device` is as `find_device` reads it.
    `dtype` is "float16", "bfloat16", "float32" or "float64"; None takes bfloat16, or float16 on a device without bfloat16, and
    the prediction's source says so.

    Raises ValueError for an unknown device, a plan of another pass or that cannot run this one, or a dtype that the device does
    not multiply.
    """
    which, device = Pass(which), find_device(device) if isinstance(device, str) else device
    plan = Plan.parse(plan) if isinstance(plan, str) else plan
    dtype, remark = dtype_of(dtype, device)
    if plan is None:
        plan = choose(problem, which, device, dtype=dtype, precision=precision)
    if plan.which != which:
        raise ValueError(f"plan {plan} is for {plan.which}, the prediction asked for is of {which}")
    device.rate(dtype, precision)
    call = channels_last(problem, which, dtype, precision)
    return predict_call(call, checked(call, plan, device), device).noted(remark)


def dtype_of(asked: str | None, device: Device) -> tuple[str, str]:
    """The dtype asked for, or where none is the device's default, and words where that is not bfloat16."""
    dtype = asked or device.default_dtype
    return dtype, "" if asked or dtype == "bfloat16" else f"{dtype} is taken, since {device.name} has no bfloat16"
