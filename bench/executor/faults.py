"""Faults in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.executor import layout
from bench.executor.layout import SHARED_BASE, Kind
from bench.executor.memory import Region
from bench.executor.program import Program
from bench.executor.text import Where


@dataclass(frozen=True)
class Fault:
    """Something that a kernel must not do, or that would not work on a GPU.

    program: the linear index in the grid. address: a global address, or shared bytes from the start of shared memory.
    other: the second party in words, "" for none. count: how often this instruction did this.
    """

    kind: Kind
    kernel: str
    where: Where
    program: int
    warp: int
    lane: int
    address: int
    other: str
    count: int
    what: str

    def __str__(self) -> str:
        other = f"; {self.other}" if self.other else ""
        times = f", {self.count} times" if self.count > 1 else ""
        return (
            f"{self.what}: {self.kernel} program {self.program} warp {self.warp} lane {self.lane}, "
            f"address {self.address:#x}{other}{times}\n"
            f"    PTX line {self.where.line}: {self.where.statement[:200]}\n    {self.where.source}"
        )


def _region_near(regions: Sequence[Region], address: int) -> str:
    """Words that say which tensor an address is in or near."""
    below = [region for region in regions if region.base <= address]
    if not below and not regions:
        return "there is no tensor"
    region = max(below, key=lambda r: r.base) if below else min(regions, key=lambda r: r.base)
    return f"byte {address - region.base} of {region.name}, which has {len(region.data)}"


def _party(agent: int) -> str:
    return f"warp {agent}" if agent < 32 else f"TMA at mbarrier {agent - 32}"


def _issued(program: Program, row: int) -> str:
    where = program.where[int(program.rows[row, layout.STATEMENT])]
    return f"issued at PTX line {where.line}: {where.statement[:100]}"


Words = Callable[[Program, Sequence[Region], int, int, int], tuple[str, str]]


def _bounds(program: Program, regions: Sequence[Region], address: int, other: int, info: int) -> tuple[str, str]:
    return f"global {'write' if other == 1 else 'read'} of {info} bytes out of bounds", _region_near(regions, address)


def _program_race(program: Program, regions: Sequence[Region], address: int, other: int, info: int) -> tuple[str, str]:
    party = "several programs" if other == 0x7FFFFFFE or other == 0x7FFFFFFF else f"program {other}"
    return (
        "race between programs on global memory",
        f"{party} {'wrote' if info else 'read'} it; {_region_near(regions, address)}",
    )


_MBARRIER = [
    "no mbarrier is there",
    "arrival on an mbarrier that awaits none",
    "the warp has not been told that the mbarrier was initialised",
    "an mbarrier is there already",
    "an mbarrier is invalidated while copies to it are in flight",
]
_WGMMA = [
    "not all lanes execute it",
    "its accumulators overlap those of another product in flight",
    "more accumulators in flight than the executor holds",
]
_TMA = [
    "no descriptor lies at this address",
    "the descriptor has another number of dimensions",
    "the shared address is no multiple of 128 bytes",
]
_PENDING = ["cp.async", "wgmma", "TMA store"]

_WORDS: dict[Kind, Words] = {
    Kind.OUT_OF_BOUNDS: _bounds,
    Kind.MISALIGNED: lambda p, r, a, o, i: (f"misaligned: the address is no multiple of {i}", ""),
    Kind.READ_ONLY: lambda p, r, a, o, i: (f"write of {i} bytes to a read-only tensor", _region_near(r, a)),
    Kind.PROGRAM_RACE: _program_race,
    Kind.HOLE: lambda p, r, a, o, i: (f"{'write to' if i else 'read of'} a byte outside the view", _region_near(r, a)),
    Kind.SHARED_BOUNDS: lambda p, r, a, o, i: (f"shared access of {i} bytes out of bounds", ""),
    Kind.UNINITIALISED: lambda p, r, a, o, i: ("read of uninitialised shared memory", ""),
    Kind.READ_RACE: lambda p, r, a, o, i: (
        "race: an operand of an asynchronous operation was written without order"
        if i
        else "race: reads what another warp wrote",
        f"written by {_party(o)}",
    ),
    Kind.OVERWRITE_RACE: lambda p, r, a, o, i: ("race: overwrites what another warp may still read", f"read by {_party(o)}"),
    Kind.WRITE_RACE: lambda p, r, a, o, i: ("race: two warps write different values", f"written by {_party(o)}"),
    Kind.IN_FLIGHT: lambda p, r, a, o, i: ("touches bytes of an asynchronous copy in flight", _issued(p, i)),
    Kind.PROXY: lambda p, r, a, o, i: (
        "the asynchronous proxy reads a generic write without fence.proxy.async between",
        f"written by {_party(o)}",
    ),
    Kind.DIVERGED: lambda p, r, a, o, i: (
        "lanes are missing that the instruction asks for",
        f"asked {a & 0xFFFFFFFF:#010x}, here {i & 0xFFFFFFFF:#010x}" + (f", lane {o} is read" if o >= 0 else ""),
    ),
    Kind.DEADLOCK: lambda p, r, a, o, i: (
        "deadlock" + (f" at barrier {a}" if o == 1 else ": waits for what nobody will do"),
        "",
    ),
    Kind.PENDING: lambda p, r, a, o, i: (f"ends with asynchronous work pending: {a} {_PENDING[i]}", ""),
    Kind.WGMMA: lambda p, r, a, o, i: (f"wgmma misuse: {_WGMMA[i]}", ""),
    Kind.WGMMA_OPERAND: lambda p, r, a, o, i: ("wgmma operand out of bounds", ""),
    Kind.MBARRIER: lambda p, r, a, o, i: (f"mbarrier misuse: {_MBARRIER[i]}", f"warp {o}" if o >= 0 else ""),
    Kind.TMA: lambda p, r, a, o, i: (f"TMA: {_TMA[i]}", ""),
    Kind.TOO_LONG: lambda p, r, a, o, i: (f"runs without end: more than {i} steps", ""),
    Kind.CAPACITY: lambda p, r, a, o, i: (f"more in flight or nested than the executor holds ({i})", ""),
    Kind.TRAP: lambda p, r, a, o, i: ("trap", ""),
    Kind.BARRIER: lambda p, r, a, o, i: (f"bar.sync of barrier {a} for {i} threads", ""),
}
_SHARED = (Kind.READ_RACE, Kind.OVERWRITE_RACE, Kind.WRITE_RACE, Kind.IN_FLIGHT, Kind.PROXY, Kind.UNINITIALISED)


def render(program: Program, regions: Sequence[Region], record: np.ndarray) -> Fault:
    """The fault that a record of the engine describes."""
    kind, row, index, warp, lane, address, other, info, count = (int(value) for value in record)
    row = min(row, len(program.rows) - 1)
    what, party = _WORDS[Kind(kind)](program, regions, address, other, info)
    if Kind(kind) in _SHARED:
        address -= SHARED_BASE
    where = program.where[int(program.rows[row, layout.STATEMENT])]
    return Fault(Kind(kind), program.name, where, index, warp, lane, address, party, count, what)


__all__ = ["Fault", "render"]
