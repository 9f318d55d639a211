"""`unfold` and `fold` by torch's operators, of any rank, for CPU tensors where nothing runs kernels. CUDA tensors never come
here.

torch's own functions are of rank 2 only, and their `fold` rounds after each addition in half precision.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F

from costmodel.unfold import Unfolding
from tritonconv.prepared import wide


def unfold(unfolding: Unfolding, x: torch.Tensor, plan: str = "") -> torch.Tensor:
    """The columns [N, C * taps, L] of x [N, C, *size]."""
    problem = unfolding.problem
    padded = F.pad(x, [p for pair in reversed(problem.padding) for p in pair]).contiguous()
    batch, channel, *axes = padded.stride()
    taps = (a * d for a, d in zip(axes, problem.dilation, strict=True))
    places = (a * s for a, s in zip(axes, problem.stride, strict=True))
    shape = (*padded.shape[:2], *problem.kernel_size, *problem.output_size)
    return padded.as_strided(shape, (batch, channel, *taps, *places)).reshape(unfolding.columns_shape)


def fold(unfolding: Unfolding, y: torch.Tensor, plan: str = "") -> torch.Tensor:
    """The image [N, C, *size] of columns y [N, C * taps, L], whose taps are added in their order."""
    problem = unfolding.problem
    shape = (problem.batch, problem.in_channels, *problem.padded_size)
    made = torch.zeros(shape, dtype=wide(y.dtype), device=y.device)
    each = y.reshape(*shape[:2], *problem.kernel_size, *problem.output_size)
    for tap in itertools.product(*map(range, problem.kernel_size)):
        steps = zip(tap, problem.dilation, problem.stride, problem.output_size, strict=True)
        seen: Any = tuple(slice(t * d, t * d + (n - 1) * s + 1, s) for t, d, s, n in steps)
        row: Any = (slice(None), slice(None), *tap)
        made[..., *seen] += each[row]
    inner: Any = tuple(slice(low, low + n) for (low, _), n in zip(problem.padding, problem.input_size, strict=True))
    return made[..., *inner].to(y.dtype).contiguous()
