"""Whether sizes go together as torch's convolutions want them, in words that name argument, value and expectation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from costmodel.algebra import Size, symbolic

#: torch's words for what the padding of an axis holds. The library ops name a mode by its position here.
MODES = ("zeros", "reflect", "replicate", "circular")


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


def modes_of(padding_mode: str | Sequence[str], padding: Sequence[tuple[Size, Size]]) -> tuple[str, ...]:
    """The mode of each axis, "zeros" where an axis has no padding; () where it is zeros on all of them.

    Raises ShapeError for a word that is no mode and for a wrong number of them.
    """
    given = (padding_mode,) * len(padding) if isinstance(padding_mode, str) else tuple(padding_mode)
    if len(given) != len(padding) or any(mode not in MODES for mode in given):
        names = ", ".join(map(repr, MODES))
        raise ShapeError(
            f"padding_mode must be one of {names}, or one of them for each of {len(padding)} spatial axes, got {padding_mode!r}"
        )
    modes = tuple(
        "zeros" if known(*pair) and tuple(pair) == (0, 0) else mode for mode, pair in zip(given, padding, strict=True)
    )
    return modes if any(mode != "zeros" for mode in modes) else ()


def check_modes(input_size: Sequence[Size], padding: Sequence[tuple[Size, Size]], modes: Sequence[str]) -> None:
    """Raises ShapeError unless each axis has as many pixels as its mode needs for its padding, as torch's `pad` does."""
    for axis, (size, pair, mode) in enumerate(zip(input_size, padding, modes, strict=False)):
        if mode == "zeros":
            continue
        if min(pair) < 0:
            raise ShapeError(
                f"padding_mode {mode!r} takes padding of at least 0, got padding {tuple(pair)} at spatial axis {axis}"
            )
        limit = {"reflect": size - 1, "circular": size}.get(mode)
        if size < 1 or (limit is not None and max(pair) > limit):
            needs = {"reflect": "less padding than pixels", "circular": "at most as much padding as pixels"}
            raise ShapeError(
                f"padding_mode {mode!r} needs {needs.get(mode, 'a pixel')}, got padding {tuple(pair)} and {size} pixels at "
                f"spatial axis {axis}"
            )


def ends_and_modes(padding: Sequence[Any], rank: int) -> tuple[tuple[tuple[Any, Any], ...], tuple[str, ...]]:
    """((low, high) per axis, the mode of each axis) of the flat padding of a library op, which has the numbers of the modes
    behind it where they are not all zeros."""
    ends, numbers = padding[: 2 * rank], padding[2 * rank :]
    return tuple(zip(ends[::2], ends[1::2], strict=True)), tuple(MODES[number] for number in numbers) or (MODES[0],) * rank


def mode_words(modes: Sequence[str]) -> str:
    """Modes of the axes as one word: "circular" where they are alike, else joined by commas."""
    return modes[0] if len({*modes}) == 1 else ",".join(modes)
