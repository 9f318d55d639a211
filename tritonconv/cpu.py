"""The three primitives by torch's own CPU convolution, for CPU tensors outside Triton's interpreter.

With them a model that was converted on a GPU machine also runs on a laptop. CUDA tensors never come here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from costmodel.problem import ConvProblem
from tritonconv.layout import output_strides
from tritonconv.padding import folded, written_out


def _even(problem: ConvProblem) -> list[int]:
    """Per axis, the padding that both ends share, which torch's convolution takes without writing it out."""
    return [max(0, min(pair)) for pair in problem.padding]


def _odd(problem: ConvProblem) -> list[int]:
    """The rest of the padding, in the form of `F.pad`: padding of one end, and crops."""
    ends = reversed([(lo - even, hi - even) for (lo, hi), even in zip(problem.padding, _even(problem), strict=True)])
    return [p for pair in ends for p in pair]


def laid_out(result: torch.Tensor, *operands: torch.Tensor) -> torch.Tensor:
    """`result` with the strides that the kernels would give it."""
    strides = output_strides(result.shape, *operands)
    return (
        result if result.stride() == strides else torch.empty_strided(result.shape, strides, dtype=result.dtype).copy_(result)
    )


def _backward(
    problem: ConvProblem, dy: torch.Tensor, x: torch.Tensor, w: torch.Tensor, mask: list[bool]
) -> tuple[torch.Tensor, ...]:
    return torch.ops.aten.convolution_backward(
        dy,
        x,
        w,
        None,
        problem.stride,
        _even(problem),
        problem.dilation,
        False,
        [0] * problem.rank,
        problem.groups,
        mask,
    )


def fprop(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, problem: ConvProblem) -> torch.Tensor:
    x, problem = written_out(x, problem), problem.written_out
    y = torch.convolution(
        F.pad(x, _odd(problem)),
        w,
        b,
        problem.stride,
        _even(problem),
        problem.dilation,
        False,
        [0] * problem.rank,
        problem.groups,
    )
    return laid_out(y, x, w)


def dgrad(dy: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, problem: ConvProblem) -> torch.Tensor:
    original, problem = problem, problem.written_out
    sizes = (n - 2 * even for n, even in zip(problem.padded_size, _even(problem), strict=True))
    padded = dy.new_empty((problem.batch, problem.in_channels, *sizes))
    dx = F.pad(_backward(problem, dy, padded, w, [True, False, False])[0], [-p for p in _odd(problem)])
    dx = folded(dx, original)
    if b is not None:
        dx = dx + b.view(-1, *(1,) * problem.rank)
    return laid_out(dx, dy, w)


def wgrad(dy: torch.Tensor, x: torch.Tensor, problem: ConvProblem) -> torch.Tensor:
    x, problem = written_out(x, problem), problem.written_out
    w = dy.new_empty(problem.weight_shape)
    dw = _backward(problem, dy, F.pad(x, _odd(problem)), w, [False, True, False])[1]
    return laid_out(dw, x, dy)
