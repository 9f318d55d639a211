"""Arguments of the causal convolution of video. Every message names the argument, what came and what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from costmodel.chunk import MODES, TIME_PADDING
from costmodel.problem import Pass, padding_pairs
from costmodel.tiling import FARTHEST
from costmodel.video import Chunk
from tritonconv import plans
from tritonconv.check import _bias, _groups, alike, as_int, ints, is_int

NAME = "causal_conv3d"
Window = tuple[tuple[int, ...], list[int], tuple[int, ...], int, str]


#: Passes for which the function takes no plan.
_IDLE = dict.fromkeys((Pass.DGRAD, Pass.WGRAD), "gradients take the plans of conv3d")


def plan_text(plan: plans.Plans) -> str:
    """`plan` as the op takes it."""
    return plans.text(plan, NAME, Pass.FPROP, _IDLE, "video")


def _tensors(x: Any, weight: Any, bias: Any, cache: Any, residual: Any, groups: int) -> None:
    given = {"x": x, "weight": weight, "bias": bias, "cache": cache, "residual": residual}
    for name, value in given.items():
        if not isinstance(value, torch.Tensor) and not (value is None and name not in ("x", "weight")):
            raise TypeError(f"{NAME}(): argument {name!r} must be a Tensor, got {type(value).__name__}")
    for name, axes in (("x", "[N, C, T, H, W]"), ("weight", "[K, C, t, r, s]"), ("cache", "[N, C, F, H, W]")):
        value = given[name]
        if value is not None and value.dim() != 5:
            raise RuntimeError(f"{NAME}(): expected {name} of 5 axes {axes}, got {name} {list(value.shape)}")
    alike(NAME, "x", given)
    for name, value in (("x", x.shape[1:]), ("weight", weight.shape)):
        if any(n == 0 for n in value):
            raise RuntimeError(f"{NAME}(): only the batch may be empty, got {name} of shape {list(given[name].shape)}")
    if weight.shape[1] * groups != x.shape[1]:
        channels = f"{x.shape[1]} / {groups} channels" if groups > 1 else f"{x.shape[1]} channels"
        raise RuntimeError(
            f"{NAME}(): expected weight of {channels} for x {list(x.shape)} and groups={groups}, "
            f"got weight {list(weight.shape)}"
        )
    if weight.shape[0] % groups:
        raise RuntimeError(
            f"{NAME}(): groups={groups} must divide the {weight.shape[0]} filters of weight {list(weight.shape)}"
        )
    _bias(NAME, bias, weight.shape[0], weight)


def _padding(padding: Any, weight: torch.Tensor, stride: tuple[int, ...], dilation: tuple[int, ...]) -> list[int]:
    """(low, high) of height, then of width."""
    if isinstance(padding, str):
        if padding != "same":
            raise RuntimeError(f"{NAME}(): padding must be 'same', an int or (height, width), got padding={padding!r}")
        if stride[1:] != (1, 1):
            raise RuntimeError(f"{NAME}(): padding='same' is not supported for spatial strides, got stride={stride}")
        pairs = padding_pairs("same", weight.shape[3:], dilation[1:])
    else:
        if isinstance(padding, (tuple, list)) and len(padding) == 3:
            raise RuntimeError(
                f"{NAME}(): padding is (height, width), got padding={tuple(padding)}: time is padded with the cache and "
                f"time_padding, so of a conv3d's padding pass the last two, {tuple(padding[1:])}"
            )
        pairs = padding_pairs(ints(NAME, "padding", padding, 2, 0), weight.shape[3:], dilation[1:])
    return [p for pair in pairs for p in pair]


def known(chunk: Chunk, x: Sequence[Any], cache: Sequence[Any] | None) -> None:
    """Checks that the cache holds frames of x's shape, no more than a window sees, and that a window fits on a padded frame."""
    if cache is not None:
        if (*cache[:2], *cache[3:]) != (*x[:2], *x[3:]) or cache[2] > chunk.reach:
            words = ", ".join(map(str, (x[0], x[1], f"0 to {chunk.reach}", *x[3:])))
            raise RuntimeError(f"{NAME}(): expected cache of shape [{words}] for x {list(x)}, got cache {list(cache)}")
    problem = chunk.problem
    if any(n < extent for n, extent in zip(problem.padded_size[1:], problem.effective_kernel[1:], strict=True)):
        raise RuntimeError(
            f"{NAME}(): the kernel is larger than the padded frame: weight {list(problem.weight_shape)} with "
            f"dilation={problem.dilation}, x {list(x)} with padding={problem.padding[1:]}"
        )


def mirrored(chunk: Chunk, x: Sequence[Any]) -> None:
    """Checks that a frame has as many pixels as its padding repeats."""
    slack = {"reflect": 1, "circular": 0}.get(chunk.mode)
    for size, pair in zip(chunk.problem.input_size[1:], chunk.problem.padding[1:], strict=True):
        if slack is not None and max(pair) > size - slack:
            bound = "less than" if slack else "at most"
            raise RuntimeError(
                f"{NAME}(): padding_mode={chunk.mode!r} takes padding of {bound} the {size} pixels of a frame, got "
                f"padding={chunk.problem.padding[1:]} for x {list(x)}"
            )


def follows(chunk: Chunk, x: Sequence[Any]) -> None:
    """Checks that the next chunk can go on where this one ends."""
    stride = chunk.problem.stride[0]
    if not chunk.valid and x[2] % stride:
        raise RuntimeError(
            f"{NAME}(): a chunk that another follows must have a multiple of {stride} frames, the stride in time, got x "
            f"{list(x)}; for the last one pass return_cache=False"
        )
    if chunk.kept < 0:
        raise RuntimeError(
            f"{NAME}(): the window of the next chunk begins {-chunk.kept} frames behind x {list(x)}, with stride "
            f"{stride} in time, and no cache can say so; end the chunk later, or pass return_cache=False"
        )


def call(
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    cache: Any,
    return_cache: Any,
    dilation: Any,
    upsample: Any,
    time_padding: Any,
    residual: Any = None,
    groups: Any = 1,
    padding_mode: Any = "zeros",
) -> Window:
    """The checked stride, padding, dilation, upsample and time_padding, as the op takes them."""
    groups = _groups(NAME, groups)
    _tensors(x, weight, bias, cache, residual, groups)
    stride = ints(NAME, "stride", stride, 3, 1)
    dilation = ints(NAME, "dilation", dilation, 3, 1)
    pads = _padding(padding, weight, stride, dilation)
    if not isinstance(return_cache, bool):
        raise TypeError(
            f"{NAME}(): argument 'return_cache' must be bool, got {return_cache!r} of type {type(return_cache).__name__}"
        )
    if not is_int(upsample) or upsample not in (1, 2):
        raise ValueError(f"{NAME}(): upsample must be 1 or 2, got upsample={upsample!r}")
    upsample = as_int(NAME, "upsample", upsample)
    if upsample == 2 and stride[1:] != (1, 1):
        raise RuntimeError(f"{NAME}(): upsample=2 goes with stride 1 in height and width, got stride={stride}")
    if time_padding not in TIME_PADDING:
        names = ", ".join(map(repr, TIME_PADDING))
        raise ValueError(f"{NAME}(): time_padding must be one of {names}, got time_padding={time_padding!r}")
    if padding_mode not in MODES:
        names = ", ".join(map(repr, MODES))
        raise ValueError(f"{NAME}(): padding_mode must be one of {names}, got padding_mode={padding_mode!r}")
    before = 0 if cache is None else cache.shape[2]
    spans = [(n - 1) * d for n, d in zip(weight.shape[3:], dilation[1:], strict=True)]
    if all(isinstance(n, int) for n in spans) and max(*spans, *stride, *map(abs, pads)) > FARTHEST:
        raise RuntimeError(
            f"{NAME}(): a window, stride or padding of more than {FARTHEST} pixels is not served, got weight "
            f"{list(weight.shape)}, stride={stride}, padding={padding!r}, dilation={dilation}"
        )
    chunk = Chunk.of(x.shape, weight.shape, before, stride, pads, dilation, upsample, time_padding, groups, padding_mode)
    known(chunk, x.shape, None if cache is None else cache.shape)
    mirrored(chunk, x.shape)
    if return_cache:
        follows(chunk, x.shape)
    if residual is not None and tuple(residual.shape) != tuple(chunk.output_shape):
        raise RuntimeError(
            f"{NAME}(): expected residual of the output's shape {list(chunk.output_shape)}, got residual {list(residual.shape)}"
        )
    return stride, pads, dilation, upsample, time_padding
