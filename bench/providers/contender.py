"""One way to compute a piece of work."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from costmodel.tiling import Plan


class Unserved(Exception):
    """A provider that does not compute this work, and why."""


def unchanged(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return a, b


@dataclass(frozen=True)
class Contender:
    """`call` takes a and b as they lie in the work's layout and returns the result in it, copies between layouts included.

    `prepare` changes b once, before the timing: weights that a user would keep in another layout. `active` holds torch's
    settings while `call` is warmed up and captured.
    """

    provider: str
    call: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    setting: str = ""
    prepare: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] = unchanged
    active: Callable[[], AbstractContextManager[None]] = nullcontext
    plan: Plan | None = None
