"""The library ops of the causal convolution: schemas, fake tensors, autocast, FLOP formulas and first derivatives.

    causal(x [B, C, L], w [C, K], b, state, ids, starts, activation, final) -> (y, final states, or nothing)
    causal_backward(dy, x, w, ..., dfinal, activation, wants) -> (dx, dw with db behind it [C, K + 1], dstate)
    causal_update(x [B, C, T], state, w, b, before, entries, activation) -> y, and the state changed

`activation` is "" or "silu". CUDA tensors run Triton kernels. CPU tensors run them where Triton's interpreter is on, else
torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from costmodel.causal import flops
from tritonconv.autograd import _below_autograd, _Primitive
from tritonconv.causal import cpu, launch
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
    """The three ops by a module that computes them: `launch` or `cpu`."""

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
        wants = wants_x, wants_w, wants_state
        found: Three = where.backward(dy, x, w, b, dfinal, activation, Given(state, ids, starts), wants)
        return found

    def update(
        x: torch.Tensor,
        state: torch.Tensor,
        w: torch.Tensor,
        b: Maybe = None,
        before: Maybe = None,
        entries: Maybe = None,
        activation: str = "",
    ) -> torch.Tensor:
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
    return (
        allocate(tuple(x.shape), x) if wants_x else x.new_empty(0),
        w.new_empty((w.shape[0], w.shape[1] + 1)) if wants_w else w.new_empty(0),
        allocate(tuple(state.shape), state) if wants_state and state is not None else x.new_empty(0),
    )


def _fake_update(x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return allocate(tuple(x.shape), x)


def _forward_flops(x: Sequence[int], w: Sequence[int], *_: Any, out_shape: Any = None, **__: Any) -> int:
    return flops(x[0], x[1], x[2], w[1])


def _backward_flops(dy: Sequence[int], x: Sequence[int], w: Sequence[int], *rest: Any, out_shape: Any = None, **__: Any) -> int:
    wants = (*rest[6:8], *(True, True)[len(rest[6:8]) :])  # of x and w
    return flops(x[0], x[1], x[2], w[1]) * sum(wants)


def _update_flops(x: Sequence[int], state: Sequence[int], w: Sequence[int], *_: Any, out_shape: Any = None, **__: Any) -> int:
    return flops(x[0], x[1], x[2], w[1])


class _Causal(_Primitive):
    """Its backward makes z, the value before the activation, again: nothing is kept but the inputs."""

    @staticmethod
    def forward(
        x: Any,
        w: Any,
        b: Any = None,
        state: Any = None,
        ids: Any = None,
        starts: Any = None,
        activation: str = "",
        final: bool = False,
    ) -> Any:
        return _below_autograd(_OPS.causal, x, w, b, state, ids, starts, activation, final)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.activation, ctx.final = inputs
        ctx.set_materialize_grads(False)
        if not ctx.final:
            ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor | None, dfinal: torch.Tensor | None) -> Any:
        x, w, b, state, ids, starts = ctx.saved_tensors
        if dy is None and dfinal is None:
            return (None,) * 8
        dy = torch.zeros_like(x) if dy is None else dy
        needs_x, needs_w, needs_b, needs_state, *_ = ctx.needs_input_grad
        needs_wb = needs_w or needs_b
        dx, dwb, dstate = _OPS.causal_backward(
            dy, x, w, b, state, ids, starts, dfinal if ctx.final else None, ctx.activation, needs_x, needs_wb, needs_state
        )
        taps = w.shape[1]
        return (
            dx if needs_x else None,
            dwb[:, :taps] if needs_w else None,
            dwb[:, taps] if needs_b else None,
            dstate if needs_state else None,
            *(None,) * 4,
        )


class _CausalBackward(_Primitive):
    @staticmethod
    def forward(*args: Any) -> Any:
        return _below_autograd(_OPS.causal_backward, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(
            "causal_conv1d has no second derivatives: its backward pass cannot be differentiated (create_graph=True). "
            "tritonconv.conv1d on padded input has them"
        )


def _causal(x: Any, w: Any, *rest: Any) -> Any:
    return _Causal.apply(x, w, *rest, *(None, None, None, None, "", False)[len(rest) :])


def _causal_backward(dy: Any, x: Any, w: Any, *rest: Any) -> Any:
    return _CausalBackward.apply(dy, x, w, *rest)


def _update(x: Any, state: Any, w: Any, b: Any = None, *rest: Any) -> Any:
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, state, w, b)):
        raise RuntimeError(
            "causal_conv1d_update() has no gradients, but x, conv_state, weight or bias requires one: "
            "call it under torch.no_grad()"
        )
    return _below_autograd(_OPS.causal_update, x, state, w, b, *rest)


def _update_autocast(x: torch.Tensor, state: torch.Tensor, w: torch.Tensor, *rest: Any) -> torch.Tensor:
    """The state is changed in place, so it is the state whose dtype counts."""
    of = torch._C.DispatchKey
    keys = torch._C.DispatchKeySet(of.AutocastCUDA) | torch._C.DispatchKeySet(of.AutocastCPU)
    b = (rest[0].to(state.dtype), *rest[1:]) if rest and rest[0] is not None else rest
    with torch._C._ExcludeDispatchKeyGuard(keys):
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
