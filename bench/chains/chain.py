"""What is compared: several calls of torch, and the ways to compute the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

#: Computes the result from one set of tensors.
Way = Callable[..., torch.Tensor]

#: torch's own calls, which every chain has and is checked by, and ours. Another setting's name has another word behind.
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


def whole(y: torch.Tensor) -> torch.Tensor:
    return y


@dataclass(frozen=True)
class Chain:
    """One layer, whose `inputs` are the arguments of every way, in order.

    `compulsory` counts the bytes that the forward must move at least; `predicted` holds the cost model's seconds of the ways
    that it knows. `ways` begins with `TORCH` and holds `OURS`. `exact` computes from float64 tensors what `seen` takes of a
    result to check it: a whole result may be too large in float64.
    """

    suite: str
    layer: str
    dtype: torch.dtype
    inputs: tuple[Input, ...]
    compulsory: int
    ways: Mapping[str, Way]
    predicted: Mapping[str, float] = field(default_factory=dict)
    exact: Way | None = None  # `TORCH` unless given
    seen: Callable[[torch.Tensor], torch.Tensor] = whole

    @property
    def input_bytes(self) -> int:
        """Of one set."""
        return self.dtype.itemsize * sum(math.prod(i.shape) for i in self.inputs)

    def sets(self, count: int, device: str) -> list[tuple[torch.Tensor, ...]]:
        """`count` sets, always the same."""
        generator = torch.Generator(device).manual_seed(0)
        return [tuple(i.tensor(self.dtype, device, generator) for i in self.inputs) for _ in range(count)]
