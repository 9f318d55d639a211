"""Prints sympy expressions as LaTeX and as plain text in the order people write them, and as Python that evaluates exactly.

A symbol's name says how it is set: "p_h_lo" is p with index h and superscript lo; words of several letters stand upright.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import sympy
from sympy.printing.latex import LatexPrinter
from sympy.printing.precedence import PRECEDENCE, precedence
from sympy.printing.pycode import PythonCodePrinter
from sympy.printing.str import StrPrinter

from costmodel.formulas.derivation import Line

Expr = Any  # a sympy expression

#: The order of letters in a product or a sum, then the axes d, h, w.
_ORDER = (
    "b",
    "rho",
    "N",
    "C",
    "K",
    "g",
    "k",
    "m",
    "r",
    "T",
    "R",
    "S",
    "s",
    "d",
    "U",
    "T_",
    "D",
    "H",
    "W",
    "V",
    "p",
    "a",
    "j",
    "i",
)


def _rank(expr: Expr) -> tuple[int, int, str]:
    base, _, axis = str(expr.func if expr.is_Function else expr).partition("_")
    base = "T_" if base == "T" and axis else base
    return (_ORDER.index(base) if base in _ORDER else len(_ORDER), "dhw".find(axis[:1]), axis.replace("lo", "-"))


def _negative(expr: Expr) -> bool:
    return bool(expr.as_coeff_Mul()[0].is_negative)


def _factors(expr: Expr) -> list[Expr]:
    """Factors of a product without a denominator, in the order: number, letters, functions, sums."""

    def key(factor: Expr) -> tuple[bool, bool, bool, tuple[int, int, str]]:
        base = factor.base if factor.is_Pow else factor
        return (not factor.is_Number, base.is_Add, not base.is_Symbol, _rank(base))

    return sorted(sympy.Mul.make_args(expr), key=key)


def _terms(expr: Expr) -> list[Expr]:
    """Terms of a sum: added ones before subtracted ones, numbers last."""

    def key(term: Expr) -> tuple[bool, bool, list[tuple[int, int, str]]]:
        return (term.is_Number, _negative(term), [_rank(f) for f in _factors(term) if not f.is_Number])

    return sorted(sympy.Add.make_args(expr), key=key)


class _AsWritten:
    """Sums and products in the order of `_terms` and `_factors`; mixed into sympy's printers."""

    times: str
    _print: Callable[[Expr], str]

    def quotient(self, above: Expr, below: Expr) -> str:
        raise NotImplementedError

    def within(self, expr: Expr) -> str:
        raise NotImplementedError

    def _print_Add(self, expr: Expr, order: object = None) -> str:
        text = ""
        for term in _terms(expr):
            minus = _negative(term)
            sign = " - " if minus else " + "
            printed = self._print(-term if minus else term)
            text += (sign if text else "-" if minus else "") + printed
        return text

    def _print_Mul(self, expr: Expr) -> str:
        above, below = sympy.fraction(expr)
        if _negative(above) and below.is_Add and any(map(_negative, below.args)):
            above, below = -above, -below
        if _negative(above):
            return "-" + self.within(-expr)
        if below != 1:
            return self.quotient(above, below)
        factors = [factor for factor in _factors(expr) if factor != 1]
        return self.times.join(self.within(factor) for factor in factors)

    def _print_StrictGreaterThan(self, expr: Expr) -> str:
        return f"{self._print(expr.rhs)} < {self._print(expr.lhs)}"

    def brackets(self, expr: Expr) -> bool:
        return bool(precedence(expr) < PRECEDENCE["Mul"])


class _Latex(_AsWritten, LatexPrinter):
    times = " "

    def within(self, expr: Expr) -> str:
        return rf"\left({self._print(expr)}\right)" if self.brackets(expr) else str(self._print(expr))

    def quotient(self, above: Expr, below: Expr) -> str:
        return rf"\frac{{{self._print(above)}}}{{{self._print(below)}}}"

    def _print_Symbol(self, expr: Expr, style: str = "plain") -> str:
        return _latex_name(str(expr))

    def _print_floor(self, expr: Expr, exp: object = None) -> str:
        return rf"\left\lfloor {self._print(expr.args[0])} \right\rfloor"

    def _print_ceiling(self, expr: Expr, exp: object = None) -> str:
        return rf"\left\lceil {self._print(expr.args[0])} \right\rceil"

    def _call(self, name: str, arguments: Sequence[Expr]) -> str:
        return rf"{name}\left({', '.join(self._print(a) for a in arguments)}\right)"

    def _print_Max(self, expr: Expr, exp: object = None) -> str:
        return self._call(r"\max", _arguments(expr))

    def _print_Min(self, expr: Expr, exp: object = None) -> str:
        return self._call(r"\min", _arguments(expr))

    def _print_gcd(self, expr: Expr, exp: object = None) -> str:
        return self._call(r"\gcd", expr.args)

    def _print_AppliedUndef(self, expr: Expr, exp: object = None) -> str:
        return self._call(_latex_name(str(expr.func)), expr.args)

    def _print_Sum(self, expr: Expr) -> str:
        (j, first, last), *_ = expr.limits
        return rf"\sum_{{{self._print(j)}={first}}}^{{{self._print(last)}}} {self.within(expr.function)}"

    def _print_Piecewise(self, expr: Expr) -> str:
        (then, condition), (otherwise, _) = expr.args
        rows = (rf"{self._print(then)} & {self._print(condition)}", rf"{self._print(otherwise)} & \mathrm{{otherwise}}")
        return rf"\begin{{cases}} {rows[0]} \\ {rows[1]} \end{{cases}}"


def _latex_name(name: str) -> str:
    base, *marks = name.split("_")
    base = {"rho": r"\rho"}.get(base, base if len(base) == 1 else rf"\mathrm{{{base}}}")
    marks = [mark if len(mark) == 1 else rf"\mathrm{{{mark}}}" for mark in marks]
    return base + "".join(f"{sign}{{{mark}}}" for sign, mark in zip("_^", marks, strict=False))


def _arguments(expr: Expr) -> list[Expr]:
    """Arguments of a Max or Min, with numbers first."""
    return sorted(expr.args, key=lambda a: (not a.is_Number, a.has(sympy.floor, sympy.ceiling, sympy.Min), str(a)))


class _Plain(_AsWritten, StrPrinter):
    times = "·"

    def within(self, expr: Expr) -> str:
        return f"({self._print(expr)})" if self.brackets(expr) else str(self._print(expr))

    def quotient(self, above: Expr, below: Expr) -> str:
        return f"{self.within(above)}/{self._below(below)}"

    def _below(self, expr: Expr) -> str:
        return f"({self._print(expr)})" if expr.is_Add or expr.is_Mul else str(self._print(expr))

    def _print_floor(self, expr: Expr) -> str:
        return f"⌊{self._print(expr.args[0])}⌋"

    def _print_ceiling(self, expr: Expr) -> str:
        return f"⌈{self._print(expr.args[0])}⌉"

    def _print_Max(self, expr: Expr) -> str:
        return f"max({', '.join(self._print(a) for a in _arguments(expr))})"

    def _print_Min(self, expr: Expr) -> str:
        return f"min({', '.join(self._print(a) for a in _arguments(expr))})"

    def _print_Sum(self, expr: Expr) -> str:
        (j, first, last), *_ = expr.limits
        return f"sum({self._print(expr.function)} for {j} = {first} ... {self._print(last)})"

    def _print_Piecewise(self, expr: Expr) -> str:
        (then, condition), (otherwise, _) = expr.args
        return f"{self._print(then)} where {self._print(condition)}, else {self._print(otherwise)}"

    def _print_Pow(self, expr: Expr, rational: bool = False) -> str:
        if expr.exp == -1:
            return self.quotient(sympy.Integer(1), expr.base)
        return f"{self.within(expr.base)}^{self._print(expr.exp)}"


class _Exact(PythonCodePrinter):
    """Python over ints. Every quotient inside a formula is whole or under a floor, so `//` is exact."""

    def _quotient(self, expr: Expr) -> tuple[str, str]:
        above, below = sympy.fraction(sympy.together(expr))
        return f"({self._print(above)})", f"({self._print(below)})"

    def _print_floor(self, expr: Expr) -> str:
        return "({}//{})".format(*self._quotient(expr.args[0]))

    def _print_ceiling(self, expr: Expr) -> str:
        return "(-(-{}//{}))".format(*self._quotient(expr.args[0]))

    def _print_Mul(self, expr: Expr) -> str:
        whole = sympy.fraction(expr)[1] == 1
        return str(super()._print_Mul(expr)) if whole else "({}//{})".format(*self._quotient(expr))

    def _print_Pow(self, expr: Expr, rational: bool = False) -> str:
        return f"({self._print(expr.base)})**{self._print(expr.exp)}" if expr.exp.is_positive else self._print_Mul(expr)

    def _print_gcd(self, expr: Expr) -> str:
        return f"gcd({self._print(expr.args[0])}, {self._print(expr.args[1])})"


def latex(expr: Expr) -> str:
    return str(_Latex().doprint(expr))


def plain(expr: Expr) -> str:
    return str(_Plain().doprint(expr))


def line(*parts: Expr) -> Line:
    r"""A chain such as line(H_o, "=", expression): expressions printed, strings taken as relations ("=", "<=", ">=", "<")."""
    signs = {"<=": (r"\leq", "≤"), ">=": (r"\geq", "≥")}
    tex = [signs.get(part, (part,))[0] if isinstance(part, str) else latex(part) for part in parts]
    text = [signs.get(part, (part, part))[1] if isinstance(part, str) else plain(part) for part in parts]
    return Line(" ".join(tex), " ".join(text))


def compiled(arguments: Sequence[Expr], expr: Expr) -> Callable[..., int]:
    """The expression, which is whole wherever its arguments are, as a Python function of ints."""
    printer = _Exact({"fully_qualified_modules": False})
    function: Callable[..., int] = sympy.lambdify(arguments, expr, modules=[{"gcd": math.gcd}, "math"], printer=printer)
    return function
