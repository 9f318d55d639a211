"""The rows of reports: frozen plain numbers from which tables, files and pictures are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from costmodel.bounds import crossing_batch, roofline
from costmodel.count import Cost, cost
from costmodel.device import FIGURES, RATES, Device
from costmodel.forecast import choose, predict
from costmodel.reports.notation import Convolution

if TYPE_CHECKING:
    from costmodel.networks.network import Network
    from costmodel.networks.timed import Timed


@dataclass(frozen=True)
class PassRow:
    """One pass of a layer. Bytes are compulsory traffic, times seconds; what needs a device is None without one.

    `low` and `high` are the interval of the predicted `seconds`, `source` where it comes from. `crossing_batch` is the least
    batch at which arithmetic binds, None where it never does.
    """

    what: str
    output_shape: tuple[int, ...]
    useful_macs: int
    dense_macs: int
    issued_macs: int | None
    useful_flops: int
    dense_flops: int
    issued_flops: int | None
    padding_waste: float
    tile_waste: float | None
    bytes: int
    im2col_bytes: int
    intensity: float  # useful FLOP per byte
    ridge: float | None = None
    roof: str | None = None
    crossing_batch: int | None = None
    plan: str | None = None
    seconds: float | None = None
    low: float | None = None
    high: float | None = None
    source: str | None = None
    limit: str | None = None  # the largest term of the plan's time
    roofline_seconds: float | None = None


@dataclass(frozen=True)
class EstimateRow:
    """How long layers over samples take at a sustained rate, forward and in training, in seconds.

    `unit` is "MAC/s" or "FLOP/s", `rate` in it; `share` the part of the device's peak, where there is a device.
    """

    rate: float
    unit: str
    origin: str  # "given", or what predicts it
    share: float | None
    forward_seconds: float
    training_seconds: float


@dataclass(frozen=True)
class LayerRow:
    """One operator of a network on a device, or the operators of a module added up. Bytes are compulsory, times seconds."""

    name: str
    op: str
    input_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...]
    parameters: int
    useful_macs: int
    dense_macs: int
    useful_flops: int
    dense_flops: int
    other_flops: int  # of bias, normalisation, activation, pooling
    bytes: int
    intensity: float  # useful FLOP per byte
    bound: str  # the largest term of the time
    seconds: float
    share: float  # of the network's time
    known: bool  # False: the operator's FLOP are not known and not counted
    receptive_field: tuple[int, ...] | None = None  # input elements that one output element sees, by spatial axis
    measured_seconds: float | None = None
    kernel_size: tuple[int, ...] | None = None  # of a convolution, as the next four
    stride: tuple[int, ...] | None = None
    padding: str | None = None  # of each axis, low:high where the ends differ
    dilation: tuple[int, ...] | None = None
    groups: int | None = None
    plan: str | None = None  # the plan by which its forward result is predicted


@dataclass(frozen=True)
class OperatorRow:
    """One operator of a network, without a device. Bytes are compulsory."""

    name: str
    op: str
    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...]
    dtype: str
    parameters: int
    useful_macs: int
    dense_macs: int
    other_flops: int  # of bias, normalisation, activation, pooling
    bytes: int
    backward_useful_macs: int
    backward_dense_macs: int
    backward_bytes: int
    known: bool
    receptive_field: tuple[int, ...] | None


@dataclass(frozen=True)
class Figure:
    """One figure of a device and where it is from."""

    device: str
    figure: str
    value: float
    unit: str
    source: str


def figures(device: Device) -> list[Figure]:
    """Every figure that the device has."""
    units = dict.fromkeys(RATES, "TFLOP/s") | {"bandwidth": "GB/s", "l2_bandwidth": "GB/s", "clock": "MHz", "max_clock": "MHz"}
    units |= {"l2_bytes": "B", "shared_per_block": "B", "shared_per_sm": "B", "launch_overhead": "s"}
    present = [(name, getattr(device, name)) for name in FIGURES]
    return [
        Figure(device.name, name, value, units.get(name, ""), device.source(name))
        for name, value in present
        if value is not None
    ]


def pass_rows(layer: Convolution, device: Device | None, dtype: str, precision: str) -> list[PassRow]:
    """One row per pass, the layer's own result first."""
    rows = []
    for which, what in layer.passes.items():
        plan = None if device is None else choose(layer.problem, which, device, dtype=dtype, precision=precision)
        spent = cost(layer.problem, which, plan, dtype=dtype)
        shape = {"dgrad": layer.problem.input_shape, "wgrad": layer.problem.weight_shape}.get(which, layer.problem.output_shape)
        row = {
            "what": what,
            "output_shape": shape,
            "useful_macs": spent.useful_macs,
            "dense_macs": spent.dense_macs,
            "issued_macs": spent.issued_macs,
            "useful_flops": spent.useful_flops,
            "dense_flops": spent.dense_flops,
            "issued_flops": spent.issued_flops,
            "padding_waste": spent.padding_waste,
            "tile_waste": spent.tile_waste,
            "bytes": spent.bytes,
            "im2col_bytes": spent.im2col_bytes,
            "intensity": spent.intensity,
        }
        if device is not None:
            least = roofline(spent, device, dtype, precision=precision)
            row |= {"ridge": least.ridge, "roof": least.bound, "roofline_seconds": least.seconds}
            row["crossing_batch"] = crossing_batch(layer.problem, device, dtype, which, precision=precision)
        if device is not None and plan is not None:
            guess = predict(layer.problem, which, plan, device, dtype=dtype, precision=precision)
            row |= {"plan": str(plan), "seconds": guess.seconds, "low": guess.low, "high": guess.high}
            row |= {"source": guess.source, "limit": guess.bound}
        rows.append(PassRow(**row))
    return rows


def estimate(
    work: Cost,
    training: Cost,
    rates: Sequence[tuple[float, str]],
    passes: Sequence[PassRow],
    device: Device | None,
    repeats: float,
    peak: float | None,
) -> list[EstimateRow]:
    """Times of `work` and of `training` (dense counts): a rate in FLOP/s is read both ways, as FLOP/s and, for those who count
    a multiply-add as one operation, as MAC/s. The plans' predicted times, `repeats` times over, are the last row."""
    rows = []
    for rate, kind in rates:
        for unit, done in (("MAC/s", work.dense_macs), ("FLOP/s", work.dense_flops)):
            if kind == "MAC" and unit == "FLOP/s":
                continue
            times = training.dense_macs / work.dense_macs
            part = None if peak is None else rate * (2 if unit == "MAC/s" else 1) / peak
            rows.append(EstimateRow(rate, unit, "given", part, done / rate, times * done / rate))
    if device is not None and all(row.seconds is not None for row in passes):
        seconds = [repeats * (row.seconds or 0.0) for row in passes]
        rate = work.dense_flops / seconds[0]
        part = None if peak is None else rate / peak
        rows.append(EstimateRow(rate, "FLOP/s", f"plans on {device.name}", part, seconds[0], sum(seconds)))
    return rows


def operator_rows(network: Network) -> list[OperatorRow]:
    """One row per operator, in the order they run."""
    return [
        OperatorRow(
            name=layer.name,
            op=layer.op,
            input_shape=layer.input_shape,
            weight_shape=layer.weight_shape,
            output_shape=layer.output_shape,
            dtype=layer.dtype,
            parameters=layer.parameters,
            useful_macs=layer.forward.useful_macs,
            dense_macs=layer.forward.dense_macs,
            other_flops=layer.forward.other_flops + layer.forward.bias_flops,
            bytes=layer.forward.bytes,
            backward_useful_macs=layer.backward_cost.useful_macs,
            backward_dense_macs=layer.backward_cost.dense_macs,
            backward_bytes=layer.backward_cost.bytes,
            known=layer.known,
            receptive_field=tuple(field.size for field in layer.fields) if layer.fields else None,
        )
        for layer in network.layers
    ]


def layer_rows(timed: Sequence[Timed]) -> list[LayerRow]:
    """One row per operator, in the order they run."""
    return [_layer_row(row.layer.name, row.layer.op, row.layer.input_shape, [row]) for row in timed]


def module_rows(timed: Sequence[Timed], depth: int) -> list[LayerRow]:
    """One row per first `depth` parts of the modules' paths, in the order of first use."""
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    groups: dict[str, list[Timed]] = {}
    for row in timed:
        name = ".".join(row.layer.module.split(".")[:depth]) or row.layer.name
        groups.setdefault(name, []).append(row)
    return [
        _layer_row(name, f"{len(m)} operators" if len(m) > 1 else m[0].layer.op, m[0].layer.input_shape, m)
        for name, m in groups.items()
    ]


def _layer_row(name: str, op: str, input_shape: tuple[int, ...], members: Sequence[Timed]) -> LayerRow:
    total = sum((member.cost for member in members), Cost())
    fields = [member.layer.fields for member in members if member.layer.fields]
    return LayerRow(
        name=name,
        op=op,
        input_shape=input_shape,
        output_shape=members[-1].layer.output_shape,
        parameters=sum(member.layer.parameters for member in members),
        useful_macs=total.useful_macs,
        dense_macs=total.dense_macs,
        useful_flops=total.useful_flops,
        dense_flops=total.dense_flops,
        other_flops=total.other_flops + total.bias_flops,
        bytes=total.bytes,
        intensity=total.intensity if total.bytes else 0.0,
        bound=max(members, key=lambda member: member.seconds).bound,
        seconds=sum(member.seconds for member in members),
        share=sum(member.share for member in members),
        known=all(member.layer.known for member in members),
        receptive_field=tuple(field.size for field in fields[-1]) if fields else None,
        **(_geometry(members[0]) if len(members) == 1 else {}),
    )


def _geometry(timed: Timed) -> dict[str, Any]:
    """The arguments of a convolution in torch's numbers; a transposed one has its own padding."""
    problem = timed.layer.problem
    if problem is None:
        return {}
    ends = [
        str(low) if low == high or timed.layer.op.startswith("conv_transpose") else f"{low}:{high}"
        for low, high in problem.padding
    ]
    return {
        "kernel_size": problem.kernel_size,
        "stride": problem.stride,
        "padding": "x".join(ends),
        "dilation": problem.dilation,
        "groups": problem.groups,
        "plan": timed.plan or None,
    }


def with_measured(rows: Sequence[LayerRow], measured: Mapping[str, float]) -> list[LayerRow]:
    """The rows with measured seconds by name. Raises ValueError for a name that no row has."""
    strangers = sorted(set(measured) - {row.name for row in rows})
    if strangers:
        raise ValueError(f"measured time of {strangers[0]!r}: no such row, the first is {rows[0].name!r}")
    return [replace(row, measured_seconds=measured.get(row.name)) for row in rows]
