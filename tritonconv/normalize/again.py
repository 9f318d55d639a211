"""Prologues and their statistics that were computed before (see `tritonconv.recipes`)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from tritonconv import host, recipes
from tritonconv.again import recorded
from tritonconv.autograd import _Primitive
from tritonconv.normalize import launch
from tritonconv.normalize.check import as_video, per_frame, unsqueezed
from tritonconv.normalize.launch import Values
from tritonconv.normalize.op import _GroupScale, _Normalize, _RmsRstd

Maybe = torch.Tensor | None
Pair = tuple[torch.Tensor, torch.Tensor]


class Recipe(NamedTuple):
    """A call without its tensors."""

    made: Any  # an `Applied`, a `Grouped` or a `Squared`
    records: bool
    on_cpu: bool
    how: tuple[Any, ...] = ()  # the op's arguments after its tensors

    def run(self, *tensors: Any) -> Any:
        """The result. Autograd records nothing."""
        if not self.on_cpu:
            return self.made.run(*tensors)
        with host.turn():
            return self.made.run(*tensors)


# ---- a prologue ----------------------------------------------------------------------------------------------------------


class _NormalizeAgain(_Primitive):
    """`_Normalize` of a call whose recipe is known."""

    @staticmethod
    def forward(ctx: Any, x: Any, scale: Any, shift: Any, rstd: Any, recipe: Recipe) -> torch.Tensor:
        _Normalize.setup_context(ctx, (x, scale, shift, rstd, *recipe.how), None)
        y: torch.Tensor = recipe.run(x, Values(scale, shift, rstd, *recipe.how))
        return y

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        return *_Normalize.gradients(ctx, g), None


_normalize_again = recorded(_NormalizeAgain)


def recipe_of(x: torch.Tensor, values: Values) -> Recipe:
    """The recipe of a prologue's own kernel, for x [N, C, T, H, W] with elements."""
    return Recipe(launch.applied(x, values), recipes.records(x, *values[:3]), x.is_cpu, values[3:])


def normalized(recipe: Recipe, x: torch.Tensor, scale: Maybe, shift: Maybe, rstd: Maybe) -> torch.Tensor:
    """x [N, C, *size] with the tensors of a `Prologue`, by its own kernel, whose recipe is known."""
    video, pixels = as_video(x), None if rstd is None else unsqueezed(rstd, 1, 4)
    tensors = video, per_frame(scale), per_frame(shift), pixels
    if recipe.records:
        y: torch.Tensor = _normalize_again(*tensors, recipe)
    else:
        y = recipe.run(video, Values(*tensors[1:], *recipe.how))
    return y if x.dim() == 5 else y.view(x.shape)


# ---- statistics ----------------------------------------------------------------------------------------------------------


class _GroupScaleAgain(_Primitive):
    """`_GroupScale` of a call whose recipe is known."""

    @staticmethod
    def forward(ctx: Any, x: Any, w: Any, b: Any, recipe: Recipe) -> Any:
        _GroupScale.setup_context(ctx, (x, w, b, *recipe.how), None)
        return recipe.run(x, w, b)

    @staticmethod
    def backward(ctx: Any, dscale: Maybe, dshift: Maybe) -> Any:
        return *_GroupScale.gradients(ctx, dscale, dshift), None


class _RmsRstdAgain(_Primitive):
    """`_RmsRstd` of a call whose recipe is known."""

    @staticmethod
    def forward(ctx: Any, x: Any, recipe: Recipe) -> Any:
        rstd = recipe.run(x)
        _RmsRstd.setup_context(ctx, (x, *recipe.how), rstd)
        return rstd

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        return _RmsRstd.gradient(ctx, g), None


_group_scale_again, _rms_rstd_again = map(recorded, (_GroupScaleAgain, _RmsRstdAgain))


def group_scale(recipe: Recipe, x: torch.Tensor, w: Maybe, b: Maybe) -> Pair:
    """(scale, shift) of x [N, C, T, H, W], of a call whose recipe is known."""
    made: Pair = _group_scale_again(x, w, b, recipe) if recipe.records else recipe.run(x, w, b)
    return made


def rms_rstd(recipe: Recipe, x: torch.Tensor) -> torch.Tensor:
    """rstd of x [N, C, T, H, W], of a call whose recipe is known."""
    rstd: torch.Tensor = _rms_rstd_again(x, recipe) if recipe.records else recipe.run(x)
    return rstd


def file(key: Any, make: Any, x: torch.Tensor, *tensors: Any, how: tuple[Any, ...]) -> None:
    """Keeps what a call took that has just been made the ordinary way, where it may be repeated. `make` is `launch.grouped` or
    `launch.squared`; of `tensors` those count that the call reads."""
    if key is not None and x.numel() and recipes.may_keep(key, x, *tensors):
        recipes.keep(key, Recipe(make(x, *how), recipes.records(x, *tensors), x.is_cpu, how))
