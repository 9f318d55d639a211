"""A convolution whose numbers are all letters, and its quantities as expressions in those letters. Imports sympy.

The expressions come from ConvProblem and Cost themselves. To keep them readable, subclasses of ConvProblem return a name for
what is defined already: where `output_size` returns H_o, the same `macs` gives N K C R S H_o W_o / g.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import sympy

from costmodel.algebra import product
from costmodel.count import Cost, cost
from costmodel.formulas.typeset import compiled
from costmodel.problem import ConvProblem, Pass

Expr = Any  # a sympy expression

_AXES = ("d", "h", "w")
_SIZES, _KERNELS = ("D", "H", "W"), ("T", "R", "S")


def _natural(name: str) -> Expr:
    return sympy.Symbol(name, integer=True, positive=True)


def _whole(name: str) -> Expr:
    return sympy.Symbol(name, integer=True)


@dataclass(frozen=True)
class Letters:
    """The symbols. Tuples have an entry per spatial axis; sizes are those of the convolution's own input and output."""

    batch: Expr
    in_channels: Expr
    out_channels: Expr
    groups: Expr
    itemsize: Expr
    size: tuple[Expr, ...]
    out: tuple[Expr, ...]
    kernel: tuple[Expr, ...]
    stride: tuple[Expr, ...]
    dilation: tuple[Expr, ...]
    low: tuple[Expr, ...]
    high: tuple[Expr, ...]
    extra: tuple[Expr, ...]  # output padding
    pairs: tuple[Expr, ...]
    touched: tuple[Expr, ...]
    shared: tuple[Expr, ...]  # gcd(stride, dilation)
    reached: tuple[Expr, ...]  # functions of a tap and a number of outputs: how many of these find input
    fresh: tuple[Expr, ...]  # functions of a tap: input coordinates that no later tap reads

    @classmethod
    def of(cls, rank: int, one_padding: bool) -> Letters:
        """The letters of a convolution with `rank` axes. With `one_padding` both ends of an axis have the same
        padding, and share its letter."""
        axes, sizes, kernels = _AXES[3 - rank :], _SIZES[3 - rank :], _KERNELS[3 - rank :]
        low = tuple(_whole(f"p_{a}" if one_padding else f"p_{a}_lo") for a in axes)

        def per_axis(letter: str, kind: Callable[[str], Expr] = _natural) -> tuple[Expr, ...]:
            return tuple(kind(f"{letter}_{a}") for a in axes)

        return cls(
            batch=_natural("N"),
            in_channels=_natural("C"),
            out_channels=_natural("K"),
            groups=_natural("g"),
            itemsize=_natural("b"),
            size=tuple(map(_natural, sizes)),
            out=tuple(_natural(f"{s}_o") for s in sizes),
            kernel=tuple(map(_natural, kernels)),
            stride=per_axis("s"),
            dilation=per_axis("d"),
            low=low,
            high=low if one_padding else tuple(_whole(f"p_{a}_hi") for a in axes),
            extra=per_axis("a", _whole),
            pairs=per_axis("U"),
            touched=per_axis("T"),
            shared=per_axis("G"),
            reached=per_axis("V", sympy.Function),
            fresh=per_axis("F", sympy.Function),
        )


@dataclass(frozen=True)
class _Outlined(ConvProblem):
    """Returns names for the output size, and for how many outputs find input under a tap."""

    names: Letters | None = None
    transposed: bool = False

    @property
    def output_size(self) -> tuple[Expr, ...]:
        assert self.names is not None
        return self.names.size if self.transposed else self.names.out

    def _reached(self, axis: int, tap: Expr, count: Expr) -> Expr:
        assert self.names is not None
        return self.names.reached[axis](tap, count)

    def reached(self, axis: int, tap: Expr, count: Expr) -> Expr:
        """The expression that the name stands for."""
        return super()._reached(axis, tap, count)


@dataclass(frozen=True)
class _Named(_Outlined):
    """Returns names for valid pairs and touched inputs too."""

    @property
    def valid_pairs(self) -> tuple[Expr, ...]:
        assert self.names is not None
        return self.names.pairs

    @property
    def touched_size(self) -> tuple[Expr, ...]:
        assert self.names is not None
        return self.names.touched


@dataclass(frozen=True)
class Quantity:
    """A name, its expression in letters and earlier names, and words on what it is."""

    name: Expr
    expression: Expr
    words: str

    def __str__(self) -> str:
        return str(self.name.func if self.name.is_Function else self.name)


@dataclass(frozen=True)
class Quantities:
    """All quantities of a convolution of `rank` spatial axes, in order of definition."""

    rank: int
    transposed: bool
    symmetric: bool

    @cached_property
    def letters(self) -> Letters:
        return Letters.of(self.rank, self.symmetric or self.transposed)

    @cached_property
    def problem(self) -> ConvProblem:
        """The problem with a letter in every field; for a transposed convolution, the forward problem whose dgrad it is."""
        v = self.letters
        problem = self._problem(v.in_channels, v.out_channels, lambda channels: channels // v.groups)
        return replace(problem, in_channels=v.out_channels if self.transposed else v.in_channels)

    def _problem(self, c: Expr, k: Expr, each_group: Callable[[Expr], Expr]) -> ConvProblem:
        v = self.letters
        if self.transposed:
            return ConvProblem.conv_transpose(
                (v.batch, c, *v.size), (c, each_group(k), *v.kernel), v.stride, v.low, v.extra, v.groups, v.dilation
            )
        padding = tuple(zip(v.low, v.high, strict=True))
        return ConvProblem.conv((v.batch, c, *v.size), (k, each_group(c), *v.kernel), v.stride, padding, v.dilation, v.groups)

    @cached_property
    def _grouped(self) -> tuple[ConvProblem, dict[Expr, Expr]]:
        """(the problem with channels written as groups times channels per group, so that groups divide them; the substitution
        that undoes this)."""
        v, (c, k) = self.letters, map(_natural, ("C_g", "K_g"))
        problem = self._problem(v.groups * c, v.groups * k, lambda channels: channels / v.groups)
        return problem, {c: v.in_channels / v.groups, k: v.out_channels / v.groups}

    def _named(self, kind: type[_Outlined]) -> _Outlined:
        problem, _ = self._grouped
        values = {field.name: getattr(problem, field.name) for field in fields(ConvProblem)}
        named = kind(**values, names=self.letters, transposed=self.transposed)
        return replace(named, input_size=self.letters.out) if self.transposed else named

    @cached_property
    def costs(self) -> dict[Pass, Cost]:
        """The cost of each pass in terms of names, without a bias."""
        named, back = self._named(_Named), self._grouped[1]

        def cost_of(which: Pass) -> Cost:
            counted = cost(named, which, dtype="float16")
            values = {f.name: getattr(counted, f.name) for f in fields(Cost)}
            for name in ("bytes", "im2col_bytes"):  # proportional to the size of an element, which is 2 in float16
                values[name] = self.letters.itemsize * sympy.expand(values[name] / 2)
            return Cost(**{n: None if v is None else sympy.sympify(v).subs(back) for n, v in values.items()})

        return {which: cost_of(which) for which in Pass}

    @cached_property
    def definitions(self) -> tuple[Quantity, ...]:
        v, problem = self.letters, self._grouped[0]
        outlined, back = self._named(_Outlined), self._grouped[1]
        sizes = problem.input_size if self.transposed else problem.output_size
        quantities = [Quantity(v.out[i], sizes[i], "output size") for i in range(self.rank)]
        j, c = sympy.Symbol("j", integer=True, nonnegative=True), _natural("c")
        for i in range(self.rank):
            reached = _as_ceiling(outlined.reached(i, j, c))
            quantities.append(Quantity(v.reached[i](j, c), reached, "of the first c outputs, those whose tap j meets input"))
            quantities.append(Quantity(v.pairs[i], outlined.valid_pairs[i], "pairs of an output and a tap that meet input"))
            shared, fresh, touched = self._touched(outlined.touched_size[i], i, j)
            quantities.append(Quantity(v.shared[i], shared, "common divisor of stride and dilation"))
            quantities.append(Quantity(v.fresh[i](j), fresh, "input coordinates that tap j reads and no later tap does"))
            quantities.append(Quantity(v.touched[i], touched, "input coordinates that some window touches"))
        named, costs = self._named(_Named), self.costs
        work = costs[Pass.FPROP]
        quantities += [
            Quantity(_natural("MAC_useful"), work.useful_macs, "multiply-adds that meet input"),
            Quantity(_natural("MAC_dense"), work.dense_macs, "multiply-adds, padding zeros included"),
            Quantity(_natural("FLOP_useful"), work.useful_flops, "two per MAC"),
            Quantity(_natural("FLOP_dense"), work.dense_flops, "two per MAC"),
            Quantity(_natural("FLOP_bias"), product((v.batch, v.out_channels, *v.out)), "additions of a bias"),
            Quantity(_natural("parameters"), sympy.sympify(product(named.weight_shape)).subs(back), "elements of the weight"),
        ]
        for which, spent in costs.items():
            quantities.append(Quantity(_natural(f"bytes_{which}"), spent.bytes, "every tensor moved once"))
            quantities.append(Quantity(_natural(f"bytes_{which}_im2col"), spent.im2col_bytes, "with the column matrix"))
            quantities.append(Quantity(_natural(f"I_{which}"), sympy.together(spent.intensity), "useful FLOP per byte"))
        return tuple(quantities)

    def _touched(self, expression: Expr, axis: int, j: Expr) -> tuple[Expr, Expr, Expr]:
        """gcd(stride, dilation), what each tap adds, and the sum over taps, each in terms of the one before."""
        v = self.letters
        (shared,) = {e for e in sympy.preorder_traversal(expression) if type(e).__name__ == "gcd"}
        # the common divisor divides both, so no floor is needed
        expression = expression.replace(
            lambda e: isinstance(e, sympy.floor) and sympy.fraction(e.args[0])[1] == shared, lambda e: e.args[0]
        ).subs(shared, v.shared[axis])
        fresh, summed = expression.function, expression.func(v.fresh[axis](j), *expression.limits)
        return shared, fresh, summed

    def without_functions(self, expression: Expr) -> Expr:
        """The expression with V_h(j, c) and F_h(j) written out."""
        for quantity in reversed(self.definitions):
            if not quantity.name.is_Function or not expression.has(quantity.name.func):
                continue
            expression = expression.replace(
                quantity.name.func, lambda *given, q=quantity: q.expression.xreplace(dict(zip(q.name.args, given, strict=True)))
            )
        return expression

    @cached_property
    def _compiled(self) -> list[tuple[str, Callable[..., int], Callable[..., int]]]:
        """Each definition's numerator and denominator as functions of the letters and all earlier quantities, in order."""
        known, result = list(self.hyper_parameters), []
        for quantity in self.definitions:
            if not quantity.name.is_Function:
                above, below = sympy.fraction(sympy.together(self.without_functions(quantity.expression)))
                result.append((str(quantity), compiled(known, above), compiled(known, below)))
                known.append(quantity.name)
        return result

    @cached_property
    def hyper_parameters(self) -> tuple[Expr, ...]:
        """The letters that the caller chooses, each once."""
        v = self.letters
        ends = (*v.low, *v.extra) if self.transposed else (*v.low, *v.high)
        chosen = (
            v.batch,
            v.in_channels,
            v.out_channels,
            v.groups,
            v.itemsize,
            *v.size,
            *v.kernel,
            *v.stride,
            *v.dilation,
            *ends,
        )
        return tuple(dict.fromkeys(chosen))

    def values(self, problem: ConvProblem, itemsize: int) -> dict[Expr, int]:
        """The letters' numbers. Raises ValueError where the problem has another rank, or two paddings for one letter."""
        if problem.rank != self.rank:
            raise ValueError(f"problem must have {self.rank} spatial axes, got {problem.rank}: {problem}")
        v, low, high = self.letters, *zip(*problem.padding, strict=True)
        numbers = {v.batch: problem.batch, v.groups: problem.groups, v.itemsize: itemsize}
        channels, sizes = (problem.in_channels, problem.out_channels), problem.input_size
        if self.transposed:
            channels, sizes = channels[::-1], problem.output_size
            numbers |= dict(zip(v.extra, (lo - hi for lo, hi in problem.padding), strict=True))
        else:
            if self.symmetric and low != high:
                raise ValueError(f"problem must have one padding an axis for symmetric formulas, got {problem.padding}")
            numbers |= dict(zip(v.high, high, strict=True))
        numbers |= dict(zip((v.in_channels, v.out_channels), channels, strict=True))
        for letters, given in ((v.size, sizes), (v.kernel, problem.kernel_size), (v.stride, problem.stride)):
            numbers |= dict(zip(letters, given, strict=True))
        return numbers | dict(zip(v.dilation, problem.dilation, strict=True)) | dict(zip(v.low, low, strict=True))

    def evaluate(self, values: Mapping[Expr, int]) -> dict[str, int | Fraction]:
        """Every quantity by name, computed from the definitions as they are printed, without rounding."""
        arguments: list[int | Fraction] = [values[letter] for letter in self.hyper_parameters]
        computed: dict[str, int | Fraction] = {}
        for name, above, below in self._compiled:
            value = Fraction(above(*arguments), below(*arguments))
            computed[name] = int(value) if value.denominator == 1 else value
            arguments.append(computed[name])
        return computed


def _as_ceiling(expression: Expr) -> Expr:
    """Turns floor((x + s - 1) / s), which is how integer arithmetic writes a ceiling, back into ceiling(x / s)."""

    def turned(expression: Expr) -> Expr:
        above, below = sympy.fraction(expression.args[0])
        return sympy.ceiling((above - below + 1) / below) if below.is_Symbol and above.coeff(below) == 1 else expression

    return expression.replace(sympy.floor, lambda argument: turned(sympy.floor(argument)))
