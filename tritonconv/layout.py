"""Strides: the memory layout of operands, and the memory format of every output.

One function decides the output's strides for fake, interpreted, CPU and CUDA results alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from costmodel.alignment import unit_and_align
from costmodel.problem import ConvProblem
from costmodel.recast import fold_columns, fold_row, fold_width, folded_input
from costmodel.tiling import MAX_ALIGN, Operand


def looks_channels_last(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """torch's rule (`Tensor.suggest_memory_format`): strides grow in the order C, W, H, (D,) N; ambiguous ones count as no."""
    if len(shape) not in (4, 5) or strides[1] == 0:
        return False
    least = 0
    for axis in (1, *range(len(shape) - 1, 1, -1), 0):
        if shape[axis] == 0 or strides[axis] < least:
            return False
        if axis == 0 and least == strides[1]:
            return False
        least = strides[axis] * (shape[axis] if shape[axis] > 1 else 1)
    return True


def dense_strides(shape: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """Strides of a dense tensor whose axes vary in `order`, the fastest first."""
    strides: list[int] = [1] * len(shape)
    running: int = 1
    for axis in order:
        strides[axis] = running
        size = shape[axis]
        running = running * (max(size, 1) if isinstance(size, int) else torch.sym_max(size, 1))
    return tuple(strides)


def channels_last_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a dense tensor [outer, channel, *spatial] with its channels contiguous."""
    return dense_strides(shape, (1, *range(len(shape) - 1, 1, -1), 0))


def output_strides(shape: Sequence[int], *operands: torch.Tensor) -> tuple[int, ...]:
    """Strides of a dense output of `shape`: channels-last where any operand is, otherwise contiguous (torch's rule)."""
    if any(looks_channels_last(t.shape, t.stride()) for t in operands):
        return channels_last_strides(shape)
    return dense_strides(shape, range(len(shape) - 1, -1, -1))


def allocate(shape: Sequence[int], like: torch.Tensor, *operands: torch.Tensor) -> torch.Tensor:
    """An uninitialised output of `shape`, in the dtype and on the device of `like`."""
    return torch.empty_strided(tuple(shape), output_strides(shape, like, *operands), dtype=like.dtype, device=like.device)


def allocate_channels_last(shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """An uninitialised channels-last tensor of `shape`, in the dtype and on the device of `like`."""
    return torch.empty_strided(tuple(shape), channels_last_strides(shape), dtype=like.dtype, device=like.device)


def is_nested(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether channels are contiguous and strides nest: the stride of each axis of (outer, *spatial) is a multiple of the next
    inner axis's stride, and no shorter than that axis."""
    inner, extent = 1, shape[1]
    for axis in (*range(len(shape) - 1, 1, -1), 0):
        if shape[axis] > 1:
            if strides[axis] < extent or strides[axis] % inner:
                return False
            inner, extent = strides[axis], strides[axis] * shape[axis]
    return strides[1] == 1 or shape[1] == 1


def is_filters(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether each filter of [filter, channel, *kernel] is contiguous by itself, with its channels innermost."""
    extent = 1
    for axis in (1, *range(len(shape) - 1, 1, -1)):
        if shape[axis] > 1 and strides[axis] != extent:
            return False
        extent *= shape[axis]
    return shape[0] == 1 or strides[0] >= extent


def is_boxed(shape: Sequence[int], strides: Sequence[int], grouped_axis: int) -> bool:
    """Whether a descriptor may describe a tensor whose groups share `grouped_axis`; taps and channels of a filter are one."""
    return is_nested(shape, strides) if grouped_axis == 1 else is_filters(shape, strides)


def operand(shape: Sequence[int], strides: Sequence[int], groups: int, grouped_axis: int, aligned: bool = True) -> Operand:
    """What the kernels may assume of a tensor [outer, channel, *spatial]; `groups` share out its `grouped_axis`, and `aligned`
    says whether it begins on a multiple of 16 bytes."""
    axes = (0, 1, 4) if len(shape) > 2 else (0, 1)
    position = {0: 0, 1: 1, 4: len(shape) - 1}
    unit = -1
    for axis in (1, 4, 0):
        if axis in axes and (strides[position[axis]] == 1 or (axis == 1 and shape[1] == 1)):
            unit = axis
            break
    align = MAX_ALIGN
    for axis, (size, stride) in enumerate(zip(shape, strides, strict=True)):
        if size > 1 and not (unit >= 0 and position[unit] == axis):
            align = math.gcd(align, stride)
    outside = align
    if groups > 1:
        per_group = shape[grouped_axis] // groups
        align = math.gcd(align, per_group * strides[grouped_axis])
    return Operand(unit=unit, align=align, outside=outside, boxed=aligned and is_boxed(shape, strides, grouped_axis))


def block_diagonal(weight: torch.Tensor, groups: int, merge: int) -> torch.Tensor:
    """Weights [K, C / G, *kernel] as [K, merge * C / G, *kernel], channels-last, with `merge` groups as one. They are zero
    where a filter meets a channel of another group."""
    k, c, *kernel = weight.shape
    blocks = (groups // merge, merge, k // groups)
    merged = weight.new_zeros((k, *kernel, merge * c))
    diagonal = merged.view(*blocks, *kernel, merge, c).diagonal(dim1=1, dim2=-2)  # [G / merge, K / G, *kernel, C / G, merge]
    diagonal.copy_(weight.movedim(1, -1).reshape(*blocks, *kernel, c).movedim(1, -1))
    return merged.movedim(-1, 1)


def diagonal_blocks(merged: torch.Tensor, groups: int, merge: int) -> torch.Tensor:
    """A view of the weights that `block_diagonal` made into `merged`: [G / merge, merge, K / G, C / G, *kernel]."""
    blocks = merged.unflatten(1, (merge, -1)).unflatten(0, (groups // merge, merge, -1))
    return blocks.diagonal(dim1=1, dim2=3).movedim(-1, 1)


def padded_columns(x: torch.Tensor, problem: ConvProblem) -> torch.Tensor:
    """x [N, C, *size] in the shape `costmodel.recast.folded_input`: channels-last, with the padding of its rows written out."""
    low, row, width = problem.padding[-1][0], fold_row(problem), x.shape[-1]
    padded = x.new_zeros(folded_input(problem))

    def put(columns: torch.Tensor, first: int) -> None:
        """Writes columns of x from number `first` of the row on, as far as the row goes."""
        begin, end = max(0, -first), min(columns.shape[-1], row - first)
        if begin < end:
            padded[..., begin + first : end + first, : x.shape[1]] = columns[..., begin:end].movedim(1, -1)

    put(x, low)
    for columns, first in border(x, problem.modes[-1], low, max(0, row - low - width)):
        put(columns, first)
    return padded


def border(x: torch.Tensor, mode: str, low: int, high: int) -> list[tuple[torch.Tensor, int]]:
    """What stands before and behind the columns of x in a row with `low` and `high` columns of padding: (columns, the number of
    the first of them in the row); nothing for zeros."""
    width = x.shape[-1]
    if mode == "reflect":
        ends = x[..., 1 : low + 1].flip(-1), x[..., width - 1 - high : width - 1].flip(-1)
    elif mode == "replicate":
        ends = x[..., :1].expand(*x.shape[:-1], low), x[..., -1:].expand(*x.shape[:-1], high)
    elif mode == "circular":
        ends = x[..., width - low :], x[..., :high]
    else:
        return []
    return [(ends[0], 0), (ends[1], low + width)]


def folded_key(problem: ConvProblem) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides of `padded_columns` as the folded problem's input: the windows of neighbouring pixels overlap."""
    padded = folded_input(problem)
    batch, *pixels, channel = dense_strides(padded, range(len(padded) - 1, -1, -1))
    return fold_columns(problem).input_shape, (batch, channel, *pixels)


def folded_weights(w: torch.Tensor, problem: ConvProblem) -> torch.Tensor:
    """w [K, C, *kernel] as the weights of the folded problem: channels-last, with columns and channels as one axis."""
    k, c, *lead, columns = w.shape
    folded = w.new_zeros((k, *lead, columns, fold_width(problem)))
    folded[..., :c] = w.movedim(1, -1)
    return folded.view(k, *lead, 1, -1).movedim(-1, 1)


def unfolded_weights(folded: torch.Tensor, problem: ConvProblem) -> torch.Tensor:
    """The weights [K, C, *kernel] as a view into the channels-last `folded`."""
    k, c, *kernel = problem.weight_shape
    return folded.movedim(1, -1).view(k, *kernel, fold_width(problem))[..., :c].movedim(-1, 1)


def channels_last_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A channels-last copy of a tensor of any rank; it is a copy also where the tensor is channels-last."""
    if tensor.dim() > 3:
        return tensor.clone(memory_format=torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d)
    return tensor.movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)


def depthwise_operand(
    shape: Sequence[int], strides: Sequence[int], groups: int = 1, grouped_axis: int = 1, aligned: bool = True
) -> Operand:
    """`operand`, for problems that the depthwise kernels may take. Nothing is read along an axis of size 1. These kernels read
    all groups at once and use `outside`."""
    unit, align = unit_and_align(shape, strides)
    per_group = shape[grouped_axis] // groups
    shared = math.gcd(align, per_group * strides[grouped_axis]) if groups > 1 else align
    return Operand(unit, shared, align, aligned and is_boxed(shape, strides, grouped_axis))


def filters_last_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of dense weights [K, C / G, *kernel] with neighbouring filters next to each other."""
    return dense_strides(shape, (0, 1, *range(len(shape) - 1, 1, -1)))


def filters_last_copy(weight: torch.Tensor) -> torch.Tensor:
    """A copy of the weights with neighbouring filters next to each other, then channels."""
    return weight.movedim((1, 0), (-2, -1)).contiguous().movedim((-2, -1), (1, 0))


def five(values: Sequence[int], lead: int) -> tuple[int, int, int, int, int]:
    """The strides of [outer, channel, *spatial] with leading spatial axes of size 1 (and stride `lead`), up to three."""
    missing = 5 - len(values)
    outer, channel, *spatial = values
    return (outer, channel, *(lead,) * missing, *spatial)  # type: ignore[return-value]
