"""Launches of the TMA kernels: descriptors, arguments, grid, words.

A descriptor is made for each call, because it holds the tensor's address. Everything else about it is prepared once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import triton.language as tl

from costmodel.algebra import ceil_div
from costmodel.families.matrix import access, grid, step_of, stores_boxes, vector_widths
from costmodel.families.tma import TmaPlan
from costmodel.problem import Pass
from costmodel.tiling import MAX_ALIGN, Call, itemsize
from tritonconv.families import gemm
from tritonconv.families.matrix import described as matrix_words
from tritonconv.families.matrix import phases, recast
from tritonconv.families.protocol import Laid, Launcher
from tritonconv.kernels.index import Sizes, pack
from tritonconv.kernels.tma import tma_kernel
from tritonconv.layout import operand
from tritonconv.prepared import (
    INT32_MAX,
    FusedKey,
    TensorKey,
    accumulator,
    channels_fit_int32,
    follow,
    packed_strides,
)
from tritonconv.steps import Box, Launch, Step

#: How a result leaves the kernel.
BY_BOXES, BY_THREADS = "the result leaves as boxes too", "each thread stores its own results"


def described(tensor: TensorKey, size: int, block: list[int], stride: tuple[int, ...] = ()) -> Box:
    """The descriptor of a tensor [outer, channel, *spatial] as [outer, *spatial, channel], for reading in steps of `stride`.

    An axis of stride s becomes two axes, [n / s, s]; the second part of the last axis joins the channels. `block` is the box
    along these axes. Axes of size 1 may have any stride in torch; here they get one that steps over what lies within.
    """
    shape, strides = tensor
    step = stride or (1,) * (len(shape) - 2)
    unit = 16 // size
    inner = shape[1] + (step[-1] - 1) * strides[-1]
    sizes, steps, extent = [inner], [1], ceil_div(inner, unit) * unit
    for axis, by in zip((*range(len(shape) - 1, 1, -1), 0), (*reversed(step), 1), strict=True):
        length, distance = shape[axis], strides[axis] if shape[axis] > 1 else extent
        if by > 1 and axis != len(shape) - 1:
            sizes.insert(0, by)
            steps.insert(0, distance)
        sizes.insert(0, length // by)
        steps.insert(0, distance * by)
        extent = length * distance
    return sizes, steps, block


def extents_of(box: tuple[int, int, int, int], stride: tuple[int, ...], channels: int) -> list[int]:
    """The extents of a box of pixels and channels, along the axes of `described`."""
    extents = [box[0]]
    for axis, by in zip(box[4 - len(stride) : 3], stride[:-1], strict=True):
        extents += [axis, 1] if by > 1 else [axis]
    return [*extents, box[3], channels]


def weights(tensor: TensorKey, size: int, block: list[int]) -> Box:
    """The descriptor of w [K, C / G, *kernel] as [K, (*kernel, C / G)].

    Where the channel count is not a multiple of fprop's box, the box also holds weights of the next tap, which are multiplied
    by zeros of x. An infinite one then gives NaN, but only in results of its own filter, which it makes infinite anyway.
    """
    (filters, *rest), strides = tensor
    row, unit = math.prod(rest), 16 // size
    return [filters, row], [strides[0] if filters > 1 else ceil_div(row, unit) * unit, 1], block


def fits_int32(call: Call, plan: TmaPlan, *tensors: TensorKey) -> bool:
    """Whether 32-bit offsets reach every element of a tile of these tensors from its first."""
    n, *spatial = step_of(call.problem, plan)
    by = call.problem.with_unit_axes().stride if plan.which == Pass.DGRAD else (1, 1, 1)
    for shape, strides in tensors:
        rank = len(shape) - 2
        reach = sum(b * s * stride for b, s, stride in zip(spatial[-rank:], by[-rank:], strides[2:], strict=True))
        if n * strides[0] + plan.block_n * strides[1] + reach > INT32_MAX:
            return False
    return True


def launch(
    plan: TmaPlan,
    call: Call,
    a: TensorKey,
    b: TensorKey,
    out: TensorKey,
    bias_stride: int | None,
    fused: FusedKey | None,
    upcast: bool,
) -> Launch:
    """Descriptors, scalars, constexprs and grid of a launch, for operands in the layout that the plan needs.

    wgrad's launch is the gather's, except that x is read as boxes.
    """
    which, problem, size = plan.which, call.problem, itemsize(call.dtype)
    if which == Pass.WGRAD:
        step = step_of(problem, plan)
        gathered = gemm.launch(replace(plan, step=step), call, a, b, out, bias_stride, fused, upcast)
        x = described(b, size, extents_of(step, problem.stride, plan.block_n), problem.stride)
        main = replace(gathered.main, constants=gathered.main.constants | {"BOXED": True}, boxes={"b": x})
        return replace(gathered, plan=plan, main=main)
    full, rank, dgrad = problem.with_unit_axes(), problem.rank, which == Pass.DGRAD
    c_align, k_align = (math.gcd(n, MAX_ALIGN) for n in (problem.channels_per_group, problem.filters_per_group))
    box = step_of(problem, plan)
    pixels = [box[0], *box[4 - rank :]]
    m_tiles, n_tiles, repeats = grid(problem, plan)
    programs = m_tiles * n_tiles * repeats
    if programs > INT32_MAX:
        raise RuntimeError(f"{which} of {problem} needs {programs} programs, more than a CUDA grid of {INT32_MAX} holds")
    stride = (1,) * rank if dgrad else problem.stride
    store = stores_boxes(call)
    boxes = {
        "a": described(a, size, extents_of(box, stride, plan.block_k), stride),
        "b": weights(b, size, [plan.block_k, plan.block_n] if dgrad else [plan.block_n, plan.block_k]),
    }
    if store:
        boxes["out"] = described(out, size, [*pixels, plan.block_n])
    residual = None if fused is None else fused.residual
    laid_over = (out,) if residual is None else (out, residual)
    small = fits_int32(call, plan, *laid_over) and channels_fit_int32(out, bias_stride, fused)
    sizes = Sizes(
        *map(
            pack,
            (
                problem.batch,
                *full.input_size,
                *full.output_size,
                problem.channels_per_group // c_align,
                problem.filters_per_group // k_align,
                *(low for low, _ in full.padding),
                bias_stride or 0,
                m_tiles,
            ),
        )
    )
    axes = [full.axis_phases(i) for i in range(3)]
    constants: dict[str, Any] = {
        "KERNEL": full.kernel_size,
        "STRIDE": full.stride,
        "DILATION": full.dilation,
        "STEP": tuple(axis[0].step for axis in axes),
        "DELTA": tuple(axis[0].delta for axis in axes),
        "EMPTY": dgrad and any(phase.taps == 0 for axis in axes for phase in axis),
        "RANK": rank,
        "DGRAD": dgrad,
        "BOX": box,
        "STORE": store,
        "OUT_ALIGN": call.out.align,
        "OUT_UNIT": call.out.unit,
        "C_ALIGN": c_align,
        "K_ALIGN": k_align,
        "HAS_BIAS": bias_stride is not None,
        "ACC": accumulator(call.dtype),
        "PRECISION": call.precision if call.dtype == "float32" else "ieee",
        "INDEX": tl.int32 if small else tl.int64,
        "UPCAST": upcast,
        "BLOCK_M": plan.block_m,
        "BLOCK_N": plan.block_n,
        "BLOCK_K": plan.block_k,
        "GROUP_M": plan.group_m,
        "num_warps": plan.num_warps,
        "num_stages": plan.num_stages,
    }
    follows, fused_constants = follow(fused, lambda shape, strides: operand(shape, strides, problem.groups, 1))
    if fused is not None:
        constants |= {"FUSED": True, **fused_constants}
    arguments = (packed_strides(out, call.out), sizes, pack(problem.groups), pack(a[1][-1]))
    main = Step(tma_kernel, programs, constants, arguments, ("a", "b", "bias", "out"), boxes, fused=True)
    return Launch(plan, main, fused=follows)


class Tma(Launcher):
    """The family."""

    name, title = "tma", "implicit GEMM, boxes of pixels copied by TMA tap by tap"

    def launch(self, plan: TmaPlan, *given: Any) -> Launch:
        return launch(plan, *given)

    def laid(self, plan: TmaPlan, call: Call, a: TensorKey, b: TensorKey, out: TensorKey) -> Laid:
        return recast(plan, call, a, b, out)

    def launches(self, constants: Mapping[str, Any]) -> bool:
        return bool(constants.get("BOXED"))

    def kernels_of(self, which: Pass) -> str:
        return "gather" if which == Pass.WGRAD else self.name

    def remark(self, call: Call, plan: TmaPlan) -> str:
        return phases(call)

    def words(self, call: Call, plan: TmaPlan) -> list[str]:
        box = " x ".join(map(str, step_of(call.problem, plan)))
        if call.which == Pass.WGRAD:
            loads = f"  boxes of {box} pixels of x; elements per load: dy {vector_widths(call, plan)[0]}"
        else:
            leave = BY_BOXES if access(call, plan) == "wide" else BY_THREADS
            loads = f"  boxes of {box} pixels; {leave}"
        return matrix_words(call, plan, loads)

    def fused_in(self, plan: TmaPlan) -> str:
        return "the kernel that adds up the partial sums" if plan.split > 1 else "the same kernel"


LAUNCHERS = (Tma(),)
