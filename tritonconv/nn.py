"""Modules built on the fused functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tritonconv.fused import conv2d_fused

Pair = int | tuple[int, int]


class DepthwiseSeparableConv2d(nn.Module):
    """A depthwise k x k convolution, then a pointwise 1x1 one, each with the same activation behind it.

    input [N, C, H, W] or [C, H, W] -> [N, K, P, Q] or [K, P, Q], P and Q as `torch.nn.Conv2d` gives them for kernel_size,
    stride, padding and dilation. Parameters, named and initialised as two `torch.nn.Conv2d` in a row: depthwise.weight
    [C, 1, R, S], depthwise.bias [C], pointwise.weight [K, C, 1, 1], pointwise.bias [K].
    activation and negative_slope: as `tritonconv.conv2d_fused`.

    Source: Chollet 2017, "Xception: Deep Learning with Depthwise Separable Convolutions", arXiv:1610.02357. MobileNets
    (arXiv:1704.04861) put an activation behind both convolutions, as here.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        bias: bool = True,
        activation: str | None = None,
        negative_slope: float = 0.01,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        place: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        self.depthwise = nn.Conv2d(in_channels, in_channels, kernel_size, stride, padding, dilation, in_channels, **place)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, **place)
        self.activation = activation
        self.negative_slope = negative_slope

    def _convolve(self, of: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        return conv2d_fused(
            x,
            of.weight,
            of.bias,
            of.stride,
            of.padding,
            of.dilation,
            of.groups,
            activation=self.activation,
            negative_slope=self.negative_slope,
        )

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self._convolve(self.pointwise, self._convolve(self.depthwise, input))

    def extra_repr(self) -> str:
        return "" if self.activation is None else f"activation={self.activation!r}"
