"""Arithmetic on numbers and on sympy symbols, for operations whose Python built-ins need numbers.

With `+ - * //` these functions are enough to write every formula of `costmodel.problem` once. Only the symbolic branches import
sympy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

Size = Any  # int, torch.SymInt or a sympy expression


def symbolic(*values: Size) -> bool:
    """Whether any value is a sympy expression."""
    return any(hasattr(value, "free_symbols") for value in values)


def product(values: Iterable[Size]) -> Size:
    """Product that keeps symbols (`math.prod` would try to index a SymInt)."""
    total: Size = 1
    for value in values:
        total = total * value
    return total


def ceil_div(a: Size, b: Size) -> Size:
    """ceil(a / b) for integers and symbols, b > 0."""
    return (a + b - 1) // b


def maximum(a: Size, b: Size) -> Size:
    if symbolic(a, b):
        import sympy

        return sympy.Max(a, b)
    return max(a, b)


def minimum(a: Size, b: Size) -> Size:
    if symbolic(a, b):
        import sympy

        return sympy.Min(a, b)
    return min(a, b)


def where_less(a: Size, b: Size, then: Size, otherwise: Size) -> Size:
    """`then` where a < b, else `otherwise`."""
    if symbolic(a, b):
        import sympy

        return sympy.Piecewise((then, sympy.Lt(a, b)), (otherwise, True))
    return then if a < b else otherwise


@cache
def _symbolic_gcd() -> Any:
    import sympy

    def evaluate(cls: Any, a: Any, b: Any) -> Any:
        if a.is_Integer and b.is_Integer:
            return sympy.Integer(math.gcd(int(a), int(b)))
        return sympy.Integer(1) if 1 in (a, b) else None

    # sympy.gcd takes symbols for polynomials and answers 1
    return type("gcd", (sympy.Function,), {"eval": classmethod(evaluate), "is_integer": True, "is_positive": True})


def gcd(a: Size, b: Size) -> Size:
    """Greatest common divisor, left unevaluated for symbols."""
    return _symbolic_gcd()(a, b) if symbolic(a, b) else math.gcd(a, b)


@cache
def _symbolic_sum() -> Any:
    import sympy

    class TapSum(sympy.Sum):
        """A sum whose `doit` adds term by term: sympy 1.14's own answers differ from run to run for floors of the index."""

        def doit(self, **hints: Any) -> Any:
            j, first, last = self.limits[0]
            if first.is_Integer and last.is_Integer:
                return sympy.Add(*(self.function.subs(j, i).doit() for i in range(int(first), int(last) + 1)))
            return self

    return TapSum


def summation(count: Size, term: Callable[[Size], Size]) -> Size:
    """term(0) + ... + term(count - 1); an unevaluated sum over j where the count is a symbol."""
    if symbolic(count):
        import sympy

        j = sympy.Symbol("j", integer=True, nonnegative=True)
        return _symbolic_sum()(term(j), (j, 0, count - 1))
    return sum(term(j) for j in range(count))
