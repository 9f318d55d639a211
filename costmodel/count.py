"""The cost of a pass: multiply-adds counted in three ways, and bytes. Costs add up; every field may be a sympy expression.

A MAC is one multiply-add, and FLOP = 2 * MAC. `useful` leaves out products with padding zeros, `dense` counts every tap of
every output (as other tools do), and `issued` counts what a plan's tiles compute.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from costmodel.algebra import Size, product
from costmodel.arithmetic import arithmetic_named
from costmodel.families import family
from costmodel.legality import checked
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Call, Plan, itemsize


@dataclass(frozen=True)
class Cost:
    """The work of one pass, or the sum of many: multiply-adds, other FLOP, and bytes; a FLOP count is twice the multiply-adds.
    `issued_macs` is None if a part has no plan. Raises nothing. `docs/cost-model.md` defines each field.

    >>> spent = Cost(useful_macs=10, dense_macs=12, bytes=4)
    >>> (spent + spent).dense_flops, 3 * spent == spent + spent + spent, spent.intensity
    (48, True, 5.0)
    """

    useful_macs: Size = 0
    dense_macs: Size = 0
    issued_macs: Size | None = None
    bias_flops: Size = 0  # additions of a bias, or the sums of its gradient
    other_flops: Size = 0  # all but the multiply-adds of convolutions and matrix products
    bytes: Size = 0  # compulsory: every tensor moved once
    im2col_bytes: Size = 0  # the same with the column matrix written and read
    read_again: Size = 0  # bytes beyond the compulsory ones: a result waits for a sum over its inputs

    @property
    def useful_flops(self) -> Size:
        return 2 * self.useful_macs

    @property
    def dense_flops(self) -> Size:
        return 2 * self.dense_macs

    @property
    def issued_flops(self) -> Size | None:
        return None if self.issued_macs is None else 2 * self.issued_macs

    @property
    def intensity(self) -> Size:
        """Useful FLOP for each compulsory byte, 0 where none moves."""
        return self.useful_flops / self.bytes if self.bytes != 0 else 0

    @property
    def padding_waste(self) -> Size:
        """Share of the dense multiply-adds that meet padding."""
        return 1 - self.useful_macs / self.dense_macs if self.dense_macs != 0 else 0

    @property
    def tile_waste(self) -> Size | None:
        """Share of the issued multiply-adds that the dense count does not contain."""
        return 1 - self.dense_macs / self.issued_macs if self.issued_macs else None

    def __add__(self, other: Cost) -> Cost:
        values = {field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)[3:]}
        issued = None
        if self.issued_macs is not None and other.issued_macs is not None:
            issued = self.issued_macs + other.issued_macs
        return Cost(self.useful_macs + other.useful_macs, self.dense_macs + other.dense_macs, issued, **values)

    def __mul__(self, times: Size) -> Cost:
        values = [getattr(self, field.name) for field in fields(self)]
        return Cost(*(None if value is None else times * value for value in values))

    __rmul__ = __mul__


def cost(
    problem: ConvProblem,
    which: Pass | str = Pass.FPROP,
    plan: Plan | str | None = None,
    *,
    dtype: Any = None,
    bias: bool = False,
    transposed: bool = False,
) -> Cost:
    """The cost of one pass of `problem` in `dtype`: a name such as "bf16" or "float32", or a torch.dtype; None is bfloat16.

    `plan` (one of `costmodel.plan.candidates`, or its words) adds the multiply-adds it issues. Raises ValueError for a plan
    of another pass, or that cannot run this one. A layer's bias adds one FLOP per output to its forward pass (fprop, or dgrad
    of a transposed layer), and as many to wgrad, for the sums that are its gradient. Bytes are compulsory: each tensor once. An
    unknown pass or dtype is a ValueError too. Source: `docs/cost-model.md` derives the counts.

    >>> layer = ConvProblem.conv((32, 64, 56, 56), (64, 64, 3, 3), (1, 1), (1, 1), (1, 1))
    >>> cost(layer).dense_flops, cost(layer, "wgrad", dtype="fp32").bytes
    (7398752256, 51527680)
    """
    which, plan = Pass(which), Plan.parse(plan) if isinstance(plan, str) else plan
    if plan is not None and plan.which != which:
        raise ValueError(f"plan {plan} is for {plan.which}, the cost asked for is of {which}")
    dtype = arithmetic_named(dtype).dtype
    size = itemsize(dtype)
    moved = problem.bytes(size, which)
    bias_flops: Size = 0
    if bias and which in (Pass.DGRAD if transposed else Pass.FPROP, Pass.WGRAD):
        result = problem.input_shape if transposed else problem.output_shape
        bias_flops = product(result)
        moved = moved + size * result[1]
    column = product((problem.batch, problem.in_channels, problem.taps, *problem.output_size))
    return Cost(
        useful_macs=problem.useful_macs,
        dense_macs=problem.macs,
        issued_macs=None if plan is None else _issued(problem, dtype, plan),
        bias_flops=bias_flops,
        bytes=moved,
        im2col_bytes=moved + 2 * size * column,
    )


def _issued(problem: ConvProblem, dtype: str, plan: Plan) -> int:
    """The multiply-adds that a plan issues. A cost knows neither strides nor the precision of float32, so both are assumed to
    be those that the plan asks for."""
    call = Call(problem, plan.which, dtype, "tf32")
    return family(plan.family).counted(call, checked(call, plan)).issued_macs


def training_cost(
    problem: ConvProblem,
    *,
    dtype: Any = None,
    bias: bool = False,
    transposed: bool = False,
    input_gradient: bool = True,
) -> Cost:
    """The cost of a layer's three passes. They take three times the forward multiply-adds, or twice those for a first layer
    (`input_gradient=False`).

    `dtype`, `bias`, units, errors and the source are those of `cost`; `transposed` says that the layer's own result is dgrad of
    `problem`.

    >>> layer = ConvProblem.conv((1, 4, 8), (4, 4, 3), (1,), (1,), (1,))
    >>> training_cost(layer).dense_macs == 3 * cost(layer).dense_macs
    True
    """
    forward, backward = (Pass.DGRAD, Pass.FPROP) if transposed else (Pass.FPROP, Pass.DGRAD)
    passes = [forward, Pass.WGRAD] + ([backward] if input_gradient else [])
    first, *rest = (cost(problem, which, dtype=dtype, bias=bias, transposed=transposed) for which in passes)
    return sum(rest, first)
