"""Deformable convolution: every tap of every output pixel samples the input where an offset of its own says.

It stands for `torchvision.ops.deform_conv2d`. Kernels: `tritonconv.kernels.deform` and `deform_backward`; the choice of a tile:
`costmodel.deform`.
"""

from __future__ import annotations

import torch

from tritonconv import plans, recipes
from tritonconv.deform import (
    batching,  # noqa: F401  registers the rules
    check,
)
from tritonconv.deform.again import file
from tritonconv.deform.op import repeated
from tritonconv.functional import Size
from tritonconv.invariant import by_image, is_on
from tritonconv.plans import Plans
from tritonconv.subclasses import know_subclass

_OPS = torch.ops.tritonconv


def deform_conv2d(
    input: torch.Tensor,
    offset: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    mask: torch.Tensor | None = None,
    *,
    plan: Plans = None,
) -> torch.Tensor:
    """The deformable convolution of version 2, and without mask that of version 1, as `torchvision.ops.deform_conv2d`.

    input [N, C, H, W], offset [N, 2 D R S, P, Q], weight [K, C / G, R, S], bias [K] and mask [N, D R S, P, Q] give the result
    [N, K, P, Q]. All may have any strides. The channels of the input are divided among D offset groups, and channels and
    filters among G weight groups; D and G follow from the shapes. Channels 2 i and 2 i + 1 of offset hold the distance in
    pixels by which tap i (of offset group i // (R S)) moves along height and width. mask multiplies the sample of each tap.

    A position between pixels is interpolated bilinearly from the four pixels around it. Pixels outside of the image are zero. A
    position is outside if it is at -1 or less, or at the image's size or more, along either axis; its sample is zero. If one of
    a tap's offsets is NaN, its samples are NaN, unless the other coordinate is outside, and they add nothing to the gradient of
    input. At a whole number the gradient of offset is the one towards larger offsets.

    dtypes: float16, bfloat16, float32 (multiplied as `torch.backends.cudnn.conv.fp32_precision` says) and float64. Positions
    are computed in float32 (float64 for float64), with the integer part of the grid kept apart from the offset, so that they
    stay exact in large images. offset and mask may be float32 whatever the dtype of input, and autocast leaves them alone. A
    sample is rounded to input's dtype before the product. Sums are float32 (float64) and are rounded once. Samples are never
    written to memory.

    All five tensors have gradients, with the same bits on every run. They, and tangents (`jvp`), have derivatives of any order,
    which are sums of up to seven calls each. The gradient of input needs workspace (`docs/design/deform.md`).

    Raises torchvision's exception types, naming the argument, before anything is launched: TypeError for what is no tensor, int
    or plan, ValueError for an input that does not have four axes, and RuntimeError for everything else. A kernel larger than
    the padded input is always refused, also where torchvision's rounding lets one through.

    Source: Zhu et al. 2018, "Deformable ConvNets v2" (arXiv:1811.11168).

    >>> import torch, tritonconv
    >>> x, w = torch.arange(16.0).view(1, 1, 4, 4), torch.ones(1, 1, 1, 1)
    >>> half_a_pixel_to_the_right = torch.tensor([0.0, 0.5]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    >>> tritonconv.deform_conv2d(x, half_a_pixel_to_the_right, w)[0, 0, 0]
    tensor([0.5000, 1.5000, 2.5000, 1.5000])
    """
    tensors = input, offset, weight, bias, mask
    key = recipes.key(("deform_conv2d", stride, padding, dilation), plan, *tensors)
    if (recipe := recipes.known(key)) is not None:
        return repeated(recipe, *tensors)
    window = check.call(input, offset, weight, bias, stride, padding, dilation, mask)
    words = plans.text(plan, "deform_conv2d", own="deform")
    know_subclass(input)

    def made(images: torch.Tensor, moved: torch.Tensor, factors: torch.Tensor | None) -> torch.Tensor:
        result: torch.Tensor = _OPS.deform(images, moved, weight, bias, factors, *window, words)
        return result

    batched = (input, offset, mask)
    if is_on() and len(input) > 1:
        y: torch.Tensor = by_image(made, batched)
        return y
    y = made(*batched)
    file(key, y, (*window, words), *tensors)
    return y
