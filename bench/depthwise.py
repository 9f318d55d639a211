"""What the depthwise kernels compile to, read back from machine code: instructions per output, loads, registers.

`python -m bench depthwise` prints the table. Needs no GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from bench.aot import since
from bench.audit import compile_prepared, operands
from bench.sass import KernelAudit
from costmodel.families.depthwise import DepthwisePlan, shape_of
from costmodel.problem import ConvProblem, Pass
from tritonconv.launch import prepare_call


def grouped(channels: int, filters: int, shape: tuple[int, ...], kernel: tuple[int, ...], stride: int = 1) -> ConvProblem:
    """A problem whose groups have `channels` channels and `filters` filters, with padding that keeps sizes at stride 1."""
    groups, rank = shape[1] // channels, len(kernel)
    padding = tuple(k // 2 for k in kernel)
    return ConvProblem.conv(shape, (groups * filters, channels, *kernel), (stride,) * rank, padding, (1,) * rank, groups)


def channelwise(shape: tuple[int, ...], kernel: tuple[int, ...], stride: int = 1) -> ConvProblem:
    """A depthwise problem, with padding as in `grouped`."""
    return grouped(1, 1, shape, kernel, stride)


@dataclass(frozen=True)
class Row:
    """One kernel to compile, in bfloat16. `limit`: most instructions per output; for large filters, per output and tap."""

    problem: ConvProblem
    channels_last: bool
    plan: str
    limit: float
    arch: int = 90

    @property
    def name(self) -> str:
        kernel = "x".join(map(str, self.problem.kernel_size))
        per_group = self.problem.channels_per_group
        several = "" if per_group == 1 else f" groups of {per_group}"
        strided = "" if max(self.problem.stride) == 1 else f" stride {max(self.problem.stride)}"
        return f"{self.plan.split(':')[0]} {kernel}{several}{strided} {'channels-last' if self.channels_last else 'contiguous'}"


LARGE, SMALL, LINE, VIDEO = (32, 512, 56, 56), (32, 512, 28, 28), (8, 512, 2048), (8, 64, 16, 56, 56)
ROWS = (
    Row(channelwise(LARGE, (3, 3)), True, "fprop:depthwise:4x256x1:w1:s3:rows14:pack-b", 15.5),
    Row(channelwise(LARGE, (3, 3)), True, "dgrad:depthwise:4x256x1:w1:s3:rows14:pack-b", 15.5),
    Row(channelwise(LARGE, (3, 3)), True, "wgrad:depthwise:4x128x1:w1:s3:split8:rows56", 22),
    Row(channelwise(LARGE, (5, 5)), True, "fprop:depthwise:4x64x1:w1:s3:rows14:pack-b", 40),
    Row(channelwise(LARGE, (7, 7)), True, "fprop:depthwise:4x64x1:w1:s3:rows14:pack-b", 66),
    Row(channelwise(LARGE, (7, 7)), True, "dgrad:depthwise:4x64x1:w1:s3:rows14:pack-b", 66),
    Row(channelwise(LARGE, (7, 7)), True, "wgrad:depthwise:4x64x1:w1:s3:split8:rows56", 85),
    Row(channelwise(LARGE, (31, 31)), True, "fprop:depthwise:16x64x1:w1:s3:taps1x8:pack-b", 2.2),
    Row(channelwise(LARGE, (31, 31)), True, "wgrad:depthwise:8x64x1:w1:s3:split8:rows56:taps1x16", 2.2),
    Row(channelwise(LARGE, (3, 3)), False, "fprop:depthwise:8x4x8:w1:s3:rows14", 16),
    Row(channelwise(SMALL, (3, 3)), False, "fprop:depthwise:4x4x8:w1:s3:rows14", 20),
    Row(channelwise(LARGE, (3, 3)), False, "dgrad:depthwise:8x4x8:w1:s3:rows14", 16),
    Row(channelwise(LARGE, (3, 3)), False, "wgrad:depthwise:8x4x8:w1:s3:split8:rows56", 21),
    Row(channelwise(LARGE, (5, 5)), False, "fprop:depthwise:8x4x8:w1:s3:rows14", 33),
    Row(channelwise(LARGE, (7, 7)), False, "fprop:depthwise:8x4x8:w1:s3:rows14", 60),
    Row(channelwise(LARGE, (7, 7)), False, "wgrad:depthwise:8x4x8:w1:s3:split8:rows56", 72),
    Row(channelwise(LARGE, (31, 31)), False, "fprop:depthwise:8x4x8:w1:s3:taps1x8", 2.3),
    Row(channelwise(LARGE, (31, 31)), False, "wgrad:depthwise:8x4x8:w1:s3:split8:rows56:taps1x16", 1.7),
    Row(channelwise(LINE, (4,)), True, "fprop:depthwise:16x256x1:w1:s3:rows8:pack-b", 9),
    Row(channelwise(LINE, (4,)), False, "fprop:depthwise:8x1x32:w1:s3:rows8", 13),
    Row(channelwise(VIDEO, (3, 3, 3)), True, "fprop:depthwise:4x64x1:w1:s3:rows14:pack-b", 52),
    Row(channelwise(VIDEO, (3, 3, 3)), False, "fprop:depthwise:8x4x8:w1:s3:rows14", 45),
    Row(channelwise(LARGE, (3, 3), 2), True, "fprop:depthwise:4x128x1:w1:s3:rows14:pack-b", 27),
    Row(channelwise(LARGE, (3, 3), 2), True, "dgrad:depthwise:4x128x1:w1:s3:rows14:pack-b", 14),
    Row(grouped(2, 2, LARGE, (3, 3)), True, "fprop:depthwise:4x64x1:w1:s3:rows14:pack-b", since({(3, 6): 40, (3, 9): 41})),
    Row(grouped(2, 2, LARGE, (3, 3)), True, "dgrad:depthwise:4x64x1:w1:s3:rows14:pack-b", 40),
    Row(grouped(2, 2, LARGE, (3, 3)), True, "wgrad:depthwise:4x64x1:w1:s3:split8:rows56", 28),
    Row(grouped(2, 2, LARGE, (3, 3)), False, "fprop:depthwise:8x4x8:w1:s3:rows14", 28),
    Row(grouped(2, 2, LARGE, (3, 3)), False, "wgrad:depthwise:8x4x8:w1:s3:split8:rows56", 21),
    Row(grouped(4, 4, LARGE, (3, 3)), True, "fprop:depthwise:8x32x1:w1:s3:rows14:pack-b", 70),
    Row(grouped(4, 4, LARGE, (3, 3)), False, "fprop:depthwise:8x4x8:w1:s3:rows14", 60),
)


@dataclass(frozen=True)
class Figures:
    """The compiled kernel of a row in figures. `outputs`: outputs per thread and trip of the main loop."""

    audited: KernelAudit
    outputs: float
    per_output: float  # instructions per output; for large filters, per output and tap

    @property
    def loads(self) -> str:
        """Loads per trip, by their bytes per thread."""
        widths = self.audited.trip.copies.get("LDG", {})
        return ", ".join(f"{count}x{8 * width}" for width, count in sorted(widths.items(), reverse=True))

    @property
    def fma_per_load(self) -> float:
        return self.audited.trip.classes["fma"] / max(1, sum(self.audited.trip.copies.get("LDG", {}).values()))


def figures(row: Row) -> Figures:
    """Compiles a row and counts its instructions."""
    problem, plan = row.problem, DepthwisePlan.parse(row.plan)
    a, b, out = operands(problem, plan.which, row.channels_last)
    bias = None if plan.which == Pass.WGRAD else 1
    prepared = prepare_call(plan.which, problem, torch.bfloat16, "ieee", -1, a, b, out, bias, row.plan)
    audited = compile_prepared(prepared, torch.bfloat16, row.arch)
    outputs = plan.block_m * plan.block_n * plan.block_k / (32 * plan.num_warps)
    if plan.which != Pass.WGRAD and plan.taps is None:
        outputs *= shape_of(problem, plan.which).out_group[1]
    return Figures(audited, outputs, audited.trip.instructions / outputs / (plan.taps[1] if plan.taps else 1))


def measured() -> Iterator[tuple[Row, Figures]]:
    for row in ROWS:
        yield row, figures(row)


def run() -> None:
    """Print the table, and that of the causal convolution after it."""
    from bench import causal  # here, because it imports `Figures` from this module

    console = Console()
    shown = Table(title=f"Triton {triton.__version__}, sm_90, bfloat16", box=SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("kernel", "plan", "regs", "spills", "trip", "an output", "loads", "FMA a load"):
        shown.add_column(heading, justify="left" if heading in ("kernel", "plan", "loads") else "right", no_wrap=True)

    def add(name: str, plan: str, got: Figures) -> None:
        kernel = got.audited
        counts = (str(kernel.registers), str(kernel.spills), str(kernel.trip.instructions), f"{got.per_output:.2f}")
        shown.add_row(name, plan.split(":", 2)[2], *counts, got.loads, f"{got.fma_per_load:.1f}")

    for row, got in measured():
        add(row.name, row.plan, got)
    for causal_row in causal.ROWS:
        name = f"{causal_row.name} {'channels-last' if causal_row.channels_last else 'contiguous'}"
        add(name, causal_row.plan, causal.figures(causal_row))
    Console(width=None if console.is_terminal else 200).print(shown)
