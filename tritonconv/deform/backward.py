"""Launches the gradients of a deformable convolution, from its tensors and the gradient of its output.

The gradient of input takes columns, targets, torch's sort and scatter. It is computed for a few images at a time
(`costmodel.deform_backward.images_at_a_time`), and its bits do not depend on how many those are. The gradient of weight takes a
second stage if several programs share its pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from costmodel import deform_backward as model
from costmodel.algebra import ceil_div, product
from costmodel.deform import Deformation, DeformCall, DeformPlan
from costmodel.problem import Pass
from costmodel.tiling import itemsize
from tritonconv.deform.launch import aligns_of, arithmetic_constants, images_of, laid, refuse_far, sizes_of
from tritonconv.families.gemm import reduction
from tritonconv.host import index_of
from tritonconv.kernels.deform_backward import columns_kernel, weights_kernel
from tritonconv.kernels.deform_scatter import scatter_kernel, targets_kernel
from tritonconv.launch import DTYPES, device_model, fp32_precision, on
from tritonconv.layout import allocate, channels_last_copy, channels_last_strides, operand
from tritonconv.plans import plan_for
from tritonconv.prepared import INT32_MAX, TensorKey, accumulator, key, wide
from tritonconv.steps import Launch, Step, clamped

Maybe = torch.Tensor | None
Needs = Sequence[bool]


def described(
    deformation: Deformation, dtype: torch.dtype, precision: str, x: TensorKey, w: TensorKey, dy: TensorKey
) -> DeformCall:
    """The description of a backward pass for the cost model. The channels of a run and the filters of a group stay together."""
    groups = deformation.problem.groups
    return DeformCall(
        deformation, DTYPES[dtype], precision, operand(*x, groups, 1), operand(*w, groups, 0), operand(*dy, groups, 1)
    )


def chosen(call: DeformCall, which: Pass, device: int, forced: str) -> DeformPlan:
    """The plan of one of the two kernels that multiply: the forced one, or the one of least predicted time."""
    plan, gpu = plan_for(which, forced), device_model(device)
    return model.select(call, which, gpu) if plan is None else model.checked(call, plan, which, gpu)


def _sizes(deformation: Deformation, tiles: int, programs: int) -> Any:
    if programs > INT32_MAX:
        raise RuntimeError(f"a gradient of {deformation} needs {programs} programs, more than a CUDA grid of {INT32_MAX} holds")
    return sizes_of(deformation, aligns_of(deformation), 0, tiles)


def _beside(offset: TensorKey, mask: TensorKey | None) -> dict[str, Any]:
    """Offset and mask as `laid` takes them."""
    return {"OFFSET": (offset, operand(*offset, 1, 1)), "MASK": None if mask is None else (mask, operand(*mask, 1, 1))}


def _tile(plan: DeformPlan, deformation: Deformation) -> dict[str, Any]:
    c_align, k_align = aligns_of(deformation)
    return {
        "C_ALIGN": c_align,
        "K_ALIGN": k_align,
        "EVEN_N": deformation.run % plan.block_n == 0,
        "BLOCK_M": plan.block_m,
        "BLOCK_N": plan.block_n,
        "BLOCK_K": plan.block_k,
        "num_warps": plan.num_warps,
        "num_stages": plan.num_stages,
    }


def _inside(plan: DeformPlan, step: Step, device: int) -> Step:
    """The step with addresses of masked lanes inside of their tensors, where the device asks for it."""
    return clamped(Launch(plan, step), device_model(device).capability).main


def _laid_key(tensor: TensorKey, copied: bool) -> TensorKey:
    """Shape and strides of the result of `_laid`."""
    return (tensor[0], channels_last_strides(tensor[0])) if copied and operand(*tensor, 1, 1).unit != 1 else tensor


@functools.lru_cache(maxsize=1024)
def columns_step(
    deformation: Deformation,
    dtype: torch.dtype,
    precision: str,
    device: int,
    dy: TensorKey,
    x: TensorKey,
    offset: TensorKey,
    w: TensorKey,
    mask: TensorKey | None,
    offsets: bool,  # whether the gradients of offset and mask are needed
    columns: bool,  # whether the gradients of the samples are needed
    forced: str,
) -> Step:
    """The launch of `columns_kernel`."""
    call = described(deformation, dtype, precision, x, w, dy)
    plan = chosen(call, Pass.DGRAD, device, forced)
    dy, x, w = _laid_key(dy, "a" in plan.pack), _laid_key(x, "a" in plan.pack), _laid_key(w, "b" in plan.pack)
    call = described(deformation, dtype, precision, x, w, dy)
    block = max(plan.block_m, plan.block_n, plan.block_k)
    images = images_of(product(deformation.problem.output_size), plan.block_m)
    refuse_far(deformation, images, block, input=x, offset=offset, weight=w, mask=mask, **{"the output's gradient": dy})
    tiles, programs = ceil_div(deformation.pixels, plan.block_m), model.columns_tiles(deformation, plan)
    strides, constants = laid(DY=(dy, call.y), X=(x, call.x), **_beside(offset, mask), W=(w, call.w))
    constants |= arithmetic_constants(call) | _tile(plan, deformation)
    constants |= {
        "EVEN_K": deformation.problem.filters_per_group % plan.block_k == 0,
        "HAS_MASK": mask is not None,
        "OFFSETS": offsets,
        "COLUMNS": columns,
        "GROUP_M": plan.group_m,
    }
    return _inside(plan, Step(columns_kernel, programs, constants, (*strides, _sizes(deformation, tiles, programs))), device)


@functools.lru_cache(maxsize=1024)
def scatter_steps(
    deformation: Deformation, dtype: torch.dtype, offset: TensorKey, mask: TensorKey | None, dx: TensorKey
) -> list[Step]:
    """The launches of `targets_kernel` and `scatter_kernel`."""
    problem, name = deformation.problem, DTYPES[dtype]
    shape = {"KERNEL": problem.kernel_size, "ACC": accumulator(name)}
    tiles = ceil_div(deformation.pixels, model.TARGETS)
    strides, constants = laid(**_beside(offset, mask))
    constants |= shape | {"STRIDE": problem.stride, "DILATION": problem.dilation, "HAS_MASK": mask is not None}
    constants["BLOCK"] = model.TARGETS
    programs = tiles * deformation.offset_groups * problem.taps
    targets = Step(targets_kernel, programs, constants, (*strides, _sizes(deformation, tiles, programs)))
    block_m, block_n = model.SCATTER
    tiles = ceil_div(problem.batch * product(problem.input_size), block_m)
    strides, constants = laid(DX=(dx, operand(*dx, 1, 1)))
    constants |= shape | {"C_ALIGN": aligns_of(deformation)[0], "EVEN_N": deformation.shared % block_n == 0, "BLOCK_M": block_m}
    constants |= {"BLOCK_N": block_n, "UPCAST": arithmetic_constants(DeformCall(deformation, name))["UPCAST"]}
    programs = tiles * deformation.offset_groups * ceil_div(deformation.shared, block_n)
    return [targets, Step(scatter_kernel, programs, constants, (*strides, _sizes(deformation, tiles, programs)))]


@dataclass(frozen=True)
class Weights:
    """The launches of the weight's gradient: the sums, and with `split` programs per sum the kernel that adds them up."""

    split: int
    sums: Step
    reduce: Step | None


@functools.lru_cache(maxsize=1024)
def weights_steps(
    deformation: Deformation,
    dtype: torch.dtype,
    precision: str,
    device: int,
    dy: TensorKey,
    x: TensorKey,
    offset: TensorKey,
    mask: TensorKey | None,
    dw: TensorKey,
    forced: str,
) -> Weights:
    call = described(deformation, dtype, precision, x, dw, dy)
    plan = chosen(call, Pass.WGRAD, device, forced)
    dy, x = _laid_key(dy, "a" in plan.pack), _laid_key(x, "a" in plan.pack)
    call = described(deformation, dtype, precision, x, dw, dy)
    block = max(plan.block_m, plan.block_n, plan.block_k)
    images = images_of(product(deformation.problem.output_size), plan.block_k)
    refuse_far(deformation, images, block, input=x, offset=offset, weight=dw, mask=mask, **{"the output's gradient": dy})
    trips = ceil_div(ceil_div(deformation.pixels, plan.block_k), plan.split)
    programs = model.weights_tiles(deformation, plan) * plan.split
    strides, constants = laid(DY=(dy, call.y), X=(x, call.x), **_beside(offset, mask), DW=(dw, call.w))
    constants |= arithmetic_constants(call) | _tile(plan, deformation)
    constants |= {
        "EVEN_M": deformation.problem.filters_per_group % plan.block_m == 0,
        "HAS_MASK": mask is not None,
        "SPLIT": plan.split > 1,
    }
    sums = _inside(plan, Step(weights_kernel, programs, constants, (*strides, _sizes(deformation, trips, programs))), device)
    if plan.split == 1:
        return Weights(1, sums, None)
    size = max(4, itemsize(call.dtype))
    _, reduce = reduction(plan.which, plan.split, dw, size, (1, 1, 1), None, None, constants["UPCAST"])
    return Weights(plan.split, sums, reduce)


@functools.lru_cache(maxsize=1024)
def plans(
    deformation: Deformation,
    dtype: torch.dtype,
    precision: str,
    device: int,
    dy: TensorKey,
    x: TensorKey,
    w: TensorKey,
    forced: str,
) -> tuple[DeformPlan, DeformPlan]:
    """The plans of dgrad and wgrad for these operands. The plans say what is copied first."""
    call = described(deformation, dtype, precision, x, w, dy)
    return chosen(call, Pass.DGRAD, device, forced), chosen(call, Pass.WGRAD, device, forced)


def _laid(tensor: torch.Tensor, copied: bool) -> torch.Tensor:
    """The tensor itself, or the copy with contiguous channels that a plan asks for."""
    return channels_last_copy(tensor) if copied and operand(*key(tensor), 1, 1).unit != 1 else tensor


def _maybe_key(tensor: Maybe) -> TensorKey | None:
    return None if tensor is None else key(tensor)


def allocated(
    x: torch.Tensor, offset: torch.Tensor, w: torch.Tensor, mask: Maybe, needs: Needs
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dx, doffset, dw, dmask) without values. A gradient that is not needed has no elements."""
    nothing = x.new_empty(0)
    return (
        allocate(x.shape, x, w) if needs[0] else nothing,
        offset.new_empty(offset.shape) if needs[1] else nothing,
        allocate(w.shape, w) if needs[2] else nothing,
        mask.new_empty(mask.shape) if needs[3] and mask is not None else nothing,
    )


def backward(
    deformation: Deformation,
    dy: torch.Tensor,
    x: torch.Tensor,
    offset: torch.Tensor,
    w: torch.Tensor,
    mask: Maybe,
    needs: Needs,
    forced: str = "",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dx, doffset, dw, dmask), those that `needs` asks for."""
    dx, doffset, dw, dmask = made = allocated(x, offset, w, mask, needs)
    if not deformation.pixels:
        for tensor in made:
            tensor.zero_()
        return made
    with on(x):
        dgrad, wgrad = plans(deformation, x.dtype, fp32_precision(), index_of(x), key(dy), key(x), key(w), forced)
        samples = bool(needs[0] or needs[1] or needs[3])
        copied = (needs[2] and "a" in wgrad.pack) or (samples and "a" in dgrad.pack)
        dy, x, w = _laid(dy, copied), _laid(x, copied), _laid(w, samples and "b" in dgrad.pack)
        if needs[2]:
            _weights(deformation, dy, x, offset, mask, dw, str(wgrad))
        if not samples:
            return made
        places = needs[1] or needs[3]
        if places and not needs[1]:
            doffset = offset.new_empty(offset.shape)
        if places and mask is not None and not needs[3]:
            dmask = mask.new_empty(mask.shape)
        step = model.images_at_a_time(deformation, x.element_size()) if needs[0] else deformation.problem.batch
        for first in range(0, deformation.problem.batch, step):
            part = slice(first, min(first + step, deformation.problem.batch))
            some = replace(deformation, problem=replace(deformation.problem, batch=part.stop - part.start))
            factors = None if mask is None else mask[part]
            given = (dy[part], x[part], offset[part], w, factors, doffset[part], dmask[part])
            columns = _columns(some, *given, places, needs, str(dgrad))
            if needs[0]:
                _scatter(some, columns, offset[part], factors, dx[part])
    return made


def _columns(
    deformation: Deformation,
    dy: torch.Tensor,
    x: torch.Tensor,
    offset: torch.Tensor,
    w: torch.Tensor,
    mask: Maybe,
    doffset: torch.Tensor,
    dmask: torch.Tensor,
    places: bool,
    needs: Needs,
    forced: str,
) -> torch.Tensor:
    """The gradients of offset and mask, and if input's is needed those of the samples [pixels, taps, C]."""
    problem, keys = deformation.problem, (key(dy), key(x), key(offset), key(w), _maybe_key(mask))
    columns = dy.new_empty((deformation.pixels, problem.taps, problem.in_channels) if needs[0] else 0, dtype=wide(x.dtype))
    step = columns_step(deformation, x.dtype, fp32_precision(), index_of(x), *keys, places, bool(needs[0]), forced)
    step.start(dy, x, offset, mask, w, doffset, dmask, columns, *step.arguments)
    return columns


def _scatter(deformation: Deformation, columns: torch.Tensor, offset: torch.Tensor, mask: Maybe, dx: torch.Tensor) -> None:
    """The gradient of the images, from the gradients of the samples."""
    entries, numbers = (
        4 * deformation.places,
        deformation.offset_groups * deformation.problem.batch * product(deformation.problem.input_size),
    )
    if max(entries, numbers) + model.TARGETS > INT32_MAX:
        raise RuntimeError(
            f"deform_conv2d(): input's gradient sorts {entries} entries into {numbers} pixels, more than 32 bits "
            f"count: {deformation}"
        )
    targets, scatter = scatter_steps(deformation, dx.dtype, key(offset), _maybe_key(mask), key(dx))
    number = torch.empty(entries, dtype=torch.int32, device=dx.device)
    weights = torch.empty(entries, dtype=columns.dtype, device=dx.device)
    targets.start(offset, mask, number, weights, *targets.arguments)
    ordered, order = torch.sort(number, stable=True)
    pixels = torch.arange(numbers + 1, dtype=torch.int32, device=dx.device)
    bounds = torch.searchsorted(ordered, pixels, out_int32=True)
    scatter.start(columns, order, bounds, weights, dx, *scatter.arguments)


def _weights(
    deformation: Deformation,
    dy: torch.Tensor,
    x: torch.Tensor,
    offset: torch.Tensor,
    mask: Maybe,
    dw: torch.Tensor,
    forced: str,
) -> None:
    steps = weights_steps(
        deformation, x.dtype, fp32_precision(), index_of(x), key(dy), key(x), key(offset), _maybe_key(mask), key(dw), forced
    )
    if steps.reduce is None:
        steps.sums.start(dy, x, offset, mask, dw, *steps.sums.arguments)
        return
    shares = torch.empty(steps.split * dw.numel(), dtype=wide(x.dtype), device=x.device)
    steps.sums.start(dy, x, offset, mask, shares, *steps.sums.arguments)
    steps.reduce.start(shares, None, dw, *steps.reduce.arguments, fused=None)
