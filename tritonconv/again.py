"""Runs calls whose recipe is known, with or without a record of autograd.

No level of torch.func and no forward mode differentiates such a call (`tritonconv.recipes`). So the classes here have no
`setup_context`, and they are applied without what `Function.apply` does for torch.func. Their gradients are those of an
ordinary call.
"""

from __future__ import annotations

from typing import Any

import torch

from costmodel.problem import Pass
from tritonconv.autograd import Maybe, _Dgrad, _Fprop, _Primitive
from tritonconv.autograd_fused import _Fused, _FusedDgrad, _FusedFprop
from tritonconv.recipes import Recipe


class _FpropAgain(_Primitive):
    @staticmethod
    def forward(ctx: Any, x: Any, w: Any, b: Any, recipe: Recipe) -> torch.Tensor:
        needs_x, needs_w, *_ = ctx.needs_input_grad
        ctx.sizes, ctx.strides, ctx.window = (tuple(x.shape[2:]), tuple(w.shape[2:])), w.stride(), recipe.window
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x if needs_w else None, w if needs_x else None)
        return recipe.run(x, w, b)

    @staticmethod
    def backward(ctx: Any, g: Maybe) -> Any:
        return *_Fprop.gradients(ctx, g), None


class _DgradAgain(_Primitive):
    @staticmethod
    def forward(ctx: Any, dy: Any, w: Any, b: Any, recipe: Recipe) -> torch.Tensor:
        needs_dy, needs_w, *_ = ctx.needs_input_grad
        ctx.kernel_size, ctx.strides, ctx.window = tuple(w.shape[2:]), w.stride(), recipe.window[1:]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dy if needs_w else None, w if needs_dy else None)
        return recipe.run(dy, w, b)

    @staticmethod
    def backward(ctx: Any, g: Maybe) -> Any:
        return *_Dgrad.gradients(ctx, g), None


class _FusedAgain(_Primitive):
    @staticmethod
    def forward(ctx: Any, a: Any, w: Any, b: Any, scale: Any, shift: Any, residual: Any, recipe: Recipe) -> Any:
        *ctx.window, ctx.plan = recipe.window
        ctx.which, ctx.activation, ctx.slope = recipe.which, recipe.activation, recipe.slope
        y, z = recipe.run_fused(a, w, b, scale, shift, residual)
        _Fused.kept(ctx, a, w, b, scale, y, z)
        return y if z is None else (y, z)

    @staticmethod
    def backward(ctx: Any, dy: Maybe, dz: Maybe = None) -> Any:
        primitive = _FusedFprop if ctx.which == Pass.FPROP else _FusedDgrad
        return *primitive.gradients(ctx, dy, dz), None


def recorded(function: type[torch.autograd.Function]) -> Any:
    """`Function.apply` without its part for torch.func, which does not run here."""
    return super(torch.autograd.Function, function).apply  # type: ignore[misc]


_fprop_again, _dgrad_again, _fused_again = map(recorded, (_FpropAgain, _DgradAgain, _FusedAgain))


def repeated(recipe: Recipe, a: torch.Tensor, w: torch.Tensor, b: Maybe, *after: Maybe) -> torch.Tensor:
    """The result of a call whose recipe is known; `after` holds scale, shift and residual."""
    if recipe.fused:
        made = _fused_again(a, w, b, *after, recipe) if recipe.records else recipe.run_fused(a, w, b, *after)
        y: torch.Tensor = made[0] if isinstance(made, tuple) else made
        return y
    if not recipe.records:
        return recipe.run(a, w, b)
    return (_fprop_again if recipe.which is Pass.FPROP else _dgrad_again)(a, w, b, recipe)
