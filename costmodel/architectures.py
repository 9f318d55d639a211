"""What parts of one compute capability share: FLOP per clock, and the limits of a multiprocessor. Standard library only.

Both are read from `data/devices.toml`, each with its source.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Any


@cache
def table() -> dict[str, Any]:
    """The content of the file: figures that all parts share, one row per compute capability, one row per part."""
    with (resources.files("costmodel") / "data" / "devices.toml").open("rb") as file:
        return tomllib.load(file)


def _architecture(capability: int) -> dict[str, Any]:
    """The newest architecture of the table that is not newer than `capability`, else the oldest."""
    rows = {int(key): row for key, row in table()["architecture"].items()}
    return rows[max((key for key in rows if key <= capability), default=min(rows))]


def operations(capability: int, half_rate: bool) -> dict[str, float]:
    """FLOP per clock and multiprocessor by rate ("fp16", "fp32", ...) of a compute capability (90 for 9.0)."""
    row = _architecture(capability)
    return row.get("geforce_flop_per_clock", row["flop_per_clock"]) if half_rate else row["flop_per_clock"]


def derived_rates(capability: int, half_rate: bool, sm_count: int, clock: float) -> dict[str, float]:
    """Peaks in TFLOP/s: multiprocessors * clock (MHz) * FLOP per clock and multiprocessor."""
    return {name: sm_count * clock * flop / 1e6 for name, flop in operations(capability, half_rate).items()}


def is_geforce(name: str) -> bool:
    """Whether a part is a GeForce, whose tensor cores run at half rate where they sum in float32. Only the name of the part is
    known."""
    return "GeForce" in name


def limits_of(capability: int) -> tuple[dict[str, int | float], dict[str, str]]:
    """The limits of a multiprocessor, the figures that are the same on every GPU, and the sources of both."""
    every, row = table()["every"], _architecture(capability)
    values = {name: value for name, value in every.items() if name != "sources"}
    origins = dict(every["sources"])
    for name, value in row.items():
        if name not in ("source", "flop_per_clock", "geforce_flop_per_clock"):
            values[name], origins[name] = value, row["source"]
    return values, origins
