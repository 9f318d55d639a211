"""`python -m bench overhead`: the host time of a call, beside torch's, and the time of the first call of a shape.

A call's host time is from its start to its return, while the GPU runs behind; layers are so small that the GPU keeps up. First
calls are timed to the end of their kernel: for a shape whose kernels are compiled from nothing (an empty cache on the disk),
and for another size that the same compiled kernel serves.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import triton
from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table
from torch.nn import functional

import tritonconv
from bench.calls import device_of
from bench.machine import Gpu, Machine
from bench.provenance import results_dir
from bench.records import write
from costmodel import calibration
from costmodel.calibration import Host

CALLS = 200
#: Calls between two synchronisations: few enough that the queue of launches never fills.
BURST = 20
#: The goals: host time above torch's in us, a first call in s, a first call of a compiled kernel in ms.
GOAL_ABOVE_US, GOAL_FIRST_S, GOAL_COMPILED_MS = 10.0, 2.0, 2.0


@dataclass(frozen=True)
class Layer:
    """A call whose kernels take no longer than the host needs."""

    name: str
    function: str
    input: tuple[int, ...]
    weight: tuple[int, ...]
    arguments: dict[str, Any]

    def tensors(self, device: str, batch: int, requires_grad: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn((batch, *self.input[1:]), device=device, dtype=torch.float16, requires_grad=requires_grad)
        w = torch.randn(self.weight, device=device, dtype=torch.float16, requires_grad=requires_grad)
        return x, w


LAYERS = (
    Layer("3x3", "conv2d", (1, 32, 14, 14), (32, 32, 3, 3), {"padding": 1}),
    Layer("1x1", "conv2d", (1, 32, 14, 14), (64, 32, 1, 1), {}),
    Layer("depthwise 3x3", "conv2d", (1, 32, 14, 14), (32, 1, 3, 3), {"padding": 1, "groups": 32}),
    Layer("1-D", "conv1d", (1, 32, 200), (32, 32, 3), {"padding": 1}),
    Layer("transposed 4x4", "conv_transpose2d", (1, 32, 7, 7), (32, 32, 4, 4), {"stride": 2, "padding": 1}),
)


@dataclass(frozen=True)
class Overhead:
    """Median host microseconds per call; `step` is forward and backward, and `operator` is torch.relu on the same input. First
    calls are in seconds and milliseconds."""

    layer: str
    forward_us: float
    torch_forward_us: float
    step_us: float
    torch_step_us: float
    first_s: float
    compiled_ms: float
    operator_us: float
    operator_step_us: float
    recorded_us: float  # forward, where gradients are recorded


def host_us(call: Callable[[], object], machine: Machine, calls: int = CALLS) -> float:
    """The median time from a call's start to its return."""
    for _ in range(3):
        call()
    machine.synchronize()
    times = []
    for i in range(calls):
        began = machine.now()
        call()
        times.append(machine.now() - began)
        if i % BURST == BURST - 1:
            machine.synchronize()
    machine.synchronize()
    return 1e6 * statistics.median(times)


@contextmanager
def empty_cache() -> Iterator[None]:
    """Inside the block Triton finds nothing compiled on the disk. What this process has compiled stays available."""
    with tempfile.TemporaryDirectory() as place, triton.knobs.cache.scope():
        triton.knobs.cache.dir = place
        yield


def first(layer: Layer, batch: int, machine: Machine) -> float:
    """Seconds from the start of one call to the end of its kernel."""
    x, w = layer.tensors(machine.device, batch)
    machine.synchronize()
    began = machine.now()
    getattr(tritonconv, layer.function)(x, w, **layer.arguments)
    machine.synchronize()
    return machine.now() - began


def overhead_of(layer: Layer, machine: Machine) -> Overhead:
    with empty_cache():
        new, compiled = first(layer, 2, machine), first(layer, 3, machine)
    x, w = layer.tensors(machine.device, 1)

    def called(name: str, package: Any) -> Callable[..., torch.Tensor]:
        function = getattr(package, name)
        return lambda x, w: function(x, w, **layer.arguments)

    def relu(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.relu(x)

    def forward(function: Callable[..., torch.Tensor]) -> float:
        with torch.no_grad():
            return host_us(lambda: function(x, w), machine)

    def step(function: Callable[..., torch.Tensor], wanted: slice = slice(None)) -> float:
        leaf, weight = layer.tensors(machine.device, 1, requires_grad=True)
        dy = torch.ones_like(function(leaf, weight))
        return host_us(lambda: torch.autograd.grad(function(leaf, weight), (leaf, weight)[wanted], dy), machine)

    ours, theirs = called(layer.function, tritonconv), called(layer.function, functional)
    times = forward(ours), forward(theirs), step(ours), step(theirs), new, 1e3 * compiled
    leaf, weight = layer.tensors(machine.device, 1, requires_grad=True)
    recorded = host_us(lambda: ours(leaf, weight), machine)
    return Overhead(layer.name, *times, forward(relu), step(relu, slice(1)), recorded)


def host_of(rows: Sequence[Overhead], facts: Mapping[str, Any]) -> Host:
    """The host's times for the cost model: medians over the layers. The backward pass is a step minus its forward pass."""

    def median(figures: Iterable[float]) -> float:
        return statistics.median(figures) / 1e6

    words = f"medians of {len(rows)} layers on a machine with {facts['gpu']}, torch {facts['torch']}, Triton {facts['triton']}"
    return Host(
        forward=median(row.recorded_us for row in rows),
        backward=median(row.step_us - row.recorded_us for row in rows),
        operator=median(row.operator_us for row in rows),
        operator_backward=median(row.operator_step_us - row.operator_us for row in rows),
        source=words,
    )


def keep(host: Host, gpu: str, package: bool) -> Path:
    """Writes host times into a device's table, the package's or the user's own, and keeps the rest of the table. Returns its
    path."""
    path = (calibration.package_path if package else calibration.user_path)(gpu)
    table = calibration.read(path) if path.is_file() else calibration.Table(gpu)
    calibration.write(replace(table, host=host), path)
    return path


def measure(machine: Machine) -> list[Overhead]:
    """The overhead of every layer, after a call that pays the costs of the first call of a process."""
    first(Layer("", "conv1d", (1, 16, 16), (16, 16, 1), {}), 1, machine)
    return [overhead_of(layer, machine) for layer in LAYERS]


def table(rows: list[Overhead], title: str) -> Table:
    shown = Table(title=title, box=HORIZONTALS, padding=(0, 1, 0, 0))
    for heading in ("layer", "forward µs", "torch's", "step µs", "torch's", "first call s", "compiled ms"):
        shown.add_column(heading, justify="left" if heading == "layer" else "right")
    for row in rows:
        numbers = (row.forward_us, row.torch_forward_us, row.step_us, row.torch_step_us)
        shown.add_row(row.layer, *(f"{n:.1f}" for n in numbers), f"{row.first_s:.2f}", f"{row.compiled_ms:.2f}")
    return shown


def command(out: Path | None, machine: Machine | None = None, keeps: str = "") -> None:
    """What `python -m bench overhead` does; `keeps` is "" for no table, "user" or "package"."""
    machine, console = machine or Gpu(), Console()
    rows = measure(machine)
    path = (out or results_dir()) / "overhead.json"
    write(path, [{**asdict(row), **machine.facts} for row in rows])
    console.print(table(rows, f"{machine.facts['gpu']}, torch {machine.facts['torch']}, float16, contiguous"))
    console.print(
        f"aims: forward at most torch's + {GOAL_ABOVE_US:.0f} µs, first call under {GOAL_FIRST_S:.0f} s, of a compiled kernel "
        f"under {GOAL_COMPILED_MS:.0f} ms. Rows: {path}",
        soft_wrap=True,
    )
    if keeps:
        device = device_of(machine.facts["gpu"])
        kept = keep(host_of(rows, machine.facts), device.name, keeps == "package")
        console.print(f"host times of {device.name} for the cost model: {kept}", soft_wrap=True)
