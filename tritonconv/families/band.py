"""Launches of the band kernels, two per pass: scalars, constexprs and grids, and copies to whole vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton.language as tl

from costmodel.algebra import ceil_div
from costmodel.families import band
from costmodel.problem import Pass, product
from costmodel.tiling import Call, Operand
from tritonconv.families.protocol import Laid, Launcher, named
from tritonconv.kernels.band import Band, band_kernel, table_kernel
from tritonconv.kernels.band_wgrad import diagonal_kernel, diagonal_reduce_kernel
from tritonconv.kernels.epilogue import Fused
from tritonconv.kernels.index import pack
from tritonconv.layout import dense_strides, depthwise_operand
from tritonconv.prepared import INT32_MAX, FusedKey, TensorKey, follow, packed_strides
from tritonconv.steps import Copies, Launch, Step


def fits_int32(shape: band.Shape, *images: TensorKey) -> bool:
    """Whether 32-bit offsets reach every pixel of a channel in all images, including masked pixels beyond, and whether 32 bits
    hold the step to the next channel."""
    beyond = 2 * (max(shape.kernel) + max(map(abs, shape.low)) + 256)
    for extents, (outer, channel, *steps) in images:
        spatial = sum((n + beyond) * step for n, step in zip(extents[2:], steps, strict=True))
        if max((extents[0] + 1) * outer + spatial, channel) > INT32_MAX:
            return False
    return True


def launch(
    plan: band.BandPlan,
    call: Call,
    a: TensorKey,
    b: TensorKey,
    out: TensorKey,
    bias_stride: int | None,
    fused: FusedKey | None,
    upcast: bool,
) -> Launch:
    """The launch: scalars, constexprs and grids of the product and of the second kernel, which runs before it or, for wgrad,
    after it."""
    which, problem = plan.which, call.problem
    shape, tile, counted = band.shape_of(problem, which), band.band_of(plan), band.planned(problem, plan)
    if counted.programs > INT32_MAX:
        raise RuntimeError(
            f"{which} of {problem} needs {counted.programs} programs, more than a CUDA grid of {INT32_MAX} holds"
        )
    if band.copies_result(call):
        out = out[0], vectored_strides(out[0])
        if fused is not None and fused.residual is not None:
            fused = fused._replace(residual=out)
    over = (out,) if fused is None or fused.residual is None else (out, fused.residual)
    x_key, w_key, y_key = (a, b, out) if which != Pass.WGRAD else (b, out, a)
    w = call.b if which != Pass.WGRAD else call.out
    extents = Band(
        *map(
            pack,
            (
                shape.images,
                shape.inputs[0],
                shape.inputs[1] // band.VECTOR,
                shape.outputs[0],
                shape.outputs[1] // band.VECTOR,
                shape.low[0],
                shape.lead // band.VECTOR,
                counted.tiles,
                bias_stride or 0,
            ),
        )
    )
    shared: dict[str, Any] = {
        "KERNEL": shape.kernel,
        "BOX": tile.box,
        "ROWS": tile.rows,
        "GAP": shape.gap,
        "UPCAST": upcast,
    }
    constants = shared | {
        "INDEX": tl.int32 if fits_int32(shape, x_key, y_key, *over) else tl.int64,
        "BLOCK_M": plan.block_m,
        "BLOCK_N": plan.block_n,
        "BLOCK_K": plan.block_k,
        "num_warps": plan.num_warps,
        "num_stages": plan.num_stages,
    }
    workspace = band.workspace(shape, which, tile, plan.split)
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
        after = Step(diagonal_reduce_kernel, programs, reduce, (w_strides, extents, pack(shape.channels)), ("workspace", "out"))
        constants["SPLIT"] = plan.split
        main = Step(diagonal_kernel, counted.programs, constants, (x_strides, y_strides, extents), ("a", "b", "workspace"))
        return Launch(plan, main, after=(after,), workspace=workspace, between=torch.float32)
    chunks = ceil_div(product(workspace[1:]), band.TABLE_BLOCK)
    weights = {"KERNEL": shape.kernel, "FLIP": which == Pass.DGRAD, "W_ALIGN": w.outside, "W_UNIT": w.unit}
    weights |= {"CHUNKS": chunks, "BLOCK": band.TABLE_BLOCK}
    before = Step(table_kernel, shape.channels * chunks, weights, (w_strides,), ("b", "workspace"))
    follows, fused_constants = follow(fused, depthwise_operand)
    constants |= {"HAS_BIAS": bias_stride is not None, "FUSED": fused is not None, **fused_constants}
    tensors = ("a", "workspace", "bias", "out")
    main = Step(band_kernel, counted.programs, constants, (x_strides, y_strides, extents), tensors, fused=True)
    return Launch(plan, main, (before,), workspace=workspace, between=getattr(torch, call.dtype), fused=follows)


def vectored_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a contiguous tensor whose rows are whole vectors of pixels, longer than its last axis if need be."""
    return dense_strides((*shape[:-1], band.rounded_up(shape[-1])), range(len(shape) - 1, -1, -1))


def vectored_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with `vectored_strides`; zeros follow each row."""
    *outer, width = tensor.shape
    rows = tensor.new_empty((*outer, band.rounded_up(width)))
    rows[..., width:].zero_()
    rows[..., :width] = tensor
    return rows[..., :width]


@dataclass(frozen=True)
class Vectored(Copies):
    """Operands are copied to contiguous rows of whole vectors. With `elsewhere` the result, and the tensors of its epilogue,
    are made in such rows too."""

    pack: tuple[str, ...]
    elsewhere: bool = False

    def operands(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return vectored_copy(a) if "a" in self.pack else a, vectored_copy(b) if "b" in self.pack else b

    def result(self, out: torch.Tensor) -> torch.Tensor:
        return out.new_empty((*out.shape[:-1], band.rounded_up(out.shape[-1]))) if self.elsewhere else out

    def beside(self, fused: Fused, result: torch.Tensor) -> Fused:
        if self.elsewhere and fused.residual is not None:
            fused = fused._replace(residual=vectored_copy(fused.residual))
        if self.elsewhere and fused.z is not None:
            fused = fused._replace(z=torch.empty_like(result))
        return fused

    def finish(self, result: torch.Tensor, out: torch.Tensor, used: Fused | None, wanted: Fused | None) -> None:
        if not self.elsewhere:
            return
        out.copy_(result[..., : out.shape[-1]])
        if used is not None and wanted is not None and used.z is not None:
            wanted.z.copy_(used.z[..., : out.shape[-1]])


class BandLauncher(Launcher):
    """The family."""

    name, title = "band", "depthwise on tensor cores, each channel's taps a banded matrix"

    def launch(self, plan: band.BandPlan, *given: Any) -> Launch:
        return launch(plan, *given)

    def laid(self, plan: band.BandPlan, call: Call, a: TensorKey, b: TensorKey, out: TensorKey) -> Laid:
        a = (a[0], vectored_strides(a[0])) if "a" in plan.pack else a
        b = (b[0], vectored_strides(b[0])) if "b" in plan.pack else b
        return Laid(plan, call.problem, a, b, out, plan.pack, Vectored(plan.pack, band.copies_result(call)))

    def words(self, call: Call, plan: band.BandPlan) -> list[str]:
        counted, tile, wgrad = band.planned(call.problem, plan), band.band_of(plan), plan.which == Pass.WGRAD
        box, window = f"{tile.box[0]} x {tile.box[1]}", f"{tile.rows} x {tile.columns}"
        trips = (
            f"{call.problem.groups} x {counted.tiles * counted.splits} programs of {counted.trips / counted.programs:.3g} trips"
        )
        if wgrad:
            how = f"blocks of {box} pixels of dy by {window} pixels of x, {tile.blocks} images per trip"
        else:
            how = f"{tile.blocks} blocks of {box} outputs, {window} pixels of a window per trip"
        lines = [f"  {how}, {plan.num_warps} warps, {plan.num_stages} stages; {trips} on average"]
        if wgrad:
            lines.append(f"  diagonals summed in the kernel, {counted.splits} parts of each added in a fixed order")
        if plan.pack:
            lines.append(f"  {named(plan.pack, plan.which)} copied to contiguous rows of whole vectors first")
        if band.copies_result(call):
            lines.append("  the result is made in contiguous rows of whole vectors, then copied to its place")
        return lines


LAUNCHERS = (BandLauncher(),)
