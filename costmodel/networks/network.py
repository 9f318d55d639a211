"""A whole network as rows of costs: any `nn.Module`, traced without weights, data or a GPU.

`trace` gives a `Network`; its rows are operators in the order they ran, each with the cost of its forward pass and of the
gradients it really needs (a first convolution has no input gradient, a frozen one no weight gradient).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from costmodel.causal import Kind
from costmodel.count import Cost
from costmodel.device import Device
from costmodel.networks.clock import DTYPES, Clock, Step, Time
from costmodel.networks.receptive import Field
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import itemsize
from costmodel.video import Chunk

if TYPE_CHECKING:
    import torch
    from torch import nn

    from costmodel.networks.recorder import Record

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """One forward operator with its gradients. Shapes are of the first input, the convolution's weight, the first output."""

    name: str  # the module's path, with the operator where that says more
    module: str
    op: str  # for people: "conv_transpose2d", "addmm"
    operator: str  # torch's name: "convolution", "addmm", "tritonconv::fprop"
    input_shape: Shape
    weight_shape: Shape | None
    output_shape: Shape
    dtype: str
    parameters: int  # that this operator is the first to use
    problem: ConvProblem | None  # a convolution, or the problem whose dgrad a transposed one is
    which: Pass | None  # the pass that the forward operator is; None also of a convolution that no plan is modelled for
    forward: Cost
    backward: tuple[Step, ...]
    fields: tuple[Field, ...] | None  # receptive field by spatial axis; None where the result does not depend on the input
    misaligned: bool  # branches meet here whose receptive fields have different centres or jumps
    known: bool  # False: the operator is in no table, its FLOP are missing and its bytes are not
    call: Chunk | Kind | None = None  # of a causal function, whose plan is its own

    @property
    def backward_cost(self) -> Cost:
        return sum((step.cost for step in self.backward), Cost())

    @property
    def training_cost(self) -> Cost:
        return self.forward + self.backward_cost

    def in_dtype(self, dtype: str) -> Layer:
        """The same layer with its floating tensors in `dtype`: bytes scale with the size of an element."""
        if not self.dtype.startswith(("float", "bfloat")) or dtype == self.dtype:
            return self
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        ratio = itemsize(dtype), itemsize(self.dtype)

        def scaled(cost: Cost) -> Cost:
            moved, column, again = (v * ratio[0] // ratio[1] for v in (cost.bytes, cost.im2col_bytes, cost.read_again))
            return replace(cost, bytes=moved, im2col_bytes=column, read_again=again)

        steps = tuple(replace(step, cost=scaled(step.cost)) for step in self.backward)
        return replace(self, dtype=dtype, forward=scaled(self.forward), backward=steps)


@dataclass(frozen=True)
class Timed:
    """A layer on a device. `share` is its part of the whole network's time."""

    layer: Layer
    cost: Cost  # forward, or forward and backward
    seconds: float
    bound: str  # of the longest operator in the row
    share: float
    low: float  # the interval of the seconds, added up over the operators
    high: float
    sources: frozenset[str]  # where the intervals come from


@dataclass(frozen=True)
class Group:
    """The layers under one module path, added up."""

    name: str
    layers: int
    parameters: int
    forward: Cost
    backward: Cost


@dataclass(frozen=True)
class Network:
    """A traced model. `unknown` counts calls of operators whose FLOP are not known; `notes` are remarks in words."""

    name: str
    batch: int
    dtype: str
    layers: tuple[Layer, ...]
    parameters: int  # of the model, whether used or not
    trainable: int
    unknown: Mapping[str, int]
    notes: tuple[str, ...]

    @property
    def convolutions(self) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if layer.problem is not None)

    @property
    def inference(self) -> Cost:
        """One forward pass of the whole batch."""
        return sum((layer.forward for layer in self.layers), Cost())

    @property
    def training_step(self) -> Cost:
        """Forward and backward of one batch. The optimiser's own work is not in it."""
        return sum((layer.training_cost for layer in self.layers), Cost())

    def steps(self, samples: int, epochs: int = 1) -> int:
        """Training steps over `samples` examples, `epochs` times; a last, smaller batch counts as a whole one."""
        for name, value in (("samples", samples), ("epochs", epochs)):
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        return math.ceil(samples / self.batch) * epochs

    def training_run(self, samples: int, epochs: int = 1) -> Cost:
        """All steps over `samples` examples, `epochs` times."""
        return self.training_step * self.steps(samples, epochs)

    def groups(self, depth: int) -> list[Group]:
        """Rows added up by the first `depth` parts of the module's path, in order of first use."""
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        found: dict[str, list[Layer]] = {}
        for layer in self.layers:
            found.setdefault(".".join(layer.module.split(".")[:depth]), []).append(layer)
        return [
            Group(
                name,
                len(layers),
                sum(layer.parameters for layer in layers),
                sum((layer.forward for layer in layers), Cost()),
                sum((layer.backward_cost for layer in layers), Cost()),
            )
            for name, layers in found.items()
        ]

    def on(
        self,
        device: Device,
        dtype: str | None = None,
        *,
        precision: str = "ieee",
        training: bool = False,
        library: str | None = None,
        mode: str = "eager",
        layout: str = "channels_last",
    ) -> list[Timed]:
        """Every layer with its predicted time on `device`, in the dtype of the trace or another ("float16", ...).

        Convolutions take the plan that `costmodel.plan.select` chooses for channels-last tensors, causal ones that of their
        own model, other operators one launch and the longer of their arithmetic and their DRAM traffic, in which a
        normalisation reads again what its statistics had to read first (`costmodel.networks.sweeps`). `precision` "tf32" lets
        float32 use tensor cores. `training` adds the backward pass.

        `library` "cudnn" predicts what PyTorch takes today instead, fitted to times that others published: in `mode` "eager"
        or "compiled", on tensors that lie in `layout` "channels_last" or "contiguous". What no published time supports widens
        the interval, and `Timed.sources` says so; float64 is refused with ValueError.
        """
        if library is not None:
            from costmodel.networks.today import on

            asked = {"library": library, "mode": mode, "layout": layout}
            return on(self, device, dtype, precision=precision, training=training, **asked)
        clock = Clock(device, precision)
        rows = []
        for traced in self.layers:
            layer = traced if dtype is None else traced.in_dtype(dtype)
            times = [clock.time(Step(layer.op, str(layer.which or ""), layer.forward, layer.problem, layer.call), layer.dtype)]
            if training:
                times += [clock.time(step, layer.dtype) for step in layer.backward]
            spent = layer.training_cost if training else layer.forward
            if spent == Cost():  # a view: only its gradient costs anything
                continue
            rows.append((layer, spent, times))
        total = sum(time.seconds for _, _, times in rows for time in times) or 1.0
        return [_timed(layer, spent, times, total) for layer, spent, times in rows]


def _timed(layer: Layer, spent: Cost, times: Sequence[Time], total: float) -> Timed:
    seconds, low, high = (sum(column) for column in zip(*((t.seconds, t.low, t.high) for t in times), strict=True))
    sources = frozenset(time.source for time in times if time.seconds)
    return Timed(layer, spent, seconds, max(times).bound, seconds / total, low, high, sources)


def trace(model: nn.Module, *inputs: Any, train: bool = False, dtype: torch.dtype | None = None, **keywords: Any) -> Network:
    """The costs of `model(*inputs, **keywords)`, operator by operator.

    An input is a shape such as (32, 3, 224, 224), in the dtype of the model's parameters, or a tensor, of which only shape and
    dtype are used; anything else is passed on. Parameters may be on any device, meta included. `train` puts the modules in
    training mode (batch normalisation by the batch's statistics); gradients are traced in either mode. `dtype` traces the
    model as if converted to it.

    Raises TypeError where `model` is no module, ValueError in one line where a module does not take its input.
    """
    from torch import nn

    from costmodel.networks.recorder import record

    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    stage, recorder, reason = record(model, inputs, train, dtype, keywords)
    layers = _layers(recorder.records)
    notes = [reason] if reason else []
    notes += [f"branches with different receptive centres meet at {layer.name}" for layer in layers if layer.misaligned]
    parameters = list(model.parameters())
    first = next((value for value in stage.inputs if hasattr(value, "shape")), None)
    return Network(
        name=type(model).__name__,
        batch=first.shape[0] if first is not None and first.dim() else 1,
        dtype=str(stage.default).removeprefix("torch."),
        layers=layers,
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        unknown=dict(recorder.unknown),
        notes=tuple(notes),
    )


def _layers(records: Sequence[Record]) -> tuple[Layer, ...]:
    """Rows with names of their own: the path of a module without submodules names its largest row, other rows have the
    operator behind the path, and a number where that repeats."""
    inside = {r.module.rpartition(".")[0] for r in records} | {""}
    largest: dict[str, Record] = {}
    for r in records:
        if r.module not in largest or r.forward.bytes > largest[r.module].forward.bytes:
            largest[r.module] = r
    short = {id(r) for r in largest.values() if r.module not in inside}
    full = [r.module if id(r) in short else f"{r.module}.{r.op}".lstrip(".") for r in records]
    repeated, met = Counter(full), Counter[str]()
    layers = []
    for r, name in zip(records, full, strict=True):
        met[name] += 1
        conv = r.convolution
        layers.append(
            Layer(
                name=f"{name}#{met[name]}" if repeated[name] > 1 else name,
                module=r.module,
                op=r.op,
                operator=r.operator,
                input_shape=r.input_shape,
                weight_shape=r.weight_shape,
                output_shape=r.output_shape,
                dtype=r.dtype,
                parameters=r.parameters,
                problem=conv.problem if conv else None,
                which=conv.which if conv and conv.planned else None,
                forward=r.forward,
                backward=tuple(r.backward),
                fields=r.fields,
                misaligned=r.misaligned,
                known=r.known,
                call=conv.call if conv else None,
            )
        )
    return tuple(layers)
