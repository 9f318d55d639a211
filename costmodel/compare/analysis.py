"""Measured times beside the roofline, this package's prediction and a library's: rows, findings, and what would help."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from costmodel.bounds import roofline
from costmodel.compare.measured import Measured, MeasuredLayer, MeasuredNetwork
from costmodel.count import Cost, cost
from costmodel.device import Device
from costmodel.forecast import predict
from costmodel.problem import ConvProblem, Pass
from costmodel.resources import LEAST_CAPABILITY

#: Below this many seconds the launch takes more than the kernel.
SHORT = 20e-6
#: A share of a layer's or a step's time that is worth a sentence.
WORTH = 0.15


@dataclass(frozen=True)
class LayerRow:
    """A measured layer. Seconds are per call; `measured_seconds` includes layout copies, and `copies` has them alone. `gap` is
    what a step takes beyond this package's prediction. A field is None where the device or the plan has no such figure."""

    device: str
    name: str
    passes: str
    layout: str
    dtype: str
    provider: str
    calls: float
    measured_seconds: float
    copies: float
    useful_rate: float  # FLOP/s
    dense_rate: float
    bytes_rate: float  # compulsory bytes per second
    roofline_seconds: float
    roofline_share: float
    bound: str
    predicted_seconds: float | None
    predicted_low: float | None
    predicted_high: float | None
    library_seconds: float | None
    ratio: float | None  # measured over predicted
    gap: float | None
    useful_flops: float
    intensity: float
    finding: str
    advice: str

    @property
    def label(self) -> str:
        """The name with its passes."""
        return f"{self.name} {self.passes}"

    @property
    def step_seconds(self) -> float:
        return self.calls * self.measured_seconds


@dataclass(frozen=True)
class NetworkRow:
    """A network's measured step beside its predictions. `fused_seconds` is the roofline with pointwise operators and
    normalisations fused into their neighbours. `reason` says why a row has no figures."""

    device: str
    model: str
    image: int
    batch: int
    mode: str
    layout: str
    measured_seconds: float
    roofline_seconds: float | None = None
    fused_seconds: float | None = None
    predicted_seconds: float | None = None
    library_seconds: float | None = None
    finding: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """One file on one device."""

    source: str
    device: Device
    layers: tuple[LayerRow, ...]
    networks: tuple[NetworkRow, ...]
    kinds: Mapping[str, float]
    wall: float
    busy: float
    steps: int
    arithmetic: tuple[str, str]  # the dtype and precision of most layers
    notes: tuple[str, ...]

    @property
    def idle_share(self) -> float | None:
        """The share of a step in which the GPU ran nothing; None without steps."""
        return 1 - self.busy / self.wall if self.wall else None

    @property
    def losses(self) -> list[LayerRow]:
        """The ten layers that would gain a step most time, the largest gain first."""
        losing = sorted((row for row in self.layers if (row.gap or 0.0) > 0), key=lambda row: -(row.gap or 0.0))
        once = {(row.name, row.passes): row for row in reversed(losing)}  # a table may have a layer many times
        return sorted(once.values(), key=lambda row: -(row.gap or 0.0))[:10]

    @property
    def findings(self) -> list[tuple[str, str]]:
        """(name, words) of each layer that is below its roofline."""
        rows: list[LayerRow | NetworkRow] = [*self.layers, *self.networks]
        return [(row.label if isinstance(row, LayerRow) else row.model, row.finding) for row in rows if row.finding]


def compare(measured: Measured, networks: Sequence[NetworkRow] = ()) -> Comparison:
    """Each layer with its roofline and predictions."""
    device = measured.device
    rows = [_row(layer, device) for layer in measured.layers]
    kinds = {(layer.dtype, layer.precision) for layer in measured.layers} or {("float16", "ieee")}
    commonest = max(kinds, key=lambda kind: sum((layer.dtype, layer.precision) == kind for layer in measured.layers))
    return Comparison(
        source=measured.source, device=device, layers=tuple(rows), networks=tuple(networks), kinds=measured.kinds,
        wall=measured.wall, busy=measured.busy, steps=measured.steps, arithmetic=commonest, notes=measured.notes,
    )  # fmt: skip


def _row(layer: MeasuredLayer, device: Device) -> LayerRow:
    whole = layer.seconds + layer.copies
    spent = sum((cost(layer.problem, which, dtype=layer.dtype) for which in layer.passes), Cost())
    least, bound = _roofline(layer, device)
    ours = _predicted(layer, device)
    theirs = _library(layer, device)
    predicted, low, high = ours or (None, None, None)
    gap = None if predicted is None else layer.calls * (whole - predicted)
    return LayerRow(
        device=device.name,
        name=layer.name,
        passes=layer.words,
        layout=layer.layout,
        dtype="tf32" if layer.precision == "tf32" else layer.dtype,
        provider=layer.provider,
        calls=layer.calls,
        measured_seconds=whole,
        copies=layer.copies,
        useful_rate=spent.useful_flops / whole,
        dense_rate=spent.dense_flops / whole,
        bytes_rate=spent.bytes / whole,
        roofline_seconds=least,
        roofline_share=least / whole,
        bound=bound,
        predicted_seconds=predicted,
        predicted_low=low,
        predicted_high=high,
        library_seconds=theirs,
        ratio=None if predicted is None else whole / predicted,
        gap=gap,
        useful_flops=spent.useful_flops,
        intensity=spent.intensity,
        finding=_finding(layer, device, least, whole, spent),
        advice=_advice(layer, device, least, predicted),
    )


def _roofline(layer: MeasuredLayer, device: Device) -> tuple[float, str]:
    """(seconds of all passes one after another, the roof of the longest)."""
    roofs = [roofline(layer.problem, device, layer.dtype, precision=layer.precision, which=which) for which in layer.passes]
    return sum(roof.seconds for roof in roofs), max(roofs, key=lambda roof: roof.seconds).bound


def _predicted(layer: MeasuredLayer, device: Device) -> tuple[float, float, float] | None:
    predictions = [_ours(layer.problem, which, device, layer.dtype, layer.precision) for which in layer.passes]
    whole = [prediction for prediction in predictions if prediction is not None]
    if len(whole) < len(predictions):
        return None
    seconds, low, high = (sum(column) for column in zip(*whole, strict=True))
    return seconds, low, high


@cache
def _ours(problem: ConvProblem, which: Pass, device: Device, dtype: str, precision: str) -> tuple[float, float, float] | None:
    try:
        prediction = predict(problem, which, None, device, dtype=dtype, precision=precision)
    except ValueError:  # a device or size that no plan serves
        return None
    return prediction.seconds, prediction.low, prediction.high


def _library(layer: MeasuredLayer, device: Device) -> float | None:
    conditions = {"dtype": layer.dtype, "precision": layer.precision, "layout": layer.layout, "mode": layer.mode}
    try:
        return sum(predict(layer.problem, which, None, device, library="cudnn", **conditions).seconds for which in layer.passes)
    except ValueError:  # float64, or a rate that the device lacks
        return None


def _finding(layer: MeasuredLayer, device: Device, least: float, whole: float, spent: Cost) -> str:
    """Words for a time below its roofline, the likeliest cause first; "" for any other."""
    if whole >= least:
        return ""
    if layer.indirect:
        return f"{whole / least:.2f} of the direct roofline: a Winograd or FFT kernel ran, which multiplies less"
    causes = []
    if layer.problem.taps > 1 and layer.precision == "ieee" and layer.dtype == "float32" and layer.problem.groups == 1:
        causes.append("Winograd or FFT, which multiply less")
    if spent.bytes < 2 * device.l2_bytes:
        causes.append(f"operands in L2 from an earlier call ({spent.bytes / 1e6:.3g} MB, L2 holds {device.l2_bytes / 1e6:.3g})")
    causes += ["a boost clock above the table's", "another GPU, type or batch than the label says"]
    return f"{whole / least:.2f} of the roofline, which no direct convolution can be: {'; '.join(causes)}"


def _advice(layer: MeasuredLayer, device: Device, least: float, predicted: float | None) -> str:
    """One sentence on what would reduce a loss."""
    whole = layer.seconds + layer.copies
    if layer.copies > WORTH * whole:
        return (
            f"layout copies take {layer.copies / whole:.0%}: keep model and input in channels_last "
            "(x.to(memory_format=torch.channels_last))"
        )
    if layer.dtype == "float32" and layer.precision == "ieee" and device.tf32 and device.capability >= 80:
        return "float32 without TF32: torch.backends.cudnn.conv.fp32_precision = 'tf32', or 16 bits, uses tensor cores"
    if least < SHORT / 2 and whole < 2 * SHORT:
        return "launch and waiting weigh more than the work: a larger batch, a CUDA graph, or torch.compile"
    if predicted is not None and predicted < 0.8 * whole and device.capability >= LEAST_CAPABILITY:
        return (
            f"this package's plan is predicted {whole / predicted:.1f}x as fast (a prediction, unmeasured): tritonconv.convert"
        )
    if layer.layout == "contiguous" and layer.dtype != "float32":
        return "channels_last is the layout of tensor cores' kernels: keep model and input in it"
    return "near what is predicted: fusing what follows it saves its bytes, nothing else does"


# ---- networks -------------------------------------------------------------------------------------------------------


def network_row(measured: MeasuredNetwork, device: Device, network: object, reason: str = "") -> NetworkRow:
    """A network of a table beside its trace (a `costmodel.networks.network.Network` at its batch), or the reason why not."""
    from costmodel.library.networks import riding
    from costmodel.networks.network import Network

    bare = NetworkRow(
        device.name,
        measured.model,
        measured.image,
        measured.batch,
        measured.mode,
        measured.layout,
        measured.seconds,
        reason=reason,
    )
    if not isinstance(network, Network):
        return bare
    layers = [layer.in_dtype(measured.dtype) for layer in network.layers]
    spent = [[layer.forward, *(step.cost for step in layer.backward if measured.training)] for layer in layers]
    fused = [[layer.forward, *(step.cost for step in layer.backward if measured.training)] for layer in riding(layers)]
    try:
        least, together = (
            sum(roofline(one, device, measured.dtype).seconds for costs in rows for one in costs) for rows in (spent, fused)
        )
        ours = sum(row.seconds for row in network.on(device, measured.dtype, training=measured.training))
        conditions = {"library": "cudnn", "mode": measured.mode, "layout": measured.layout}
        theirs = sum(row.seconds for row in network.on(device, measured.dtype, training=measured.training, **conditions))
    except ValueError as error:
        return NetworkRow(
            device.name,
            measured.model,
            measured.image,
            measured.batch,
            measured.mode,
            measured.layout,
            measured.seconds,
            reason=str(error),
        )
    floor = together if measured.mode == "compiled" else least
    finding = "" if measured.seconds >= floor else (
        f"{measured.seconds / floor:.2f} of the {'fused ' if measured.mode == 'compiled' else ''}roofline: another network than"
        " its name says, its parts merged (reparameterised), a wrong batch or label, or operands in L2"
    )  # fmt: skip
    return NetworkRow(
        device.name,
        measured.model,
        measured.image,
        measured.batch,
        measured.mode,
        measured.layout,
        measured.seconds,
        least,
        together,
        ours,
        theirs,
        finding,
    )


def check(measured: MeasuredNetwork, parameters: int, macs: int) -> str:
    """Why a line is not of the traced network; "" where it is. `parameters` and dense `macs` per image are the trace's."""
    if measured.parameters is not None and not math.isclose(parameters / 1e6, measured.parameters, rel_tol=0.02, abs_tol=0.01):
        return f"has {measured.parameters:g} M parameters, the model here {parameters / 1e6:.2f} M: another network"
    if measured.gmacs is not None and not math.isclose(macs / 1e9, measured.gmacs, rel_tol=0.06, abs_tol=0.01):
        return f"has {measured.gmacs:g} GMAC, the model here {macs / 1e9:.2f}: another network or size"
    return ""
