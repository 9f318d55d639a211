"""Which tile a causal convolution takes, in words."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from costmodel import causal as model
from costmodel.tiling import Plan
from costmodel.timing import Prediction
from tritonconv import host
from tritonconv.causal import causal_conv1d, check, launch
from tritonconv.prepared import key


def explained(
    number: int | None, *args: Any, **kwargs: Any
) -> tuple[model.ConvProblem, dict[str, Plan], dict[str, Prediction], str]:
    """(problem, plans, predictions, words) of a call of `causal_conv1d`, forward and backward, on device `number` of `host`,
    None for where x is. Raises what the call would."""
    bound = inspect.signature(causal_conv1d).bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    x, weight, layout = given["x"], given["weight"], given.pop("layout")
    check.tensors("causal_conv1d", x=x, weight=weight, bias=given["bias"], initial_state=given["initial_state"])
    check.layout("causal_conv1d", layout, x)
    x = given["x"] = x.transpose(1, 2) if layout == "BLC" else x
    check.causal("causal_conv1d", **given)
    batch, channels, length = x.shape
    problem = model.problem_of(batch, channels, length, weight.shape[1])
    device = launch.device_model(host.index_of(x) if number is None else number)
    y = key(torch.empty_strided(x.shape, launch.strides_like(x.shape, x), device="meta"))
    activation = given["activation"] or ""
    call = launch.call_of(problem, x.dtype, key(x), launch.as_weight(weight), y, activation)
    ids = given["seq_idx"] is not None or given["cu_seqlens"] is not None
    plans: dict[str, Plan] = {}
    predictions, lines = {}, [f"causal_conv1d {problem}, {x.dtype}"]
    for name, backward in (("forward", False), ("backward", True)):
        if not problem.macs:
            lines.append(f"{name}: nothing to multiply")
            continue
        kind = model.Kind(bool(activation), backward, given["initial_state"] is not None, ids)
        plan = model.select(call, device, kind)
        plans[name] = plan
        prediction = predictions[name] = model.predict(call, plan, device, kind)
        launched = model.launch(call, plan)
        lines += [
            f"{name}: depthwise, multiply-adds in registers",
            f"  {plan.block_n} channels x {plan.block_k} tiles of {plan.block_m} columns, {plan.num_warps} warps; "
            f"{launched.programs} programs of {launched.trips} trips",
        ]
        if backward:
            lines.append(f"  {model.parts(call, plan)} partial sums of every tap and bias, added in a fixed order")
        lines.append(
            f"  least predicted time of {len(model.candidates(call, device, kind))} candidates: "
            f"{prediction.seconds * 1e6:.3g} us, bound by {prediction.bound}, {prediction.bytes / 1e6:.3g} MB ({device.name})"
        )
        if not device.interpreted:
            lines.append(f"  from {prediction.low * 1e6:.3g} to {prediction.high * 1e6:.3g} us, {prediction.source}")
    return problem, plans, predictions, "\n".join(lines)
