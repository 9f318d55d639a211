"""The classic special cases: assumptions under which the general formulas become short. Imports sympy.

The short forms of an axis (`claims`) are stated here and tested against the general ones; the multiply-adds follow by
substitution.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import sympy

from costmodel.formulas.quantities import Quantities

Expr = Any  # a sympy expression


@dataclass(frozen=True)
class Special:
    """Under `substitution` (letter: expression) and `condition`, the quantities of `claims` (name: expression)."""

    title: str
    assumption: str  # prose with mathematics between dollar signs
    substitution: dict[Expr, Expr]
    claims: dict[Expr, Expr] = field(default_factory=dict)
    condition: Expr = sympy.true

    def quantity(self, quantities: Quantities, name: str) -> Expr:
        """The formula of a quantity, such as "MAC_useful", in the letters that this case leaves."""
        (general,) = (q.expression for q in quantities.definitions if str(q) == name)
        return sympy.factor_terms(general.subs(self.substitution).subs(self.claims))


def specials(quantities: Quantities) -> tuple[Special, ...]:
    shared = (pointwise(quantities), depthwise(quantities))
    if quantities.transposed:
        return (doubling(quantities), tiling(quantities), *shared)
    return (same(quantities), *shared, square(quantities), tiling(quantities), apart(quantities))


def _letters(letter: str, quantities: Quantities) -> tuple[Expr, ...]:
    """One more letter per axis, such as r_h and r_w."""
    axes = (str(s)[2:] for s in quantities.letters.stride)
    return tuple(sympy.Symbol(f"{letter}_{axis}", integer=True, positive=True) for axis in axes)


def _assigned(names: tuple[Expr, ...], values: tuple[Expr, ...] | Expr | int) -> dict[Expr, Expr]:
    several = values if isinstance(values, tuple) else (sympy.sympify(values),) * len(names)
    return dict(zip(names, several, strict=True))


def _paddings(quantities: Quantities, values: tuple[Expr, ...] | int) -> dict[Expr, Expr]:
    """The same padding at both ends, and no output padding."""
    v = quantities.letters
    extra = _assigned(v.extra, 0) if quantities.transposed else {}
    return _assigned(v.low, values) | _assigned(v.high, values) | extra


def same(quantities: Quantities) -> Special:
    v, r = quantities.letters, _letters("r", quantities)
    padding = tuple(d * radius for d, radius in zip(v.dilation, r, strict=True))
    losses = zip(r, v.size, v.dilation, strict=True)
    pairs = tuple((2 * radius + 1) * n - d * radius * (radius + 1) for radius, n, d in losses)
    return Special(
        "same padding",
        "Stride 1, an odd kernel of $2 r + 1$ taps, $d r$ zeros at each end, and an input no shorter than $d r$: tap $j$ misses"
        " $d |j - r|$ outputs.",
        _assigned(v.kernel, tuple(2 * radius + 1 for radius in r)) | _assigned(v.stride, 1) | _paddings(quantities, padding),
        _assigned(v.out, v.size) | _assigned(v.touched, v.size) | _assigned(v.pairs, pairs),
        sympy.And(*(n >= pad for n, pad in zip(v.size, padding, strict=True))),
    )


def pointwise(quantities: Quantities) -> Special:
    v = quantities.letters
    return Special(
        "pointwise",
        "A kernel of one tap at stride 1 without padding: a matrix product.",
        _assigned(v.kernel, 1) | _assigned(v.stride, 1) | _paddings(quantities, 0),
        _assigned(v.out, v.size) | _assigned(v.touched, v.size) | _assigned(v.pairs, v.size),
    )


def depthwise(quantities: Quantities) -> Special:
    v = quantities.letters
    return Special(
        "depthwise", "As many groups as channels, $g = C = K$.", _assigned((v.groups, v.out_channels), v.in_channels)
    )


def square(quantities: Quantities) -> Special:
    """O(c_i c_o k_h k_w m_h m_w) of the textbooks, where every tap meets input."""
    v, k, m = quantities.letters, *(sympy.Symbol(name, integer=True, positive=True) for name in "km")
    ones = (v.batch, v.groups, *v.stride, *v.dilation)
    return Special(
        "one square image without padding",
        "$k$ taps and $m$ outputs an axis at stride 1, so $m + k - 1$ inputs.",
        _assigned(ones, 1) | _assigned(v.kernel, k) | _assigned(v.size, m + k - 1) | _paddings(quantities, 0),
        _assigned(v.out, m) | _assigned(v.pairs, k * m) | _assigned(v.touched, m + k - 1),
    )


def tiling(quantities: Quantities) -> Special:
    """Patches: windows side by side."""
    v, m = quantities.letters, _letters("m", quantities)
    fixed = _assigned(v.stride, v.kernel) | _assigned(v.dilation, 1) | _paddings(quantities, 0)
    if quantities.transposed:
        whole = tuple(n * k for n, k in zip(v.size, v.kernel, strict=True))
        claims = _assigned(v.out, whole) | _assigned(v.pairs, whole) | _assigned(v.touched, whole)
        return Special("patches", "Kernel equal to the stride without padding: every input paints a patch.", fixed, claims)
    whole = tuple(o * k for o, k in zip(m, v.kernel, strict=True))
    return Special(
        "patches",
        "Kernel equal to the stride without padding, $m$ windows side by side: each input is read once.",
        fixed | _assigned(v.size, whole),
        _assigned(v.out, m) | _assigned(v.pairs, whole) | _assigned(v.touched, whole),
    )


def apart(quantities: Quantities) -> Special:
    v = quantities.letters
    windows = zip(v.stride, quantities.problem.effective_kernel, strict=True)
    return Special(
        "windows apart",
        "A stride of at least the dilated kernel: no two windows overlap, every pair touches an input of its own.",
        {},
        _assigned(v.touched, v.pairs),
        sympy.And(*(s >= extent for s, extent in windows)),
    )


def doubling(quantities: Quantities) -> Special:
    v = quantities.letters
    fixed = _assigned(v.kernel, 4) | _assigned(v.stride, 2) | _assigned(v.dilation, 1) | _paddings(quantities, 1)
    twice = tuple(2 * n for n in v.size)
    return Special(
        "doubling",
        "The usual upsampling: four taps, stride 2, padding 1.",
        fixed,
        _assigned(v.out, twice) | _assigned(v.touched, twice) | _assigned(v.pairs, tuple(4 * n - 2 for n in v.size)),
    )
