"""The convolutions of ResNet-50 on a GPU: tritonconv beside torch, each with its error, time and share of the roofline.

Both sides get channels-last float16, and torch cuDNN's own search (`benchmark`). Errors are the largest difference from
torch's float32 convolution of the same float16 numbers (no tf32), relative to that result's largest element. Times are
medians by CUDA events over repeated calls, the L2 cache cleared before each. The roofline (`costmodel.bounds`) is the
larger of two times: useful FLOP at the datasheet's dense peak, compulsory bytes at its bandwidth.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.box import HORIZONTALS
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch.nn import functional
from triton.testing import do_bench

import tritonconv
from bench.provenance import provenance
from bench.workloads import Workload, load
from costmodel.bounds import roofline
from costmodel.detector import detect
from costmodel.device import Device
from tritonconv.launch import COUNTS

SUITE = "resnet50"
DTYPE = torch.float16


def median_seconds(call: Callable[[], Any]) -> float:
    """Median GPU time of a call that has run before."""
    return do_bench(call, warmup=10, rep=50, return_mode="median") / 1e3


@contextmanager
def torch_at_its_best() -> Iterator[None]:
    """cuDNN searches for its fastest kernel, and the float32 reference is not computed in tf32."""
    cudnn: Any = torch.backends.cudnn  # its `conv` is made at run time
    saved = cudnn.benchmark, cudnn.conv.fp32_precision
    cudnn.benchmark, cudnn.conv.fp32_precision = True, "ieee"
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.conv.fp32_precision = saved


def tensors(layer: Workload, on: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Input, weight and bias with results of size one, always the same."""
    generator = torch.Generator(on).manual_seed(0)

    def normal(shape: tuple[int, ...], scale: float = 1.0) -> torch.Tensor:
        values = scale * torch.randn(shape, generator=generator, device=on)
        return values.to(DTYPE, memory_format=torch.channels_last if len(shape) == 4 else torch.contiguous_format)

    reduced = layer.weight_shape[1] * torch.Size(layer.kernel).numel()
    bias = normal((layer.out_channels,)) if layer.bias else None
    return normal(layer.input_shape), normal(layer.weight_shape, reduced**-0.5), bias


def measure(layer: Workload, device: Device, on: str = "cuda") -> dict[str, Any]:
    """One row: a layer's forward convolution by tritonconv and by torch; RuntimeError where no kernel was launched."""
    problem, (x, w, b) = layer.problem(), tensors(layer, on)
    arguments = layer.arguments()
    ours, theirs = getattr(tritonconv, layer.op), getattr(functional, layer.op)
    reference = theirs(x.float(), w.float(), None if b is None else b.float(), **arguments)
    largest = reference.abs().max()

    def error(y: torch.Tensor) -> float:
        return ((y.float() - reference).abs().max() / largest).item()

    before = COUNTS.total()
    y = ours(x, w, b, **arguments)
    if COUNTS.total() == before:
        raise RuntimeError(f"{layer.suite}/{layer.layer} was computed without a kernel of tritonconv")
    torch_error = error(theirs(x, w, b, **arguments))
    torch_seconds = median_seconds(lambda: theirs(x, w, b, **arguments))
    seconds = median_seconds(lambda: ours(x, w, b, **arguments))
    least = roofline(problem, device, str(DTYPE).removeprefix("torch.")).seconds
    return {
        "suite": layer.suite,
        "layer": layer.layer,
        "problem": str(problem),
        "count": layer.count,
        "flops": problem.flops,
        "bytes": problem.bytes(DTYPE.itemsize),
        "dtype": str(DTYPE),
        "pass": "fprop",
        "plan": str(tritonconv.explain(ours, x, w, b, **arguments).plans["fprop"]),
        "error": error(y),
        "torch_error": torch_error,
        "us": 1e6 * seconds,
        "torch_us": 1e6 * torch_seconds,
        "roofline_us": 1e6 * least,
        "roofline_share": least / seconds,
        "tflops": problem.flops / seconds / 1e12,
        **provenance(),
    }


def accurate(row: dict[str, Any]) -> bool:
    """At most twice the error that torch makes in the same dtype (both end with the same rounding to it)."""
    return row["error"] <= 2 * row["torch_error"]


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows, and their sum over the network, where a layer occurs `times` times; fits 80 columns."""
    shown = Table(title=f"{SUITE}, forward, float16, on {rows[0]['device']}", box=HORIZONTALS, padding=(0, 1, 0, 0))
    shown.add_column("layer")
    for heading in ("times", "GFLOP", "MB", "error", "torch's", "µs", "torch's", "roofline"):
        shown.add_column(heading, justify="right")
    for row in rows:
        shown.add_row(
            row["layer"],
            str(row["count"]),
            f"{row['flops'] / 1e9:.1f}",
            f"{row['bytes'] / 1e6:.0f}",
            f"{row['error']:.1e}",
            f"{row['torch_error']:.1e}",
            f"{row['us']:.1f}",
            f"{row['torch_us']:.1f}",
            f"{row['roofline_share']:.0%}",
        )
    sums = {key: sum(row["count"] * row[key] for row in rows) for key in ("flops", "us", "torch_us", "roofline_us")}
    shown.add_section()
    shown.add_row(
        "all",
        str(sum(row["count"] for row in rows)),
        f"{sums['flops'] / 1e9:.1f}",
        *3 * [""],
        f"{sums['us']:.1f}",
        f"{sums['torch_us']:.1f}",
        f"{sums['roofline_us'] / sums['us']:.0%}",
    )
    return shown


def run(out: Path, pattern: str = "*") -> None:
    """Measure the suite's layers, save the rows in `out`, print them; SystemExit when one is not accurate."""
    console, layers, rows = Console(), load(SUITE, pattern), []
    path, (device, warnings) = out / f"{SUITE}.jsonl", detect()
    for warning in warnings:
        console.print(warning, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with torch_at_its_best(), path.open("w") as file, Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(layers))
        for layer in layers:
            progress.update(task, description=layer.layer)
            rows.append(measure(layer, device))
            file.write(json.dumps(rows[-1]) + "\n")
            progress.advance(task)
        progress.update(task, description="done")
    console.print(table(rows))
    console.print("error: largest difference from torch in float32 (no tf32), in parts of its largest element")
    console.print("µs: median by CUDA events, L2 cleared before each call; torch in channels-last, cudnn.benchmark on")
    console.print("roofline: share of the speed that the datasheet's peak and bandwidth allow")
    console.print(f"rows: {path}", soft_wrap=True)
    wrong = [row["layer"] for row in rows if not accurate(row)]
    if wrong:
        raise SystemExit(f"more than twice torch's error: {wrong}")
