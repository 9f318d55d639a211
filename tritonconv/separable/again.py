"""Calls of `depthwise_separable_conv2d` that were made before (see `tritonconv.recipes`)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from costmodel.problem import Pass
from tritonconv import recipes
from tritonconv.again import recorded
from tritonconv.autograd import Maybe, _Primitive
from tritonconv.epilogue import Epilogue
from tritonconv.layout import allocate
from tritonconv.op import known_problem
from tritonconv.separable import launch
from tritonconv.separable.launch import Arranged
from tritonconv.separable.op import _POINTWISE, _Separable, followed, pair_of


class Recipe(NamedTuple):
    """A call without its tensors: what one kernel takes, or the two convolutions."""

    one: Arranged | None
    two: tuple[recipes.Recipe, recipes.Recipe] | None
    window: tuple[Any, ...]  # the op's arguments after its tensors
    records: bool

    def run(self, x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, b1: Maybe, b2: Maybe, residual: Maybe) -> torch.Tensor:
        """y [N, K, P, Q]. Autograd records nothing."""
        if self.one is not None:
            return self.one.run(x, w1, w2, b1, b2, residual)
        assert self.two is not None
        first, second = self.two
        z = _run(first, x, w1, b1, None)
        if z.data_ptr() % 16:  # an allocator that is not torch's; the second recipe is that of an aligned z
            *_, activation, slope, _ = self.window
            return followed(z, w2, b2, _POINTWISE, residual, activation, slope, False)[0]
        return _run(second, z, w2, b2, residual)


def _run(recipe: recipes.Recipe, x: torch.Tensor, w: torch.Tensor, b: Maybe, residual: Maybe) -> torch.Tensor:
    return recipe.run_fused(x, w, b, None, None, residual)[0] if recipe.fused else recipe.run(x, w, b)


class _SeparableAgain(_Primitive):
    """`_Separable` of a call whose recipe is known."""

    @staticmethod
    def forward(ctx: Any, x: Any, w1: Any, w2: Any, b1: Any, b2: Any, residual: Any, recipe: Recipe) -> Any:
        y = recipe.run(x, w1, w2, b1, b2, residual)
        _Separable.setup_context(ctx, (x, w1, w2, b1, b2, residual, *recipe.window), y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Maybe) -> Any:
        return *_Separable.backward(ctx, dy)[:6], None


_separable_again = recorded(_SeparableAgain)


def repeated(
    recipe: Recipe, x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, b1: Maybe, b2: Maybe, residual: Maybe
) -> torch.Tensor:
    """The result of a call whose recipe is known."""
    if not recipe.records:
        return recipe.run(x, w1, w2, b1, b2, residual)
    y: torch.Tensor = _separable_again(x, w1, w2, b1, b2, residual, recipe)
    return y


def file(
    key: tuple[Any, ...],
    x: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    b1: Maybe,
    b2: Maybe,
    residual: Maybe,
    window: tuple[Any, ...],
) -> None:
    """Keeps what a call took that has just been made the ordinary way, where it may be repeated."""
    tensors = x, w1, w2, b1, b2, residual
    stride, padding, dilation, between, activation, slope, plan = window
    pair = pair_of(x.shape, w1.shape, w2.shape, stride, padding, dilation)
    if 0 in pair.pointwise.output_shape or not recipes.may_keep(key, *tensors):
        return
    one, two = launch.arranged(pair, *tensors, between, activation, slope, plan), None
    if one is None:
        z, place = allocate(pair.depthwise.output_shape, x, w1), (stride, padding, dilation, x.shape[1])
        first = _recipe(x, w1, b1, None, place, between, slope)
        second = _recipe(z, w2, b2, residual, _POINTWISE, activation, slope)
        if first is None or second is None:
            return
        two = first, second
    recipes.keep(key, Recipe(one, two, window, recipes.records(*tensors)))


def _recipe(
    x: torch.Tensor, w: torch.Tensor, b: Maybe, residual: Maybe, place: tuple[Any, ...], activation: str, slope: float
) -> recipes.Recipe | None:
    """The recipe of one of two convolutions."""
    epilogue = Epilogue(None, None, residual, activation, slope, False) if activation or residual is not None else None
    return recipes.recipe_of(Pass.FPROP, known_problem(Pass.FPROP, x, w, place), x, w, b, place, "", epilogue)
