"""Launches of the depthwise kernels: scalars, constexprs and grid of each kernel, copies and words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton.language as tl

from costmodel.families.depthwise import (
    REDUCE_BLOCK,
    REDUCE_PARTS,
    DepthwisePlan,
    axis_of,
    is_narrow,
    is_planes,
    load_width,
    loads_together,
    planned,
    row_runs,
    shape_of,
    store_width,
)
from costmodel.problem import ConvProblem, Pass, ceil_div, product
from costmodel.tiling import MAX_ALIGN, Call, Operand
from tritonconv.families.protocol import Laid, Launcher, named
from tritonconv.kernels.depthwise import slide_kernel
from tritonconv.kernels.depthwise_taps import taps_kernel
from tritonconv.kernels.depthwise_wgrad import strip_kernel, strip_reduce_kernel
from tritonconv.kernels.index import pack
from tritonconv.kernels.window import Extents
from tritonconv.layout import depthwise_operand, filters_last_copy, filters_last_strides
from tritonconv.prepared import INT32_MAX, FusedKey, TensorKey, accumulator, follow, packed_strides, wide
from tritonconv.steps import Copies, Launch, Step


def fits_int32(problem: ConvProblem, plan: DepthwisePlan, *, images: Iterable[TensorKey], weights: TensorKey | None) -> bool:
    """Whether 32-bit offsets reach every element of one image of each of `images` [N, C, *spatial], including masked columns
    and rows beyond it, and every element of `weights` (for wgrad: of one part of its workspace). `weights` is None where a
    kernel reads them with 64-bit offsets."""
    beyond = 2 * (max((*problem.effective_kernel, *problem.stride)) + plan.block_m * plan.block_k * plan.rows)
    beyond += max(abs(p) for pair in problem.padding for p in pair)
    per_group = problem.channels_per_group, problem.filters_per_group
    # lanes without a channel address filters, or pairs of a filter and a channel, beyond the last
    if weights is not None:
        (filters, *inner), (outer, *steps) = weights
        reach = sum((n - 1) * stride for n, stride in zip(inner, steps, strict=True))
        if reach + (filters + plan.block_n * max(per_group)) * outer > INT32_MAX:
            return False
    for shape, strides in images:
        # an axis of one element has no stride (`packed_strides`), but it has coordinates, as an expanded one has
        _, channel, *steps = (0 if n == 1 else stride for n, stride in zip(shape, strides, strict=True))
        spatial = sum((n + beyond) * max(step, 1) for n, step in zip(shape[2:], steps, strict=True))
        # a lane without a channel may address up to one group's channels further
        if spatial + (shape[1] + plan.block_n * max(per_group)) * channel > INT32_MAX:
            return False
    return True


def of_all_groups(operand: Operand) -> Operand:
    """The operand over all groups together, because these kernels read all groups as one."""
    return replace(operand, align=operand.outside)


def launch(
    plan: DepthwisePlan,
    call: Call,
    a: TensorKey,
    b: TensorKey,
    out: TensorKey,
    bias_stride: int | None,
    fused: FusedKey | None,
    upcast: bool,
) -> Launch:
    """The launch: scalars, constexprs and grid. `call` describes the operands after all copies."""
    call = replace(call, a=of_all_groups(call.a), b=of_all_groups(call.b), out=of_all_groups(call.out))
    which, problem = plan.which, call.problem
    full, shape, counted = problem.with_unit_axes(), shape_of(problem, which), planned(problem, plan)
    dgrad, wgrad = which == Pass.DGRAD, which == Pass.WGRAD
    images: tuple[TensorKey, ...] = (a, b) if wgrad else (a, out)
    part = (shape.channels, problem.taps), (1, shape.channels)
    residual = None if fused is None else fused.residual
    if residual is not None:
        images += (residual,)
    align = math.gcd(shape.channels, MAX_ALIGN)
    width, other_width = load_width(call, plan), store_width(call, plan)
    block_r, block_s = plan.taps or full.kernel_size[1:]
    columns = axis_of(full, which, 2, block_s)
    rows = axis_of(full, which, 1, block_r)
    early = ceil_div(columns.shift, width)
    programs = counted.programs
    if programs > INT32_MAX:
        raise RuntimeError(f"{which} of {problem} needs {programs} programs, more than a CUDA grid of {INT32_MAX} holds")
    slides = plan.taps is None and not wgrad
    extents = Extents(
        *map(
            pack,
            (
                *shape.inputs,
                *shape.outputs,
                shape.channels // align,
                axis_of(full, which, 0).shift if slides else full.padding[0][0],
                rows.shift if slides else full.padding[1][0],
                early,
                bias_stride or 0,
                plan.rows,
            ),
        )
    )
    constants: dict[str, Any] = {
        "KERNEL": full.kernel_size,
        "STRIDE": full.stride,
        "DILATION": full.dilation,
        "RANK": max(problem.rank, 1),
        "C_ALIGN": align,
        "EVEN_C": shape.channels % plan.block_n == 0,
        "X_WIDTH": width,
        "LEAD": early * width - columns.shift,
        "ACC": accumulator(call.dtype),
        "INDEX": tl.int32 if fits_int32(problem, plan, images=images, weights=part if wgrad else b) else tl.int64,
        "CHANNELS": plan.block_n,
        "GROUPS": plan.block_k,
        "COLUMNS": plan.block_m,
        "num_warps": plan.num_warps,
        "num_stages": plan.num_stages,
    }

    def name(prefix: str, described: Operand) -> None:
        constants[f"{prefix}_ALIGN"] = described.align
        constants[f"{prefix}_UNIT"] = described.unit

    strides = tuple(packed_strides(t, d) for t, d in ((a, call.a), (b, call.b), (out, call.out)))
    if wgrad:
        name("DY", call.a)
        name("X", call.b)
        workspace = (counted.splits * counted.tiles_q, problem.taps, shape.channels)
        constants |= {
            "PER_FILTER": problem.channels_per_group,
            "FILTERS": problem.filters_per_group,
            "BLOCK_R": block_r,
            "BLOCK_S": block_s,
            "LAG": rows.lag,
            "DY_WIDTH": other_width,
        }
        elements = product(problem.weight_shape)
        reduce = Step(
            strip_reduce_kernel,
            ceil_div(elements, REDUCE_BLOCK),
            {
                "KERNEL": full.kernel_size,
                "PER_FILTER": problem.channels_per_group,
                "DW_ALIGN": call.out.align,
                "DW_UNIT": call.out.unit,
                "ACC": accumulator(call.dtype),
                "UPCAST": upcast,
                "BLOCK_PARTS": REDUCE_PARTS,
                "BLOCK": REDUCE_BLOCK,
            },
            (strides[2], (pack(elements), pack(workspace[0]), pack(shape.channels))),
            ("workspace", "out"),
        )
        arguments = (*strides[:2], extents, (pack(counted.runs), pack(row_runs(shape, plan.rows))))
        main = Step(strip_kernel, programs, constants, arguments, ("a", "b", "workspace"))
        return Launch(plan, main, after=(reduce,), workspace=workspace, between=wide(getattr(torch, call.dtype)))
    for prefix, described in (("X", call.a), ("W", call.b), ("Y", call.out)):
        name(prefix, described)
    constants |= {
        "PER_GROUP": shape.per_group,
        "SUMMED": shape.summed,
        "DGRAD": dgrad,
        "Y_WIDTH": other_width,
        "HAS_BIAS": bias_stride is not None,
        "UPCAST": upcast,
    }
    follows, fused_constants = follow(fused, depthwise_operand)
    if fused is not None:
        constants |= {"FUSED": True, **fused_constants}
    if plan.taps is None:
        axes = [axis_of(full, which, i) for i in range(3)]
        constants |= {"PHASE": tuple(x.phase for x in axes), "REACH": tuple(x.reach for x in axes), "LAG": rows.lag}
        constants["TOGETHER"] = loads_together(call, None)
    else:
        span = block_s * full.dilation[2]
        constants |= {
            "PHASE": columns.phase,
            "REACH": columns.reach,
            "STEP": shape.tap_step[:2],
            "CHUNK": block_s,
            "CHUNK_SPAN": -(span // full.stride[2]) if dgrad else span,
        }
    kernel = slide_kernel if plan.taps is None else taps_kernel
    main = Step(kernel, programs, constants, (*strides, extents), ("a", "b", "bias", "out"), fused=True)
    return Launch(plan, main, fused=follows)


@dataclass(frozen=True)
class Copied(Copies):
    """The weights are copied so that neighbouring filters are next to each other."""

    def operands(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a, filters_last_copy(b)


class Depthwise(Launcher):
    """The family."""

    name, title = "depthwise", "depthwise, multiply-adds in registers"

    def launch(self, plan: DepthwisePlan, *given: Any) -> Launch:
        return launch(plan, *given)

    def describes(self, problem: ConvProblem) -> Callable[..., Operand] | None:
        return depthwise_operand if is_narrow(problem) else None

    def laid(self, plan: DepthwisePlan, call: Call, a: TensorKey, b: TensorKey, out: TensorKey) -> Laid:
        if not plan.pack:
            return super().laid(plan, call, a, b, out)
        return Laid(plan, call.problem, a, (b[0], filters_last_strides(b[0])), out, plan.pack, Copied())

    def words(self, call: Call, plan: DepthwisePlan) -> list[str]:
        shape, counted = shape_of(call.problem, plan.which), planned(call.problem, plan)
        pairs = plan.which == Pass.WGRAD and call.problem.channels_per_group > 1
        unit = "pairs of a filter and a channel" if pairs else "channels"
        tile = f"{plan.block_n} {unit} x {plan.block_k} tiles of {plan.block_m} columns"
        lines = [
            f"  {tile}, {plan.num_warps} warps; {counted.tiles_c} x {counted.tiles_q} x {counted.repeats} programs of "
            f"{counted.trips} trips"
        ]
        if plan.which == Pass.WGRAD:
            lines.append(f"  {counted.splits * counted.tiles_q} partial sums of every tap, added in a fixed order")
        if plan.taps is None:
            lines.append("  every tap stays in registers; an input row is read once and meets all its taps")
        else:
            lines.append(f"  {plan.taps[0]} x {plan.taps[1]} taps at a time")
        name = named(("b" if plan.which == Pass.WGRAD else "a",), plan.which)
        if shape.summed > 1:
            together = ", in one load" if loads_together(call, plan.taps) else ""
            lines.append(f"  each channel sums the {shape.summed} of its group in {name}{together}")
        width = load_width(call, plan)
        lines.append(f"  {name} is read along its {'rows' if is_planes(call) else 'channels'}, {width} columns per load")
        if plan.pack:
            lines.append("  w copied first, neighbouring filters next to each other")
        return lines


LAUNCHERS = (Depthwise(),)
