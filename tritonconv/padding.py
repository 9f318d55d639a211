"""Padding modes by torch's operators: the padding written out, and its transpose.

`costmodel.problem.ConvProblem.written_out` is the problem of the result. CPU tensors and decompositions come here, and the
calls of which `is_copied` says so, on every device.
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


def is_copied(problem: ConvProblem) -> bool:
    """Whether a call without a forced plan writes its padding out first: groups of one channel or one filter.

    The kernels of padding modes would fill a sixteenth of a tile with such a group. The kernels for narrow groups, which pad
    with zeros, take the copy."""
    narrow = problem.groups > 1 and 1 in (problem.channels_per_group, problem.filters_per_group)
    return bool(problem.padding_mode) and narrow


def copied(x: torch.Tensor, problem: ConvProblem) -> torch.Tensor:
    """`written_out` by torch's concatenation, whose derivatives are slices and sums: the same bits on every run on a GPU
    too."""
    for axis in _axes(problem):
        (low, high), size, mode, dim = problem.padding[axis], problem.input_size[axis], problem.padding_mode[axis], 2 + axis
        parts = [x]
        if low > 0:
            parts.insert(0, _end(x, dim, mode, low, 0))
        if high > 0:
            parts.append(_end(x, dim, mode, high, size - 1))
        x = torch.cat(parts, dim)
    return x


def _end(x: torch.Tensor, dim: int, mode: str, count: int, edge: int) -> torch.Tensor:
    """The `count` places beyond the pixel `edge`, the first or the last of an axis."""
    size = x.shape[dim]
    if mode == "replicate":
        shape = [*x.shape]
        shape[dim] = count
        return x.narrow(dim, edge, 1).expand(shape)
    if mode == "circular":
        return x.narrow(dim, 0 if edge else size - count, count)
    return x.narrow(dim, size - 1 - count if edge else 1, count).flip(dim)
