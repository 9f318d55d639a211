"""A depthwise convolution and the pointwise one behind it, as one function: one kernel where that is predicted to be faster.

Kernel: `tritonconv.kernels.separable`; the choice: `costmodel.separable`.
"""

from __future__ import annotations

import torch

from costmodel.problem import Pass
from costmodel.separable import Pair
from tritonconv import check, plans
from tritonconv.functional import Size
from tritonconv.invariant import by_image, is_on
from tritonconv.op import flat
from tritonconv.plans import Explanation, Plans
from tritonconv.separable import op  # which registers the op
from tritonconv.separable.launch import APART, FUSED

_NAME = "depthwise_separable_conv2d"
#: Passes that no plan of the function is for.
_IDLE = dict.fromkeys((Pass.DGRAD, Pass.WGRAD), "gradients take the plans of conv2d")


def checked(
    input: torch.Tensor,
    depthwise_weight: torch.Tensor,
    pointwise_weight: torch.Tensor,
    depthwise_bias: torch.Tensor | None,
    pointwise_bias: torch.Tensor | None,
    stride: Size,
    padding: Size | str,
    dilation: Size,
    activation: str | None,
    pointwise_activation: str | None,
    negative_slope: float,
    residual: torch.Tensor | None,
    plan: Plans,
) -> Pair:
    """The two problems of a call. TypeError, ValueError and RuntimeError, each naming the argument."""
    others = {"pointwise_weight": pointwise_weight, "pointwise_bias": pointwise_bias, "residual": residual}
    if not isinstance(pointwise_weight, torch.Tensor):
        raise TypeError(f"{_NAME}(): argument 'pointwise_weight' must be a Tensor, got {type(pointwise_weight).__name__}")
    check.tensors(_NAME, 2, input, depthwise_weight, depthwise_bias, **others)
    batched = input.dim() == 4
    x = input if batched else input.unsqueeze(0)
    channels = x.shape[1]
    if depthwise_weight.shape[0] != channels or depthwise_weight.shape[1] != 1:
        raise RuntimeError(
            f"{_NAME}(): expected depthwise_weight of shape [{channels}, 1, R, S], one filter a channel of input "
            f"{list(input.shape)}, got depthwise_weight {list(depthwise_weight.shape)}"
        )
    if pointwise_weight.dim() != 4 or tuple(pointwise_weight.shape[1:]) != (channels, 1, 1) or not pointwise_weight.shape[0]:
        raise RuntimeError(
            f"{_NAME}(): expected pointwise_weight of shape [K, {channels}, 1, 1], K at least 1, got pointwise_weight "
            f"{list(pointwise_weight.shape)}"
        )
    filters = pointwise_weight.shape[0]
    if pointwise_bias is not None and tuple(pointwise_bias.shape) != (filters,):
        raise RuntimeError(
            f"{_NAME}(): expected pointwise_bias of shape [{filters}], one value a filter, got pointwise_bias "
            f"{list(pointwise_bias.shape)}"
        )
    problem = check.conv(_NAME, 2, x, depthwise_weight, depthwise_bias, stride, padding, dilation, channels)
    pair = Pair(problem, filters)
    shape = pair.pointwise.output_shape
    check.epilogue(_NAME, 2, problem.output_shape, activation, negative_slope, None, None, None)
    check.epilogue(_NAME, 2, shape if batched else shape[1:], pointwise_activation, negative_slope, None, None, residual)
    plan_text(plan)
    return pair


def plan_text(plan: Plans) -> str:
    """`plan` as the op takes it: "fused" and "apart" are words of their own."""
    if isinstance(plan, Explanation) and "depthwise" in plan.plans:
        return APART
    if plan in (FUSED, APART):
        return str(plan)
    return plans.text(plan, _NAME, Pass.FPROP, _IDLE, "separable") or ("" if plan is None else FUSED)


def depthwise_separable_conv2d(
    input: torch.Tensor,
    depthwise_weight: torch.Tensor,
    pointwise_weight: torch.Tensor,
    depthwise_bias: torch.Tensor | None = None,
    pointwise_bias: torch.Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    *,
    activation: str | None = None,
    pointwise_activation: str | None = None,
    negative_slope: float = 0.01,
    residual: torch.Tensor | None = None,
    plan: Plans = None,
) -> torch.Tensor:
    """act2(conv(act1(conv(input, depthwise_weight) + depthwise_bias), pointwise_weight) + pointwise_bias + residual)

    input [N, C, H, W] or [C, H, W], depthwise_weight [C, 1, R, S], pointwise_weight [K, C, 1, 1], biases [C] and [K],
    residual as the result [N, K, P, Q], of any strides. stride, padding and dilation are the depthwise convolution's, as
    `torch.nn.functional.conv2d` takes them. activation stands between the two convolutions, pointwise_activation behind the
    second: None or a name of `tritonconv.epilogue.ACTIVATIONS`; negative_slope is leaky_relu's.

    One kernel, which never writes what lies between, or two, whichever has the least predicted time; the result is the same
    but for the order of the second convolution's sums, because what lies between is rounded to input's dtype in both. plan
    forces "fused", "apart", or a `Plan` of the family "separable", its words or what `explain` answered. Gradients of every
    tensor, to any order; the backward pass makes what lies between again.

    Raises TypeError, ValueError and RuntimeError as `tritonconv.conv2d_fused` does.
    """
    given = (input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias)
    pair = checked(*given, stride, padding, dilation, activation, pointwise_activation, negative_slope, residual, plan)
    x, *rest = given
    if input.dim() == 3:
        x, residual = x.unsqueeze(0), None if residual is None else residual.unsqueeze(0)
    problem = pair.depthwise
    words = (activation or "", pointwise_activation or "", float(negative_slope), plan_text(plan))

    def made(images: torch.Tensor, added: torch.Tensor | None) -> torch.Tensor:
        place = (problem.stride, flat(problem.padding), problem.dilation)
        result: torch.Tensor = op._OPS.separable(images, *rest, added, *place, *words)
        return result

    y = by_image(made, (x, residual)) if is_on() and len(x) > 1 else made(x, residual)
    return y if input.dim() == 4 else y.squeeze(0)
