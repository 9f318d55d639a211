"""One axis of a convolution as a relation between integers, and the steps that isolate one of them.

`costmodel.formulas.inverse` calls this module. The numbers come from ConvProblem: its sizes are linear in every argument except
the stride, so their values at 0 and 1 give the coefficients.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from costmodel.algebra import ceil_div
from costmodel.formulas import derivation
from costmodel.formulas.derivation import Line, Step
from costmodel.problem import ConvProblem

LETTER = {
    "output": "o",
    "input": "n",
    "kernel": "k",
    "stride": "s",
    "padding": "p",
    "dilation": "d",
    "output_padding": "a",
}
_FORWARD = "o = ⌊(n + P − d·(k − 1) − 1)/s⌋ + 1"
_TRANSPOSED = "o = (n − 1)·s − P + d·(k − 1) + a + 1"


@dataclass(frozen=True)
class Linear:
    """low <= scale * unknown + offset <= high over the integers; None leaves an end open."""

    scale: int
    offset: int
    low: int | None
    high: int | None

    def interval(self) -> tuple[int | None, int | None] | None:
        """The interval of unknowns that satisfy it: (None, None) for all integers, None where there is none."""
        low = None if self.low is None else self.low - self.offset
        high = None if self.high is None else self.high - self.offset
        if self.scale == 0:
            return None if (low is not None and low > 0) or (high is not None and high < 0) else (None, None)
        if self.scale < 0:
            low, high = (None if high is None else -high), (None if low is None else -low)
        size = abs(self.scale)
        low = None if low is None else ceil_div(low, size)
        high = None if high is None else high // size
        return None if low is not None and high is not None and low > high else (low, high)


@dataclass(frozen=True)
class Solution:
    """Exactly the integers from `low` to `high` are solutions. Where `high` is None there is no upper end; where `low` is None
    there is no solution.

    `symbol` is the letter of the unknown in the derivation; `reason` says why there is no solution.
    """

    solved_for: str
    symbol: str
    low: int | None
    high: int | None
    reason: str
    steps: tuple[Step, ...]

    @property
    def empty(self) -> bool:
        return self.low is None

    def __contains__(self, value: int) -> bool:
        return self.low is not None and self.low <= value and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        if self.low is None:
            return f"no {self.symbol}: {self.reason}"
        if self.low == self.high:
            return f"{self.symbol} = {self.low}"
        return f"{self.symbol} >= {self.low}" if self.high is None else f"{self.low} <= {self.symbol} <= {self.high}"

    def latex(self) -> str:
        r"""The derivation as a LaTeX fragment (amsmath)."""
        return derivation.latex(self.steps)

    def markdown(self) -> str:
        return derivation.markdown(self.steps)

    def plain(self) -> str:
        """The derivation for a terminal."""
        return derivation.plain(self.steps)


@dataclass(frozen=True)
class Axis:
    """The given numbers of one axis; the unknown may hold any number. `padding` is a (low, high) pair or "same"."""

    input: int
    kernel: int
    stride: int
    dilation: int
    padding: tuple[int, int] | str
    output_padding: int
    transposed: bool

    def span(self) -> int:
        """For a forward convolution the last position at which a window may start, n + P - d (k - 1) - 1; for a transposed one
        the output size."""
        if self.transposed:
            low, high = map(int, self.padding)
            problem = ConvProblem.conv_transpose(
                (1, 1, self.input),
                (1, 1, self.kernel),
                (self.stride,),
                (low,),
                (self.output_padding + low - high,),
                1,
                (self.dilation,),
                checked=False,
            )
            return int(problem.input_size[0])
        padding = self.padding if isinstance(self.padding, str) else (self.padding,)
        problem = ConvProblem.conv(
            (1, 1, self.input), (1, 1, self.kernel), (self.stride,), padding, (self.dilation,), checked=False
        )
        return int(problem.padded_size[0] - problem.effective_kernel[0])


def output_size(axis: Axis) -> Solution:
    """The output size from the given numbers, where nothing has to be isolated."""
    span, s = axis.span(), axis.stride
    if axis.transposed:
        output, lines = span, [_with_numbers(axis, {}), f"o = {_number(span)}"]
        reason = "" if output > 0 else f"the padding crops everything, the size would be {output}"
    else:
        output = span // s + 1
        lines = [_with_numbers(axis, {}), f"o = ⌊{_number(span)}/{s}⌋ + 1", f"o = {_number(output)}"]
        reason = "" if span >= 0 else _too_large(axis)
    steps = [Step("Size relation", Line.prose(_words(axis)), (Line.of(_TRANSPOSED if axis.transposed else _FORWARD),))]
    steps.append(Step("Numbers", Line.prose("Everything known is put in."), tuple(map(Line.of, lines))))
    if reason:
        steps.append(_no_solution(reason))
    low = None if reason else output
    return Solution("output", "o", low, low, reason, tuple(steps))


def _too_large(axis: Axis) -> str:
    extent = ConvProblem.conv((1, 1, 1), (1, 1, axis.kernel), (1,), (0,), (axis.dilation,), checked=False).effective_kernel[0]
    return f"the dilated kernel spans {extent}, the padded input only {axis.span() + extent}"


def _words(axis: Axis) -> str:
    if axis.transposed:
        return "Input coordinate $i$ adds to the outputs $i s + j d - p$ under tap $j$; $a$ more are kept at the high end."
    text = "The last window starts where the dilated kernel still fits into the padded input, $P$ being both paddings together."
    return text + (" Same padding is $P = d (k - 1)$." if axis.padding == "same" else "")


def _no_solution(reason: str) -> Step:
    return Step("No solution", Line.prose(f"{reason[0].upper()}{reason[1:]}."))


def _with_numbers(axis: Axis, unknown: dict[str, str]) -> str:
    """The size relation with numbers for letters; `unknown` has the letters of what is not given."""
    relation = _TRANSPOSED if axis.transposed else _FORWARD
    known = {"n": axis.input, "k": axis.kernel, "s": axis.stride, "d": axis.dilation, "a": axis.output_padding}
    if isinstance(axis.padding, str):
        relation = relation.replace("P", "d·(k − 1)")
    else:
        known["P"] = sum(axis.padding)
    words = {letter: str(value) if value >= 0 else f"({_number(value)})" for letter, value in known.items()} | unknown
    return re.sub(r"[a-zA-Z]", lambda letter: words.get(letter[0], letter[0]), relation)


def _number(value: int) -> str:
    return str(value).replace("-", "−")


def _sum(scale: int, letter: str, offset: int) -> str:
    """scale · letter + offset, as people write it."""
    if scale == 0:
        return _number(offset)
    term = {1: letter, -1: f"−{letter}"}.get(scale, f"{_number(scale)}·{letter}")
    return term + (f" + {offset}" if offset > 0 else f" − {-offset}" if offset < 0 else "")


class Isolation:
    """From the size relation to the interval of one unknown, step by step."""

    def __init__(self, for_: str, axis: Axis, output: int, least: int, symmetric: bool) -> None:
        self.for_, self.axis, self.output, self.least = for_, axis, output, least
        self.letter = LETTER[for_] if for_ != "padding" or symmetric else "P"
        self.total = self.letter == "P"
        self.steps: list[Step] = []

    def with_unknown(self, value: int) -> Axis:
        if self.for_ == "padding":
            return replace(self.axis, padding=(value, 0) if self.total else (value, value))
        fields: dict[str, int] = {self.for_: value}
        return replace(self.axis, **fields)  # type: ignore[arg-type]

    def add(self, title: str, text: str, *lines: str) -> None:
        self.steps.append(Step(title, Line.prose(text), tuple(map(Line.of, lines))))

    def numbers(self, text: str, collected: str) -> None:
        """Adds the relation with the given numbers, and the same with the unknown collected."""
        letter = {"padding": "P"}.get(self.for_, self.letter)
        unknown = {letter: "2·p" if self.letter == "p" else self.letter, "o": str(self.output)}
        self.add("Numbers", text, _with_numbers(self.axis, unknown), collected)

    def solution(self) -> Solution:
        self.add("Size relation", _words(self.axis), _TRANSPOSED if self.axis.transposed else _FORWARD)
        at_zero = self.with_unknown(0).span()
        scale = self.with_unknown(1).span() - at_zero  # the span is linear in every unknown
        if self.axis.transposed:
            conditions = self.transposed(scale, at_zero)
        elif self.for_ == "stride":
            if at_zero < 0:
                return self.nothing(_too_large(self.axis))
            conditions = self.stride(at_zero)
        else:
            conditions = self.unfolded(scale, at_zero)
        return self.bounded(conditions)

    def transposed(self, scale: int, offset: int) -> list[Linear]:
        text = f"One equation, linear in ${self.letter}$: no floor to unfold."
        self.numbers(text, f"{self.output} = {_sum(scale, self.letter, offset)}")
        return [Linear(scale, offset, self.output, self.output)]

    def unfolded(self, scale: int, offset: int) -> list[Linear]:
        s, o, middle = self.axis.stride, self.output, _sum(scale, self.letter, offset)
        condition = Linear(scale, offset, s * (o - 1), s * o - 1)
        if s == 1:
            self.numbers("At stride 1 the floor changes nothing.", f"{o} = {middle} + 1")
            return [condition]
        self.numbers("Everything known is put in.", f"{o} = ⌊({middle})/{s}⌋ + 1")
        text = f"A floor is ${o - 1}$ from ${o - 1}$ up to, not including, ${o}$."
        self.add("Unfold the floor", text, f"{o - 1} ≤ ({middle})/{s} < {o}")
        text = "Times the stride; an integer below a bound is at most one less."
        self.add("Clear the fraction", text, f"{condition.low} ≤ {middle} ≤ {condition.high}")
        return [condition]

    def stride(self, span: int) -> list[Linear]:
        o, known = self.output, _number(span)
        self.numbers("Everything known is put in.", f"{o} = ⌊{known}/s⌋ + 1")
        text = f"A floor is ${o - 1}$ from ${o - 1}$ up to, not including, ${o}$."
        self.add("Unfold the floor", text, f"{o - 1} ≤ {known}/s < {o}")
        lower, upper = Linear(o - 1, 0, None, span), Linear(o, 0, span + 1, None)
        text = "Times the stride, which is positive: two bounds."
        self.add("Clear the fraction", text, f"{o - 1}·s ≤ {known}", f"{o}·s ≥ {_number(span + 1)}")
        return [lower, upper]

    def bounded(self, conditions: list[Linear]) -> Solution:
        """The common interval of the conditions, rounded inwards, from the least number allowed."""
        intervals = [condition.interval() for condition in conditions]
        if None in intervals:
            return self.nothing(self.why_none(conditions[intervals.index(None)]))
        low = max((i[0] for i in intervals if i is not None and i[0] is not None), default=None)
        high = min((i[1] for i in intervals if i is not None and i[1] is not None), default=None)
        if low is not None and high is not None and low > high:
            return self.nothing(f"the two bounds, at least {low} and at most {high}, exclude each other")
        text = f"Divide by what stands before ${self.letter}$ and round inwards."
        if low is None and high is None:
            self.add("Isolate", f"${self.letter}$ has dropped out, and what is left is true.")
        else:
            self.add("Isolate", text, self.between(low, high))
        most = max(self.axis.stride, self.axis.dilation) - 1 if self.for_ == "output_padding" else None
        return self.in_domain(low, high, most)

    def in_domain(self, low: int | None, high: int | None, most: int | None) -> Solution:
        names = self.for_.replace("_", " ")
        allowed = f"the {names} is at least {self.least}" + ("" if most is None else f" and at most {most}")
        bottom = self.least if low is None else max(low, self.least)
        top = high if most is None else most if high is None else min(high, most)
        if top is not None and bottom > top:
            only = self.between(low, high).translate({ord("−"): "-", ord("≤"): "<=", ord("≥"): ">="})
            return self.nothing(f"only {only} would do, and {allowed}")
        if (bottom, top) != (low, high):
            self.add("Range", f"{allowed[0].upper()}{allowed[1:]}.", self.between(bottom, top))
        return Solution(self.for_, self.letter, bottom, top, "", tuple(self.steps))

    def nothing(self, reason: str) -> Solution:
        self.steps.append(_no_solution(reason))
        return Solution(self.for_, self.letter, None, None, reason, tuple(self.steps))

    def between(self, low: int | None, high: int | None) -> str:
        if low is not None and low == high:
            return f"{self.letter} = {_number(low)}"
        if low is None and high is None:
            return self.letter
        if high is None:
            return f"{self.letter} ≥ {_number(low or 0)}"
        return f"{self.letter} ≤ {_number(high)}" if low is None else f"{_number(low)} ≤ {self.letter} ≤ {_number(high)}"

    def why_none(self, condition: Linear) -> str:
        assert condition.low is not None and condition.high is not None
        low, high = condition.low - condition.offset, condition.high - condition.offset
        if condition.scale == 0:
            fact = f"{condition.low} <= {condition.offset} <= {condition.high}"
            return f"the relation is without {self.letter} here, and {fact} is false"
        if condition.scale < 0:
            low, high = -high, -low
        size = abs(condition.scale)
        range_ = f"be {low}" if low == high else f"lie from {low} to {high}"
        reason = f"{size}*{self.letter} would have to {range_}, and no multiple of {size} does"
        if self.letter == "p" and low == high and low > 0 and not self.axis.transposed:
            reason += f"; padding ({low // 2}, {math.ceil(low / 2)}) does"
        return reason
