"""Runs a module on fake tensors and records every operator it calls, forward and backward, with the module it came from.

No weight is read and nothing is computed: parameters, buffers and inputs are stand-ins with shape, dtype and device only.
A backward operator is recorded with the forward operator whose gradient it computes, which autograd's sequence number names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from costmodel.count import Cost
from costmodel.networks import columns, convolutions, operators
from costmodel.networks.clock import Step
from costmodel.networks.lineage import Tracker
from costmodel.networks.memory import Lives
from costmodel.networks.receptive import Field
from costmodel.problem import Pass
from costmodel.unfold import UnfoldCall
from costmodel.video import Chunk

Shape = tuple[int, ...]


@dataclass
class Record:
    """One forward operator, or the gradients of an operator that costs nothing itself."""

    module: str
    op: str
    operator: str
    input_shape: Shape
    weight_shape: Shape | None
    output_shape: Shape
    dtype: str
    parameters: int = 0
    convolution: convolutions.Convolution | None = None
    columns: UnfoldCall | None = None  # a call of unfold or fold
    forward: Cost = field(default_factory=Cost)
    free: bool = False
    known: bool = True
    backward: list[Step] = field(default_factory=list)
    fields: tuple[Field, ...] | None = None
    misaligned: bool = False


class ModuleStack:
    """Names the module that is running. As a context manager it hooks every module of `model`."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.running: list[tuple[str, nn.Module, tuple[Any, ...]]] = []

    @property
    def path(self) -> str:
        return self.running[-1][0] if self.running else ""

    def __enter__(self) -> ModuleStack:
        self.handles: list[Any] = []
        for path, module in self.model.named_modules():

            def enter(module: nn.Module, args: Any, path: str = path) -> None:
                self.running.append((path, module, args))

            def leave(module: nn.Module, args: Any, out: Any) -> None:
                # a module is still on the stack if somebody caught its exception
                while self.running.pop()[1] is not module:
                    pass

            self.handles.append(module.register_forward_pre_hook(enter, prepend=True))
            self.handles.append(module.register_forward_hook(leave))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def refusal(self, error: Exception) -> str:
        """One line: which module did not take which shapes, and why."""
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].removesuffix(", but expected one of:")
        if isinstance(error, (DataDependentOutputException, DynamicOutputShapeException)):
            reason = f"its result depends on values, and a trace has none ({reason})"
        path, module, args = self.running[-1] if self.running else ("", self.model, ())
        shapes = ", ".join(str(list(t.shape)) for t in operators.tensors(args)) or "its arguments"
        return f"{path or 'the model'} ({type(module).__name__}) does not take {shapes}: {reason}"


class MetaToFake(TorchDispatchMode):
    """Moves meta tensors that a module keeps outside its parameters and buffers to the fake tensors' device."""

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.fake = fake

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def stand_in(value: Any) -> Any:
            if isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor) and value.is_meta:
                with self.fake:
                    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
            return value

        return func(*tree_map(stand_in, args), **tree_map(stand_in, kwargs or {}))


class Recorder(TorchDispatchMode):
    """Records operators. `gradients` is set while the backward pass runs."""

    def __init__(self, stack: ModuleStack) -> None:
        super().__init__()
        self.stack = stack
        self.gradients = False
        self.records: list[Record] = []
        self.unknown: Counter[str] = Counter()
        self.tracker = Tracker()
        self.parameters: dict[int, int] = {}  # storage of a parameter not met yet -> its elements
        self._by_sequence: dict[int, Record] = {}
        self._others: Record | None = None
        self._padded: dict[
            int, tuple[torch.Tensor, list[int]]
        ] = {}  # result of a zero padding -> what was padded, and by how much
        self._alive: list[Any] = []  # keeps tensors alive, so that no id is used twice
        self.lives = Lives()
        self.weights: frozenset[int] = frozenset()  # storages of parameters and buffers

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, OpOverload):  # a higher-order operator: its body runs unseen
            self.unknown[str(func)] += 1
            return func(*args, **kwargs)
        if func.namespace == "prim":
            return func(*args, **kwargs)
        if not operators.listed(func):
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        if func.name() == convolutions.SEPARABLE:
            with self:
                return convolutions.taken_apart(func, args)
        out = func(*args, **kwargs)
        self._alive.append(out)
        self.lives.ran(operators.tensors(args, kwargs), operators.tensors(out), self.weights)
        (self._record_gradient if self.gradients else self._record)(func, args, kwargs, out)
        return out

    def _record(self, func: OpOverload, args: Any, kwargs: Any, out: Any) -> None:
        read, written = operators.tensors(args, kwargs), operators.tensors(out)
        if not written:
            return
        name, free = operators.name_of(func), operators.moves_nothing(func)
        record = Record(
            module=self.stack.path,
            op=name,
            operator=name,
            input_shape=tuple(read[0].shape) if read else (),
            weight_shape=None,
            output_shape=tuple(written[0].shape),
            dtype=str(written[0].dtype).removeprefix("torch."),
            parameters=0 if free else sum(self.parameters.pop(t.untyped_storage()._cdata, 0) for t in read),
            free=free,
        )
        convolution = convolutions.convolution(func, args)
        record.misaligned = self.tracker.follow(func, args, out, convolution)
        record.fields = self.tracker.fields(written[0])
        convolution = self._with_padding(convolution, args)
        if convolution is not None and written[0].dtype in operators.CONVOLUTION_DTYPES:
            record.convolution, record.op = convolution, convolution.name
            record.weight_shape = tuple(args[convolution.weight].shape)
            record.forward = convolution.cost(convolution.which, written[0].dtype, convolution.bias)
            if convolution.kept != Cost():
                record.backward.append(Step(name, "", convolution.kept))  # not part of inference
        elif (call := columns.columns(func, args, out)) is not None:
            record.columns, record.forward = call, columns.cost(call)
        elif not record.free:
            record.forward, record.known = operators.cost_of(func, args, kwargs, out)
            if not record.known:
                self.unknown[name] += 1
        self._note_padding(name, args, written)
        # autograd made the node of this operator's gradient last
        sequence = torch.autograd._get_sequence_nr() - 1
        owner = self._by_sequence.get(sequence)
        if owner is not None and owner.op == "clone" and owner is self.records[-1] and func._schema.is_mutable:
            # autograd keeps a copy of what an in-place operator overwrites, which is not part of inference
            record.backward.append(Step(owner.op, "", owner.forward))
            self.records.pop()
            self.lives.kept(operators.tensors(self._alive[-2]))
            self._by_sequence.setdefault(sequence - 1, record)  # its own node came before the copy's
            owner = None
        if owner is None:
            self._by_sequence[sequence] = record
        self.records.append(record)

    def _with_padding(
        self, convolution: convolutions.Convolution | None, args: Sequence[Any]
    ) -> convolutions.Convolution | None:
        """The convolution with an explicit zero padding of its input folded in. torch writes padding="same" in this way."""
        if convolution is None or convolution.which != Pass.FPROP or convolution.label or id(args[0]) not in self._padded:
            return convolution
        source, amounts = self._padded[id(args[0])]
        rank = convolution.problem.rank
        pairs = [*zip(amounts[::2], amounts[1::2], strict=True)][::-1]  # torch lists the last axis first
        pairs = [(0, 0)] * (rank - len(pairs)) + pairs
        padding = tuple((lo + a, hi + b) for (lo, hi), (a, b) in zip(convolution.problem.padding, pairs, strict=True))
        return replace(convolution, problem=replace(convolution.problem, input_size=tuple(source.shape[2:]), padding=padding))

    def _note_padding(self, name: str, args: Sequence[Any], written: list[torch.Tensor]) -> None:
        self._padded.pop(id(written[0]), None)
        if name == "constant_pad_nd" and (len(args) < 3 or args[2] == 0) and len(args[1]) <= 2 * (args[0].dim() - 2):
            self._padded[id(written[0])] = (args[0], list(args[1]))

    def _record_gradient(self, func: OpOverload, args: Any, kwargs: Any, out: Any) -> None:
        if operators.moves_nothing(func):
            return
        name = operators.name_of(func)
        record = self._owner(args, out)
        if func.name() == convolutions.CAUSAL_GRADIENT:
            whole, spent = convolutions.causal_gradient(func, args, out)
            record.backward.append(Step(name, "", spent, whole.problem, whole.call))
            return
        if func.name() == convolutions.DEFORM_GRADIENT:
            whole, spent = convolutions.deform_gradient(func, args, out)
            record.backward.append(Step(name, str(Pass.DGRAD), spent, whole.problem, whole.call))
            return
        if (call := columns.columns(func, args, out)) is not None:
            record.backward.append(Step(name, "", columns.cost(call), None, call))
            return
        convolution = convolutions.convolution(func, args)
        if convolution is None or operators.tensors(out)[0].dtype not in operators.CONVOLUTION_DTYPES:
            spent, known = operators.cost_of(func, args, kwargs, out)
            if not known:
                self.unknown[name] += 1
            record.backward.append(Step(name, "", spent))
            return
        dtype = operators.tensors(out)[0].dtype
        if func.namespace == "tritonconv":
            spent = convolution.cost(convolution.which, dtype)
            if record.convolution is not None and isinstance(record.convolution.call, Chunk):
                # what a padding mode puts beyond the border of a frame is written out here
                spent = replace(spent, useful_macs=record.convolution.problem.useful_macs)
            record.backward.append(Step(name, str(convolution.which), spent, convolution.problem))
            return
        if record.convolution is not None:
            convolution = record.convolution  # with the padding folded in
        to_input, to_weight, to_bias = args[10]
        if to_input:
            which = Pass.FPROP if convolution.which == Pass.DGRAD else Pass.DGRAD
            record.backward.append(Step(name, str(which), convolution.cost(which, dtype), convolution.problem))
        if to_weight:
            spent = convolution.cost(Pass.WGRAD, dtype, to_bias)
            record.backward.append(Step(name, str(Pass.WGRAD), spent, convolution.problem))

    def _owner(self, args: Any, out: Any) -> Record:
        """The record whose gradient is being computed, or one for gradients of unseen operators."""
        node = torch._C._current_autograd_node()
        record = self._by_sequence.get(node._sequence_nr()) if node is not None else None
        if record is not None:
            return record
        if self._others is None:
            shape = tuple(operators.tensors(args, out)[0].shape)
            dtype = str(operators.tensors(args, out)[0].dtype).removeprefix("torch.")
            self._others = Record("", "other gradients", "", shape, None, shape, dtype, free=True)
            self.records.append(self._others)
        return self._others
