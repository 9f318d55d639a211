"""The six convolutions with what usually follows them, in the same kernel:

    y = act((conv(input, weight) + bias) * scale[c] + shift[c] + residual)

All of it happens in the accumulator's precision (float32, float64 for float64), and y is rounded once. scale and shift [C_out]
are a folded batch normalisation; residual has the shape of y and any strides, so an expanded one broadcasts. activation is
None or a name of `tritonconv.epilogue.ACTIVATIONS`, whose table says what the backward pass keeps; negative_slope is
leaky_relu's. Every tensor has gradients, to any order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from costmodel.problem import ConvProblem
from tritonconv import check
from tritonconv.autograd import _OPS
from tritonconv.functional import Plans, Size, _plan_text
from tritonconv.op import flat


def _fused(
    function: str,
    rank: int,
    checked: Callable[..., ConvProblem],
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    window: tuple[Any, ...],
    activation: str | None,
    residual: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    negative_slope: float,
    plan: Plans,
) -> torch.Tensor:
    check.tensors(function, rank, input, weight, bias, residual=residual, scale=scale, shift=shift)
    batched = input.dim() == rank + 2
    a = input if batched else input.unsqueeze(0)
    problem = checked(function, rank, a, weight, bias, *window)
    forward = checked is check.conv
    output = problem.output_shape if forward else problem.input_shape
    check.epilogue(function, rank, output if batched else output[1:], activation, negative_slope, scale, shift, residual)
    r = residual if residual is None or batched else residual.unsqueeze(0)
    place = (problem.stride, flat(problem.padding), problem.dilation, problem.groups)
    after = (scale, shift, r, activation or "", float(negative_slope), False, _plan_text(plan))
    if forward:
        y, _ = _OPS.fprop_fused(a, weight, bias, *place, *after)
    else:
        y, _ = _OPS.dgrad_fused(a, weight, bias, problem.input_size, *place, *after)
    return y if batched else y.squeeze(0)


def conv1d_fused(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    negative_slope: float = 0.01,
    plan: Plans = None,
) -> torch.Tensor:
    """`tritonconv.conv1d` with an epilogue: scale, shift [K], residual as the output; see this module's docstring."""
    window = (stride, padding, dilation, groups)
    after = (activation, residual, scale, shift, negative_slope, plan)
    return _fused("conv1d_fused", 1, check.conv, input, weight, bias, window, *after)


def conv2d_fused(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    negative_slope: float = 0.01,
    plan: Plans = None,
) -> torch.Tensor:
    """`tritonconv.conv2d` with an epilogue: scale, shift [K], residual as the output; see this module's docstring."""
    window = (stride, padding, dilation, groups)
    after = (activation, residual, scale, shift, negative_slope, plan)
    return _fused("conv2d_fused", 2, check.conv, input, weight, bias, window, *after)


def conv3d_fused(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    negative_slope: float = 0.01,
    plan: Plans = None,
) -> torch.Tensor:
    """`tritonconv.conv3d` with an epilogue: scale, shift [K], residual as the output; see this module's docstring."""
    window = (stride, padding, dilation, groups)
    after = (activation, residual, scale, shift, negative_slope, plan)
    return _fused("conv3d_fused", 3, check.conv, input, weight, bias, window, *after)


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
    after = (activation, residual, scale, shift, negative_slope, plan)
    return _fused("conv_transpose1d_fused", 1, check.conv_transpose, input, weight, bias, window, *after)


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
    after = (activation, residual, scale, shift, negative_slope, plan)
    return _fused("conv_transpose2d_fused", 2, check.conv_transpose, input, weight, bias, window, *after)


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
    after = (activation, residual, scale, shift, negative_slope, plan)
    return _fused("conv_transpose3d_fused", 3, check.conv_transpose, input, weight, bias, window, *after)
