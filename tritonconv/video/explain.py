"""Which tile a causal convolution of video takes, what it copies and what it saves, in words."""

from __future__ import annotations

import inspect
from typing import Any

from costmodel import video as model
from costmodel.arithmetic import Arithmetic
from costmodel.tiling import Plan, itemsize
from costmodel.timing import Prediction
from tritonconv.check import cast_dtype
from tritonconv.host import index_of, runs_kernels
from tritonconv.launch import DTYPES, device_model, fp32_precision
from tritonconv.layout import operand, output_strides
from tritonconv.video import causal_conv3d, check, launch
from tritonconv.video.op import chunk_of


def explained(
    number: int | None, *args: Any, **kwargs: Any
) -> tuple[model.ConvProblem, dict[str, Plan], dict[str, Prediction], str]:
    """(problem, plans, predictions, words) of a call of `causal_conv3d`, forward, on device `number` of `host`, None for where
    x is. Raises what the call would."""
    bound = inspect.signature(causal_conv3d).bind(*args, **kwargs)
    bound.apply_defaults()
    given = dict(bound.arguments)
    forced = check.plan_text(given.pop("plan"))
    window = check.call(**given)
    x, weight, cache = given["x"], given["weight"], given["cache"]
    chunk = chunk_of(x.shape, weight.shape, None if cache is None else cache.shape, *window)
    dtype, precision = DTYPES[cast_dtype(x)], fp32_precision()
    device = device_model(index_of(x) if number is None else number)
    lines = [f"causal_conv3d: {chunk}, {Arithmetic(dtype, precision).words}"]
    if number is None and not x.is_cuda and not runs_kernels():
        lines.append("CPU tensors: torch's own convolution computes them; what Triton's interpreter would run:")
    if 0 in chunk.output_shape:
        return chunk.problem, {}, {}, "\n".join([*lines, "nothing to multiply"])
    copied = launch.copied(x, weight, cache)
    y = chunk.output_shape, output_strides(chunk.output_shape, x, weight)
    lies = operand(*y, 1, 1).unit == 1, not launch.fits_int32(chunk, y)
    if forced:
        plan = model.checked(chunk, Plan.parse(forced), dtype, precision, device)
    else:
        plan = model.select(chunk, dtype, precision, device, *lies)
    found = model.predict(chunk, plan, dtype, precision, device, copied)
    m_tiles, n_tiles = model.tiles(chunk, plan)
    lines += [
        "forward: implicit GEMM, a gather over the taps of known frames",
        f"  plan {plan}",
        f"  tile {plan.block_m}x{plan.block_n}x{plan.block_k}, {plan.num_warps} warps, {plan.num_stages} stages; "
        f"{m_tiles} x {n_tiles} programs of {model.trips(chunk, plan):g} trips",
    ]
    if given["return_cache"] and chunk.kept:
        lines.append(f"  {model.copies(chunk, plan, dtype)} more programs write the next cache, {chunk.kept} frames")
    if copied:
        lines.append(f"  {', '.join(copied)} copied first: the kernel reads dense channels-last images")
    chain = model.chain(chunk, itemsize(dtype))
    lines.append(
        f"  {found.bytes / 1e6:.3g} MB moved; as {', '.join(chain)} of torch it is {sum(chain.values()) / 1e6:.3g} MB in "
        f"{len(chain)} operators"
    )
    why = "forced by plan="
    if not forced:
        why = f"least predicted time of {len(model.candidates(chunk, dtype, precision, device, *lies))} candidates"
    lines.append(
        f"  {why}: {found.seconds * 1e6:.3g} us, bound by {found.bound}; {found.waves:.2g} waves, {found.tile_use:.0%} of the "
        f"issued multiply-adds needed ({device.name})"
    )
    if not device.interpreted:
        lines.append(f"  from {found.low * 1e6:.3g} to {found.high * 1e6:.3g} us, {found.source}")
    lines.append("backward: dgrad and wgrad of conv3d on the known frames written out")
    return chunk.problem, {"forward": plan}, {"forward": found}, "\n".join(lines)
