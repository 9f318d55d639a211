"""Layers that take windows apart and put them together, by `F.unfold` and `F.fold` and by this library's; the other operators
are torch's.

The layers are VOLO's outlook attention (Yuan et al. 2021, arXiv:2106.13112), the soft splits of T2T-ViT-14 with the layer norm
and the product behind them (Yuan et al. 2021, arXiv:2101.11986), FuseFormer's soft composition (Liu et al. 2021,
arXiv:2109.02974).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

import tritonconv
from bench.chains.chain import OURS, TORCH, Chain, Input, Way
from bench.chains.predicted import predicted
from costmodel.device import Device
from tritonconv.layout import channels_last_strides, dense_strides

SUITE = "windows"


class Columns(NamedTuple):
    """The two functions that take windows apart and put them together."""

    unfold: Callable[..., torch.Tensor]
    fold: Callable[..., torch.Tensor]


def contiguous(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """torch's function, with the copy that it makes inside written out, so that a trace sees it."""
    return lambda x, *rest: function(x.contiguous(), *rest)


BY_TORCH, BY_US = Columns(contiguous(F.unfold), contiguous(F.fold)), Columns(tritonconv.unfold, tritonconv.fold)


class Layer(NamedTuple):
    """A layer of tokens or pixels `x`, whose other inputs are matrices [out, in] of these shapes."""

    name: str
    body: Callable[..., torch.Tensor]
    x: tuple[int, ...]
    matrices: tuple[tuple[int, int], ...]
    y: tuple[int, ...]
    heads: int = 1
    window: tuple[int, int, int] = (3, 2, 1)  # kernel, stride, padding


def outlook(by: Columns, layer: Layer, x: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
    """Outlook attention on x [B, H, W, C]: the pixel in the middle of a window decides how the window's values are weighed."""
    of_values, of_weights, last = given
    (batch, height, width, channels), (kernel, stride, padding), heads = x.shape, layer.window, layer.heads
    taps, head_channels = kernel * kernel, channels // heads
    values = F.linear(x, of_values).permute(0, 3, 1, 2)
    columns = by.unfold(values, kernel, 1, padding, stride).view(batch, heads, head_channels, taps, -1).permute(0, 1, 4, 3, 2)
    pooled = F.avg_pool2d(x.permute(0, 3, 1, 2), stride, stride, ceil_mode=True).permute(0, 2, 3, 1)
    weights = F.linear(pooled, of_weights).view(batch, -1, heads, taps, taps).permute(0, 2, 1, 3, 4)
    weights = (weights * head_channels**-0.5).softmax(-1)
    mixed = (weights @ columns).permute(0, 1, 4, 3, 2).reshape(batch, channels * taps, -1)
    y = by.fold(mixed, (height, width), kernel, 1, padding, stride)
    return F.linear(y.permute(0, 2, 3, 1), last)


def split(by: Columns, layer: Layer, x: torch.Tensor, product: torch.Tensor) -> torch.Tensor:
    """The queries, keys and values of the tokens of overlapping windows, which are normalised first."""
    kernel, stride, padding = layer.window
    tokens = by.unfold(x, kernel, 1, padding, stride).transpose(1, 2)
    return F.linear(F.layer_norm(tokens, tokens.shape[-1:]), product)


def composition(by: Columns, layer: Layer, x: torch.Tensor, product: torch.Tensor) -> torch.Tensor:
    """The image of the tokens [B, L, C], each of which becomes a window of pixels. Overlapping windows are added."""
    kernel, stride, padding = layer.window
    return by.fold(F.linear(x, product).transpose(1, 2), layer.y[2:], kernel, 1, padding, stride)


LAYERS = (
    Layer("VOLO-D1", outlook, (32, 28, 28, 192), ((192, 192), (6 * 81, 192), (192, 192)), (32, 28, 28, 192), 6),
    Layer("VOLO-D5", outlook, (32, 28, 28, 384), ((384, 384), (12 * 81, 384), (384, 384)), (32, 28, 28, 384), 12),
    Layer("T2T-ViT-14, split 1", split, (32, 3, 224, 224), ((192, 147),), (32, 3136, 192), window=(7, 4, 2)),
    Layer("T2T-ViT-14, split 2", split, (32, 64, 56, 56), ((192, 576),), (32, 784, 192), window=(3, 2, 1)),
    Layer("FuseFormer", composition, (5, 720, 512), ((6272, 512),), (5, 128, 60, 108), window=(7, 3, 3)),
)


def inputs(layer: Layer) -> tuple[Input, ...]:
    """The tensors of a layer. Channels are contiguous, except in RGB images."""
    shape = layer.x
    rows = dense_strides(shape, range(len(shape) - 1, -1, -1))
    last = layer.body is split and shape[1] > 3
    x = Input(shape, channels_last_strides(shape) if last else rows)
    return x, *(Input(matrix, (matrix[1], 1), matrix[1] ** -0.5) for matrix in layer.matrices)


def chain_of(layer: Layer, dtype: torch.dtype, device: Device) -> Chain:
    """The chain of a layer that takes windows as columns."""
    ways: dict[str, Way] = {TORCH: partial(layer.body, BY_TORCH, layer), OURS: partial(layer.body, BY_US, layer)}
    tensors = inputs(layer)
    moved = dtype.itemsize * (sum(math.prod(i.shape) for i in tensors) + math.prod(layer.y))
    name = f"{layer.name} {'x'.join(map(str, layer.x))}"
    return Chain(SUITE, name, dtype, tensors, moved, ways, predicted(ways, tensors, dtype, device))


def chains(dtype: torch.dtype, device: Device) -> Iterator[Chain]:
    for layer in LAYERS:
        yield chain_of(layer, dtype, device)
