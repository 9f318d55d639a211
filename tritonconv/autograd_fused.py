"""Derivatives of the passes with an epilogue. They consist of the three primitives and of the fused passes themselves.

| op | gradients |
|---|---|
| fprop_fused(x, w) | with dz = the activation's gradient: dgrad(dz, scale * w), scale * wgrad(dz, x), ... |
| dgrad_fused(dy, w) | fprop(dz, scale * w), scale * wgrad(dy, dz), ... |

Forward mode takes two fused calls, of which the second adds the result of the first as its residual, and the activation's
derivative.
"""

from __future__ import annotations

from typing import Any

import torch

from costmodel.problem import Pass
from tritonconv import operands
from tritonconv.autograd import _OPS, Maybe, _below_autograd, _bias_gradient, _Primitive, added, gradients_of, has_tangent
from tritonconv.epilogue import ACTIVATIONS, needs_z, over_weight, per_channel, weight_sums
from tritonconv.op import LIBRARY


class _Fused(_Primitive):
    """A pass with an epilogue: y = act(z), z = (sums + b) * scale + shift + residual, where sums is linear in a and in w.

    Let dz = dy * act'. The residual's gradient is dz, shift's is dz summed over everything but the channels, and b's is scale
    times that sum. The gradient of the sums is scale * dz. The factor scale is applied where tensors are small: for the
    gradient of a it multiplies the weight, and for the gradient of w it multiplies dw, the weight gradient of dz. The gradient
    of scale itself, the sum of dz * (sums + b), is the sum of w * dw plus b times shift's gradient. So scale needs no further
    tensor of the output's size.
    z is an output of its own, so that second derivatives can flow through it if first derivatives were taken from it.
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
        """`apply`, which keeps z if a gradient will need it."""
        operands.word(f"{cls.which}_fused", "activation", activation, ACTIVATIONS)
        tensors = (a, w, b, scale, shift, residual)
        wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        keep = keep or (needs_z(activation, slope) and (wanted or has_tangent(*tensors)))
        return cls.apply(*tensors, window, activation, slope, keep, plan)

    @classmethod
    def forward(
        cls, a: Any, w: Any, b: Any, scale: Any, shift: Any, residual: Any, window: Any, activation: str, *rest: Any
    ) -> Any:
        return _below_autograd(cls.op(), a, w, b, *window, scale, shift, residual, activation, *rest)

    @classmethod
    def op(cls) -> Any:
        return _OPS.fprop_fused if cls.which == Pass.FPROP else _OPS.dgrad_fused

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        a, w, b, scale, _, _, ctx.window, ctx.activation, ctx.slope, _, ctx.plan = inputs
        y, z = output
        at = _Fused.kept(ctx, a, w, b, scale, y, z)
        ctx.save_for_forward(a, w, b, scale, at, y)

    @staticmethod
    def kept(ctx: Any, a: Any, w: Any, b: Any, scale: Any, y: Any, z: Any) -> Maybe:
        """Saves what `gradients` takes, and returns y or z, whichever the activation's derivative is computed from."""
        needs_a, needs_w, needs_b, needs_scale, *_ = ctx.needs_input_grad
        ctx.set_materialize_grads(False)
        ctx.has_z = z is not None and z.numel() > 0
        if z is not None and not ctx.has_z:
            ctx.mark_non_differentiable(z)
        ctx.sizes = tuple(a.shape[2:]), tuple(w.shape[2:])
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
        return at

    @classmethod
    def tangents(
        cls,
        ctx: Any,
        saved: tuple[Any, ...],
        ta: Maybe,
        tw: Maybe,
        tb: Maybe,
        tscale: Maybe,
        tshift: Maybe,
        tz: Maybe,
        *_: Any,
    ) -> Any:
        """The tangent is scale * (S(ta, w) + S(a, tw) + tb) + tscale * (S(a, w) + b) + ..., where S, the sums, is linear in
        both of its arguments. So one call serves both terms in a, with the weight scale * tw + tscale * w. `tz` begins as the
        residual's tangent."""
        a, w, b, scale, at, y = saved
        groups = ctx.window[-1]
        weight, shift = tw, tb
        if scale is not None:
            weight = None if tw is None else tw * over_weight(scale, cls.which, w, groups)
            shift = None if tb is None else tb * scale
        if tscale is not None:
            weight = added(weight, w * over_weight(tscale, cls.which, w, groups))
            shift = added(shift, None if b is None else b * tscale)
        shift = added(shift, tshift)

        def followed(*tensors: Any) -> torch.Tensor:
            first, second, factor, summand, over = tensors
            after = (factor, summand, over, "", 0.01, False)
            result: torch.Tensor = cls.op()(first, second, None, *ctx.window, *after, ctx.plan)[0]
            return result

        if ta is not None:
            tz, shift = followed(ta, w, scale, shift, tz), None
        if weight is not None:
            tz, shift = followed(a, weight, None, shift, tz), None
        if shift is not None:
            tz = added(per_channel(shift, y.dim() - 2).expand(y.shape), tz)
        assert tz is not None  # some argument had a tangent, or torch would not have called
        ty = ACTIVATIONS[ctx.activation].backward(tz, at, ctx.slope) if ctx.activation else tz
        return ty, tz if ctx.has_z else None

    @classmethod
    def backward(cls, ctx: Any, dy: torch.Tensor | None, dz: torch.Tensor | None) -> Any:
        return *cls.gradients(ctx, dy, dz), *(None,) * 5

    @classmethod
    def gradients(cls, ctx: Any, dy: torch.Tensor | None, dz: torch.Tensor | None) -> tuple[Maybe, ...]:
        """The gradients of a, w, b, scale, shift and residual."""
        a, w, b, scale, at = ctx.saved_tensors
        needs_a, needs_w, needs_b, needs_scale, needs_shift, needs_residual, *_ = ctx.needs_input_grad
        if dy is not None:
            through = ACTIVATIONS[ctx.activation].backward(dy, at, ctx.slope) if ctx.activation else dy
            dz = through if dz is None else dz + through
        if dz is None:
            return (None,) * 6
        stride, padding, dilation, groups = ctx.window[-4:]
        window = (stride, padding, dilation, groups, ctx.plan)
        input_size, kernel_size = ctx.sizes
        forward = cls.which == Pass.FPROP
        db = dscale = dshift = None
        scaled = w if scale is None or not needs_a else w * over_weight(scale, cls.which, w, groups)
        first = ("dgrad", dz, scaled, input_size, *window) if forward else ("fprop", dz, scaled, *window)
        second = ("wgrad", *((dz, a) if forward else (a, dz)), kernel_size, *window)
        pair: Any = gradients_of(needs_a, needs_w or needs_scale, first, second)
        da, dw = pair
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


LIBRARY.impl("fprop_fused", _FusedFprop.call, "Autograd")
LIBRARY.impl("dgrad_fused", _FusedDgrad.call, "Autograd")
