"""A traced network as PyTorch runs it today, by a library's published times: `Network.on(..., library="cudnn")`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from costmodel.count import Cost
from costmodel.device import Device
from costmodel.library.networks import LibraryClock, riding
from costmodel.networks.timed import Timed

if TYPE_CHECKING:
    from costmodel.networks.network import Network


def on(
    network: Network,
    device: Device,
    dtype: str | None,
    *,
    precision: str,
    training: bool,
    library: str,
    mode: str,
    layout: str,
) -> list[Timed]:
    """Every layer with its time in `library`; arguments and errors are those of `Network.on`."""
    layers = [layer if dtype is None else layer.in_dtype(dtype) for layer in network.layers]
    arithmetic = dtype or network.dtype
    clock = LibraryClock(
        device, library, mode=mode, layout=layout, dtype=arithmetic, precision=precision, training=training
    )  # fmt: skip
    rows = []
    for whole, layer in zip(layers, riding(layers) if mode == "compiled" else layers, strict=True):
        times = [clock.time(layer.operator, str(layer.which or ""), layer.problem, layer.forward, layer.dtype)]
        if training:
            times += [clock.time(step.op, step.which, step.problem, step.cost, layer.dtype) for step in layer.backward]
        spent = whole.training_cost if training else whole.forward
        if spent != Cost():
            rows.append((whole, spent, times))
    total = sum(time.seconds for _, _, times in rows for time in times) or 1.0
    return [
        Timed(
            layer=layer,
            cost=spent,
            seconds=sum(time.seconds for time in times),
            bound=max(times, key=lambda time: time.seconds).bound,
            share=sum(time.seconds for time in times) / total,
            low=sum(time.low for time in times),
            high=sum(time.high for time in times),
            sources=frozenset(time.source for time in times if time.seconds),
        )
        for layer, spent, times in rows
    ]
