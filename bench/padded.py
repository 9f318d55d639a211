"""Layers of published networks that pad with pixels: what is predicted for them beside a padded copy. This needs no GPU."""

from __future__ import annotations

import math
from typing import NamedTuple

from costmodel.algebra import product
from costmodel.device import Device, find_device
from costmodel.families import behind_copies, family
from costmodel.plan import select
from costmodel.problem import ConvProblem, Pass
from costmodel.reports.notation import parse
from costmodel.tiling import channels_last, itemsize


class Layer(NamedTuple):
    network: str
    words: str

    @property
    def problem(self) -> ConvProblem:
        return parse(self.words).problem


#: WeatherBench's convolutions on a grid of 5.625 degrees (Rasp et al. 2020, arXiv:2002.00469: periodic in longitude) and the
#: residual blocks of Rasp and Thuerey 2021 (arXiv:2008.08626), with zeros in latitude; the residual blocks and the first layer
#: of CycleGAN (Zhu et al. 2017, arXiv:1703.10593: reflect); a layer of the U-Net of Stable Diffusion (Rombach et al. 2022,
#: arXiv:2112.10752) that wraps around for images that tile; EnCodec's residual units (Defossez et al. 2022, arXiv:2210.13438:
#: reflect), with both ends alike.
LAYERS = (
    Layer("WeatherBench", "conv2d 64x32x64 k5 p2 zeros,circular c64 n128"),
    Layer("Rasp and Thuerey", "conv2d 128x32x64 k3 p1 zeros,circular c128 n64"),
    Layer("CycleGAN stem", "conv2d 3x256x256 k7 p3 reflect c64 n4"),
    Layer("CycleGAN block", "conv2d 256x64x64 k3 p1 reflect c256 n4"),
    Layer("CycleGAN block", "conv2d 256x64x64 k3 p1 reflect c256 n32"),
    Layer("U-Net around", "conv2d 320x64x64 k3 p1 circular c320 n2"),
    Layer("U-Net around", "conv2d 320x64x64 k3 p1 circular c320 n8"),
    Layer("EnCodec", "conv1d 64x12000 k3 p1 reflect c32 n16"),
)


def predicted(problem: ConvProblem, which: Pass, device: Device, dtype: str = "bfloat16") -> tuple[float, float]:
    """Seconds of a pass in the kernels of "padded", and by the best family that pads with zeros, its copies included; infinite
    where no such family serves it."""
    call = channels_last(problem, which, dtype)
    copied = min(member.quickest(call, device, math.inf)[0] for member in behind_copies().values())
    return family("padded").quickest(call, device, math.inf)[0], copied


def table(device: str = "h100", dtype: str = "bfloat16") -> str:
    """The layers in Markdown: each pass in the kernel and over a padded copy, in microseconds, and the bytes of the copy."""
    model = find_device(device)
    lines = [
        f"| {dtype}, channels-last, {device.upper()} (predicted) | fprop, µs | with a copy | dgrad, µs | with a copy "
        "| wgrad, µs | with a copy | copy, MB | chosen plans |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for layer in LAYERS:
        times = (predicted(layer.problem, which, model, dtype) for which in Pass)
        cells = " | ".join("-" if seconds == math.inf else f"{1e6 * seconds:.0f}" for pair in times for seconds in pair)
        megabytes = itemsize(dtype) * product(layer.problem.written_out.input_shape) / 1e6
        plans = (select(channels_last(layer.problem, which, dtype), model) for which in Pass)
        names = ", ".join(f"`{plan.family}`" for plan in plans)
        lines.append(f"| {layer.network}: {layer.words} | {cells} | {megabytes:.1f} | {names} |")
    return "\n".join(lines)
