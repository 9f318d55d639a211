"""The families "gather" (an implicit GEMM over taps) and "patch" (windows tile the input: a plain GEMM, 1x1 included).

This module has their plans, their menu, and what they serve. Plain arithmetic, standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from costmodel.algebra import ceil_div, product
from costmodel.device import Device
from costmodel.families.matrix import (
    MatrixPlan,
    extent,
    full_shares,
    reduction_step,
    resources_of,
    seen_problem,
    shares,
)
from costmodel.families.matrix_choice import Matrix
from costmodel.problem import ConvProblem, Pass
from costmodel.recast import FOLDED_WIDTHS, folds
from costmodel.resources import compiled_for, memory_refusal
from costmodel.tiling import Call, Plan, Tile, itemsize, plan_option

#: The menu. float16/bfloat16 and tf32 use tensor cores, ieee float32 the FMA units, float64 its own tensor cores.
MENU: dict[str, tuple[Tile, ...]] = {
    "half": (
        Tile(128, 256, 64, 8, 3),
        Tile(256, 128, 64, 8, 3),
        Tile(128, 128, 64, 8, 3),
        Tile(128, 128, 32, 8, 4),
        Tile(128, 64, 64, 4, 4),
        Tile(64, 128, 64, 4, 4),
        Tile(64, 64, 64, 4, 4),
        Tile(128, 64, 32, 4, 4),
        Tile(64, 64, 32, 4, 4),
        Tile(128, 32, 64, 4, 4),
        Tile(128, 32, 32, 4, 4),
        Tile(64, 32, 64, 4, 4),
        Tile(128, 64, 16, 4, 4),
        Tile(128, 16, 32, 4, 4),
        Tile(64, 16, 64, 4, 4),
        Tile(32, 32, 64, 4, 4),
        Tile(16, 128, 64, 4, 4),
        Tile(16, 16, 64, 4, 4),
    ),
    "tf32": (
        Tile(128, 128, 32, 8, 3),
        Tile(128, 64, 32, 4, 3),
        Tile(64, 128, 32, 4, 3),
        Tile(64, 64, 32, 4, 4),
        Tile(128, 32, 32, 4, 4),
        Tile(128, 64, 16, 4, 4),
        Tile(64, 16, 32, 4, 4),
        Tile(32, 32, 32, 4, 4),
        Tile(16, 16, 32, 4, 4),
    ),
    "fp32": (
        Tile(128, 64, 16, 8, 3),
        Tile(64, 64, 16, 4, 3),
        Tile(64, 32, 16, 4, 3),
        Tile(32, 32, 32, 4, 3),
        Tile(64, 16, 16, 4, 3),
        Tile(16, 16, 32, 4, 3),
    ),
    "fp64": (
        Tile(64, 64, 16, 8, 3),
        Tile(64, 32, 16, 4, 3),
        Tile(32, 32, 16, 4, 3),
        Tile(16, 16, 16, 4, 3),
    ),
}
#: Most bytes of results per tile for which a fused kernel compiles without a spill, by `Call.epilogue` and `matrix.access`.
#: Wide operands of a contiguous result count as "folded". `tests/test_fused_aot.py` compiles the largest tiles.
EPILOGUE_LIMIT = {
    "channels": {"wide": 32768, "folded": 32768, "narrow": 2048},
    "tensors": {"wide": 16384, "folded": 8192, "narrow": 2048},
    "heavy": {"wide": 8192, "folded": 8192, "narrow": 2048},
}


def epilogue_fits(epilogue: str, reach: str, tile: Tile, size: int, capability: int) -> bool:
    """Whether a tile, whose results have `size` bytes each, leaves enough registers for an epilogue in the same kernel.

    Results wider than 16 bits leave sm_80 room for less. On sm_100 a thread takes a whole row of a 128-row accumulator out of
    tensor memory, which leaves no registers.
    """
    if not epilogue:
        return True
    limit = EPILOGUE_LIMIT[epilogue][reach]
    if size == 2 and compiled_for(capability) == 100 and tile.m > 64:
        return False
    return tile.m * tile.n * size <= (limit if size == 2 else min(limit, 16384))


@dataclass(frozen=True)
class GatherPlan(MatrixPlan):
    """A plan of "gather". `fold` turns the columns of a filter into channels (`costmodel.recast`), so that few channels fill a
    tile. `x3` computes each float32 product as three tf32 products, whatever precision is asked for. It is used only where a
    plan is forced, because the last bits of ieee are lost."""

    folds: ClassVar[bool] = True

    fold: bool = plan_option("fold", False)
    x3: bool = plan_option("x3", False)


@dataclass(frozen=True)
class PatchPlan(GatherPlan):
    """A plan of "patch", with the same options."""

    patches: ClassVar[bool] = True


class Gemm(Matrix):
    """Both families. Each is an instance; its `plan` class says which it is."""

    kernels: tuple[str, ...] = ("fprop", "dgrad", "wgrad", "reduce")
    executed: tuple[int, ...] = (80, 90)

    def __init__(self, name: str, plan: type[MatrixPlan], samples: dict[str, ConvProblem]) -> None:
        self.name, self.plan, self.samples = name, plan, samples

    def tiles(self, which: Pass, kind: str) -> tuple[Tile, ...]:
        return MENU[kind]

    def is_for(self, call: Call, device: Device) -> bool:
        return call.problem.is_patch == self.plan.patches

    def fits(self, call: Call, tile: Tile, reach: str, capability: int) -> bool:
        beside = "folded" if reach == "wide" and call.out.unit != 1 else reach
        return epilogue_fits(call.epilogue, beside, tile, itemsize(call.dtype), capability)

    def refusal(self, call: Call, plan: MatrixPlan, device: Device | None) -> str:
        problem, which = call.problem, call.which
        if reason := self.recast_refusal(call, plan):
            return reason
        if plan.fold and not folds(problem, which):
            few = f"fprop and wgrad of up to {FOLDED_WIDTHS[-1]} channels in one group, under several columns without dilation"
            return f"fold is for {few}"
        if plan.x3 and call.dtype != "float32":
            return f"x3 is for float32, not for {call.dtype}"
        problem = seen_problem(problem, plan)
        if plan.patches and not problem.is_patch:
            return "its windows do not tile the input"
        for name, block in (("block_m", plan.block_m), ("block_n", plan.block_n), ("block_k", plan.block_k)):
            if block < 16 or block & (block - 1):
                return f"{name} must be a power of two of at least 16, got {block}"
        if device is not None and (reason := memory_refusal(plan.tile, resources_of(call, plan, device).shared, device)):
            return reason
        blocks = ceil_div(extent(problem, which, plan.patches).depth, plan.block_k)
        if plan.split < 1 or (plan.split > 1 and not shares(problem, which, self.plan)):
            return f"split must be 1 for {which} of patches, got {plan.split}"
        if which != Pass.WGRAD and blocks and plan.split != full_shares(blocks, plan.split):
            return f"{blocks} blocks of the reduction cannot be split {plan.split} ways evenly"
        if which == Pass.WGRAD and plan.step is not None:
            if product(plan.step) != plan.block_k or any(size < 1 or size & (size - 1) for size in plan.step):
                return f"step {plan.step} must be powers of two with product {plan.block_k}"
        return ""

    def completed(self, call: Call, plan: MatrixPlan) -> Plan:
        """The plan with wgrad's box of pixels filled in."""
        if call.which != Pass.WGRAD or plan.step is not None:
            return plan
        return replace(plan, step=reduction_step(seen_problem(call.problem, plan), plan.block_k))

    def compiled(self, which: Pass, kind: str) -> Iterator[tuple[str, Tile]]:
        return ((access, tile) for access in self.samples for tile in MENU[kind])

    def shown(self, which: Pass, kind: str) -> tuple[Tile, ...]:
        return {"half": (MENU["half"][0], MENU["half"][2]), "tf32": MENU["tf32"][:1]}[kind]


FAMILIES = (
    Gemm(
        "gather",
        GatherPlan,
        {
            "wide": ConvProblem.conv((32, 256, 56, 56), (256, 256, 3, 3), (1, 1), (1, 1), (1, 1)),
            "narrow": ConvProblem.conv((32, 35, 57, 57), (37, 35, 7, 7), (2, 2), (3, 3), (1, 1)),
        },
    ),
    Gemm(
        "patch",
        PatchPlan,
        {
            "wide": ConvProblem.conv((32, 256, 56, 56), (256, 256, 1, 1), (1, 1), (0, 0), (1, 1)),
            "folded": ConvProblem.conv((32, 16, 224, 224), (256, 16, 16, 16), (16, 16), (0, 0), (1, 1)),
            "narrow": ConvProblem.conv((32, 3, 227, 227), (37, 3, 5, 5), (5, 5), (0, 0), (1, 1)),
        },
    ),
)
