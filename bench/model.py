"""`python -m bench model`: a whole network with torch's convolutions and with tritonconv's, eager and compiled.

Each variant is checked before it is timed: its logits, and with `train` its gradients, are compared with the network in
float64. Batch norms are in evaluation mode for this, so that few images suffice. Results may be twice as far off as torch's in
the same dtype.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table
from torch import nn

import tritonconv
from bench.machine import Gpu, Machine, quantiles
from bench.measure import one_line
from bench.provenance import results_dir
from bench.providers.cudnn import benchmark
from bench.records import write
from bench.run import DTYPES
from bench.work import float32_in
from costmodel.networks.models import imported

STEPS = 30
CHECKED_IMAGES = 2
#: The distance (the square root of float32's rounding) below which neither of two errors is called the larger.
FLOOR = 2.0**-12


@dataclass(frozen=True)
class Variant:
    """A step's time and memory. Where `ok` is False there are no times, and `note` says why."""

    name: str
    ok: bool
    error: float | None  # distance from the float64 result, relative to its norm
    milliseconds: float | None = None
    p10: float | None = None
    p90: float | None = None
    peak_bytes: int | None = None
    note: str = ""


def build(name: str) -> nn.Module:
    """The network of a name with random weights, torchvision's or else timm's. Raises ValueError where neither has it."""
    tried = []
    for package, make in (("torchvision.models", "get_model"), ("timm", "create_model")):
        try:
            module = imported(package)
        except ValueError as error:
            tried.append(f"{package}: {one_line(error)}")
            continue
        try:
            return getattr(module, make)(name, **({"weights": None} if make == "get_model" else {"pretrained": False}))
        except (ValueError, RuntimeError, KeyError) as error:
            tried.append(f"{package}: {one_line(error)}")
    raise ValueError(f"no network {name!r}: {'; '.join(tried)}")


def results(model: nn.Module, x: torch.Tensor, train: bool) -> torch.Tensor:
    """Logits, or with `train` every gradient of the mean square of the logits, as one vector in float64."""
    was = model.training
    model.eval()
    try:
        if not train:
            with torch.no_grad():
                return model(x).double().flatten()
        parameters = [p for p in model.parameters() if p.requires_grad]
        loss = model(x).double().square().mean()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        return torch.cat([g.double().flatten() for g in gradients if g is not None])
    finally:
        model.train(was)


def distance(got: torch.Tensor, want: torch.Tensor) -> float:
    """|got - want| / |want|; infinite where an element is NaN."""
    value = float((got - want).norm() / want.norm())
    return math.inf if math.isnan(value) else value


def step_of(model: nn.Module, x: torch.Tensor, train: bool) -> Callable[[], object]:
    """One step: forward, or forward and backward of the logits' mean square."""

    def infer() -> object:
        with torch.no_grad():
            return model(x)

    def learn() -> object:
        model.zero_grad(set_to_none=True)
        model(x).float().square().mean().backward()
        return None

    return learn if train else infer


def variants(model: nn.Module, compiled: bool) -> Iterator[tuple[str, nn.Module]]:
    """(name, network) of each variant, torch in eager mode first."""
    converted = tritonconv.convert(model)
    yield "torch", model
    yield "tritonconv", converted
    if compiled:
        for name, network in (("torch compiled", model), ("tritonconv compiled", converted)):
            torch._dynamo.reset()
            yield name, torch.compile(network)  # type: ignore[misc]


def compare(model: nn.Module, x: torch.Tensor, train: bool, compiled: bool, machine: Machine) -> list[Variant]:
    """Every variant, checked and timed. `model` and `x` have the dtype and the device of the comparison."""
    few = x[:CHECKED_IMAGES]
    want = results(copy.deepcopy(model).double(), few.double(), train)
    statistics_before = [buffer.clone() for buffer in model.buffers()]  # a timed step changes those of batch norms
    model.train(train)
    timed: list[Variant] = []
    allowed = FLOOR
    for name, network in variants(model, compiled):
        for buffer, before in zip(model.buffers(), statistics_before, strict=True):
            buffer.copy_(before)
        try:
            error = distance(results(network, few, train), want)
            if name == "torch" and error < math.inf:
                allowed = max(FLOOR, 2 * error)
            if error > allowed:
                timed.append(Variant(name, False, None, note=f"{error:.2e} off, {allowed:.2e} allowed"))
                continue
            step = step_of(network, x, train)
            times = quantiles(machine.elapsed(step, STEPS))
            timed.append(
                Variant(name, True, error, 1e3 * times.median, 1e3 * times.p10, 1e3 * times.p90, machine.peak_bytes(step))
            )
        except Exception as raised:  # a variant that fails must not hide the others
            timed.append(Variant(name, False, None, note=one_line(raised)))
            machine.release()
    return timed


def table(timed: list[Variant], title: str) -> Table:
    """The table. A ratio is torch's time in the same mode over ours."""
    shown = Table(title=title, box=HORIZONTALS, padding=(0, 1, 0, 0))
    for heading in ("", "ms per step", "p10", "p90", "ratio", "peak GB", "error"):
        shown.add_column(heading, justify="right" if heading else "left")
    times = {variant.name: variant.milliseconds for variant in timed}
    for v in timed:
        if v.milliseconds is None or v.p10 is None or v.p90 is None or v.peak_bytes is None:
            shown.add_row(v.name, "failed", "", "", "-", "", "")
            continue
        theirs = times.get(v.name.replace("tritonconv", "torch"))
        ratio = "-" if theirs is None else f"{theirs / v.milliseconds:.2f}x"
        numbers = (
            f"{v.milliseconds:.2f}",
            f"{v.p10:.2f}",
            f"{v.p90:.2f}",
            ratio,
            f"{v.peak_bytes / 1e9:.2f}",
            f"{v.error:.1e}",
        )
        shown.add_row(v.name, *numbers)
    return shown


def command(
    name: str,
    train: bool,
    batch: int,
    size: int,
    dtype: str,
    compiled: bool,
    out: Path | None,
    machine: Machine | None = None,
) -> None:
    """What `python -m bench model` does. Raises ValueError for an unknown name or dtype, SystemExit(1) where a variant
    failed."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    model = build(name)
    machine, console = machine or Gpu(), Console()
    place: dict[str, Any] = {"device": machine.device, "dtype": getattr(torch, DTYPES[dtype])}
    model = model.to(**place)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(batch, 3, size, size, **place).contiguous(memory_format=torch.channels_last)
    with float32_in("tf32" if dtype == "tf32" else "ieee"), benchmark(True):
        timed = compare(model, x, train, compiled, machine)
    words = "training" if train else "inference"
    path = (out or results_dir()) / f"model-{name}-{words}-{dtype}.json"
    setting = {"model": name, "train": train, "batch": batch, "size": size, "dtype": dtype}
    write(path, [{**setting, **asdict(variant), **machine.facts} for variant in timed])
    console.print(table(timed, f"{name}, {words}, {batch}x3x{size}x{size} {dtype} channels-last, {machine.facts['gpu']}"))
    failed = [variant for variant in timed if not variant.ok]
    for variant in failed:
        console.print(f"{variant.name}: {variant.note}", style="red", soft_wrap=True)
    console.print(f"result: {path}", soft_wrap=True)
    if failed:
        raise SystemExit(1)
