"""Whether sizes go together as torch's convolutions want them, in words that name argument, value and expectation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from costmodel.algebra import Size, symbolic


def known(*sizes: Size) -> bool:
    """Whether sizes are numbers (ints or torch's SymInts) and not symbols. Under Dynamo, which traces this, all are ints."""
    return {*map(type, sizes)} == {int} or not symbolic(*sizes)


class ShapeError(ValueError, RuntimeError):
    """Sizes that make no convolution. It is a ValueError, as all errors of this package are, and a RuntimeError, as torch's
    is."""


def check_ranks(input_shape: Sequence[Size], weight_shape: Sequence[Size], **window: Any) -> None:
    """Raises ShapeError unless input, weight and each of `window` have sizes for the same axes."""
    rank = len(weight_shape) - 2
    if rank < 1:
        raise ShapeError(f"weight_shape must be [K, C / groups, *kernel] with an axis or more, got {list(weight_shape)}")
    if len(input_shape) != rank + 2:
        unbatched = ": an unbatched input needs a batch of 1 in front" if len(input_shape) == rank + 1 else ""
        raise ShapeError(
            f"input_shape must be [N, C, *size] with {rank + 2} sizes for weight_shape {list(weight_shape)}, got "
            f"{list(input_shape)}{unbatched}"
        )
    for name, values in window.items():
        if not isinstance(values, str) and (not hasattr(values, "__len__") or len(values) != rank):
            raise ShapeError(f"{name} must have an entry for each of {rank} spatial axes, got {values!r}")


def check_window(groups: Size, stride: Sequence[Size], dilation: Sequence[Size]) -> None:
    """Raises ShapeError unless groups, strides and dilations are at least 1."""
    if groups < 1 or min(stride) < 1 or min(dilation) < 1:
        raise ShapeError(
            f"groups, stride and dilation must be at least 1, got groups={groups}, stride={tuple(stride)}, "
            f"dilation={tuple(dilation)}"
        )


def check_channels(input_shape: Sequence[Size], weight_shape: Sequence[Size], groups: Size) -> None:
    """Raises ShapeError unless the channels are those of torch's conv."""
    filters, channels = weight_shape[:2]
    if filters < groups or filters % groups:
        raise ShapeError(
            f"expected weight to be divisible by groups at dimension 0, got weight {list(weight_shape)} and groups={groups}"
        )
    if input_shape[1] != channels * groups:
        raise ShapeError(
            f"given groups={groups} and weight {list(weight_shape)}, expected input to have {channels * groups} channels, got "
            f"input {list(input_shape)} with {input_shape[1]}"
        )


def check_kernel(padded: Sequence[Size], extents: Sequence[Size]) -> None:
    """Raises ShapeError unless a window fits the padded input."""
    if any(size < extent for size, extent in zip(padded, extents, strict=True)):
        raise ShapeError(
            f"kernel size can't be greater than the padded input: padded {list(padded)}, dilated kernel {list(extents)}"
        )


def check_transposed_channels(input_shape: Sequence[Size], weight_shape: Sequence[Size], groups: Size) -> None:
    """Raises ShapeError unless the channels are those of torch's conv_transpose."""
    if input_shape[1] != weight_shape[0] or weight_shape[0] % groups:
        raise ShapeError(
            f"given transposed=1 and weight {list(weight_shape)}, expected input to have {weight_shape[0]} channels, "
            f"divisible by groups={groups}, got input {list(input_shape)}"
        )


def check_result(sizes: Sequence[Size], **given: Any) -> None:
    """Raises ShapeError unless a transposed convolution has a result. `given` are the arguments that the words name."""
    if any(size <= 0 for size in sizes):
        words = ", ".join(f"{name}={value}" for name, value in given.items())
        raise ShapeError(f"the output would have size {list(sizes)}: {words}")


def padding_pairs(
    padding: Sequence[Any] | str, kernel_size: Sequence[Size], dilation: Sequence[Size]
) -> tuple[tuple[Size, Size], ...]:
    """(low, high) per axis from ints, pairs, 'valid' or 'same'. 'same' puts the odd element at the high end, as torch does."""
    if isinstance(padding, str):
        if padding == "valid":
            return ((0, 0),) * len(kernel_size)
        if padding != "same":
            raise ValueError(f"padding must be 'same' or 'valid' when it is a string, got {padding!r}")
        totals = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((p[0], p[1]) if isinstance(p, (tuple, list)) else (p, p) for p in padding)
