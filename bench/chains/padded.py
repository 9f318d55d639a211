"""Blocks of networks that pad with pixels: `F.pad` and torch's convolution, beside `padding_mode=` and a prologue.

CycleGAN's residual block (Zhu et al. 2017, arXiv:1703.10593: reflect, instance norm), the residual block of a weather model
(Rasp and Thuerey 2021, arXiv:2008.08626: round the Earth in longitude, zeros at the poles, leaky ReLU before the batch norm),
the residual block of Stable Diffusion's U-Net for images that tile (Rombach et al. 2022, arXiv:2112.10752: group norm, SiLU),
and a large depthwise filter on a periodic map, as of ConvNeXt (Liu et al. 2022, arXiv:2201.03545).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

import tritonconv
from bench.chains.chain import OURS, TORCH, Chain, Input, Way
from bench.chains.predicted import predicted
from costmodel.device import Device
from tritonconv.layout import channels_last_strides, dense_strides

SUITE, SLOPE, GROUPS = "padding modes", 0.3, 32
#: This library's convolutions behind `F.pad`, which shows what a padding mode saves apart from whose kernels convolve.
PAD_FIRST = f"{OURS} after F.pad"
#: The padding modes of height and width.
Modes = tuple[str, str]
#: What normalises, pads and convolves: (x, weight, bias, modes, a norm before it, an epilogue by name) -> y.
Convolve = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Block:
    """A block of convolutions of `kernel` x `kernel` on an x of this shape, with as many filters as channels, "same" padding
    and these modes."""

    name: str
    x: tuple[int, int, int, int]
    modes: Modes
    body: Callable[..., torch.Tensor]
    kernel: int = 3
    depthwise: bool = False
    convolutions: int = 2

    def __str__(self) -> str:
        batch, channels, h, w = self.x
        return f"{self.name} {batch} x {channels} x {h}x{w}, k{self.kernel} {','.join(dict.fromkeys(self.modes))}"


def padded(x: torch.Tensor, p: int, modes: Modes) -> tuple[torch.Tensor, tuple[int, int]]:
    """(x, padded along the axes whose mode is not zeros, in one call where both have the same mode; the padding with zeros that
    is left)."""
    if modes[0] == modes[1]:
        x = F.pad(x, (p, p, p, p), modes[0])
    elif modes[1] != "zeros":
        x = F.pad(x, (p, p, 0, 0), modes[1])
    return x, (p if modes[0] == "zeros" else 0, p if modes[1] == "zeros" else 0)


class Norm(NamedTuple):
    """What stands before a convolution: a normalisation over groups of channels of an image, and an activation."""

    groups: int
    activation: str

    def by_torch(self, x: torch.Tensor) -> torch.Tensor:
        if self.groups == x.shape[1]:
            return F.relu(F.instance_norm(x))
        return F.silu(F.group_norm(x, self.groups))

    def ahead(self, x: torch.Tensor) -> tritonconv.Prologue:
        return tritonconv.group_norm_prologue(x, self.groups, activation=self.activation)


def by_torch(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, modes: Modes, norm: Norm | None = None, **after: Any
) -> torch.Tensor:
    x = x if norm is None else norm.by_torch(x)
    x, zeros = padded(x, w.shape[2] // 2, modes)
    y = F.conv2d(x, w, b, 1, zeros, 1, x.shape[1] // w.shape[1])
    y = y if after.get("residual") is None else y + after["residual"]
    return F.leaky_relu(y, after["negative_slope"]) if "activation" in after else y


def pad_first(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, modes: Modes, norm: Norm | None = None, **after: Any
) -> torch.Tensor:
    """This library's kernels behind `F.pad`. The norm before them works on the padding too, which holds pixels."""
    prologue = None if norm is None else norm.ahead(x)
    x, zeros = padded(x, w.shape[2] // 2, modes)
    return tritonconv.conv2d_fused(x, w, b, padding=zeros, groups=x.shape[1] // w.shape[1], prologue=prologue, **after)


def by_mode(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, modes: Modes, norm: Norm | None = None, **after: Any
) -> torch.Tensor:
    window: dict[str, Any] = {"padding": w.shape[2] // 2, "groups": x.shape[1] // w.shape[1], "padding_mode": modes}
    prologue = None if norm is None else norm.ahead(x)
    return tritonconv.conv2d_fused(x, w, b, **window, prologue=prologue, **after)


def cyclegan(convolve: Convolve, block: Block, x: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
    w1, b1, w2, b2 = given
    y = convolve(x, w1, b1, block.modes)
    return x + F.instance_norm(convolve(y, w2, b2, block.modes, Norm(x.shape[1], "relu")))


def weather(convolve: Convolve, block: Block, x: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
    """The residual block of a weather model. Its batch norms follow the activations, and are a scale and a shift per
    channel."""
    y, per_channel = x, (-1, 1, 1)
    for i in (0, 4):
        w, b, scale, shift = given[i : i + 4]
        y = convolve(y, w, b, block.modes, activation="leaky_relu", negative_slope=SLOPE) * scale.view(
            per_channel
        ) + shift.view(per_channel)
    return x + y


def unet(convolve: Convolve, block: Block, x: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
    w1, b1, w2, b2 = given
    y = convolve(x, w1, b1, block.modes, Norm(GROUPS, "silu"))
    return convolve(y, w2, b2, block.modes, Norm(GROUPS, "silu"), residual=x)


def alone(convolve: Convolve, block: Block, x: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
    return convolve(x, *given, block.modes)


REFLECT, AROUND, EARTH = ("reflect", "reflect"), ("circular", "circular"), ("zeros", "circular")
BLOCKS = (
    Block("CycleGAN", (1, 256, 64, 64), REFLECT, cyclegan),
    Block("CycleGAN", (16, 256, 64, 64), REFLECT, cyclegan),
    Block("weather", (64, 128, 32, 64), EARTH, weather),
    Block("U-Net", (2, 320, 64, 64), AROUND, unet),
    Block("U-Net", (8, 320, 64, 64), AROUND, unet),
    Block("ConvNeXt", (32, 96, 56, 56), AROUND, alone, 7, True, 1),
)


def inputs(block: Block) -> tuple[Input, ...]:
    """x, then for each convolution the filter, the bias, and for the weather model scale and shift."""
    c, k = block.x[1], block.kernel
    shape = (c, 1 if block.depthwise else c, k, k)
    values = Input((c,), dense_strides((c,), (0,)))
    small = math.prod(shape[1:]) ** -0.5
    conv = (Input(shape, channels_last_strides(shape), small), *[values] * (3 if block.body is weather else 1))
    return Input(block.x, channels_last_strides(block.x)), *conv * block.convolutions


def chain_of(block: Block, dtype: torch.dtype, device: Device) -> Chain:
    """The chain of a block whose convolutions have padding modes, with channels-last pixels."""
    ways: dict[str, Way] = {
        TORCH: partial(block.body, by_torch, block),
        OURS: partial(block.body, by_mode, block),
        PAD_FIRST: partial(block.body, pad_first, block),
    }
    tensors = inputs(block)
    moved = dtype.itemsize * (sum(math.prod(i.shape) for i in tensors) + math.prod(block.x))
    return Chain(SUITE, str(block), dtype, tensors, moved, ways, predicted(ways, tensors, dtype, device))


def chains(dtype: torch.dtype, device: Device) -> Iterator[Chain]:
    for block in BLOCKS:
        yield chain_of(block, dtype, device)
