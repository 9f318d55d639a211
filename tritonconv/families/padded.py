"""Launches of the family "padded": the kernels of "gather" with sources found by index arithmetic, and dgrad with its fold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import triton.language as tl

from costmodel.families.matrix import MatrixPlan
from costmodel.families.padded import gathering, workspace_shape, written_out
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Call
from tritonconv.families import gemm
from tritonconv.families.gemm import fits_int32 as fits_int32
from tritonconv.families.matrix import phases
from tritonconv.families.written import fold, modes
from tritonconv.kernels.padded import padded_fprop_kernel, padded_wgrad_kernel
from tritonconv.layout import channels_last_strides
from tritonconv.prepared import INT32_MAX, FusedKey, TensorKey, wide
from tritonconv.steps import Launch, Step

KERNELS = {Pass.FPROP: padded_fprop_kernel, Pass.WGRAD: padded_wgrad_kernel}
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
        padded = shape, channels_last_strides(shape)
        main = gemm.sums(gathering(plan), inner, a, b, padded, None, None, {}, upcast)
        main = replace(main, tensors=("a", "b", "", "workspace"), fused=False)
        last = fold(padded, out, call.problem, call.dtype, bias_stride, upcast)
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
