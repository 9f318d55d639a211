"""A photograph through five convolutions in Triton's interpreter, each checked against torch in float64.

Nothing here is timed for its own sake: the interpreter runs a kernel's programs one after another in Python. It needs
TRITON_INTERPRET=1 in the environment before triton is imported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.cbook import get_sample_data
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image
from rich.box import HORIZONTALS
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import tritonconv
from bench.launched import COUNTS
from costmodel.problem import ConvProblem, Pass

SIZE = 128
SOBEL = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
LAPLACE = torch.tensor([[-1.0, -1.0, -1.0], [-1.0, 8.0, -1.0], [-1.0, -1.0, -1.0]])
BINOMIAL = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
LUMINANCE = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601


@dataclass(frozen=True)
class Layer:
    """One call of a convolution, and how its result is shown."""

    title: str
    function: str
    weight: torch.Tensor
    arguments: dict[str, Any]
    show: Callable[[torch.Tensor], torch.Tensor]  # [C, H, W] -> [H, W] or [H, W, 3]

    def problem(self, x: torch.Tensor) -> ConvProblem:
        call: dict[str, Any] = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1} | self.arguments
        if self.function == "conv_transpose2d":
            return ConvProblem.conv_transpose(x.shape, self.weight.shape, **call)
        return ConvProblem.conv(x.shape, self.weight.shape, **call)

    def reference(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return getattr(torch.nn.functional, self.function)(x.double(), w.double(), **self.arguments)


@dataclass(frozen=True)
class Result:
    layer: Layer
    problem: ConvProblem
    x: torch.Tensor
    y: torch.Tensor
    error: float  # largest |y - torch's in float64|
    allowed: bool  # whether every element is within the bound for its sum
    launches: int
    seconds: float


def photograph(size: int) -> torch.Tensor:
    """The square middle of the portrait of Grace Hopper that matplotlib ships, [1, 3, size, size] in [0, 1]."""
    image = Image.open(str(get_sample_data("grace_hopper.jpg", asfileobj=False))).convert("RGB")
    left = (image.width - 400) // 2
    image = image.crop((left, 10, left + 400, 410)).resize((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)[None].contiguous()


def colour(y: torch.Tensor) -> torch.Tensor:
    return y.clamp(0, 1).permute(1, 2, 0)


def magnitude(y: torch.Tensor) -> torch.Tensor:
    return y.norm(dim=0)


def relief(y: torch.Tensor) -> torch.Tensor:
    return colour(y / 2 + 0.5)


def layers() -> list[Layer]:
    """The layers: edge, strided, dilated, grouped, and a transposed one that takes the strided one's output."""
    edges = torch.stack([SOBEL, SOBEL.T])[:, None] * LUMINANCE[None, :, None, None]
    laplace = LAPLACE[None, None] * LUMINANCE[None, :, None, None]
    slopes = torch.stack([SOBEL, SOBEL.T, (SOBEL + SOBEL.T) / 2])[:, None]
    blur = torch.eye(3)[:, :, None, None] * torch.outer(BINOMIAL, BINOMIAL)
    two = (2, 2)
    return [
        Layer("Edges: Sobel, both directions", "conv2d", edges, {}, magnitude),
        Layer("Strided: blurred, every second pixel", "conv2d", blur, {"stride": two, "padding": two}, colour),
        Layer("Dilated: Laplacian, taps 4 apart", "conv2d", laplace, {"dilation": (4, 4)}, lambda y: y[0]),
        Layer("Grouped: a slope for each colour", "conv2d", slopes, {"padding": (1, 1), "groups": 3}, relief),
        Layer(
            "Transposed: the strided one, doubled",
            "conv_transpose2d",
            4 * blur,  # of every four pixels that the stride spreads, one is not zero
            {"stride": two, "padding": two, "output_padding": (1, 1)},
            colour,
        ),
    ]


def compute(layer: Layer, x: torch.Tensor) -> Result:
    """Run one layer in the interpreter and compare it.

    Rounding to float32 (u = 2**-24) may cost an element u * |y| and 4 u sqrt(k) times the sum of its k products' sizes.
    """
    problem = layer.problem(x)
    before, start = COUNTS.total(), time.perf_counter()
    y = getattr(tritonconv, layer.function)(x, layer.weight, **layer.arguments)
    seconds = time.perf_counter() - start
    reference = layer.reference(x, layer.weight)
    difference = (y.double() - reference).abs()
    k = problem.gemm(Pass.DGRAD if layer.function == "conv_transpose2d" else Pass.FPROP).k
    bound = 2**-24 * (reference.abs() + 4 * k**0.5 * layer.reference(x.abs(), layer.weight.abs()))
    allowed = bool((difference <= bound).all())
    return Result(layer, problem, x, y, difference.max().item(), allowed, COUNTS.total() - before, seconds)


def compute_all(size: int, console: Console) -> list[Result]:
    photo, todo = photograph(size), layers()
    results: list[Result] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(todo))
        for layer in todo:
            progress.update(task, description=layer.title)
            x = results[1].y if layer.function == "conv_transpose2d" else photo
            results.append(compute(layer, x))
            progress.advance(task)
        progress.update(task, description="done")
    return results


def by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def table(results: list[Result]) -> Table:
    """The layers as algebra, from the problem only, and the error of the run; fits 80 columns."""
    shown = Table(title="Five convolutions of a photograph, float32", box=HORIZONTALS, show_lines=True, padding=(0, 1, 0, 0))
    shown.add_column("layer")
    for heading in ("input\n→ output", "weight", "MAC", "FLOP", "bytes", "max error", "time"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for r in results:
        shown.add_row(
            r.layer.title.split(":")[0],
            f"{by(r.x.shape[1:])}\n→ {by(r.y.shape[1:])}",
            by(r.layer.weight.shape),
            f"{r.problem.macs / 1e3:.0f} k",
            f"{r.problem.flops / 1e3:.0f} k",
            f"{r.problem.bytes(r.x.element_size()) / 1e3:.0f} k",
            f"{r.error:.1e}",
            f"{r.seconds:.1f} s",
        )
    return shown


def draw(results: list[Result], path: Path) -> None:
    """The photograph and what the five layers made of it, one picture."""
    figure = Figure(figsize=(12, 9.2), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    figure.suptitle("One photograph, five convolutions in Triton's interpreter", fontsize=16)
    photo = results[0].x[0]
    panels = [("The photograph", by(photo.shape), colour(photo))]
    for r in results:
        detail = f"{by(r.x.shape[1:])} → {by(r.y.shape[1:])}, max error {r.error:.0e}"
        panels.append((r.layer.title, detail, r.layer.show(r.y[0])))
    for axis, (title, detail, picture) in zip(figure.subplots(2, 3).flat, panels, strict=True):
        low, high = np.quantile(picture.numpy(), [0.01, 0.99])
        axis.imshow(picture.numpy(), cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        axis.set_title(f"{title}\n{detail}", fontsize=11)
        axis.set_axis_off()
    figure.savefig(path, dpi=110)


def run(out: Path, size: int = SIZE) -> None:
    """Compute, print the table and save the picture in `out`. Raises SystemExit where a layer is wrong or ran no kernel."""
    console = Console()
    console.print("No GPU is used: the kernels run in Triton's interpreter, for some seconds.")
    results = compute_all(size, console)
    console.print(table(results))
    console.print("max error: the largest difference from torch.nn.functional computed in float64")
    path = out / "photograph.png"
    draw(results, path)
    console.print(f"picture: {path}", soft_wrap=True)
    wrong = [r.layer.title for r in results if not r.allowed]
    idle = [r.layer.title for r in results if not r.launches]
    if wrong or idle:
        raise SystemExit(f"beyond the rounding error of float32: {wrong}; computed without a kernel: {idle}")
