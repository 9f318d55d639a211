"""Which kernel and tile a call takes, in words."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from costmodel import band, depthwise, executed
from costmodel.arithmetic import Arithmetic
from costmodel.device import Device
from costmodel.plan import candidates, measured, predict
from costmodel.problem import ConvProblem, Pass
from costmodel.recast import fold_width
from costmodel.tiling import Call, Plan, access, grid, step_of, trips, vector_widths
from costmodel.timing import Prediction, extra_bytes
from tritonconv import check, functional, fused, host, launch
from tritonconv.causal import causal_conv1d
from tritonconv.causal.explain import explained as explained_causal
from tritonconv.epilogue import Epilogue, needs_z
from tritonconv.layout import output_strides
from tritonconv.separable import depthwise_separable_conv2d
from tritonconv.separable.explain import explained as explained_separable
from tritonconv.video import causal_conv3d
from tritonconv.video.explain import explained as explained_video

_FAMILY = {
    "gather": "implicit GEMM, a gather over the taps",
    "patch": "plain GEMM, the windows tile the input",
    "depthwise": "depthwise, multiply-adds in registers",
    "tma": "implicit GEMM, boxes of pixels copied by TMA tap by tap",
    "band": "depthwise on tensor cores, each channel's taps a banded matrix",
}
#: The functions that explain themselves.
_OWN: dict[Any, Callable[..., Any]] = {
    causal_conv1d: explained_causal,
    causal_conv3d: explained_video,
    depthwise_separable_conv2d: explained_separable,
}
_OPERANDS = {Pass.FPROP: ("x", "w"), Pass.DGRAD: ("dy", "w"), Pass.WGRAD: ("dy", "x")}


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
    """The plans of a call `function(*args, **kwargs)`: one of tritonconv's six functions, plain or fused, or `causal_conv1d`,
    forward and backward; `causal_conv3d` or `depthwise_separable_conv2d`, forward. Runs nothing.

    Raises what the call itself would raise.
    """
    if function in _OWN:
        return Explanation(*_OWN[function](*args, **kwargs))
    name = getattr(function, "__name__", repr(function))
    if getattr(fused if name.endswith("_fused") else functional, name, None) is not function:
        raise TypeError(
            "explain() takes one of tritonconv's six functions, plain or fused, causal_conv1d, causal_conv3d or "
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
    kind = ""
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
            kernel = "the kernel that adds up the partial sums" if chosen.split > 1 else "the same kernel"
            lines.append(f"  followed in {kernel} by {', '.join(named)}")
            if keep:
                lines.append("  the value before the activation is kept for the backward pass")
    if not problem.macs:
        lines.append("nothing to multiply: no kernel is launched")
    return Explanation(problem, plans, predictions, "\n".join(lines))


def _words(call: Call, plan: Plan, found: Prediction, device: Device, forced: bool) -> list[str]:
    problem, which = call.problem, call.which
    lines = [f"{which}: {_FAMILY[plan.family]}"]
    if which == Pass.DGRAD and plan.family in ("gather", "tma"):
        phases = problem.phases()
        empty = sum(phase.taps == 0 for phase in phases)
        lines[0] += f", {len(phases)} stride phase{'s' if len(phases) > 1 else ''} in one launch"
        lines[0] += f" ({empty} without a tap)" if empty else ""
    if plan.family == "depthwise":
        return lines + _depthwise_words(call, plan) + _cost_words(call, plan, found, device, forced)
    if plan.family == "band":
        return lines + _band_words(call, plan) + _cost_words(call, plan, found, device, forced)
    m, n, repeats = grid(problem, plan)
    lines.append(
        f"  tile {plan.block_m}x{plan.block_n}x{plan.block_k}, {plan.num_warps} warps, {plan.num_stages} stages; "
        f"{m} x {n} x {repeats} programs of {trips(problem, plan):g} trips"
    )
    if plan.fold:
        width, columns = fold_width(problem), problem.kernel_size[-1]
        lines.append(
            f"  x copied with its {problem.in_channels} channels padded to {width}; the {columns} columns of the filter "
            f"are read as {columns * width} channels"
        )
    if plan.merge > 1:
        lines.append(f"  {plan.merge} groups laid together in one block-diagonal weight")
    if plan.split > 1:
        lines.append(f"  reduction split {plan.split} ways, partial sums added in a fixed order")
    if plan.family == "tma" and which == Pass.WGRAD:
        box, (width, _) = step_of(problem, plan), vector_widths(call, plan)
        lines.append(f"  boxes of {' x '.join(map(str, box))} pixels of x; elements a load: dy {width}")
    elif plan.family == "tma":
        box = step_of(problem, plan)
        leave = "the result leaves as boxes too" if access(call, plan) == "wide" else "each thread stores its own results"
        lines.append(f"  boxes of {' x '.join(map(str, box))} pixels; {leave}")
    else:
        widths = dict(zip(_OPERANDS[which], vector_widths(call, plan), strict=True))
        lines.append("  elements a load: " + ", ".join(f"{name} {width}" for name, width in widths.items()))
    if plan.pack:
        names = [_OPERANDS[which]["ab".index(p)] for p in plan.pack]
        lines.append(f"  {' and '.join(names)} copied to channels-last first")
    return lines + _cost_words(call, plan, found, device, forced)


def _depthwise_words(call: Call, plan: Plan) -> list[str]:
    of, launch = depthwise.layer_of(call.problem, plan.which), depthwise.planned(call.problem, plan)
    pairs = plan.which == Pass.WGRAD and call.problem.channels_per_group > 1
    unit = "pairs of a filter and a channel" if pairs else "channels"
    lanes = f"{plan.block_n} {unit} x {plan.block_k} tiles of {plan.block_m} columns"
    lines = [
        f"  {lanes}, {plan.num_warps} warps; {launch.tiles_c} x {launch.tiles_q} x {launch.repeats} programs of "
        f"{launch.trips} trips"
    ]
    if plan.which == Pass.WGRAD:
        lines.append(f"  {launch.splits * launch.tiles_q} partial sums of every tap, added in a fixed order")
    if plan.taps is None:
        lines.append("  every tap stays in registers; an input row is read once and meets all its taps")
    else:
        lines.append(f"  {plan.taps[0]} x {plan.taps[1]} taps at a time")
    name = _OPERANDS[plan.which]["ab".index("b" if plan.which == Pass.WGRAD else "a")]
    if of.summed > 1:
        together = ", in one load" if depthwise.loads_together(call, plan.taps) else ""
        lines.append(f"  each channel sums the {of.summed} of its group in {name}{together}")
    width = depthwise.load_width(call, plan)
    lines.append(f"  {name} is read along its {'rows' if depthwise.is_planes(call) else 'channels'}, {width} columns a load")
    if plan.pack:
        lines.append("  w copied first, neighbouring filters next to each other")
    return lines


def _band_words(call: Call, plan: Plan) -> list[str]:
    launch, tile, wgrad = band.planned(call.problem, plan), band.band_of(plan), plan.which == Pass.WGRAD
    box, window = f"{tile.box[0]} x {tile.box[1]}", f"{tile.rows} x {tile.columns}"
    trips = f"{call.problem.groups} x {launch.tiles * launch.splits} programs of {launch.trips / launch.programs:.3g} trips"
    if wgrad:
        how = f"blocks of {box} pixels of dy by {window} pixels of x, {tile.blocks} images a trip"
    else:
        how = f"{tile.blocks} blocks of {box} outputs, {window} pixels of a window a trip"
    lines = [f"  {how}, {plan.num_warps} warps, {plan.num_stages} stages; {trips} on average"]
    if wgrad:
        lines.append(f"  diagonals summed in the kernel, {launch.splits} parts of each added in a fixed order")
    if plan.pack:
        names = [_OPERANDS[plan.which]["ab".index(p)] for p in plan.pack]
        lines.append(f"  {' and '.join(names)} copied to contiguous rows of whole vectors first")
    if band.copies_result(call):
        lines.append("  the result is made in contiguous rows of whole vectors, then copied to its place")
    return lines


def _cost_words(call: Call, plan: Plan, found: Prediction, device: Device, forced: bool) -> list[str]:
    lines, choices, known = [], len(candidates(call, device)), measured(call, device) is not None
    counted = {"depthwise": depthwise.extra_bytes, "band": band.extra_bytes}.get(plan.family, extra_bytes)
    if extra := counted(call, plan):
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
