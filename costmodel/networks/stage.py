"""Runs a module forward and backward on stand-ins for its weights and inputs, and leaves it as it was.

No weight is read: parameters, buffers and inputs are fake tensors with shape, dtype and device only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map

from costmodel.arithmetic import arithmetic_named
from costmodel.networks import operators
from costmodel.networks.recorder import MetaToFake, ModuleStack, Recorder

#: A hint for a model that refuses its arguments, where one of them is a shape that may have been meant as an input.
SHAPES = "; a shape that is a keyword or in a dictionary is passed on as it is: give torch.empty(..., device='meta') there"


class Stage:
    """A model on fake tensors: `forward` runs it, `backward` differentiates what it returned."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Sequence[Any],
        dtype: torch.dtype | None,
        keywords: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.stack = ModuleStack(model)
        self.device = torch.device("cpu")
        self.dtype = dtype
        floating = [p.dtype for p in model.parameters() if p.is_floating_point()]
        self.default = dtype or (floating[0] if floating else torch.get_default_dtype())
        lazy = [name for name, p in model.named_parameters() if nn.parameter.is_lazy(p)]
        if lazy:
            raise ValueError(f"model has parameters without a shape ({lazy[0]}): run it once before tracing it")
        with self.fake:
            stand_ins = {_place(p): self._stand_in(p).requires_grad_(p.requires_grad) for p in distinct(model)}
            self.parameters = {name: stand_ins[_place(p)] for name, p in _slots(model, "parameters")}
            held = {id(b): self._stand_in(b) for _, b in _slots(model, "buffers")}
            self.buffers = {name: held[id(b)] for name, b in _slots(model, "buffers")}
            self.inputs = tuple(self._input(i, value) for i, value in enumerate(inputs))
            self.keywords = {name: self._tensors(value) for name, value in (keywords or {}).items()}
        self.outputs: Any = None
        self.gradients: tuple[Any, ...] = ()  # gradients of parameters

    def _stand_in(self, tensor: torch.Tensor) -> torch.Tensor:
        dtype = self.dtype if self.dtype is not None and tensor.is_floating_point() else tensor.dtype
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device=self.device)

    def _input(self, position: int, value: Any) -> Any:
        if _is_shape(value):
            if min(value) < 1:
                raise ValueError(f"input {position} must be a shape of positive sizes, got {list(value)}")
            return torch.empty(tuple(value), dtype=self.default, device=self.device)
        return self._tensors(value)

    def _tensors(self, value: Any) -> Any:
        return tree_map(lambda leaf: self._stand_in(leaf) if isinstance(leaf, torch.Tensor) else leaf, value)

    def forward(self) -> None:
        """Runs the model. Raises ValueError, in one line, where a module does not take its input."""
        tied = {**self.parameters, **self.buffers}
        try:
            with self.stack:
                # with torch's own tying, a module that has two names would keep the stand-ins in place of its weights
                call = torch.func.functional_call
                self.outputs = call(self.model, tied, self.inputs, self.keywords, tie_weights=False)
        except Exception as error:  # whatever a user's forward raises
            given = tree_leaves((self.inputs, self.keywords), is_leaf=_is_shape)
            raise ValueError(self.stack.refusal(error) + SHAPES * any(map(_is_shape, given))) from error

    def backward(self) -> str:
        """Differentiates every output by every parameter that requires it. Returns why there is no backward pass, or ""."""
        results = [t for t in operators.tensors(self.outputs) if t.requires_grad]
        wanted = [*{id(p): p for p in self.parameters.values() if p.requires_grad}.values()]
        if not wanted:
            return "no parameter requires a gradient"
        if not results:
            return "no output requires a gradient"
        try:
            with torch.utils._python_dispatch._disable_current_modes(), self.fake:
                seeds = [torch.empty_like(t, requires_grad=False) for t in results]
            self.gradients = torch.autograd.grad(results, wanted, seeds, allow_unused=True)
        except Exception as error:  # an operator without a gradient, or a user's own
            return f"the backward pass could not be traced: {str(error).splitlines()[0]}"
        return ""


def _is_shape(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and bool(value) and all(isinstance(size, int) for size in value)


def _slots(model: nn.Module, kind: str) -> list[tuple[str, torch.Tensor]]:
    """Every place where a module keeps a parameter or a buffer, by name. A module with several names counts once."""
    return [
        (f"{path}.{name}".lstrip("."), tensor)
        for path, module in model.named_modules()
        for name, tensor in getattr(module, f"_{kind}").items()
        if tensor is not None
    ]


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    """A key of a tensor's memory, which is equal for two parameters that share it."""
    if nn.parameter.is_lazy(tensor):
        return (id(tensor),)
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def distinct(model: nn.Module) -> list[nn.Parameter]:
    """A model's parameters. Those that share memory are listed once."""
    parameters: dict[tuple[Any, ...], nn.Parameter] = {}
    for parameter in model.parameters():
        parameters.setdefault(_place(parameter), parameter)
    return [*parameters.values()]


def torch_dtype(name: Any) -> torch.dtype | None:
    """The torch.dtype of a name that `costmodel.arithmetic` reads; None stays None."""
    return None if name is None else getattr(torch, arithmetic_named(name).dtype)


@contextmanager
def settings(model: nn.Module, train: bool) -> Iterator[None]:
    """Sets the model's training or inference mode, and turns off torch's fused kernels that hide matrix products (recurrent and
    attention layers on a CPU). Restores both."""
    before = [(module, module.training) for module in model.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        model.train(train)
        torch.backends.mha.set_fastpath_enabled(False)
        # not `mkldnn.enabled = False`, which raises where somebody froze torch's flags; None leaves tf32 alone
        with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None), torch.enable_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, training in before:
            module.training = training


def run(stage: Stage, mode: AbstractContextManager[Any], train: bool) -> str:
    """Runs forward and backward under `mode`. Returns why there is no backward pass, or ""."""
    with settings(stage.model, train), stage.fake, MetaToFake(stage.fake), mode:
        stage.forward()
        if isinstance(mode, Recorder):
            mode.lives.used(operators.tensors(stage.outputs))
            mode.gradients, mode.lives.forward = True, False
        return stage.backward()


def record(
    model: nn.Module, inputs: Sequence[Any], train: bool, dtype: torch.dtype | None, keywords: Mapping[str, Any]
) -> tuple[Stage, Recorder, str]:
    """Every operator of a forward and a backward pass, and why there is no backward pass, or ""."""
    stage = Stage(model, inputs, dtype, keywords)
    recorder = Recorder(stage.stack)
    image = next(iter(operators.tensors(stage.inputs, stage.keywords)), None)
    if image is not None:
        recorder.tracker.start(image)
    recorder.parameters = {p.untyped_storage()._cdata: p.numel() for p in stage.parameters.values()}
    recorder.weights = frozenset(t.untyped_storage()._cdata for t in (*stage.parameters.values(), *stage.buffers.values()))
    recorder.lives.created(operators.tensors(stage.inputs, stage.keywords))
    reason = run(stage, recorder, train)
    recorder.records = [r for r in recorder.records if not r.free or r.backward]
    return stage, recorder, reason
