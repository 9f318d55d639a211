"""Which tile of a matrix product a pass takes: the legal part of a family's menu, and the choice by least predicted time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from costmodel.algebra import ceil_div
from costmodel.device import Device
from costmodel.families.matrix import (
    MatrixPlan,
    access,
    boxes,
    extent,
    folded,
    full_shares,
    issued_macs,
    merged,
    pixel_box,
    reduction_step,
    reduction_steps,
    scattered_lines,
    shares,
    vector_widths,
)
from costmodel.families.matrix_time import (
    at_least,
    extra_bytes,
    launches,
    packed_bytes,
    predict,
    prepared,
    recast_traffic,
    seconds,
    split_bytes,
)
from costmodel.families.protocol import Counted, Family
from costmodel.problem import Pass
from costmodel.recast import folds
from costmodel.resources import compiled_for, estimated, memory_refusal, resource_key, resource_table
from costmodel.tiling import INTERPRETED_MENU, Call, Extent, Plan, Tile, arithmetic, itemsize, pack_refusal
from costmodel.timing import Kernel, Prediction, Traffic, kernel, read_again

#: Most channels of merged groups. Beyond a tile's width merging adds zeros to multiply and shares nothing.
MERGED_CHANNELS = 128


class Option(NamedTuple):
    """A compiled tile with its operands packed or not. The ranking tries it with each of `splits`."""

    kernel: Kernel
    call: Call  # the call as the kernel sees it
    merge: int
    fold: bool
    pack: tuple[str, ...]
    step: tuple[int, int, int, int] | None
    covers: Extent
    tiles: int
    blocks: int  # blocks of one reduction, which programs may share
    loops: float  # main-loop trips per block
    splits: list[int]


def merges(call: Call, device: Device) -> list[int]:
    """The numbers of groups that may be laid together: powers of two, while the merged groups are narrower than a wide tile.

    The interpreter's time depends on the number of programs, so it would merge wherever it can. It does so only where a plan
    asks for it.
    """
    problem = call.problem
    widest = max(problem.channels_per_group, problem.filters_per_group)
    if problem.groups == 1 or widest == 1 or device.interpreted:
        return [1]
    return [f for f in (1, 2, 4, 8, 16, 32, 64) if problem.groups % f == 0 and (f == 1 or f * widest <= MERGED_CHANNELS)]


def addresses_fit(call: Call, patches: bool, tile: Tile, capability: int) -> bool:
    """Whether a tile keeps its addresses in registers, for cases that the table of compiled kernels does not have.

    Patches of tensors whose channels are not contiguous need many addresses. 64-bit offsets take twice the registers: Triton
    3.7.1 spilled on 128 x 128 tiles of a strided dgrad. Contiguous results may take a few registers more than the table's
    channels-last ones: on sm_80 Triton 3.6 spilled on 128 x 256 tiles. `tests/test_aot.py` compiles some of the tiles that are
    left.
    """
    tensors = (call.a, call.b, call.out)
    planes = any(operand.unit != 1 for operand in tensors)
    many = patches and call.problem.taps > 1 and planes
    far = call.which != Pass.WGRAD and any(operand.far for operand in tensors)
    if many or far:
        return tile.m * tile.n <= 64 * 64
    full = compiled_for(capability) == 80 and call.which != Pass.WGRAD and call.out.unit != 1
    return not full or tile.m * tile.n <= 128 * 128


def packings(call: Call) -> list[tuple[str, ...]]:
    """The sets of operands that may be copied to channels-last first, of those whose channels are not contiguous already."""
    names = [name for name, operand in (("a", call.a), ("b", call.b)) if operand.unit != 1]
    choices: list[tuple[str, ...]] = [()]
    choices += [(name,) for name in names]
    return choices + ([tuple(names)] if len(names) == 2 else [])


def splits(tiles: int, blocks: int, device: Device, full: bool) -> list[int]:
    """The numbers of programs that may share a reduction of `blocks`: about powers of two, up to four waves of the device.

    `full` lowers each number until no program is without a block.
    """
    room = max(1, 4 * device.sm_count // max(1, tiles))
    ways = [1 << i for i in range(room.bit_length()) if (1 << i) <= max(1, blocks)]
    return sorted({full_shares(blocks, way) for way in ways}) if full and blocks else ways


@lru_cache(maxsize=1024)
def compiled(
    family: Matrix,
    which: Pass,
    kind: str,
    reach: str,
    widths: tuple[int, int],
    lines: tuple[float, float],
    size: int,
    device: Device,
) -> list[Kernel]:
    """The menu's kernels that compile without a spill and fit the device, for operands that are reached as
    `families.matrix.access` and `families.matrix.scattered_lines` say."""
    tile_kernels = []
    for tile in INTERPRETED_MENU if device.interpreted else family.tiles(which, kind):
        needs = resource_table().get(resource_key(family.plan(which, family.name, *tile), kind, reach, device.capability))
        fits = needs is not None and not needs.spills and not memory_refusal(tile, needs.shared, device)
        if fits or device.interpreted:
            tile_kernels.append(kernel(family.name, tile, needs or estimated(tile, size), kind, size, widths, device, lines))
    return tile_kernels


class Matrix(Family):
    """What the families of matrix products have in common: how they are ranked, predicted and counted."""

    plan: type[MatrixPlan]

    @abstractmethod
    def tiles(self, which: Pass, kind: str) -> tuple[Tile, ...]:
        """The menu of a pass in an arithmetic."""

    @abstractmethod
    def is_for(self, call: Call, device: Device) -> bool:
        """Whether tiles of this family are ranked for a call (with its groups merged, where they are)."""

    @abstractmethod
    def fits(self, call: Call, tile: Tile, reach: str, capability: int) -> bool:
        """Whether a tile passes the limits that the table of compiled kernels does not have: leftover channels, epilogues."""

    def recast_refusal(self, call: Call, plan: MatrixPlan) -> str:
        """Why a call cannot be grouped, recast or copied as a plan says; "" where it can."""
        if plan.group_m < 1:
            return f"group must be positive, got {plan.group_m}"
        if reason := pack_refusal(plan.pack):
            return reason
        if plan.merge < 1 or call.problem.groups % plan.merge:
            return f"merge must divide the {call.problem.groups} groups, got {plan.merge}"
        return ""

    def unserved(self, call: Call, plan: MatrixPlan, device: Device) -> str:
        """Why no tile serves a call whose operands are packed as `plan` says; "" where one may."""
        return ""

    def options(self, call: Call, device: Device) -> Iterator[Option]:
        """Every legal tile, with and without packed operands, merged groups and folded columns."""
        if self.is_for(call, device):
            for merge in merges(call, device):
                yield from self._options(merged(call, merge), merge, False, device)
        if self.plan.folds and folds(call.problem, call.which) and not device.interpreted:
            seen = folded(call)
            if self.is_for(seen, device):
                yield from self._options(seen, 1, True, device)

    def _options(self, call: Call, merge: int, fold: bool, device: Device) -> Iterator[Option]:
        problem, which, size, boxed = call.problem, call.which, itemsize(call.dtype), self.plan.boxed
        kind = arithmetic(call.dtype, call.precision)
        for pack in packings(call):
            plain = self.plan(which, self.name, 0, 0, 0, 0, 0, pack=pack)
            if self.unserved(call, plain, device):
                continue
            covers, reach = extent(problem, which, self.plan.patches), access(call, plain)
            widths, lines = vector_widths(call, plain), scattered_lines(call, plain)
            for tile_kernel in compiled(self, which, kind, reach, widths, lines, size, device):
                tile = tile_kernel.tile
                fits = device.interpreted or (
                    self.fits(call, tile, reach, device.capability)
                    and addresses_fit(call, self.plan.patches, tile, device.capability)
                )
                if not fits:
                    continue
                m_tiles = ceil_div(covers.m, tile.m)
                step, blocks, ways = None, ceil_div(covers.depth, tile.k), [1]
                if which == Pass.WGRAD:
                    step = reduction_step(problem, tile.k, boxed)
                    blocks = reduction_steps(problem, step)
                elif boxed:
                    step = pixel_box(problem, which, tile.m)
                    m_tiles = boxes(problem, which, step)
                tiles = m_tiles * ceil_div(covers.n, tile.n) * covers.repeats
                if shares(problem, which, self.plan):
                    ways = splits(tiles, blocks, device, which != Pass.WGRAD)
                yield Option(
                    prepared(tile_kernel, call, device),
                    call,
                    merge,
                    fold,
                    pack,
                    step,
                    covers,
                    tiles,
                    blocks,
                    covers.loops,
                    ways,
                )

    def plan_of(self, option: Option, split: int) -> Plan:
        """The plan of an option whose reduction `split` programs share."""
        _, call, merge, fold, pack, step, *_ = option
        words = {"fold": True} if fold else {}
        return self.plan(call.which, self.name, *option.kernel.tile, split=split, step=step, pack=pack, merge=merge, **words)

    def candidates(self, call: Call, device: Device) -> list[Plan]:
        return [self.plan_of(option, split) for option in self.options(call, device) for split in option.splits]

    def quickest(self, call: Call, device: Device, below: float) -> tuple[float, Plan | None]:
        """See `Family.quickest`. The times are those of `predict`, but work that candidates share is done once."""
        size, group_m, which = itemsize(call.dtype), MatrixPlan.group_m, call.which
        best, best_split = None, 1
        shared: dict[tuple[int, bool, tuple[str, ...]], tuple[Traffic, int]] = {}
        for option in self.options(call, device):
            tile_kernel, kernels, merge, fold, pack, _, covers, tiles, blocks, loops, ways = option
            if (merge, fold, pack) not in shared:
                moves, copied = recast_traffic(call, kernels, merge, fold)
                copied += packed_bytes(kernels.problem, which, pack, size)
                shared[merge, fold, pack] = moves, moves.compulsory + copied
            moves, fixed = shared[merge, fold, pack]
            if at_least(tile_kernel, tiles, blocks * loops, fixed, launches(which, pack, 1, merge, fold), device) >= below:
                continue
            for split in ways:
                moved = fixed + split_bytes(moves, split)
                moved += read_again(tile_kernel, covers, split, group_m, kernels, moves.swept, device)
                n_trips = ceil_div(blocks, split) * loops
                time = seconds(tile_kernel, tiles * split, n_trips, moved, launches(which, pack, split, merge, fold), device)
                if time < below:
                    below, best, best_split = time, option, split
        return below, self.plan_of(best, best_split) if best else None

    def predict(self, call: Call, plan: MatrixPlan, device: Device) -> Prediction:
        return predict(call, plan, device)

    def counted(self, call: Call, plan: MatrixPlan) -> Counted:
        launched = launches(plan.which, plan.pack, plan.split, plan.merge, plan.fold)
        return Counted(issued_macs(call.problem, plan), extra_bytes(call, plan), launched)
