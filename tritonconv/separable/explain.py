"""Whether a depthwise and a pointwise convolution take one kernel or two, in words."""

from __future__ import annotations

import inspect
from typing import Any

from costmodel import separable as model
from costmodel.arithmetic import Arithmetic
from costmodel.problem import ConvProblem
from costmodel.tiling import Plan
from costmodel.timing import Prediction
from tritonconv import check
from tritonconv.host import index_of
from tritonconv.launch import DTYPES, device_model, fp32_precision
from tritonconv.layout import output_strides
from tritonconv.prepared import FusedKey, TensorKey, key
from tritonconv.separable import checked, depthwise_separable_conv2d, launch, plan_text


def explained(number: int | None, *args: Any, **kwargs: Any) -> tuple[ConvProblem, dict[str, Plan], dict[str, Prediction], str]:
    """(the depthwise problem, plans, predictions, words) of a call of `depthwise_separable_conv2d`, forward. One kernel's plan
    is named "separable", two kernels' "depthwise" and "pointwise". `number` is a device's of `host`, None for where input is.
    Raises what the call would."""
    bound = inspect.signature(depthwise_separable_conv2d).bind(*args, **kwargs)
    bound.apply_defaults()
    given = dict(bound.arguments)
    pair = checked(**given)
    x, w1, w2, residual = (given[name] for name in ("input", "depthwise_weight", "pointwise_weight", "residual"))
    dtype, device = check.cast_dtype(x), device_model(index_of(x) if number is None else number)
    x = x if x.dim() == 4 else x.unsqueeze(0)
    over: TensorKey | None = None
    if residual is not None:
        over = key(residual if residual.dim() == 4 else residual.unsqueeze(0))
    y: TensorKey = (pair.pointwise.output_shape, output_strides(pair.pointwise.output_shape, x, w1, w2))
    slope = float(given["negative_slope"])
    between = FusedKey(None, None, None, given["activation"] or "", slope, False)
    after = FusedKey(None, None, over, given["pointwise_activation"] or "", slope, False)
    call = launch.described(pair, dtype, fp32_precision(), key(x), key(w1), key(w2), y, between, after)
    lines = [f"depthwise_separable_conv2d: {pair}, {Arithmetic(DTYPES[dtype], fp32_precision()).words}"]
    if not (pair.pointwise.macs and pair.depthwise.macs):
        return pair.depthwise, {}, {}, "\n".join([*lines, "nothing to multiply: no kernel is launched"])
    forced = plan_text(given["plan"])
    plan = launch.chosen(call, device, forced)
    one, two = launch.chosen(call, device, launch.FUSED) if model.candidates(call, device) else None, model.apart(call, device)
    prediction = None if (plan or one) is None else model.predict(call, plan or one, device)  # type: ignore[arg-type]
    apart, saved = sum(kernel_time.seconds for kernel_time in two), 2 * pair.between(model.itemsize(call.dtype))
    if prediction is None:
        why = "no tile of the menu has room for this filter in registers"
        lines.append(
            why
            if model.has_wide_loads(call)
            else "one kernel is for channels-last tensors of whole 4 bytes; a plan may force it"
        )
    else:
        lines.append(
            f"one kernel: {prediction.seconds * 1e6:.3g} us predicted, bound by {prediction.bound}, "
            f"{prediction.bytes / 1e6:.3g} MB; {saved / 1e6:.3g} MB between the convolutions stay on the chip"
        )
    named = zip(("depthwise", "pointwise"), two, strict=True)
    lines.append(f"two kernels: {apart * 1e6:.3g} us, " + " and ".join(f"{n} {p.seconds * 1e6:.3g}" for n, p in named))
    if plan is None:
        lines.append(f"two kernels run{', forced by plan=' if forced else ''} ({device.name})")
        plans = dict(zip(("depthwise", "pointwise"), model.plans_apart(call, device), strict=True))
        return pair.depthwise, plans, dict(zip(plans, two, strict=True)), "\n".join(lines)
    rows, columns = model.strip(plan)
    tiles, trips = model.grid(pair, plan), -(-pair.depthwise.in_channels // plan.block_k)
    lines += [
        f"one kernel runs{', forced by plan=' if forced else ''} ({device.name})",
        f"  plan {plan}",
        f"  {plan.block_m} pixels x {plan.block_n} filters, {plan.block_k} channels at a time, {plan.num_warps} warps; "
        f"{tiles[0]} x {tiles[1]} programs of {trips} trips",
        f"  a thread makes strips of {rows} x {columns} pixels of {model.work_of(call, plan).channels} channels per load",
    ]
    if tiles[1] > 1:
        lines.append(f"  each of {tiles[1]} blocks of filters makes the depthwise result again")
    if plan.pack:
        lines.append("  the depthwise weights are copied first, channels next to each other")
    assert prediction is not None
    return pair.depthwise, {"separable": plan}, {"separable": prediction}, "\n".join(lines)
