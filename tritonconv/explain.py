"""Which kernel and tile a call takes, in words."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from costmodel import executed
from costmodel.arithmetic import Arithmetic
from costmodel.device import Device
from costmodel.families import family
from costmodel.plan import candidates, measured, predict
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Call, Plan
from costmodel.timing import Prediction
from tritonconv import check, functional, fused, host, launch
from tritonconv.causal import causal_conv1d
from tritonconv.causal.explain import explained as explained_causal
from tritonconv.deform import deform_conv2d
from tritonconv.deform.explain import explained as explained_deform
from tritonconv.epilogue import Epilogue, needs_z
from tritonconv.families import launchers
from tritonconv.layout import output_strides
from tritonconv.separable import depthwise_separable_conv2d
from tritonconv.separable.explain import explained as explained_separable
from tritonconv.video import causal_conv3d
from tritonconv.video.explain import explained as explained_video

#: The functions that explain themselves.
_OWN: dict[Any, Callable[..., Any]] = {
    causal_conv1d: explained_causal,
    causal_conv3d: explained_video,
    deform_conv2d: explained_deform,
    depthwise_separable_conv2d: explained_separable,
}


@dataclass(frozen=True)
class Explanation:
    """What `explain` found: the problem, and per pass ("fprop", "dgrad", "wgrad") the plan, its prediction, whose times are
    seconds and whose traffic is bytes, and the words for both, which `print` shows."""

    problem: ConvProblem
    plans: dict[str, Plan]
    predictions: dict[str, Prediction]
    words: str

    def __str__(self) -> str:
        return self.words


def explain(function: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> Explanation:
    """The plans of a call `function(*args, **kwargs)`: one of tritonconv's six functions, plain or fused, `causal_conv1d` or
    `deform_conv2d`, forward and backward; `causal_conv3d` or `depthwise_separable_conv2d`, forward. Runs nothing.

    Raises what the call itself would raise.
    """
    if function in _OWN:
        return Explanation(*_OWN[function](*args, **kwargs))
    name = getattr(function, "__name__", repr(function))
    if getattr(fused if name.endswith("_fused") else functional, name, None) is not function:
        raise TypeError(
            "explain() takes one of tritonconv's six functions, plain or fused, causal_conv1d, causal_conv3d, deform_conv2d or "
            f"depthwise_separable_conv2d, got {function!r}"
        )
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    given = dict(bound.arguments)
    plan = functional._plan_text(given.pop("plan"))
    x, weight, bias = given.pop("input"), given.pop("weight"), given.pop("bias")
    rank = int(name.removesuffix("_fused")[-2])
    after = functional.After(**{key: given.pop(key) for key in functional.After._fields if key in given})
    tensors = after.tensors()
    check.tensors(name, rank, x, weight, bias, **tensors)
    dtype = check.cast_dtype(x)
    batched = x.dim() == rank + 2
    x = x if batched else x.unsqueeze(0)
    if "transpose" in name:
        problem = check.conv_transpose(name, rank, x, weight, bias, **given)
        forward, shape = Pass.DGRAD, problem.input_shape
    else:
        problem = check.conv(name, rank, x, weight, bias, **given)
        forward, shape = Pass.FPROP, problem.output_shape
    problem, kind = problem.with_steps_in_reach(), ""
    check.epilogue(name, rank, shape if batched else shape[1:], *after)
    if not after.is_empty():
        activation, slope = after.activation or "", after.negative_slope
        given_tensors = [x, weight, bias, *tensors.values()]
        recorded = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given_tensors)
        keep = recorded and needs_z(activation, slope)
        residual = after.residual if after.residual is None or batched else after.residual.unsqueeze(0)
        followed = launch.FusedKey.of(Epilogue(after.scale, after.shift, residual, activation, slope, keep))
        kind = followed.kind((tuple(shape), output_strides(shape, x, weight)))
    outside = launch.key(x)
    inside = (tuple(shape), output_strides(shape, x, weight))
    x_key, y_key = (outside, inside) if forward == Pass.FPROP else (inside, outside)
    w_key = launch.key(weight)
    operands = {Pass.FPROP: (x_key, w_key, y_key), Pass.DGRAD: (y_key, w_key, x_key), Pass.WGRAD: (y_key, x_key, w_key)}
    here, there = launch.is_aligned(x), launch.is_aligned(weight)  # and a gradient is taken to be
    x_here, y_here = (here, True) if forward == Pass.FPROP else (True, here)
    aligned = {Pass.FPROP: (x_here, there), Pass.DGRAD: (y_here, there), Pass.WGRAD: (y_here, x_here)}
    device = host.index_of(x)
    precision = launch.fp32_precision()
    passes = [forward, Pass.DGRAD if forward == Pass.FPROP else Pass.FPROP, Pass.WGRAD]
    plans, predictions, lines = {}, {}, [f"{name}: {problem}, {Arithmetic(launch.DTYPES[dtype], precision).words}"]
    if not x.is_cuda and not host.runs_kernels():
        lines.append("CPU tensors: torch's own convolution computes them; what Triton's interpreter would run:")
    for which in passes if problem.macs else []:
        described = launch.describe(problem, which, *operands[which], aligned[which])
        follows = kind if which == forward else ""
        chosen = launch.choose(which, problem, dtype, precision, device, *described, plan, follows)
        call = Call(problem, which, launch.DTYPES[dtype], precision, *described, follows)
        model = launch.device_model(device)
        found = predict(call, chosen, model)
        plans[str(which)], predictions[str(which)] = chosen, found
        lines += _words(call, chosen, found, model, launch.plan_for(which, plan) is not None)
        if follows:
            named = [key for key, tensor in tensors.items() if tensor is not None] + [activation] * bool(activation)
            lines.append(f"  followed in {launchers()[chosen.family].fused_in(chosen)} by {', '.join(named)}")
            if keep:
                lines.append("  the value before the activation is kept for the backward pass")
    if not problem.macs:
        lines.append("nothing to multiply: no kernel is launched")
    return Explanation(problem, plans, predictions, "\n".join(lines))


def _words(call: Call, plan: Plan, found: Prediction, device: Device, forced: bool) -> list[str]:
    launcher = launchers()[plan.family]
    title = f"{call.which}: {launcher.title}{launcher.remark(call, plan)}"
    return [title, *launcher.words(call, plan), *_cost_words(call, plan, found, device, forced)]


def _cost_words(call: Call, plan: Plan, found: Prediction, device: Device, forced: bool) -> list[str]:
    lines, choices, known = [], len(candidates(call, device)), measured(call, device) is not None
    if extra := family(plan.family).counted(call, plan).extra_bytes:
        lines.append(f"  {extra / 1e6:.3g} MB moved beyond the compulsory {(found.bytes - extra) / 1e6:.3g} MB")
    why = "forced by plan="
    if not forced:
        why = f"{'measured fastest' if known else 'least predicted time'} of {choices} candidates"
    lines.append(
        f"  {why}: {found.seconds * 1e6:.3g} us, bound by {found.bound}; {found.waves:.2g} waves, "
        f"{found.tile_use:.0%} of the issued multiply-adds needed ({device.name})"
    )
    if not device.interpreted:
        lines.append(f"  {executed.words(plan.family, device.capability)}")
        lines.append(f"  from {found.low * 1e6:.3g} to {found.high * 1e6:.3g} us, {found.source}")
    return lines
