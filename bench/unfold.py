"""Windows as columns and back: layers of published networks, their predicted times, and the kernels compiled without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch

from bench.aot import Pointer, compile_ahead
from bench.sass import KernelAudit, audit
from costmodel import unfold as model
from costmodel.device import Device, find_device
from costmodel.problem import Pass
from costmodel.unfold import UnfoldCall, Unfolding
from tritonconv.columns import launch
from tritonconv.columns.launch import contiguous
from tritonconv.layout import channels_last_strides
from tritonconv.prepared import TensorKey
from tritonconv.steps import Step

#: The device whose plans an architecture's kernels are compiled with.
GPU = {80: "a100", 90: "h100", 100: "b200"}


@dataclass(frozen=True)
class Layer:
    """Square windows of `kernel` pixels a side, of an image [batch, channels, *size]."""

    network: str
    channels: int
    size: tuple[int, ...]
    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    batch: int = 32

    @property
    def name(self) -> str:
        sizes = "x".join(map(str, self.size))
        return f"{self.channels} x {sizes}, k{self.kernel} s{self.stride} p{self.padding}"

    @property
    def unfolding(self) -> Unfolding:
        rank = len(self.size)
        window = ((n,) * rank for n in (self.kernel, self.dilation, self.padding, self.stride))
        return Unfolding.of((self.batch, self.channels, *self.size), *window)

    def keys(self, last: bool = False) -> tuple[TensorKey, TensorKey]:
        """Shape and strides of the image and of the columns; `last`: channels of the image, or rows of the columns, are
        contiguous."""
        shapes = self.unfolding.problem.input_shape, self.unfolding.columns_shape
        image, columns = ((shape, channels_last_strides(shape)) if last else contiguous(shape) for shape in shapes)
        return image, columns

    def call_keys(self, which: Pass, last: bool = False) -> tuple[TensorKey, TensorKey]:
        """The keys of a call, whose result is contiguous."""
        image, columns = self.keys(last)
        return (image, contiguous(columns[0])) if which == Pass.FPROP else (contiguous(image[0]), columns)

    def call(self, which: Pass, dtype: str = "bfloat16", last: bool = False) -> UnfoldCall:
        """What the cost model is asked."""
        return launch.described(self.unfolding, which, getattr(torch, dtype), *self.call_keys(which, last))


#: The soft splits of T2T-ViT-14 (Yuan et al. 2021, arXiv:2101.11986, figure 4), the soft composition of FuseFormer (Liu et al.
#: 2021, arXiv:2109.02974), the convex upsampling of RAFT (Teed and Deng 2020, arXiv:2003.12039), patches of ViT-B/16
#: (Dosovitskiy et al. 2020, arXiv:2010.11929).
LAYERS = (
    Layer("T2T-ViT-14, split 1", 3, (224, 224), 7, 4, 2),
    Layer("T2T-ViT-14, split 2", 64, (56, 56), 3, 2, 1),
    Layer("FuseFormer", 128, (60, 108), 7, 3, 3, batch=5),
    Layer("RAFT", 2, (55, 128), 3, 1, 1, batch=8),
    Layer("ViT-B/16", 3, (224, 224), 16, 16),
)


@contextmanager
def planned_for(device: Device) -> Iterator[None]:
    """Inside the block launches are prepared with this device's plans."""
    launch.prepare.cache_clear()
    with mock.patch.object(launch, "device_model", lambda _: device):
        yield
    launch.prepare.cache_clear()


def step(layer: Layer, which: Pass, arch: int, dtype: torch.dtype = torch.bfloat16, last: bool = False, plan: str = "") -> Step:
    """The launch of a layer with the plan of an architecture's GPU."""
    with planned_for(find_device(GPU[arch])):
        return launch.prepare(layer.unfolding, which, dtype, 0, *layer.call_keys(which, last), plan).main


def compiled(
    layer: Layer, which: Pass, arch: int = 90, dtype: torch.dtype = torch.bfloat16, last: bool = False, plan: str = ""
) -> KernelAudit:
    """The audit of a layer's compiled kernel."""
    unfold_step = step(layer, which, arch, dtype, last, plan)
    given = Pointer(dtype)
    arguments = (
        dict(zip(unfold_step.kernel.arg_names, (given, given, *unfold_step.arguments), strict=False)) | unfold_step.constants
    )
    options = {name: arguments.pop(name) for name in ("num_warps", "num_stages")}
    return audit(compile_ahead(unfold_step.kernel, arguments, arch=arch, **options))


def table(device: str = "h100", dtype: str = "bfloat16") -> str:
    """The published layers in Markdown: what unfold and fold move, and their predicted microseconds."""
    gpu = find_device(device)
    lines = [
        f"| {dtype}, {device.upper()} (predicted) | unfold, MB | µs | bound by | plan | fold, MB | µs | bound by | plan |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for layer in LAYERS:
        line = f"| {layer.network}: {layer.batch} x {layer.name}"
        for which in (Pass.FPROP, Pass.DGRAD):
            call = layer.call(which, dtype)
            plan = model.select(call, gpu)
            prediction = model.predict(call, plan, gpu)
            line += f" | {prediction.bytes / 1e6:.1f} | {prediction.seconds * 1e6:.1f} | {prediction.bound} | `{plan}`"
        lines.append(line + " |")
    return "\n".join(lines)
