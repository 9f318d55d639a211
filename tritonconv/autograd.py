"""Gradients of the three primitives, each made of the other two, so that they can be differentiated to any order.

| op | gradients |
|---|---|
| fprop(x, w) | dgrad(g, w), wgrad(g, x) |
| dgrad(dy, w) | fprop(g, w), wgrad(dy, g) |
| wgrad(dy, x) | fprop(x, g), dgrad(dy, g) |

Registered at the ops' Autograd key, so that a direct `torch.ops` call is differentiable too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._functorch.autograd_function import enable_single_level_autograd_function

from tritonconv.op import LIBRARY

_OPS = torch.ops.tritonconv


def _bias_gradient(g: torch.Tensor) -> torch.Tensor:
    return g.sum([axis for axis in range(g.dim()) if axis != 1])


def _below_autograd(op: Any, *args: Any) -> torch.Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        if not torch._C._are_functorch_transforms_active():
            return op(*args)
        with torch.enable_grad():  # `Function.apply` turned it off, but an outer level of torch.func may record
            return op(*args)


class _Primitive(torch.autograd.Function):
    @classmethod
    def apply(cls, *args: Any) -> Any:
        """`Function.apply` for a kernel of the Autograd key.

        There the levels of torch.func are the dispatcher's affair, as for torch's own operators: one level is recorded here,
        and the call below Autograd goes on to the next. It also spares a call of `inspect.signature`, which costs more than
        the rest of `Function.apply` together.
        """
        if not torch._C._are_functorch_transforms_active():
            return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]
        with enable_single_level_autograd_function():
            return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]


class _Fprop(_Primitive):
    @staticmethod
    def forward(x: Any, w: Any, b: Any, stride: Any, padding: Any, dilation: Any, groups: Any, plan: str = "") -> torch.Tensor:
        return _below_autograd(_OPS.fprop, x, w, b, stride, padding, dilation, groups, plan)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, w, _, *ctx.window = inputs
        needs_x, needs_w, *_ = ctx.needs_input_grad
        ctx.sizes = x.shape[2:], w.shape[2:]
        ctx.save_for_backward(x if needs_w else None, w if needs_x else None)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        x, w = ctx.saved_tensors
        input_size, kernel_size = ctx.sizes
        needs = ctx.needs_input_grad
        dx = _OPS.dgrad(g, w, None, input_size, *ctx.window) if needs[0] else None
        dw = _OPS.wgrad(g, x, kernel_size, *ctx.window) if needs[1] else None
        db = _bias_gradient(g) if needs[2] else None
        return dx, dw, db, *(None,) * len(ctx.window)


class _Dgrad(_Primitive):
    @staticmethod
    def forward(
        dy: Any, w: Any, b: Any, input_size: Any, stride: Any, padding: Any, dilation: Any, groups: Any, plan: str = ""
    ) -> torch.Tensor:
        return _below_autograd(_OPS.dgrad, dy, w, b, input_size, stride, padding, dilation, groups, plan)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        dy, w, _, _, *ctx.window = inputs
        needs_dy, needs_w, *_ = ctx.needs_input_grad
        ctx.kernel_size = w.shape[2:]
        ctx.save_for_backward(dy if needs_w else None, w if needs_dy else None)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        dy, w = ctx.saved_tensors
        needs = ctx.needs_input_grad
        ddy = _OPS.fprop(g, w, None, *ctx.window) if needs[0] else None
        dw = _OPS.wgrad(dy, g, ctx.kernel_size, *ctx.window) if needs[1] else None
        db = _bias_gradient(g) if needs[2] else None
        return ddy, dw, db, None, *(None,) * len(ctx.window)


class _Wgrad(_Primitive):
    @staticmethod
    def forward(
        dy: Any, x: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, groups: Any, plan: str = ""
    ) -> torch.Tensor:
        return _below_autograd(_OPS.wgrad, dy, x, kernel_size, stride, padding, dilation, groups, plan)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        dy, x, _, *ctx.window = inputs
        needs_dy, needs_x, *_ = ctx.needs_input_grad
        ctx.input_size = x.shape[2:]
        ctx.save_for_backward(dy if needs_x else None, x if needs_dy else None)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        dy, x = ctx.saved_tensors
        needs = ctx.needs_input_grad
        ddy = _OPS.fprop(x, g, None, *ctx.window) if needs[0] else None
        dx = _OPS.dgrad(dy, g, None, ctx.input_size, *ctx.window) if needs[1] else None
        return ddy, dx, None, *(None,) * len(ctx.window)


LIBRARY.impl("fprop", _Fprop.apply, "Autograd")
LIBRARY.impl("dgrad", _Dgrad.apply, "Autograd")
LIBRARY.impl("wgrad", _Wgrad.apply, "Autograd")
