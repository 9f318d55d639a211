"""Calls of `unfold` and `fold` that were made before (see `tritonconv.recipes`), and those that are their gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from costmodel.problem import Pass
from tritonconv import recipes
from tritonconv.columns import check, launch
from tritonconv.columns.launch import Arranged


class Recipe(NamedTuple):
    """A call without its tensor."""

    arranged: Arranged
    which: Pass  # fprop of `unfold`, dgrad of `fold`
    window: tuple[Any, ...]  # the op's arguments after its tensor
    batched: bool
    records: bool

    def run(self, source: torch.Tensor) -> torch.Tensor:
        """The result. Autograd records nothing."""
        return self.arranged.run(source)


def file(key: Any, which: Pass, source: torch.Tensor, window: tuple[Any, ...], plan: str, batched: bool) -> None:
    """Keeps what a call took that has just been made the ordinary way, where it may be repeated. `source` has a batch."""
    if key is None or 0 in source.shape or not recipes.may_keep(key, source):
        return
    unfolding = check.image("unfold()", source, *window) if which == Pass.FPROP else check.columns("fold()", source, *window)
    made, records = launch.arranged(unfolding, which, source, plan), recipes.records(source)
    if not batched and not records:  # the kernel does not see whether the result has a batch
        made = made._replace(shape=made.shape[1:])
    recipes.keep(key, Recipe(made, which, (*window, plan), batched, records))


def called(op: Any, which: Pass, source: torch.Tensor, *rest: Any) -> torch.Tensor:
    """`op`, which is torch.ops.tritonconv.unfold or fold, of all its arguments, by the recipe of its last call if there is
    one."""
    key = recipes.key(("gradient of columns", str(which), *rest), None, source)
    if (recipe := recipes.known(key)) is not None:
        known: torch.Tensor = recipe.run(source)
        return known
    made: torch.Tensor = op(source, *rest)
    if key is not None and not recipes.records(source):
        *window, plan = rest if isinstance(rest[-1], str) else (*rest, "")  # torch leaves out defaults
        file(key, which, source, tuple(map(tuple, window)), plan, True)
    return made
