"""Predicted time of a plan: tile and wave quantisation over tensor, issue, L2 and DRAM limits. Plain arithmetic.

A first version: no term has been fitted to a measurement yet.
"""

from __future__ import annotations

from dataclasses import dataclass

from costmodel.algebra import ceil_div, product
from costmodel.device import Device
from costmodel.problem import Pass
from costmodel.resources import resources_of
from costmodel.tiling import Call, Plan, arithmetic, grid, issued_macs, itemsize, trips, vector_widths

#: Share of DRAM bandwidth a copy reaches (NVIDIA H100: 3.0 of 3.35 TB/s).
COPY_SHARE = 0.9
#: Clocks until a load that is not pipelined (narrower than 4 bytes) arrives, and a pipelined loop's fill.
LOAD_LATENCY = 600
#: Instructions of one trip that do not depend on the tile: counters, barriers, branches (read off compiled kernels).
TRIP_INSTRUCTIONS = 60
#: Seconds of Triton's interpreter for a program or a loop trip, and for each element loaded (two slow cores, Triton 3.7).
INTERPRETED_TRIP = 12e-3
INTERPRETED_ELEMENT = 3e-8


@dataclass(frozen=True)
class Prediction:
    """Seconds of one pass under a plan, and where they go. `bound` names the largest term."""

    seconds: float
    tiles: int
    waves: float
    tile_use: float  # share of issued multiply-adds that the dense count asks for
    bytes: int  # compulsory traffic plus the copies and workspace the plan adds
    bound: str


def extra_bytes(call: Call, plan: Plan) -> int:
    """Bytes a plan moves beyond the compulsory ones: packed copies (read and written), and wgrad's workspace."""
    problem, size = call.problem, itemsize(call.dtype)
    shapes = {
        Pass.FPROP: {"a": problem.input_shape, "b": problem.weight_shape},
        Pass.DGRAD: {"a": problem.output_shape, "b": problem.weight_shape},
        Pass.WGRAD: {"a": problem.output_shape, "b": problem.input_shape},
    }[plan.which]
    total = sum(2 * size * product(shapes[name]) for name in plan.pack)
    if plan.split > 1:
        total += 2 * (8 if size == 8 else 4) * plan.split * product(problem.weight_shape)
    return int(total)


def predict(call: Call, plan: Plan, device: Device) -> Prediction:
    """Time of one pass: launches, then the larger of DRAM time and of the multiprocessors' time over whole waves."""
    problem, size = call.problem, itemsize(call.dtype)
    m_tiles, n_tiles, repeats = grid(problem, plan)
    tiles = m_tiles * n_tiles * repeats
    n_trips = trips(problem, plan)
    moved = problem.bytes(size) + extra_bytes(call, plan)
    issued = issued_macs(problem, plan)
    tile_use = problem.macs / issued if issued else 1.0
    if device.interpreted:
        loaded = (plan.block_m + plan.block_n) * plan.block_k
        seconds = tiles * (1 + n_trips) * (INTERPRETED_TRIP + loaded * INTERPRETED_ELEMENT)
        return Prediction(seconds, tiles, float(tiles), tile_use, moved, "the interpreter")
    clock = device.clock * 1e6
    needs = resources_of(call, plan, device)
    shared = needs.shared if needs else plan.num_stages * (plan.block_m + plan.block_n) * plan.block_k * size
    registers = needs.registers if needs else 32 + plan.block_m * plan.block_n // (plan.num_warps * 32)
    resident = min(
        device.shared_per_sm // max(1, shared + 1024),
        device.registers_per_sm // max(1, registers * plan.num_warps * 32),
        device.warps_per_sm // plan.num_warps,
    )
    resident = max(1, resident)

    # clocks of one trip of one program that has the multiprocessor to itself
    peak = device.rate(call.dtype, call.precision) / device.sm_count / clock  # FLOP per clock and multiprocessor
    multiply = 2 * plan.block_m * plan.block_n * plan.block_k / peak
    width_a, width_b = vector_widths(call, plan)
    loads_a = plan.block_m * plan.block_k / width_a / 32  # warp instructions
    loads_b = plan.block_n * plan.block_k / width_b / 32
    base = needs.trip if needs else TRIP_INSTRUCTIONS
    issue = (base * plan.num_warps + 2 * (loads_a + loads_b)) / 4
    if arithmetic(call.dtype, call.precision) == "fp32":
        issue = 0  # counted by the FMA rate
    operand_bytes = (plan.block_m + plan.block_n) * plan.block_k * size
    from_l2 = operand_bytes / (device.l2_bandwidth * 1e9 / device.sm_count / clock)
    clocks = max(multiply, issue, from_l2)

    # latency is hidden by stages and by co-resident programs where loads are pipelined
    pipelined = width_a * size >= 4 and width_b * size >= 4
    exposed = LOAD_LATENCY / (plan.num_stages if pipelined else 1)
    per_sm = ceil_div(tiles, device.sm_count)
    together = min(resident, per_sm)
    trip = max(clocks, (clocks + exposed) / together)
    epilogue = plan.block_m * plan.block_n * size / (device.l2_bandwidth * 1e9 / device.sm_count / clock)
    busy = per_sm * (n_trips * trip + epilogue) + 2 * LOAD_LATENCY
    on_chip = busy / clock

    dram = moved / (device.bandwidth * 1e9 * COPY_SHARE)
    launches = 1 + len(plan.pack) + (1 if plan.split > 1 else 0)
    seconds = launches * device.launch_overhead + max(on_chip, dram)

    if launches * device.launch_overhead > max(on_chip, dram):
        bound = "launch"
    elif dram > on_chip:
        bound = "DRAM"
    else:
        bound = {multiply: "arithmetic", issue: "instruction issue", from_l2: "L2"}[clocks]
    return Prediction(
        seconds=seconds,
        tiles=tiles,
        waves=tiles / (device.sm_count * resident),
        tile_use=tile_use,
        bytes=moved,
        bound=bound,
    )
