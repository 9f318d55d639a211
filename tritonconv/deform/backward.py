"""Launches the gradients of a deformable convolution, from its tensors and the gradient of its output.

The gradient of input takes columns, targets, torch's sort and scatter. It is computed for a few images at a time
(`costmodel.deform_backward.images_at_a_time`), and its bits do not depend on how many those are. The gradient of weight takes a
second stage if several programs share its pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

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
from tritonconv.layout import allocate, channels_last_copy, channels_last_strides, operand, output_strides
from tritonconv.plans import plan_for
from tritonconv.prepared import INT32_MAX, TensorKey, accumulator, key, wide
from tritonconv.steps import Launch, Step, clamped

Maybe = torch.Tensor | None
Needs = Sequence[bool]
Four = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


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

    def run(self, dy: torch.Tensor, x: torch.Tensor, offset: torch.Tensor, mask: Maybe, dw: torch.Tensor) -> None:
        if self.reduce is None:
            self.sums.start(dy, x, offset, mask, dw, *self.sums.arguments)
            return
        shares = torch.empty(self.split * dw.numel(), dtype=wide(x.dtype), device=x.device)
        self.sums.start(dy, x, offset, mask, shares, *self.sums.arguments)
        self.reduce.start(shares, None, dw, *self.reduce.arguments, fused=None)


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


def allocated(x: torch.Tensor, offset: torch.Tensor, w: torch.Tensor, mask: Maybe, needs: Needs) -> Four:
    """(dx, doffset, dw, dmask) without values. A gradient that is not needed has no elements."""
    nothing = x.new_empty(0)
    return (
        allocate(x.shape, x, w) if needs[0] else nothing,
        offset.new_empty(offset.shape) if needs[1] else nothing,
        allocate(w.shape, w) if needs[2] else nothing,
        mask.new_empty(mask.shape) if needs[3] and mask is not None else nothing,
    )


class Scatter(NamedTuple):
    """How the gradient of images is made of the gradients of their samples."""

    targets: Step
    scatter: Step
    entries: int  # that are sorted
    pixels: int  # by which they are sorted

    def run(self, columns: torch.Tensor, offset: torch.Tensor, mask: Maybe, dx: torch.Tensor) -> None:
        number = torch.empty(self.entries, dtype=torch.int32, device=dx.device)
        weights = torch.empty(self.entries, dtype=columns.dtype, device=dx.device)
        self.targets.start(offset, mask, number, weights, *self.targets.arguments)
        ordered, order = torch.sort(number, stable=True)
        pixels = torch.arange(self.pixels + 1, dtype=torch.int32, device=dx.device)
        bounds = torch.searchsorted(ordered, pixels, out_int32=True)
        self.scatter.start(columns, order, bounds, weights, dx, *self.scatter.arguments)


class Part(NamedTuple):
    """What the gradients of a few images take, except that of the weight."""

    images: slice
    columns: Step
    samples: tuple[int, ...]  # the shape of the samples' gradients [pixels, taps, C]; (0,) where they are not needed
    scatter: Scatter | None


class Arranged(NamedTuple):
    """What the gradients of a call take, without its tensors."""

    needs: tuple[bool, ...]
    dx: TensorKey
    dw: TensorKey
    copies: tuple[bool, bool, bool]  # whether dy, x and w are copied first
    weights: Weights | None
    parts: tuple[Part, ...]

    def run(self, dy: torch.Tensor, x: torch.Tensor, offset: torch.Tensor, w: torch.Tensor, mask: Maybe) -> Four:
        """(dx, doffset, dw, dmask). A gradient that is not needed has no elements."""
        needs_x, needs_offset, needs_w, needs_mask = self.needs
        nothing = x.new_empty(0)
        dx = torch.empty_strided(*self.dx, dtype=x.dtype, device=x.device) if needs_x else nothing
        dw = torch.empty_strided(*self.dw, dtype=w.dtype, device=w.device) if needs_w else nothing
        doffset = dmask = nothing
        if needs_offset or needs_mask:  # the kernel writes both
            doffset = offset.new_empty(offset.shape)
            dmask = nothing if mask is None else mask.new_empty(mask.shape)
        with on(x):
            dy, x, w = (channels_last_copy(t) if copied else t for t, copied in zip((dy, x, w), self.copies, strict=True))
            if self.weights is not None:
                self.weights.run(dy, x, offset, mask, dw)
            for images, step, samples, scatter in self.parts:
                given: tuple[Any, ...] = dy, x, offset, mask, doffset, dmask, dx
                if len(self.parts) > 1:
                    given = tuple(t if t is None else t[images] for t in given)
                columns = dy.new_empty(samples, dtype=wide(x.dtype))
                step.start(*given[:4], w, *given[4:6], columns, *step.arguments)
                if scatter is not None:
                    scatter.run(columns, given[2], given[3], given[6])
        return dx, doffset if needs_offset else nothing, dw, dmask if needs_mask else nothing


def arranged(
    deformation: Deformation,
    dy: torch.Tensor,
    x: torch.Tensor,
    offset: torch.Tensor,
    w: torch.Tensor,
    mask: Maybe,
    needs: Needs,
    forced: str,
) -> Arranged:
    """What the gradients of a call that has pixels take."""
    kind = x.dtype, fp32_precision(), index_of(x)
    given = key(dy), key(x), key(w)
    dx, dw = (tuple(x.shape), output_strides(x.shape, x, w)), (tuple(w.shape), output_strides(w.shape, w))
    dgrad, wgrad = plans(deformation, *kind, *given, forced)
    needs_x, needs_offset, needs_w, needs_mask = map(bool, needs)
    places = needs_offset or needs_mask
    samples = needs_x or places
    shared = (needs_w and "a" in wgrad.pack) or (samples and "a" in dgrad.pack)
    asked = shared, shared, samples and "b" in dgrad.pack
    laid_keys = [_laid_key(*each) for each in zip(given, asked, strict=True)]
    copies = tuple(laid is not tensor for laid, tensor in zip(laid_keys, given, strict=True))
    of_dy, of_x, of_w = laid_keys
    beside = key(offset), None if mask is None else key(mask)
    weights = weights_steps(deformation, *kind, of_dy, of_x, *beside, dw, str(wgrad)) if needs_w else None
    batch = deformation.problem.batch
    most = model.images_at_a_time(deformation, x.element_size()) if needs_x else batch
    parts = []
    for first in range(0, batch, most) if samples else ():
        images = slice(first, min(first + most, batch))
        count = images.stop - first
        some = replace(deformation, problem=replace(deformation.problem, batch=count))
        y, image, moved, factors = (None if t is None else ((count, *t[0][1:]), t[1]) for t in (of_dy, of_x, *beside))
        assert y is not None and image is not None and moved is not None
        columns = columns_step(some, *kind, y, image, moved, of_w, factors, places, needs_x, str(dgrad))
        scatter = _scatter(some, x.dtype, moved, factors, ((count, *dx[0][1:]), dx[1])) if needs_x else None
        shape = (some.pixels, some.problem.taps, some.problem.in_channels) if needs_x else (0,)
        parts.append(Part(images, columns, shape, scatter))
    return Arranged((needs_x, needs_offset, needs_w, needs_mask), dx, dw, copies, weights, tuple(parts))  # type: ignore[arg-type]


def _scatter(deformation: Deformation, dtype: torch.dtype, offset: TensorKey, mask: TensorKey | None, dx: TensorKey) -> Scatter:
    """The gradient of the images. RuntimeError where 32 bits do not count what is sorted."""
    problem = deformation.problem
    entries = 4 * deformation.places
    pixels = deformation.offset_groups * problem.batch * product(problem.input_size)
    if max(entries, pixels) + model.TARGETS > INT32_MAX:
        raise RuntimeError(
            f"deform_conv2d(): input's gradient sorts {entries} entries into {pixels} pixels, more than 32 bits "
            f"count: {deformation}"
        )
    targets, scatter = scatter_steps(deformation, dtype, offset, mask, dx)
    return Scatter(targets, scatter, entries, pixels)


def backward(
    deformation: Deformation,
    dy: torch.Tensor,
    x: torch.Tensor,
    offset: torch.Tensor,
    w: torch.Tensor,
    mask: Maybe,
    needs: Needs,
    forced: str = "",
) -> Four:
    """(dx, doffset, dw, dmask), those that `needs` asks for."""
    if deformation.pixels:
        return arranged(deformation, dy, x, offset, w, mask, needs, forced).run(dy, x, offset, w, mask)
    made = allocated(x, offset, w, mask, needs)
    for tensor in made:
        tensor.zero_()
    return made
