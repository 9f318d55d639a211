"""Windows as columns and back: `unfold` and `fold`, of any rank from 1 to 3.

They stand for `torch.nn.functional.unfold` and `fold`. Kernels: `tritonconv.kernels.unfold`; the choice of a tile:
`costmodel.unfold`. No function of this package uses them: convolutions read the windows where they are.
"""

from __future__ import annotations

import torch

from costmodel.problem import Pass
from tritonconv import plans, recipes
from tritonconv.columns import check
from tritonconv.columns.again import file
from tritonconv.columns.op import repeated
from tritonconv.functional import Size
from tritonconv.plans import Plans
from tritonconv.subclasses import know_subclass

_OPS = torch.ops.tritonconv


def unfold(
    input: torch.Tensor,
    kernel_size: Size,
    dilation: Size = 1,
    padding: Size = 0,
    stride: Size = 1,
    *,
    plan: Plans = None,
) -> torch.Tensor:
    """The windows of an image as columns (im2col), as `torch.nn.functional.unfold`, of any rank from 1 to 3.

    input [N, C, *size] or [C, *size], of any strides; result [N, C * prod(kernel_size), L] or without N, contiguous, with L
    windows in the order of their places. The rank is the length of kernel_size; an int is a square of rank 2, as torch has it,
    so a window along one axis is `(3,)` and one of rank 3 is `(3, 3, 3)`. dilation, padding (zeros, on both sides) and stride
    are ints or tuples of that length.

    Dtypes: float16, bfloat16, float32 or float64; elements are copied, so no bit changes. Autocast leaves the dtype alone, as
    torch does. Gradients to any order, backwards and forwards: that of `unfold` is `fold`. On CUDA one Triton kernel runs; CPU
    tensors take torch's operators, or the kernel where TRITON_INTERPRET=1 is set. plan: None, or what forces a tile, as
    `tritonconv.explain` prints it.

    Raises torch's exception types, naming the argument, before anything is launched: TypeError for what is no tensor, int or
    plan, RuntimeError for shapes, dtypes and windows that do not go together, and for a kernel larger than the padded input.

    >>> import torch, tritonconv
    >>> tritonconv.unfold(torch.arange(5.0).view(1, 1, 5), (3,))
    tensor([[[0., 1., 2.],
             [1., 2., 3.],
             [2., 3., 4.]]])
    >>> tritonconv.unfold(torch.ones(2, 3, 8, 8), 3, padding=1, stride=2).shape
    torch.Size([2, 27, 16])
    """
    key = recipes.key(("unfold", kernel_size, dilation, padding, stride), plan, input)
    if (recipe := recipes.known(key)) is not None:
        return repeated(recipe, input)
    words = plans.text(plan, "unfold", own="unfold")
    batched, window = check.unfold(input, kernel_size, dilation, padding, stride)
    know_subclass(input)
    image = input if batched else input.unsqueeze(0)
    made: torch.Tensor = _OPS.unfold(image, *window, words)
    file(key, Pass.FPROP, image, window, words, batched)
    return made if batched else made.squeeze(0)


def fold(
    input: torch.Tensor,
    output_size: Size,
    kernel_size: Size,
    dilation: Size = 1,
    padding: Size = 0,
    stride: Size = 1,
    *,
    plan: Plans = None,
) -> torch.Tensor:
    """Columns summed into an image (col2im), as `torch.nn.functional.fold`, of any rank from 1 to 3.

    input [N, C * prod(kernel_size), L] or without N, of any strides; result [N, C, *output_size] or without N, contiguous. L is
    the number of windows of an image of output_size, and where windows overlap their elements are added. The rank is the length
    of kernel_size, else, where that is an int, of output_size; two ints are of rank 2, as torch has it. dilation, padding and
    stride are ints or tuples of that length.

    Dtypes: float16, bfloat16, float32 or float64; sums are in float32 (float64), taps in their order, and are rounded once, so
    the same bits come on every run, without atomics. Autocast leaves the dtype alone, as torch does. Gradients to any order,
    backwards and forwards: that of `fold` is `unfold`. Where what runs, and plan: as `tritonconv.unfold`.

    Raises torch's exception types, naming the argument, before anything is launched: TypeError for what is no tensor, int or
    plan, RuntimeError for shapes, dtypes and windows that do not go together.

    >>> import torch, tritonconv
    >>> columns = tritonconv.unfold(torch.ones(1, 1, 5), (3,))
    >>> tritonconv.fold(columns, (5,), (3,))
    tensor([[[1., 2., 3., 2., 1.]]])
    """
    key = recipes.key(("fold", output_size, kernel_size, dilation, padding, stride), plan, input)
    if (recipe := recipes.known(key)) is not None:
        return repeated(recipe, input)
    words = plans.text(plan, "fold", Pass.DGRAD, own="unfold")
    batched, window = check.fold(input, output_size, kernel_size, dilation, padding, stride)
    know_subclass(input)
    columns = input if batched else input.unsqueeze(0)
    made: torch.Tensor = _OPS.fold(columns, *window, words)
    file(key, Pass.DGRAD, columns, window, words, batched)
    return made if batched else made.squeeze(0)
