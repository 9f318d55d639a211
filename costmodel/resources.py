"""Registers, shared memory, spills and loop length of kernels: read off compiled code for the menu, estimated for other tiles.

`python -m bench audit --write` makes the table. Only `memory_refusal` says whether a plan fits a device's shared memory; it
uses the compiled figure where there is one.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources
from typing import NamedTuple

from costmodel.device import Device
from costmodel.tiling import INTERPRETED_MENU, Plan, Tile


class Resources(NamedTuple):
    """What a compiled kernel needs: registers per thread, shared bytes, spill instructions, instructions per loop trip."""

    registers: int
    shared: int
    spills: int
    trip: int


#: Instructions per trip that do not depend on the tile: counters, barriers, branches (read off compiled kernels).
TRIP_INSTRUCTIONS = 60


def estimated(tile: Tile, size: int) -> Resources:
    """An estimate for a tile of a matrix product that was not compiled: a register per sum, and in shared memory both operands,
    of `size` bytes per element, once per stage."""
    registers = 32 + tile.m * tile.n // (tile.warps * 32)
    return Resources(registers, tile.stages * (tile.m + tile.n) * tile.k * size, 0, TRIP_INSTRUCTIONS)


def memory_refusal(tile: Tile, shared: int, device: Device | None) -> str:
    """Why a program of a tile with `shared` bytes does not fit the device's shared memory; "" where it does, or without a
    device.

    The interpreter has the largest GPU's shared memory, so that a plan that runs there fits a GPU. Its own menu always fits.
    """
    if device is None or shared <= device.shared_per_block or (device.interpreted and tile in INTERPRETED_MENU):
        return ""
    return f"it needs about {shared} bytes of shared memory, the device has {device.shared_per_block}"


@lru_cache(maxsize=1)
def resource_table() -> dict[str, Resources]:
    """`resource_key` -> the worst of each figure over the Triton versions that compiled the row."""
    path = resources.files("costmodel") / "data" / "resources.json"
    if not path.is_file():
        return {}
    versions = json.loads(path.read_text())
    return {key: Resources(*map(max, zip(*rows.values(), strict=True))) for key, rows in versions.items()}


#: The architectures whose machine code the table describes.
COMPILED = (80, 90, 100)
#: The least compute capability (80 for 8.0) that tritonconv runs on, which is also Triton's. For older parts there are only
#: predictions.
LEAST_CAPABILITY = 80


def compiled_for(capability: int) -> int:
    """The compiled architecture that stands for a compute capability. 9.x and 10.x have matrix instructions of their own; every
    other tensor core (8.x, and 12.x of GeForce Blackwell) runs the instructions of 8.0."""
    family = capability // 10 * 10
    return family if family in COMPILED else 80


def resource_key(plan: Plan, kind: str, access: str, capability: int) -> str:
    """The key of a row of the table: pass, family, arithmetic, `access` (of `families.matrix`), tile, architecture."""
    tile = f"{plan.block_m}x{plan.block_n}x{plan.block_k}:w{plan.num_warps}:s{plan.num_stages}"
    return f"{plan.which}:{plan.family}:{kind}:{access}:{tile}:sm{compiled_for(capability)}"
