"""Says which tiles a deformable convolution and its gradients take, what runs between their kernels, and what it costs."""

from __future__ import annotations

import inspect
from typing import Any

from costmodel import deform as model
from costmodel import deform_backward, executed
from costmodel.arithmetic import Arithmetic
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Plan, itemsize
from costmodel.timing import Prediction
from tritonconv.check import cast_dtype
from tritonconv.deform import backward, check, deform_conv2d, launch
from tritonconv.host import index_of, runs_kernels
from tritonconv.launch import DTYPES, device_model, fp32_precision
from tritonconv.layout import output_strides
from tritonconv.plans import text as plan_text
from tritonconv.prepared import key


def explained(number: int | None, *args: Any, **kwargs: Any) -> tuple[ConvProblem, dict[str, Plan], dict[str, Prediction], str]:
    """(problem, plans, predictions, words) of a call of `deform_conv2d`: "fprop", the forward kernel; "dgrad", the gradients of
    the samples, of offset and of mask; "wgrad". The prediction of "dgrad" is of the whole backward pass. `number` is a
    device's of `host`, None for where input is. Raises what the call would."""
    bound = inspect.signature(deform_conv2d).bind(*args, **kwargs)
    bound.apply_defaults()
    given = dict(bound.arguments)
    forced = plan_text(given.pop("plan"), "deform_conv2d", own="deform")
    window = check.call(**given)
    x, offset, weight, mask = (given[name] for name in ("input", "offset", "weight", "mask"))
    deformation = check.described(x, offset, weight, mask, *window)
    dtype, precision, index = cast_dtype(x), fp32_precision(), index_of(x) if number is None else number
    device, size = device_model(index), itemsize(DTYPES[dtype])
    lines = [f"deform_conv2d: {deformation}, {Arithmetic(DTYPES[dtype], precision).words}"]
    if number is None and not x.is_cuda and not runs_kernels():
        lines.append(
            "CPU tensors: torch's operators compute them (device= plans for a GPU); what Triton's interpreter would run:"
        )
    if not deformation.pixels:
        return deformation.problem, {}, {}, "\n".join([*lines, "nothing to multiply: no kernel is launched"])
    y = deformation.problem.output_shape, output_strides(deformation.problem.output_shape, x, weight)
    call = launch.described(deformation, dtype, precision, key(x), key(weight), y)
    plan = launch.chosen(call, device, forced)
    dgrad, wgrad = backward.plans(deformation, dtype, precision, index, y, key(x), key(weight), forced)
    plans = {"fprop": plan, "dgrad": dgrad, "wgrad": wgrad}
    prediction = model.predict(call, plan, device)
    m_tiles, n_tiles = model.tiles(deformation, plan)
    lines += [
        "fprop: samples straight into the product, no column buffer",
        f"  tile {plan.block_m}x{plan.block_n}x{plan.block_k}, {plan.num_warps} warps, {plan.num_stages} stages; "
        f"{m_tiles} x {n_tiles} programs of {model.trips(deformation, plan)} trips",
        f"  {deformation.places} places, {deformation.run} channels in a run; torchvision's columns would move "
        f"{model.column_bytes(deformation, size) / 1e6:.3g} MB more",
        *_copied(plan, {"a": "input", "b": "weight"}),
    ]
    why = "forced by plan=" if forced else f"least predicted time of {len(model.candidates(call, device))} candidates"
    lines.append(
        f"  {why}: {prediction.seconds * 1e6:.3g} us, bound by {prediction.bound}; {prediction.waves:.2g} waves, "
        f"{prediction.tile_use:.0%} of the issued multiply-adds needed ({device.name})"
    )
    gradients, parts = deform_backward.predict(call, device), deform_backward.parts(call, device)
    at_once = deform_backward.images_at_a_time(deformation, size)
    lines += [
        "gradients: of samples, offset and mask in one kernel; the input's by a sort of places; no atomics",
        f"  dgrad {dgrad}; wgrad {wgrad}",
        *_copied(dgrad, {"a": "input and gradient", "b": "weight"}),
        f"  {at_once * deform_backward.workspace(deformation, size) / 1e6:.3g} MB of workspace, {at_once} images at a time",
        f"  {gradients.seconds * 1e6:.3g} us: "
        + ", ".join(f"{name} {seconds * 1e6:.3g}" for name, (seconds, _) in parts.items()),
    ]
    if not device.interpreted:
        lines.append(f"  {executed.words(model.FAMILY, device.capability)}")
        lines.append(f"  forward from {prediction.low * 1e6:.3g} to {prediction.high * 1e6:.3g} us, {prediction.source}")
    predictions = {str(Pass.FPROP): prediction, str(Pass.DGRAD): gradients}
    return deformation.problem, dict(plans), predictions, "\n".join(lines)


def _copied(plan: model.DeformPlan, names: dict[str, str]) -> list[str]:
    return [f"  {' and '.join(names[name] for name in plan.pack)} copied to channels-last first"] if plan.pack else []
