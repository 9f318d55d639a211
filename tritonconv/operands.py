"""What the library ops require of their arguments before anything is read: comparisons of integers, for real and fake tensors.

The public functions check more, in the words of their own arguments (`tritonconv.check`). These checks are those of
`torch.ops.tritonconv`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from costmodel.problem import ConvProblem
from tritonconv.check import DTYPES

Maybe = torch.Tensor | None


def alike(op: str, first: torch.Tensor, *others: Any) -> None:
    """Raises RuntimeError unless all tensors in `others` have the dtype and device of the first, because a kernel is compiled
    for one dtype."""
    dtype, device = first.dtype, first.device
    for other in others:
        if isinstance(other, torch.Tensor):
            if other.dtype != dtype:
                raise RuntimeError(f"tritonconv::{op}: all tensors must have the same dtype, got {dtype} and {other.dtype}")
            if other.device != device:
                raise RuntimeError(f"tritonconv::{op}: all tensors must be on the same device, got {device} and {other.device}")


def shaped(op: str, name: str, tensor: Maybe, *shape: Any) -> None:
    """Raises RuntimeError unless a tensor, if given, has this shape."""
    if tensor is not None and tensor.shape != shape:
        raise RuntimeError(f"tritonconv::{op}: expected {name} of shape {list(shape)}, got {name} {list(tensor.shape)}")


def axes(op: str, name: str, tensor: torch.Tensor, count: int) -> None:
    if tensor.dim() != count:
        raise RuntimeError(f"tritonconv::{op}: expected {name} of {count} axes, got {name} {list(tensor.shape)}")


def floating(op: str, name: str, tensor: torch.Tensor) -> None:
    """Raises RuntimeError unless a tensor is of a dtype that there are kernels for."""
    if tensor.dtype not in DTYPES:
        kinds = ", ".join(map(str, DTYPES))
        raise RuntimeError(f"tritonconv::{op}: expected {name} of {kinds}, got {tensor.dtype}")


def numbers(op: str, name: str, tensor: Maybe, first: torch.Tensor, *shape: Any) -> None:
    """Raises RuntimeError unless a tensor, if given, is contiguous int32 of this shape, on the device of the first."""
    if tensor is None:
        return
    shaped(op, name, tensor, *shape)
    if tensor.dtype != torch.int32 or tensor.device != first.device or not tensor.is_contiguous():
        raise RuntimeError(
            f"tritonconv::{op}: expected {name} to be contiguous torch.int32 on {first.device}, got {tensor.dtype} of strides "
            f"{list(tensor.stride())} on {tensor.device}"
        )


def window(
    op: str,
    rank: int,
    stride: Sequence[Any],
    padding: Sequence[Any],
    dilation: Sequence[Any],
    groups: Any = 1,
    modes: int = 0,
) -> None:
    """Raises RuntimeError unless stride and dilation have one entry per axis, each at least 1, padding has two per axis, and
    there is at least one group. An op that knows `modes` padding modes takes the number of one per axis behind the padding."""
    if groups < 1:
        raise RuntimeError(f"tritonconv::{op}: groups must be at least 1, got groups={groups}")
    for name, values in (("stride", stride), ("dilation", dilation)):
        if len(values) != rank or min(values) < 1:
            raise RuntimeError(f"tritonconv::{op}: {name} must be {rank} numbers, each at least 1, got {name}={list(values)}")
    if modes and len(padding) == 3 * rank:
        if any(number not in range(modes) for number in padding[2 * rank :]):
            raise RuntimeError(
                f"tritonconv::{op}: the modes behind the padding must be numbers from 0 to {modes - 1}, got padding="
                f"{list(padding)}"
            )
        return
    if len(padding) != 2 * rank:
        raise RuntimeError(
            f"tritonconv::{op}: padding must be {2 * rank} numbers, low and high of each axis, got padding={list(padding)}"
        )


def sizes(op: str, name: str, values: Sequence[Any], rank: int, least: int) -> None:
    if len(values) != rank or any(v < least for v in values):
        raise RuntimeError(f"tritonconv::{op}: {name} must be {rank} numbers, each at least {least}, got {name}={list(values)}")


def covered(op: str, problem: ConvProblem) -> None:
    """Raises RuntimeError where a kernel is larger than the padded input."""
    if any(n < extent for n, extent in zip(problem.padded_size, problem.effective_kernel, strict=True)):
        raise RuntimeError(
            f"tritonconv::{op}: the kernel is larger than the padded input: padded {list(problem.padded_size)}, dilated kernel "
            f"{list(problem.effective_kernel)}"
        )


def word(op: str, name: str, value: str, known: Any) -> None:
    """Raises ValueError unless a word is "" or known."""
    if value and value not in known:
        names = ", ".join(map(repr, known))
        raise ValueError(f"tritonconv::{op}: {name} must be '' or one of {names}, got {name}={value!r}")
