"""One way to compute a piece of work."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from costmodel.tiling import Plan


class Unserved(Exception):
    """Says that a provider does not compute a piece of work, and why."""


def unchanged(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return a, b


@dataclass(frozen=True)
class Contender:
    """A way to compute a piece of work. `call` takes a and b in the work's layout and returns the result in that layout; copies
    to other layouts are part of the call.

    `prepare` changes b once, before the timing, for weights that a user would keep in another layout. `active` holds torch's
    settings while `call` is warmed up and captured.
    """

    provider: str
    call: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    setting: str = ""
    prepare: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] = unchanged
    active: Callable[[], AbstractContextManager[None]] = nullcontext
    plan: Plan | None = None
