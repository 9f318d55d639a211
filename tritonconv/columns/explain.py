"""Which tiles `unfold` and `fold` take, and what they cost, in words."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from costmodel import executed
from costmodel import unfold as model
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Plan, itemsize
from costmodel.timing import Prediction
from costmodel.unfold import Unfolding
from tritonconv.columns import check, fold, launch, unfold
from tritonconv.host import index_of, runs_kernels
from tritonconv.launch import DTYPES, device_model
from tritonconv.plans import text as plan_text
from tritonconv.prepared import key

Explained = tuple[ConvProblem, dict[str, Plan], dict[str, Prediction], str]


def of_unfold(number: int | None, *args: Any, **kwargs: Any) -> Explained:
    """(problem, plans, predictions, words) of a call of `unfold`: "fprop", and "dgrad", its gradient. `number` is a device's of
    `host`, None for where input is. Raises what the call would."""
    given = _bound(unfold, args, kwargs)
    forced = plan_text(given.pop("plan"), "unfold", own=model.FAMILY)
    batched, window = check.unfold(**given)
    x = given["input"] if batched else given["input"].unsqueeze(0)
    unfolding = check.image("unfold()", x, *window)
    return _explained("unfold", Pass.FPROP, unfolding, x, number, forced)


def of_fold(number: int | None, *args: Any, **kwargs: Any) -> Explained:
    """The same for a call of `fold`: "dgrad" is the call itself and "fprop" its gradient."""
    given = _bound(fold, args, kwargs)
    forced = plan_text(given.pop("plan"), "fold", Pass.DGRAD, own=model.FAMILY)
    batched, window = check.fold(**given)
    y = given["input"] if batched else given["input"].unsqueeze(0)
    unfolding = check.columns("fold()", y, *window)
    return _explained("fold", Pass.DGRAD, unfolding, y, number, forced)


def _bound(function: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Any]:
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _explained(name: str, forward: Pass, unfolding: Unfolding, source: Any, number: int | None, forced: str) -> Explained:
    device = device_model(index_of(source) if number is None else number)
    dtype, size = source.dtype, itemsize(DTYPES[source.dtype])
    lines = [f"{name}: {unfolding}, {DTYPES[dtype]}"]
    if number is None and not source.is_cuda and not runs_kernels():
        lines.append(
            "CPU tensors: torch's operators compute them (device= plans for a GPU); what Triton's interpreter would run:"
        )
    if not unfolding.problem.batch:
        return unfolding.problem, {}, {}, "\n".join([*lines, "nothing to move: no kernel is launched"])
    plans: dict[str, Plan] = {}
    predictions: dict[str, Prediction] = {}
    for which in (forward, Pass.DGRAD if forward == Pass.FPROP else Pass.FPROP):
        layouts = [launch.contiguous(unfolding.problem.input_shape), launch.contiguous(unfolding.columns_shape)]
        if which == forward:
            layouts[forward == Pass.DGRAD] = key(source)
        call = launch.described(unfolding, which, dtype, layouts[0], layouts[1])
        plan = launch.chosen(call, device, forced)
        prediction = model.predict(call, plan, device)
        plans[str(which)], predictions[str(which)] = plan, prediction
        what = "windows written as columns" if which == Pass.FPROP else "columns summed into pixels, no atomics"
        points = "places" if which == Pass.FPROP else "pixels"
        role = "" if which == forward else ", the gradient of a contiguous tensor"
        why = "forced by plan=" if str(plan) in forced.split(";") else f"of {len(model.candidates(call, device))} candidates"
        lines += [
            f"{which}: {what}{role}",
            f"  plan {plan}",
            f"  {plan.block_m} {points} x {plan.block_n} channels, {model.trips(call, plan)} taps a program; "
            f"{prediction.tiles} programs; {unfolding.compulsory(size, which) / 1e6:.3g} MB",
            *["  input copied first, so that it is contiguous"] * len(plan.pack),
            f"  {why}: {prediction.seconds * 1e6:.3g} us, bound by {prediction.bound} ({device.name})",
        ]
        if not device.interpreted:
            lines.append(f"  from {prediction.low * 1e6:.3g} to {prediction.high * 1e6:.3g} us, {prediction.source}")
    if not device.interpreted:
        lines.append(f"{executed.words(model.FAMILY, device.capability)}")
    return unfolding.problem, plans, predictions, "\n".join(lines)
