"""The time of a layer from those of layers alike: a weighted mean of measured over base time, in logarithms.

Weights fall with the distance in size and kind (a Nadaraya-Watson estimate); where nothing is near, a wider mean takes over,
and `Guess.support` says how much was near. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from costmodel.library.terms import Seen

#: Distance at which a row still counts 0.61: factors of 2 of m, n, k and the taps.
SCALES = {"m": 1.75, "n": 0.6, "k": 0.85, "taps": 0.85}
#: Squared distance of rows that differ in these.
APART = {"kind": 4.0, "passes": 2.0, "rank": 1.5, "arithmetic": 2.0, "dilated": 1.0, "layout": 0.3, "mode": 5.0}
#: Beyond a factor of 2: squared distance for each of stride.
STRIDE = 1.0
#: FMA units and tensor cores are other kernels.
OTHER_UNIT = 12.0
#: What the wider mean weighs beside rows at no distance, and how many times as wide it is, squared.
PRIOR, WIDER = 0.1, 9.0


class Row(NamedTuple):
    """A layer with the logarithm of measured over base time, the mean of so many GPUs."""

    seen: Seen
    log_ratio: float
    weight: float


class Guess(NamedTuple):
    log_ratio: float
    support: float  # weight of the rows near, in rows at no distance


def distance(one: Seen, other: Seen) -> float:
    """Squared, in units in which a row at 1 counts 0.61."""
    apart = sum(((getattr(one, name) - getattr(other, name)) / scale) ** 2 for name, scale in SCALES.items())
    apart += sum(cost for name, cost in APART.items() if getattr(one, name) != getattr(other, name))
    if (one.arithmetic == "fp32") != (other.arithmetic == "fp32"):
        apart += OTHER_UNIT
    return apart + STRIDE * abs(one.stride - other.stride)


def guess(of: Seen, rows: Sequence[Row]) -> Guess:
    """The logarithm of measured over base time of `of`. ValueError where there are no rows."""
    if not rows:
        raise ValueError("library: there are no rows to predict from")
    apart = [distance(of, row.seen) for row in rows]
    closest = min(apart)
    near = [row.weight * math.exp(-d / 2) for row, d in zip(rows, apart, strict=True)]
    # the wider mean is normalised, so that the closest row may be at any distance; it is of rows of the same kind, whose base
    # times alone are comparable, where there are any
    kin = [row.seen.kind == of.kind for row in rows]
    lone = not any(kin)
    wide = [
        row.weight * math.exp(-(d - closest) / 2 / WIDER) if same or lone else 0.0
        for row, d, same in zip(rows, apart, kin, strict=True)
    ]
    prior = sum(w * row.log_ratio for w, row in zip(wide, rows, strict=True)) / sum(wide)
    support = sum(near)
    mean = sum(w * row.log_ratio for w, row in zip(near, rows, strict=True))
    return Guess((mean + PRIOR * prior) / (support + PRIOR), support)
