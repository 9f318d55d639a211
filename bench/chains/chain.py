"""What is compared: several calls of torch, and other ways to compute the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

#: Computes the result from one set of tensors.
Way = Callable[..., torch.Tensor]

#: torch's own calls, which every chain has and is checked against, and ours. Other settings append a word to the name.
TORCH, OURS = "torch", "tritonconv"


@dataclass(frozen=True)
class Input:
    """One tensor of a set, drawn from a normal distribution of standard deviation `scale`."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    scale: float = 1.0

    def tensor(self, dtype: torch.dtype, device: str, generator: torch.Generator) -> torch.Tensor:
        tensor = torch.empty_strided(self.shape, self.strides, dtype=dtype, device=device)
        return tensor.normal_(generator=generator).mul_(self.scale)


def whole(y: torch.Tensor) -> torch.Tensor:
    return y


@dataclass(frozen=True)
class Chain:
    """One layer, whose `inputs` are the arguments of every way, in order.

    `compulsory`: bytes that the forward pass moves at least. `predicted`: the cost model's seconds for the ways that it knows.
    `ways` begins with `TORCH` and contains `OURS`. `seen` takes the part of a result that is checked, and `exact` computes that
    part from float64 tensors, because a whole result may be too large in float64.
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
        """Bytes of one set of inputs."""
        return self.dtype.itemsize * sum(math.prod(i.shape) for i in self.inputs)

    def sets(self, count: int, device: str) -> list[tuple[torch.Tensor, ...]]:
        """`count` sets of inputs, the same in every run."""
        generator = torch.Generator(device).manual_seed(0)
        return [tuple(i.tensor(self.dtype, device, generator) for i in self.inputs) for _ in range(count)]
