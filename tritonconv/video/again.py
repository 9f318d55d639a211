"""Calls of `causal_conv3d` that were made before (see `tritonconv.recipes`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch

from costmodel.chunk import Chunk
from tritonconv import host, recipes
from tritonconv.again import recorded
from tritonconv.autograd import Maybe, _Primitive
from tritonconv.layout import allocate_channels_last
from tritonconv.normalize import Prologue
from tritonconv.normalize import again as normalize
from tritonconv.normalize.check import per_frame
from tritonconv.normalize.launch import Values
from tritonconv.video import check, launch
from tritonconv.video.launch import Arranged
from tritonconv.video.op import _Video, checked_chunk

_OPS = torch.ops.tritonconv
Pair = tuple[torch.Tensor, torch.Tensor]


def key(
    words: tuple[Any, ...], plan: Any, x: Any, w: Any, b: Any, cache: Any, prologue: Any, residual: Any
) -> tuple[Any, ...] | None:
    """The key of a call, None for one that is to take the ordinary way."""
    if prologue is None:
        return recipes.key((check.NAME, *words), plan, x, w, b, cache, residual)
    if type(prologue) is not Prologue:
        return None
    *tensors, activation, slope = prologue
    return recipes.key((check.NAME, *words, activation, slope), plan, x, w, b, cache, residual, *tensors)


class Recipe(NamedTuple):
    """A call without its tensors."""

    arranged: Arranged
    chunk: Chunk  # without a prologue and summed taps, as gradients take it
    window: tuple[Any, ...]  # the op's stride to plan, then groups, summed and padding_mode
    records: bool
    on_cpu: bool
    normalized: normalize.Recipe | None = None  # of the prologue's own kernel, where gradients of the call are recorded

    def run(self, x: torch.Tensor, w: torch.Tensor, b: Maybe, cache: Maybe, residual: Maybe, prologue: Any = None) -> Pair:
        """(y, the next cache, or nothing). Autograd records nothing."""
        values = launch.NOTHING
        if prologue is not None:
            scale, shift, rstd, activation, slope = prologue
            if self.arranged.strides is None:
                scale, shift = per_frame(scale), per_frame(shift)
            values = Values(scale, shift, rstd, activation or "", slope)
        if not self.on_cpu:
            return self.arranged.run(x, w, b, cache, values, residual)
        with host.turn():
            return self.arranged.run(x, w, b, cache, values, residual)


class _VideoAgain(_Primitive):
    """`_Video` of a call whose recipe is known."""

    @staticmethod
    def forward(ctx: Any, x: Any, w: Any, b: Any, cache: Any, residual: Any, recipe: Recipe) -> Any:
        made = recipe.run(x, w, b, cache, residual)
        _Video.setup_context(ctx, (x, w, b, cache, residual, *recipe.window), made)
        ctx.chunk = recipe.chunk
        return made

    @staticmethod
    def backward(ctx: Any, dy: Maybe, dafter: Maybe) -> Any:
        return *_Video.gradients(ctx, ctx.chunk, dy, dafter), None


_video_again = recorded(_VideoAgain)


def repeated(
    recipe: Recipe, x: torch.Tensor, w: torch.Tensor, b: Maybe, cache: Maybe, prologue: Prologue | None, residual: Maybe
) -> Pair:
    """(y, the next cache, or nothing) of a call whose recipe is known."""
    if not recipe.records:
        return recipe.run(x, w, b, cache, residual, prologue)
    made: Pair
    if prologue is not None:
        assert recipe.normalized is not None
        x = normalize.normalized(recipe.normalized, x, *prologue[:3])
        if x.data_ptr() % 32:  # an allocator that is not torch's; the recipe is that of an aligned x
            *place, groups, summed, mode = recipe.window
            made = _OPS.video(x, w, b, cache, *place, None, None, None, "", 0.01, residual, groups, summed, mode)
            return made
    made = _video_again(x, w, b, cache, residual, recipe)
    return made


def file(
    key: tuple[Any, ...],
    x: torch.Tensor,
    w: torch.Tensor,
    b: Maybe,
    cache: Maybe,
    values: Values,
    residual: Maybe,
    window: tuple[Any, ...],
) -> None:
    """Keeps what a call took that has just been made the ordinary way, where it may be repeated; `window` is as in `Recipe`."""
    tensors = x, w, b, cache, residual, *values[:3]
    if not recipes.may_keep(key, *tensors):
        return
    *place, keeps, plan, groups, summed, mode = window
    shapes: Any = x.shape, w.shape, None if cache is None else cache.shape, *place, keeps, groups, summed, mode
    chunk = checked_chunk(*shapes)
    if 0 in chunk.output_shape:
        return
    records, normalized = recipes.records(*tensors), None
    if records and not values.is_empty():
        normalized = normalize.recipe_of(x, values)
        x, values, plan = allocate_channels_last(x.shape, x), launch.NOTHING, plan.replace(":apart", "")
        window = *place, keeps, plan, groups, summed, mode
    made = launch.arranged(chunk, x, w, b, cache, keeps, plan, values, residual)
    recipes.keep(key, Recipe(made, replace(chunk, summed=False), window, records, x.is_cpu, normalized))
