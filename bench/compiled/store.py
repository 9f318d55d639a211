"""The record of executed code: one JSON object per line, appended as code runs, and committed.

`plans.jsonl` has a row per code that a GPU chooses, `groups.jsonl` lists which codes belong to a device and arithmetic,
`tests.jsonl` has a row per test file that ran on compiled code, and `counts.jsonl` says what some kernels did. A row is current
while Triton's version and the sources of its kernels (`source.py`) are those that it was made with.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from bench.compiled.source import every_kernel, kernels_of, source_hash

DATA = Path(__file__).parent / "data"
PLANS, GROUPS, TESTS, COUNTS = (DATA / f"{name}.jsonl" for name in ("plans", "groups", "tests", "counts"))
PINNED = Path(__file__).parent.parent.parent / "constraints.txt"


@cache
def pinned_triton() -> str:
    """The version of Triton that the project pins."""
    return next(line.partition("==")[2] for line in PINNED.read_text().split() if line.startswith("triton=="))


def source_of(kernels: Iterable[tuple[str, str]]) -> str:
    """The hash of the sources of kernels; each is a pair that begins with the kernel's name."""
    return source_hash(tuple(sorted({name for name, _ in kernels})))


def source_of_families(ran: Iterable[str]) -> str:
    """The hash of the sources of families, named as in `TestRow.kernels`; of all families where none ran."""
    return source_hash(kernels_of(sorted({name.split()[0] for name in ran})) or every_kernel())


@dataclass(frozen=True)
class PlanRow:
    """One executed code of a plan. `error` is the largest error over the derived tolerance, or None where there was no result.
    `kernels` are the name and the hash of the PTX of each launch."""

    key: str
    arch: int
    device: str  # the device that chose it when it ran
    family: str
    which: str
    dtype: str  # "tf32" is float32 multiplied in tf32
    plan: str
    problem: str  # the problem that was executed
    layer: str  # suite/layer of the workload
    triton: str
    source: str  # `source_of` its kernels
    kernels: tuple[tuple[str, str], ...]
    programs: int
    instructions: int  # warp instructions
    error: float | None
    note: str = ""  # what was wrong, if anything

    @property
    def ok(self) -> bool:
        return self.error is not None and self.error <= 1 and not self.note

    @property
    def current(self) -> bool:
        return self.triton == pinned_triton() and self.source == source_of(self.kernels)


@dataclass(frozen=True)
class Group:
    """The codes that a device chooses for the workloads in one arithmetic, by their keys."""

    device: str
    dtype: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class TestRow:
    """A test file that ran on compiled code. `kernels` has the hashes of distinct kernels by family and element type, separated
    by blanks."""

    file: str
    arch: int
    device: str
    triton: str
    source: str  # `source_of_families` of the families that ran
    passed: int
    failed: int
    skipped: int
    launches: int
    instructions: int
    kernels: Mapping[str, str]

    @property
    def current(self) -> bool:
        return self.triton == pinned_triton() and self.source == source_of_families(self.kernels)


@dataclass(frozen=True)
class Access:
    """What the accesses of one kind asked for. Sectors (32 bytes) and lines (128 bytes) are those of global memory, wavefronts
    those of shared memory. `ideal` is the fewest wavefronts that the bytes take."""

    requests: int  # requests of warps
    bytes: int
    sectors: int
    lines: int
    wavefronts: int
    ideal: int
    outside: int  # masked-off lanes of asynchronous copies whose address is outside every tensor


@dataclass(frozen=True)
class CountRow:
    """What a kernel did in one launch, counted while it was executed."""

    call: str  # family, pass, numbers and layout, or the function and its case
    arch: int
    plan: str
    kernel: str
    triton: str
    source: str  # `source_of` the kernel
    programs: int
    classes: Mapping[str, int]  # warp instructions by class
    accesses: Mapping[str, Access]  # accesses by kind
    read: int  # distinct bytes that were read
    written: int

    @property
    def current(self) -> bool:
        return self.triton == pinned_triton() and self.source == source_hash((self.kernel,))


Row = TypeVar("Row")


def append(path: Path, rows: Iterable[Any]) -> None:
    """Adds rows to a file. They are on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for row in rows:
            file.write(json.dumps(asdict(row), separators=(",", ":")) + "\n")
        file.flush()
        os.fsync(file.fileno())


def load(path: Path, kind: type[Row]) -> list[Row]:
    """The rows of a file; none where it does not exist. A last line without its end, from a run that was cut off, is left
    out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [kind(**tupled(json.loads(line))) for line in lines if line.endswith("\n")]


def tupled(value: Any) -> Any:
    """Lists of a JSON value as tuples."""
    if isinstance(value, dict):
        return {name: tupled(entry) for name, entry in value.items()}
    return tuple(map(tupled, value)) if isinstance(value, list) else value


def plan_rows() -> dict[str, PlanRow]:
    """The last row of each code."""
    return {row.key: row for row in load(PLANS, PlanRow)}


def groups() -> dict[tuple[str, str], Group]:
    """The last list of codes of each device and arithmetic."""
    return {(group.device, group.dtype): group for group in load(GROUPS, Group)}


def test_rows() -> dict[tuple[str, int], TestRow]:
    """The last row of each test file and architecture."""
    return {(row.file, row.arch): row for row in load(TESTS, TestRow)}


def count_rows() -> dict[tuple[str, int], list[CountRow]]:
    """The rows of each call and architecture, one per kernel."""
    by_call: dict[tuple[str, int], list[CountRow]] = {}
    for row in load(COUNTS, CountRow):
        accesses = {kind: Access(**values) for kind, values in row.accesses.items()}  # type: ignore[arg-type]
        by_call.setdefault((row.call, row.arch), []).append(replace(row, accesses=accesses))
    return by_call


def compacted(path: Path, rows: Iterable[Any]) -> None:
    """Rewrites a file with only these rows."""
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    append(part, rows)
    part.replace(path)
