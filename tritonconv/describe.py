"""Describes the memory layout of a pass's tensors for the cost model."""

from __future__ import annotations

from dataclasses import replace

from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Operand
from tritonconv.families import launchers
from tritonconv.layout import operand
from tritonconv.prepared import TensorKey


def describe(
    problem: ConvProblem,
    which: Pass,
    a: TensorKey,
    b: TensorKey,
    out: TensorKey,
    aligned: tuple[bool, bool] = (True, True),
) -> tuple[Operand, Operand, Operand]:
    """The memory layout of the three tensors of a pass. The groups divide axis 0 of weights [K, C / G, ...] and axis 1 of
    activations. `aligned` says whether a and b begin at a multiple of 16 bytes; a result that is allocated here does."""
    weight = {Pass.FPROP: 1, Pass.DGRAD: 1, Pass.WGRAD: 2}[which]
    families = launchers().values()
    described = next(filter(None, (family.describes(problem) for family in families)), operand)
    far = any(family.is_far(problem, which, a, b, out) for family in families)
    first, second, result = (
        replace(described(*tensor, problem.groups, 0 if i == weight else 1, begins), far=far, aligned=begins)
        for i, (tensor, begins) in enumerate(zip((a, b, out), (*aligned, True), strict=True))
    )
    return first, second, result
