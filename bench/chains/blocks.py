"""Residual blocks of video and image VAEs at their real sizes: normalisation, SiLU, convolution, twice, and the sum.

One way is that of diffusers (autoencoder_kl_wan, _qwenimage, autoencoder_kl with FLUX's config, autoencoder_kl_hunyuan_video).
The other is `causal_conv3d`, whose prologue and residual replace all but the statistics. `python -m bench blocks` prints what
the cost model predicts of both; nothing in that table was measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

import costmodel
import tritonconv
from bench.chains.chain import OURS, TORCH, Chain, Input, Way
from bench.chains.predicted import Ran
from costmodel import video
from costmodel.chunk import Chunk
from costmodel.device import Device, find_device
from tritonconv.layout import channels_last_strides, dense_strides

GROUPS, EPS = 32, 1e-6


@dataclass(frozen=True)
class Block:
    """x of this shape through two convolutions of as many channels. `cached`: frames of each convolution's cache. `norm`: "rms"
    of each pixel or "group" of an image. `border`: what stands around a frame, and with "replicate" before the first one."""

    suite: str
    x: tuple[int, int, int, int, int]
    cached: int
    norm: str
    kernel: tuple[int, int, int] = (3, 3, 3)
    border: str = "zeros"

    @property
    def front(self) -> int:
        """Frames before the first known one that are padding."""
        return self.kernel[0] - 1 - self.cached

    def __str__(self) -> str:
        _, channels, frames, h, w = self.x
        return f"{channels} channels, {frames} x {h} x {w}"


#: Decoders on one chunk: Wan at 480 x 832 (2.2: 704 x 1280) on a frame of latents behind earlier ones, Qwen-Image and FLUX at
#: 1024 x 1024, HunyuanVideo on a tile of 256 x 256 and 17 frames.
BLOCKS = (
    *(Block("Wan 2.1", (1, c, t, h, w), 2, "rms") for c, t, h, w in [(384, 1, 60, 104), (384, 2, 120, 208)]),
    *(Block("Wan 2.1", (1, c, 4, h, w), 2, "rms") for c, h, w in [(192, 240, 416), (96, 480, 832)]),
    *(Block("Wan 2.2", (1, c, t, h, w), 2, "rms") for c, t, h, w in [(1024, 1, 44, 80), (1024, 2, 88, 160)]),
    *(Block("Wan 2.2", (1, c, 4, h, w), 2, "rms") for c, h, w in [(512, 176, 320), (256, 352, 640)]),
    *(Block("Qwen-Image", (1, c, 1, n, n), 0, "rms") for c, n in [(384, 128), (384, 256), (192, 512), (96, 1024)]),
    *(Block("FLUX", (1, c, 1, n, n), 0, "group", (1, 3, 3)) for c, n in [(512, 128), (512, 256), (256, 512), (128, 1024)]),
    *(
        Block("HunyuanVideo", (1, c, t, n, n), 0, "group", (3, 3, 3), "replicate")
        for c, t, n in [(512, 5, 32), (512, 5, 64), (256, 9, 128), (128, 17, 256)]
    ),
)

Tensors = Sequence[torch.Tensor]


def normalised(block: Block, x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """The normalisation in torch's operators, as diffusers has it."""
    if block.norm == "group":
        return F.group_norm(x, GROUPS, weight, shift, EPS)
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    per_channel = (-1, 1, 1, 1)
    return F.normalize(wide, dim=1).to(x.dtype) * x.shape[1] ** 0.5 * weight.view(per_channel) + shift.view(per_channel)


def convolved(block: Block, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, cache: torch.Tensor | None) -> torch.Tensor:
    if block.kernel[0] == 1:  # a layer of images
        return F.conv2d(x[:, :, 0], w[:, :, 0], b, padding=1).unsqueeze(2)
    if block.border != "zeros":
        return F.conv3d(F.pad(x, (1, 1, 1, 1, 2, 0), block.border), w, b)
    x[:, :, -2:].clone()  # for the next chunk
    line = x if cache is None else torch.cat([cache, x], 2)
    return F.conv3d(F.pad(line, (1, 1, 1, 1, block.front, 0)), w, b)


def by_torch(block: Block, x: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
    parameters, caches = given[:8], given[8:] or (None, None)
    y = x
    for i, before in enumerate(caches):
        weight, shift, w, b = parameters[4 * i : 4 * i + 4]
        y = convolved(block, F.silu(normalised(block, y, weight, shift)), w, b, before)
    return y + x


def by_us(block: Block, x: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
    parameters, caches = tensors[:8], tensors[8:] or (None, None)
    time = "replicate" if block.border == "replicate" else "zeros"
    keeps = block.kernel[0] > 1 and block.border == "zeros"
    y = x
    for i, before in enumerate(caches):
        weight, shift, w, b = parameters[4 * i : 4 * i + 4]
        if block.norm == "group":
            prologue = tritonconv.group_norm_prologue(y, GROUPS, weight, shift, EPS, "silu")
        else:
            prologue = tritonconv.rms_norm_prologue(y, weight, shift, 1e-24, "silu")
        result: Any = tritonconv.causal_conv3d(
            *(y, w, b, 1, 1, before, keeps),
            time_padding=time,
            prologue=prologue,
            residual=x if i else None,
            padding_mode=block.border,
        )
        y = result[0] if isinstance(result, tuple) else result
    return y


def shapes(block: Block) -> list[tuple[int, ...]]:
    """x, then twice the norm's weight and shift, the filter and its bias, then the caches."""
    n, c, _, h, w = block.x
    conv: list[tuple[int, ...]] = [(c,), (c,), (c, c, *block.kernel), (c,)]
    return [block.x, *conv, *conv, *([(n, c, block.cached, h, w)] * 2 if block.cached else [])]


def inputs(block: Block) -> tuple[Input, ...]:
    def input_of(shape: tuple[int, ...]) -> Input:
        if len(shape) == 1:
            return Input(shape, dense_strides(shape, (0,)))
        small = math.prod(shape[1:]) ** -0.5 if shape[2:] == block.kernel else 1.0
        return Input(shape, channels_last_strides(shape), small)

    return tuple(map(input_of, shapes(block)))


class Parts(NamedTuple):
    """Predicted seconds of a block's convolutions, and of all that is around them."""

    convolutions: float
    around: float

    @property
    def seconds(self) -> float:
        return self.convolutions + self.around


@cache
def predicted(block: Block, device: Device, dtype: torch.dtype) -> tuple[dict[str, Parts], tuple[str, ...]]:
    """(the parts of either way, our plans). The times of torch's way are what PyTorch takes today, by `costmodel.library`. In
    our way the time that a prologue adds, in the same kernel or in one of its own, counts as around the convolutions."""
    given = [torch.empty_strided(i.shape, i.strides, dtype=dtype, device="meta") for i in inputs(block)]
    name = str(dtype).removeprefix("torch.")
    torchs, ours = (costmodel.trace(Ran(partial(way, block)), *given) for way in (by_torch, by_us))
    today = torchs.on(device, name, library="cudnn").rows
    spent = sum(row.seconds for row in today if row.layer.problem is not None)
    parts = {TORCH: Parts(spent, sum(row.seconds for row in today) - spent)}
    rows = ours.on(device, name).rows
    calls = [replace(row.layer.call, prologue=None) for row in rows if isinstance(row.layer.call, Chunk)]
    alone = [video.predict(call, video.select(call, name, "ieee", device), name, "ieee", device).seconds for call in calls]
    parts[OURS] = Parts(sum(alone), sum(row.seconds for row in rows) - sum(alone))
    return parts, tuple(row.plan for row in rows if row.plan)


def chain_of(block: Block, dtype: torch.dtype, device: Device) -> Chain:
    """The chain of a block: two calls, each with a normalisation before it."""
    ways: dict[str, Way] = {TORCH: partial(by_torch, block), OURS: partial(by_us, block)}
    tensors = inputs(block)
    moved = dtype.itemsize * (sum(math.prod(i.shape) for i in tensors) + math.prod(block.x))
    known = {} if dtype == torch.float64 else {OURS: predicted(block, device, dtype)[0][OURS].seconds}
    return Chain(f"block {block.suite}", f"{block}, {block.norm} norm", dtype, tensors, moved, ways, known)


def chains(dtype: torch.dtype, device: Device) -> Iterator[Chain]:
    for block in BLOCKS:
        yield chain_of(block, dtype, device)


def summary(device: str = "h200") -> str:
    """docs' table, in bfloat16."""
    lines = [
        "| model | block | around, torch | around, ours | convolutions, torch | convolutions, ours | plans |",
        "|---|---|---|---|---|---|---|",
    ]
    for block in BLOCKS:
        parts, plans = predicted(block, find_device(device), torch.bfloat16)
        times = [parts[way][i] for i in (1, 0) for way in (TORCH, OURS)]
        words = ", ".join(f"`{plan.removeprefix('fprop:video:')}`" for plan in dict.fromkeys(plans))
        lines.append(f"| {block.suite} | {block} | " + " | ".join(f"{1e6 * t:.0f} us" for t in times) + f" | {words} |")
    return "\n".join(lines)
