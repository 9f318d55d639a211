"""Arguments of `unfold` and `fold`. Every message names the argument, what came and what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from costmodel.shapes import ShapeError
from costmodel.unfold import Unfolding
from tritonconv.check import _countable, alike, ints

Ints = tuple[int, ...]
#: kernel_size, dilation, padding and stride, as the ops take them.
Window = tuple[Ints, Ints, Ints, Ints]


def _tensor(function: str, input: Any) -> None:
    if not isinstance(input, torch.Tensor):
        raise TypeError(f"{function}(): argument 'input' must be a Tensor, got {type(input).__name__}")
    alike(function, "input", {"input": input})


def _rank(function: str, **sizes: Any) -> int:
    """The length of the first that is a tuple; 2 where all are ints."""
    for name, value in sizes.items():
        if isinstance(value, (tuple, list)):
            if not 1 <= len(value) <= 3:
                raise RuntimeError(
                    f"{function}(): expected {name} to be an int or 1 to 3 ints, got {len(value)}: {name}={value}"
                )
            return len(value)
    return 2


def _axes(function: str, name: str, value: Any, rank: int, least: int) -> Ints:
    """One number for all axes, or one for each, as torch asks it here: a tuple of one is of rank 1."""
    if isinstance(value, (tuple, list)) and len(value) != rank:
        raise RuntimeError(f"{function}(): expected {name} to be an int or {rank} ints, got {len(value)}: {name}={value}")
    return ints(function, name, value, rank, least)


def _window(function: str, rank: int, kernel_size: Any, dilation: Any, padding: Any, stride: Any) -> Window:
    return (
        _axes(function, "kernel_size", kernel_size, rank, 1),
        _axes(function, "dilation", dilation, rank, 1),
        _axes(function, "padding", padding, rank, 0),
        _axes(function, "stride", stride, rank, 1),
    )


def _said(kernel: Sequence[Any], dilation: Sequence[Any], padding: Sequence[Any], stride: Sequence[Any]) -> str:
    return ", ".join(
        f"{name}={tuple(value)}"
        for name, value in (("kernel_size", kernel), ("dilation", dilation), ("padding", padding), ("stride", stride))
    )


def image(function: str, x: torch.Tensor, *window: Sequence[Any]) -> Unfolding:
    """The call of an image [N, C, *size]. RuntimeError where a kernel is larger than the padded image."""
    try:
        return Unfolding.of(tuple(x.shape), *window)
    except ShapeError as error:
        raise RuntimeError(f"{function}: {error} (input {list(x.shape)}, {_said(*window)})") from None


def columns(function: str, y: torch.Tensor, output_size: Sequence[Any], *window: Sequence[Any]) -> Unfolding:
    """The call of columns [N, C * taps, L]. RuntimeError where they are not those of an image of `output_size`."""
    taps = 1
    for n in window[0]:
        taps *= n
    batch, rows, places = y.shape
    if rows % taps:
        raise RuntimeError(
            f"{function}: expected input [N, C * {taps}, L] for kernel_size={tuple(window[0])}, got input {list(y.shape)}, "
            f"whose {rows} rows are no multiple of {taps}"
        )
    try:
        unfolding = Unfolding.of((batch, rows // taps, *output_size), *window)
    except ShapeError as error:
        raise RuntimeError(f"{function}: {error} (output_size={tuple(output_size)}, {_said(*window)})") from None
    if places != unfolding.places:
        counts = " * ".join(map(str, unfolding.problem.output_size))
        raise RuntimeError(
            f"{function}: expected input with {counts} = {unfolding.places} windows for output_size={tuple(output_size)}, "
            f"{_said(*window)}, got input {list(y.shape)} with {places}"
        )
    return unfolding


def _not_empty(function: str, input: torch.Tensor, batched: bool) -> None:
    if any(n == 0 for n in input.shape[batched:]):
        raise RuntimeError(f"{function}(): only the batch may be empty, got input of shape {list(input.shape)}")


def unfold(input: Any, kernel_size: Any, dilation: Any, padding: Any, stride: Any) -> tuple[bool, Window]:
    """(whether input has a batch, the arguments of the op behind it)."""
    _tensor("unfold", input)
    rank = _rank("unfold", kernel_size=kernel_size)
    window = _window("unfold", rank, kernel_size, dilation, padding, stride)
    if input.dim() not in (rank + 1, rank + 2):
        hint = "" if rank != 2 else "; windows of another rank have a kernel_size of 1 or 3 ints"
        raise RuntimeError(
            f"unfold(): expected {rank + 1}D (unbatched) or {rank + 2}D (batched) input for kernel_size={kernel_size}, got "
            f"input {list(input.shape)}{hint}"
        )
    batched = input.dim() == rank + 2
    _not_empty("unfold", input, batched)
    unfolding = image("unfold()", input if batched else input.unsqueeze(0), *window)
    _countable("unfold", input, unfolding.columns_shape, kernel_size=kernel_size, padding=padding)
    return batched, window


def fold(
    input: Any, output_size: Any, kernel_size: Any, dilation: Any, padding: Any, stride: Any
) -> tuple[bool, tuple[Ints, Ints, Ints, Ints, Ints]]:
    """(whether input has a batch, the arguments of the op behind it)."""
    _tensor("fold", input)
    rank = _rank("fold", kernel_size=kernel_size, output_size=output_size)
    size = _axes("fold", "output_size", output_size, rank, 1)
    window = _window("fold", rank, kernel_size, dilation, padding, stride)
    if input.dim() not in (2, 3):
        raise RuntimeError(f"fold(): expected 2D (unbatched) or 3D (batched) input, got input {list(input.shape)}")
    batched = input.dim() == 3
    _not_empty("fold", input, batched)
    unfolding = columns("fold()", input if batched else input.unsqueeze(0), size, *window)
    _countable("fold", input, unfolding.problem.input_shape, output_size=output_size)
    return batched, (size, *window)
