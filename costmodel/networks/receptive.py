"""Receptive fields: which input coordinates an output coordinate can depend on, along one axis, exactly.

Output coordinates are walked back tap by tap, so dilation, stride, transposed convolutions and their empty phases come out
right. The grid is unbounded: a field may reach beyond the input, where padding is. Standard library only.

Size, jump and centre as in Araujo, Norris and Sim, "Computing receptive fields of convolutional neural networks"
(Distill 2019), with a fraction for the jump below a transposed convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from costmodel.problem import ConvProblem, Pass

Span = tuple[int, int]


@dataclass(frozen=True)
class Field:
    """What each coordinate of an axis sees of the input's axis of `extent` elements.

    Coordinate q * len(spans) + r sees the inputs spans[r][0] + q * advance ... spans[r][1] + q * advance, both included
    (a hull: dilation may leave holes); None sees no input. `whole`: every coordinate sees the whole axis.
    """

    extent: int
    advance: int = 1
    spans: tuple[Span | None, ...] = ((0, 0),)
    whole: bool = False
    exact: bool = True  # False: an upper bound, since the axis was lost to an operator that is not followed
    aligned: bool = True  # False: branches met whose fields have different centres or jumps

    def span(self, coordinate: int) -> Span | None:
        """First and last input coordinate that `coordinate` sees, negative or beyond the input where they are padding."""
        if self.whole:
            return (0, self.extent - 1)
        turns, phase = divmod(coordinate, len(self.spans))
        interval = self.spans[phase]
        return None if interval is None else (interval[0] + turns * self.advance, interval[1] + turns * self.advance)

    @property
    def size(self) -> int:
        """Input elements from the first to the last seen, the largest over all output coordinates."""
        if self.whole:
            return self.extent
        return max((high - low + 1 for low, high in filter(None, self.spans)), default=0)

    @property
    def jump(self) -> Fraction:
        """Input elements from one output coordinate to the next; 0 where all see everything."""
        return Fraction(0) if self.whole else Fraction(self.advance, len(self.spans))

    @property
    def centre(self) -> Fraction:
        """Middle of the field of output coordinate 0, or of the first that sees any input."""
        for coordinate in range(len(self.spans)):
            interval = self.span(coordinate)
            if interval is not None:
                return Fraction(sum(interval), 2)
        return Fraction(0)

    def __str__(self) -> str:
        if self.whole:
            return f"{self.extent} (whole)" if self.exact else f"<= {self.extent}"
        return f"{self.size} jump {self.jump} centre {self.centre}"


def everything(field: Field, exact: bool = True) -> Field:
    """A field of the same input axis that sees all of it."""
    return replace(field, advance=0, spans=((0, field.extent - 1),), whole=True, exact=field.exact and exact)


def pull(field: Field, outputs: int, inputs: int, taps: Callable[[int], Iterable[int]]) -> Field:
    """The field after an operator whose output i reads the coordinates taps(i), where taps(i + outputs) = taps(i) + inputs."""
    if field.whole:
        return field
    shared = math.gcd(len(field.spans), inputs)
    period = outputs * (len(field.spans) // shared)
    spans = tuple(hull(field.span(coordinate) for coordinate in taps(i)) for i in range(period))
    return replace(field, advance=field.advance * (inputs // shared), spans=spans)


def hull(spans: Iterable[Span | None]) -> Span | None:
    """The least span that holds all of `spans`."""
    seen = [span for span in spans if span is not None]
    return (min(low for low, _ in seen), max(high for _, high in seen)) if seen else None


def windowed(field: Field, kernel: int, stride: int, low: int = 0, dilation: int = 1) -> Field:
    """The field after a convolution or pooling: output i reads i * stride - low + t * dilation for each tap t."""
    return pull(field, 1, stride, lambda i: (i * stride - low + t * dilation for t in range(kernel)))


def transposed(field: Field, kernel: int, stride: int, low: int = 0, dilation: int = 1) -> Field:
    """The field after a transposed convolution: output i reads (i + low - t * dilation) / stride for the taps t where that
    divides."""

    def taps(i: int) -> Iterable[int]:
        places = (i + low - t * dilation for t in range(kernel))
        return (place // stride for place in places if place % stride == 0)

    return pull(field, stride, 1, taps)


def convolved(field: Field, problem: ConvProblem, which: Pass, axis: int) -> Field:
    """The field after fprop or dgrad of `problem`, along one of its axes."""
    step = windowed if which == Pass.FPROP else transposed
    (low, _), kernel = problem.padding[axis], problem.kernel_size[axis]
    return step(field, kernel, problem.stride[axis], low, problem.dilation[axis])


def adaptive(field: Field, size: int, result: int) -> Field:
    """The field after adaptive pooling of `size` elements to `result`: output i reads floor(i * size / result) up to, not
    including, ceil((i + 1) * size / result)."""
    if result == 1:
        return everything(field)
    shared = math.gcd(size, result)

    def taps(i: int) -> Iterable[int]:
        return range(i * size // result, -(-(i + 1) * size // result))

    return pull(field, result // shared, size // shared, taps)


def resampled(field: Field, scale: Fraction, offset: Fraction, taps: Sequence[int]) -> Field:
    """The field after interpolation: output i reads the elements floor(i * scale + offset) + t for each of `taps`. Where that
    place is an element itself, it reads only this element."""

    def places(i: int) -> Iterable[int]:
        place = i * scale + offset
        return (math.floor(place) + t for t in (taps if place.denominator > 1 else (0,)))

    return pull(field, scale.denominator, scale.numerator, places)


def merged(fields: Sequence[Field]) -> Field:
    """The field where branches meet: the hull of what they see. `aligned` is False where their centres or jumps differ."""
    first = fields[0]
    if all(field == first for field in fields):
        return first
    exact, aligned = all(f.exact for f in fields), all(f.aligned for f in fields)
    local = [field for field in fields if not field.whole]
    if len(local) < len(fields):
        return replace(everything(first), exact=exact, aligned=aligned)
    period = math.lcm(*(len(field.spans) for field in local))
    jumps = {field.jump for field in local}
    if len(jumps) > 1:
        return replace(everything(first), exact=False, aligned=False)
    seen = [[field.span(i) for field in local] for i in range(period)]
    centred = all(len({low + high for low, high in filter(None, spans)}) <= 1 for spans in seen)
    return Field(first.extent, int(jumps.pop() * period), tuple(map(hull, seen)), False, exact, aligned and centred)
