"""Padding modes by torch's operators: the padding written out, and its transpose.

`costmodel.problem.ConvProblem.written_out` is the problem of the result. CPU tensors and decompositions come here.
"""

from __future__ import annotations

import torch

from costmodel.problem import ConvProblem


def _sources(problem: ConvProblem, axis: int, device: torch.device) -> torch.Tensor:
    """The pixel of an axis that stands at each place of it with its padding written out."""
    (low, high), size, mode = problem.padding[axis], problem.input_size[axis], problem.padding_mode[axis]
    at = torch.arange(-low, size + high, device=device)
    if mode == "circular":
        return at % size
    if mode == "replicate":
        return at.clamp(0, size - 1)
    return size - 1 - (size - 1 - at.abs()).abs()


def _axes(problem: ConvProblem) -> list[int]:
    return [axis for axis, mode in enumerate(problem.padding_mode) if mode != "zeros"]


def written_out(x: torch.Tensor, problem: ConvProblem) -> torch.Tensor:
    """x [N, C, *size] with the padding of each axis whose mode is not zeros."""
    for axis in _axes(problem):
        x = x.index_select(2 + axis, _sources(problem, axis, x.device))
    return x


def folded(padded: torch.Tensor, problem: ConvProblem) -> torch.Tensor:
    """The transpose of `written_out`: [N, C, *size], each pixel the sum of the places that hold it."""
    for axis in _axes(problem):
        shape = [*padded.shape]
        shape[2 + axis] = problem.input_size[axis]
        sources = _sources(problem, axis, padded.device)
        padded = padded.new_zeros(shape).index_add(2 + axis, sources, padded)
    return padded
