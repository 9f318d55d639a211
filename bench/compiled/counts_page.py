"""`docs/counts.md`: the memory accesses of compiled kernels beside the fewest that their bytes take, with a reason where there
are more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bench.compiled import store
from bench.compiled.reasons import REASONS
from bench.compiled.store import Access, CountRow
from bench.compiled.table import grid
from bench.gpu.convolutions import LAYOUTS, NUMBERS

PAGE = Path(__file__).parent.parent.parent / "docs" / "counts.md"
#: The ratio of sectors or wavefronts to the fewest possible above which the page gives a reason.
GOAL = 1.25
#: Columns of ratios, by the kinds of access that they sum up.
COLUMNS = {
    "read": ("global load", "cp.async", "box"),
    "written": ("global store",),
    "shared read": ("shared load", "ldmatrix"),
    "shared written": ("shared store", "stmatrix"),
}
HEAD = ("call", "numbers", "layout", "sm", "plan", "kernel", "instructions", *COLUMNS, "KiB read", "outside")


def total(row: CountRow, column: str) -> Access:
    """The sum over all accesses of a column."""
    parts = [row.accesses[kind] for kind in COLUMNS[column] if kind in row.accesses]
    names = Access.__dataclass_fields__
    return Access(**{name: sum(getattr(access, name) for access in parts) for name in names})


def ratio(row: CountRow, column: str) -> float:
    """Sectors, or wavefronts of shared memory, over the fewest possible; 0 where there is none."""
    access = total(row, column)
    if column.startswith("shared"):
        return access.wavefronts / access.ideal if access.ideal else 0.0
    return 32 * access.sectors / access.bytes if access.bytes else 0.0


def above(rows: Iterable[CountRow]) -> Iterator[tuple[CountRow, str]]:
    """The (row, column) pairs whose ratio, rounded as on the page, is above the goal."""
    for row in rows:
        for column in COLUMNS:
            if round(ratio(row, column), 2) > GOAL:
                yield row, column


def marks(row: CountRow, column: str) -> str:
    """The numbers of the reasons of a cell."""
    return ", ".join(str(number) for number, reason in enumerate(REASONS, 1) if reason.explains(row, column))


def cell(row: CountRow, column: str) -> str:
    """A cell: the ratio, sectors per request for global memory, and the numbers of its reasons where it is above the goal."""
    access, value = total(row, column), ratio(row, column)
    if not value:
        return ""
    per_request = ""
    if not column.startswith("shared"):
        per_request = f" ({access.sectors / access.requests:.1f})"
    if round(value, 2) > GOAL:
        return f"**{value:.2f}**{per_request} [{marks(row, column) or '?'}]"
    return f"{value:.2f}{per_request}"


def words(row: CountRow) -> tuple[str, str, str]:
    """A call as (what it is, its type, its layout)."""
    parts = row.call.split()
    numbers = next(word for word in parts if word in NUMBERS)
    layout = next((word for word in parts if word in LAYOUTS), "")
    return " ".join(word for word in parts if word not in (numbers, layout)), numbers, layout.replace("_", " ")


def line(row: CountRow) -> tuple[str, ...]:
    """What the page says about a row, without its type and architecture."""
    what, _, layout = words(row)
    requested = total(row, "read").bytes
    read = f"{requested / 1024:.0f} of {row.read / 1024:.0f}" if requested else ""
    outside = str(sum(access.outside for access in row.accesses.values()) or "")
    stale = "" if row.current else " (stale)"
    instructions = f"{sum(row.classes.values()) / row.programs:.0f}"
    cells = (cell(row, column) for column in COLUMNS)
    return what, layout, f"`{row.plan.replace('|', '/')}`", f"`{row.kernel}`{stale}", instructions, *cells, read, outside


def table(rows: Sequence[CountRow]) -> str:
    """The table. Rows of several types, or of both architectures, that say the same are merged."""
    merged: dict[tuple[str, ...], list[CountRow]] = {}
    for row in rows:
        merged.setdefault(line(row), []).append(row)
    lines = []
    for (what, layout, *rest), same in merged.items():
        numbers = dict.fromkeys(words(row)[1] for row in same)
        archs = dict.fromkeys(str(row.arch) for row in same)
        lines.append((what, ", ".join(numbers), layout, ", ".join(archs), *rest))
    return grid(HEAD, lines)


def all_rows() -> list[CountRow]:
    return [row for rows in store.count_rows().values() for row in rows]


def page() -> str:
    """The whole of `docs/counts.md`."""
    rows = all_rows()
    kinds = dict.fromkeys(words(row)[0].split()[0] for row in rows)
    tables = "\n\n".join(f"## {kind}\n\n{table([row for row in rows if row.call.split()[0] == kind])}" for kind in kinds)
    cells = sum(ratio(row, column) > 0 for row in rows for column in COLUMNS)
    over = len(list(above(rows)))
    reasons = "\n".join(f"{number}. {reason.text}" for number, reason in enumerate(REASONS, 1))
    return f"""# What compiled kernels ask of memory

Counted while `bench/executor` ran Triton's PTX on a CPU, by `python -m bench count`, which writes this page: calls of every
family, pass, layout and type, by the plans that an A100 (sm_80) and an H200 (sm_90) take within the family. The layers are
small (`bench/gpu/convolutions.py`), and so are their tiles; ratios depend on the layout of threads and hardly on the size. The
model is the usual one, sectors of 32 bytes and 32 banks; no hardware was at hand to hold it against.

- `read`, `written`: sectors in parts of the fewest that the bytes asked for take, and (sectors) of a warp's request; the record
  has lines of 128 bytes too, which depend on where a tensor begins. `shared read`, `shared written`: wavefronts of shared
  memory in parts of the fewest.
- `instructions`: of warps, a program. `KiB read`: asked for, of so many distinct ones.
- `outside`: masked-off lanes of asynchronous copies whose address lies outside of every tensor. Legal by PTX's manual; on
  compute capability 10.x, where such an address can be followed, kernels are compiled so that there is none
  (`tests/test_clamped.py`).

{over} of {cells} ratios are above {GOAL}; their reasons are numbered.

## Why it is more

{reasons}

{tables}
"""


def write() -> None:
    """Writes the page."""
    PAGE.write_text(page())
