"""Deformable convolutions of published networks: what is predicted for them, and what the compiler makes of their kernels. This
needs no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from bench.aot import Pointer, compile_ahead
from bench.sass import KernelAudit, audit
from costmodel import deform as model
from costmodel import deform_backward
from costmodel.deform import Deformation, DeformCall
from costmodel.device import Device, find_device
from costmodel.problem import ConvProblem
from costmodel.tiling import itemsize
from tritonconv.deform import backward, launch
from tritonconv.layout import channels_last_strides, dense_strides
from tritonconv.prepared import TensorKey
from tritonconv.steps import Step

#: The device whose plans an architecture's kernels are compiled with.
GPU = {80: "a100", 90: "h100", 100: "b200"}
#: The kernels of a call, forward and backward.
KERNELS = ("forward", "columns", "targets", "scatter", "weights", "reduce")


@dataclass(frozen=True)
class Layer:
    """A modulated 3x3 deformable convolution with "same" padding, of images of `height` x `width`."""

    network: str
    channels: int
    filters: int
    height: int
    width: int
    stride: int = 1
    offset_groups: int = 1
    groups: int = 1
    batch: int = 2

    @property
    def name(self) -> str:
        groups = f", {self.offset_groups} offset groups" if self.offset_groups > 1 else ""
        return f"{self.channels} x {self.height}x{self.width}, s{self.stride} -> {self.filters}{groups}"

    @property
    def deformation(self) -> Deformation:
        x, w = (self.batch, self.channels, self.height, self.width), (self.filters, self.channels // self.groups, 3, 3)
        problem = ConvProblem.conv(x, w, (self.stride,) * 2, (1, 1), (1, 1), self.groups)
        return Deformation(problem, self.offset_groups, True)

    def keys(self, channels_last: bool = True) -> dict[str, TensorKey]:
        """Shape and strides of every tensor; `channels_last`: input, weight and output are, and so are their gradients."""
        deformation = self.deformation

        def dense(shape: tuple[int, ...], last: bool) -> TensorKey:
            return shape, channels_last_strides(shape) if last else dense_strides(shape, range(len(shape) - 1, -1, -1))

        problem = deformation.problem
        shapes = {"x": problem.input_shape, "w": problem.weight_shape, "y": problem.output_shape}
        keys = {name: dense(shape, channels_last) for name, shape in shapes.items()}
        return keys | {"offset": dense(deformation.offset_shape, False), "mask": dense(deformation.mask_shape, False)}

    def call(self, dtype: str = "bfloat16", precision: str = "tf32", channels_last: bool = True) -> DeformCall:
        """What the cost model is asked."""
        keys = self.keys(channels_last)
        return launch.described(self.deformation, getattr(torch, dtype), precision, keys["x"], keys["w"], keys["y"])


#: conv3 to conv5 of a ResNet-50 whose 3x3 convolutions are deformable (Zhu et al. 2018, "Deformable ConvNets v2", section 4.1;
#: images of 800 x 1216), and the alignment of BasicVSR++ (Chan et al. 2022, arXiv:2104.13371: 128 channels of two frames, 16
#: offset groups, 64 x 64 pixels).
LAYERS = (
    Layer("DCNv2 ResNet-50", 128, 128, 100, 152),
    Layer("DCNv2 ResNet-50", 256, 256, 50, 76),
    Layer("DCNv2 ResNet-50", 512, 512, 25, 38),
    Layer("BasicVSR++", 128, 64, 64, 64, offset_groups=16),
)


@contextmanager
def planned_for(device: Device) -> Iterator[None]:
    """Inside the block launches are prepared with this device's plans."""
    caches: tuple[Any, ...] = (launch.prepare, backward.columns_step, backward.weights_steps)
    for cached in caches:
        cached.cache_clear()
    with mock.patch.object(launch, "device_model", lambda _: device):
        with mock.patch.object(backward, "device_model", lambda _: device):
            yield
    for cached in caches:
        cached.cache_clear()


def steps(
    layer: Layer, arch: int, dtype: torch.dtype, precision: str = "tf32", channels_last: bool = True, plans: str = ""
) -> dict[str, Step]:
    """The launches of a layer by name: those of `KERNELS` that the layer has, under the plans of an architecture's GPU."""
    deformation, keys = layer.deformation, layer.keys(channels_last)
    x, w, y, offset, mask = (keys[name] for name in ("x", "w", "y", "offset", "mask"))
    with planned_for(find_device(GPU[arch])):
        forward = launch.prepare(deformation, dtype, precision, 0, x, offset, w, y, mask, 1, plans)
        columns = backward.columns_step(deformation, dtype, precision, 0, y, x, offset, w, mask, True, True, plans)
        weights = backward.weights_steps(deformation, dtype, precision, 0, y, x, offset, mask, w, plans)
        targets, scatter = backward.scatter_steps(deformation, dtype, offset, mask, x)
    steps = {"forward": forward.main, "columns": columns, "targets": targets, "scatter": scatter, "weights": weights.sums}
    return steps if weights.reduce is None else steps | {"reduce": weights.reduce}


def compiled(
    layer: Layer,
    kernel: str,
    arch: int = 90,
    dtype: torch.dtype = torch.bfloat16,
    precision: str = "tf32",
    channels_last: bool = True,
    plans: str = "",
) -> KernelAudit:
    """The audit of one of a layer's compiled kernels."""
    step = steps(layer, arch, dtype, precision, channels_last, plans)[kernel]
    inner = torch.float64 if dtype == torch.float64 else torch.float32
    given, sums, numbers = Pointer(dtype), Pointer(inner), Pointer(torch.int32)
    pointers: dict[str, tuple[Any, ...]] = {
        "forward": (given,) * 6,
        "columns": (*(given,) * 7, sums),
        "targets": (given, given, numbers, sums),
        "scatter": (sums, Pointer(torch.int64), numbers, sums, given),
        "weights": (*(given,) * 4, sums if step.constants.get("SPLIT") else given),
        "reduce": (sums, None, given),
    }
    arguments = dict(zip(step.kernel.arg_names, (*pointers[kernel], *step.arguments), strict=False)) | step.constants
    options = {name: arguments.pop(name) for name in ("num_warps", "num_stages", "maxnreg") if name in arguments}
    return audit(compile_ahead(step.kernel, arguments, arch=arch, **options))


def table(device: str = "h100", dtype: str = "bfloat16") -> str:
    """The published layers in Markdown: forward, backward and its parts, in microseconds, and what columns would move."""
    model_of = find_device(device)
    lines = [
        f"| batch 2, {dtype}, {device.upper()} (predicted) | forward, µs | columns, MB | backward, µs "
        "| of which sort and scatter | forward plan |",
        "|---|---|---|---|---|---|",
    ]
    for layer in LAYERS:
        call, (forward, backward_) = layer.call(dtype), predicted(layer, model_of, dtype)
        parts = deform_backward.parts(call, model_of)
        sorting = parts["sort"][0] + parts["scatter"][0]
        moved = model.column_bytes(layer.deformation, itemsize(dtype)) / 1e6
        lines.append(
            f"| {layer.network} {layer.name} | {forward * 1e6:.0f} | {moved:.0f} | {backward_ * 1e6:.0f} | {sorting * 1e6:.0f} "
            f"| `{model.select(call, model_of)}` |"
        )
    return "\n".join(lines)


def predicted(layer: Layer, device: Device, dtype: str = "bfloat16") -> tuple[float, float]:
    """Seconds forward and backward."""
    call = layer.call(dtype)
    return model.predict(call, model.select(call, device), device).seconds, deform_backward.predict(call, device).seconds
