"""Launches of the band kernels: scalars, constexprs and grids, and the launches themselves, two to a pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton.language as tl

from costmodel import band
from costmodel.algebra import ceil_div
from costmodel.problem import Pass, product
from costmodel.tiling import Call, Operand, Plan
from tritonconv.kernels.band import Band, band_kernel, table_kernel
from tritonconv.kernels.band_wgrad import diagonal_kernel, diagonal_reduce_kernel
from tritonconv.kernels.epilogue import Fused
from tritonconv.kernels.index import pack
from tritonconv.layout import depthwise_operand, vectored_copy, vectored_strides
from tritonconv.prepared import INT32_MAX, FusedKey, Prepared, TensorKey, follow, packed_strides


def fits_int32(of: band.Shape, *images: TensorKey) -> bool:
    """Whether 32-bit offsets reach every pixel of a channel in all images, masked ones beyond them included, and 32 bits hold
    the step to the next channel."""
    beyond = 2 * (max(of.kernel) + max(map(abs, of.low)) + 256)
    for shape, (outer, channel, *steps) in images:
        spatial = sum((n + beyond) * step for n, step in zip(shape[2:], steps, strict=True))
        if max((shape[0] + 1) * outer + spatial, channel) > INT32_MAX:
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
    """Scalars, constexprs and grids: of the product, and in `reduce` of the kernel before it or, for wgrad, after it."""
    which, problem = plan.which, call.problem
    of, tile, launch = band.shape_of(problem, which), band.band_of(plan), band.planned(problem, plan)
    if launch.programs > INT32_MAX:
        raise RuntimeError(f"{which} of {problem} needs {launch.programs} programs, more than a CUDA grid of {INT32_MAX} holds")
    result: tuple[int, ...] = ()
    if band.copies_result(call):
        out = out[0], vectored_strides(out[0])
        result = (*out[0][:-1], band.rounded_up(out[0][-1]))
        if fused is not None and fused.residual is not None:
            fused = fused._replace(residual=out)
    over = (out,) if fused is None or fused.residual is None else (out, fused.residual)
    x_key, w_key, y_key = (a, b, out) if which != Pass.WGRAD else (b, out, a)
    w = call.b if which != Pass.WGRAD else call.out
    extents = Band(
        *map(
            pack,
            (
                of.images,
                of.inputs[0],
                of.inputs[1] // band.VECTOR,
                of.outputs[0],
                of.outputs[1] // band.VECTOR,
                of.low[0],
                of.lead // band.VECTOR,
                launch.tiles,
                bias_stride or 0,
            ),
        )
    )
    shared: dict[str, Any] = {
        "KERNEL": of.kernel,
        "BOX": tile.box,
        "ROWS": tile.rows,
        "GAP": of.gap,
        "UPCAST": upcast,
    }
    constants = shared | {
        "INDEX": tl.int32 if fits_int32(of, x_key, y_key, *over) else tl.int64,
        "BLOCK_M": plan.block_m,
        "BLOCK_N": plan.block_n,
        "BLOCK_K": plan.block_k,
        "num_warps": plan.num_warps,
        "num_stages": plan.num_stages,
    }
    workspace = band.workspace(of, which, tile, plan.split)
    vectors = Operand(4, band.VECTOR, band.VECTOR)
    x_strides, y_strides = packed_strides(x_key, vectors), packed_strides(y_key, vectors)
    w_strides = packed_strides(w_key, replace(w, align=w.outside))
    if which == Pass.WGRAD:
        reduce = shared | {
            "COLUMNS": tile.columns,
            "DW_ALIGN": w.outside,
            "DW_UNIT": w.unit,
            "SPLIT": plan.split,
            "BLOCK": band.REDUCE_BLOCK,
        }
        programs = ceil_div(product(problem.weight_shape), band.REDUCE_BLOCK)
        after = Prepared(plan, programs, (w_strides, extents, pack(of.channels)), reduce)
        constants["SPLIT"] = plan.split
        return Prepared(plan, launch.programs, (x_strides, y_strides, extents), constants, workspace, after)
    chunks = ceil_div(product(workspace[1:]), band.TABLE_BLOCK)
    weights = {"KERNEL": of.kernel, "FLIP": which == Pass.DGRAD, "W_ALIGN": w.outside, "W_UNIT": w.unit}
    before = Prepared(plan, of.channels * chunks, (w_strides,), weights | {"CHUNKS": chunks, "BLOCK": band.TABLE_BLOCK})
    follows, fused_constants = follow(fused, depthwise_operand)
    constants |= {"HAS_BIAS": bias_stride is not None, "FUSED": fused is not None, **fused_constants}
    arguments = x_strides, y_strides, extents
    return Prepared(plan, launch.programs, arguments, constants, workspace, before, follows, result=result)


def kernel_of(plan: Plan) -> Any:
    """The kernel of a plan that multiplies."""
    return diagonal_kernel if plan.which == Pass.WGRAD else band_kernel


def run(
    prepared: Prepared, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, fused: Fused | None
) -> None:
    """Two launches, and copies of results whose rows are no vectors."""
    assert prepared.reduce is not None
    other, programs, device = prepared.reduce, (prepared.programs,), out.device
    if prepared.plan.which == Pass.WGRAD:
        parts = torch.empty(prepared.workspace, dtype=torch.float32, device=device)
        diagonal_kernel[programs](a, b, parts, *prepared.arguments, **prepared.constants)
        diagonal_reduce_kernel[(other.programs,)](parts, out, *other.arguments, **other.constants)
        return
    table = torch.empty(prepared.workspace, dtype=b.dtype, device=device)
    table_kernel[(other.programs,)](b, table, *other.arguments, **other.constants)
    if not prepared.result:
        band_kernel[programs](a, table, bias, out, *prepared.arguments, fused=fused, **prepared.constants)
        return
    result, asked = torch.empty(prepared.result, dtype=out.dtype, device=device), fused
    if fused is not None and fused.residual is not None:
        fused = fused._replace(residual=vectored_copy(fused.residual))
    if fused is not None and fused.z is not None:
        fused = fused._replace(z=torch.empty_like(result))
    band_kernel[programs](a, table, bias, result, *prepared.arguments, fused=fused, **prepared.constants)
    out.copy_(result[..., : out.shape[-1]])
    if asked is not None and fused is not None and fused.z is not None:
        asked.z.copy_(fused.z[..., : out.shape[-1]])
