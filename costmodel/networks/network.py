"""A whole network as rows of costs: any `nn.Module`, traced without weights, data or a GPU.

`trace` gives a `Network`; its rows are operators in the order they ran, each with the cost of its forward pass and of the
gradients it really needs (a first convolution has no input gradient, a frozen one no weight gradient).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from costmodel.arithmetic import Arithmetic, arithmetic_named
from costmodel.count import Cost
from costmodel.device import Device, find_device
from costmodel.networks.clock import DTYPES, Called, Clock, Step, Time
from costmodel.networks.memory import Memory
from costmodel.networks.receptive import Field
from costmodel.networks.timed import Forecast, Timed
from costmodel.networks.waiting import Launched, waiting
from costmodel.problem import ConvProblem, Pass
from costmodel.reports.notation import by
from costmodel.reports.tables import Tables
from costmodel.reports.units import several
from costmodel.tiling import itemsize

if TYPE_CHECKING:
    from torch import nn

    from costmodel.networks.recorder import Record
    from costmodel.reports.sidebyside import SideBySide

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """One forward operator with its gradients. Shapes are those of the first input, the convolution's weight and the first
    output."""

    name: str  # the module's path, with the operator where that says more
    module: str
    op: str  # for people: "conv_transpose2d", "addmm"
    operator: str  # torch's name: "convolution", "addmm", "tritonconv::fprop"
    input_shape: Shape
    weight_shape: Shape | None
    output_shape: Shape
    dtype: str
    parameters: int  # elements of the parameters that this operator is the first to use
    problem: ConvProblem | None  # a convolution, or the problem whose dgrad a transposed one is
    which: Pass | None  # the pass that the forward operator is; None where no plan is modelled for it
    forward: Cost
    backward: tuple[Step, ...]
    fields: tuple[Field, ...] | None  # receptive field by spatial axis; None where the result does not depend on the input
    misaligned: bool  # branches meet here whose receptive fields have different centres or jumps
    known: bool  # False: the operator is in no table, so its FLOP are missing (its bytes are counted)
    call: Called | None = None  # the call of a function that has plans of its own

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
class Group:
    """The layers under one module path, added up."""

    name: str
    layers: int
    parameters: int
    forward: Cost
    backward: Cost


@dataclass(frozen=True)
class Input:
    """A tensor that a network is called with; `name` is the keyword's, "" of a positional one."""

    shape: Shape
    dtype: str
    name: str = ""

    def __str__(self) -> str:
        parts = [self.name, "" if self.dtype.startswith(("float", "bfloat")) else self.dtype, by(self.shape)]
        return " ".join(part for part in parts if part)


@dataclass(frozen=True, repr=False)
class Network(Tables):
    """A traced model: `print(network)` is a summary, `network.on("h100")` its predicted time on a device.

    Counts are of a whole batch. `parameters` are elements, each counted once; `unknown` counts calls of operators whose FLOP
    are not known; `notes` are remarks in words. `trace` makes it. `on` raises ValueError for a device or dtype that it does not
    know. Shapes are those of torch, [batch, channels, *size]. Source: `docs/cost-model.md` has the rules of counting.

    >>> import costmodel, torch
    >>> net = costmodel.trace(torch.nn.Conv2d(3, 8, 3), (2, 3, 32, 32))
    >>> net.parameters, net.inference.dense_macs, net.peak_activation_bytes(dtype="bf16")
    (224, 388800, 41088)
    """

    name: str
    batch: int
    dtype: str
    layers: tuple[Layer, ...]
    parameters: int  # of the model, whether used or not
    trainable: int
    unknown: Mapping[str, int]
    notes: tuple[str, ...]
    inputs: tuple[Input, ...] = ()
    memory: Memory = field(default_factory=Memory)
    dtype_given: bool = False  # whether `trace` was given a dtype

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
        members: dict[str, list[Layer]] = {}
        for layer in self.layers:
            members.setdefault(".".join(layer.module.split(".")[:depth]), []).append(layer)
        return [
            Group(
                name,
                len(layers),
                sum(layer.parameters for layer in layers),
                sum((layer.forward for layer in layers), Cost()),
                sum((layer.backward_cost for layer in layers), Cost()),
            )
            for name, layers in members.items()
        ]

    def in_dtype(self, dtype: str) -> Network:
        """The same network with its floating tensors in another dtype; `memory` keeps the trace's."""
        return replace(self, layers=tuple(layer.in_dtype(dtype) for layer in self.layers))

    def peak_activation_bytes(self, *, training: bool = False, dtype: Any = None) -> int:
        """The most bytes of activations alive at once, in a forward pass or in a training step (`costmodel.networks.memory`).

        `dtype` is that of floating tensors, None that of the trace. Parameters, their gradients and the optimiser's state are
        not in it.
        """
        return self.memory.peak(training, None if dtype is None else arithmetic_named(dtype).dtype)

    def on(
        self,
        device: Device | str,
        dtype: Any = None,
        *,
        precision: str = "ieee",
        training: bool = False,
        library: str | None = None,
        mode: str = "eager",
        layout: str = "channels_last",
    ) -> Forecast:
        """Every layer with its predicted time on `device` (a name or a `Device`), in the arithmetic `dtype`.

        `dtype` is a name such as "bf16" or "tf32", or a torch.dtype. None is the dtype that was passed to `trace`, else that of
        the model. A model in float32 has torch's default, which nobody chose: it is predicted in this package's default,
        bfloat16, or in float16 on a device without bfloat16.

        Convolutions take the plan that `costmodel.plan.select` chooses for channels-last tensors, and causal ones that of their
        own model. Any other operator takes one launch and the longer of its arithmetic and its DRAM traffic; a normalisation
        reads its input a second time after its statistics (`costmodel.networks.sweeps`). Where `device.host` holds measured
        times of the host, the time of an operator includes the wait of the GPU for its launch (`costmodel.networks.waiting`).
        `precision` "tf32" lets float32 use tensor cores. `training` adds the backward pass.

        `library` "cudnn" predicts what PyTorch takes today instead, fitted to times that others published: in `mode` "eager" or
        "compiled", on tensors whose `layout` is "channels_last" or "contiguous". Properties that no published time has widen
        the interval, and `Timed.sources` says so.

        Raises ValueError for an unknown device, dtype or library, and for an arithmetic that the device or the library lacks.

        >>> import costmodel, torch
        >>> net = costmodel.trace(torch.nn.Conv2d(3, 8, 3), (1, 3, 32, 32))
        >>> net.on("h100").seconds < net.on("t4", training=True).seconds
        True
        """
        device = find_device(device)
        meant = arithmetic_named(self._default if dtype is None else dtype, device, precision)
        if library is not None:
            from costmodel.networks.today import on

            conditions = {"library": library, "mode": mode, "layout": layout}
            rows = on(self, device, meant.dtype, precision=meant.precision, training=training, **conditions)
        else:
            rows = self._planned(device, meant, training)
        return Forecast(self, device, meant, training, tuple(rows), library is None)

    @property
    def _default(self) -> str | None:
        return None if self.dtype == "float32" and not self.dtype_given else self.dtype

    def _planned(self, device: Device, meant: Arithmetic, training: bool) -> list[Timed]:
        clock = Clock(device, meant.precision)
        rows = []
        for layer in self.in_dtype(meant.dtype).layers:
            times = [clock.time(Step(layer.op, str(layer.which or ""), layer.forward, layer.problem, layer.call), layer.dtype)]
            if training:
                times += [clock.time(step, layer.dtype) for step in layer.backward]
            spent = layer.training_cost if training else layer.forward
            if spent == Cost():  # a view: only its gradient costs anything
                continue
            rows.append((layer, spent, times))
        waited = waiting(
            [Launched(times, layer.which is not None or layer.call is not None) for layer, _, times in rows], device.host
        )
        total = sum(time.seconds for times in waited for time in times) or 1.0
        return [_timed(layer, spent, times, total) for (layer, spent, _), times in zip(rows, waited, strict=True)]

    def compare(self, other: Network, device: Device | str = "h100", dtype: Any = None, **more: Any) -> SideBySide:
        """This network beside another on one device: `print` shows a table. `Forecast.compare` puts one
        network on two devices. `more` and errors are those of `on`.

        >>> import costmodel, torch
        >>> small, large = (costmodel.trace(torch.nn.Conv2d(3, n, 3), (1, 3, 32, 32)) for n in (8, 16))
        >>> str(small.compare(large)).splitlines()[4].split()
        ['parameters', '224', '448', '2.00']
        """
        if not isinstance(other, Network):
            raise TypeError(f"other must be a costmodel.Network, got {type(other).__name__}")
        return self.on(device, dtype, **more).compare(other.on(device, dtype, **more))

    def table_rows(self) -> Sequence[Any]:
        """One row per operator, with its counts: what `to_csv` writes."""
        from costmodel.reports.rows import operator_rows

        return operator_rows(self)

    def document(self) -> dict[str, Any]:
        """What `to_json` writes: the totals, and one row per operator."""
        named = "name inputs batch dtype parameters trainable inference training_step unknown notes".split()
        memory = {
            "forward_activation_bytes": self.peak_activation_bytes(),
            "training_activation_bytes": self.peak_activation_bytes(training=True),
        }
        return {name: getattr(self, name) for name in named} | memory | {"rows": self.table_rows()}

    def __str__(self) -> str:
        from costmodel.reports.summary import summary

        return summary(self)

    def __repr__(self) -> str:
        return (
            f"<costmodel.Network {self.name}: {several(len(self.layers), 'operator')}, "
            f"{several(len(self.convolutions), 'convolution')}, "
            f"{self.parameters:,} parameters, input {', '.join(map(str, self.inputs))}>"
        )


def _timed(layer: Layer, spent: Cost, times: Sequence[Time], total: float) -> Timed:
    seconds, low, high = (sum(column) for column in zip(*((t.seconds, t.low, t.high) for t in times), strict=True))
    sources = frozenset(time.source for time in times if time.seconds)
    return Timed(layer, spent, seconds, max(times).bound, seconds / total, low, high, sources, times[0].plan)


def trace(model: nn.Module, *inputs: Any, train: bool = False, dtype: Any = None, **keywords: Any) -> Network:
    """The costs of `model(*inputs, **keywords)`, operator by operator.

    An input is a shape such as (32, 3, 224, 224), in the dtype of the model's parameters, or a tensor, of which only shape and
    dtype are used; lists and dictionaries of tensors too; anything else is passed on. Parameters may be on any device, meta
    included. `train` puts the modules in training mode (batch normalisation by the batch's statistics); gradients are traced in
    either mode. `dtype` ("bf16", "float32", torch.float16) traces the model as if converted to it.

    Raises TypeError where `model` is no module, ValueError in one line where a module does not take its input. Counts are in
    multiply-adds, FLOP and bytes, by the rules of `docs/cost-model.md`.

    >>> import costmodel, torch
    >>> net = costmodel.trace(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()), (2, 3, 32, 32))
    >>> net.parameters, net.inference.dense_macs
    (224, 388800)
    >>> net
    <costmodel.Network Sequential: 2 operators, 1 convolution, 224 parameters, input 2x3x32x32>
    """
    from torch import nn

    from costmodel.networks.operators import tensors
    from costmodel.networks.stage import distinct, record, torch_dtype

    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    stage, recorder, reason = record(model, inputs, train, torch_dtype(dtype), keywords)
    layers = _layers(recorder.records)
    notes = [reason] if reason else []
    notes += [f"branches with different receptive centres meet at {layer.name}" for layer in layers if layer.misaligned]
    parameters = distinct(model)
    named = [("", tensor) for tensor in tensors(stage.inputs)]
    named += [pair for name, value in stage.keywords.items() for pair in _named(name, value)]
    first = next((tensor for _, tensor in named), None)
    return Network(
        name=type(model).__name__,
        batch=first.shape[0] if first is not None and first.dim() else 1,
        dtype=str(stage.default).removeprefix("torch."),
        layers=layers,
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        unknown=dict(recorder.unknown),
        notes=tuple(notes),
        inputs=tuple(Input(tuple(t.shape), str(t.dtype).removeprefix("torch."), name) for name, t in named),
        memory=recorder.lives.without(tensors(stage.gradients)),
        dtype_given=dtype is not None,
    )


def _named(name: str, value: Any) -> list[tuple[str, Any]]:
    """The tensors of a keyword, those of a dictionary by their keys."""
    from costmodel.networks.operators import tensors

    if isinstance(value, Mapping):
        return [pair for key, inner in value.items() for pair in _named(f"{name}.{key}", inner)]
    return [(name, tensor) for tensor in tensors(value)]


def _layers(records: Sequence[Record]) -> tuple[Layer, ...]:
    """Rows with unique names. The path of a module without submodules names its largest row; other rows append the operator to
    the path, and a number where that repeats."""
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
                call=conv.call if conv else r.columns,
            )
        )
    return tuple(layers)
