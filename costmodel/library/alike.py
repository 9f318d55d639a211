"""The time of a layer from those of similar layers: a weighted mean of measured over base time, in logarithms.

Weights fall with the distance in size and kind (a Nadaraya-Watson estimate). Where no row is near, a wider mean takes over;
`Guess.support` says how much weight was near. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from costmodel.library.terms import Seen

#: Distances at which a row's weight is 0.61, as logarithms to base 2 of m, n, k and the number of taps.
SCALES = {"m": 1.75, "n": 0.6, "k": 0.85, "taps": 0.85}
#: Squared distance added where rows differ in one of these.
APART = {"kind": 4.0, "passes": 2.0, "rank": 1.5, "arithmetic": 2.0, "dilated": 1.0, "layout": 0.3, "mode": 5.0}
#: Squared distance added per factor of 2 between the strides.
STRIDE = 1.0
#: Squared distance added between rows of FMA units and of tensor cores, whose kernels are different.
OTHER_UNIT = 12.0
#: Weight of the wider mean (a row at distance 0 has weight 1), and the factor, squared, by which it is wider.
PRIOR, WIDER = 0.1, 9.0


class Row(NamedTuple):
    """A layer with the logarithm of measured over base time, as a mean over some GPUs."""

    seen: Seen
    log_ratio: float
    weight: float


class Guess(NamedTuple):
    log_ratio: float
    support: float  # total weight of the rows that are near (a row at distance 0 has weight 1)


def distance(one: Seen, other: Seen) -> float:
    """The squared distance of two layers, in units in which a row at distance 1 has weight 0.61."""
    apart = sum(((getattr(one, name) - getattr(other, name)) / scale) ** 2 for name, scale in SCALES.items())
    apart += sum(cost for name, cost in APART.items() if getattr(one, name) != getattr(other, name))
    if (one.arithmetic == "fp32") != (other.arithmetic == "fp32"):
        apart += OTHER_UNIT
    return apart + STRIDE * abs(one.stride - other.stride)


def guess(query: Seen, rows: Sequence[Row]) -> Guess:
    """The logarithm of measured over base time of `query`. Raises ValueError where there are no rows."""
    if not rows:
        raise ValueError("library: there are no rows to predict from")
    apart = [distance(query, row.seen) for row in rows]
    closest = min(apart)
    near = [row.weight * math.exp(-d / 2) for row, d in zip(rows, apart, strict=True)]
    # the wider mean is normalised, so the closest row may be at any distance; where there are rows of the same kind it takes
    # only these, because base times of other kinds are not comparable
    kin = [row.seen.kind == query.kind for row in rows]
    lone = not any(kin)
    wide = [
        row.weight * math.exp(-(d - closest) / 2 / WIDER) if same or lone else 0.0
        for row, d, same in zip(rows, apart, kin, strict=True)
    ]
    prior = sum(w * row.log_ratio for w, row in zip(wide, rows, strict=True)) / sum(wide)
    support = sum(near)
    mean = sum(w * row.log_ratio for w, row in zip(near, rows, strict=True))
    return Guess((mean + PRIOR * prior) / (support + PRIOR), support)
