"""The causal convolution of video VAEs, chunk by chunk: it reads the frames before a chunk from a cache and writes the next
cache.

It replaces torch.cat of the cache and the chunk, F.pad, conv3d, its bias, and the clone of the last frames, as in diffusers'
WanCausalConv3d (zeros) and CogVideoXCausalConv3d (the first frame repeated). Kernel: `tritonconv.kernels.video`.
"""

from __future__ import annotations

import torch

from tritonconv import recipes
from tritonconv.invariant import by_image, is_on
from tritonconv.normalize import Prologue, as_arguments
from tritonconv.normalize.launch import Values
from tritonconv.plans import Plans
from tritonconv.subclasses import know_subclass
from tritonconv.video import (
    again,
    check,
    op,  # noqa: F401  registers the op
)

_OPS = torch.ops.tritonconv
Maybe = torch.Tensor | None
Pair = tuple[torch.Tensor, torch.Tensor]


def causal_conv3d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | tuple[int, int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    cache: torch.Tensor | None = None,
    return_cache: bool = True,
    *,
    dilation: int | tuple[int, int, int] = 1,
    upsample: int = 1,
    time_padding: str = "zeros",
    prologue: Prologue | None = None,
    residual: torch.Tensor | None = None,
    groups: int = 1,
    padding_mode: str = "zeros",
    summed_taps: bool = True,
    plan: Plans = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """(y, next_cache), or y where return_cache is False. Result o sees the frames of the chunk x up to o * stride_t, none
    later.

    x [N, C, T, H, W], weight [K, C / groups, t, r, s], bias [K], y [N, K, O, P, Q]. With D = (t - 1) * dilation_t, result o
    sees frames o * stride_t - D to o * stride_t. padding is for height and width only, on both sides: an int, (h, w) or
    "same". padding_mode says what stands there, as of torch's layers: "zeros", "replicate" (with time_padding "replicate" as in
    HunyuanVideo), "reflect" or "circular", found by index arithmetic, without a padded copy.

    cache [N, C, F, H, W], F from 0 to D: the frames before frame 0, the newest last. Frames before the oldest of them are zero
    (time_padding "zeros") or repeat the oldest known frame ("replicate"). With "valid" there is no padding in time: windows
    begin at the oldest frame of the cache, so result o sees frames o * stride_t - F to o * stride_t - F + D, and there are only
    results whose frames all exist, perhaps none.

    next_cache lets the next chunk go on where this one ends; it never shares memory with x or cache. It holds the last D frames
    of cache and x, preceded by padding frames where there are fewer, so it always has D frames. All chunks but the last must
    then have a multiple of stride_t frames (do not ask for a cache of the last one). With "valid" it holds the frames from the
    next window's first one on, at most D, and chunks may have any length: Wan's downsampler is t = 3, stride_t = 2 with "valid"
    and one cached frame.

    upsample=2: the convolution of every frame magnified twice, F.interpolate(scale_factor=(1, 2, 2)), "nearest", which is not
    written; stride must then be 1 in height and width. Taps that see the same pixel are one tap with the sum of their weights
    (of 3x3 taps 2x2 remain, 2.25 times fewer multiply-adds), where dilation is 1 in height and width and the taps of either are
    odd in number. The sums are taken in float32 and rounded once to the dtype, which may move a result by that rounding of each
    summed weight; summed_taps=False multiplies every tap. They are made once for each version of the weight, as is the copy of
    a weight that is not channels-last (`tritonconv.forget_packed` says when not).

    prologue: a `tritonconv.Prologue`, such as `group_norm_prologue(x, 32, weight, bias, activation="silu")`: what is convolved
    is act(x * rstd * scale + shift), rounded to x's dtype as where it is written, and padding is added after it, so zeros stay
    zeros. The cache holds frames that are convolved, with the prologue behind them: the frames of cache are read as they are,
    and next_cache holds the results for those of x, so a later chunk needs no statistics of an earlier one. The kernel does
    this while it gathers pixels, anew for every tap and every block of filters, or a kernel before it writes the frames once
    ("apart" in a plan): whichever is predicted to take less time.

    residual, of y's shape and any strides, is added before the one rounding: y = conv + bias + residual.

    The dtype is float16, bfloat16, float32 (multiplied as `torch.backends.cudnn.conv.fp32_precision` says) or float64; sums are
    in float32 (float64 for float64) and rounded once. Channels-last x, weight and cache
    (`memory_format=torch.channels_last_3d`) are read without a copy; others are copied first (`tritonconv.explain` names them).
    next_cache is channels-last, and y has the layout of torch's conv3d. x, weight, bias, cache and residual have gradients of
    any order, also through next_cache; gradients write the known frames out where they are not those of x alone. Where a call
    with a prologue records gradients, the prologue is a kernel of its own (`Prologue.__call__`).

    Raises TypeError, ValueError or RuntimeError naming the argument, before anything is launched.
    """
    how = stride, padding, return_cache, dilation, upsample, time_padding, groups, padding_mode, summed_taps
    key = again.key(how, plan, x, weight, bias, cache, prologue, residual)
    if (recipe := recipes.known(key)) is not None:
        y, after = again.repeated(recipe, x, weight, bias, cache, prologue, residual)
        return (y, after) if return_cache else y
    window = check.call(
        x, weight, bias, stride, padding, cache, return_cache, dilation, upsample, time_padding, residual, groups, padding_mode
    )
    know_subclass(x)
    words = check.plan_text(plan)
    values = Values(*as_arguments(check.NAME, x, prologue))
    sums = bool(summed_taps) and window[3] == 2
    plain = prologue is None and residual is None and groups == 1 and not sums and padding_mode == "zeros"

    def convolved(images: torch.Tensor, before: Maybe, *tensors: Maybe) -> Pair:
        *factors, added = tensors
        after = () if plain else (*factors, values.activation, values.slope, added, groups, sums, padding_mode)
        result: Pair = _OPS.video(images, weight, bias, before, *window, return_cache, words, *after)
        return result

    if is_on() and len(x) > 1:
        expanded = [t if t is None else t.expand(len(x), *t.shape[1:]) for t in values[:3]]
        y, after = by_image(convolved, (x, cache, *expanded, residual))
    else:
        y, after = convolved(x, cache, *values[:3], residual)
        if key is not None:
            place = *window, return_cache, words, groups, sums, padding_mode
            again.file(key, x, weight, bias, cache, values, residual, place)
    return (y, after) if return_cache else y
