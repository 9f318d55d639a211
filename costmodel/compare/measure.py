"""`with costmodel.measure(model) as m: model(x)`: the calls inside are profiled, compared and printed."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costmodel.device import Device, find_device

if TYPE_CHECKING:
    from torch import nn

    from costmodel.compare.analysis import Comparison
    from costmodel.networks.timed import Timed


@dataclass
class Measurement:
    """What the block did; it is filled in at the block's end. Without a GPU `comparison` is None, and `forecast` has the
    model's rows on the device asked for, for the shapes that it was called with."""

    comparison: Comparison | None = None
    forecast: Sequence[Timed] = ()
    trace: Path | None = None  # where the recorded trace was kept, if asked for


@contextmanager
def measure(
    model: nn.Module,
    device: Device | str | None = None,
    *,
    keep: str | Path | None = None,
    show: bool = True,
    top: int = 20,
) -> Iterator[Measurement]:
    """Profile the calls of `model` inside the block, compare them with the cost model, and print what came out.

    >>> import costmodel, torch
    >>> model = torch.nn.Conv2d(3, 8, 3)
    >>> with costmodel.measure(model, device="h100", show=False) as measured:  # without a GPU, the forecast
    ...     y = model(torch.zeros(1, 3, 8, 8))

    Shapes are recorded, and every kernel counts. `device` is what `find_device` reads; None takes the GPU that ran. `keep` is
    the path where the trace (.json) is kept. With `show=False` nothing is printed: read `m.comparison`. Run the model once
    before, otherwise the times include the set-up of the first call. Without a GPU nothing is measured: the block says what is
    missing and shows the forecast for `device` ("h100" unless given). Times are in seconds. Raises TypeError where `model` is
    no module. Source: the trace is that of `torch.profiler`; `docs/measuring.md` shows what is compared.
    """
    import torch

    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    chosen = None if device is None else find_device(device)
    measurement = Measurement()
    if not torch.cuda.is_available():
        with _first_call(model) as calls:
            yield measurement
        _forecast(model, calls, chosen or find_device("h100"), measurement, show, top)
        return
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
        yield measurement
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(keep) if keep is not None else Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        from costmodel.compare.study import study

        measurement.comparison = study(path, chosen)[0]
        measurement.trace = path if keep is not None else None
    if show:
        from costmodel.compare.show import show as print_comparison
        from costmodel.reports.terminal import console

        print_comparison(console(), measurement.comparison, top)


@contextmanager
def _first_call(model: nn.Module) -> Iterator[list[tuple[Any, ...]]]:
    """The positional arguments of the model's first call."""
    calls: list[tuple[Any, ...]] = []

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        calls.append(args) if not calls else None

    handle = model.register_forward_pre_hook(note, prepend=True)
    try:
        yield calls
    finally:
        handle.remove()


def _forecast(model: nn.Module, calls: list[tuple[Any, ...]], device: Device, into: Measurement, show: bool, top: int) -> None:
    from costmodel.networks.network import trace

    missing = "nothing was measured: torch sees no CUDA device"
    if not calls:
        print(f"costmodel: {missing}, and the model was not called, so there is no forecast", file=sys.stderr)
        return
    network = trace(model, *calls[0], train=model.training)
    into.forecast = network.on(device)
    if not show:
        return
    from costmodel.reports.terminal import console, table
    from costmodel.reports.units import duration, share

    out = console()
    kind = into.forecast.arithmetic.dtype
    out.print(f"{missing[0].upper()}{missing[1:]}. The forecast for {device.name} in {kind}, of one call:", markup=False)
    shown = table()
    shown.add_column("layer")
    for name in ("plan, predicted", "share"):
        shown.add_column(name, justify="right")
    ordered = sorted(into.forecast, key=lambda row: -row.seconds)
    for row in ordered[: top or None]:
        shown.add_row(row.layer.name, duration(row.seconds), share(row.share))
    out.print(shown)
    total = f"All together {duration(into.forecast.seconds)}"
    with contextlib.suppress(ValueError):  # a dtype that the library term does not know
        today = network.on(device, library="cudnn")
        total += f"; PyTorch today, predicted: {duration(today.seconds)}"
    out.print(f"{total}.", markup=False)
