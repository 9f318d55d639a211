"""Gradients of the three primitives, each made of the other two, so that they can be differentiated to any order.

| op | gradients |
|---|---|
| fprop(x, w) | dgrad(g, w), wgrad(g, x) |
| dgrad(dy, w) | fprop(g, w), wgrad(dy, g) |
| wgrad(dy, x) | fprop(x, g), dgrad(dy, g) |

| fprop_fused(x, w) | with dz = the activation's gradient: dgrad(dz, scale * w), scale * wgrad(dz, x), ... |
| dgrad_fused(dy, w) | fprop(dz, scale * w), scale * wgrad(dy, dz), ... |

Registered at the ops' Autograd key, so that a direct `torch.ops` call is differentiable too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._functorch.autograd_function import enable_single_level_autograd_function

from costmodel.problem import Pass
from tritonconv.epilogue import ACTIVATIONS, needs_z, over_weight, weight_sums
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


class _Fused(_Primitive):
    """A pass with an epilogue: y = act(z), z = (sums + b) * scale + shift + residual, where sums is linear in a and in w.

    With dz = dy * act', the residual's gradient is dz, shift's is dz summed over all but the channels, and b's is scale times
    that. The gradient of the sums is scale * dz. Its scale is moved to where it is small: into the weight for a's gradient,
    out of dw, the weight gradient for dz, for w's. And scale's own gradient, the sum of dz * (sums + b), is the sum of w * dw,
    plus b times shift's. So nothing of the output's size is kept or made for scale.
    z is an output of its own, so that second derivatives can flow through it where first ones were taken from it.
    """

    which = Pass.FPROP

    @classmethod
    def recorded(
        cls,
        a: Any,
        w: Any,
        b: Any,
        window: tuple[Any, ...],
        scale: Any = None,
        shift: Any = None,
        residual: Any = None,
        activation: str = "",
        slope: float = 0.01,
        keep: bool = False,
        plan: str = "",
    ) -> Any:
        """`apply`, with z kept where a gradient will want it."""
        tensors = (a, w, b, scale, shift, residual)
        wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        keep = keep or (wanted and needs_z(activation, slope))
        return cls.apply(*tensors, window, activation, slope, keep, plan)

    @classmethod
    def forward(
        cls, a: Any, w: Any, b: Any, scale: Any, shift: Any, residual: Any, window: Any, activation: str, *rest: Any
    ) -> Any:
        op = _OPS.fprop_fused if cls.which == Pass.FPROP else _OPS.dgrad_fused
        return _below_autograd(op, a, w, b, *window, scale, shift, residual, activation, *rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        a, w, b, scale, _, _, ctx.window, ctx.activation, ctx.slope, _, ctx.plan = inputs
        y, z = output
        needs_a, needs_w, needs_b, needs_scale, *_ = ctx.needs_input_grad
        ctx.set_materialize_grads(False)
        if not z.numel():
            ctx.mark_non_differentiable(z)
        ctx.sizes = a.shape[2:], w.shape[2:]
        at = None
        if ctx.activation:
            at = z if needs_z(ctx.activation, ctx.slope) else y
        ctx.save_for_backward(
            a if needs_w or needs_scale else None,
            w if needs_a or needs_scale else None,
            b if needs_scale else None,
            scale if needs_a or needs_w or needs_b else None,
            at,
        )

    @classmethod
    def backward(cls, ctx: Any, dy: torch.Tensor | None, dz: torch.Tensor | None) -> Any:
        a, w, b, scale, at = ctx.saved_tensors
        needs_a, needs_w, needs_b, needs_scale, needs_shift, needs_residual, *_ = ctx.needs_input_grad
        if dy is not None:
            through = ACTIVATIONS[ctx.activation].backward(dy, at, ctx.slope) if ctx.activation else dy
            dz = through if dz is None else dz + through
        if dz is None:
            return (None,) * 11
        stride, padding, dilation, groups = ctx.window[-4:]
        window = (stride, padding, dilation, groups, ctx.plan)
        input_size, kernel_size = ctx.sizes
        forward = cls.which == Pass.FPROP
        dw: Any = None
        da = db = dscale = dshift = None
        if needs_a:
            scaled = w if scale is None else w * over_weight(scale, cls.which, w, groups)
            da = _OPS.dgrad(dz, scaled, None, input_size, *window) if forward else _OPS.fprop(dz, scaled, None, *window)
        if needs_w or needs_scale:
            dw = _OPS.wgrad(*((dz, a) if forward else (a, dz)), kernel_size, *window)
        if needs_b or needs_scale or needs_shift:
            dshift = _bias_gradient(dz)
        if needs_scale:
            dscale = weight_sums(w * dw, cls.which, groups)
            dscale = dscale if b is None else dscale + b * dshift
        if needs_b:
            db = dshift if scale is None else scale * dshift
        if needs_w and scale is not None:
            dw = dw * over_weight(scale, cls.which, dw, groups)
        return (
            da,
            dw if needs_w else None,
            db,
            dscale,
            dshift if needs_shift else None,
            dz if needs_residual else None,
            *(None,) * 5,
        )


class _FusedFprop(_Fused):
    @classmethod
    def call(cls, x: Any, w: Any, b: Any, stride: Any, padding: Any, dilation: Any, groups: Any, *after: Any) -> Any:
        return cls.recorded(x, w, b, (stride, padding, dilation, groups), *after)


class _FusedDgrad(_Fused):
    which = Pass.DGRAD

    @classmethod
    def call(
        cls, dy: Any, w: Any, b: Any, input_size: Any, stride: Any, padding: Any, dilation: Any, groups: Any, *after: Any
    ) -> Any:
        return cls.recorded(dy, w, b, (input_size, stride, padding, dilation, groups), *after)


LIBRARY.impl("fprop", _Fprop.apply, "Autograd")
LIBRARY.impl("dgrad", _Dgrad.apply, "Autograd")
LIBRARY.impl("wgrad", _Wgrad.apply, "Autograd")
LIBRARY.impl("fprop_fused", _FusedFprop.call, "Autograd")
LIBRARY.impl("dgrad_fused", _FusedDgrad.call, "Autograd")
