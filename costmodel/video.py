"""The causal convolution of a chunk of video: which tile its kernel takes, and how long it takes. Plain arithmetic, standard
library only. What it sees and moves: `costmodel.chunk`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from costmodel import prologue as ahead
from costmodel.algebra import ceil_div, product
from costmodel.arithmetic import arithmetic_named
from costmodel.chunk import TIME_PADDING as TIME_PADDING
from costmodel.chunk import Chunk, compulsory, elements
from costmodel.chunk import chain as chain
from costmodel.device import Device, find_device
from costmodel.families.gemm import MENU, GatherPlan
from costmodel.problem import Pass
from costmodel.resources import Resources, compiled_for, estimated, memory_refusal, resource_key, resource_table
from costmodel.tiling import (
    INTERPRETED_MENU,
    MAX_ALIGN,
    Extent,
    Plan,
    Tile,
    arithmetic,
    channels_last,
    itemsize,
    plan_option,
    tile_refusal,
)
from costmodel.timing import (
    Kernel,
    Prediction,
    borrowed,
    from_dram,
    interpreted,
    kernel,
    on_chip,
    overhead,
    read_again,
    trip_clocks,
)

FAMILY = "video"
#: Loads that a thread keeps in flight while it copies the next cache, and most elements of them: single elements need
#: registers.
COPIED_LOADS, COPIED = 4, 16
#: Instructions per trip beyond those of fprop's gather, by `upsample`: for the frame's address, and for the address of a tap in
#: a magnified frame (sm_90, `tests/test_video_aot.py`).
FRAME_INSTRUCTIONS = {1: 8, 2: 17}
#: The same of a padding mode, for the place of a tap's pixel, which is each row's own (`tests/test_prologue_aot.py`).
MODE_INSTRUCTIONS = {"zeros": 0, "replicate": 36, "reflect": 77, "circular": 86}


@dataclass(frozen=True)
class VideoPlan(Plan):
    """A plan of "video": `block_m` pixels x `block_n` filters, `block_k` channels at a time; `group_m` as in `MatrixPlan`.

    apart: a separate kernel applies the prologue to x first; otherwise each program applies it to the pixels that it gathers.
    split: how many programs share the channels of a small chunk; another kernel then adds their sums."""

    group_m: int = plan_option("group", 8)
    apart: bool = plan_option("apart", False)
    split: int = plan_option("split", 1)


def tiles(chunk: Chunk, plan: VideoPlan) -> tuple[int, int]:
    """(m tiles, n tiles) of a launch. An m tile has pixels of one frame, and with `upsample` of one parity."""
    batch, filters, frames, *size = chunk.output_shape
    pixels = product(ceil_div(n, chunk.upsample) for n in size)
    per_group = frames * chunk.upsample**2 * ceil_div(pixels, plan.block_m)
    groups = chunk.problem.groups
    return batch * per_group, groups * ceil_div(filters // groups, plan.block_n)


def shares(chunk: Chunk, plan: VideoPlan) -> tuple[int, int]:
    """(blocks of channels that a program sums, programs that share a reduction), each of which sums one block at least."""
    blocks = ceil_div(chunk.depth, plan.block_k)
    blocks_each = ceil_div(blocks, plan.split)
    return blocks_each, ceil_div(blocks, blocks_each)


def copied_by_one(chunk: Chunk, plan: VideoPlan, dtype: str) -> int:
    """Elements of the next cache that one program copies."""
    return 32 * plan.num_warps * max(COPIED, COPIED_LOADS * width_of(chunk, dtype))


def copies(chunk: Chunk, plan: VideoPlan, dtype: str) -> int:
    """Programs that fill the next cache."""
    frame = chunk.problem.in_channels * product(chunk.frame)
    return chunk.problem.batch * chunk.kept * ceil_div(frame, copied_by_one(chunk, plan, dtype))


def trips(chunk: Chunk, plan: VideoPlan) -> float:
    """Main-loop trips of one program, on average over the frames of the result."""
    _, r, s = chunk.window
    per_block = r * s * shares(chunk, plan)[0]
    return per_block * chunk.live_taps / max(1, chunk.output_shape[2])


def refusal(chunk: Chunk, plan: Plan, dtype: str, precision: str, device: Device) -> str:
    """Why the kernel cannot run a call under a plan; "" where it can."""
    if plan.which != Pass.FPROP or not isinstance(plan, VideoPlan):
        return f"a causal convolution takes plans fprop:{FAMILY}, got {plan.which}:{plan.family}"
    for name, block in (("block_m", plan.block_m), ("block_n", plan.block_n), ("block_k", plan.block_k)):
        if block < 16 or block & (block - 1):
            return f"{name} must be a power of two of at least 16, got {block}"
    if reason := tile_refusal(plan):
        return reason
    if plan.group_m < 1:
        return f"group must be positive, got {plan.group_m}"
    if plan.split < 1 or shares(chunk, plan)[1] != plan.split:
        blocks = ceil_div(chunk.depth, plan.block_k)
        return f"its {blocks} blocks of channels cannot be shared evenly by split={plan.split} programs"
    if plan.apart and chunk.prologue is None:
        return "apart is for a call with a prologue"
    if plan.group_m * ceil_div(chunk.problem.out_channels, plan.block_n) >= 1 << 31:
        return f"group times blocks of filters must be below 2^31, got group {plan.group_m}"
    return memory_refusal(plan.tile, resources_of(chunk, plan.tile, dtype, precision, device).shared, device)


def checked(chunk: Chunk, plan: Plan, dtype: str, precision: str, device: Device) -> VideoPlan:
    """A forced plan. Raises ValueError where it cannot run the call."""
    if reason := refusal(chunk, plan, dtype, precision, device):
        raise ValueError(f"plan {plan} cannot run {chunk}: {reason}")
    assert isinstance(plan, VideoPlan)
    return plan


def width_of(chunk: Chunk, dtype: str) -> int:
    """Elements per load: channels are contiguous, and all other strides are multiples of a group's channel count."""
    return math.gcd(chunk.depth, MAX_ALIGN, max(1, 16 // itemsize(dtype)))


def compiled(chunk: Chunk, tile: Tile, dtype: str, precision: str, device: Device) -> Resources | None:
    """What the compiled kernel needs: the table's row of fprop's gather, plus instructions for the frame's address. None for a
    tile that is not in the table."""
    width = width_of(chunk, dtype)
    reach = "wide" if width * itemsize(dtype) == 16 else "narrow"
    key = resource_key(GatherPlan(Pass.FPROP, "gather", *tile), arithmetic(dtype, precision), reach, device.capability)
    resources = resource_table().get(key)
    instructions = FRAME_INSTRUCTIONS[chunk.upsample] + MODE_INSTRUCTIONS[chunk.mode]
    return resources and resources._replace(trip=resources.trip + instructions)


def resources_of(chunk: Chunk, tile: Tile, dtype: str, precision: str, device: Device) -> Resources:
    """What a tile's kernel needs: `compiled`, or an estimate."""
    return compiled(chunk, tile, dtype, precision, device) or estimated(tile, itemsize(dtype))


def addresses_fit(tile: Tile, size: int, wide: bool, last: bool, far: bool, capability: int) -> bool:
    """Whether a tile keeps its addresses in registers, for cases that the table of fprop's gather does not have.

    It does not at 256 rows of a contiguous result; at 128 rows of channels that are not read 16 bytes at a time; on sm_80 at
    128 x 256 where filters end inside a tile; on sm_100 at 128 x 256 of a contiguous result, or 64 x 128 of 4 bytes each.
    64-bit offsets take twice the registers.
    """
    results, arch = tile.m * tile.n, compiled_for(capability)
    if far:
        return results <= 64 * 64
    if tile.m > 128 and not last:
        return False
    if arch == 80:
        return results <= 128 * 128 and (wide or tile.m <= 64)
    return arch != 100 or last or results <= (128 * 128 if size == 2 else 64 * 64)


def residual_fits(tile: Tile, last: bool, capability: int) -> bool:
    """Whether a tile begins its sums with a residual without a spill: above 128 x 128 results on sm_90 only (on sm_100 Triton
    3.6 spills), and only where result and residual are channels-last; elsewhere on sm_100 not above 64 x 64."""
    if compiled_for(capability) == 100 and not last and tile.m * tile.n > 64 * 64:
        return False
    return tile.m * tile.n <= 128 * 128 or (last and compiled_for(capability) == 90)


def candidates(
    chunk: Chunk, dtype: str, precision: str, device: Device, last: bool = True, far: bool = False
) -> list[VideoPlan]:
    """The menu's tiles that compile without a spill and fit the device, with a prologue both together and apart. `last`: the
    result, and a residual, are channels-last. `far`: a frame, the weights or a frame of the result take 64-bit offsets."""
    if device.interpreted:
        return [VideoPlan(Pass.FPROP, FAMILY, *tile) for tile in INTERPRETED_MENU]
    plans = []
    size = itemsize(dtype)
    wide = width_of(chunk, dtype) * size == 16
    for tile in MENU[arithmetic(dtype, precision)]:
        needs = compiled(chunk, tile, dtype, precision, device)
        fits = needs is not None and not needs.spills and not memory_refusal(tile, needs.shared, device)
        if not fits or not addresses_fit(tile, size, wide, last, far, device.capability):
            continue
        if chunk.residual and not residual_fits(tile, last, device.capability):
            continue
        if chunk.prologue is None or ahead.fits(tile, size, device.capability):
            plans.append(VideoPlan(Pass.FPROP, FAMILY, *tile))
        if chunk.prologue is not None:
            plans.append(VideoPlan(Pass.FPROP, FAMILY, *tile, apart=True))
    return plans + [shared for plan in plans for shared in splits(chunk, plan, device)]


def splits(chunk: Chunk, plan: VideoPlan, device: Device) -> list[VideoPlan]:
    """The plan with a shared reduction, where its programs leave multiprocessors idle. With more than 128 x 128 results per
    tile the partial sums would spill where they are stored."""
    if product(tiles(chunk, plan)) >= device.sm_count or plan.block_m * plan.block_n > 128 * 128:
        return []
    shared = (replace(plan, split=split) for split in (2, 3, 4, 6, 8))
    return [shared_plan for shared_plan in shared if shares(chunk, shared_plan)[1] == shared_plan.split]


def kernel_of(chunk: Chunk, plan: VideoPlan, dtype: str, precision: str, device: Device) -> Kernel:
    needs, width = resources_of(chunk, plan.tile, dtype, precision, device), width_of(chunk, dtype)
    plain = kernel(FAMILY, plan.tile, needs, arithmetic(dtype, precision), itemsize(dtype), (width, width), device)
    return ahead.gathered(plain, chunk.prologue, device)


def predict(
    chunk: Chunk, plan: VideoPlan, dtype: str, precision: str, device: Device, copied: tuple[str, ...] = ()
) -> Prediction:
    """Seconds of a call under a plan. `copied` names the tensors (keys of `elements`) that are copied to another layout
    first."""
    if chunk.prologue is not None and plan.apart:  # two kernels; the first reads x in any layout
        others = tuple(name for name in copied if name != "x")
        second = predict(replace(chunk, prologue=None), replace(plan, apart=False), dtype, precision, device, others)
        moved, first = ahead.applied(elements(chunk)["x"], chunk.prologue, itemsize(dtype), device, FAMILY)
        total = second.seconds + first
        low, high = (end / second.seconds * total for end in (second.low, second.high))
        return replace(second, seconds=total, bytes=second.bytes + moved, low=low, high=high)
    problem, size, tile_kernel = chunk.problem, itemsize(dtype), kernel_of(chunk, plan, dtype, precision, device)
    m_tiles, n_tiles = tiles(chunk, plan)
    count, n_trips = m_tiles * n_tiles * plan.split, trips(chunk, plan)
    moved = compulsory(chunk, size) + sum(2 * size * elements(chunk)[name] for name in copied)
    groups = problem.groups
    covers = Extent(m_tiles * plan.block_m, problem.out_channels // groups, groups, chunk.depth, product(chunk.window))
    moved += 0 if chunk.prologue is None else ahead.value_bytes(chunk.prologue, size)
    weights = size * chunk.weights
    moved += weights - size * elements(chunk)["weight"]
    moved += read_again(tile_kernel, covers, 1, plan.group_m, channels_last(problem, Pass.FPROP, dtype), weights, device)
    launched = 1 + len(copied) + (plan.split > 1)
    if plan.split > 1:
        moved += 2 * plan.split * max(4, size) * elements(chunk)["y"]
    if device.interpreted:
        total, bound = interpreted(plan.tile, count, n_trips), tile_kernel.bound
    else:
        # without a result the launch only fills the next cache
        busy = on_chip(tile_kernel, count, n_trips, device) if count else 0.0
        dram = from_dram(moved, device, tile_kernel.constants)
        start = overhead(launched, device, tile_kernel.constants)
        total, bound = (
            start + max(busy, dram),
            tile_kernel.bound if tile_kernel.clocks >= trip_clocks(tile_kernel, count, device) else "L2",
        )
        bound = "DRAM" if dram > busy else bound
        bound = "launch" if start > max(busy, dram) else bound
    issued = count * n_trips * plan.block_m * plan.block_n * plan.block_k
    return Prediction(
        seconds=total,
        tiles=count,
        waves=count / (device.sm_count * tile_kernel.resident),
        tile_use=min(1.0, problem.macs / issued) if issued else 1.0,
        bytes=moved,
        bound=bound,
        low=total * tile_kernel.constants.low,
        high=total * tile_kernel.constants.high,
        source=tile_kernel.constants.source + borrowed(device),
    )


@lru_cache(maxsize=1024)
def select(chunk: Chunk, dtype: str, precision: str, device: Device, last: bool = True, far: bool = False) -> VideoPlan:
    """The candidate of least predicted time. Raises RuntimeError where there is none."""
    plans = candidates(chunk, dtype, precision, device, last, far)
    if not plans:
        raise RuntimeError(f"no plan for {chunk} in {dtype} on {device.name}")
    return min(plans, key=lambda plan: predict(chunk, plan, dtype, precision, device).seconds)


def forecast(
    x: Sequence[int],
    weight: Sequence[int],
    cached: int = 0,
    device: Device | str = "h100",
    *,
    dtype: Any = None,
    precision: str = "tf32",
    **window: Any,
) -> Prediction:
    """Seconds of a call on channels-last tensors, for a caller without tensors. `window` is as in `Chunk.of`, `dtype` as in
    `costmodel.predict`. Raises ValueError for an unknown device, or a dtype that the device does not multiply.

    >>> prediction = forecast((1, 384, 1, 60, 104), (384, 384, 3, 3, 3), 2, padding=(1, 1, 1, 1))
    >>> print(f"{prediction.bytes / 1e6:.0f} MB")
    37 MB
    """
    device = find_device(device)
    dtype, precision, remark = arithmetic_named(dtype, device, precision)
    chunk = Chunk.of(x, weight, cached, **window)
    return predict(chunk, select(chunk, dtype, precision, device), dtype, precision, device).noted(remark)
