"""Launches of the TMA kernels: what a forced plan must be, descriptors, arguments, grid, the launch.

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
from costmodel.device import Device
from costmodel.problem import Pass
from costmodel.tiling import MAX_ALIGN, Call, Plan, grid, ignored, itemsize, pixel_box, stores_boxes
from costmodel.tma import serves, shape_error
from tritonconv.kernels.epilogue import Fused
from tritonconv.kernels.index import Sizes, pack
from tritonconv.kernels.tma import tma_kernel
from tritonconv.layout import operand
from tritonconv.prepared import INT32_MAX, Box, FusedKey, Prepared, TensorKey, accumulator, packed_strides


def checked(call: Call, plan: Plan, device: Device) -> Plan:
    """A forced plan with what it leaves open filled in. Raises ValueError where it cannot run the call."""
    problem, limit = call.problem, device.shared_per_block
    if plan.merge < 1 or problem.groups % plan.merge:
        raise ValueError(f"plan {plan}: merge must divide the {problem.groups} groups, got {plan.merge}")
    if reason := ignored(plan) or shape_error(call, plan) or serves(call, plan, device.capability):
        raise ValueError(f"plan {plan} does not serve {problem}: {reason}")
    shared = plan.num_stages * (plan.block_m + plan.block_n) * plan.block_k * itemsize(call.dtype)
    if shared > limit:
        raise ValueError(f"plan {plan} needs about {shared} bytes of shared memory, the device has {limit}")
    return replace(plan, step=plan.step or pixel_box(problem, plan.which, plan.block_m))


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
    n, *spatial = plan.step or pixel_box(call.problem, plan.which, plan.block_m)
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
    """Descriptors, scalars, constexprs and grid of a launch whose operands already lie as the plan wants them."""
    which, problem, size = plan.which, call.problem, itemsize(call.dtype)
    full, rank, dgrad = problem.with_unit_axes(), problem.rank, which == Pass.DGRAD
    c_align, k_align = (math.gcd(n, MAX_ALIGN) for n in (problem.channels_per_group, problem.filters_per_group))
    box = plan.step or pixel_box(problem, which, plan.block_m)
    pixels = [box[0], *box[4 - rank :]]
    m_tiles, n_tiles, repeats = grid(problem, plan)
    programs = m_tiles * n_tiles * repeats
    if programs > INT32_MAX:
        raise RuntimeError(f"{which} of {problem} needs {programs} programs, more than a CUDA grid of {INT32_MAX} holds")
    stride = (1,) * rank if dgrad else problem.stride
    taken = [box[0]]
    for axis, by in zip(box[4 - rank : 3], stride[:-1], strict=True):
        taken += [axis, 1] if by > 1 else [axis]
    taken += [box[3], plan.block_k]
    store = stores_boxes(call)
    descriptors = (
        described(a, size, taken, stride),
        weights(b, size, [plan.block_k, plan.block_n] if dgrad else [plan.block_n, plan.block_k]),
        described(out, size, [*pixels, plan.block_n]) if store else None,
    )
    residual = None if fused is None else fused.residual
    laid_over = (out,) if residual is None else (out, residual)
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
        "INDEX": tl.int32 if fits_int32(call, plan, *laid_over) else tl.int64,
        "UPCAST": upcast,
        "BLOCK_M": plan.block_m,
        "BLOCK_N": plan.block_n,
        "BLOCK_K": plan.block_k,
        "GROUP_M": plan.group_m,
        "num_warps": plan.num_warps,
        "num_stages": plan.num_stages,
    }
    follows: tuple[Any, ...] = ()
    if fused is not None:
        constants |= {"FUSED": True, "ACTIVATION": fused.activation, "SLOPE": fused.slope}
        follows = (pack(fused.scale or 0), pack(fused.shift or 0), None)
        if residual is not None:
            lies = operand(*residual, problem.groups, 1)
            constants |= {"R_ALIGN": lies.align, "R_UNIT": lies.unit}
            follows = (*follows[:2], packed_strides(residual, lies))
    arguments = (packed_strides(out, call.out), sizes, pack(problem.groups), pack(a[1][-1]))
    return Prepared(plan, programs, arguments, constants, fused=follows, boxes=descriptors)


def operands_of(prepared: Prepared, *tensors: Any) -> list[Any]:
    """The tensors as the kernel takes them: those that come or leave as boxes as descriptors."""
    return [t if box is None else TensorDescriptor(t, *box) for t, box in zip(tensors, prepared.boxes, strict=True)]


def run(
    prepared: Prepared, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, fused: Fused | None
) -> None:
    """The launch itself."""
    x, w, y = operands_of(prepared, a, b, out)
    tma_kernel[(prepared.programs,)](x, w, bias, y, *prepared.arguments, fused=fused, **prepared.constants)
