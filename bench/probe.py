"""`python -m bench probe`: asks a GPU, in a minute, what the design leaves open.

Does the driver take a tensor map whose outer stride is smaller than an inner one, or whose boxes overlap? What do reads from
the L2 cache, copies and matrix products reach? Do the kernels give the same bits every time? What does a launch cost?
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table
from triton.tools.tensor_descriptor import TensorDescriptor

from bench.machine import Gpu, Machine
from bench.measure import one_line
from bench.probe_kernels import box_kernel, descriptors_kernel, empty_kernel, read_kernel
from bench.provenance import results_dir
from bench.providers.ours import contender
from bench.records import write
from bench.work import Work
from costmodel.families.gemm import GatherPlan
from costmodel.families.matrix import reduction_step
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Plan

OTHER_BITS = "runs with other bits"
REPEATED_PROBLEM = ConvProblem.conv((8, 256, 14, 14), (256, 256, 3, 3), (1, 1), (1, 1), (1, 1))
READ_BLOCK = 4096  # float32: 16 KiB


#: What a question returns: the value, unit and note of its answer.
Reply = tuple[float, str, str]


@dataclass(frozen=True)
class Answer:
    """An answer in `unit`; "yes" and "no" are 1 and 0. The value is None where the question could not be asked; `note` says
    why."""

    question: str
    value: float | None
    unit: str
    note: str = ""


class Question(NamedTuple):
    name: str
    ask: Callable[[], Reply]


@dataclass(frozen=True)
class Sizes:
    """The sizes of the questions. The defaults keep an H100 busy for some seconds."""

    l2_bytes: int = 16 << 20  # well inside the cache
    read_programs: int = 4 * 132
    read_trips: int = 512
    copy_bytes: int = 1 << 31
    matrix: int = 8192
    repeated: ConvProblem = REPEATED_PROBLEM
    runs: int = 1000
    launches: int = 1000
    repeats: int = 20


def boxes(view: torch.Tensor, block: tuple[int, int, int]) -> bool:
    """Whether a tensor map of the view returns the view's elements, box by box."""
    counts = [n // b for n, b in zip(view.shape, block, strict=True)]
    out = torch.full((view.numel(),), float("nan"), dtype=view.dtype, device=view.device)
    descriptor = TensorDescriptor(view, list(view.shape), list(view.stride()), list(block))
    box_kernel[tuple(counts)](descriptor, out, BLOCK=block)
    split = [n for pair in zip(counts, block, strict=True) for n in pair]
    want = view.contiguous().view(split).permute(0, 2, 4, 1, 3, 5).reshape(-1)
    return torch.equal(out, want)


def reads(view: torch.Tensor, block: tuple[int, int, int]) -> Reply:
    return float(boxes(view, block)), "yes", "values compared box by box"


def maps(machine: Machine) -> Iterator[Question]:
    taps, filters, channels = 9, 64, 64
    weights = torch.randn(filters, taps, channels, dtype=torch.float16, device=machine.device)
    by_tap = weights.permute(1, 0, 2)  # strides (C, R * S * C, 1)
    rows, step, width = 32, 16, 64
    line = torch.randn(rows * step + width, dtype=torch.float16, device=machine.device)
    windows = line.as_strided((1, rows, width), (rows * step, step, 1))
    for name, view, block in (
        ("a tensor map whose outer stride is the smaller one", by_tap, (1, filters, channels)),
        ("a tensor map of overlapping windows", windows, (1, rows // 2, width)),
    ):
        yield Question(name, functools.partial(reads, view, block))


def rates(machine: Machine, sizes: Sizes) -> Iterator[Question]:
    def read() -> Reply:
        blocks = sizes.l2_bytes // (4 * READ_BLOCK)
        source = torch.randn(blocks * READ_BLOCK, device=machine.device)
        out = torch.empty(sizes.read_programs, device=machine.device)
        grid = (sizes.read_programs,)

        def call() -> None:
            read_kernel[grid](source, out, blocks, sizes.read_trips, BLOCK=READ_BLOCK, num_warps=8)

        seconds = statistics.median(machine.elapsed(call, sizes.repeats))
        moved = sizes.read_programs * sizes.read_trips * READ_BLOCK * 4
        return moved / seconds / 1e9, "GB/s", f"{sizes.l2_bytes >> 20} MiB"

    def copy() -> Reply:
        source = torch.empty(sizes.copy_bytes // 2, dtype=torch.bfloat16, device=machine.device).normal_()
        target = torch.empty_like(source)
        seconds = statistics.median(machine.elapsed(lambda: target.copy_(source), sizes.repeats))
        return 2 * sizes.copy_bytes / seconds / 1e9, "GB/s", "bytes read and written"

    def product() -> Reply:
        a, b = (torch.randn(sizes.matrix, sizes.matrix, device=machine.device).bfloat16() for _ in range(2))
        seconds = statistics.median(machine.elapsed(lambda: a @ b, sizes.repeats))
        return 2 * sizes.matrix**3 / seconds / 1e12, "TFLOP/s", f"bfloat16, {sizes.matrix}^3"

    yield Question("reads of a buffer that stays in L2", read)
    yield Question("a copy in device memory", copy)
    yield Question("a matrix product", product)


#: Tiles of each pass whose copies and tensor-core reads Triton 3.6 leaves without a fence between them.
REPEATED = ("128x256x64:w8:s3", "256x128x64:w8:s3", "128x128x64:w8:s3", "64x64x64:w4:s4")


def other_bits(which: Pass, plan: Plan, machine: Machine, sizes: Sizes) -> Reply:
    """How many runs differ from the first one on the same inputs."""
    work = Work(sizes.repeated, which, "float16")
    ((a, b),) = work.inputs(1, machine.device)
    call = contender(work, plan).call
    first = call(a, b)
    differing = torch.zeros((), dtype=torch.int64, device=machine.device)
    for _ in range(sizes.runs):
        differing += (call(a, b).view(torch.int16) != first.view(torch.int16)).any()
    return float(differing), f"of {sizes.runs}", ""


def repeated(sizes: Sizes) -> Iterator[tuple[Pass, Plan]]:
    """The passes and plans whose runs are compared."""
    for which, tile in itertools.product(Pass, REPEATED):
        plan = GatherPlan.parse(f"{which}:gather:{tile}")
        if which == Pass.WGRAD:
            plan = dataclasses.replace(plan, split=4, step=reduction_step(sizes.repeated, plan.block_k))
        yield which, plan


def repeatability(machine: Machine, sizes: Sizes) -> Iterator[Question]:
    for which, plan in repeated(sizes):
        yield Question(f"{OTHER_BITS}, {plan}", functools.partial(other_bits, which, plan, machine, sizes))


def launches(machine: Machine, sizes: Sizes) -> Iterator[Question]:
    out = torch.zeros(128, 64, dtype=torch.float16, device=machine.device)

    def host(call: Callable[[], object]) -> Reply:
        for _ in range(3):
            call()
        machine.synchronize()
        began = machine.now()
        for _ in range(sizes.launches):
            call()
        seconds = (machine.now() - began) / sizes.launches
        machine.synchronize()
        return 1e6 * seconds, "us", "host time, launches in a row"

    def maps_of_out() -> list[TensorDescriptor]:
        return [TensorDescriptor(out, [128, 64], [64, 1], [64, 64]) for _ in range(3)]

    def pointer() -> Reply:
        return host(lambda: empty_kernel[(1,)](out))

    def descriptors() -> Reply:
        described = maps_of_out()
        return host(lambda: descriptors_kernel[(1,)](*described, out))

    def described_anew() -> Reply:
        return host(lambda: descriptors_kernel[(1,)](*maps_of_out(), out))

    def in_a_graph() -> Reply:
        def call(index: int) -> torch.Tensor:
            empty_kernel[(1,)](out)
            return out

        captured = machine.capture(call, 1, sizes.launches)
        (times,) = machine.replays([captured])
        return 1e6 * statistics.median(times) / captured.calls, "us", "device time"

    yield Question("a launch with a pointer", pointer)
    yield Question("a launch with three tensor maps", descriptors)
    yield Question("the same, the maps described each time", described_anew)
    yield Question("an empty kernel in a graph", in_a_graph)


def answers(machine: Machine, sizes: Sizes) -> Iterator[Answer]:
    """All answers. A question that fails is answered by its error, and the others are still asked while the GPU works."""
    for name, ask in (*maps(machine), *rates(machine, sizes), *repeatability(machine, sizes), *launches(machine, sizes)):
        try:
            yield Answer(name, *ask())
        except Exception as error:  # the driver's refusal is an answer too
            yield Answer(name, None, "", one_line(error))


def probe(machine: Machine, out: Path, sizes: Sizes, console: Console) -> list[Answer]:
    """Asks all questions, writes the answers to `out`/probe.json and prints them."""
    answers_ = list(answers(machine, sizes))
    facts = {**machine.facts, "clock_mhz": machine.clock_mhz()}
    write(out / "probe.json", [{**asdict(answer), **facts} for answer in answers_])
    shown = Table(title=f"{facts['gpu']}, Triton {triton.__version__}", box=HORIZONTALS, padding=(0, 1, 0, 0))
    shown.add_column("question")
    shown.add_column("answer", justify="right")
    shown.add_column("", overflow="fold")
    for answer in answers_:
        shown.add_row(answer.question, words(answer), answer.note)
    console.print(shown)
    console.print(f"answers: {out / 'probe.json'}", soft_wrap=True)
    return answers_


def words(answer: Answer) -> str:
    if answer.value is None:
        return "failed"
    if answer.unit == "yes":
        return "yes" if answer.value else "no"
    return f"{answer.value:,.4g} {answer.unit}"


def command(out: Path | None) -> None:
    """What `python -m bench probe` does. SystemExit(1) where runs differ in their bits."""
    answers_ = probe(Gpu(), out or results_dir(), Sizes(), Console())
    if any(answer.value for answer in answers_ if answer.question.startswith(OTHER_BITS)):
        raise SystemExit(1)
