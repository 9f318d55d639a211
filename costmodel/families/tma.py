"""The "tma" family: what its kernels serve, and their tiles. The copy engine of sm_90 and later fetches boxes of the operands
by coordinates and fills in zeros outside the tensor. For the weight gradient only x uses TMA.

A descriptor has at most five axes. The innermost is contiguous, every other stride is a multiple of 16 bytes, and a box has at
most 256 elements per axis ("CUDA driver API", cuTensorMapEncodeTiled). No tensor in a GPU's memory exceeds the further limits,
strides below 2^40 bytes and axes below 2^32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from costmodel.device import Device
from costmodel.executed import is_trusted
from costmodel.families.matrix import MatrixPlan, merged, resources_of, shares, step_of
from costmodel.families.matrix_choice import Matrix
from costmodel.problem import ConvProblem, Pass
from costmodel.resources import memory_refusal
from costmodel.tiling import Call, Operand, Plan, Tile, arithmetic, itemsize, reach_refusal

#: The oldest compute capability that has a copy engine.
LEAST_CAPABILITY = 90
#: Most elements of a box along one axis.
MAX_AXIS = 256

#: The farthest that a window, a stride or padding may reach, in pixels: `kernels.boxes.floor_div` is exact for coordinates of
#: at least -2^20 strides.
FARTHEST = 2**20

#: Tiles of fprop and dgrad are pixels x channels of the result x depth.
MENU: dict[str, tuple[Tile, ...]] = {
    "half": (
        Tile(256, 128, 64, 8, 4),
        Tile(128, 256, 64, 8, 4),
        Tile(256, 64, 64, 4, 4),
        Tile(128, 128, 64, 8, 3),
        Tile(128, 128, 64, 4, 3),
        Tile(128, 64, 64, 4, 4),
        Tile(64, 128, 64, 4, 4),
        Tile(64, 64, 64, 4, 6),
        Tile(256, 128, 32, 8, 4),
        Tile(256, 64, 32, 4, 4),
        Tile(128, 128, 32, 8, 4),
        Tile(128, 64, 32, 4, 4),
        Tile(64, 64, 32, 4, 6),
    ),
    "tf32": (
        Tile(256, 128, 32, 8, 4),
        Tile(128, 128, 32, 8, 3),
        Tile(128, 64, 32, 4, 4),
        Tile(64, 64, 32, 4, 6),
    ),
}

#: Tiles of wgrad are filters x channels x output pixels. Its MMA transposes both operands, which a warpgroup's MMA can only do
#: in 16 bits.
WGRAD_MENU: dict[str, tuple[Tile, ...]] = {
    "half": (
        Tile(128, 256, 64, 8, 4),
        Tile(256, 128, 64, 8, 4),
        Tile(128, 128, 128, 8, 3),
        Tile(128, 128, 64, 8, 3),
        Tile(64, 256, 64, 4, 4),
        Tile(128, 64, 64, 4, 4),
        Tile(64, 128, 64, 4, 4),
        Tile(64, 64, 128, 4, 3),
        Tile(64, 64, 64, 4, 4),
        Tile(64, 32, 64, 4, 4),
    ),
}

#: Most sums per thread that compile without a spill where the kernel also runs an epilogue, by `Call.epilogue` and for any
#: strides of the result. `tests/test_tma_aot.py` compiles the largest.
EPILOGUE_SUMS = {"": 128, "channels": 128, "tensors": 64, "heavy": 64}


def menu(which: Pass, kind: str) -> tuple[Tile, ...]:
    """The tiles of a pass in an arithmetic; none where there is no TMA kernel."""
    return (WGRAD_MENU if which == Pass.WGRAD else MENU).get(kind, ())


def epilogue_fits(epilogue: str, tile: Tile) -> bool:
    """Whether a tile leaves its threads enough registers for the epilogue."""
    return tile.m * tile.n <= EPILOGUE_SUMS[epilogue] * 32 * tile.warps


def call_refusal(call: Call, plan: MatrixPlan, capability: int) -> str:
    """Why a plan's kernel cannot run a call on a compute capability (90 for 9.0); "" where it can.

    With a `plan.block_k` of 0 the depth of a tile is not checked.
    """
    call, size = merged(call, plan.merge), itemsize(call.dtype)
    problem, which = call.problem, call.which
    if capability // 10 not in (9, 10):
        return f"TMA needs compute capability 9.x or 10.x, the device has {capability / 10:.1f}"
    if reason := reach_refusal(problem, FARTHEST):
        return reason
    kind = arithmetic(call.dtype, call.precision)
    if kind not in MENU:
        return f"there is no TMA kernel for {call.dtype} in {kind}"
    if kind == "tf32" and which != Pass.FPROP:
        return f"a warpgroup's MMA cannot transpose 32-bit {'weights' if which == Pass.DGRAD else 'pixels'}"
    strided = which != Pass.DGRAD and any(s > 1 for s in problem.stride)
    if strided:
        if problem.rank == 3 and problem.stride[:2] != (1, 1):
            return f"in 3-D a descriptor has room for a stride of the last axis alone, got {problem.stride}"
        if any(n % s for n, s in zip(problem.input_size, problem.stride, strict=True)):
            return f"strides {problem.stride} must divide the input sizes {problem.input_size}"
    for letter, name, channels in boxed_operands(problem, which):
        operand = call.a if letter == "a" else call.b
        if reason := operand_refusal(Operand(outside=math.gcd(16, channels)) if letter in plan.pack else operand, size):
            return f"{name} {reason}"
    if which == Pass.WGRAD and problem.groups > 1 and problem.channels_per_group * size % 16:
        return f"each group's channels must be a multiple of 16 bytes, got {problem.channels_per_group} of {size}"
    return overhang_refusal(call, plan.block_k) if plan.block_k else ""


def boxed_operands(problem: ConvProblem, which: Pass) -> tuple[tuple[str, str, int], ...]:
    """The operands that are fetched as boxes: ("a" or "b", its name, the contiguous channels that a copy of it would have)."""
    x, w, dy = ("x", problem.in_channels), ("w", problem.channels_per_group), ("dy", problem.out_channels)
    return {
        Pass.FPROP: (("a", *x), ("b", *w)),
        Pass.DGRAD: (("a", *dy), ("b", *w)),
        Pass.WGRAD: (("b", *x),),
    }[which]


def overhang_refusal(call: Call, block_k: int) -> str:
    """Why a box of `block_k` channels may not reach beyond a group's last channel; "" where it may, or does not reach beyond.

    Beyond the last channel of the tensor a box holds zeros. Other data there would be multiplied by zero weights, which does
    not cancel an infinite element. wgrad sums over pixels and stores no column of other channels, so it may reach beyond.
    """
    if call.which == Pass.WGRAD:
        return ""
    problem, fprop = call.problem, call.which == Pass.FPROP
    depth = problem.channels_per_group if fprop else problem.filters_per_group
    if depth % block_k == 0:
        return ""
    if problem.groups > 1:
        beyond = "the next group"
    elif fprop and problem.stride[-1] > 1:
        beyond = "the next column, which the descriptor of a strided axis puts there"
    else:
        return ""
    return f"block_k {block_k} must divide the {depth} channels of a group: the rest of a box would hold {beyond}"


def operand_refusal(operand: Operand, size: int) -> str:
    """Why no descriptor can describe an operand whose elements have `size` bytes; "" where one can."""
    if operand.unit != 1:
        return "must have contiguous channels"
    if operand.outside * size % 16:
        return f"must have strides that are multiples of 16 bytes, got multiples of {operand.outside * size}"
    if not operand.boxed:
        return "must begin on a multiple of 16 bytes and lie channels-last"
    return ""


def shape_refusal(call: Call, plan: MatrixPlan) -> str:
    """What is wrong with a plan's tile and box; "" where nothing is."""
    for name, block in (("block_m", plan.block_m), ("block_n", plan.block_n), ("block_k", plan.block_k)):
        if not 16 <= block <= MAX_AXIS or block & (block - 1):
            return f"{name} must be a power of two from 16 to {MAX_AXIS}, got {block}"
    wgrad = plan.which == Pass.WGRAD
    pixels = plan.block_k if wgrad else plan.block_m
    if plan.step is not None and (
        math.prod(plan.step) != pixels
        or any(n < 1 or n & (n - 1) for n in plan.step)
        or any(n > 1 for n in plan.step[1 : 4 - call.problem.rank])
    ):
        return f"step {plan.step} must be powers of two with product {pixels}, 1 along axes that the problem has not"
    output = call.problem.with_unit_axes().output_size
    if wgrad and plan.step is not None and any(n > size for n, size in zip(plan.step[1:], output, strict=True)):
        return f"step {plan.step} must be no wider than the output, {output}"
    return ""


#: "scattered" has a stride and a contiguous result of odd sizes. "narrow" is wgrad with a strided x.
SAMPLES = {
    "wide": ConvProblem.conv((32, 256, 56, 56), (256, 256, 3, 3), (1, 1), (1, 1), (1, 1)),
    "scattered": ConvProblem.conv((32, 320, 58, 58), (320, 320, 3, 3), (2, 2), (1, 1), (1, 1)),
    "narrow": ConvProblem.conv((32, 40, 58, 58), (37, 40, 7, 7), (2, 2), (3, 3), (1, 1)),
}


@dataclass(frozen=True)
class TmaPlan(MatrixPlan):
    """A plan of "tma"."""

    boxed: ClassVar[bool] = True


class Tma(Matrix):
    """The family. Under the interpreter, and on an architecture whose compiled code has not been executed, TMA is used only if
    `plan=` asks for it."""

    name, plan = "tma", TmaPlan
    kernels = ("tma", "wgrad", "reduce")
    executed, special = (90,), True
    samples = SAMPLES

    def tiles(self, which: Pass, kind: str) -> tuple[Tile, ...]:
        return menu(which, kind)

    def is_for(self, call: Call, device: Device) -> bool:
        return not device.interpreted and is_trusted(self.name, device.capability)

    def unserved(self, call: Call, plan: MatrixPlan, device: Device) -> str:
        return call_refusal(call, plan, device.capability)

    def fits(self, call: Call, tile: Tile, reach: str, capability: int) -> bool:
        return epilogue_fits(call.epilogue, tile) and not overhang_refusal(call, tile.k)

    def refusal(self, call: Call, plan: TmaPlan, device: Device | None) -> str:
        capability = device.capability if device else LEAST_CAPABILITY
        if reason := self.recast_refusal(call, plan):
            return reason
        if plan.split < 1 or (plan.split > 1 and not shares(call.problem, plan.which, self.plan)):
            return f"split must be 1 for {plan.which}, got {plan.split}"
        if reason := shape_refusal(call, plan) or call_refusal(call, plan, capability):
            return reason
        return memory_refusal(plan.tile, resources_of(call, plan, device).shared, device) if device else ""

    def completed(self, call: Call, plan: TmaPlan) -> Plan:
        """The plan with the box of pixels filled in."""
        return replace(plan, step=step_of(call.problem, plan))

    def compiled(self, which: Pass, kind: str) -> Iterator[tuple[str, Tile]]:
        reached = ("wide", "narrow" if which == Pass.WGRAD else "scattered")
        return ((access, tile) for access in reached for tile in menu(which, kind))

    def exists(self, call: Call, plan: TmaPlan, capability: int) -> bool:
        return not call_refusal(call, plan, capability)

    def shown(self, which: Pass, kind: str) -> tuple[Tile, ...]:
        if which == Pass.WGRAD:
            return (WGRAD_MENU["half"][0], WGRAD_MENU["half"][3]) if kind == "half" else ()
        return {"half": (MENU["half"][0], MENU["half"][2]), "tf32": MENU["tf32"][:1]}[kind]


FAMILIES = (Tma(),)
