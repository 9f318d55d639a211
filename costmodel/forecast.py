"""The predicted time of a pass, for a caller who has a problem and a device and no tensors."""

from __future__ import annotations

from typing import Any

from costmodel.arithmetic import arithmetic_named
from costmodel.device import Device, find_device
from costmodel.legality import checked
from costmodel.plan import predict as predict_call
from costmodel.plan import select
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Plan, channels_last
from costmodel.timing import Prediction


def choose(
    problem: ConvProblem, which: Pass | str, device: Device | str, *, dtype: Any = None, precision: str = "ieee"
) -> Plan:
    """The plan that the library takes for one pass on dense channels-last tensors. Dtype and errors are as in `predict`."""
    device = find_device(device)
    kind = arithmetic_named(dtype, device, precision)
    return select(channels_last(problem, Pass(which), kind.dtype, kind.precision), device)


def predict(
    problem: ConvProblem,
    which: Pass | str = Pass.FPROP,
    plan: Plan | str | None = None,
    device: Device | str = "h100",
    *,
    dtype: Any = None,
    precision: str = "ieee",
    library: str | None = None,
    layout: str = "channels_last",
    mode: str = "eager",
) -> Prediction:
    """Seconds of one pass of `problem` on dense channels-last tensors, with an interval and what bounds it.

    `plan` is a Plan or its words; None takes the one that the library would choose. `device` is as `find_device` reads it.
    `dtype` is a name such as "bf16", "float16" or "tf32", or a torch.dtype; None takes bfloat16, or float16 on a device without
    bfloat16, and the prediction's source says so.

    `library` "cudnn" predicts what cuDNN takes instead, as eager PyTorch calls it, from times that others published. `layout`
    is that of the tensors, "channels_last" or "contiguous" (copies are included); `mode` is "eager" or "compiled" (by
    Inductor). Its `source` says how near the published layers are, and which properties none of them has. It does not know the
    library's tiles.

    >>> layer = ConvProblem.conv((32, 64, 56, 56), (64, 64, 3, 3), (1, 1), (1, 1), (1, 1))
    >>> predict(layer, device="h100", dtype="float16", library="cudnn").seconds < 1e-3
    True
    >>> prediction = predict(layer, "dgrad", device="a100")
    >>> prediction.low < prediction.seconds < prediction.high
    True

    Raises ValueError for an unknown device, a plan of another pass or that cannot run this one, or a dtype that the device does
    not multiply. Source: `docs/design/prediction.md` has the model, `docs/validation.md` its errors.
    """
    which, device = Pass(which), find_device(device)
    plan = Plan.parse(plan) if isinstance(plan, str) else plan
    dtype, precision, remark = arithmetic_named(dtype, device, precision)
    if library is not None:
        from costmodel.library import layers

        if plan is not None:
            raise ValueError(f"a library chooses its own kernels: give a plan or a library, got plan {plan} and {library!r}")
        layers.checked(library, layout, mode)
        own = layers.predict(problem, which, device, dtype, precision, layout=layout, mode=mode)
        return own.noted(remark)
    if (layout, mode) != ("channels_last", "eager"):
        raise ValueError(
            f"layout and mode are of a library: this package's plans are predicted for channels_last, got {layout!r}, {mode!r}"
        )
    if plan is None:
        plan = choose(problem, which, device, dtype=dtype, precision=precision)
    if plan.which != which:
        raise ValueError(f"plan {plan} is for {plan.which}, the prediction asked for is of {which}")
    call = channels_last(problem, which, dtype, precision)
    return predict_call(call, checked(call, plan, device), device).noted(remark)
