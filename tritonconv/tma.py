"""Launches of the TMA kernels: descriptors, arguments, grid, the launch.

A descriptor is made for each call, since it holds the tensor's address; what it says besides is prepared once.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from costmodel.algebra import ceil_div
from costmodel.problem import Pass
from costmodel.tiling import MAX_ALIGN, Call, Plan, grid, itemsize, step_of, stores_boxes
from tritonconv import gemm
from tritonconv.kernels.epilogue import Fused
from tritonconv.kernels.index import Sizes, pack
from tritonconv.kernels.tma import tma_kernel
from tritonconv.layout import operand
from tritonconv.prepared import (
    INT32_MAX,
    Box,
    FusedKey,
    Prepared,
    TensorKey,
    accumulator,
    channels_fit_int32,
    follow,
    packed_strides,
)


def described(tensor: TensorKey, size: int, block: list[int], stride: tuple[int, ...] = ()) -> Box:
    """The descriptor of a tensor [outer, channel, *spatial] as [outer, *spatial, channel], to be read in steps of `stride`.

    An axis of stride s becomes two, [n / s, s]; the last one's second joins the channels. `block` is the box's, of these axes.
    Axes of size 1 may have any stride in torch: here they get one that steps over what lies within.
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


def taken(box: tuple[int, int, int, int], stride: tuple[int, ...], channels: int) -> list[int]:
    """The extents of a box of pixels and channels along the axes of `described`."""
    extents = [box[0]]
    for axis, by in zip(box[4 - len(stride) : 3], stride[:-1], strict=True):
        extents += [axis, 1] if by > 1 else [axis]
    return [*extents, box[3], channels]


def weights(tensor: TensorKey, size: int, block: list[int]) -> Box:
    """The descriptor of w [K, C / G, *kernel] as [K, (*kernel, C / G)].

    Where channels leave a rest in a box of fprop, the box holds the next tap's weights there, for x to multiply by zeros. An
    infinite one becomes a NaN then, in results of its own filter, which it makes infinite anyway.
    """
    (filters, *rest), strides = tensor
    row, unit = math.prod(rest), 16 // size
    return [filters, row], [strides[0] if filters > 1 else ceil_div(row, unit) * unit, 1], block


def fits_int32(call: Call, plan: Plan, *tensors: TensorKey) -> bool:
    """Whether 32-bit offsets reach every element of a tile of these tensors from its first."""
    n, *spatial = step_of(call.problem, plan)
    by = call.problem.with_unit_axes().stride if plan.which == Pass.DGRAD else (1, 1, 1)
    for shape, strides in tensors:
        rank = len(shape) - 2
        reach = sum(b * s * stride for b, s, stride in zip(spatial[-rank:], by[-rank:], strides[2:], strict=True))
        if n * strides[0] + plan.block_n * strides[1] + reach > INT32_MAX:
            return False
    return True


def prepare(
    plan: Plan,
    call: Call,
    a: TensorKey,
    b: TensorKey,
    out: TensorKey,
    bias_stride: int | None,
    fused: FusedKey | None,
    upcast: bool,
) -> Prepared:
    """Descriptors, scalars, constexprs and grid of a launch whose operands already lie as the plan wants them.

    wgrad's is the gather's, but that x comes as boxes.
    """
    which, problem, size = plan.which, call.problem, itemsize(call.dtype)
    if which == Pass.WGRAD:
        step = step_of(problem, plan)
        gathered = gemm.prepare(replace(plan, family="gather", step=step), call, a, b, out, bias_stride, fused, upcast)
        x = described(b, size, taken(step, problem.stride, plan.block_n), problem.stride)
        return replace(gathered, plan=plan, constants=gathered.constants | {"BOXED": True}, boxes=(None, x, None))
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
    descriptors = (
        described(a, size, taken(box, stride, plan.block_k), stride),
        weights(b, size, [plan.block_k, plan.block_n] if dgrad else [plan.block_n, plan.block_k]),
        described(out, size, [*pixels, plan.block_n]) if store else None,
    )
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
    return Prepared(plan, programs, arguments, constants, fused=follows, boxes=descriptors)


def operands_of(prepared: Prepared, *tensors: Any) -> list[Any]:
    """The tensors as the kernel takes them: those that come or leave as boxes as descriptors."""
    return [t if box is None else TensorDescriptor(t, *box) for t, box in zip(tensors, prepared.boxes, strict=True)]


def run(
    prepared: Prepared, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, fused: Fused | None
) -> None:
    """The launch itself."""
    taken_a, taken_b, result = operands_of(prepared, a, b, out)
    if prepared.plan.which == Pass.WGRAD:
        gemm.run(prepared, taken_a, taken_b, bias, result, fused)
    else:
        tma_kernel[(prepared.programs,)](taken_a, taken_b, bias, result, *prepared.arguments, fused=fused, **prepared.constants)
