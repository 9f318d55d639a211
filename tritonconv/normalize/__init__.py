"""What a normalisation and an activation in front of a convolution are made of: a `Prologue`, which `causal_conv3d` and the
fused convolutions apply to the pixels that they gather, and the kernels that take the statistics of GroupNorm and RMSNorm.

Kernels: `tritonconv.kernels.statistics`, `tritonconv.kernels.prologue`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from tritonconv import recipes
from tritonconv.normalize import again, check, launch
from tritonconv.normalize.launch import Values
from tritonconv.subclasses import know_subclass

_OPS = torch.ops.tritonconv


class Prologue(NamedTuple):
    """What happens to x [N, C, *size], of 3 to 5 axes, before it is convolved: act(x * rstd * scale + shift), rounded to x's
    dtype.

    scale and shift are [C] or [N, C], and beside x [N, C, T, H, W] also [N, T, C], where N or T may be 1; rstd is [N, *size], a
    value per pixel; None leaves one out. Their dtype is x's or float32 (float64 beside float64), and all of it is computed in
    float32 (float64). activation is None or a name that `conv3d_fused` takes; negative_slope is that of "leaky_relu".

    `group_norm_prologue` and `rms_norm_prologue` make one of x. `docs/design/prologue.md` derives when a prologue is applied,
    and its rounding. The fields are checked where the prologue is used, which raises TypeError, ValueError or RuntimeError
    naming the field.

    >>> import torch, tritonconv
    >>> x, weight = torch.ones(1, 2, 1, 1, 1), torch.ones(1, 2, 1, 1, 1)
    >>> prologue = tritonconv.Prologue(scale=torch.tensor([2.0, 3.0]), activation="relu")
    >>> tritonconv.causal_conv3d(x, weight, prologue=prologue, return_cache=False).item()
    5.0
    """

    scale: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    rstd: torch.Tensor | None = None
    activation: str | None = None
    negative_slope: float = 0.01

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x with the prologue, channels-last, by a kernel of its own. Differentiable to any order, in either direction.

        >>> import torch, tritonconv
        >>> tritonconv.Prologue(scale=torch.tensor([2.0]), activation="relu")(torch.full((1, 1, 1, 1, 2), 3.0)).flatten()
        tensor([6., 6.])
        """
        *given, activation, slope = self
        key = recipes.key(("Prologue", activation, slope), None, x, *given)
        if (recipe := recipes.known(key)) is not None:
            return again.normalized(recipe, x, *given)
        tensors = check.prologue("Prologue", x, self)
        know_subclass(x)
        y = normalized(x, *tensors, activation or "", float(slope))
        if key is not None and x.numel() and recipes.may_keep(key, x, *given):
            recipes.keep(key, again.recipe_of(check.as_video(x), Values(*tensors, activation or "", float(slope))))
        return y


def group_norm_prologue(
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    activation: str | None = None,
    *,
    per_frame: bool = False,
) -> Prologue:
    """The `Prologue` that makes x [N, C, *size] `F.group_norm(x, num_groups, weight, bias, eps)` and then activates it.

    The statistics are those of a group of channels of an image, or with per_frame of each frame of x [N, C, T, H, W], as where
    frames are a batch. With num_groups=1 it is a LayerNorm over all of an image. weight and bias [C] are of x's dtype or
    float32. Two small kernels read x once, in any layout, and add in a fixed order, in float32 (float64 for float64): the same
    bits on every run, whatever the batch. The result's scale and shift [N, C], or [N, 1 or T, C] beside x [N, C, T, H, W], have
    derivatives of any order in x, weight and bias; those are torch's sums. Source: Wu and He 2018, "Group
    Normalization" (arXiv:1803.08494).

    Raises TypeError, ValueError or RuntimeError naming the argument, before anything is launched.

    >>> import torch, tritonconv
    >>> x = torch.randn(1, 4, 2, 3, 3)
    >>> y = tritonconv.group_norm_prologue(x, 2, activation="silu")(x)
    >>> want = torch.nn.functional.silu(torch.nn.functional.group_norm(x, 2))
    >>> torch.allclose(y, want, atol=1e-5)
    True
    """
    words = "group_norm_prologue", num_groups, eps, activation, per_frame
    key = recipes.key(words, None, x, weight, bias)
    if (recipe := recipes.known(key)) is not None:
        scale, shift = again.group_scale(recipe, check.as_video(x), weight, bias)
    else:
        groups, eps = check.group_norm(x, num_groups, weight, bias, eps, activation, per_frame)
        know_subclass(x)
        video, how = check.as_video(x), (groups, eps, bool(per_frame))
        scale, shift = _OPS.group_scale(video, weight, bias, *how)
        again.file(key, launch.grouped, video, weight, bias, how=how)
    if x.dim() < 5:
        scale, shift = scale.squeeze(1), shift.squeeze(1)
    return Prologue(scale, shift, None, activation)


def rms_norm_prologue(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-6,
    activation: str | None = None,
) -> Prologue:
    """The `Prologue` that divides each pixel of x [N, C, *size] by sqrt(mean of x^2 over its channels + eps), then multiplies
    by weight [C], adds bias [C] and activates.

    Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization" (arXiv:1910.07467). `WanRMS_norm` and
    `QwenImageRMS_norm` of diffusers are this with eps=1e-24: they divide by the length of a pixel, which they bound from below
    by 1e-12, and multiply by sqrt(C). One small kernel reads x once, in any layout, and adds in a fixed order, in float32
    (float64 for float64). The result's rstd [N, *size] has derivatives of any order in x.

    Raises TypeError, ValueError or RuntimeError naming the argument, before anything is launched.

    >>> import torch, tritonconv
    >>> x = torch.randn(1, 4, 2, 3, 3)
    >>> y = tritonconv.rms_norm_prologue(x, eps=1e-24)(x)
    >>> torch.allclose(y, torch.nn.functional.normalize(x, dim=1) * 2, atol=1e-5)  # 2 is sqrt(4)
    True
    """
    key = recipes.key(("rms_norm_prologue", eps, activation), None, x, weight, bias)
    if (recipe := recipes.known(key)) is not None:
        rstd = again.rms_rstd(recipe, check.as_video(x))
    else:
        eps = check.rms_norm(x, weight, bias, eps, activation)
        know_subclass(x)
        video = check.as_video(x)
        rstd = _OPS.rms_rstd(video, eps)
        again.file(key, launch.squared, video, how=(eps,))
    return Prologue(weight, bias, rstd if x.dim() == 5 else rstd.view(len(x), *x.shape[2:]), activation)


def normalized(x: torch.Tensor, scale: Any, shift: Any, rstd: Any, activation: str, slope: float) -> torch.Tensor:
    """x [N, C, *size] with a prologue as `check.prologue` returns it, channels-last, by a kernel of its own."""
    y: torch.Tensor = _OPS.normalize(check.as_video(x), scale, shift, rstd, activation, slope)
    return y if x.dim() == 5 else y.view(x.shape)


def as_arguments(function: str, x: torch.Tensor, given: Any) -> tuple[Any, ...]:
    """(scale, shift, rstd, activation, slope) of a prologue, as ops take them; all are empty for None."""
    if given is None:
        return None, None, None, "", 0.01
    return (*check.prologue(function, x, given), given.activation or "", float(given.negative_slope))
