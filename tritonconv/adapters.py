"""Puts `causal_conv3d` into the causal layers of diffusers' video VAEs (Wan, Qwen-Image, CogVideoX), and `deform_conv2d` into
torchvision's DeformConv2d.

The video layers concatenate the cache, pad and convolve one after another. A layer is recognised by the name of its class and
checked by its attributes; nothing of diffusers or torchvision is imported.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from torch import nn

from tritonconv.check import DTYPES
from tritonconv.deform import deform_conv2d
from tritonconv.layers import traced
from tritonconv.video import causal_conv3d


class Adapted:
    """A layer whose forward is `function` if that computes the same, and its own otherwise."""

    function: ClassVar[str] = "causal_conv3d"


def adapter(part: nn.Module) -> type[Adapted] | None:
    """The class whose forward takes over that of a layer, or None."""
    kind: Any = type(part)
    names = [base.__name__ for base in kind.__mro__]
    if "WanCausalConv3d" in names or "QwenImageCausalConv3d" in names:
        return _Cached if _is_cached(part) else None
    if "CogVideoXCausalConv3d" in names:
        return _Repeated if _is_repeated(part) else None
    if is_deformable(part):
        return _Deformable
    return None


def is_deformable(part: nn.Module) -> bool:
    """Whether a layer is torchvision's DeformConv2d, or one that extends it and leaves its forward alone."""
    kind: Any = type(part)
    if not any(base.__name__ == "DeformConv2d" and base.__module__.startswith("torchvision.") for base in kind.__mro__):
        return False
    window = (part.__dict__.get(name) for name in ("stride", "padding", "dilation"))
    own = getattr(kind.forward, "__module__", "").startswith(("torchvision.", "tritonconv."))
    return own and all(isinstance(value, tuple) for value in window) and _accepts(part, "input", "offset", "mask")


def _accepts(part: Any, *names: str) -> bool:
    return list(inspect.signature(part.forward).parameters) == list(names) and "forward" not in part.__dict__


def _is_cached(part: Any) -> bool:
    """Whether a layer is Wan's or Qwen-Image's: a Conv3d whose padding is 0 and whose `_padding` is in the form of F.pad."""
    padding = part.__dict__.get("_padding")
    sound = isinstance(part, nn.Conv3d) and part.groups == 1 and part.padding_mode == "zeros"
    even = isinstance(padding, tuple) and len(padding) == 6 and padding[0] == padding[1] and padding[2] == padding[3]
    return sound and even and tuple(part.padding) == (0, 0, 0) and padding[5] == 0 and _accepts(part, "x", "cache_x")


def _is_repeated(part: Any) -> bool:
    """Whether a layer is CogVideoX's: a module around a Conv3d, which repeats the first frame before the first chunk."""
    conv = getattr(part, "conv", None)
    if not isinstance(conv, nn.Conv3d) or getattr(part, "pad_mode", "") == "replicate" or conv._forward_hooks:
        return False
    plain = conv.groups == 1 and conv.padding_mode == "zeros" and conv.dilation[0] == conv.stride[0] == 1
    taps = conv.kernel_size[0]
    sound = plain and tuple(conv.padding[:1]) == (0,) and taps > 1 and getattr(part, "time_kernel_size", 0) == taps
    return sound and _accepts(part, "inputs", "conv_cache")


class _Cached(Adapted):
    def forward(self: Any, x: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
        before = (self.kernel_size[0] - 1) * self.dilation[0]
        width, _, height, _, front, _ = self._padding
        cache = cache_x if front > 0 else None
        causal = front in (0, before) and (cache is None or cache.shape[2] <= before)
        if x.dim() != 5 or x.dtype not in DTYPES or not causal:
            result: torch.Tensor = super().forward(x, cache_x)  # type: ignore[misc]
            return result
        cache = None if cache is None else cache.to(x.device)
        window: dict[str, Any] = {"dilation": self.dilation, "time_padding": "zeros" if front else "valid"}
        y = causal_conv3d(x, self.weight, self.bias, self.stride, (height, width), cache, False, **window)
        assert isinstance(y, torch.Tensor)
        return y


class _Repeated(Adapted):
    def forward(
        self: Any, inputs: torch.Tensor, conv_cache: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        conv: Any = self.conv
        whole = conv_cache is None or conv_cache.shape[2] == conv.kernel_size[0] - 1
        if inputs.dim() != 5 or inputs.dtype not in DTYPES or not whole:
            result: tuple[torch.Tensor, torch.Tensor | None] = super().forward(inputs, conv_cache)  # type: ignore[misc]
            return result
        window: dict[str, Any] = {"dilation": conv.dilation, "time_padding": "replicate"}
        answer = causal_conv3d(inputs, conv.weight, conv.bias, conv.stride, tuple(conv.padding[1:]), conv_cache, True, **window)
        return answer[0], answer[1]


class _Deformable(Adapted):
    function = "deform_conv2d"

    def forward(self: Any, input: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if isinstance(input, torch.fx.Proxy):
            result: torch.Tensor = traced(self, input, offset, mask)
            return result
        return deform_conv2d(input, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)
