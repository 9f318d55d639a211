"""What the families of matrix products share: how a call is recast and copied for them, and the words for their plans."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from costmodel.families.matrix import MatrixPlan, grid, seen_problem, trips
from costmodel.problem import ConvProblem, Pass
from costmodel.recast import fold_width
from costmodel.tiling import Call
from tritonconv.families.protocol import Laid, named
from tritonconv.kernels.epilogue import Fused
from tritonconv.layout import (
    allocate_channels_last,
    block_diagonal,
    channels_last_copy,
    channels_last_strides,
    diagonal_blocks,
    folded_key,
    folded_weights,
    padded_columns,
    unfolded_weights,
)
from tritonconv.prepared import TensorKey
from tritonconv.steps import Copies


def recasts_weights(plan: MatrixPlan) -> bool:
    """Whether the kernel's weights are not the call's: block-diagonal or folded."""
    return plan.merge > 1 or plan.fold


@dataclass(frozen=True)
class Recast(Copies):
    """Weights are laid together or folded, columns written out, and operands copied to channels-last."""

    plan: MatrixPlan
    problem: ConvProblem

    def operands(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        plan, problem, wgrad = self.plan, self.problem, self.plan.which == Pass.WGRAD
        if recasts_weights(plan) and not wgrad:
            b = folded_weights(b, problem) if plan.fold else block_diagonal(b, problem.groups, plan.merge)
        if plan.fold:
            a, b = (a, padded_columns(b, problem)) if wgrad else (padded_columns(a, problem), b)
        a = channels_last_copy(a) if "a" in plan.pack else a
        return a, channels_last_copy(b) if "b" in plan.pack else b

    def result(self, out: torch.Tensor) -> torch.Tensor:
        if self.plan.which == Pass.WGRAD and recasts_weights(self.plan):
            return allocate_channels_last(seen_problem(self.problem, self.plan).weight_shape, out)
        return out

    def finish(self, result: torch.Tensor, out: torch.Tensor, used: Fused | None, wanted: Fused | None) -> None:
        if result is out:
            return
        if self.plan.fold:
            out.copy_(unfolded_weights(result, self.problem))
            return
        blocks = diagonal_blocks(result, self.problem.groups, self.plan.merge)
        out.unflatten(0, blocks.shape[:3]).copy_(blocks)


def recast(plan: MatrixPlan, call: Call, a: TensorKey, b: TensorKey, out: TensorKey) -> Laid:
    """The call as the kernel sees it, with its copies."""
    problem, wgrad, weights = call.problem, call.which == Pass.WGRAD, recasts_weights(plan)
    if plan.fold:
        a, b = (a, folded_key(problem)) if wgrad else (folded_key(problem), b)
    if weights:
        problem = seen_problem(problem, plan)
        weight = (problem.weight_shape, channels_last_strides(problem.weight_shape))
        b, out = (b, weight) if wgrad else (weight, out)
    a = (a[0], channels_last_strides(a[0])) if "a" in plan.pack else a
    b = (b[0], channels_last_strides(b[0])) if "b" in plan.pack else b
    copied = (*plan.pack, "b") if weights and not wgrad else plan.pack
    plain = replace(plan, merge=1)
    plain = replace(plain, fold=False) if plan.fold else plain
    copies = Recast(plan, call.problem) if weights or plan.pack else Copies()
    return Laid(plain, problem, a, b, out, copied, copies)


def phases(call: Call) -> str:
    """Words on dgrad's stride phases."""
    if call.which != Pass.DGRAD:
        return ""
    parts = call.problem.phases()
    empty = sum(phase.taps == 0 for phase in parts)
    text = f", {len(parts)} stride phase{'s' if len(parts) > 1 else ''} in one launch"
    return text + (f" ({empty} without a tap)" if empty else "")


def described(call: Call, plan: MatrixPlan, loads: str) -> list[str]:
    """A plan in words. `loads` is the line that says how operands are read."""
    problem = call.problem
    m, n, repeats = grid(problem, plan)
    lines = [
        f"  tile {plan.block_m}x{plan.block_n}x{plan.block_k}, {plan.num_warps} warps, {plan.num_stages} stages; "
        f"{m} x {n} x {repeats} programs of {trips(problem, plan):g} trips"
    ]
    if plan.fold:
        width, columns = fold_width(problem), problem.kernel_size[-1]
        lines.append(
            f"  x copied with its {problem.in_channels} channels padded to {width}; the {columns} columns of the filter "
            f"are read as {columns * width} channels"
        )
    if plan.merge > 1:
        lines.append(f"  {plan.merge} groups laid together in one block-diagonal weight")
    if plan.split > 1:
        lines.append(f"  reduction split {plan.split} ways, partial sums added in a fixed order")
    lines.append(loads)
    if plan.pack:
        lines.append(f"  {named(plan.pack, call.which)} copied to channels-last first")
    return lines
