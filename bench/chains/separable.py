"""Pairs of a depthwise and a pointwise convolution with an activation between: one kernel of ours, two of ours, torch's
three."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch.nn import functional

import tritonconv
from bench.chains.chain import OURS, TORCH, Chain, Input, Way
from bench.providers.cudnn import in_layout
from bench.separable import LAYERS, Layer, predicted
from costmodel.device import Device
from tritonconv.launch import fp32_precision
from tritonconv.separable.launch import APART, FUSED

SUITE = "separable"
#: The way with two kernels of ours.
TWO = f"{OURS} apart"


def by_torch(
    layer: Layer, layout: str, x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, b1: torch.Tensor, b2: torch.Tensor
) -> torch.Tensor:
    z = functional.conv2d(in_layout(x, layout), w1, b1, layer.stride, layer.kernel // 2, 1, layer.channels)
    return functional.conv2d(functional.relu6(z), w2, b2)


def by_us(
    layer: Layer, plan: str, x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, b1: torch.Tensor, b2: torch.Tensor
) -> torch.Tensor:
    return tritonconv.depthwise_separable_conv2d(
        x, w1, w2, b1, b2, layer.stride, layer.kernel // 2, activation="relu6", plan=plan
    )


def chain_of(layer: Layer, dtype: torch.dtype, device: Device) -> Chain:
    """The chain of a layer, with channels-last pixels and contiguous weights."""
    c, k = layer.channels, layer.filters
    keys = (*layer.keys()[:3], ((c,), (1,)), ((k,), (1,)))
    scales = (1.0, 1 / layer.kernel, c**-0.5, 1.0, 1.0)
    inputs = tuple(Input(*key, scale) for key, scale in zip(keys, scales, strict=True))
    ways: dict[str, Way] = {
        TORCH: partial(by_torch, layer, "channels_last"),
        f"{TORCH} contiguous": partial(by_torch, layer, "contiguous"),
        OURS: partial(by_us, layer, FUSED),
        TWO: partial(by_us, layer, APART),
    }
    two, one, _ = predicted(layer, device, dtype, fp32_precision())
    name = f"{layer.network} {layer.name}"
    return Chain(SUITE, name, dtype, inputs, layer.pair.bytes(dtype.itemsize), ways, {OURS: one, TWO: two})


def chains(dtype: torch.dtype, device: Device) -> Iterator[Chain]:
    for layer in LAYERS:
        yield chain_of(layer, dtype, device)
