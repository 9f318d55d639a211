"""A matrix product, for layers that are one: 1x1 with stride 1, and windows that tile the input, in one group.

Patches are views where that is possible; otherwise a copy, within the measured time, lays them out.
"""

from __future__ import annotations

import torch

from bench.providers.contender import Contender, Unserved
from bench.providers.cudnn import in_layout
from bench.work import Work
from costmodel.problem import ConvProblem, Pass


def patches(x: torch.Tensor, problem: ConvProblem) -> torch.Tensor:
    """x [N, C, *in] as [N * prod(out), prod(kernel) * C]."""
    rank = problem.rank
    split = [n for pair in zip(problem.output_size, problem.kernel_size, strict=True) for n in pair]
    cut = x.reshape(*x.shape[:2], *split)  # [N, C, P, R, Q, S]
    order = (0, *range(2, 2 + 2 * rank, 2), *range(3, 3 + 2 * rank, 2), 1)
    return cut.permute(order).reshape(-1, problem.taps * problem.in_channels)


def unpatched(rows: torch.Tensor, problem: ConvProblem) -> torch.Tensor:
    """The inverse of `patches`."""
    rank = problem.rank
    cut = rows.view(problem.batch, *problem.output_size, *problem.kernel_size, problem.in_channels)
    pairs = [axis for i in range(rank) for axis in (1 + i, 1 + rank + i)]
    return cut.permute(0, 1 + 2 * rank, *pairs).reshape(problem.input_shape)


def rows_of(t: torch.Tensor) -> torch.Tensor:
    """A tensor [N, K, *size] as [N * prod(size), K]."""
    return t.movedim(1, -1).reshape(-1, t.shape[1])


def contenders(work: Work) -> list[Contender]:
    p = work.problem
    covered = tuple(out * k for out, k in zip(p.output_size, p.kernel_size, strict=True))
    if p.groups != 1 or not p.is_patch or covered != p.input_size or any(pair != (0, 0) for pair in p.padding):
        raise Unserved("the layer is no plain matrix product")

    def flat(w: torch.Tensor) -> torch.Tensor:
        return w.movedim(1, -1).reshape(w.shape[0], -1)  # [K, prod(kernel) * C]

    def prepare(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (a, b) if work.which == Pass.WGRAD else (a, flat(b))

    def call(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if work.which == Pass.FPROP:
            y = patches(a, p) @ b.T
            return in_layout(y.view(p.batch, *p.output_size, -1).movedim(-1, 1), work.layout)
        if work.which == Pass.DGRAD:
            return in_layout(unpatched(rows_of(a) @ b, p), work.layout)
        dw = rows_of(a).T @ patches(b, p)
        return dw.view(p.out_channels, *p.kernel_size, p.in_channels).movedim(-1, 1)

    return [Contender("matmul", call, "mm", prepare)]
