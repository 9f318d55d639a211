"""Which kernel and tile a pass takes: the menu, what of it is legal, and the choice by least predicted time.

Nothing here runs or times a kernel. A row of the menu that spills, exceeds the device's shared memory or is not in the table
of compiled kernels (`costmodel.resources`) is no candidate.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from costmodel import band, depthwise_choice, timing, tma
from costmodel.algebra import ceil_div
from costmodel.depthwise import is_narrow
from costmodel.device import Device
from costmodel.executed import is_trusted
from costmodel.problem import ConvProblem, Pass
from costmodel.recast import folds
from costmodel.resources import compiled_for, estimated, resource_key, resource_table, too_large
from costmodel.tiling import (
    INTERPRETED_MENU,
    Call,
    Extent,
    Operand,
    Plan,
    Tile,
    access,
    arithmetic,
    boxes,
    extent,
    folded,
    full_shares,
    itemsize,
    merged,
    pixel_box,
    reduction_step,
    reduction_steps,
    shares,
    vector_widths,
)
from costmodel.timing import (
    Kernel,
    Prediction,
    Traffic,
    at_least,
    kernel,
    launches,
    packed_bytes,
    read_again,
    recast_traffic,
    seconds,
    split_bytes,
)

__all__ = ["MENU", "Call", "Operand", "Plan", "call_key", "candidates", "measured", "predict", "select"]

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


#: Most channels of a group of merged groups: beyond a tile's width, merging adds zeros to multiply and nothing to share.
MERGED_CHANNELS = 128


class Option(NamedTuple):
    """A compiled tile with its operands packed or not: one line of the ranking, to be split `splits` ways."""

    kernel: Kernel
    call: Call  # as the kernel sees it
    merge: int
    fold: bool
    family: str
    pack: tuple[str, ...]
    step: tuple[int, int, int, int] | None
    covers: Extent
    tiles: int
    blocks: int  # of a reduction, to be shared out
    loops: float  # main-loop trips for each
    splits: list[int]

    def plan(self, split: int) -> Plan:
        return Plan(
            self.call.which,
            self.family,
            *self.kernel.tile,
            split=split,
            step=self.step,
            pack=self.pack,
            merge=self.merge,
            fold=self.fold,
        )


@lru_cache(maxsize=1024)
def compiled(
    which: Pass, family: str, kind: str, reach: str, widths: tuple[int, int], size: int, device: Device
) -> list[Kernel]:
    """The menu's kernels that compile without a spill and fit the device, for operands reached as `costmodel.tiling.access`."""
    found = []
    menu = tma.menu(which, kind) if family == "tma" else INTERPRETED_MENU if device.interpreted else MENU[kind]
    for tile in menu:
        needs = resource_table().get(resource_key(Plan(which, family, *tile), kind, reach, device.capability))
        fits = needs is not None and not needs.spills and not too_large(tile, needs.shared, device)
        if fits or device.interpreted:
            found.append(kernel(family, tile, needs or estimated(tile, size), kind, size, widths, device))
    return found


def options(call: Call, device: Device) -> Iterator[Option]:
    """Every legal tile, with and without packed operands, merged groups and folded columns."""
    for merge in merges(call, device):
        yield from _options(merged(call, merge), merge, False, device)
    if folds(call.problem, call.which) and not device.interpreted:
        yield from _options(folded(call), 1, True, device)


def _options(call: Call, merge: int, fold: bool, device: Device) -> Iterator[Option]:
    problem, which, size = call.problem, call.which, itemsize(call.dtype)
    kind = arithmetic(call.dtype, call.precision)
    for family, pack in itertools.product(families(call, device), packings(call)):
        plain = Plan(which, family, 0, 0, 0, 0, 0, pack=pack)
        if family == "tma" and tma.serves(call, plain, device.capability):
            continue
        covers, reach = extent(problem, which, family), access(call, plain)
        beside = "folded" if reach == "wide" and call.out.unit != 1 else reach
        for of in compiled(which, family, kind, reach, vector_widths(call, plain), size, device):
            tile = of.tile
            if family == "tma":
                fits = tma.epilogue_fits(call.epilogue, tile) and not tma.rest(call, tile.k)
            else:
                fits = epilogue_fits(call.epilogue, beside, tile, size, device.capability)
            if not ((fits and addresses_fit(call, family, tile, device.capability)) or device.interpreted):
                continue
            m_tiles = ceil_div(covers.m, tile.m)
            step, blocks, ways = None, ceil_div(covers.depth, tile.k), [1]
            if which == Pass.WGRAD:
                step = reduction_step(problem, tile.k, family == "tma")
                blocks = reduction_steps(problem, step)
            elif family == "tma":
                step = pixel_box(problem, which, tile.m)
                m_tiles = boxes(problem, which, step)
            tiles = m_tiles * ceil_div(covers.n, tile.n) * covers.repeats
            if shares(problem, which, family):
                ways = splits(tiles, blocks, device, which != Pass.WGRAD)
            yield Option(of, call, merge, fold, family, pack, step, covers, tiles, blocks, covers.loops, ways)


def families(call: Call, device: Device) -> list[str]:
    """The GEMM kernels to consider. The interpreter takes boxes where a plan asks for them, and so does an architecture for
    which their code has not been executed."""
    own = "patch" if call.problem.is_patch else "gather"
    return [own, "tma"] if not device.interpreted and is_trusted("tma", device.capability) else [own]


def merges(call: Call, device: Device) -> list[int]:
    """How many groups may be laid together: powers of two, as long as they are narrower together than the widest tile.

    The interpreter, whose time goes by programs, would merge wherever it can; it does so where a plan asks for it.
    """
    problem = call.problem
    widest = max(problem.channels_per_group, problem.filters_per_group)
    if problem.groups == 1 or widest == 1 or device.interpreted:
        return [1]
    return [f for f in (1, 2, 4, 8, 16, 32, 64) if problem.groups % f == 0 and (f == 1 or f * widest <= MERGED_CHANNELS)]


def candidates(call: Call, device: Device) -> list[Plan]:
    """Every legal plan: rows of the menu that compile without a spill and fit, with and without packed operands, and the
    depthwise kernels' own."""
    own = depthwise_choice.candidates(call, device) if serves_depthwise(call.problem, device) else []
    own += band.candidates(call, device)
    if own and device.interpreted:
        return own
    return own + [option.plan(split) for option in options(call, device) for split in option.splits]


def serves_depthwise(problem: ConvProblem, device: Device) -> bool:
    """Whether the depthwise kernels are candidates. The interpreter runs groups of one channel or one filter by those alone,
    and others by them where a plan asks for it."""
    alone = 1 in (problem.channels_per_group, problem.filters_per_group)
    return is_narrow(problem) and (alone or not device.interpreted)


def addresses_fit(call: Call, family: str, tile: Tile, capability: int) -> bool:
    """Whether a tile is small enough to keep its addresses where the table of kernels does not say so.

    Patches of tensors whose channels are not contiguous need many; 64-bit offsets, which no row of the table has, take twice
    the registers: Triton 3.7.1 spilled on 128 x 128 tiles of a strided dgrad. Contiguous results may take a few more than the
    table's channels-last ones, which sm_80 has not: Triton 3.6 spilled on 128 x 256. `tests/test_aot.py` compiles some of what
    is left.
    """
    tensors = (call.a, call.b, call.out)
    planes = any(operand.unit != 1 for operand in tensors)
    patches = family == "patch" and call.problem.taps > 1 and planes
    far = call.which != Pass.WGRAD and any(operand.far for operand in tensors)
    if patches or far:
        return tile.m * tile.n <= 64 * 64
    full = compiled_for(capability) == 80 and call.which != Pass.WGRAD and call.out.unit != 1
    return not full or tile.m * tile.n <= 128 * 128


#: Most bytes of results in a tile whose epilogue compiles without a spill, by `Call.epilogue` and `costmodel.tiling.access`;
#: "folded" stands for wide operands of a contiguous result too. `tests/test_fused_aot.py` compiles the largest.
EPILOGUE_LIMIT = {
    "channels": {"wide": 32768, "folded": 32768, "narrow": 2048},
    "tensors": {"wide": 16384, "folded": 8192, "narrow": 2048},
    "heavy": {"wide": 8192, "folded": 8192, "narrow": 2048},
}


def epilogue_fits(epilogue: str, reach: str, tile: Tile, size: int, capability: int) -> bool:
    """Whether a tile of results of `size` bytes each is small enough for what follows it in the same kernel.

    Where results are wider than 16 bits sm_80 has room for less; on sm_100 a thread takes a whole row of a 128-row accumulator
    out of tensor memory, which leaves no registers.
    """
    if not epilogue:
        return True
    limit = EPILOGUE_LIMIT[epilogue][reach]
    if size == 2 and compiled_for(capability) == 100 and tile.m > 64:
        return False
    return tile.m * tile.n * size <= (limit if size == 2 else min(limit, 16384))


def packings(call: Call) -> list[tuple[str, ...]]:
    """Which operands may be copied to channels-last first: those whose channels are not contiguous already."""
    names = [name for name, operand in (("a", call.a), ("b", call.b)) if operand.unit != 1]
    choices: list[tuple[str, ...]] = [()]
    choices += [(name,) for name in names]
    return choices + ([tuple(names)] if len(names) == 2 else [])


def splits(tiles: int, blocks: int, device: Device, full: bool) -> list[int]:
    """How many programs may share a reduction of `blocks`: about powers of two, up to four waves of the device.

    `full` lowers a number to the next that leaves no program without a block.
    """
    room = max(1, 4 * device.sm_count // max(1, tiles))
    ways = [1 << i for i in range(room.bit_length()) if (1 << i) <= max(1, blocks)]
    return sorted({full_shares(blocks, way) for way in ways}) if full and blocks else ways


def predict(call: Call, plan: Plan, device: Device) -> Prediction:
    """The predicted time of a plan of any family."""
    own = {"depthwise": depthwise_choice.predict, "band": band.predict}
    return own.get(plan.family, timing.predict)(call, plan, device)


def call_key(call: Call) -> str:
    """Everything that a call's choice depends on, as words: what the table of measured plans is looked up by."""
    lie = " ".join(f"{operand.unit}/{operand.align}/{operand.outside}" for operand in (call.a, call.b, call.out))
    kind = f"{call.dtype} tf32" if arithmetic(call.dtype, call.precision) == "tf32" else call.dtype
    after = f" then {call.epilogue}" if call.epilogue else ""
    return f"{call.which} of {call.problem} in {kind}, {lie}{after}"


def measured(call: Call, device: Device) -> Plan | None:
    """The plan that was measured fastest for exactly this call on this device, where its table has one that is a candidate."""
    words = device.fastest.get(call_key(call)) if device.fastest else None
    plan = Plan.parse(words) if words else None
    return plan if plan is not None and plan in candidates(call, device) else None


def select(call: Call, device: Device) -> Plan:
    """The plan that was measured fastest for exactly this call, else the candidate with the least predicted time.

    Cached by callers; plain arithmetic. Raises RuntimeError where no kernel serves the call.
    """
    if (known := measured(call, device)) is not None:
        return known
    least, best = math.inf, None
    if serves_depthwise(call.problem, device):
        least, best = depthwise_choice.quickest(call, device)
    if (found := band.quickest(call, device, least))[1] is not None:
        least, best = found
    if best is None or not device.interpreted:
        best = _quickest(call, device, least) or best
    if best is None:
        raise RuntimeError(f"no plan for {call.which} of {call.problem} in {call.dtype} on {device.name}")
    return best


def _quickest(call: Call, device: Device, least: float) -> Plan | None:
    """The option of least time, if under `least` seconds: `timing.predict`, with the work that candidates share done once."""
    size, group_m, which = itemsize(call.dtype), Plan.group_m, call.which
    best, best_split = None, 1
    shared: dict[tuple[int, bool, tuple[str, ...]], tuple[Traffic, int]] = {}
    for option in options(call, device):
        of, kernels, merge, fold, _, pack, _, covers, tiles, blocks, loops, ways = option
        if (merge, fold, pack) not in shared:
            found, copied = recast_traffic(call, kernels, merge, fold)
            copied += packed_bytes(kernels.problem, which, pack, size)
            shared[merge, fold, pack] = found, found.compulsory + copied
        found, fixed = shared[merge, fold, pack]
        if at_least(of, tiles, blocks * loops, fixed, launches(which, pack, 1, merge, fold), device) >= least:
            continue
        for split in ways:
            moved = fixed + split_bytes(found, split)
            moved += read_again(of, covers, split, group_m, kernels, found.swept, device)
            n_trips = ceil_div(blocks, split) * loops
            time = seconds(of, tiles * split, n_trips, moved, launches(which, pack, split, merge, fold), device)
            if time < least:
                least, best, best_split = time, option, split
    return best.plan(best_split) if best else None
