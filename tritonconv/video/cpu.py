"""The causal convolution of video by torch's operators: the known frames are written out, padded and convolved.

It serves CPU tensors outside Triton's interpreter, and writes the frames that gradients need. CUDA tensors are never convolved
here.
"""

from __future__ import annotations

import torch

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
    lies = x
    if not values.is_empty():
        x = by_torch(x, values)
    line = known_frames(chunk, x, cache)
    if 0 in chunk.output_shape:
        y = x.new_empty(chunk.output_shape)
    else:
        frames = magnified(chunk, line)
        if residual is None:
            y = cpu.fprop(frames, w, b, chunk.spatial)
        else:
            sums = cpu.fprop(widened(frames), widened(w), b if b is None else widened(b), chunk.spatial)
            y = (sums + widened(residual)).to(x.dtype)
    after = x.new_empty(0)
    if keeps:
        after = allocate_channels_last(chunk.next_shape, x).copy_(line[:, :, line.shape[2] - chunk.kept :])
    return cpu.laid_out(y, lies, w), after
