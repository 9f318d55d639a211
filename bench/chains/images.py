"""Layers of image models behind a GroupNorm: normalisation, SiLU, convolution, at their real sizes.

The layers are those of FLUX's decoder and SDXL's U-Net. The ways are torch's operators, a kernel for the norm followed by
`conv2d_fused`, and `conv2d_fused` with a prologue. `python -m bench blocks --images` prints what the cost model predicts;
nothing in that table was measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
import torch.nn.functional as F

import costmodel
import tritonconv
from bench.chains.blocks import EPS, GROUPS
from bench.chains.chain import OURS, TORCH, Chain, Input, Way
from bench.chains.predicted import Ran
from costmodel import ahead
from costmodel.device import Device, find_device
from costmodel.problem import Pass
from costmodel.prologue import Prologue
from costmodel.tiling import channels_last
from tritonconv.layout import channels_last_strides, dense_strides

TWO = f"{OURS}, two kernels"


@dataclass(frozen=True)
class Layer:
    """A convolution of an x of this shape with `filters` filters of `kernel` x `kernel`. silu: whether the norm is
    activated."""

    suite: str
    x: tuple[int, int, int, int]
    filters: int
    kernel: int = 3
    silu: bool = True

    def __str__(self) -> str:
        _, channels, h, w = self.x
        return f"{channels} to {self.filters} channels, {self.kernel}x{self.kernel}, {h} x {w}"


#: FLUX's decoder at 1024 x 1024: each level's residual blocks, the query of its attention, the last layer. SDXL's U-Net at
#: 1024 x 1024: a block, a pointwise layer before an attention, the last layer.
LAYERS = (
    *(Layer("FLUX", (1, c, n, n), k) for c, k, n in [(512, 512, 128), (512, 256, 512), (256, 128, 1024), (128, 128, 1024)]),
    Layer("FLUX attention", (1, 512, 128, 128), 512, 1, False),
    Layer("FLUX last", (1, 128, 1024, 1024), 3),
    Layer("SDXL", (2, 320, 128, 128), 320),
    Layer("SDXL attention", (2, 640, 64, 64), 640, 1, False),
    Layer("SDXL last", (2, 320, 128, 128), 4),
)


def by_torch(
    layer: Layer, x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, w: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    y = F.group_norm(x, GROUPS, gamma, beta, EPS)
    return F.conv2d(F.silu(y) if layer.silu else y, w, b, padding=layer.kernel // 2)


def by_us(
    layer: Layer, apart: bool, x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, w: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    prologue = tritonconv.group_norm_prologue(x, GROUPS, gamma, beta, EPS, "silu" if layer.silu else None)
    if apart:
        return tritonconv.conv2d_fused(prologue(x), w, b, padding=layer.kernel // 2)
    return tritonconv.conv2d_fused(x, w, b, padding=layer.kernel // 2, prologue=prologue)


def ways(layer: Layer) -> dict[str, Way]:
    return {TORCH: partial(by_torch, layer), TWO: partial(by_us, layer, True), OURS: partial(by_us, layer, False)}


def inputs(layer: Layer) -> tuple[Input, ...]:
    channels, weight = layer.x[1], (layer.filters, layer.x[1], layer.kernel, layer.kernel)
    scale, plain = math.prod(weight[1:]) ** -0.5, [Input((n,), dense_strides((n,), (0,))) for n in (channels, layer.filters)]
    x, w = Input(layer.x, channels_last_strides(layer.x)), Input(weight, channels_last_strides(weight), scale)
    return x, plain[0], plain[0], w, plain[1]


@cache
def predicted(layer: Layer, device: Device, dtype: torch.dtype) -> tuple[dict[str, float], str]:
    """(seconds by way, the plan of the call with a prologue). The time of torch's way is what PyTorch takes today, by
    `costmodel.library`. The two kernels are those of a call that applies its prologue apart."""
    given = [torch.empty_strided(i.shape, i.strides, dtype=dtype, device="meta") for i in inputs(layer)]
    name, calls = str(dtype).removeprefix("torch."), ways(layer)
    torchs, ours = (costmodel.trace(Ran(calls[way]), *given) for way in (TORCH, OURS))
    rows = ours.on(device, name).rows
    (row,) = (row for row in rows if row.plan)
    assert row.layer.problem is not None and isinstance(row.layer.call, Prologue)
    plain = channels_last(row.layer.problem, Pass.FPROP, name)
    both = ahead.Ways(replace(plain, prologue=row.layer.call), plain)
    apart = next(plan for plan in ahead.quickest(both, device) if not ahead.is_together(plan))
    one = sum(part.seconds for part in rows)
    two = one - row.seconds + ahead.predict(both, apart, device).seconds
    return {TORCH: torchs.on(device, name, library="cudnn").seconds, TWO: two, OURS: one}, row.plan


def chains(dtype: torch.dtype, device: Device) -> Iterator[Chain]:
    for layer in LAYERS:
        tensors, result = inputs(layer), (layer.x[0], layer.filters, *layer.x[2:])
        moved = dtype.itemsize * (sum(math.prod(i.shape) for i in tensors) + math.prod(result))
        times = {} if dtype == torch.float64 else predicted(layer, device, dtype)[0]
        known = {way: seconds for way, seconds in times.items() if way != TORCH}
        yield Chain(f"norm {layer.suite}", str(layer), dtype, tensors, moved, ways(layer), known)


def summary(device: str = "h200") -> str:
    """docs' table, in bfloat16."""
    lines = ["| model | layer | torch | ours, two kernels | ours, one call | its plan |", "|---|---|---|---|---|---|"]
    for layer in LAYERS:
        times, plan = predicted(layer, find_device(device), torch.bfloat16)
        cells = " | ".join(f"{1e6 * times[way]:.0f} us" for way in (TORCH, TWO, OURS))
        lines.append(f"| {layer.suite} | {layer} | {cells} | `{plan.removeprefix('fprop:')}` |")
    return "\n".join(lines)
