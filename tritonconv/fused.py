"""The six convolutions with what usually follows them, in the same kernel:

    y = act((conv(input, weight) + bias) * scale[c] + shift[c] + residual)

Everything is computed in the accumulator's precision (float32, float64 for float64), and y is rounded once. scale and shift
[C_out] are a folded batch normalisation. residual has the shape of y and any strides, so an expanded one broadcasts. activation
is None or a name of `tritonconv.epilogue.ACTIVATIONS`, whose table says what the backward pass keeps. negative_slope is that of
leaky_relu. Every tensor has gradients, to any order.

The three that are not transposed take a `prologue` too, a normalisation and an activation of the input (`tritonconv.ahead`).
"""

from __future__ import annotations

import torch

from tritonconv import check
from tritonconv.ahead import op  # noqa: F401  registers the op
from tritonconv.functional import After, Modes, Padding, Plans, Size, _call
from tritonconv.normalize import Prologue


def conv1d_fused(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    padding_mode: Modes = "zeros",
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    negative_slope: float = 0.01,
    prologue: Prologue | None = None,
    plan: Plans = None,
) -> torch.Tensor:
    """`tritonconv.conv1d` with a prologue and an epilogue: scale, shift [K], residual as y; see this module's docstring."""
    window = (stride, padding, dilation, groups, padding_mode)
    after = After(activation, negative_slope, scale, shift, residual)
    return _call("conv1d_fused", 1, check.conv, input, weight, bias, window, plan, after, prologue)


def conv2d_fused(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    padding_mode: Modes = "zeros",
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    negative_slope: float = 0.01,
    prologue: Prologue | None = None,
    plan: Plans = None,
) -> torch.Tensor:
    """`tritonconv.conv2d` with a prologue and an epilogue: scale, shift [K], residual as y; see this module's docstring."""
    window = (stride, padding, dilation, groups, padding_mode)
    after = After(activation, negative_slope, scale, shift, residual)
    return _call("conv2d_fused", 2, check.conv, input, weight, bias, window, plan, after, prologue)


def conv3d_fused(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    padding_mode: Modes = "zeros",
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    negative_slope: float = 0.01,
    prologue: Prologue | None = None,
    plan: Plans = None,
) -> torch.Tensor:
    """`tritonconv.conv3d` with a prologue and an epilogue: scale, shift [K], residual as y; see this module's docstring."""
    window = (stride, padding, dilation, groups, padding_mode)
    after = After(activation, negative_slope, scale, shift, residual)
    return _call("conv3d_fused", 3, check.conv, input, weight, bias, window, plan, after, prologue)


def conv_transpose1d_fused(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    negative_slope: float = 0.01,
    plan: Plans = None,
) -> torch.Tensor:
    """`tritonconv.conv_transpose1d` with an epilogue: scale, shift [C], residual as the output; see this module's docstring."""
    window = (stride, padding, output_padding, groups, dilation)
    after = After(activation, negative_slope, scale, shift, residual)
    return _call("conv_transpose1d_fused", 1, check.conv_transpose, input, weight, bias, window, plan, after)


def conv_transpose2d_fused(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    negative_slope: float = 0.01,
    plan: Plans = None,
) -> torch.Tensor:
    """`tritonconv.conv_transpose2d` with an epilogue: scale, shift [C], residual as the output; see this module's docstring."""
    window = (stride, padding, output_padding, groups, dilation)
    after = After(activation, negative_slope, scale, shift, residual)
    return _call("conv_transpose2d_fused", 2, check.conv_transpose, input, weight, bias, window, plan, after)


def conv_transpose3d_fused(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    negative_slope: float = 0.01,
    plan: Plans = None,
) -> torch.Tensor:
    """`tritonconv.conv_transpose3d` with an epilogue: scale, shift [C], residual as the output; see this module's docstring."""
    window = (stride, padding, output_padding, groups, dilation)
    after = After(activation, negative_slope, scale, shift, residual)
    return _call("conv_transpose3d_fused", 3, check.conv_transpose, input, weight, bias, window, plan, after)
