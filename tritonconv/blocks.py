"""Modules beyond torch's six: lazy ones, causal ones with a state, a convolution with its norm and activation."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tritonconv.causal import causal_conv1d, causal_conv1d_update
from tritonconv.epilogue import ACTIVATIONS
from tritonconv.folding import Follows, followed
from tritonconv.layers import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from tritonconv.normalize import Prologue
from tritonconv.video import causal_conv3d


def _lazy(torchs: Any, becomes: Any) -> Any:
    """torch's lazy layer that becomes ours at its first call."""
    rank = int(torchs.__name__[-2])
    doc = f"""`torch.nn.{torchs.__name__}`, which becomes `tritonconv.nn.{becomes.__name__}` at its first call.

    It takes that layer's arguments without in_channels, which is read from the shape of the first input; dtypes are those of
    that layer. Raises what that layer raises.

    >>> import torch, tritonconv
    >>> layer = tritonconv.nn.{torchs.__name__}(8, 3)
    >>> result = layer(torch.ones({(1, 4, *(5,) * rank)}))
    >>> type(layer).__name__, layer.in_channels
    ('{becomes.__name__}', 4)
    """
    return type(torchs.__name__, (torchs, becomes), {"cls_to_become": becomes, "__module__": __name__, "__doc__": doc})


LazyConv1d = _lazy(nn.LazyConv1d, Conv1d)
LazyConv2d = _lazy(nn.LazyConv2d, Conv2d)
LazyConv3d = _lazy(nn.LazyConv3d, Conv3d)
LazyConvTranspose1d = _lazy(nn.LazyConvTranspose1d, ConvTranspose1d)
LazyConvTranspose2d = _lazy(nn.LazyConvTranspose2d, ConvTranspose2d)
LazyConvTranspose3d = _lazy(nn.LazyConvTranspose3d, ConvTranspose3d)


class CausalConv1d(nn.Module):
    """`tritonconv.causal_conv1d` with its parameters: a depthwise filter of `kernel_size` taps (1 to 16) along a sequence.

    x [B, C, L] -> [B, C, L], or with `return_final_state` (that, final state [B, C, K - 1]); `initial_state` is the final state
    of the sequence before. `step(x, state)` takes the next token [B, C], or the next few [B, C, T], and changes `state` in
    place. Parameters weight [C, K] and bias [C], initialised as those of a depthwise `torch.nn.Conv1d`. activation: None or
    "silu". Dtypes are those of the two functions. Raises what those functions raise.

    >>> import torch, tritonconv
    >>> layer = tritonconv.nn.CausalConv1d(8, 4, activation="silu").requires_grad_(False)
    >>> y, state = layer(torch.ones(1, 8, 5), return_final_state=True)
    >>> layer.step(torch.ones(1, 8), state).shape
    torch.Size([1, 8])
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        bias: bool = True,
        activation: str | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        conv = nn.Conv1d(channels, channels, kernel_size, groups=channels, bias=bias, device=device, dtype=dtype)
        self.weight = nn.Parameter(conv.weight.detach().squeeze(1))
        self.bias = conv.bias
        self.activation = activation

    def forward(
        self, x: torch.Tensor, initial_state: torch.Tensor | None = None, return_final_state: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        return causal_conv1d(x, self.weight, self.bias, self.activation, initial_state, return_final_state)

    def step(self, x: torch.Tensor, state: torch.Tensor, **named: Any) -> torch.Tensor:
        """`tritonconv.causal_conv1d_update` of the layer's filter; `named` are its cache_seqlens and conv_state_indices."""
        return causal_conv1d_update(x, state, self.weight, self.bias, self.activation, **named)

    def extra_repr(self) -> str:
        channels, taps = self.weight.shape
        return f"{channels}, kernel_size={taps}, bias={self.bias is not None}, activation={self.activation!r}"


class CausalConv3d(nn.Conv3d):
    """`tritonconv.causal_conv3d` with its parameters, which are those of `torch.nn.Conv3d`: chunks of video, one after another.

    x [N, C, T, H, W] -> y, or with `return_cache` (y, the next chunk's cache). padding is of height and width: an int, (h, w)
    or "same", and padding_mode says what stands there; time_padding is "zeros", "replicate" or "valid". A call may have a
    prologue and a residual, as one of that function. Dtypes are those of that function. Raises what it raises.

    >>> import torch, tritonconv
    >>> layer = tritonconv.nn.CausalConv3d(4, 8, 3, padding=1).requires_grad_(False)
    >>> y, cache = layer(torch.ones(1, 4, 5, 6, 6), return_cache=True)  # the first 5 images, of which 2 are kept
    >>> y.shape, layer(torch.ones(1, 4, 3, 6, 6), cache).shape
    (torch.Size([1, 8, 5, 6, 6]), torch.Size([1, 8, 3, 6, 6]))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int, int],
        stride: int | tuple[int, int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int, int] = 1,
        bias: bool = True,
        time_padding: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        groups: int = 1,
        padding_mode: str = "zeros",
    ) -> None:
        place: dict[str, Any] = {"bias": bias, "padding_mode": padding_mode, "device": device, "dtype": dtype}
        super().__init__(in_channels, out_channels, kernel_size, stride, 0, dilation, groups, **place)
        self.space, self.time_padding = padding, time_padding

    def forward(  # type: ignore[override]
        self,
        x: torch.Tensor,
        cache: torch.Tensor | None = None,
        return_cache: bool = False,
        *,
        prologue: Prologue | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        window: dict[str, Any] = {"dilation": self.dilation, "time_padding": self.time_padding, "groups": self.groups}
        window |= {"padding_mode": self.padding_mode, "prologue": prologue, "residual": residual}
        stride: Any = self.stride
        return causal_conv3d(x, self.weight, self.bias, stride, self.space, cache, return_cache, **window)


class _ConvBnAct(nn.Module):
    """A convolution, a batch norm and an activation: act(norm(conv(input)) + residual), in eval mode one kernel.

    The first arguments are those of `torch.nn.Conv2d` (for its rank), but bias is False unless it is given; activation and
    negative_slope are those of `tritonconv.conv2d_fused`. Parameters: conv.weight, bn.weight, ... as of torch's two layers.
    Shapes and dtypes of input and result are those of the convolution. Raises ValueError for an unknown activation, and what
    torch's layers raise.
    """

    conv: Any
    bn: Any

    def __init__(
        self, *given: Any, bias: bool = False, activation: str | None = "relu", negative_slope: float = 0.01, **named: Any
    ) -> None:
        super().__init__()
        if activation is not None and activation not in ACTIVATIONS:
            names = ", ".join(map(repr, ACTIVATIONS))
            raise ValueError(f"{type(self).__name__}: activation must be None or one of {names}, got activation={activation!r}")
        kind, norm = self.parts()
        self.conv = kind(*given, bias=bias, **named)
        place = {name: named[name] for name in ("device", "dtype") if name in named}
        self.bn = norm(self.conv.out_channels, **place)
        self.activation, self.negative_slope = activation, negative_slope

    @staticmethod
    def parts() -> tuple[Any, Any]:
        """The classes of the convolution and of the norm."""
        raise NotImplementedError

    def forward(self, input: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        follows = Follows((self.bn,), self.activation, self.negative_slope, "")
        return followed(self.conv, self.conv.forward, input, residual, follows)

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}"


def _example(rank: int) -> str:
    """The docstring of the block of a rank."""
    return f"""{_ConvBnAct.__doc__}
    >>> import torch, tritonconv
    >>> block = tritonconv.nn.ConvBnAct{rank}d(4, 8, 3, padding=1, activation="silu").eval()
    >>> block(torch.ones({(1, 4, *(5,) * rank)})).shape
    torch.Size({[1, 8, *(5,) * rank]})
    """


class ConvBnAct1d(_ConvBnAct):
    __doc__ = _example(1)

    @staticmethod
    def parts() -> tuple[Any, Any]:
        return Conv1d, nn.BatchNorm1d


class ConvBnAct2d(_ConvBnAct):
    __doc__ = _example(2)

    @staticmethod
    def parts() -> tuple[Any, Any]:
        return Conv2d, nn.BatchNorm2d


class ConvBnAct3d(_ConvBnAct):
    __doc__ = _example(3)

    @staticmethod
    def parts() -> tuple[Any, Any]:
        return Conv3d, nn.BatchNorm3d
