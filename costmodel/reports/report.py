"""A network on a device as one frozen report: rows, totals, what is not known, and where its figures come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from costmodel.bounds import roofline
from costmodel.count import Cost
from costmodel.device import Device
from costmodel.networks.crosscheck import Comparison, crosscheck
from costmodel.networks.models import load
from costmodel.networks.network import Network, Timed, trace
from costmodel.reports.rows import Figure, LayerRow, figures, layer_rows, module_rows, with_measured


@dataclass(frozen=True)
class Total:
    """The cost of some work on the device. `seconds` is predicted, with its interval, where the report times that work."""

    what: str
    useful_macs: int
    dense_macs: int
    useful_flops: int
    dense_flops: int
    other_flops: int  # of bias, normalisation, activation, pooling
    bytes: int
    roofline_seconds: float  # as if nothing else moved or computed
    seconds: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Report:
    """`rows` are operators, or modules added up; `timed` says of which work their times are."""

    model: str
    inputs: tuple[tuple[int, ...], ...]
    batch: int
    device: str
    arithmetic: str
    peak: float  # FLOP/s
    bandwidth: float  # bytes/s
    parameters: int
    trainable: int
    timed: str
    totals: tuple[Total, ...]
    rows: tuple[LayerRow, ...]
    unknown: Mapping[str, int]  # operators whose FLOP are not known, with their calls
    notes: tuple[str, ...]
    assumptions: tuple[str, ...]
    figures: tuple[Figure, ...]  # of the device
    checks: tuple[Comparison, ...] | None  # against torch's counter, None where that was not asked for


def study(
    name: str,
    shapes: Sequence[tuple[int, ...]],
    device: Device,
    dtype: str,
    precision: str,
    *,
    training: bool = False,
    samples: float | None = None,
    epochs: int = 1,
    depth: int | None = None,
    check: bool = False,
    measured: Mapping[str, float] | None = None,
    remark: str = "",
) -> Report:
    """Load `name`, trace it on inputs of `shapes` in `dtype`, and put it on `device`; `training` times the whole step.

    `depth` adds rows up by module, `check` compares with torch's own counter, `remark` joins the notes. Raises ValueError in
    one line.
    """
    if samples is not None and not 0 < samples < float("inf"):
        raise ValueError(f"samples must be a positive number, got {samples:g}")
    model, given = load(name), getattr(torch, dtype)
    network = trace(model, *shapes, train=training, dtype=given)
    compared = tuple(crosscheck(model, *shapes, train=training, dtype=given, network=network)) if check else None
    timed = network.on(device, precision=precision, training=training)
    rows = layer_rows(timed) if depth is None else module_rows(timed, depth)
    if measured:
        rows = with_measured(rows, measured)
    peak, bandwidth = device.rate(dtype, precision), device.bandwidth * 1e9
    run = []
    if samples is not None:
        times = "once" if epochs == 1 else f"{epochs} times"
        run = [f"The training run sees {samples:,.0f} samples {times}, {network.batch} a step."]
    return Report(
        model=name,
        inputs=tuple(shapes),
        batch=network.batch,
        device=device.name,
        arithmetic=f"{dtype}, {precision}" if dtype == "float32" else dtype,
        peak=peak,
        bandwidth=bandwidth,
        parameters=network.parameters,
        trainable=network.trainable,
        timed="training step" if training else "forward pass",
        totals=tuple(_totals(network, timed, device, dtype, precision, training, samples, epochs)),
        rows=tuple(rows),
        unknown=dict(network.unknown),
        notes=(*([f"{remark}."] if remark else []), *network.notes, *run),
        assumptions=(
            "1 MAC is one multiply-add, 2 FLOP. Useful MAC leave padding zeros out, dense MAC count every tap of every output.",
            "Bytes are compulsory: every tensor of an operator moved once, nothing fused with its neighbours.",
            "Convolutions take the plan that the library would choose on channels-last tensors; any other operator takes one "
            "launch and the longer of its arithmetic at the peak and its bytes at the bandwidth. A normalisation whose "
            "statistics come first reads its input twice, which is in its time and not in its bytes.",
            f"The interval of the time: {'; or '.join(sorted(frozenset[str]().union(*(of.sources for of in timed))))}.",
        ),
        figures=tuple(figures(device)),
        checks=compared,
    )


def _totals(
    network: Network,
    timed: Sequence[Timed],
    device: Device,
    dtype: str,
    precision: str,
    training: bool,
    samples: float | None,
    epochs: int,
) -> list[Total]:
    def total(what: str, spent: Cost, steps: float | None) -> Total:
        """`steps`: how many times the rows' time it takes; None where the rows time other work."""
        time, low, high = (None, None, None) if steps is None else (steps * of for of in timing)
        least = roofline(spent, device, dtype, precision=precision).seconds
        others = spent.other_flops + spent.bias_flops
        flops = spent.useful_flops, spent.dense_flops
        return Total(what, spent.useful_macs, spent.dense_macs, *flops, others, spent.bytes, least, time, low, high)

    timing = sum(of.seconds for of in timed), sum(of.low for of in timed), sum(of.high for of in timed)
    found = [
        total("forward pass", network.inference, None if training else 1.0),
        total("training step", network.training_step, 1.0 if training else None),
    ]
    if samples is not None:
        steps = network.steps(round(samples), epochs)
        found.append(total("training run", network.training_run(round(samples), epochs), steps if training else None))
    return found
