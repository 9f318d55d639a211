"""Tangents of deform_conv2d, and those and the gradients of its gradients, by the same two ops.

The result D(x, offset, w, mask) is linear in x, w and mask. Between two pixels a sample is linear in its place too, so its
slope along the height is the difference of the samples at the two whole rows around it. With h' the offset along the height
rounded down,

    tangent of D along h = D(x, (h' + 1, w), w, mask * th) - D(x, (h', w), w, mask * th),

and along the width likewise. At a whole offset that is the slope towards larger offsets, as the gradient's. The gradients B(dy,
x, offset, w, mask) are linear in dy, x, w and mask as well, and move with the offset in the same way. A derivative of any order
is a sum of such calls. Places rounded down are whole, so nothing is lost where offsets are float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from tritonconv.deform.again import called_backward

_OPS = torch.ops.tritonconv
Maybe = torch.Tensor | None
Parts = list[Maybe]


class Tensors(NamedTuple):
    """What both ops take besides dy and bias; also a tangent or a gradient of each, None where it is zero."""

    x: Any
    offset: Any
    w: Any
    mask: Any


class Window(NamedTuple):
    """stride, padding and dilation, and the forced plans."""

    sizes: tuple[Any, ...]
    plan: str


def result(tensors: Tensors, bias: Maybe, window: Window) -> torch.Tensor:
    made: torch.Tensor = _OPS.deform(tensors.x, tensors.offset, tensors.w, bias, tensors.mask, *window.sizes, window.plan)
    return made


def gradients(dy: torch.Tensor, tensors: Tensors, needs: Sequence[bool], window: Window) -> Parts:
    """B's results that `needs` asks for, None in the place of the others."""
    asked = [bool(need) and (i < 3 or tensors.mask is not None) for i, need in enumerate(needs)]
    if not any(asked):
        return [None] * 4
    made = called_backward(_OPS.deform_backward, dy, *tensors, window.sizes, asked, window.plan)
    return [part if need else None for part, need in zip(made, asked, strict=True)]


class Slope(NamedTuple):
    """One end of a difference along an axis: the call, its sign, and by what the mask was multiplied."""

    tensors: Tensors
    sign: int
    axis: int
    factor: torch.Tensor


def slopes(tensors: Tensors, tangent: torch.Tensor) -> Iterator[Slope]:
    """The calls whose sum, each with its sign, is the tangent of a call for a tangent of its offset."""
    kind = torch.promote_types(tensors.offset.dtype, torch.float32)
    places, moves = (t.to(kind).unflatten(1, (-1, 2)).unbind(2) for t in (tensors.offset, tangent))
    for axis in (0, 1):
        factor = moves[axis]
        mask = factor if tensors.mask is None else tensors.mask.to(kind) * factor
        for sign, behind in ((1, 1.0), (-1, 0.0)):
            ends = [*places]
            ends[axis] = places[axis].floor() + behind
            yield Slope(tensors._replace(offset=torch.stack(ends, 2).flatten(1, 2), mask=mask), sign, axis, factor)


def across(doffset: torch.Tensor, axis: int) -> torch.Tensor:
    """The gradient of a slope's offset without its own axis, along which a place that was rounded down does not move."""
    parts = [*doffset.unflatten(1, (-1, 2)).unbind(2)]
    parts[axis] = torch.zeros_like(parts[axis])
    return torch.stack(parts, 2).flatten(1, 2)


class Sum:
    """Four parts that are added up, each in the dtype of its operand."""

    def __init__(self, like: Tensors) -> None:
        self.like, self.parts = like, Tensors(None, None, None, None)

    def add(self, parts: Sequence[Maybe], sign: int = 1) -> None:
        for name, part in zip(Tensors._fields, parts, strict=True):
            if part is not None:
                part, known = part if sign > 0 else -part, getattr(self.parts, name)
                self.parts = self.parts._replace(**{name: part if known is None else known + part})

    def rounded(self) -> Parts:
        pairs = zip(self.parts, self.like, strict=True)
        return [None if part is None else part.to(operand.dtype) for part, operand in pairs]


def tangent(tensors: Tensors, moved: Tensors, bias: Maybe, window: Window) -> Maybe:
    """The tangent of the result, for tangents of x, offset, w and mask, and of the bias. None where all are."""
    terms: list[torch.Tensor] = []
    for name in ("x", "w", "mask"):
        if getattr(moved, name) is not None:
            terms.append(result(tensors._replace(**{name: getattr(moved, name)}), None, window))
    if moved.offset is not None:
        terms += (slope.sign * result(slope.tensors, None, window) for slope in slopes(tensors, moved.offset))
    if not terms and bias is None:
        return None
    if not terms:
        zero = result(tensors, None, window)  # for the shape and the layout
        return torch.zeros_like(zero) + bias.view(-1, 1, 1)  # type: ignore[union-attr]
    total = sum(terms[1:], terms[0])
    return total if bias is None else total + bias.view(-1, 1, 1)


def moved_gradients(dy: torch.Tensor, tensors: Tensors, moved: Tensors, needs: Sequence[bool], window: Window) -> Parts:
    """The sum over the tangents of x, offset, w and mask of how B moves with them, as far as `needs` asks for it.

    For cotangents of B's four results in the place of tangents that is also the gradient of <dy, tangent>, and so of B."""
    total = Sum(tensors)
    for i, name in ((0, "x"), (2, "w"), (3, "mask")):
        if getattr(moved, name) is not None:  # B's own result for an operand does not depend on that operand
            asked = [need and i != j for j, need in enumerate(needs)]
            total.add(gradients(dy, tensors._replace(**{name: getattr(moved, name)}), asked, window))
    if moved.offset is not None:
        for slope in slopes(tensors, moved.offset):
            dx, doffset, dw, dmask = gradients(dy, slope.tensors, needs, window)
            doffset = None if doffset is None else across(doffset, slope.axis)
            dmask = None if dmask is None or tensors.mask is None else dmask * slope.factor
            total.add((dx, doffset, dw, dmask), slope.sign)
    return total.rounded()
