"""Which kernel and tile a call takes, in words."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, overload

import torch

from costmodel import ahead, executed
from costmodel.arithmetic import Arithmetic
from costmodel.device import Device, find_device
from costmodel.families import family
from costmodel.plan import candidates, measured, predict
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Call, Plan
from costmodel.timing import Prediction
from tritonconv import check, functional, fused, host, launch, plans, recipes, where
from tritonconv.ahead import explain as ahead_explain
from tritonconv.ahead import launch as ahead_launch
from tritonconv.causal import causal_conv1d
from tritonconv.causal.explain import explained as explained_causal
from tritonconv.columns import fold, unfold
from tritonconv.columns.explain import of_fold, of_unfold
from tritonconv.deform import deform_conv2d
from tritonconv.deform.explain import explained as explained_deform
from tritonconv.epilogue import Epilogue, needs_z
from tritonconv.families import launcher
from tritonconv.layout import output_strides
from tritonconv.normalize import as_arguments
from tritonconv.normalize.launch import Values
from tritonconv.plans import Explanation
from tritonconv.separable import depthwise_separable_conv2d
from tritonconv.separable.explain import explained as explained_separable
from tritonconv.use import SERVED, by_rank
from tritonconv.video import causal_conv3d
from tritonconv.video.explain import explained as explained_video

if TYPE_CHECKING:
    from tritonconv.explain_model import ModelExplanation

#: The functions that explain themselves.
_OWN: dict[Any, Callable[..., Any]] = {
    causal_conv1d: explained_causal,
    causal_conv3d: explained_video,
    deform_conv2d: explained_deform,
    depthwise_separable_conv2d: explained_separable,
    fold: of_fold,
    unfold: of_unfold,
}


@overload
def explain(
    function: torch.nn.Module, *args: Any, device: str | Device | None = None, **kwargs: Any
) -> Explanation | ModelExplanation: ...
@overload
def explain(function: Callable[..., Any], *args: Any, device: str | Device | None = None, **kwargs: Any) -> Explanation: ...
def explain(function: Any, *args: Any, device: str | Device | None = None, **kwargs: Any) -> Explanation | ModelExplanation:
    """The plans of a call `function(*args, **kwargs)`, forward and backward. Runs nothing.

    function: one of these.

    - One of tritonconv's six functions, plain or fused, or torch's function of that name, which is explained as
      `tritonconv.use()` would run it.
    - `causal_conv1d`, `deform_conv2d`, `fold` or `unfold`; or `causal_conv3d` or `depthwise_separable_conv2d`, whose forward
      pass is explained.
    - A `torch.nn.Module`. Every convolution that it calls is explained, in the order they run. Modules run on stand-ins, so
      their inputs may be shapes, as in `costmodel.trace`.

    Tensors have the dtypes that the function takes, and may be on the meta device. Inside a region of
    `tritonconv.use(where=...)` the answer says which of torch's calls the region leaves to torch.

    device: the GPU whose plans are asked for, as `costmodel` names it ("h100", a TOML file, a `Device`). It need not be in
    this machine. None means the device of the tensors; for CPU tensors that is Triton's interpreter. The strides and the
    alignment of the tensors are those of the given ones.

    Raises what the call itself would raise, TypeError if `function` is none of the above, ValueError for an unknown device and
    RuntimeError for one that is too old. Source: `docs/design/prediction.md`.
    """
    number = None if device is None else _number(device)
    if isinstance(function, torch.nn.Module):
        from tritonconv.explain_model import explained_model  # here, because it imports torch's tracing

        return explained_model(number, function, *args, **kwargs)
    torchs = False
    if isinstance(function, Hashable):
        if function in _OWN:
            return Explanation(*_OWN[function](number, *args, **kwargs))
        torchs = function in SERVED
        function = SERVED.get(function, function)
    if function is SERVED[torch.convolution]:
        (function, args), kwargs = by_rank(*args, **kwargs), {}
    name = getattr(function, "__name__", repr(function))
    ours: Any = getattr(fused if name.endswith("_fused") else functional, name, None)
    if ours is not function:
        raise TypeError(
            "explain() takes one of tritonconv's six functions, plain or fused, torch's own convolutions, causal_conv1d, "
            f"causal_conv3d, deform_conv2d, depthwise_separable_conv2d, fold, unfold or a module, got {function!r}"
        )
    bound = inspect.signature(ours).bind(*args, **kwargs)
    bound.apply_defaults()
    given = dict(bound.arguments)
    plan = given.pop("plan")
    x, weight, bias = given.pop("input"), given.pop("weight"), given.pop("bias")
    rank = int(name.removesuffix("_fused")[-2])
    prologue = given.pop("prologue", None)
    after = functional.After(**{key: given.pop(key) for key in functional.After._fields if key in given})
    tensors = after.tensors()
    check.tensors(name, rank, x, weight, bias, **tensors)
    batched = x.dim() == rank + 2
    a = x if batched else x.unsqueeze(0)
    if "transpose" in name:
        problem = check.conv_transpose(name, rank, a, weight, bias, **given)
        forward, shape = Pass.DGRAD, problem.input_shape
    else:
        problem = check.conv(name, rank, a, weight, bias, **given)
        forward, shape = Pass.FPROP, problem.output_shape
    check.epilogue(name, rank, shape if batched else shape[1:], *after)
    if after.residual is not None and not batched:
        after = after._replace(residual=after.residual.unsqueeze(0))
    forced = plans.text(plan, name, forward)
    values = None if prologue is None else Values(*as_arguments(name, a, prologue))
    return explained(name, problem.with_steps_in_reach(), forward, (a, weight, bias), after, forced, number, torchs, values)


def _number(device: str | Device) -> int:
    """The number of `host` for a device that a user names."""
    gpu = find_device(device)
    host.is_new_enough(gpu.name, gpu.capability)
    return host.number_of(gpu)


def explained(
    name: str,
    problem: ConvProblem,
    forward: Pass,
    operands: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
    after: functional.After,
    plan: str,
    number: int | None,
    torchs: bool = False,
    values: Values | None = None,
) -> Explanation:
    """What `explain` answers of a call of the six functions: batched operands, `plan` as the ops take it, and the number of a
    device of `host`, None for the operands' own. `torchs`: it is a call of torch's function, which `use(where=...)` may leave
    to torch. `values`: a prologue of x."""
    x, weight, bias = operands
    shape, kind, keep = problem.output_shape if forward == Pass.FPROP else problem.input_shape, "", False
    tensors, activation = after.tensors(), after.activation or ""
    if not after.is_empty():
        given_tensors = [x, weight, bias, *tensors.values()]
        recorded = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given_tensors)
        keep = recorded and needs_z(activation, after.negative_slope)
        epilogue = Epilogue(after.scale, after.shift, after.residual, activation, after.negative_slope, keep)
        kind = launch.FusedKey.of(epilogue).kind((tuple(shape), output_strides(shape, x, weight)))
    outside = launch.key(x)
    inside = (tuple(shape), output_strides(shape, x, weight))
    x_key, y_key = (outside, inside) if forward == Pass.FPROP else (inside, outside)
    w_key = launch.key(weight)
    keys = {Pass.FPROP: (x_key, w_key, y_key), Pass.DGRAD: (y_key, w_key, x_key), Pass.WGRAD: (y_key, x_key, w_key)}
    here, there = launch.is_aligned(x), launch.is_aligned(weight)  # gradients are assumed to be aligned
    x_here, y_here = (here, True) if forward == Pass.FPROP else (True, here)
    aligned = {Pass.FPROP: (x_here, there), Pass.DGRAD: (y_here, there), Pass.WGRAD: (y_here, x_here)}
    dtype = check.cast_dtype(x)
    index = host.index_of(x) if number is None else number
    precision = launch.fp32_precision()
    passes = [forward, Pass.DGRAD if forward == Pass.FPROP else Pass.FPROP, Pass.WGRAD]
    left: list[str] = []
    by_pass, predictions, lines = {}, {}, [f"{name}: {problem}, {Arithmetic(launch.DTYPES[dtype], precision).words}"]
    if number is None and not x.is_cuda and not host.runs_kernels():
        lines.append(
            "CPU tensors: torch's own convolution computes them (device= plans for a GPU); what Triton's interpreter would run:"
        )
    for which in passes if problem.macs else []:
        described = launch.describe(problem, which, *keys[which], aligned[which])
        follows = kind if which == forward else ""
        call, model = Call(problem, which, launch.DTYPES[dtype], precision, *described, follows), launch.device_model(index)
        if values is not None and which == forward:
            prologue = ahead_launch.described(values)
            recorded = recipes.records(*operands, *tensors.values(), *values[:3])
            both = ahead_launch.ways(problem, call.dtype, precision, *keys[which], follows, aligned[which], prologue)
            chosen = ahead_explain.chosen(both, plan, model, recorded)
            call, remarks = both.call_for(chosen), ahead_explain.lines(both, chosen, model, recorded)
            prediction, alone = ahead.predict(both, chosen, model), predict(call, chosen, model)
        else:
            chosen = launch.choose(which, problem, dtype, precision, index, *described, plan, follows)
            prediction = alone = predict(call, chosen, model)
            remarks = []
        by_pass[str(which)], predictions[str(which)] = chosen, prediction
        lines += [*_words(call, chosen, alone, model, plans.is_forced(which, plan)), *remarks]
        if torchs and where.leaves(problem, which, x):
            left.append(str(which))
            lines.append("  left to torch: where= says so")
        if follows:
            named = [key for key, tensor in tensors.items() if tensor is not None] + [activation] * bool(activation)
            lines.append(f"  followed in {launcher(chosen.family).fused_in(chosen)} by {', '.join(named)}")
            if keep:
                lines.append("  the value before the activation is kept for the backward pass")
    if not problem.macs:
        lines.append("nothing to multiply: no kernel is launched")
    return Explanation(problem, by_pass, predictions, "\n".join(lines), tuple(left))


def _words(call: Call, plan: Plan, prediction: Prediction, device: Device, forced: bool) -> list[str]:
    family_launcher = launcher(plan.family)
    title = f"{call.which}: {family_launcher.title}{family_launcher.remark(call, plan)}"
    return [title, f"  plan {plan}", *family_launcher.words(call, plan), *_cost_words(call, plan, prediction, device, forced)]


def _cost_words(call: Call, plan: Plan, prediction: Prediction, device: Device, forced: bool) -> list[str]:
    lines, choices, known = [], len(candidates(call, device)), measured(call, device) is not None
    if extra := family(plan.family).counted(call, plan).extra_bytes:
        lines.append(f"  {extra / 1e6:.3g} MB moved beyond the compulsory {(prediction.bytes - extra) / 1e6:.3g} MB")
    why = "forced by plan="
    if not forced:
        why = f"{'measured fastest' if known else 'least predicted time'} of {choices} candidates"
    lines.append(
        f"  {why}: {prediction.seconds * 1e6:.3g} us, bound by {prediction.bound}; {prediction.waves:.2g} waves, "
        f"{prediction.tile_use:.0%} of the issued multiply-adds needed ({device.name})"
    )
    if not device.interpreted:
        lines.append(f"  {executed.words(plan.family, device.capability)}")
        lines.append(f"  from {prediction.low * 1e6:.3g} to {prediction.high * 1e6:.3g} us, {prediction.source}")
    return lines
