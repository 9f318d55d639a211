"""What is compared: several calls of torch, and the ways to compute the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

#: Computes the result from one set of tensors.
Way = Callable[..., torch.Tensor]

#: torch's own calls, which every chain has and is checked by, and ours.
TORCH, OURS = "torch", "tritonconv"


@dataclass(frozen=True)
class Input:
    """One tensor of a set: normal, of standard deviation `scale`."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    scale: float = 1.0

    def tensor(self, dtype: torch.dtype, device: str, generator: torch.Generator) -> torch.Tensor:
        made = torch.empty_strided(self.shape, self.strides, dtype=dtype, device=device)
        return made.normal_(generator=generator).mul_(self.scale)


@dataclass(frozen=True)
class Chain:
    """One layer, whose `inputs` are the arguments of every way, in order.

    `compulsory` counts the bytes that the forward must move at least; `predicted` is the cost model's seconds for ours, None
    where it has none. `ways` begins with `TORCH` and holds `OURS`.
    """

    suite: str
    layer: str
    dtype: torch.dtype
    inputs: tuple[Input, ...]
    compulsory: int
    predicted: float | None
    ways: Mapping[str, Way]

    @property
    def input_bytes(self) -> int:
        """Of one set."""
        return self.dtype.itemsize * sum(math.prod(i.shape) for i in self.inputs)

    def sets(self, count: int, device: str) -> list[tuple[torch.Tensor, ...]]:
        """`count` sets, always the same."""
        generator = torch.Generator(device).manual_seed(0)
        return [tuple(i.tensor(self.dtype, device, generator) for i in self.inputs) for _ in range(count)]
