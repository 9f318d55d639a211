"""Which tile a causal convolution of video takes, what it copies and what it saves, in words."""

from __future__ import annotations

import inspect
from typing import Any

from costmodel import video as model
from costmodel.arithmetic import Arithmetic
from costmodel.device import Device
from costmodel.problem import ConvProblem
from costmodel.tiling import Plan, itemsize
from costmodel.timing import Prediction
from tritonconv.check import cast_dtype
from tritonconv.host import index_of, runs_kernels
from tritonconv.launch import DTYPES, device_model, fp32_precision
from tritonconv.layout import output_strides
from tritonconv.normalize import as_arguments
from tritonconv.normalize.launch import Values
from tritonconv.prepared import key
from tritonconv.video import causal_conv3d, check, launch
from tritonconv.video.op import chunk_of


def prologue_lines(
    chunk: model.Chunk, plan: model.VideoPlan, dtype: str, precision: str, device: Device, last_and_far: tuple[bool, bool]
) -> list[str]:
    """Where the prologue is applied, and what the better plan of the other way would take."""
    how = "by a kernel of its own first, which writes x once" if plan.apart else "while pixels are gathered"
    lines = [f"  the prologue ({chunk.prologue}) is applied {how}"]
    others = [p for p in model.candidates(chunk, dtype, precision, device, *last_and_far) if p.apart != plan.apart]
    if others and not device.interpreted:
        least = min(model.predict(chunk, other, dtype, precision, device).seconds for other in others)
        other = "while gathered, for each tap and block of filters" if plan.apart else "by a kernel of its own"
        lines.append(f"  {other} it would take {least * 1e6:.3g} us in all")
    return lines


def explained(number: int | None, *args: Any, **kwargs: Any) -> tuple[ConvProblem, dict[str, Plan], dict[str, Prediction], str]:
    """(problem, plans, predictions, words) of a call of `causal_conv3d`, forward, on device `number` of `host`, None for where
    x is. Raises what the call would."""
    bound = inspect.signature(causal_conv3d).bind(*args, **kwargs)
    bound.apply_defaults()
    given = dict(bound.arguments)
    forced = check.plan_text(given.pop("plan"))
    values = Values(*as_arguments(check.NAME, given["x"], given.pop("prologue")))
    sums = given.pop("summed_taps")
    window = check.call(**given)
    x, weight, cache, residual = (given[name] for name in ("x", "weight", "cache", "residual"))
    chunk = chunk_of(
        x.shape, weight.shape, None if cache is None else cache.shape, *window, given["groups"], sums, given["padding_mode"]
    )
    chunk = launch.with_values(chunk, values, residual)
    dtype, precision = DTYPES[cast_dtype(x)], fp32_precision()
    device = device_model(index_of(x) if number is None else number)
    lines = [f"causal_conv3d: {chunk}, {Arithmetic(dtype, precision).words}"]
    if number is None and not x.is_cuda and not runs_kernels():
        lines.append("CPU tensors: torch's own convolution computes them; what Triton's interpreter would run:")
    if 0 in chunk.output_shape:
        return chunk.problem, {}, {}, "\n".join([*lines, "nothing to multiply"])
    copied = launch.copied(x, cache)
    y = chunk.output_shape, output_strides(chunk.output_shape, x, weight)
    beside = None if residual is None else key(residual)
    last_and_far = launch.last_and_far(chunk, y, beside)
    plan = launch.chosen(chunk, forced, dtype, precision, device, *last_and_far)
    prediction = model.predict(chunk, plan, dtype, precision, device, copied)
    m_tiles, n_tiles = model.tiles(chunk, plan)
    n_tiles *= plan.split
    lines += [
        "forward: implicit GEMM, a gather over the taps of known frames",
        f"  plan {plan}",
        f"  tile {plan.block_m}x{plan.block_n}x{plan.block_k}, {plan.num_warps} warps, {plan.num_stages} stages; "
        f"{m_tiles} x {n_tiles} programs of {model.trips(chunk, plan):g} trips",
    ]
    if given["return_cache"] and chunk.kept:
        lines.append(f"  {model.copies(chunk, plan, dtype)} more programs write the next cache, {chunk.kept} frames")
    if chunk.prologue is not None:
        lines += prologue_lines(chunk, plan, dtype, precision, device, last_and_far)
    if plan.apart:
        copied = tuple(name for name in copied if name != "x")
    if copied:
        lines.append(f"  {', '.join(copied)} copied first: the kernel reads dense channels-last images")
    if chunk.summed:
        lines.append("  weights of taps that see the same pixel are summed, once for each version of the weight")
    elif not launch.is_readable(weight, True):
        lines.append("  weight is copied to channels-last, once for each version of it")
    chain = model.chain(chunk, itemsize(dtype))
    lines.append(
        f"  {prediction.bytes / 1e6:.3g} MB moved; as {', '.join(chain)} of torch it is {sum(chain.values()) / 1e6:.3g} MB in "
        f"{len(chain)} operators"
    )
    why = "forced by plan="
    if not forced:
        why = f"least predicted time of {len(model.candidates(chunk, dtype, precision, device, *last_and_far))} candidates"
    lines.append(
        f"  {why}: {prediction.seconds * 1e6:.3g} us, bound by {prediction.bound}; {prediction.waves:.2g} waves, "
        f"{prediction.tile_use:.0%} of the issued multiply-adds needed ({device.name})"
    )
    if not device.interpreted:
        lines.append(f"  from {prediction.low * 1e6:.3g} to {prediction.high * 1e6:.3g} us, {prediction.source}")
    written = chunk.replicate or chunk.cached or chunk.upsample > 1 or chunk.mode != "zeros"
    lines.append("backward: dgrad and wgrad of conv3d on the known frames" + (" written out" if written else ""))
    if chunk.prologue is not None:
        lines.append("  and of the prologue, which a kernel of its own applies then")
    return chunk.problem, {"forward": plan}, {"forward": prediction}, "\n".join(lines)
