"""A network on a device as one frozen report: rows, totals, what is not known, and where its figures come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from costmodel.bounds import roofline
from costmodel.count import Cost
from costmodel.device import Device
from costmodel.networks.crosscheck import Comparison, crosscheck
from costmodel.networks.models import load
from costmodel.networks.network import Input, Network, trace
from costmodel.networks.timed import Forecast, Timed
from costmodel.reports.rows import Figure, LayerRow, figures, layer_rows, module_rows, with_measured
from costmodel.reports.tables import Tables


class Arguments(NamedTuple):
    """What a model is called with, as `trace` takes it."""

    positional: Sequence[Any]
    keywords: Mapping[str, Any]


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
class Report(Tables):
    """A network on a device. `rows` are operators, or modules added up; `timed` names the work that their times are of."""

    model: str
    inputs: tuple[Input, ...]
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
    operators: int = 0
    convolutions: int = 0
    forward_memory: int = 0  # bytes of activations alive at once
    training_memory: int = 0

    def table_rows(self) -> Sequence[LayerRow]:
        """What a table of the report holds."""
        return self.rows

    def seconds_of(self, timed: str) -> float | None:
        """The predicted time of some work, None where it was not timed."""
        return next((total.seconds for total in self.totals if total.what == timed), None)


def study(
    name: str,
    inputs: Arguments | Sequence[Any],
    device: Device,
    dtype: str,
    precision: str,
    *,
    arguments: Mapping[str, Any] | None = None,
    training: bool = False,
    samples: float | None = None,
    epochs: int = 1,
    depth: int | None = None,
    check: bool = False,
    measured: Mapping[str, float] | None = None,
    remark: str = "",
) -> Report:
    """Load `name`, trace it on `inputs` in `dtype`, and put it on `device`; `training` times the whole step.

    `inputs` are shapes, or `Arguments`; `arguments` are those of the factory.
    `depth` adds rows up by module, `check` compares with torch's own counter, `remark` joins the notes. Raises ValueError in
    one line.
    """
    network, checks = traced(name, inputs, dtype, arguments=arguments, training=training, check=check)
    forecast = network.on(device, dtype, precision=precision, training=training)
    return report_of(
        forecast, model=name, depth=depth, samples=samples, epochs=epochs, measured=measured, checks=checks, remark=remark
    )


def traced(
    name: str,
    inputs: Arguments | Sequence[Any],
    dtype: str,
    *,
    arguments: Mapping[str, Any] | None = None,
    training: bool = False,
    check: bool = False,
) -> tuple[Network, tuple[Comparison, ...] | None]:
    """The trace of a model by name, and its comparison with torch's counter where `check` asks for one."""
    positional, keywords = inputs if isinstance(inputs, Arguments) else (inputs, {})
    model = load(name, **arguments or {})
    network = trace(model, *positional, train=training, dtype=dtype, **keywords)
    checked = crosscheck(model, *positional, train=training, dtype=dtype, network=network, **keywords) if check else None
    return network, None if checked is None else tuple(checked)


def report_of(
    forecast: Forecast,
    *,
    model: str = "",
    depth: int | None = None,
    samples: float | None = None,
    epochs: int = 1,
    measured: Mapping[str, float] | None = None,
    checks: Sequence[Comparison] | None = None,
    remark: str = "",
) -> Report:
    """The report of a network on a device. `model` is what it is called, by default its class; `depth` adds rows up by module;
    `samples` adds the total of a training run; `measured` are seconds by row; `checks` are those of `crosscheck`.

    Raises ValueError for a number that makes no sense, and for a measured row that is none.
    """
    network, device, training = forecast.network, forecast.device, forecast.training
    dtype, precision, own = forecast.arithmetic
    if samples is not None and not 0 < samples < float("inf"):
        raise ValueError(f"samples must be a positive number, got {samples:g}")
    rows = layer_rows(forecast) if depth is None else module_rows(forecast, depth)
    if measured:
        rows = with_measured(rows, measured)
    peak, bandwidth = device.rate(dtype, precision), device.bandwidth * 1e9
    run = []
    if samples is not None:
        times = "once" if epochs == 1 else f"{epochs} times"
        run = [f"The training run sees {samples:,.0f} samples {times}, {network.batch} per step."]
    remarks = [f"{words}." for words in dict.fromkeys((remark, own)) if words]
    plans = (
        "Convolutions take the plan that the library would choose on channels-last tensors; any other operator takes one "
        "launch and the longer of its arithmetic at the peak and its bytes at the bandwidth. A normalisation whose "
        "statistics come first reads its input twice, which is in its time and not in its bytes."
        if forecast.planned
        else "Times are those of PyTorch's own kernels, fitted to times that others published."
    )
    return Report(
        model=model or network.name,
        inputs=network.inputs,
        batch=network.batch,
        device=device.name,
        arithmetic=forecast.arithmetic.words,
        peak=peak,
        bandwidth=bandwidth,
        parameters=network.parameters,
        trainable=network.trainable,
        timed=forecast.timed,
        totals=tuple(_totals(network.in_dtype(dtype), forecast, device, dtype, precision, training, samples, epochs)),
        rows=tuple(rows),
        unknown=dict(network.unknown),
        notes=(*remarks, *network.notes, *run),
        assumptions=(
            "1 MAC is one multiply-add, 2 FLOP. Useful MAC leave padding zeros out, dense MAC count every tap of every output.",
            "Bytes are compulsory: every tensor of an operator moved once, nothing fused with its neighbours.",
            "Peak activations are the tensors alive at once, each from the operator that makes it to the last one that reads "
            "it, the input among them and the parameters not.",
            plans,
            f"The interval of the time: {'; or '.join(sorted({source for layer in forecast for source in layer.sources}))}.",
        ),
        figures=tuple(figures(device)),
        checks=None if checks is None else tuple(checks),
        operators=len(network.layers),
        convolutions=len(network.convolutions),
        forward_memory=network.memory.peak(False, dtype),
        training_memory=network.memory.peak(True, dtype),
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
        """`steps` is the factor on the rows' time; it is None where the rows time other work."""
        time, low, high = (None, None, None) if steps is None else (steps * seconds for seconds in timing)
        least = roofline(spent, device, dtype, precision=precision).seconds
        others = spent.other_flops + spent.bias_flops
        flops = spent.useful_flops, spent.dense_flops
        return Total(what, spent.useful_macs, spent.dense_macs, *flops, others, spent.bytes, least, time, low, high)

    timing = sum(layer.seconds for layer in timed), sum(layer.low for layer in timed), sum(layer.high for layer in timed)
    totals = [
        total("forward pass", network.inference, None if training else 1.0),
        total("training step", network.training_step, 1.0 if training else None),
    ]
    if samples is not None:
        steps = network.steps(round(samples), epochs)
        totals.append(total("training run", network.training_run(round(samples), epochs), steps if training else None))
    return totals
