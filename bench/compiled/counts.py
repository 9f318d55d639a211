"""`python -m bench count`: what compiled kernels of the menu do, counted while they are executed.

Per program: instructions of warps by class. Per kind of access: requests, bytes asked for, sectors of 32 bytes against the
fewest, wavefronts of shared memory against the ideal, and masked lanes of asynchronous copies whose address lies outside of
every tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from bench.compiled.chosen import Chosen
from bench.compiled.plans import ARITHMETICS, error_of
from bench.executor.driver import Launched, install, uninstall
from bench.work import Work, float32_in
from costmodel.device import DEVICES
from costmodel.reports.notation import parse
from costmodel.tiling import Plan
from tritonconv import host

DENSE, WIDE = "conv2d n2 c64 14x14 -> 64 k3x3 p1,1", "conv2d n2 c64 16x16 -> 64 k3x3 p1,1"
SINGLE = "conv2d n2 c64 14x14 -> 64 k3x3 p1,1 g64"
#: layer, plan, arithmetic, layout.
CASES = (
    (DENSE, "fprop:gather:64x64x32:w4:s4", "float16", "channels_last"),
    (DENSE, "fprop:gather:64x64x32:w4:s4", "float16", "contiguous"),
    (DENSE, "dgrad:gather:64x64x32:w4:s4", "float16", "channels_last"),
    (DENSE, "wgrad:gather:64x64x64:w4:s4:split2", "float16", "channels_last"),
    (DENSE, "fprop:gather:64x64x32:w4:s4", "tf32", "channels_last"),
    (DENSE, "fprop:gather:64x64x16:w4:s3", "float32", "channels_last"),
    (DENSE, "fprop:gather:64x64x16:w4:s3", "float32", "contiguous"),
    (DENSE, "wgrad:gather:64x64x16:w4:s3", "float32", "contiguous"),
    (DENSE, "fprop:gather:64x64x32:w4:s4:split2", "float16", "channels_last"),
    (WIDE, "fprop:tma:128x64x32:w4:s4", "float16", "channels_last"),
    (WIDE, "wgrad:tma:64x64x64:w4:s4", "float16", "channels_last"),
    (SINGLE, "fprop:depthwise:4x64x2:w4:s3:rows7", "float16", "channels_last"),
    (SINGLE, "fprop:depthwise:4x4x32:w4:s3:rows7", "float16", "contiguous"),
    (SINGLE, "wgrad:depthwise:4x32x4:w4:s3:rows7", "float16", "channels_last"),
    ("conv2d n16 c2 32x32 -> 2 k13x13 p6,6 g2", "fprop:band:64x128x32:w4:s4:step1x1x8x16:rows2", "float16", "contiguous"),
)
#: Kinds of access, by how an instruction begins. Sectors belong to the first ones, wavefronts to the others.
ACCESSES = {
    "global load": r"ld\.global",
    "global store": r"st\.global",
    "cp.async": r"cp\.async\.c[ag]\.",
    "box": r"cp\.async\.bulk\.tensor",
    "shared load": r"ld\.shared",
    "shared store": r"st\.shared",
    "ldmatrix": "ldmatrix",
    "stmatrix": "stmatrix",
}
#: Classes of other instructions.
CLASSES = {
    "matrix": r"mma|wgmma\.mma",
    "fma": r"(fma|add|sub|mul|min|max)\.[a-z.]*(f16|bf16|f32|f64)",
    "convert": r"cvt",
    "wait": r"bar|barrier|cp\.async\.(wait|commit)|wgmma\.(fence|commit|wait)|mbarrier|fence",
    "branch": r"bra|ret",
    "predicate": r"setp|(and|or|xor|not)\.pred",
    "integer": r"",
}


def opcode(statement: str) -> str:
    """An instruction without its guard."""
    return re.sub(r"^@!?%?\w+\s+", "", statement)


def kind_of(statement: str) -> str:
    """The access or class that an instruction belongs to."""
    return next(name for name, begins in (ACCESSES | CLASSES).items() if re.match(begins, opcode(statement)))


def launched(arch: int, cases: Sequence[tuple[str, str, str, str]] = CASES) -> Iterator[tuple[str, Launched]]:
    """The launches of each case on an architecture, with the case in words."""
    device = next(device for device in DEVICES.values() if device.capability == arch)
    executor = install(arch)
    try:
        for layer, words, arithmetic, layout in cases:
            plan = Plan.parse(words)
            heard: list[Launched] = []
            if plan.family == "tma" and arch < 90:
                continue
            dtype, precision = ARITHMETICS[arithmetic]
            work = Work(parse(layer).problem, plan.which, dtype, precision, layout)
            executor.listeners = [heard.append]
            with float32_in(precision):
                if (error := error_of(Chosen(work, plan, False, arch, ""), device)) > 1:
                    raise AssertionError(f"{work} by {plan} is off by {error:.3g} of the tolerance")
            for one in heard:
                yield f"{plan} {arithmetic} {layout}", one
    finally:
        host.use(None)
        uninstall()


def rows_of(one: Launched) -> Iterator[tuple[str, int, int, float, float, int]]:
    """(kind, requests of warps, bytes, sectors and wavefronts in parts of the fewest, lanes outside) of each kind of access.

    What an access has none of is not a number.
    """
    kinds = np.array([kind_of(where.statement) for where in one.program.where])
    done = one.execution
    for name in ACCESSES:
        of = kinds == name
        if not done.warps[of].sum():
            continue
        size, ideal = int(done.bytes[of].sum()), int(done.ideal_wavefronts[of].sum())
        sectors = 32 * int(done.sectors[of].sum()) / size if size else float("nan")
        waves = int(done.wavefronts[of].sum()) / ideal if ideal else float("nan")
        yield name, int(done.warps[of].sum()), size, sectors, waves, int(done.outside[of].sum())


def classes_of(one: Launched) -> str:
    """Instructions of warps a program, by class, the most first."""
    programs = one.grid[0] * one.grid[1] * one.grid[2]
    found: dict[str, int] = {}
    for where, count in zip(one.program.where, one.execution.warps, strict=True):
        kind = kind_of(where.statement)
        found[kind] = found.get(kind, 0) + int(count)
    return ", ".join(f"{name} {count / programs:.0f}" for name, count in sorted(found.items(), key=lambda n: -n[1]) if count)


def show(archs: Sequence[int], console: Console | None = None) -> None:
    """Prints the counts."""
    console = console or Console()
    for arch in archs:
        for words, one in launched(arch):
            programs = one.grid[0] * one.grid[1] * one.grid[2]
            console.print(f"sm_{arch} {words}: {one.program.name}, {programs} programs", soft_wrap=True, highlight=False)
            console.print(f"  a program: {classes_of(one)}", soft_wrap=True, highlight=False)
            table = Table("", "requests", "bytes", "sectors", "wavefronts", "outside", box=SIMPLE)
            for kind, requests, size, sectors, waves, outside in rows_of(one):
                parts = ("" if value != value or not value else f"{value:.2f}" for value in (sectors, waves))
                table.add_row(kind, str(requests), str(size), *parts, str(outside or ""))
            console.print(table)
