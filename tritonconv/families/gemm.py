"""Launches of the implicit GEMM kernels ("gather" and "patch"): arguments, grid, words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import triton.language as tl

from costmodel.algebra import ceil_div, product
from costmodel.families.gemm import MENU, GatherPlan
from costmodel.families.matrix import MatrixPlan, extent, grid, row_align, trips, vector_widths
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import MAX_ALIGN, MAX_BIT_TAPS, Call, Operand, Tile, itemsize
from tritonconv.families.matrix import described, phases, recast
from tritonconv.families.protocol import OPERANDS, Laid, Launcher
from tritonconv.kernels.dgrad import dgrad_kernel
from tritonconv.kernels.fprop import fprop_kernel
from tritonconv.kernels.index import Sizes, pack
from tritonconv.kernels.reduce import Results, Shared, reduce_kernel
from tritonconv.kernels.wgrad import wgrad_kernel
from tritonconv.layout import operand
from tritonconv.prepared import (
    INT32_MAX,
    FusedKey,
    TensorKey,
    accumulator,
    channels_fit_int32,
    follow,
    packed_strides,
    wide,
)
from tritonconv.steps import Launch, Step

#: Which of the three tensors of a pass (a, b, the result) holds the weights.
WEIGHT = {Pass.FPROP: 1, Pass.DGRAD: 1, Pass.WGRAD: 2}
#: Bytes of one share that a program of a reduction's second stage reads (16 per thread, so that the lanes of a warp leave no
#: gap), and the most channels that these bytes are of. Where neighbouring pixels are contiguous in the result, a program takes
#: only as many channels as whole 32-byte sectors need.
REDUCE_BYTES, REDUCE_CHANNELS = 2048, 128
REDUCE_PLANES = {False: 32, True: 8}  # whether channels are a multiple of 8, and pixels more than a filter's few taps
#: A tile that is at least as large as any of the menu along every axis.
LARGEST = Tile(*map(max, zip(*itertools.chain(*MENU.values()), strict=True)))


def fits_int32(problem: ConvProblem, plan: MatrixPlan, *tensors: TensorKey) -> bool:
    """Whether 32-bit offsets reach everything that a program touches from its 64-bit base pointer.

    `tensors` are a, b, the result, and the tensors of the epilogue. A program walks over all filters of a group and a few
    images."""
    which, full = plan.which, problem.with_unit_axes()
    pixels = (
        product(full.output_size)
        if which == Pass.FPROP
        else product(ceil_div(n, s) for n, s in zip(full.input_size, full.stride, strict=True))
    )
    images = problem.batch if which == Pass.WGRAD else min(problem.batch, plan.block_m // max(1, pixels) + 2)
    if max(pixels, product(full.output_size)) + plan.block_m > INT32_MAX:
        return False
    slack = max((*problem.effective_kernel, *problem.stride)) + max(abs(p) for pair in problem.padding for p in pair)
    if max(problem.input_size) + 2 * slack > INT32_MAX:  # coordinates, also along an expanded axis, which has no stride
        return False
    filters = problem.filters_per_group + max(plan.block_m, plan.block_n, plan.block_k)
    for i, (shape, strides) in enumerate(tensors):
        outer = filters if i == WEIGHT[which] else max(images, 1)
        spatial = sum((n + 2 * slack) * stride for n, stride in zip(shape[2:], strides[2:], strict=True))
        if spatial + (shape[1] + plan.block_n + plan.block_k) * strides[1] + outer * strides[0] > INT32_MAX:
            return False
    return True


def launch(
    plan: MatrixPlan,
    call: Call,
    a: TensorKey,
    b: TensorKey,
    out: TensorKey,
    bias_stride: int | None,
    fused: FusedKey | None,
    upcast: bool,
    kernel: Callable[..., Step] | None = None,
) -> Launch:
    """Scalars, constexprs and grids of a launch, for operands in the layout that the plan needs. `kernel` makes the step that
    multiplies; None is `sums`.

    Where programs share a reduction, their sums go to a channels-last workspace, and a second kernel adds them and runs the
    epilogue.
    """
    make_step = kernel or sums
    if plan.split == 1:
        follows, constants = follow(fused, lambda shape, strides: operand(shape, strides, call.problem.groups, 1))
        return Launch(plan, make_step(plan, call, a, b, out, bias_stride, fused, constants, upcast), fused=follows)
    main = make_step(plan, call, a, b, out, None, None, {}, upcast)
    steps = call.problem.with_unit_axes().stride if plan.which == Pass.DGRAD else (1, 1, 1)
    follows, reduce = reduction(plan.which, plan.split, out, max(4, itemsize(call.dtype)), steps, bias_stride, fused, upcast)
    workspace = (plan.split, *phased(out[0], steps))
    return Launch(plan, main, after=(reduce,), workspace=workspace, between=wide(getattr(torch, call.dtype)), fused=follows)


def phased(shape: tuple[int, ...], steps: tuple[int, ...]) -> tuple[int, ...]:
    """(phases, pixels per phase, channels) of a result. The phases are its pixels' residues modulo `steps`."""
    spatial = (*(1,) * (5 - len(shape)), *shape[2:])
    return product(steps), shape[0] * product(ceil_div(n, s) for n, s in zip(spatial, steps, strict=True)), shape[1]


def sums(
    plan: MatrixPlan,
    call: Call,
    a: TensorKey,
    b: TensorKey,
    out: TensorKey,
    bias_stride: int | None,
    fused: FusedKey | None,
    fused_constants: dict[str, Any],
    upcast: bool,
) -> Step:
    """The kernel of the implicit GEMM."""
    which, problem = plan.which, call.problem
    in_a, in_b, in_out = call.a, call.b, call.out
    full = problem.with_unit_axes()
    c, k = problem.channels_per_group, problem.filters_per_group
    c_align, k_align = math.gcd(c, MAX_ALIGN), math.gcd(k, MAX_ALIGN)
    residual = None if fused is None else fused.residual
    small = fits_int32(problem, plan, a, b, out, *(() if residual is None else (residual,)))
    small = small and channels_fit_int32(out, bias_stride, fused)
    m_tiles, n_tiles, repeats = grid(problem, plan)
    programs = m_tiles * n_tiles * repeats
    if programs > INT32_MAX:
        raise RuntimeError(f"{which} of {problem} needs {programs} programs, more than a CUDA grid of {INT32_MAX} holds")
    patch = plan.patches
    row = row_align(full, which) if 4 in (in_a.unit, in_out.unit) else 1
    w_align = row if which == Pass.DGRAD else 1
    q_align = row if which == Pass.FPROP or patch else 1
    sizes = Sizes(
        *map(
            pack,
            (
                problem.batch,
                *full.input_size[:2],
                full.input_size[2] // w_align,
                *full.output_size[:2],
                full.output_size[2] // q_align,
                c // c_align,
                k // k_align,
                *(low for low, _ in full.padding),
                bias_stride or 0,
                int(trips(problem, plan)) if which == Pass.WGRAD else m_tiles,
            ),
        )
    )
    strides = tuple(packed_strides(t, d) for t, d in ((a, in_a), (b, in_b), (out, in_out)))
    n_columns = extent(problem, plan.which, patch).n
    constants: dict[str, Any] = {
        "KERNEL": full.kernel_size,
        "STRIDE": full.stride,
        "DILATION": full.dilation,
        "RANK": max(problem.rank, 1),
        "PATCH": patch,
        "C_ALIGN": c_align,
        "K_ALIGN": k_align,
        "EVEN_N": n_columns % plan.block_n == 0,
        "ACC": accumulator(call.dtype),
        "PRECISION": "tf32x3" if plan.x3 else call.precision if call.dtype == "float32" else "ieee",
        "INDEX": tl.int32 if small else tl.int64,
        "UPCAST": upcast,
        "BLOCK_M": plan.block_m,
        "BLOCK_N": plan.block_n,
        "num_warps": plan.num_warps,
        "num_stages": plan.num_stages,
    }

    def name(prefix: str, described: Operand) -> None:
        constants[f"{prefix}_ALIGN"] = described.align
        constants[f"{prefix}_UNIT"] = described.unit

    if fused is not None:
        constants |= {"FUSED": True, **fused_constants}
    tensors, shared = (("a", "b", "", "workspace") if plan.split > 1 else ("a", "b", "bias", "out")), None
    if plan.split > 1 and which != Pass.WGRAD:
        blocks = ceil_div(extent(problem, which, patch).depth, plan.block_k)
        _, pixels, _ = phased(out[0], full.stride if which == Pass.DGRAD else (1, 1, 1))
        shared = Shared(*map(pack, (problem.groups, ceil_div(blocks, plan.split), pixels)))
    if which == Pass.FPROP:
        for prefix, described in (("X", in_a), ("W", in_b), ("Y", in_out)):
            name(prefix, described)
        depth = c * problem.taps if patch else c
        bounds = "none" if patch or not problem.needs_bounds else "bits" if problem.taps <= MAX_BIT_TAPS else "range"
        constants |= {
            "BOUNDS": bounds,
            "ROW_ALIGN": row,
            "EVEN_K": depth % plan.block_k == 0,
            "HAS_BIAS": bias_stride is not None,
            "BLOCK_K": plan.block_k,
            "GROUP_M": plan.group_m,
        }
        return Step(fprop_kernel, programs, constants, (*strides, sizes, shared), tensors, fused=plan.split == 1)
    if which == Pass.DGRAD:
        for prefix, described in (("DY", in_a), ("W", in_b), ("DX", in_out)):
            name(prefix, described)
        axes = [full.axis_phases(i) for i in range(3)]
        counts = tuple(max(phase.taps for phase in axis) for axis in axes)
        empty = not patch and any(phase.taps == 0 for axis in axes for phase in axis)
        constants |= {
            "STEP": tuple(axis[0].step for axis in axes),
            "DELTA": tuple(axis[0].delta for axis in axes),
            "COUNTS": counts,
            "EMPTY": empty,
            "BOUNDS": "bits" if product(counts) <= MAX_BIT_TAPS else "range",
            "W_FOLD": in_b.unit == 1,
            "ROW_ALIGN": row,
            "EVEN_K": k % plan.block_k == 0,
            "EVEN_N": constants["EVEN_N"] and not empty,
            "HAS_BIAS": bias_stride is not None,
            "BLOCK_K": plan.block_k,
            "GROUP_M": plan.group_m,
        }
        arguments = (*strides, sizes, pack(problem.groups), shared)
        return Step(dgrad_kernel, programs, constants, arguments, tensors, fused=plan.split == 1)
    for prefix, described in (("DY", in_a), ("X", in_b), ("DW", in_out)):
        name(prefix, described)
    constants |= {
        "BOUNDS": "none" if patch or not problem.needs_bounds else "range",
        "X_FOLD": in_b.unit == 1,
        "EVEN_M": k % plan.block_m == 0,
        "SPLIT": plan.split > 1,
        "STEP": plan.step,
    }
    target = "workspace" if plan.split > 1 else "out"
    return Step(wgrad_kernel, programs, constants, (*strides, sizes, pack(problem.groups)), ("a", "b", target))


def reduction(
    which: Pass,
    split: int,
    out: TensorKey,
    size: int,
    steps: tuple[int, ...],
    bias_stride: int | None,
    fused: FusedKey | None,
    upcast: bool,
) -> tuple[tuple[Any, ...], Step]:
    """(the last fields of `Fused`, the step of a kernel). The kernel adds up `split` partial sums per element of `out`, of
    `size` bytes each, whose pixels are grouped by their residues modulo `steps`, and runs the epilogue."""
    (images, channels, *spatial), described = out[0], operand(*out, 1, 1)
    phases, pixels, _ = phased(out[0], steps)
    align = math.gcd(channels, MAX_ALIGN)
    limit = REDUCE_CHANNELS if described.unit == 1 else REDUCE_PLANES[align % 8 == 0 and which != Pass.WGRAD]
    block_n = min(limit, 1 << (channels - 1).bit_length())
    block_m = REDUCE_BYTES // size // block_n
    fused_arguments, constants = follow(fused, lambda shape, strides: operand(shape, strides, 1, 1))
    sizes = (images, channels // align, *(1,) * (3 - len(spatial)), *spatial, bias_stride or 0, split)
    constants |= {
        "OUT_ALIGN": described.align,
        "OUT_UNIT": described.unit,
        "C_ALIGN": align,
        "HAS_BIAS": bias_stride is not None,
        "STRIDE": steps,
        "RANK": max(len(spatial), 1),
        "UPCAST": upcast,
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
    }
    if fused is not None:
        constants["FUSED"] = True
    programs = ceil_div(pixels, block_m) * phases * ceil_div(channels, block_n)
    arguments = (packed_strides(out, described), Results(*map(pack, sizes)))
    return fused_arguments, Step(reduce_kernel, programs, constants, arguments, ("workspace", "bias", "out"), fused=True)


class Gemm(Launcher):
    """The launcher of both families."""

    def __init__(self, name: str, title: str, patches: bool) -> None:
        self.name, self.title, self.patches = name, title, patches

    def launch(self, plan: MatrixPlan, *given: Any) -> Launch:
        return launch(plan, *given)

    def laid(self, plan: MatrixPlan, call: Call, a: TensorKey, b: TensorKey, out: TensorKey) -> Laid:
        return recast(plan, call, a, b, out)

    def is_far(self, problem: ConvProblem, which: Pass, a: TensorKey, b: TensorKey, out: TensorKey) -> bool:
        return not self.patches and not fits_int32(problem, GatherPlan(which, self.name, *LARGEST), a, b, out)

    def launches(self, constants: Mapping[str, Any]) -> bool:
        return bool(constants.get("PATCH")) == self.patches and not constants.get("BOXED")

    def remark(self, call: Call, plan: MatrixPlan) -> str:
        return "" if plan.patches else phases(call)

    def words(self, call: Call, plan: MatrixPlan) -> list[str]:
        widths = zip(OPERANDS[call.which], vector_widths(call, plan), strict=True)
        loads = "  elements per load: " + ", ".join(f"{name} {width}" for name, width in widths)
        return described(call, plan, loads)

    def fused_in(self, plan: MatrixPlan) -> str:
        return "the kernel that adds up the partial sums" if plan.split > 1 else "the same kernel"


LAUNCHERS = (
    Gemm("gather", "implicit GEMM, a gather over the taps", False),
    Gemm("patch", "plain GEMM, the windows tile the input", True),
)
