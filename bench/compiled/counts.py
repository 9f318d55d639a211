"""`python -m bench count`: counts the instructions and accesses of compiled kernels of every family, pass, layout and type
while they are executed.

The calls are those that `make gpu` tries first, under the plans that an A100 (sm_80) and an H200 (sm_90) take within each
family. There is a row per kernel: warp instructions by class, and per kind of access the requests, bytes, sectors, lines,
wavefronts of shared memory, and masked lanes of asynchronous copies whose address is outside every tensor.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import triton

from bench.compiled import store
from bench.compiled.store import Access, CountRow
from bench.executor.driver import Executor, Launched, install, uninstall
from bench.gpu.convolutions import LAYOUTS, NUMBERS, family_items, forced, pass_item, work_of
from bench.gpu.deform import deform_item
from bench.gpu.functions import causal_backward, causal_forward, causal_update, separable_item, video_item
from bench.gpu.item import Item
from bench.gpu.normal import normal_items
from bench.gpu.unfold import unfold_item
from bench.providers.contender import Unserved
from bench.work import float32_in
from costmodel.device import DEVICES
from costmodel.problem import Pass
from tritonconv import host

#: Architectures, each with the device whose plans are used.
ARCHS = {80: "NVIDIA A100-SXM4-80GB", 90: "NVIDIA H200"}
SOME = ("fp16", "fp32"), (Pass.FPROP, Pass.DGRAD)
ONCE = ("fp16", "fp32"), (Pass.FPROP,)
#: Kernels that are never the first choice for such small layers: sums that programs share, windows that slide, filters in a
#: loop, copies with the padding. An entry has the layer, the plan, the types and the passes.
FORCED = {
    "shared gather": ("conv2d n4 c64 15x13 -> 96 k3 p1", "{}:gather:64x32x32:w4:s3:split2", tuple(NUMBERS), tuple(Pass)),
    "slide depthwise": ("conv2d n4 c64 15x28 -> 64 k3 p1 g64", "{}:depthwise:4x32x4:w4:s3:rows5", *SOME),
    "slide depthwise, odd rows": ("conv2d n4 c64 15x13 -> 64 k3 p1 g64", "{}:depthwise:4x32x4:w4:s3:rows5", *SOME),
    "copied gather": ("conv2d n4 c64 15x13 -> 96 k3 p1 reflect", "{}:copied-gather:64x32x32:w4:s3", *ONCE),
    "copied depthwise": (
        "conv2d n4 c64 15x28 -> 64 k3 p1 circular g64",
        "{}:copied-depthwise:4x32x4:w4:s3:rows5",
        *ONCE,
    ),
    "taps depthwise": ("conv2d n2 c32 20x20 -> 32 k9 p4 g32", "{}:depthwise:4x32x4:w4:s3:taps1x3", *SOME),
}
#: Kinds of access, by the beginning of an instruction. The first ones have sectors, the others wavefronts.
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


def items() -> Iterator[Item]:
    """The calls: every family, pass, type and layout, and the functions that replace several calls."""
    yield from family_items(tuple(NUMBERS), LAYOUTS)
    for name, (layer, plan, numbers, passes) in FORCED.items():
        for word, layout, which in itertools.product(numbers, LAYOUTS, passes):
            words = f"{name} {which} {word} {layout}"
            yield pass_item(words, work_of(layer, which, word, layout), partial(forced, plan.format(which)))
    for word in NUMBERS:
        for last in (True, False):
            if word != "tf32":
                yield causal_forward("state", word, last)
                yield causal_backward("state", word, last, "silu")
                yield unfold_item("3x3", word, last)
            yield video_item("cached", word, last)
        if word != "tf32":
            yield causal_update(word)
        yield separable_item("3x3", word, "relu6", "")
        yield deform_item("3x3", word)
        yield from normal_items(word, True)


def counted(item: Item, executor: Executor) -> list[CountRow]:
    """Makes a call on compiled code and counts the first launch of each of its kernels.

    Raises `Unserved` where the device has no plan, AssertionError where the result is wrong.
    """
    heard: list[Launched] = []
    with float32_in(item.precision):
        plan = item.plan()
        tensors = item.inputs("cpu")
        plan = plan or item.explained(tensors)
        executor.listeners.append(heard.append)
        try:
            results = item.call(*tensors)
        finally:
            executor.listeners.remove(heard.append)
        if not (error := item.judge(tensors, results)) <= 1:
            raise AssertionError(f"{item.name} by {plan} is off by {error:.3g} of the tolerance")
    first: dict[str, Launched] = {}
    for one in heard:
        first.setdefault(one.program.name, one)
    return [row_of(item.name, plan, one) for one in first.values()]


def row_of(call: str, plan: str, one: Launched) -> CountRow:
    """The row of a launch."""
    kinds, done = np.array([kind_of(where.statement) for where in one.program.where]), one.execution

    def total(counts: np.ndarray, name: str) -> int:
        return int(counts[kinds == name].sum())

    counts = done.warps, done.bytes, done.sectors, done.lines, done.wavefronts, done.ideal_wavefronts, done.outside
    accesses = {name: Access(*(total(count, name) for count in counts)) for name in ACCESSES if total(done.warps, name)}
    return CountRow(
        call=call,
        arch=one.arch,
        plan=plan,
        kernel=one.program.name,
        triton=triton.__version__,
        source=store.source_of([(one.program.name, "")]),
        programs=one.grid[0] * one.grid[1] * one.grid[2],
        classes={name: total(done.warps, name) for name in (*ACCESSES, *CLASSES) if total(done.warps, name)},
        accesses=accesses,
        read=sum(read for read, _ in done.unique),
        written=sum(written for _, written in done.unique),
    )


def pending(archs: Sequence[int], only: str = "") -> list[tuple[Item, int]]:
    """The calls whose name holds `only` and that have no current row on an architecture."""
    rows, every = store.count_rows(), list(items())

    def is_current(item: Item, arch: int) -> bool:
        have = rows.get((item.name, arch), [])
        return bool(have) and all(row.current for row in have)

    return [(item, arch) for arch in archs for item in every if only in item.name and not is_current(item, arch)]


def run(archs: Sequence[int], only: str, report: Callable[[str], None]) -> None:
    """Counts what has no current row. The rows of a call are kept as soon as they are made; rows of calls that no longer exist
    are removed."""
    names = [item.name for item in items()]
    todo = pending(archs, only)
    report(f"{len(todo)} calls to count")
    for number, (item, arch) in enumerate(todo, 1):
        began, executor = time.monotonic(), install(arch)
        host.use(DEVICES[ARCHS[arch]])
        try:
            counted_rows = counted(item, executor)
        except Unserved as reason:
            report(f"{number}/{len(todo)} sm_{arch} {item.name}: {reason}")
            continue
        finally:
            host.use(None)
            uninstall()
        rows = store.count_rows() | {(item.name, arch): counted_rows}
        ordered = sorted(rows.items(), key=lambda pair: (names.index(pair[0][0]) if pair[0][0] in names else -1, pair[0][1]))
        store.compacted(store.COUNTS, [row for (name, _), call_rows in ordered if name in names for row in call_rows])
        report(f"{number}/{len(todo)} sm_{arch} {item.name} by {counted_rows[0].plan}, {time.monotonic() - began:.1f} s")
        for row in counted_rows:
            report(f"  {row.kernel}, {row.programs} programs: {in_words(row)}")


def in_words(row: CountRow) -> str:
    """A row in one line of words."""
    classes = (f"{name} {count / row.programs:.0f}" for name, count in sorted(row.classes.items(), key=lambda n: -n[1]))
    ratios = (
        f"{kind} {ratio:.2f} of the fewest {unit}" for kind, access in row.accesses.items() for unit, ratio in ratios_of(access)
    )
    return f"a program {', '.join(classes)}; {', '.join(ratios)}"


def ratios_of(access: Access) -> Iterable[tuple[str, float]]:
    """("sectors" or "wavefronts", their number over the fewest possible), as far as a kind of access has them."""
    if access.sectors and access.bytes:
        yield "sectors", 32 * access.sectors / access.bytes
    if access.ideal:
        yield "wavefronts", access.wavefronts / access.ideal
