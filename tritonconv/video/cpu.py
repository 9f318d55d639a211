"""The causal convolution of video by torch's operators: the known frames are written out, padded and convolved.

It serves CPU tensors outside Triton's interpreter, and writes the frames that gradients need. CUDA tensors are never convolved
here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from costmodel.video import Chunk
from tritonconv import cpu
from tritonconv.epilogue import widened
from tritonconv.layout import allocate_channels_last
from tritonconv.normalize.op import by_torch
from tritonconv.video.launch import NOTHING, Values


def known_frames(chunk: Chunk, x: torch.Tensor, cache: torch.Tensor | None) -> torch.Tensor:
    """[N, C, front + known, H, W]: the padding frames, then the cache, then x."""
    line = x if cache is None else torch.cat([cache, x], 2)
    first = line[:, :, :1] if chunk.replicate else torch.zeros_like(line[:, :, :1])
    return torch.cat([first.expand(-1, -1, chunk.front, -1, -1), line], 2)


def magnified(chunk: Chunk, frames: torch.Tensor) -> torch.Tensor:
    """The frames with every pixel repeated `chunk.upsample` times along height and width, as F.interpolate's "nearest"."""
    if chunk.upsample == 1:
        return frames
    return frames.repeat_interleave(chunk.upsample, 3).repeat_interleave(chunk.upsample, 4)


def padded(chunk: Chunk, frames: torch.Tensor) -> torch.Tensor:
    """The frames with the padding of height and width that `chunk.spatial` expects written out."""
    if chunk.mode == "zeros":
        return frames
    (top, bottom), (left, right) = chunk.problem.padding[1:]
    n, c, t, h, w = frames.shape
    frames_padded = F.pad(frames.transpose(1, 2).reshape(n * t, c, h, w), (left, right, top, bottom), chunk.mode)
    return frames_padded.view(n, t, c, *frames_padded.shape[2:]).transpose(1, 2)


def folded(chunk: Chunk, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient of frames, from that of what `padded` made of them."""
    if chunk.mode == "zeros":
        return gradient
    for axis, (low, high) in zip((3, 4), chunk.problem.padding[1:], strict=True):
        gradient = _folded(gradient, axis, low, high, chunk.mode)
    return gradient


def _folded(gradient: torch.Tensor, axis: int, low: int, high: int, mode: str) -> torch.Tensor:
    """One axis: what stands in the padding is added to the pixels that it repeats."""
    size = gradient.shape[axis] - low - high
    before, inner, after = gradient.split((low, size, high), axis)
    if mode == "replicate":
        before, after = (end.sum(axis, keepdim=True) for end in (before, after))
        places = (0, size - 1)
    elif mode == "reflect":
        before, after = before.flip(axis), after.flip(axis)
        places = (1, size - 1 - high)
    else:
        places = (size - low, 0)
    for end, place in zip((before, after), places, strict=True):
        behind = size - place - end.shape[axis]
        inner = inner + F.pad(end, (0, 0) * (4 - axis) + (place, behind))
    return inner


def forward(
    chunk: Chunk,
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None,
    cache: torch.Tensor | None,
    keeps: bool,
    forced: str = "",
    values: Values = NOTHING,
    residual: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, the next cache); the cache has no elements where it is not asked for."""
    given = x
    if not values.is_empty():
        x = by_torch(x, values)
    line = known_frames(chunk, x, cache)
    if 0 in chunk.output_shape:
        y = x.new_empty(chunk.output_shape)
    else:
        frames = padded(chunk, magnified(chunk, line))
        if residual is None:
            y = cpu.fprop(frames, w, b, chunk.spatial)
        else:
            sums = cpu.fprop(widened(frames), widened(w), b if b is None else widened(b), chunk.spatial)
            y = (sums + widened(residual)).to(x.dtype)
    after = x.new_empty(0)
    if keeps:
        after = allocate_channels_last(chunk.next_shape, x).copy_(line[:, :, line.shape[2] - chunk.kept :])
    return cpu.laid_out(y, given, w), after
