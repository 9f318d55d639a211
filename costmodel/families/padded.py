"""The family "padded": convolutions whose padding holds pixels of the image, reflected, repeated or circular, and forward
passes with a prologue and any padding.

fprop and wgrad find the source of each tap by index arithmetic. dgrad is the "gather" of the input with its padding written
out, into a workspace in the accumulator's type, and a kernel that adds each pixel's images. Plain arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from costmodel.algebra import product
from costmodel.device import Device
from costmodel.families.gemm import GatherPlan, Gemm
from costmodel.families.matrix import MatrixPlan
from costmodel.families.matrix_choice import Option
from costmodel.families.protocol import Counted
from costmodel.problem import ConvProblem, Pass
from costmodel.resources import compiled_for
from costmodel.tiling import MAX_ALIGN, Call, Operand, Plan, Tile, arithmetic, itemsize, plan_option
from costmodel.timing import Prediction, from_dram, overhead, traffic

#: The menu of fprop and wgrad: some of the tiles of "gather". A tile computes a source per row and trip, so none is short.
MENU: dict[str, tuple[Tile, ...]] = {
    "half": (
        Tile(128, 128, 64, 8, 3),
        Tile(128, 64, 64, 4, 4),
        Tile(64, 128, 64, 4, 4),
        Tile(64, 64, 64, 4, 4),
        Tile(64, 64, 32, 4, 4),
        Tile(128, 32, 32, 4, 4),
        Tile(64, 16, 64, 4, 4),
        Tile(16, 16, 64, 4, 4),
    ),
    "tf32": (
        Tile(128, 64, 32, 4, 3),
        Tile(64, 64, 32, 4, 4),
        Tile(64, 16, 32, 4, 4),
        Tile(16, 16, 32, 4, 4),
    ),
    "fp32": (
        Tile(64, 64, 16, 4, 3),
        Tile(64, 16, 16, 4, 3),
        Tile(16, 16, 32, 4, 3),
    ),
    "fp64": (
        Tile(64, 32, 16, 4, 3),
        Tile(16, 16, 16, 4, 3),
    ),
}


#: Most results of a tile of "gather" that leaves them in 32 bits, by whether operands come in loads of 16 bytes. With 128 x 256
#: the compiler spilled on every architecture, and with 128 x 64 where each element has an address (`tests/test_padded_aot.py`).
LARGEST_SUMS = {True: 128 * 128, False: 64 * 64}


#: Most elements of x per thread and trip where each has an address of its own. With 32 some tiles spilled in 3-D, or under
#: modes that are not in the table of compiled kernels.
NARROW_ADDRESSES = 16


#: Tiles that spill two registers with some prologue under one version of Triton (3.6 on sm_80, else 3.9), by arithmetic, access
#: and architecture.
SPILLED: dict[tuple[str, str, int], tuple[tuple[int, int, int], ...]] = {
    ("half", "wide", 80): ((64, 128, 64),),
    ("half", "narrow", 90): ((16, 16, 64),),
    ("fp32", "wide", 90): ((16, 16, 32),),
    ("half", "wide", 100): ((64, 128, 64),),
}


@dataclass(frozen=True)
class PaddedPlan(MatrixPlan):
    """A plan of "padded". For dgrad the tile is that of the "gather" kernel, whose reduction is not shared. `fold` is as in
    `GatherPlan`. together: the call's prologue is applied to the pixels that are gathered."""

    folds: ClassVar[bool] = True

    fold: bool = plan_option("fold", False)
    together: bool = plan_option("together", False)


def unprepared(call: Call) -> str:
    """Why the kernel cannot apply a call's prologue; "" where it can, or where there is none."""
    if call.prologue is None:
        return ""
    if call.which != Pass.FPROP:
        return f"a prologue is for fprop, not for {call.which}"
    if call.problem.groups > 1 and 1 in (call.problem.channels_per_group, call.problem.filters_per_group):
        return "its groups have one channel or one filter, which would fill a sixteenth of a tile"
    return "its values differ from frame to frame" if call.prologue.each_frame else ""


def prologue_fits(call: Call, tile: Tile, reach: str, capability: int) -> bool:
    """Whether a tile keeps the call's prologue in registers, whatever the activation (`tests/test_conv_prologue_aot.py`).

    A thread may prepare 32 elements, or 16 of 4 bytes. Where each element of x has an address of its own it may prepare 16.
    That falls to 8 on sm_100, where Triton 3.6 spilled, and where the rows of a tile have different values; both together leave
    no room for 64 x 64 results. Of float64 it may prepare 8 elements, or 2 on sm_100 and where rows differ and each element has
    an address.
    """
    assert call.prologue is not None
    elements, problem, arch = tile.m * tile.k // (32 * tile.warps), call.problem, compiled_for(capability)
    spans, size = call.prologue.spans(tile.m, product(problem.output_size), problem.batch), itemsize(call.dtype)
    if tile[:3] in SPILLED.get((arithmetic(call.dtype, call.precision), reach, arch), ()):
        return False
    if size == 8:
        return elements <= (2 if arch == 100 or (spans and reach != "wide") else 8)
    if reach == "wide":
        return elements <= (16 if size > 2 else 32)
    if spans and arch == 100 and tile.m * tile.n >= 64 * 64:
        return False
    return elements <= (8 if spans or arch == 100 else 16)


class Unshared(Gemm):
    """ "gather", with one program for each reduction, and results of 32 bits or more."""

    def fits(self, call: Call, tile: Tile, reach: str, capability: int) -> bool:
        return tile.m * tile.n <= LARGEST_SUMS[reach == "wide"] and super().fits(call, tile, reach, capability)

    def options(self, call: Call, device: Device) -> Iterator[Option]:
        return (option._replace(splits=[1]) for option in super().options(call, device))


GATHER = Unshared("gather", GatherPlan, {})


def written_out(call: Call) -> Call:
    """The call of dgrad of the input with its padding written out, whose result is a dense channels-last workspace."""
    problem = call.problem.written_out
    groups = Operand(1, math.gcd(MAX_ALIGN, problem.channels_per_group), math.gcd(MAX_ALIGN, problem.in_channels))
    return replace(call, problem=problem, out=replace(groups, far=call.out.far))


def gathering(plan: MatrixPlan) -> GatherPlan:
    """The plan of "gather" that fills the workspace of a dgrad."""
    gather = GatherPlan(plan.which, GATHER.name, *plan.tile)
    return replace(gather, split=plan.split, group_m=plan.group_m, merge=plan.merge, pack=plan.pack)


def workspace_shape(problem: ConvProblem) -> tuple[int, ...]:
    """(batch, *padded sizes, channels) of the workspace of a dgrad."""
    return problem.batch, *problem.written_out.input_size, problem.in_channels


def fold_bytes(call: Call) -> int:
    """Bytes that a dgrad moves beyond those of "gather" of the padded input: its result is in the accumulator's type, and is
    read again to write dx."""
    size = itemsize(call.dtype)
    written = product(workspace_shape(call.problem))
    return written * (2 * max(4, size) - size) + size * product(call.problem.input_shape)


class Padded(Gemm):
    """The family. Its fprop and wgrad are ranked, timed and counted as those of "gather", with their own kernels' figures."""

    kernels = ("padded", "padded_copy", "padded_fold", "dgrad", "reduce")
    executed = (80, 90)
    modes = True
    prologues = True

    def tiles(self, which: Pass, kind: str) -> tuple[Tile, ...]:
        return MENU[kind]

    def fits(self, call: Call, tile: Tile, reach: str, capability: int) -> bool:
        pixels = tile.n if call.which == Pass.WGRAD else tile.m
        few = reach == "wide" or pixels * tile.k <= NARROW_ADDRESSES * 32 * tile.warps
        if call.prologue is not None and not prologue_fits(call, tile, reach, capability):
            return False
        return few and super().fits(call, tile, reach, capability)

    def is_for(self, call: Call, device: Device) -> bool:
        return call.prologue is not None or super().is_for(call, device)

    def options(self, call: Call, device: Device) -> Iterator[Option]:
        if unprepared(call):
            return
        for option in super().options(call, device):
            if call.prologue is None or not option.fold:
                yield option

    def plan_of(self, option: Option, split: int) -> Plan:
        plan = super().plan_of(option, split)
        assert isinstance(plan, PaddedPlan)
        return plan if option.call.prologue is None else replace(plan, together=True)

    def refusal(self, call: Call, plan: MatrixPlan, device: Device | None) -> str:
        assert isinstance(plan, PaddedPlan)
        if plan.together != (call.prologue is not None):
            return "together is for a call with a prologue" if plan.together else "its prologue asks for together"
        if reason := unprepared(call):
            return reason
        if plan.together and plan.fold:
            return "a prologue is not applied to columns that are read as channels"
        if call.which != Pass.DGRAD:
            return super().refusal(call, plan, device)
        if call.epilogue:
            return "nothing can follow the input gradient of a padding mode in the same kernel"
        if plan.split != 1:
            return f"split must be 1 for dgrad, got {plan.split}"
        return GATHER.refusal(written_out(call), gathering(plan), device)

    def candidates(self, call: Call, device: Device) -> list[Plan]:
        if call.which != Pass.DGRAD:
            return super().candidates(call, device)
        return [self._own(plan) for plan in GATHER.candidates(written_out(call), device)]

    def quickest(self, call: Call, device: Device, below: float) -> tuple[float, Plan | None]:
        if call.which != Pass.DGRAD:
            return super().quickest(call, device, below)
        fold = self._fold_seconds(call, device)
        seconds, plan = GATHER.quickest(written_out(call), device, below - fold)
        return (below, None) if plan is None else (seconds + fold, self._own(plan))

    def predict(self, call: Call, plan: MatrixPlan, device: Device) -> Prediction:
        if call.which != Pass.DGRAD:
            return super().predict(call, plan, device)
        prediction = GATHER.predict(written_out(call), gathering(plan), device)
        return prediction.beside(self._fold_seconds(call, device), fold_bytes(call))

    def counted(self, call: Call, plan: MatrixPlan) -> Counted:
        if call.which != Pass.DGRAD:
            return super().counted(call, plan)
        inner = written_out(call)
        issued, extra, launches = GATHER.counted(inner, gathering(plan))
        extra += fold_bytes(call) + traffic(inner).compulsory - traffic(call).compulsory
        return Counted(issued, extra, launches + 1)

    def compiled(self, which: Pass, kind: str) -> Iterator[tuple[str, Tile]]:
        """The rows of fprop and wgrad; dgrad's are those of "gather"."""
        return ((access, tile) for access in self.samples for tile in MENU[kind] if which != Pass.DGRAD)

    def shown(self, which: Pass, kind: str) -> tuple[Tile, ...]:
        return () if which == Pass.DGRAD else MENU[kind][:1]

    def _own(self, plan: Plan) -> Plan:
        """The plan of this family whose workspace a plan of "gather" fills."""
        options = {option.name: getattr(plan, option.name) for option in GatherPlan.options() if option.name != "x3"}
        return self.plan(plan.which, self.name, *plan.tile, **options)

    def _fold_seconds(self, call: Call, device: Device) -> float:
        """Seconds that the fold adds to "gather" of the padded input."""
        constants = device.calibration(self.name)
        return overhead(1, device, constants) + from_dram(fold_bytes(call), device, constants)


FAMILIES = (
    Padded(
        "padded",
        PaddedPlan,
        {
            "wide": ConvProblem.conv((32, 256, 56, 56), (256, 256, 3, 3), (1, 1), (1, 1), (1, 1), padding_mode="reflect"),
            "narrow": ConvProblem.conv(
                (32, 35, 57, 57), (37, 35, 7, 7), (2, 2), (3, 3), (1, 1), padding_mode=("zeros", "circular")
            ),
        },
    ),
)
