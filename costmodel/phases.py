"""The stride phases of the input gradient: dgrad of a strided convolution as convolutions of stride 1, one per residue."""

from __future__ import annotations

import math
from typing import NamedTuple

from costmodel.algebra import Size, ceil_div, product


class AxisPhase(NamedTuple):
    """The input coordinates `residue + i * stride` along one axis, and the taps that reach them.

    Tap number `t` (0 <= t < taps) is filter tap `first + t * step` and reads the output coordinate `i + base - t * delta`.
    """

    residue: int
    size: Size
    first: int
    taps: int
    step: int
    base: Size
    delta: int


class Phase(NamedTuple):
    """One stride-1 convolution of dgrad, with an `AxisPhase` for each spatial axis. `ConvProblem.phases` makes them; the class
    raises nothing. Source: Shi et al. 2016 (arXiv:1609.07009), where a transposed convolution is convolutions without stride.

    >>> from costmodel.problem import ConvProblem
    >>> [phase.taps for phase in ConvProblem.conv((1, 4, 9), (4, 4, 3), (2,), (1,), (1,)).phases()]
    [2, 1]
    """

    axes: tuple[AxisPhase, ...]

    @property
    def taps(self) -> int:
        return math.prod(a.taps for a in self.axes)

    @property
    def pixels(self) -> Size:
        return product(a.size for a in self.axes)


def axis_phases(size: Size, kernel: int, stride: int, dilation: int, low: int) -> tuple[AxisPhase, ...]:
    """The `stride` residues of an input axis of `size`, most taps first; `low` is its padding in front.

    Input coordinate h meets tap r where (h + low - r * dilation) divides by the stride. With g = gcd(stride, dilation)
    the residues reached by tap r repeat every stride / g taps, so number j = first + u * (stride / g) names each
    residue once: (first * dilation + u - low) mod stride, and only u = 0 has taps.
    """
    g = math.gcd(stride, dilation)
    step = stride // g
    phases = []
    for j in range(stride):
        first, u = j % step, j // step
        residue = (first * dilation + u - low) % stride
        taps = max(0, -(-(kernel - first) // step)) if u == 0 else 0
        base = (residue + low - first * dilation - u) // stride
        phases.append(AxisPhase(residue, ceil_div(size - residue, stride), first, taps, step, base, dilation // g))
    return tuple(phases)
