"""Calls of `deform_conv2d` that were made before (see `tritonconv.recipes`), and calls of its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from tritonconv import host, recipes
from tritonconv.deform import backward, check, launch
from tritonconv.deform.backward import Four

Maybe = torch.Tensor | None


class Recipe(NamedTuple):
    """A call without its tensors."""

    arranged: launch.Arranged
    window: tuple[Any, ...]  # the op's arguments after its tensors
    records: bool

    def run(self, x: torch.Tensor, offset: torch.Tensor, w: torch.Tensor, b: Maybe, mask: Maybe) -> torch.Tensor:
        """y. Autograd records nothing."""
        return self.arranged.run(x, offset, w, b, mask)


def file(
    key: Any, y: torch.Tensor, window: tuple[Any, ...], x: torch.Tensor, offset: torch.Tensor, w: torch.Tensor, *rest: Maybe
) -> None:
    """Keeps what a call took that has just been made the ordinary way and answered y, where it may be repeated; `rest` is bias
    and mask, and `window` as in `Recipe`."""
    tensors = x, offset, w, *rest
    if key is None or not y.numel() or not recipes.may_keep(key, *tensors):
        return
    stride, padding, dilation, plan = window
    b, mask = rest
    deformation = check.described(x, offset, w, mask, stride, padding, dilation)
    made = launch.arranged(deformation, x, offset, w, b, mask, plan)
    recipes.keep(key, Recipe(made, window, recipes.records(*tensors)))


class Backward(NamedTuple):
    """A call of the gradients without its tensors."""

    arranged: backward.Arranged
    on_cpu: bool

    def run(self, dy: torch.Tensor, x: torch.Tensor, offset: torch.Tensor, w: torch.Tensor, mask: Maybe) -> Four:
        """(dx, doffset, dw, dmask). Autograd records nothing."""
        if not self.on_cpu:
            return self.arranged.run(dy, x, offset, w, mask)
        with host.turn():
            return self.arranged.run(dy, x, offset, w, mask)


def called_backward(
    op: Any,
    dy: torch.Tensor,
    x: torch.Tensor,
    offset: torch.Tensor,
    w: torch.Tensor,
    mask: Maybe,
    sizes: Sequence[Any],
    needs: list[bool],
    plan: str,
) -> Four:
    """`op`, which is torch.ops.tritonconv.deform_backward, of all its arguments, by the recipe of its last call if there is
    one."""
    tensors = dy, x, offset, w, mask
    key = recipes.key(("deform_backward", *sizes, needs, plan), None, *tensors)
    if (recipe := recipes.known(key)) is not None:
        known: Four = recipe.run(*tensors)
        return known
    made: Four = op(*tensors, *sizes, needs, plan)
    if key is not None and dy.numel() and not recipes.records(*tensors) and recipes.may_keep(key, *tensors):
        stride, padding, dilation = map(tuple, sizes)
        deformation = check.described(x, offset, w, mask, stride, padding, dilation)
        recipes.keep(key, Backward(backward.arranged(deformation, *tensors, needs, plan), x.is_cpu))
    return made
