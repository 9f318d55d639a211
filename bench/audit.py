"""Every row of the plan's menu, compiled ahead of time and read back from its machine code. Needs no GPU.

`python -m bench audit` prints the table; `--write` commits it as the resource table by which `costmodel.plan` chooses.
`--missing` compiles the rows that the table lacks for the installed Triton, so that a stopped run can be continued.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.aot import Pointer, compile_ahead
from bench.sass import KernelAudit, audit
from costmodel.families import families
from costmodel.families.matrix import MatrixPlan
from costmodel.problem import ConvProblem, Pass
from costmodel.resources import resource_key, resource_table
from costmodel.tiling import Call, Plan, Tile, channels_last
from tritonconv import launch
from tritonconv.layout import channels_last_strides, dense_strides
from tritonconv.steps import Launch, clamped

ARCHITECTURES = (80, 90, 100)
TABLE = Path(__file__).parent.parent / "costmodel" / "data" / "resources.json"
#: Rows compiled between two writes of the table: the most that a stopped run loses.
WRITE_EVERY = 20

#: For each arithmetic of the menu, an element type and its float32 precision.
DTYPES = {
    "half": (torch.bfloat16, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "fp32": (torch.float32, "ieee"),
    "fp64": (torch.float64, "ieee"),
}


@dataclass(frozen=True)
class Row:
    """One kernel to compile."""

    which: Pass
    family: str
    kind: str
    access: str
    tile: Tile
    arch: int

    @property
    def problem(self) -> ConvProblem:
        return families()[self.family].samples[self.access]

    @property
    def call(self) -> Call:
        dtype, precision = DTYPES[self.kind]
        return channels_last(self.problem, self.which, launch.DTYPES[dtype], precision)

    @property
    def plan(self) -> Plan:
        """A plan of the tile. Programs share a weight gradient, as in most plans."""
        plan = families()[self.family].plan(self.which, self.family, *self.tile)
        if self.which == Pass.WGRAD and isinstance(plan, MatrixPlan):
            plan = replace(plan, split=4)
        return families()[self.family].completed(self.call, plan)

    @property
    def exists(self) -> bool:
        """Whether the family has such a kernel."""
        return families()[self.family].exists(self.call, self.plan, self.arch)

    @property
    def key(self) -> str:
        return resource_key(self.plan, self.kind, self.access, self.arch)


def menu(archs: Iterable[int] = ARCHITECTURES) -> Iterator[Row]:
    """Every row that `costmodel.plan` may choose."""
    for arch, which, family, kind in itertools.product(archs, Pass, families().values(), DTYPES):
        for access, tile in family.compiled(which, kind):
            row = Row(which, family.name, kind, access, tile, arch)
            if row.exists:
                yield row


def operands(problem: ConvProblem, which: Pass, channels_last: bool, boxes: bool = False) -> tuple[launch.TensorKey, ...]:
    """Shapes and strides of a pass's two inputs and its result, all dense. With `boxes`, inputs that are read as boxes (for
    wgrad only x) are channels-last."""

    def key(shape: tuple[int, ...], last: bool) -> launch.TensorKey:
        return shape, channels_last_strides(shape) if last else dense_strides(shape, range(len(shape) - 1, -1, -1))

    x, w, y = problem.input_shape, problem.weight_shape, problem.output_shape
    a, b, out = {Pass.FPROP: (x, w, y), Pass.DGRAD: (y, w, x), Pass.WGRAD: (y, x, w)}[which]
    return key(a, channels_last or (boxes and which != Pass.WGRAD)), key(b, channels_last or boxes), key(out, channels_last)


def prepared_launch(
    problem: ConvProblem, plan: Plan, dtype: torch.dtype, precision: str, channels_last: bool, has_bias: bool = True
) -> Launch:
    """What `tritonconv.launch` would run for dense tensors. Tensors that are read as boxes are channels-last."""
    a, b, out = operands(problem, plan.which, channels_last, isinstance(plan, MatrixPlan) and plan.boxed)
    bias_stride = 1 if has_bias and plan.which != Pass.WGRAD else None
    call = Call(problem, plan.which, launch.DTYPES[dtype], precision, *launch.describe(problem, plan.which, a, b, out))
    return launch.prepare(plan, call, a, b, out, bias_stride)


def kernel_arguments(prepared: Launch, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """(the multiplying kernel of a launch, its arguments with pointers in place of tensors)."""
    main, element = prepared.main, Pointer(dtype)
    given = {"a": element, "b": element, "bias": element if main.constants.get("HAS_BIAS") else None, "out": element, "": None}
    if prepared.between is not None:
        given["workspace"] = Pointer(prepared.between)
    return main.kernel, dict(zip(main.kernel.arg_names, main.values(given), strict=False)) | main.constants


def compile_plan(
    problem: ConvProblem,
    plan: Plan,
    dtype: torch.dtype,
    precision: str,
    arch: int,
    channels_last: bool = True,
    has_bias: bool = True,
) -> KernelAudit:
    """The audit of a plan's kernel, compiled for an architecture (80, 90, 100)."""
    return compile_prepared(prepared_launch(problem, plan, dtype, precision, channels_last, has_bias), dtype, arch)


def compile_prepared(prepared: Launch, dtype: torch.dtype, arch: int) -> KernelAudit:
    """The audit of a launch's multiplying kernel."""
    kernel, arguments = kernel_arguments(clamped(prepared, arch), dtype)
    warps, stages = arguments.pop("num_warps"), arguments.pop("num_stages")
    return audit(compile_ahead(kernel, arguments, arch=arch, num_warps=warps, num_stages=stages))


def compile_row(row: Row) -> KernelAudit:
    """The audit of a row of the menu."""
    dtype, precision = DTYPES[row.kind]
    return compile_plan(row.problem, row.plan, dtype, precision, row.arch, channels_last=row.access == "wide")


def _entry(row: Row) -> tuple[str, dict[str, Any]]:
    try:
        entry = compile_row(row)
    except Exception as error:  # a tile that the compiler refuses is a fact of the table
        return row.key, {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    return row.key, asdict(entry)


def compile_menu(rows: list[Row], jobs: int | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, audit as a dict, or {"error": why}) of every row, as they finish, from `jobs` processes."""
    with ProcessPoolExecutor(jobs or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(_entry, row) for row in rows]):
            yield done.result()


def committed(path: Path = TABLE) -> dict[str, dict[str, list[int]]]:
    """The table on disk: key -> Triton version -> [registers, shared bytes, spills, trip instructions]."""
    return json.loads(path.read_text()) if path.is_file() else {}


def missing(rows: Iterable[Row], kernels: dict[str, dict[str, list[int]]], version: str = triton.__version__) -> list[Row]:
    """The rows that `kernels` lacks for a Triton version, in the order in which their figures are likely to change a choice.
    Rows that no version compiled come first, then those with most registers on other versions. A row that spills on another
    version cannot become a candidate on this one, so it comes last.
    """

    def urgency(row: Row) -> tuple[bool, int]:
        figures = kernels.get(row.key, {}).values()
        return any(spills for _, _, spills, _ in figures), -max((registers for registers, *_ in figures), default=256)

    return sorted((row for row in rows if version not in kernels.get(row.key, {})), key=urgency)


def coverage(rows: Iterable[Row], kernels: dict[str, dict[str, list[int]]]) -> str:
    """How many of the rows each Triton version compiled, in words."""
    keys = [row.key for row in rows]
    counts = Counter(version for key in keys for version in kernels.get(key, {}))
    versions = ", ".join(f"{counts[version]} from Triton {version}" for version in sorted(counts))
    return f"of {len(keys)} rows the table has {versions or 'none'}"


def write_table(entries: dict[str, dict[str, Any]], path: Path = TABLE) -> None:
    """Put rows [registers, shared, spills, trip instructions] into the table, under the Triton version that compiled them.

    A row that does not compile or is serialised is written with one spill, so that it is no candidate. The file is replaced
    in one step, so a run that is stopped here leaves either the old table or the new one.
    """
    kernels = committed(path)
    for key, entry in entries.items():
        if "error" in entry or entry["trip"]["serialized"]:
            row = [255, 0, 1, 0]
        else:
            row = [entry["registers"], entry["shared_bytes"], entry["spills"], entry["trip"]["instructions"]]
        kernels.setdefault(key, {})[triton.__version__] = row
    lines = (f" {json.dumps(key)}: {json.dumps(dict(sorted(kernels[key].items())))}" for key in sorted(kernels))
    whole = path.with_suffix(".new")
    whole.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    whole.replace(path)


def headline() -> list[Row]:
    """The largest channels-last tiles, for docs/kernels.md."""
    rows = [
        Row(which, family.name, kind, "wide", tile, 90)
        for kind in ("half", "tf32")
        for which in Pass
        for family in families().values()
        for tile in family.shown(which, kind)
    ]
    return [row for row in rows if row.exists]


def summary() -> str:
    """The table of docs/kernels.md, from the committed resource table."""
    lines = [
        "| sm_90 kernel | tile | arithmetic | registers | shared KiB | instructions per trip |",
        "|---|---|---|---|---|---|",
    ]
    table = resource_table()
    for row in headline():
        registers, shared, _, trip = table[row.key]
        tile = f"{row.tile.m}x{row.tile.n}x{row.tile.k}"
        kind = {"half": "float16, bfloat16", "tf32": "tf32"}[row.kind]
        lines.append(f"| {row.which} {row.family} | {tile} | {kind} | {registers} | {shared // 1024} | {trip} |")
    return "\n".join(lines)


_CLASSES = ("mma", "ldgsts", "ldg", "lds", "sts", "alu", "imad", "mov", "pred", "uniform", "barrier", "fma")


def run(
    only: str = "",
    archs: Iterable[int] | None = None,
    jobs: int = 2,
    write: bool = False,
    lacking: bool = False,
    limit: int | None = None,
) -> None:
    """Compile the rows whose key holds `only`, print them, and with `write` put them into the table, `WRITE_EVERY` at a time.

    lacking: only rows for which the table has no figures of this Triton, in the order of `missing`. limit: the number of rows
    to compile. Raises SystemExit where no key holds `only`.
    """
    console = Console()
    rows = [row for row in menu(archs or ARCHITECTURES) if only in row.key]
    if not rows:
        raise SystemExit(f"no row of the menu holds {only!r}; keys look like {next(menu()).key}")
    if lacking:
        console.print(coverage(rows, committed()))
        rows = missing(rows, committed())
        console.print(f"{len(rows)} rows lack figures of Triton {triton.__version__}")
        if not rows:
            return
    rows = rows[:limit]
    entries: dict[str, dict[str, Any]] = {}
    unwritten: dict[str, dict[str, Any]] = {}
    for key, entry in track(compile_menu(rows, jobs), "compiling", total=len(rows), console=console):
        entries[key] = unwritten[key] = entry
        if write and (len(unwritten) == WRITE_EVERY or len(entries) == len(rows)):
            write_table(unwritten)
            unwritten = {}
    shown = Table(title=f"Triton {triton.__version__}", box=SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("kernel", "regs", "spills", "shared", "trip", "MMA", "copies", *_CLASSES):
        shown.add_column(heading, justify="left" if heading in ("kernel", "MMA", "copies") else "right", no_wrap=True)
    for row in rows:
        entry = entries[row.key]
        if "error" in entry:
            shown.add_row(row.key, "", "", "", "", entry["error"])
            continue
        trip = entry["trip"]
        forms = ", ".join(f"{m['count']}x{m['opcode']}" + f".t{m['transposed']}" * bool(m["transposed"]) for m in trip["mma"])
        copies = ", ".join(f"{n}x{name}.{8 * width}" for name, widths in trip["copies"].items() for width, n in widths.items())
        shown.add_row(
            row.key,
            str(entry["registers"]),
            str(entry["spills"]),
            str(entry["shared_bytes"]),
            f"{trip['instructions']}{' SERIALIZED' if trip['serialized'] else ''}",
            forms,
            copies,
            *(str(trip["classes"][name] or "") for name in _CLASSES),
        )
    width = None if console.is_terminal else 400
    Console(width=width).print(shown)
    broken = [key for key, entry in entries.items() if "error" in entry or entry["spills"] or entry["trip"]["serialized"]]
    console.print(f"{len(rows)} kernels, {len(broken)} that spill, wait after every MMA or do not compile: no candidates")
    if write:
        console.print(f"written: {TABLE}", soft_wrap=True)
