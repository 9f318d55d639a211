"""What the causal convolution of video compiles to, read back from machine code. Needs no GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from triton.compiler import CompiledKernel

from bench.aot import Pointer, compile_ahead
from bench.causal import NAMED
from bench.sass import KernelAudit, audit
from costmodel.device import DEVICES
from costmodel.prologue import Prologue
from costmodel.video import Chunk
from tritonconv.kernels.epilogue import Fused
from tritonconv.kernels.prologue import Prologue as Pointers
from tritonconv.kernels.video import video_kernel
from tritonconv.launch import DTYPES
from tritonconv.layout import channels_last_strides, dense_strides
from tritonconv.normalize.launch import packed
from tritonconv.steps import Launch
from tritonconv.video import launch as video_launch


@dataclass(frozen=True)
class Row:
    """One kernel to compile: `filters` filters of `kernel` over `channels` channels, on frames of 60x104, two of which are
    cached. `plan` "" is the plan that the library takes. `limits`: most instructions per trip, from each version of Triton
    on."""

    plan: str = ""
    limits: tuple[tuple[tuple[int, int], int], ...] = ()
    upsample: int = 1
    time_padding: str = "zeros"
    channels: int = 384
    filters: int = 384
    kernel: tuple[int, int, int] = (3, 3, 3)
    channels_last: bool = True  # whether the result is
    arch: int = 90
    dtype: torch.dtype = torch.bfloat16
    precision: str = "ieee"
    prologue: Prologue | None = None
    residual: bool = False
    groups: int = 1
    summed: bool = False

    @property
    def chunk(self) -> Chunk:
        t, r, s = self.kernel
        pads = (r // 2, r // 2, s // 2, s // 2)
        x, w = (1, self.channels, 4, 60, 104), (self.filters, self.channels // self.groups, *self.kernel)
        window: dict[str, Any] = {
            "padding": pads,
            "upsample": self.upsample,
            "time_padding": self.time_padding,
            "groups": self.groups,
        }
        chunk = replace(Chunk.of(x, w, t - 1, **window), prologue=self.prologue, residual=self.residual)
        return chunk.with_summed_taps() if self.summed else chunk


#: Triton 3.8 and 3.9 spend up to four instructions more in the uniform datapath.
ROWS = (
    Row("fprop:video:128x128x64:w8:s3", (((3, 6), 107), ((3, 9), 111))),
    Row("fprop:video:128x256x64:w8:s3", (((3, 6), 119), ((3, 8), 120), ((3, 9), 121)), filters=512),
    Row("fprop:video:128x128x64:w8:s3", (((3, 6), 115), ((3, 9), 119)), 2),
    Row("fprop:video:128x256x64:w8:s3", (((3, 6), 128), ((3, 9), 129)), 2, filters=512),
)


def launch_of(row: Row) -> Launch:
    shape = row.chunk.output_shape
    strides = channels_last_strides(shape) if row.channels_last else dense_strides(shape, (4, 3, 2, 1, 0))
    x_n = row.channels * 60 * 104
    device, y, images = DEVICES[NAMED[row.arch]], (shape, strides), (4 * x_n, 2 * x_n)
    after = (row.prologue.activation, 0.01) if row.prologue else ("", 0.01), y if row.residual else None
    return video_launch.prepare(row.chunk, DTYPES[row.dtype], row.precision, device, y, images, 1, True, True, row.plan, *after)


def compiled(row: Row, change: Mapping[str, Any] | None = None) -> CompiledKernel:
    """A row's compiled kernel; `change` replaces some of its constants."""
    prepared, tensor = launch_of(row), Pointer(row.dtype)
    constants: dict[str, Any] = prepared.main.constants | dict(change or {})
    warps, stages = constants.pop("num_warps"), constants.pop("num_stages")
    values = (*(tensor,) * 6, *prepared.main.arguments)
    if row.prologue is not None:
        wide = Pointer(torch.float64 if row.dtype == torch.float64 else torch.float32)
        given: list[Any] = [wide if t else None for t in (row.prologue.scale, row.prologue.shift, row.prologue.rstd)]
        constants["prologue"] = Pointers(*given, *packed((0,) * 4))
    if row.residual:
        constants["fused"] = Fused(None, None, tensor, None, *prepared.fused)
    arguments = dict(zip(video_kernel.arg_names, values, strict=False)) | constants
    return compile_ahead(video_kernel, arguments, arch=row.arch, num_warps=warps, num_stages=stages)


def figures(row: Row, change: Mapping[str, Any] | None = None) -> KernelAudit:
    """The audit of `compiled`."""
    return audit(compiled(row, change))


def run() -> None:
    """Print the table."""
    shown = Table(title=f"Triton {triton.__version__}, sm_90, bfloat16", box=SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("call", "plan", "registers", "spills", "instructions per trip"):
        shown.add_column(heading, justify="left" if heading in ("call", "plan") else "right", no_wrap=True)
    for row in ROWS:
        read_back = figures(row)
        counts = read_back.registers, read_back.spills, read_back.trip.instructions
        shown.add_row(str(row.chunk), row.plan, *map(str, counts))
    console = Console()
    Console(width=None if console.is_terminal else 200).print(shown)
