"""The library ops of the causal convolution: schemas, fake tensors, autocast, FLOP formulas. Derivatives: `causal.autograd`.

    causal(x [B, C, L], w [C, K], b, state, ids, starts, activation, final) -> (y, final states or no elements)
    causal_backward(dy, x, w, ..., dfinal, activation, wants) -> (dx, dw followed by db [C, K + 1], dstate)
    causal_update(x [B, C, T], state, w, b, before, entries, activation) -> y; it changes the state

`activation` is "" or "silu". CUDA tensors run Triton kernels. CPU tensors run them where Triton's interpreter is on, else
torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from costmodel.causal import flops
from tritonconv import memory, private
from tritonconv.autograd import _below_autograd, has_tangent
from tritonconv.causal import cpu, launch, operands
from tritonconv.causal.autograd import causal as _causal
from tritonconv.causal.autograd import causal_backward as _causal_backward
from tritonconv.causal.launch import Given, allocate
from tritonconv.host import either
from tritonconv.op import LIBRARY, _autocast

Maybe = torch.Tensor | None
Pair = tuple[torch.Tensor, torch.Tensor]
Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
_GIVEN = "Tensor? b=None, Tensor? state=None, Tensor? ids=None, Tensor? starts=None"
_SCHEMAS = (
    f"causal(Tensor x, Tensor w, {_GIVEN}, str activation='', bool final=False) -> (Tensor, Tensor)",
    f"causal_backward(Tensor dy, Tensor x, Tensor w, {_GIVEN}, Tensor? dfinal=None, str activation='', "
    "bool wants_x=True, bool wants_w=True, bool wants_state=False) -> (Tensor, Tensor, Tensor)",
    "causal_update(Tensor x, Tensor(a!) state, Tensor w, Tensor? b=None, Tensor? before=None, Tensor? entries=None, "
    "str activation='') -> Tensor",
)
_OPS = torch.ops.tritonconv


def _by(where: Any) -> tuple[Callable[..., Pair], Callable[..., Three], Callable[..., torch.Tensor]]:
    """The three ops, computed by a module: `launch` or `cpu`."""

    def causal(
        x: torch.Tensor,
        w: torch.Tensor,
        b: Maybe = None,
        state: Maybe = None,
        ids: Maybe = None,
        starts: Maybe = None,
        activation: str = "",
        final: bool = False,
    ) -> Pair:
        operands.call("causal", x, w, b, state, ids, starts, activation)
        if x.is_cpu:
            operands.values(x, ids, starts)
        given = Given(state, ids, starts)
        y = where.forward(x, w, b, activation, given)
        return y, where.final_state(x, w.shape[1], given) if final else x.new_empty(0)

    def backward(
        dy: torch.Tensor,
        x: torch.Tensor,
        w: torch.Tensor,
        b: Maybe = None,
        state: Maybe = None,
        ids: Maybe = None,
        starts: Maybe = None,
        dfinal: Maybe = None,
        activation: str = "",
        wants_x: bool = True,
        wants_w: bool = True,
        wants_state: bool = False,
    ) -> Three:
        operands.call("causal_backward", x, w, b, state, ids, starts, activation, dy, dfinal)
        if x.is_cpu:
            operands.values(x, ids, starts)
        wants = wants_x, wants_w, wants_state
        gradients: Three = where.backward(dy, x, w, b, dfinal, activation, Given(state, ids, starts), wants)
        return gradients

    def update(
        x: torch.Tensor,
        state: torch.Tensor,
        w: torch.Tensor,
        b: Maybe = None,
        before: Maybe = None,
        entries: Maybe = None,
        activation: str = "",
    ) -> torch.Tensor:
        operands.update(x, state, w, b, before, entries, activation)
        memory.may_be_written("causal_conv1d_update", "conv_state", state, x=x, weight=w, bias=b)
        if x.is_cpu:
            operands.places("causal_conv1d_update", state, before, entries)
        y: torch.Tensor = where.update(x, state, w, b, activation, before, entries)
        return y

    return causal, backward, update


def _fake_causal(
    x: torch.Tensor,
    w: torch.Tensor,
    b: Maybe = None,
    state: Maybe = None,
    ids: Maybe = None,
    starts: Maybe = None,
    activation: str = "",
    final: bool = False,
) -> Pair:
    operands.call("causal", x, w, b, state, ids, starts, activation)
    sequences = Given(state, ids, starts).sequences(x)
    last = allocate((sequences, x.shape[1], w.shape[1] - 1), x) if final else x.new_empty(0)
    return allocate(tuple(x.shape), x), last


def _fake_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    w: torch.Tensor,
    b: Maybe = None,
    state: Maybe = None,
    ids: Maybe = None,
    starts: Maybe = None,
    dfinal: Maybe = None,
    activation: str = "",
    wants_x: bool = True,
    wants_w: bool = True,
    wants_state: bool = False,
) -> Three:
    operands.call("causal_backward", x, w, b, state, ids, starts, activation, dy, dfinal)
    return (
        allocate(tuple(x.shape), x) if wants_x else x.new_empty(0),
        w.new_empty((w.shape[0], w.shape[1] + 1)) if wants_w else w.new_empty(0),
        allocate(tuple(state.shape), state) if wants_state and state is not None else x.new_empty(0),
    )


def _fake_update(
    x: torch.Tensor,
    state: torch.Tensor,
    w: torch.Tensor,
    b: Maybe = None,
    before: Maybe = None,
    entries: Maybe = None,
    activation: str = "",
) -> torch.Tensor:
    operands.update(x, state, w, b, before, entries, activation)
    return allocate(tuple(x.shape), x)


def _forward_flops(x: Sequence[int], w: Sequence[int], *_: Any, out_shape: Any = None, **__: Any) -> int:
    return flops(x[0], x[1], x[2], w[1])


def _backward_flops(dy: Sequence[int], x: Sequence[int], w: Sequence[int], *rest: Any, out_shape: Any = None, **__: Any) -> int:
    wants = (*rest[6:8], *(True, True)[len(rest[6:8]) :])  # whether the gradients of x and w are wanted
    return flops(x[0], x[1], x[2], w[1]) * sum(wants)


def _update_flops(x: Sequence[int], state: Sequence[int], w: Sequence[int], *_: Any, out_shape: Any = None, **__: Any) -> int:
    return flops(x[0], x[1], x[2], w[1])


def _update(x: Any, state: Any, w: Any, b: Any = None, *rest: Any) -> Any:
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, state, w, b)):
        raise RuntimeError(
            "causal_conv1d_update() has no gradients, but x, conv_state, weight or bias requires one: "
            "call it under torch.no_grad()"
        )
    if has_tangent(x, state, w, b):
        raise RuntimeError(
            "causal_conv1d_update() has no derivatives, but x, conv_state, weight or bias has a tangent of forward mode: "
            "causal_conv1d has them"
        )
    return _below_autograd(_OPS.causal_update, x, state, w, b, *rest)


def _written(x: Any, state: Any, *rest: Any) -> Any:
    """Increments the state's version, so that a backward pass that saved it before raises, as for torch's own in-place ops."""
    if not state.is_inference():
        torch.autograd.graph.increment_version(state)
    with private.below_in_place():
        return _OPS.causal_update(x, state, *rest)


def _negated(*args: Any) -> Any:
    """Materialises negated views (such as the imaginary part of a conjugate), and writes the state back."""
    x, state, *rest = (t.resolve_neg() if isinstance(t, torch.Tensor) else t for t in args)
    y = _OPS.causal_update(x, state, *rest)
    if args[1].is_neg():
        args[1].copy_(state)
    return y


_AUTOCAST = private.autocast_keys("cuda", "cpu")


def _update_autocast(x: torch.Tensor, state: torch.Tensor, w: torch.Tensor, *rest: Any) -> torch.Tensor:
    """Autocast to the state's dtype, because the state is changed in place."""
    b = (rest[0].to(state.dtype), *rest[1:]) if rest and rest[0] is not None else rest
    with private.without(_AUTOCAST):
        y: torch.Tensor = _OPS.causal_update(x.to(state.dtype), state, w.to(state.dtype), *b)
    return y


for _schema in _SCHEMAS:
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))
for _name, _kernel, _torch, _fake, _flops, _autograd in zip(
    ("causal", "causal_backward", "causal_update"),
    _by(launch),
    _by(cpu),
    (_fake_causal, _fake_backward, _fake_update),
    (_forward_flops, _backward_flops, _update_flops),
    (_causal, _causal_backward, _update),
    strict=True,
):
    _op = getattr(_OPS, _name)
    LIBRARY.impl(_name, _kernel, "CUDA")
    LIBRARY.impl(_name, either(_kernel, _torch), "CPU")
    LIBRARY.impl(_name, _autograd, "Autograd")
    torch.library.register_fake(f"tritonconv::{_name}", _fake, lib=LIBRARY)
    register_flop_formula(_op)(_flops)
for _device in ("cuda", "cpu"):
    LIBRARY.impl("causal", _autocast(_OPS.causal.default, _device), f"Autocast{_device.upper()}")
    LIBRARY.impl("causal_update", _update_autocast, f"Autocast{_device.upper()}")
LIBRARY.impl("causal_update", _written, "ADInplaceOrView")
LIBRARY.impl("causal_update", _negated, "Negative")
