"""Launches of the family "padded": the kernels of "gather" with sources found by index arithmetic, and dgrad with its fold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import triton.language as tl

from costmodel.algebra import ceil_div
from costmodel.families.matrix import MatrixPlan
from costmodel.families.padded import gathering, workspace_shape, written_out
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import MAX_ALIGN, Call, itemsize
from tritonconv.families import gemm
from tritonconv.families.gemm import REDUCE_BYTES, REDUCE_CHANNELS, REDUCE_PLANES
from tritonconv.families.gemm import fits_int32 as fits_int32
from tritonconv.families.matrix import phases
from tritonconv.kernels.index import pack
from tritonconv.kernels.padded import padded_fprop_kernel, padded_wgrad_kernel
from tritonconv.kernels.padded_fold import padded_fold_kernel
from tritonconv.kernels.reduce import Results
from tritonconv.layout import channels_last_strides, operand
from tritonconv.prepared import INT32_MAX, FusedKey, TensorKey, packed_strides, wide
from tritonconv.steps import Launch, Step

KERNELS = {Pass.FPROP: padded_fprop_kernel, Pass.WGRAD: padded_wgrad_kernel}
#: Registers of a thread of the fold. Left to itself ptxas takes 32 on sm_100, where it then spilled 14 times.
FOLD_REGISTERS = 128
#: Constants of the kernels of "gather" that those of this family do not have: they have no plain product, and find what falls
#: outside the image by the mode of each axis.
DROPPED = ("PATCH", "BOUNDS", "X_FOLD")


def sums(plan: MatrixPlan, call: Call, *given: Any) -> Step:
    """The kernel of fprop or wgrad."""
    step = gemm.sums(plan, call, *given)
    constants = {name: value for name, value in step.constants.items() if name not in DROPPED} | modes(call.problem)
    if call.prologue is not None:
        constants |= prologue_constants(plan, call)
        if constants["INDEX"] == tl.int32 and not values_fit_int32(plan, call.problem):
            constants["INDEX"] = tl.int64
    return replace(step, kernel=KERNELS[plan.which], constants=constants, prologue=call.prologue is not None)


def prologue_constants(plan: MatrixPlan, call: Call) -> dict[str, Any]:
    """The constants of a prologue."""
    problem, prologue = call.problem, call.prologue
    assert prologue is not None
    spans = prologue.spans(plan.block_m, math.prod(problem.output_size), problem.batch)
    return {
        "PROLOGUE": True,
        "X_ACTIVATION": prologue.activation,
        "X_SLOPE": prologue.slope,
        "ONE_IMAGE": not spans,
    }


def values_fit_int32(plan: MatrixPlan, problem: ConvProblem) -> bool:
    """Whether 32-bit offsets reach the values per pixel of all images that a tile holds; x may be expanded, they are dense."""
    images = min(problem.batch, plan.block_m // max(1, math.prod(problem.output_size)) + 2)
    return images * math.prod(problem.input_size) <= INT32_MAX


def modes(problem: ConvProblem) -> dict[str, str]:
    """The constants that say what stands in the padding of each of three axes."""
    return dict(zip(("MODE_D", "MODE_H", "MODE_W"), problem.with_unit_axes().modes, strict=True))


def written_ends(problem: ConvProblem) -> tuple[tuple[int, int], ...]:
    """(low, high) of the padding that is written out, of three axes: none where it holds zeros."""
    full = problem.with_unit_axes()
    return tuple((0, 0) if mode == "zeros" else pair for mode, pair in zip(full.modes, full.padding, strict=True))


def fold(call: Call, out: TensorKey, bias_stride: int | None, upcast: bool) -> Step:
    """The kernel that adds up the images of each pixel of dx."""
    (images, channels, *spatial), described = out[0], operand(*out, 1, 1)
    align = math.gcd(channels, MAX_ALIGN)
    most = REDUCE_CHANNELS if described.unit == 1 else REDUCE_PLANES[align % 8 == 0]
    block_n = min(most, 1 << (channels - 1).bit_length())
    block_m = REDUCE_BYTES // max(4, itemsize(call.dtype)) // block_n
    sizes = (images, channels // align, *(1,) * (3 - len(spatial)), *spatial, bias_stride or 0, 1)
    low, high = zip(*written_ends(call.problem), strict=True)
    constants = {
        "DX_ALIGN": described.align,
        "DX_UNIT": described.unit,
        "C_ALIGN": align,
        "HAS_BIAS": bias_stride is not None,
        **modes(call.problem),
        "RANK": len(spatial),
        "INDEX": tl.int32 if math.prod(workspace_shape(call.problem)[1:-1]) + block_m <= INT32_MAX else tl.int64,
        "UPCAST": upcast,
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "maxnreg": FOLD_REGISTERS,
    }
    programs = ceil_div(images * math.prod(spatial), block_m) * ceil_div(channels, block_n)
    arguments = (packed_strides(out, described), Results(*map(pack, sizes)), tuple(map(pack, low)), tuple(map(pack, high)))
    return Step(padded_fold_kernel, programs, constants, arguments, ("workspace", "bias", "out"))


class Padded(gemm.Gemm):
    """The launcher."""

    def is_far(self, problem: ConvProblem, which: Pass, a: TensorKey, b: TensorKey, out: TensorKey) -> bool:
        return False  # "gather" has tiles as large and answers for this family too

    def launch(
        self,
        plan: MatrixPlan,
        call: Call,
        a: TensorKey,
        b: TensorKey,
        out: TensorKey,
        bias_stride: int | None,
        fused: FusedKey | None,
        upcast: bool,
    ) -> Launch:
        if plan.which != Pass.DGRAD:
            return gemm.launch(plan, call, a, b, out, bias_stride, fused, upcast, sums)
        inner = written_out(call)
        shape = inner.problem.input_shape
        made = shape, channels_last_strides(shape)
        main = gemm.sums(gathering(plan), inner, a, b, made, None, None, {}, upcast)
        main = replace(main, tensors=("a", "b", "", "workspace"), fused=False)
        last = fold(call, out, bias_stride, upcast)
        return Launch(
            plan, main, after=(last,), workspace=workspace_shape(call.problem), between=wide(getattr(torch, call.dtype))
        )

    def launches(self, constants: Mapping[str, Any]) -> bool:
        return "MODE_W" in constants

    def remark(self, call: Call, plan: MatrixPlan) -> str:
        if call.which != Pass.DGRAD:
            if not call.problem.padding_mode:
                return " whose sources index arithmetic finds"
            return f" whose sources index arithmetic finds, padding {' x '.join(call.problem.modes)}"
        return f" of the input with its padding written out{phases(written_out(call))}, then a sum of each pixel's images"

    def words(self, call: Call, plan: MatrixPlan) -> list[str]:
        if call.which != Pass.DGRAD:
            return super().words(call, plan)
        shape = " x ".join(map(str, workspace_shape(call.problem)))
        return [
            *super().words(written_out(call), gathering(plan)),
            f"  workspace {shape} in {wide(getattr(torch, call.dtype))}",
        ]


LAUNCHERS = (Padded("padded", "implicit GEMM, a gather over the taps", False),)
