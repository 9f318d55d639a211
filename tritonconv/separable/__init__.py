"""A depthwise convolution followed by a pointwise one, as one function: one kernel where that is predicted to be faster.

Kernel: `tritonconv.kernels.separable`; the choice: `costmodel.separable`.
"""

from __future__ import annotations

import torch

from costmodel.problem import Pass
from costmodel.separable import Pair
from tritonconv import check, plans, recipes
from tritonconv.functional import Size
from tritonconv.invariant import by_image, is_on
from tritonconv.op import flat
from tritonconv.plans import Explanation, Plans
from tritonconv.separable import again, op  # the import registers the op
from tritonconv.separable.launch import APART, FUSED

_NAME = "depthwise_separable_conv2d"
#: Passes for which the function takes no plan.
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
    """The two problems of a call. Raises TypeError, ValueError and RuntimeError, each naming the argument."""
    others = {"pointwise_weight": pointwise_weight, "pointwise_bias": pointwise_bias, "residual": residual}
    if not isinstance(pointwise_weight, torch.Tensor):
        raise TypeError(f"{_NAME}(): argument 'pointwise_weight' must be a Tensor, got {type(pointwise_weight).__name__}")
    check.tensors(_NAME, 2, input, depthwise_weight, depthwise_bias, **others)
    batched = input.dim() == 4
    x = input if batched else input.unsqueeze(0)
    channels = x.shape[1]
    if depthwise_weight.shape[0] != channels or depthwise_weight.shape[1] != 1:
        raise RuntimeError(
            f"{_NAME}(): expected depthwise_weight of shape [{channels}, 1, R, S], one filter per channel of input "
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
            f"{_NAME}(): expected pointwise_bias of shape [{filters}], one value per filter, got pointwise_bias "
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

    input [N, C, H, W] or [C, H, W], depthwise_weight [C, 1, R, S], pointwise_weight [K, C, 1, 1], biases [C] and [K]; residual
    has the shape of the result [N, K, P, Q] and any strides. stride, padding and dilation are those of the depthwise
    convolution, as in `torch.nn.functional.conv2d`. activation follows the depthwise convolution and pointwise_activation the
    pointwise one: None or a name of `tritonconv.epilogue.ACTIVATIONS`. negative_slope is that of leaky_relu.

    Runs one fused or two separate kernels, whichever is predicted to be faster. They differ only in the order of the pointwise
    sum, because both round the depthwise result to input's dtype. plan forces "fused", "apart", or a `Plan` of "separable"
    (also as words, or what `explain` returned). Every tensor has gradients, to any order; the backward pass computes the
    depthwise result again.

    Raises TypeError, ValueError and RuntimeError as `tritonconv.conv2d_fused` does.
    """
    given = (input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias)
    how = (_NAME, stride, padding, dilation, activation, pointwise_activation, negative_slope)
    key = recipes.key(how, plan, *given, residual)
    if (recipe := recipes.known(key)) is not None:
        try:
            if input.dim() == 4:
                return again.repeated(recipe, *given, residual)
            over = None if residual is None else residual.unsqueeze(0)
            return again.repeated(recipe, input.unsqueeze(0), *given[1:], over).squeeze(0)
        except torch.OutOfMemoryError:  # the ops of the two convolutions know other plans
            pass
    pair = checked(*given, stride, padding, dilation, activation, pointwise_activation, negative_slope, residual, plan)
    x, *rest = given
    if input.dim() == 3:
        x, residual = x.unsqueeze(0), None if residual is None else residual.unsqueeze(0)
    problem = pair.depthwise
    words = (activation or "", pointwise_activation or "", float(negative_slope), plan_text(plan))

    window = (problem.stride, tuple(flat(problem.padding)), problem.dilation, *words)

    def convolved(images: torch.Tensor, added: torch.Tensor | None) -> torch.Tensor:
        result: torch.Tensor = op._OPS.separable(images, *rest, added, *window)
        return result

    if is_on() and len(x) > 1:
        y = by_image(convolved, (x, residual))
    else:
        y = convolved(x, residual)
        if key is not None:
            again.file(key, x, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, residual, window)
    return y if input.dim() == 4 else y.squeeze(0)
