"""Which kernel and tile a pass takes: the menu, what of it is legal, and the choice by least predicted time.

Nothing here runs or times a kernel. A row of the menu that spills, exceeds the device's shared memory or is not in the table
of compiled kernels (`costmodel.resources`) is no candidate.
"""

from __future__ import annotations

from dataclasses import replace

from costmodel import depthwise
from costmodel.cost import Prediction, predict
from costmodel.device import Device
from costmodel.problem import ConvProblem, Pass
from costmodel.resources import resources_of
from costmodel.tiling import Call, Operand, Plan, Tile, arithmetic, grid, reduction_step, trips

__all__ = ["MENU", "Call", "Operand", "Plan", "candidates", "select"]

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


#: The interpreter's menu: its time goes by programs and trips, so tiles may be larger than any GPU takes.
INTERPRETED_MENU = tuple(Tile(m, n, k, 4, 3) for m in (16, 128, 512, 2048) for n in (16, 64) for k in (16, 64, 256, 1024))


def candidates(call: Call, device: Device) -> list[Plan]:
    """Every legal plan: rows of the menu that compile without a spill and fit, with and without packed operands."""
    problem, which = call.problem, call.which
    plans = depthwise.candidates(call, device) if depthwise.is_depthwise(problem) else []
    if plans and device.interpreted:
        return plans
    family = "patch" if problem.is_patch else "gather"
    for tile in INTERPRETED_MENU if device.interpreted else MENU[arithmetic(call.dtype, call.precision)]:
        base = Plan(which, family, tile.m, tile.n, tile.k, tile.warps, tile.stages)
        if which == Pass.WGRAD:
            base = replace(base, step=reduction_step(problem, tile.k))
        for pack in packings(call, base):
            plan = replace(base, pack=pack)
            needs = resources_of(call, plan, device)
            compiles = needs is not None and not needs.spills and needs.shared <= device.shared_per_block
            if not (compiles and addresses_fit(call, plan)) and not device.interpreted:
                continue
            plans += [replace(plan, split=split) for split in splits(problem, plan, device)]
    return plans


def addresses_fit(call: Call, plan: Plan) -> bool:
    """Whether a tile is small enough to keep its addresses: patches of tensors whose channels are not contiguous need many
    (above 64 x 64, Triton 3.7.1 spilled on every such kernel tried)."""
    planes = any(operand.unit != 1 for operand in (call.a, call.b, call.out))
    return not (plan.family == "patch" and call.problem.taps > 1 and planes) or plan.block_m * plan.block_n <= 64 * 64


def packings(call: Call, plan: Plan) -> list[tuple[str, ...]]:
    """Which operands may be copied to channels-last first: those whose channels are not contiguous already."""
    names = [name for name, operand in (("a", call.a), ("b", call.b)) if operand.unit != 1]
    choices: list[tuple[str, ...]] = [()]
    choices += [(name,) for name in names]
    return choices + ([tuple(names)] if len(names) == 2 else [])


def splits(problem: ConvProblem, plan: Plan, device: Device) -> list[int]:
    """How many programs may share wgrad's reduction: powers of two up to about four waves of the device."""
    if plan.which != Pass.WGRAD:
        return [1]
    m_tiles, n_tiles, repeats = grid(problem, plan)
    steps = trips(problem, plan)
    room = max(1, 4 * device.sm_count // max(1, m_tiles * n_tiles * repeats))
    return [1 << i for i in range(room.bit_length()) if (1 << i) <= max(1, steps)]


def predicted(call: Call, plan: Plan, device: Device) -> Prediction:
    """The predicted time of a plan of any family."""
    return (depthwise.predict if plan.family == "depthwise" else predict)(call, plan, device)


def select(call: Call, device: Device) -> Plan:
    """The candidate with the least predicted time. Cached by callers; plain arithmetic."""
    found = candidates(call, device)
    if not found:
        raise RuntimeError(f"no plan for {call.which} of {call.problem} in {call.dtype} on {device.name}")
    return min(found, key=lambda plan: predicted(call, plan, device).seconds)
