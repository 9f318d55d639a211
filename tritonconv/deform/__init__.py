"""Deformable convolution: every tap of every output pixel samples the input where an offset of its own says.

It stands for `torchvision.ops.deform_conv2d`. Kernels: `tritonconv.kernels.deform` and `deform_backward`; the choice of a tile:
`costmodel.deform`.
"""

from __future__ import annotations

import torch

from tritonconv import plans
from tritonconv.deform import (
    check,
    op,  # noqa: F401  registers the op
)
from tritonconv.functional import Size
from tritonconv.invariant import by_image, is_on
from tritonconv.plans import Plans

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
    """The deformable convolution of version 2, or without mask of version 1, as `torchvision.ops.deform_conv2d`.

    input [N, C, H, W], offset [N, 2 D R S, P, Q], weight [K, C / G, R, S], bias [K], mask [N, D R S, P, Q], result
    [N, K, P, Q], all of any strides. D offset groups share out the channels of the input, and G weight groups its channels and
    the filters; both follow from the shapes. Channels 2 i and 2 i + 1 of offset are what tap i (of group i // (R S)) is moved
    by along height and width, in pixels; mask multiplies what it samples.

    A place between pixels is interpolated bilinearly from the four around it. Pixels outside of the image are zero, and so is
    a place at -1 or less, or at the image's size or more, on either axis. A NaN among a tap's offsets makes its samples NaN,
    unless the other coordinate is outside; it adds nothing to input's gradient. Of an offset that is a whole number the
    gradient is that towards larger ones.

    float16, bfloat16, float32 (as `torch.backends.cudnn.conv.fp32_precision` says), float64; places are found in float32
    (float64), the integers of the grid apart from the offset, so that they lose nothing in large images. offset and mask may
    be float32 whatever input is, and autocast leaves them as they are. Sums are those of float32 (float64) and are rounded
    once; a sample is rounded to input's dtype before the product. Samples are never written to memory.

    Gradients of all five tensors, the same bits on every run; they have none of their own. Input's takes workspace
    (`docs/design/deform.md`).

    Raises torchvision's types, naming the argument, before anything is launched: TypeError for what is no tensor, int or plan,
    ValueError for an input that is not of four axes, RuntimeError for all else. A kernel larger than the padded input is
    refused always, also where torchvision's rounding lets one through. The meaning is that of Zhu et al. 2018, "Deformable
    ConvNets v2" (arXiv:1811.11168).

    >>> import torch, tritonconv
    >>> x, w = torch.arange(16.0).view(1, 1, 4, 4), torch.ones(1, 1, 1, 1)
    >>> half_a_pixel_to_the_right = torch.tensor([0.0, 0.5]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    >>> tritonconv.deform_conv2d(x, half_a_pixel_to_the_right, w)[0, 0, 0]
    tensor([0.5000, 1.5000, 2.5000, 1.5000])
    """
    window = check.call(input, offset, weight, bias, stride, padding, dilation, mask)
    words = plans.text(plan, "deform_conv2d", own="deform")

    def made(images: torch.Tensor, moved: torch.Tensor, factors: torch.Tensor | None) -> torch.Tensor:
        result: torch.Tensor = _OPS.deform(images, moved, weight, bias, factors, *window, words)
        return result

    tensors = (input, offset, mask)
    y: torch.Tensor = by_image(made, tensors) if is_on() and len(input) > 1 else made(*tensors)
    return y
