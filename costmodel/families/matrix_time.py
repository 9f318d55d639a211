"""Predicted time of a plan of a matrix product: its launches, plus the larger of the chip's time and DRAM's for all traffic."""

from __future__ import annotations

import math
from typing import NamedTuple

from costmodel.device import Device
from costmodel.families.matrix import (
    MatrixPlan,
    arithmetic_of,
    extent,
    grid,
    issued_macs,
    resources_of,
    scattered_lines,
    seen,
    trips,
    vector_widths,
)
from costmodel.problem import ConvProblem, Pass
from costmodel.prologue import gathered, value_bytes
from costmodel.recast import fold_elements, folded_input
from costmodel.tiling import Call, itemsize
from costmodel.timing import (
    Kernel,
    Prediction,
    Traffic,
    borrowed,
    from_dram,
    interpreted,
    kernel,
    on_chip,
    overhead,
    read_again,
    traffic,
    trip_clocks,
)


def packed_bytes(problem: ConvProblem, which: Pass, pack: tuple[str, ...], size: int) -> int:
    """Bytes of copying operands to channels-last: each is read and written."""
    if not pack:
        return 0
    x, w, y = problem.input_shape, problem.weight_shape, problem.output_shape
    a, b = {Pass.FPROP: (x, w), Pass.DGRAD: (y, w), Pass.WGRAD: (y, x)}[which]
    return sum(2 * size * math.prod(a if name == "a" else b) for name in pack)


def merge_bytes(problem: ConvProblem, which: Pass, merge: int, size: int) -> int:
    """Bytes of merging groups: block-diagonal weights are cleared, then filled; a merged dw is taken apart."""
    if merge == 1:
        return 0
    weights = size * math.prod(problem.weight_shape)
    return 2 * weights if which == Pass.WGRAD else (merge + 2) * weights


def split_bytes(moves: Traffic, split: int) -> int:
    """Bytes of the partial sums of a shared reduction."""
    return moves.workspace * split if split > 1 else 0


def fold_traffic(moves: Traffic, problem: ConvProblem, which: Pass, size: int) -> Traffic:
    """What a folded call moves. Pixels that several windows see are counted once, since they are in memory once."""
    moved, _ = fold_elements(problem, which)
    swept = size * (math.prod(folded_input(problem)) + math.prod(problem.output_shape)) if which == Pass.WGRAD else moves.swept
    return moves._replace(compulsory=size * moved, swept=swept)


def recast_traffic(call: Call, kernels: Call, merge: int, fold: bool) -> tuple[Traffic, int]:
    """(what the kernel of `call` moves, bytes of the copies that recast it); `kernels` is the call as the kernel sees it."""
    moves, size = traffic(kernels), itemsize(call.dtype)
    copied = merge_bytes(call.problem, call.which, merge, size)
    copied += 0 if call.prologue is None else value_bytes(call.prologue, size)
    if fold:
        moves = fold_traffic(moves, call.problem, call.which, size)
        copied += size * fold_elements(call.problem, call.which)[1]
    return moves, copied


def extra_bytes(call: Call, plan: MatrixPlan) -> int:
    """Bytes that a plan moves beyond the compulsory ones: copies of operands and weights, partial sums."""
    kernels = seen(call, plan)
    moves, copied = recast_traffic(call, kernels, plan.merge, plan.fold)
    copied += packed_bytes(kernels.problem, plan.which, plan.pack, itemsize(call.dtype))
    return copied + split_bytes(moves, plan.split) + moves.compulsory - traffic(call).compulsory


def launches(which: Pass, pack: tuple[str, ...], split: int, merge: int, fold: bool = False) -> int:
    """Kernels of a pass: its own, one per copy, one to add partial sums. Merged or folded weights take two (clear and fill), a
    merged or folded dw one; the input of a fold takes two as well."""
    weights = (merge > 1 or fold) * (1 if which == Pass.WGRAD else 2)
    return 1 + len(pack) + (split > 1) + weights + 2 * fold


def seconds(tile_kernel: Kernel, tiles: int, n_trips: float, moved: float, kernels: int, device: Device) -> float:
    """Seconds of a pass of `kernels` launches: their overhead, plus the larger of the chip's time and DRAM's for `moved`
    bytes."""
    if device.interpreted:
        return interpreted(tile_kernel.tile, tiles, n_trips)
    busy, dram = on_chip(tile_kernel, tiles, n_trips, device), from_dram(moved, device, tile_kernel.constants)
    return overhead(kernels, device, tile_kernel.constants) + max(busy, dram)


def at_least(tile_kernel: Kernel, tiles: int, steps: float, moved: float, kernels: int, device: Device) -> float:
    """A lower bound of `seconds` for any split, to skip what cannot win: every wave is full and all latency is hidden."""
    if device.interpreted:
        return 0.0
    busy = tiles * steps * max(tile_kernel.clocks, tile_kernel.from_l2) / (device.sm_count * device.clock * 1e6)
    return overhead(kernels, device, tile_kernel.constants) + max(busy, from_dram(moved, device, tile_kernel.constants))


def prepared(tile_kernel: Kernel, call: Call, device: Device) -> Kernel:
    """The kernel with the prologue of a call."""
    if call.prologue is None:
        return tile_kernel
    pixels = math.prod(call.problem.output_size)
    spans = call.prologue.spans(tile_kernel.tile.m, pixels, call.problem.batch)
    return gathered(tile_kernel, call.prologue, device, spans)


class Parts(NamedTuple):
    """What the time of a pass under a plan is made of: the arguments of `seconds`."""

    kernel: Kernel
    tiles: int
    trips: float
    moved: int  # bytes
    launches: int


def parts(call: Call, plan: MatrixPlan, device: Device) -> Parts:
    """The parts of the time of one pass under a plan."""
    problem, kernels = call.problem, seen(call, plan)
    covers = extent(kernels.problem, plan.which, plan.patches)
    moved = traffic(call).compulsory + extra_bytes(call, plan)
    needs, kind = resources_of(call, plan, device), arithmetic_of(call, plan)
    widths, lines = vector_widths(call, plan), scattered_lines(call, plan)
    tile_kernel = kernel(plan.family, plan.tile, needs, kind, itemsize(call.dtype), widths, device, lines)
    tile_kernel = prepared(tile_kernel, kernels, device)
    swept = recast_traffic(call, kernels, plan.merge, plan.fold)[0].swept
    moved += read_again(tile_kernel, covers, plan.split, plan.group_m, kernels, swept, device)
    launched = launches(plan.which, plan.pack, plan.split, plan.merge, plan.fold)
    return Parts(tile_kernel, math.prod(grid(problem, plan)), trips(problem, plan), moved, launched)


def predict(call: Call, plan: MatrixPlan, device: Device) -> Prediction:
    """Time of one pass under a plan."""
    tile_kernel, tiles, n_trips, moved, launched = parts(call, plan, device)
    issued = issued_macs(call.problem, plan)
    total = seconds(tile_kernel, tiles, n_trips, moved, launched, device)
    bound = tile_kernel.bound if tile_kernel.clocks >= trip_clocks(tile_kernel, tiles, device) else "L2"
    if not device.interpreted:
        busy, dram = on_chip(tile_kernel, tiles, n_trips, device), from_dram(moved, device, tile_kernel.constants)
        bound = "DRAM" if dram > busy else bound
        bound = "launch" if overhead(launched, device, tile_kernel.constants) > max(busy, dram) else bound
    return Prediction(
        seconds=total,
        tiles=tiles,
        waves=tiles / (device.sm_count * tile_kernel.resident),
        tile_use=call.problem.macs / issued if issued else 1.0,
        bytes=moved,
        bound=bound,
        low=total * tile_kernel.constants.low,
        high=total * tile_kernel.constants.high,
        source=tile_kernel.constants.source + borrowed(device),
    )
