"""The "band" family, 2-D depthwise convolution on tensor cores: what its kernels serve, what they issue, how long they take.
Plain arithmetic, standard library only.

A channel's filter is a banded (Toeplitz) matrix [pixels of a window, pixels of a block of outputs], the same for every block
of every image. Per channel there is one matrix product, whose rows are blocks: fprop and dgrad multiply windows by the band,
wgrad multiplies blocks of dy by windows and sums the diagonals. Windows are cut to the image. Pixels are read and written in
vectors of 8; a tensor whose rows are not whole vectors is copied to contiguous rows with zeros at their ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from costmodel.algebra import ceil_div
from costmodel.device import Device
from costmodel.executed import is_trusted
from costmodel.families.band_windows import (
    VECTOR,
    Band,
    BandPlan,
    Launch,
    Shape,
    band_of,
    blocks_of,
    launch_of,
    planned,
    rounded_up,
    rows_met,
    shape_of,
)
from costmodel.families.protocol import Counted, Family
from costmodel.problem import ConvProblem, Pass
from costmodel.resources import Resources, estimated, memory_refusal
from costmodel.tiling import Call, Operand, Plan, Tile, arithmetic, itemsize, pack_refusal, reach_refusal
from costmodel.timing import (
    Kernel,
    Prediction,
    borrowed,
    from_dram,
    interpreted,
    kernel,
    on_chip,
    overhead,
    traffic,
    trip_clocks,
)

__all__ = [
    "VECTOR",
    "Band",
    "BandPlan",
    "Launch",
    "Shape",
    "band_of",
    "launch_of",
    "planned",
    "rounded_up",
    "rows_met",
    "shape_of",
]

#: Elements that a program of `table_kernel` and of wgrad's sum makes.
TABLE_BLOCK, REDUCE_BLOCK = 1024, 128
#: Fewest taps of a filter for which plans are ranked (11 x 11). Below that the FMA kernels are as fast within the error of both
#: predictions.
LEAST_TAPS = 121
#: Warp instructions per 32 sums of wgrad to sum the diagonals: an exchange through shared memory, then four masked additions
#: (compiled kernels take 30 to 32).
DIAGONAL_INSTRUCTIONS = 32
#: Most sums per thread that compile without a spill where the kernel also runs an epilogue, by `Call.epilogue`.
#: `tests/test_band_aot.py` compiles the largest.
EPILOGUE_SUMS = {"channels": 128, "tensors": 64, "heavy": 64}
INT32_MAX = 2**31 - 1
#: Most programs that share the blocks of one tile of wgrad.
MAX_SPLIT = 64


def refusal(call: Call, plan: BandPlan, device: Device | None = None) -> str:
    """Why a band plan cannot serve a call; "" where it can."""
    if reason := pack_refusal(plan.pack) or call_refusal(call, plan.pack):
        return reason
    wgrad = call.which == Pass.WGRAD
    for name, block in (("block_m", plan.block_m), ("block_n", plan.block_n), ("block_k", plan.block_k)):
        if block < 16 or block & (block - 1):
            return f"{name} must be a power of two of at least 16, got {block}"
    outputs, window = (plan.block_m, plan.block_n) if wgrad else (plan.block_n, plan.block_k)
    if (
        plan.step is None
        or plan.step[:2] != (1, 1)
        or min(plan.step) < 1
        or math.prod(plan.step) != outputs
        or plan.step[3] % VECTOR
    ):
        return f"step must be 1 x 1 x rows x a multiple of {VECTOR} columns with product {outputs}, got {plan.step}"
    if plan.rows < 1 or plan.rows & (plan.rows - 1) or window < VECTOR * plan.rows:
        return f"rows must be a power of two of at most {window // VECTOR}, got {plan.rows}"
    if wgrad and (plan.rows < plan.step[2] or window // plan.rows < plan.step[3]):
        return f"a tile of {plan.rows} x {window // plan.rows} pixels must hold a block of {plan.step[2]} x {plan.step[3]}"
    if plan.split < 1 or (plan.split > 1 and not wgrad):
        return f"split must be 1 for {call.which}, got {plan.split}"
    shape = shape_of(call.problem, plan.which)
    if not counts(shape, band_of(plan)) or planned(call.problem, plan).programs > INT32_MAX:
        return "32 bits do not count its blocks, taps and programs"
    if not epilogue_fits(call.epilogue, plan):
        return f"{plan.block_m} x {plan.block_n} sums leave {plan.num_warps} warps no registers for what follows"
    return memory_refusal(plan.tile, resources(call, plan).shared, device)


def call_refusal(call: Call, pack: tuple[str, ...] = ()) -> str:
    """Why no band plan can serve a call; "" where one can."""
    problem = call.problem
    if problem.rank != 2 or not problem.groups == problem.in_channels == problem.out_channels:
        return "it serves 2-D layers whose groups have one channel and one filter"
    if {*problem.stride, *problem.dilation} != {1}:
        return f"stride and dilation must be 1, got {problem.stride} and {problem.dilation}"
    if reason := reach_refusal(problem):
        return reason
    if arithmetic(call.dtype, call.precision) != "half":
        return f"tensor cores take its operands in 16 bits, got {call.dtype}"
    if "b" in pack and call.which != Pass.WGRAD:
        return "weights are read as they lie"
    return ""


def counts(shape: Shape, band: Band) -> bool:
    """Whether 32 bits can count the blocks of all images, and the elements of a channel's table of taps."""
    blocks, taps = shape.images * blocks_of(shape, band.box) + band.blocks, shape.kernel[0] * VECTOR * shape.pitch
    return max(blocks, taps) <= INT32_MAX


def packing(call: Call) -> tuple[str, ...]:
    """The operands that must be copied, because their rows are not whole, aligned vectors of pixels."""
    x, y = call.problem.input_shape, call.problem.output_shape
    pixels = [("a", call.a, x if call.which == Pass.FPROP else y)]
    if call.which == Pass.WGRAD:
        pixels.append(("b", call.b, x))
    return tuple(letter for letter, operand, shape in pixels if not in_vectors(operand, shape))


def completed(call: Call, plan: BandPlan) -> BandPlan:
    """A plan with the copies that it needs."""
    return replace(plan, pack=tuple(sorted({*plan.pack, *packing(call)})))


def in_vectors(operand: Operand, shape: tuple[int, ...]) -> bool:
    """Whether the rows of a tensor of pixels are contiguous and made of whole, aligned vectors."""
    return operand.unit == 4 and operand.aligned and operand.outside % VECTOR == 0 and shape[-1] % VECTOR == 0


def copies_result(call: Call) -> bool:
    """Whether a result is computed in another buffer first, because its rows are not whole vectors."""
    shape = call.problem.input_shape if call.which == Pass.DGRAD else call.problem.output_shape
    return call.which != Pass.WGRAD and not in_vectors(call.out, shape)


def results_copied(call: Call) -> int:
    """How many tensors of the result's size are copied: the result, and a residual or z."""
    return copies_result(call) * (2 if call.epilogue in ("tensors", "heavy") else 1)


#: Tiles of fprop and dgrad: blocks, box, rows, columns, warps, stages.
MENU = (
    (128, (8, 32), 1, 32, 8, 4),
    (128, (8, 32), 2, 32, 8, 3),
    (128, (4, 64), 1, 32, 8, 4),
    (128, (16, 16), 2, 16, 8, 4),
    (128, (16, 16), 1, 32, 8, 4),
    (128, (4, 32), 1, 32, 8, 4),
    (64, (8, 32), 1, 32, 4, 4),
    (64, (16, 16), 2, 16, 4, 4),
    (64, (4, 32), 1, 32, 4, 4),
    (64, (8, 16), 2, 16, 4, 4),
    (64, (2, 16), 1, 32, 4, 4),
    (16, (8, 16), 2, 16, 4, 4),
    (16, (2, 32), 1, 32, 4, 4),
    (16, (2, 16), 2, 16, 4, 4),
)
#: Tiles of wgrad. A trip takes one block, at the same place, of each of several images.
WGRAD_MENU = (
    (32, (4, 32), 4, 32, 8, 3),
    (32, (8, 16), 8, 16, 8, 3),
    (32, (2, 32), 2, 32, 4, 3),
    (32, (4, 16), 4, 16, 4, 3),
    (16, (4, 32), 4, 32, 8, 4),
    (16, (4, 16), 4, 16, 4, 4),
)


def plans(call: Call, device: Device) -> Iterator[BandPlan]:
    """The plans of the menu that fit the device."""
    pack = packing(call)
    if call_refusal(call, pack) or call.problem.taps < LEAST_TAPS:
        return
    which, shape = call.which, shape_of(call.problem, call.which)
    for blocks, box, rows, columns, warps, stages in WGRAD_MENU if which == Pass.WGRAD else MENU:
        outputs, window, step = math.prod(box), rows * columns, (1, 1, *box)
        tile = (outputs, window, blocks) if which == Pass.WGRAD else (blocks, outputs, window)
        plan = BandPlan(which, "band", *tile, warps, stages, step=step, pack=pack, rows=rows)
        if memory_refusal(plan.tile, resources(call, plan).shared, device) or not epilogue_fits(call.epilogue, plan):
            continue
        if not counts(shape, band_of(plan)):
            continue
        ways = splits(shape, band_of(plan), device) if which == Pass.WGRAD else (1,)
        for split in ways:
            yield replace(plan, split=split)


def epilogue_fits(epilogue: str, plan: BandPlan) -> bool:
    """Whether a tile leaves its threads enough registers for the epilogue."""
    return not epilogue or plan.block_m * plan.block_n <= EPILOGUE_SUMS[epilogue] * 32 * plan.num_warps


def splits(shape: Shape, band: Band, device: Device) -> list[int]:
    """The numbers of programs that may share wgrad's blocks."""
    room = min(MAX_SPLIT, max(1, 4 * device.sm_count // launch_of(shape, Pass.WGRAD, band, 1).programs))
    steps = blocks_of(shape, band.box) * ceil_div(shape.images, band.blocks)
    return [1 << i for i in range(room.bit_length()) if 1 << i <= steps]


def candidates(call: Call, device: Device) -> list[BandPlan]:
    """Every band plan worth predicting. There is none for the interpreter, nor for an architecture whose compiled code has not
    been executed; `plan=` still runs band kernels there."""
    return [] if device.interpreted or not is_trusted("band", device.capability) else list(plans(call, device))


def resources(call: Call, plan: BandPlan) -> Resources:
    """Registers, shared bytes and instructions per trip, estimated from compiled kernels: sums, then loads with their addresses
    and masks. `tests/test_band_aot.py` holds the estimates against the compiler."""
    size, threads = itemsize(call.dtype), 32 * plan.num_warps
    m, n, k = plan.block_m, plan.block_n, plan.block_k
    sums, loads = m * n // threads, max(1, m * k // (VECTOR * threads)) + max(1, n * k // (VECTOR * threads))
    shared = estimated(plan.tile, size).shared
    if plan.which == Pass.WGRAD:
        shared = max(shared, 4 * m * n)
    return Resources(min(255, 64 + 4 * sums // 3), shared, 0, 70 + 12 * loads)


def workspace(shape: Shape, which: Pass, band: Band, split: int) -> tuple[int, ...]:
    """The shape of the memory between the two kernels of a pass. fprop and dgrad: the table of taps [channel, row, 8, pitch].
    wgrad: partial sums [split, channel, tile, wrapped rows, wrapped columns, pixels of a window]."""
    if which != Pass.WGRAD:
        return shape.channels, shape.kernel[0], VECTOR, shape.pitch
    return split, shape.channels, launch_of(shape, which, band, split).tiles, 2, 2, band.rows * band.columns


def extra_bytes(call: Call, plan: BandPlan) -> int:
    """Bytes beyond the compulsory ones, each written and read: the workspace, and copies."""
    shape, which = shape_of(call.problem, plan.which), plan.which
    elements = math.prod(workspace(shape, which, band_of(plan), plan.split))
    return 2 * elements * (4 if which == Pass.WGRAD else itemsize(call.dtype)) + copied_bytes(call, plan)


def copied_bytes(call: Call, plan: BandPlan) -> int:
    """Bytes of copies of operands and result."""
    shape = shape_of(call.problem, plan.which)
    windows, blocks = (shape.images * shape.channels * math.prod(n) for n in (shape.inputs, shape.outputs))
    a, b = (blocks, windows) if plan.which == Pass.WGRAD else (windows, 0)
    copied = a * ("a" in plan.pack) + b * ("b" in plan.pack) + blocks * results_copied(call)
    return 2 * copied * itemsize(call.dtype)


def launches(call: Call, plan: BandPlan) -> int:
    """Kernels of a pass: two of its own, one per copied operand, one more where its rows end in zeros, and the copies of
    results."""
    widths = {"a": call.problem.input_size[1], "b": call.problem.input_size[1]}
    if call.which != Pass.FPROP:
        widths["a"] = call.problem.output_size[1]
    return 2 + sum(1 + (widths[letter] % VECTOR > 0) for letter in plan.pack) + results_copied(call)


def issued_macs(problem: ConvProblem, plan: BandPlan) -> int:
    """Multiply-adds that the tiles compute, those on the zeros beside the band included."""
    return planned(problem, plan).trips * plan.block_m * plan.block_n * plan.block_k


def predict(call: Call, plan: BandPlan, device: Device) -> Prediction:
    """The time of the launches and copies, plus the larger of DRAM's time and the chip's, whose programs have mean length."""
    problem, launch, size = call.problem, planned(call.problem, plan), itemsize(call.dtype)
    tile = Tile(plan.block_m, plan.block_n, plan.block_k, plan.num_warps, plan.num_stages)
    tile_kernel: Kernel = kernel("band", tile, resources(call, plan), "half", size, (VECTOR, VECTOR), device)
    if plan.which == Pass.WGRAD:
        diagonals = DIAGONAL_INSTRUCTIONS * plan.block_m * plan.block_n / 32 / (4 * tile_kernel.constants.issue)
        tile_kernel = tile_kernel._replace(epilogue=diagonals)
    share = (plan.block_m + plan.block_n * launch.read) / (plan.block_m + plan.block_n)
    tile_kernel = tile_kernel._replace(from_l2=tile_kernel.from_l2 * share, from_l2_alone=tile_kernel.from_l2_alone * share)
    moved = traffic(call).compulsory + extra_bytes(call, plan)
    busy = on_chip(tile_kernel, launch.programs, launch.trips / launch.programs, device)
    copied = from_dram(copied_bytes(call, plan), device, tile_kernel.constants)
    dram = from_dram(moved, device, tile_kernel.constants) - copied
    launched = overhead(launches(call, plan), device, tile_kernel.constants)
    total = launched + copied + max(busy, dram)
    bound = tile_kernel.bound if tile_kernel.clocks >= trip_clocks(tile_kernel, launch.programs, device) else "L2"
    bound = "DRAM" if copied + dram > busy else bound
    bound = "launch" if launched > max(busy, dram) else bound
    if device.interpreted:
        total, bound = interpreted(tile, launch.programs, launch.trips / launch.programs), tile_kernel.bound
    return Prediction(
        seconds=total,
        tiles=launch.programs,
        waves=launch.programs / (device.sm_count * tile_kernel.resident),
        tile_use=min(1.0, problem.macs / issued_macs(problem, plan)),
        bytes=moved,
        bound=bound,
        low=total * tile_kernel.constants.low,
        high=total * tile_kernel.constants.high,
        source=tile_kernel.constants.source + borrowed(device),
    )


def at_least(call: Call, plan: BandPlan, device: Device) -> float:
    """A lower bound of `predict` in seconds: the launches, and DRAM for every byte."""
    constants = device.calibration("band")
    moved = traffic(call).compulsory + extra_bytes(call, plan)
    return overhead(launches(call, plan), device, constants) + from_dram(moved, device, constants)


def quickest(call: Call, device: Device, least: float) -> tuple[float, Plan | None]:
    """(predicted seconds, plan) of the candidate of least time, if that is under `least` seconds."""
    best = None
    for plan in candidates(call, device):
        if at_least(call, plan, device) >= least:
            continue
        time = predict(call, plan, device).seconds
        if time < least:
            least, best = time, plan
    return least, best


class BandFamily(Family):
    """The family."""

    name, plan, narrow = "band", BandPlan, True
    kernels = ("band", "band_wgrad")
    executed, special = (80, 90), True

    def refusal(self, call: Call, plan: BandPlan, device: Device | None) -> str:
        return refusal(call, plan, device)

    def completed(self, call: Call, plan: BandPlan) -> Plan:
        return completed(call, plan)

    def candidates(self, call: Call, device: Device) -> list[Plan]:
        return [*candidates(call, device)]

    def quickest(self, call: Call, device: Device, below: float) -> tuple[float, Plan | None]:
        return quickest(call, device, below)

    def predict(self, call: Call, plan: BandPlan, device: Device) -> Prediction:
        return predict(call, plan, device)

    def counted(self, call: Call, plan: BandPlan) -> Counted:
        return Counted(issued_macs(call.problem, plan), extra_bytes(call, plan), launches(call, plan))


FAMILIES = (BandFamily(),)
