"""The 3x3 layer of a detector's bottleneck with deformable convolutions: the convolution that makes offsets and masks, a
sigmoid, the deformable convolution, a frozen batch norm, ReLU.

The layer is mmdetection's ModulatedDeformConv2dPack (Zhu et al. 2018, "Deformable ConvNets v2", arXiv:1811.11168), at the sizes
of `bench.deform`. torch's own way samples by grid_sample; where torchvision loads, its operator is a further way.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F

import tritonconv
from bench.chains.chain import OURS, TORCH, Chain, Input, Way
from bench.chains.predicted import named, predicted
from bench.deform import LAYERS, Layer
from costmodel.count import Cost
from costmodel.deform import CORNERS, PLACE, Deformation, column_bytes, elements
from costmodel.device import Device
from costmodel.library.networks import LibraryClock
from tritonconv.launch import fp32_precision
from tritonconv.layout import channels_last_strides, dense_strides

SUITE, TORCHVISION = "deformable", "torchvision"
TAPS = 9
#: Threads per warp, instructions that a multiprocessor issues per clock, and instructions per pixel of a sample: its address,
#: the load, the conversion and the sum.
LANES, SCHEDULERS, LOADED = 32, 4, 4


@cache
def package() -> Any:
    """The module torchvision.ops; None where it does not load or has no operators for this torch."""
    try:
        module = importlib.import_module("torchvision.ops")
    except (ImportError, RuntimeError):  # absent, or built for another torch
        return None
    return module if importlib.import_module("torchvision.extension")._has_ops() else None


def split(planes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(offsets, masks) from the result of the first convolution."""
    return planes[:, : 2 * TAPS], planes[:, 2 * TAPS :].sigmoid()


def sampled(x: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, stride: int) -> torch.Tensor:
    """The samples [N, C * 9, P * Q] of a 3x3 filter with padding 1, by grid_sample, in float32 or wider: in 16 bits a
    coordinate of 100 would be off by a sixteenth of a pixel or more."""
    wide = torch.promote_types(x.dtype, torch.float32)
    (batch, _, height, width), (rows, columns) = x.shape, offset.shape[2:]
    moved = offset.to(wide).view(batch, TAPS, 2, rows, columns)
    taps = torch.arange(TAPS, device=x.device, dtype=wide)
    p = torch.arange(rows, device=x.device, dtype=wide).view(-1, 1) * stride - 1
    q = torch.arange(columns, device=x.device, dtype=wide) * stride - 1
    h = moved[:, :, 0] + p + torch.div(taps, 3, rounding_mode="floor").view(-1, 1, 1)
    w = moved[:, :, 1] + q + (taps % 3).view(-1, 1, 1)
    grid = torch.stack([w * (2 / (width - 1)) - 1, h * (2 / (height - 1)) - 1], -1)
    samples = F.grid_sample(x.to(wide), grid.view(batch, TAPS * rows, columns, 2), align_corners=True)
    samples = samples.view(batch, -1, TAPS, rows, columns) * mask.to(wide).unsqueeze(1)
    return samples.to(x.dtype).flatten(3).flatten(1, 2)


def by_torch(layer: Layer, x: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
    w_offset, b_offset, w, scale, shift = given
    planes = F.conv2d(x, w_offset, b_offset, layer.stride, 1)
    y = w.flatten(1) @ sampled(x, *split(planes), layer.stride)
    y = y.view(x.shape[0], -1, *planes.shape[2:])
    return F.relu(y * scale.view(-1, 1, 1) + shift.view(-1, 1, 1))


def by_torchvision(layer: Layer, x: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
    w_offset, b_offset, w, scale, shift = given
    offset, mask = split(F.conv2d(x, w_offset, b_offset, layer.stride, 1))
    y = package().deform_conv2d(x, offset, w, None, layer.stride, 1, 1, mask)
    return F.relu(y * scale.view(-1, 1, 1) + shift.view(-1, 1, 1))


def by_us(layer: Layer, x: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
    """Our way, with the batch norm folded into the filter and the bias."""
    w_offset, b_offset, w, scale, shift = given
    offset, mask = split(tritonconv.conv2d(x, w_offset, b_offset, layer.stride, 1))
    folded = w * scale.view(-1, 1, 1, 1)
    return F.relu(tritonconv.deform_conv2d(x, offset, folded, shift, layer.stride, 1, 1, mask))


def without_sampling(layer: Layer, x: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
    """torchvision's way, with the result of its operator given as the last argument."""
    w_offset, b_offset, _, scale, shift, y = given
    split(F.conv2d(x, w_offset, b_offset, layer.stride, 1))
    return F.relu(y * scale.view(-1, 1, 1) + shift.view(-1, 1, 1))


def by_columns(deformation: Deformation, dtype: torch.dtype, device: Device) -> float:
    """Seconds of torchvision's operator on the GPU, kernel by kernel (torchvision/csrc/ops/cuda/deform_conv2d_kernel.cu): it
    makes x and offsets contiguous, fills columns and two results with zeros, writes the columns, multiplies once, copies the
    result to its place, and adds the bias.

    The sampling takes the longer of two times: that of a copy of its bytes, and that of its instructions at the peak rate. It
    computes each place again for every channel, and loads four pixels per sample. Misses of the caches, and the share of the
    rate that it reaches, are not counted, so this time is a lower bound."""
    name, size = named(dtype), dtype.itemsize
    clock = LibraryClock(
        device, "cudnn", mode="eager", layout="channels_last", dtype=name, precision=fp32_precision(), training=False
    )
    counts, columns = elements(deformation), column_bytes(deformation, size) // 2
    y = size * counts["output"]
    read = size * (counts["input"] + counts["offset"] + counts["mask"])
    steps = (
        ("copy", Cost(bytes=2 * read)),
        ("zeros", Cost(bytes=columns)),
        ("zeros", Cost(bytes=y)),
        ("zeros", Cost(bytes=y)),
        ("addmm", Cost(deformation.macs, deformation.macs, bytes=columns + size * counts["weight"] + 2 * y)),
        ("copy", Cost(bytes=2 * y)),
        ("add", Cost(bytes=2 * y, other_flops=counts["output"])),
    )
    others = sum(clock.time(operator, "", None, spent, name).seconds for operator, spent in steps)
    copied = clock.time("im2col", "", None, Cost(bytes=read + columns), name).seconds
    issued = deformation.samples / LANES * (PLACE + CORNERS * LOADED) / (SCHEDULERS * device.sm_count * device.clock * 1e6)
    return others + max(copied, issued)


def inputs(layer: Layer) -> tuple[Input, ...]:
    """x, the filter and bias of the offsets, the filter, scale and shift. Offsets reach about a pixel."""
    c, k = layer.channels, layer.filters
    shapes = ((layer.batch, c, layer.height, layer.width), (3 * TAPS, c, 3, 3), (k, c // layer.groups, 3, 3))
    x, w_offset, w = (
        Input(shape, channels_last_strides(shape), scale)
        for shape, scale in zip(shapes, (1.0, (TAPS * c) ** -0.5, (TAPS * c) ** -0.5), strict=True)
    )
    b_offset, scale, shift = (Input((n,), dense_strides((n,), (0,))) for n in (3 * TAPS, k, k))
    return x, w_offset, b_offset, w, scale, shift


def chain_of(layer: Layer, dtype: torch.dtype, device: Device) -> Chain:
    """The chain of a deformable layer and of the convolution that makes its offsets."""
    ways: dict[str, Way] = {TORCH: partial(by_torch, layer), OURS: partial(by_us, layer)}
    tensors = inputs(layer)
    known = predicted(ways, tensors, dtype, device)
    if known:
        y = Input(shape := layer.deformation.problem.output_shape, dense_strides(shape, (3, 2, 1, 0)))
        around = predicted({TORCHVISION: partial(without_sampling, layer)}, (*tensors, y), dtype, device)[TORCHVISION]
        known[TORCHVISION] = around + by_columns(layer.deformation, dtype, device)
    if package() is not None:
        ways[TORCHVISION] = partial(by_torchvision, layer)
    shapes = (*(i.shape for i in tensors), layer.deformation.problem.output_shape)
    moved = dtype.itemsize * sum(torch.Size(shape).numel() for shape in shapes)
    return Chain(SUITE, f"{layer.network} {layer.name}", dtype, tensors, moved, ways, known)


def chains(dtype: torch.dtype, device: Device) -> Iterator[Chain]:
    """The layers whose offsets one convolution makes."""
    for layer in LAYERS:
        if layer.offset_groups == layer.groups == 1:
            yield chain_of(layer, dtype, device)
