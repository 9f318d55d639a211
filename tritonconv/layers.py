"""Modules: torch's six convolutions on the kernels, under torch's names, and a depthwise-separable block.

`Conv2d` and its siblings are torch's classes with another function inside: constructor, initialisation, repr, state_dict and
padding modes are torch's; `padding_mode` may also be one mode per axis. `tritonconv.convert` puts them into a model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tritonconv import check
from tritonconv.functional import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d
from tritonconv.separable import depthwise_separable_conv2d

Pair = int | tuple[int, int]


def traced(layer: Any, input: Any, *arguments: Any, **keywords: Any) -> Any:
    """A call of the whole layer, as one node, in the graph that `torch.fx.symbolic_trace` builds, as torch's own layers
    make."""
    return input.tracer.create_proxy("call_module", input.tracer.path_of_module(layer), (input, *arguments), keywords)


class Replacement:
    """The part that all six share besides torch's class: their name, and what torch's tracers need."""

    function: Callable[..., torch.Tensor]

    def _get_name(self) -> str:
        return f"tritonconv.{type(self).__name__}"

    def forward(self: Any, input: torch.Tensor, *arguments: Any, **keywords: Any) -> torch.Tensor:
        """The layer's result."""
        if isinstance(input, torch.fx.Proxy):
            return traced(self, input, *arguments, **keywords)
        return super().forward(input, *arguments, **keywords)  # type: ignore[misc]

    def __prepare_scriptable__(self) -> nn.Module:
        raise RuntimeError(
            f"torch.jit.script cannot compile {self._get_name()}, whose kernels Triton compiles: script the model that "
            "tritonconv.revert(model) gives, or use torch.compile or torch.export"
        )


class _Convolution(Replacement):
    """The difference from torch's ConvNd."""

    def _conv_forward(self: Any, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        result: torch.Tensor = self.by(self.function, input, weight, bias)
        return result

    def by(self: Any, function: Any, input: torch.Tensor, weight: Any, bias: Any, **after: Any) -> torch.Tensor:
        """The result of a function with the layer's arguments; `after` holds further arguments of the function."""
        padding = self.padding
        if self.padding_mode != "zeros":
            ends = self._reversed_padding_repeated_twice[::-1]  # which is what torch's layers pad by in these modes
            padding = tuple((low, high) for high, low in zip(ends[::2], ends[1::2], strict=True))
            after["padding_mode"] = self.padding_mode
        result: torch.Tensor = function(input, weight, bias, self.stride, padding, self.dilation, self.groups, **after)
        return result


class _ByFunction:
    """The forward of a transposed layer, which follows `Replacement`'s in the order of methods."""

    function: Callable[..., torch.Tensor]

    def forward(self: Any, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        """`output_size` picks one of the sizes that the stride leaves open, as torch's modules do."""
        result: torch.Tensor = self.by(self.function, input, self.weight, self.bias, output_size)
        return result

    def by(
        self: Any, function: Any, input: torch.Tensor, weight: Any, bias: Any, output_size: Any = None, **after: Any
    ) -> torch.Tensor:
        """See `_Convolution.by`."""
        sizes = (self.stride, self.padding, self.kernel_size, len(self.kernel_size), self.dilation)
        window = (self.stride, self.padding, self._output_padding(input, output_size, *sizes), self.groups, self.dilation)
        result: torch.Tensor = function(input, weight, bias, *window, **after)
        return result


class _Transposed(Replacement, _ByFunction):
    """The difference from torch's ConvTransposeNd, which has no padding mode but zeros."""


def _per_axis(kind: type[nn.Module]) -> Callable[..., None]:
    """torch's constructor of a class of ours, which takes a mode per axis as `padding_mode` too."""
    init: Callable[..., None] = kind.__init__

    @functools.wraps(init)
    def initialize(self: Any, *arguments: Any, **keywords: Any) -> None:
        given = keywords.get("padding_mode", "zeros")
        if isinstance(given, str):
            init(self, *arguments, **keywords)
            return
        modes = check.modes(f"tritonconv.nn.{kind.__name__}", given, int(kind.__name__[-2]))
        init(self, *arguments, **keywords | {"padding_mode": "zeros"})
        self.padding_mode = modes

    return initialize


def _documented(function: Callable[..., torch.Tensor]) -> str:
    """The docstring of the module on one of the six functions."""
    rank, transposed = int(function.__name__[-2]), "transpose" in function.__name__
    name = f"Conv{'Transpose' * transposed}{rank}d"
    axes = ", ".join("DHW"[-rank:]) if rank > 1 else "L"
    modes = "" if transposed else " `padding_mode` may be a tuple of modes, one per axis."
    return f"""`torch.nn.{name}` on `tritonconv.{function.__name__}`: torch's arguments, parameters and state_dict.

    input [N, C, {axes}] or [C, {axes}], in the dtypes of that function and of the weight. Raises what torch's class raises
    when it is made, and what the function raises when it is called.{modes}

    >>> import torch, tritonconv
    >>> layer = tritonconv.nn.{name}(4, 8, 3, stride=2, padding=1)
    >>> layer(torch.ones({(1, 4, *(5,) * rank)})).shape
    torch.Size({[1, 8, *(9 if transposed else 3,) * rank]})
    """


class Conv1d(_Convolution, nn.Conv1d):
    function = staticmethod(conv1d)
    __init__ = _per_axis(nn.Conv1d)
    __doc__ = _documented(conv1d)


class Conv2d(_Convolution, nn.Conv2d):
    function = staticmethod(conv2d)
    __init__ = _per_axis(nn.Conv2d)
    __doc__ = _documented(conv2d)


class Conv3d(_Convolution, nn.Conv3d):
    function = staticmethod(conv3d)
    __init__ = _per_axis(nn.Conv3d)
    __doc__ = _documented(conv3d)


class ConvTranspose1d(_Transposed, nn.ConvTranspose1d):
    function = staticmethod(conv_transpose1d)
    __doc__ = _documented(conv_transpose1d)


class ConvTranspose2d(_Transposed, nn.ConvTranspose2d):
    function = staticmethod(conv_transpose2d)
    __doc__ = _documented(conv_transpose2d)


class ConvTranspose3d(_Transposed, nn.ConvTranspose3d):
    function = staticmethod(conv_transpose3d)
    __doc__ = _documented(conv_transpose3d)


class DepthwiseSeparableConv2d(nn.Module):
    """A depthwise k x k convolution, then a pointwise 1x1 one, each with the same activation behind it, in one kernel
    where that is predicted to be faster (`tritonconv.depthwise_separable_conv2d`).

    input [N, C, H, W] or [C, H, W] -> [N, K, P, Q] or [K, P, Q], P and Q as `torch.nn.Conv2d` gives them for kernel_size,
    stride, padding and dilation. Parameters, named and initialised as two `torch.nn.Conv2d` in a row: depthwise.weight
    [C, 1, R, S], depthwise.bias [C], pointwise.weight [K, C, 1, 1], pointwise.bias [K].
    activation and negative_slope: as `tritonconv.conv2d_fused`. The two submodules hold parameters and are not called, so
    forward hooks on them do not run; parametrizations do. Dtypes are those of that function. Raises what it raises when it is
    called.

    >>> import torch, tritonconv
    >>> tritonconv.nn.DepthwiseSeparableConv2d(8, 16, 3, padding=1, activation="relu")(torch.ones(1, 8, 5, 5)).shape
    torch.Size([1, 16, 5, 5])

    Source: Chollet 2017, "Xception: Deep Learning with Depthwise Separable Convolutions", arXiv:1610.02357. MobileNets
    (arXiv:1704.04861) put an activation behind both convolutions, as here.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        bias: bool = True,
        activation: str | None = None,
        negative_slope: float = 0.01,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        place: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        self.depthwise = nn.Conv2d(in_channels, in_channels, kernel_size, stride, padding, dilation, in_channels, **place)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, **place)
        self.activation = activation
        self.negative_slope = negative_slope

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        first, second = self.depthwise, self.pointwise
        return depthwise_separable_conv2d(
            input,
            first.weight,
            second.weight,
            first.bias,
            second.bias,
            first.stride,
            first.padding,
            first.dilation,
            activation=self.activation,
            pointwise_activation=self.activation,
            negative_slope=self.negative_slope,
        )

    def extra_repr(self) -> str:
        return "" if self.activation is None else f"activation={self.activation!r}"
