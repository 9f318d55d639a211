"""The module of the deformable convolution, as torchvision's."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from tritonconv.check import ints
from tritonconv.deform import deform_conv2d
from tritonconv.layers import traced

Pair = int | tuple[int, int]


class DeformConv2d(nn.Module):
    """`tritonconv.deform_conv2d` with its parameters: `torchvision.ops.DeformConv2d`'s constructor, initialisation, repr and
    state_dict, and besides torch's `device` and `dtype`.

    input [N, C, H, W], offset [N, 2 D R S, P, Q] and mask [N, D R S, P, Q] -> [N, K, P, Q]; another layer makes offset and
    mask. Parameters weight [K, C / groups, R, S] and bias [K]. Raises ValueError where groups do not divide the channels.

    >>> import torch, tritonconv
    >>> layer = tritonconv.nn.DeformConv2d(3, 8, 3, padding=1)
    >>> layer(torch.ones(1, 3, 5, 5), torch.zeros(1, 18, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ValueError(f"DeformConv2d: {name} must be divisible by groups, got {name}={channels}, groups={groups}")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = ints("DeformConv2d", "kernel_size", kernel_size, 2, 1)
        self.stride = ints("DeformConv2d", "stride", stride, 2, 1)
        self.padding = ints("DeformConv2d", "padding", padding, 2, 0)
        self.dilation = ints("DeformConv2d", "dilation", dilation, 2, 1)
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Values as those of torch's convolutions."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if isinstance(input, torch.fx.Proxy):
            result: torch.Tensor = traced(self, input, offset, mask)
            return result
        return deform_conv2d(input, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        for name, usual in (("padding", (0, 0)), ("dilation", (1, 1)), ("groups", 1)):
            if getattr(self, name) != usual:
                text += f", {name}={getattr(self, name)}"
        return text + ", bias=False" * (self.bias is None)
