"""Padding modes by torch's operators: the padding written out, and its transpose.

`costmodel.problem.ConvProblem.written_out` is the problem of the result. CPU tensors and decompositions take the functions that
autograd sees through, plans of the families "copied-..." those that write into a tensor.
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


def write_out(x: torch.Tensor, problem: ConvProblem, into: torch.Tensor) -> torch.Tensor:
    """`written_out` into a tensor of that shape, which it returns, by torch's copies: x once, then each end of each axis."""
    _inside(into, problem, -1).copy_(x)
    for axis in _axes(problem):
        whole, dim, (low, high) = _inside(into, problem, axis), 2 + axis, problem.padding[axis]
        pixels = whole.narrow(dim, low, problem.input_size[axis])
        for count, start, edge in ((low, 0, 0), (high, whole.shape[dim] - high, pixels.shape[dim] - 1)):
            if count > 0:
                source = _held(pixels, dim, problem.padding_mode[axis], count, edge)
                whole.narrow(dim, start, count).copy_(_turned(source, dim, problem.padding_mode[axis]))
    return into


def fold_into(dx: torch.Tensor, padded: torch.Tensor, problem: ConvProblem) -> None:
    """`folded` into dx, by torch's additions, which overwrite `padded`: each end of the last axis, then those before it. Sums
    are in the type of the tensors and in this order, so the bits are the same on every run."""
    for axis in reversed(_axes(problem)):
        whole, dim, (low, high) = _inside(padded, problem, axis), 2 + axis, problem.padding[axis]
        pixels = whole.narrow(dim, low, problem.input_size[axis])
        for count, start, edge in ((low, 0, 0), (high, whole.shape[dim] - high, pixels.shape[dim] - 1)):
            if count > 0:
                mode, images = problem.padding_mode[axis], whole.narrow(dim, start, count)
                images = images.sum(dim, keepdim=True) if mode == "replicate" and count > 1 else images
                _held(pixels, dim, mode, count, edge).add_(_turned(images, dim, mode))
    dx.copy_(_inside(padded, problem, -1))


def _inside(padded: torch.Tensor, problem: ConvProblem, axis: int) -> torch.Tensor:
    """Of a tensor with its padding written out, what lies inside the padding of the axes behind `axis`."""
    for other in _axes(problem):
        if other > axis:
            padded = padded.narrow(2 + other, problem.padding[other][0], problem.input_size[other])
    return padded


def _held(pixels: torch.Tensor, dim: int, mode: str, count: int, edge: int) -> torch.Tensor:
    """The pixels that the `count` places beyond the pixel `edge` hold, the first or the last of an axis."""
    size = pixels.shape[dim]
    if mode == "replicate":
        return pixels.narrow(dim, edge, 1)
    if mode == "circular":
        return pixels.narrow(dim, 0 if edge else size - count, count)
    return pixels.narrow(dim, size - 1 - count if edge else 1, count)


def _turned(values: torch.Tensor, dim: int, mode: str) -> torch.Tensor:
    return values.flip(dim) if mode == "reflect" and values.shape[dim] > 1 else values
