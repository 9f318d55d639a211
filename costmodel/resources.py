"""Registers, shared memory, spills and loop length of every kernel of the menu, read off compiled code.

`python -m bench audit --write` makes the table.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources
from typing import NamedTuple

from costmodel.device import Device
from costmodel.tiling import Call, Plan, access, arithmetic_of


class Resources(NamedTuple):
    """What a compiled kernel needs: registers a thread, shared bytes, spill instructions, instructions of one loop trip."""

    registers: int
    shared: int
    spills: int
    trip: int


@lru_cache(maxsize=1)
def resource_table() -> dict[str, Resources]:
    """`resource_key` -> the worst of each figure over the Triton versions that compiled the row."""
    path = resources.files("costmodel") / "data" / "resources.json"
    if not path.is_file():
        return {}
    versions = json.loads(path.read_text())
    return {key: Resources(*map(max, zip(*rows.values(), strict=True))) for key, rows in versions.items()}


#: The architectures whose machine code is in the table.
COMPILED = (80, 90, 100)


def compiled_for(capability: int) -> int:
    """The compiled architecture that stands for a compute capability: 9.x and 10.x have matrix instructions of their own,
    every other tensor core (8.x, and 12.x of GeForce Blackwell) takes the instructions of 8.0."""
    family = capability // 10 * 10
    return family if family in COMPILED else 80


def resource_key(plan: Plan, kind: str, access: str, capability: int) -> str:
    """Row of the table: pass, family, arithmetic, `access`, tile, architecture."""
    tile = f"{plan.block_m}x{plan.block_n}x{plan.block_k}:w{plan.num_warps}:s{plan.num_stages}"
    return f"{plan.which}:{plan.family}:{kind}:{access}:{tile}:sm{compiled_for(capability)}"


def resources_of(call: Call, plan: Plan, device: Device) -> Resources | None:
    """The table's row for a plan, None where the plan is not in it."""
    kind = arithmetic_of(call, plan)
    return resource_table().get(resource_key(plan, kind, access(call, plan), device.capability))
