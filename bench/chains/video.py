"""Layers of video VAEs on one chunk, with frames of the previous chunk in a cache: cat, pad or magnify, conv3d, clone.

The layers are those of shapes.jsonl, where padded and joined inputs are taken apart again. Tensors are channels-last.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

import tritonconv
from bench.chains.chain import OURS, TORCH, Chain, Input, Way
from bench.providers.cudnn import in_layout
from bench.workloads import Workload, parse, rows
from costmodel import video as model
from costmodel.device import Device
from tritonconv.launch import fp32_precision
from tritonconv.layout import channels_last_strides, dense_strides

SUITES = ("wan21_vae_decode", "wan21_vae_encode", "cogvideox_vae_decode")
#: Rows of the result that are compared with the exact one. In float64 a whole frame may exceed the GPU's memory.
CHECKED = 64


@dataclass(frozen=True)
class Layer:
    """One call of `causal_conv3d`."""

    suite: str
    name: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    cached: int
    stride: tuple[int, int, int]
    padding: tuple[int, int]
    upsample: int = 1
    time_padding: str = "zeros"

    @property
    def chunk(self) -> model.Chunk:
        (h, w), one = self.padding, (1, 1, 1)
        pads = (h, h, w, w)
        return model.Chunk.of(self.x, self.weight, self.cached, self.stride, pads, one, self.upsample, self.time_padding)


def layer_of(row: Workload) -> Layer | None:
    """The call behind a traced layer, whose frames were joined, and padded where the row has no padding of its own. None where
    the layer is no causal convolution."""
    if row.op == "conv2d" and "upsamplers" in row.layer:  # the frames are a batch
        x = (1, row.in_channels, row.batch, *(n // 2 for n in row.size))
        pads = (row.padding[0], row.padding[1])
        return Layer(row.suite, row.layer, x, (row.out_channels, row.in_channels, 1, *row.kernel), 0, (1, 1, 1), pads, 2)
    if row.op != "conv3d" or row.kernel[0] == 1:
        return None
    reach, (t, r, s) = row.kernel[0] - 1, row.kernel
    cached = reach + 1 - row.stride[0]
    inside = [n - (k - 1 if p == 0 else 0) for n, k, p in zip(row.size[1:], (r, s), row.padding[1:], strict=True)]
    x = (row.batch, row.in_channels, row.size[0] - cached, *inside)
    padding = "valid" if row.stride[0] > 1 else "zeros"
    stride = (row.stride[0], row.stride[1], row.stride[2])
    weight = (row.out_channels, row.in_channels, t, r, s)
    return Layer(row.suite, row.layer, x, weight, cached, stride, (r // 2, s // 2), 1, padding)


def layers() -> list[Layer]:
    """The different calls, each once."""
    distinct: dict[tuple[Any, ...], Layer] = {}
    for row in rows():
        if row["suite"] in SUITES and (layer := layer_of(parse(row))) is not None:
            distinct.setdefault((layer.suite, str(layer.chunk)), layer)
    return list(distinct.values())


def by_us(layer: Layer, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, cache: torch.Tensor | None = None) -> torch.Tensor:
    y: torch.Tensor = tritonconv.causal_conv3d(
        x, w, b, layer.stride, layer.padding, cache, upsample=layer.upsample, time_padding=layer.time_padding
    )[0]
    return y


def by_torch(
    layer: Layer, layout: str, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, cache: torch.Tensor | None = None
) -> torch.Tensor:
    """The call as diffusers writes it: the clone for the next chunk, cat, F.interpolate or F.pad, conv3d with its bias."""
    chunk = layer.chunk
    line = x if cache is None else torch.cat([cache, x], 2)
    line[:, :, line.shape[2] - chunk.kept :].clone()
    h, s = layer.padding
    if layer.upsample == 2:
        line, pads = F.interpolate(line, scale_factor=(1.0, 2.0, 2.0), mode="nearest"), (0, h, s)
    else:
        line, pads = F.pad(line, (s, s, h, h, chunk.front, 0)), (0, 0, 0)
    return F.conv3d(in_layout(line, layout), in_layout(w, layout), b, layer.stride, pads)


def seen(y: torch.Tensor) -> torch.Tensor:
    return y[:, :, :, :CHECKED]


def exact(layer: Layer, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, cache: torch.Tensor | None = None) -> torch.Tensor:
    """The first rows of the result."""
    h, s = layer.padding
    enough = ((CHECKED - 1) * layer.stride[1] + layer.weight[3]) // layer.upsample + 1
    line = (x if cache is None else torch.cat([cache, x], 2))[:, :, :, :enough]
    line = line.repeat_interleave(layer.upsample, 3).repeat_interleave(layer.upsample, 4)
    below = h if enough >= layer.x[3] else 0
    return seen(F.conv3d(F.pad(line, (s, s, h, below, layer.chunk.front, 0)), w.contiguous(), b, layer.stride))


def chain_of(layer: Layer, dtype: torch.dtype, device: Device) -> Chain:
    """The chain of a call on a chunk of a video, with channels-last pixels and filters."""

    def channels_last(shape: tuple[int, ...], scale: float = 1.0) -> Input:
        return Input(shape, channels_last_strides(shape), scale)

    chunk, filters = layer.chunk, layer.weight[0]
    inputs = (
        channels_last(layer.x),
        channels_last(layer.weight, math.prod(layer.weight[1:]) ** -0.5),
        Input((filters,), dense_strides((filters,), (0,))),
        *([channels_last((*layer.x[:2], layer.cached, *layer.x[3:]))] if layer.cached else []),
    )
    ways: dict[str, Way] = {
        TORCH: partial(by_torch, layer, "channels_last"),
        f"{TORCH} contiguous": partial(by_torch, layer, "contiguous"),
        OURS: partial(by_us, layer),
    }
    name = str(dtype).removeprefix("torch.")
    precision = fp32_precision()
    plan = model.select(chunk, name, precision, device)
    predicted = {OURS: model.predict(chunk, plan, name, precision, device).seconds}
    moved = model.compulsory(chunk, dtype.itemsize)
    words = f"{layer.name}, {chunk}"
    return Chain(layer.suite, words, dtype, inputs, moved, ways, predicted, partial(exact, layer), seen)


def chains(dtype: torch.dtype, device: Device) -> Iterator[Chain]:
    for layer in layers():
        yield chain_of(layer, dtype, device)
