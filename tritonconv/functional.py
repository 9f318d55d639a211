"""The six convolutions, called exactly as those of `torch.nn.functional`.

`plan` forces kernels: a `costmodel.plan.Plan`, or several, one per pass; `tritonconv.explain` prints what was chosen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from costmodel.tiling import Plan
from tritonconv import check
from tritonconv.autograd import _OPS
from tritonconv.op import flat

Size = int | tuple[int, ...]
Plans = Plan | Iterable[Plan] | None


def _plan_text(plan: Plans) -> str:
    if plan is None:
        return ""
    return ";".join(map(str, [plan] if isinstance(plan, Plan) else plan))


def _conv(
    rank: int,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    plan: Plans,
) -> torch.Tensor:
    function = f"conv{rank}d"
    check.tensors(function, rank, input, weight, bias)
    batched = input.dim() == rank + 2
    x = input if batched else input.unsqueeze(0)
    problem = check.conv(function, rank, x, weight, bias, stride, padding, dilation, groups)
    y = _OPS.fprop(x, weight, bias, problem.stride, flat(problem.padding), problem.dilation, problem.groups, _plan_text(plan))
    return y if batched else y.squeeze(0)


def _conv_transpose(
    rank: int,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
    plan: Plans,
) -> torch.Tensor:
    function = f"conv_transpose{rank}d"
    check.tensors(function, rank, input, weight, bias)
    batched = input.dim() == rank + 2
    dy = input if batched else input.unsqueeze(0)
    problem = check.conv_transpose(function, rank, dy, weight, bias, stride, padding, output_padding, groups, dilation)
    y = _OPS.dgrad(
        dy,
        weight,
        bias,
        problem.input_size,
        problem.stride,
        flat(problem.padding),
        problem.dilation,
        problem.groups,
        _plan_text(plan),
    )
    return y if batched else y.squeeze(0)


def conv1d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    plan: Plans = None,
) -> torch.Tensor:
    """input [N, C, L] or [C, L], weight [K, C / groups, S], bias [K]; see `torch.nn.functional.conv1d`."""
    return _conv(1, input, weight, bias, stride, padding, dilation, groups, plan)


def conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    plan: Plans = None,
) -> torch.Tensor:
    """input [N, C, H, W] or [C, H, W], weight [K, C / groups, R, S], bias [K]; see `torch.nn.functional.conv2d`."""
    return _conv(2, input, weight, bias, stride, padding, dilation, groups, plan)


def conv3d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    plan: Plans = None,
) -> torch.Tensor:
    """input [N, C, D, H, W] or [C, D, H, W], weight [K, C / groups, T, R, S], bias [K]; see `torch.nn.functional.conv3d`."""
    return _conv(3, input, weight, bias, stride, padding, dilation, groups, plan)


def conv_transpose1d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    plan: Plans = None,
) -> torch.Tensor:
    """input [N, K, L] or [K, L], weight [K, C / groups, S], bias [C]; see `torch.nn.functional.conv_transpose1d`."""
    return _conv_transpose(1, input, weight, bias, stride, padding, output_padding, groups, dilation, plan)


def conv_transpose2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    plan: Plans = None,
) -> torch.Tensor:
    """input [N, K, H, W] or [K, H, W], weight [K, C / groups, R, S], bias [C]; see `torch.nn.functional.conv_transpose2d`."""
    return _conv_transpose(2, input, weight, bias, stride, padding, output_padding, groups, dilation, plan)


def conv_transpose3d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    plan: Plans = None,
) -> torch.Tensor:
    """input [N, K, D, H, W] or unbatched, weight [K, C / groups, T, R, S], bias [C]: torch.nn.functional.conv_transpose3d."""
    return _conv_transpose(3, input, weight, bias, stride, padding, output_padding, groups, dilation, plan)
