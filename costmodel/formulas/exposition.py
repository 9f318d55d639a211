"""The formulas as a derivation, step by step: windows, output size, taps, multiply-adds, bytes, intensity. Imports sympy."""

from __future__ import annotations

from typing import Any

import sympy

from costmodel.formulas.derivation import Line, Step
from costmodel.formulas.quantities import Quantities
from costmodel.formulas.special import Special, specials
from costmodel.formulas.typeset import latex, line, plain
from costmodel.problem import ConvProblem, Pass

Expr = Any  # a sympy expression

_I, _J = (sympy.Symbol(name, integer=True) for name in "ij")


def steps(quantities: Quantities) -> tuple[Step, ...]:
    shape = _transposed_shape(quantities) if quantities.transposed else _shape(quantities)
    rest = (_taps(quantities), *_work(quantities), *_traffic(quantities), *_intensity(quantities))
    return (_notation(quantities), *shape, *rest, *(_special(quantities, case) for case in specials(quantities)))


def _say(words: str, *parts: Expr) -> Line:
    """Prose in which expressions or lines replace each {}."""
    shown = [part if isinstance(part, Line) else line(part) for part in parts]
    return Line(words.format(*(f"${part.latex}$" for part in shown)), words.format(*(part.plain for part in shown)))


def _shape_of(symbols: tuple[Expr, ...]) -> Line:
    return Line(r" \times ".join(map(latex, symbols)), " × ".join(map(plain, symbols)))


def _defined(quantities: Quantities, *names: str) -> tuple[Line, ...]:
    by_name = {str(quantity): quantity for quantity in quantities.definitions}
    return tuple(line(by_name[name].name, "=", by_name[name].expression) for name in names)


def _axis(quantities: Quantities) -> str:
    """The index of the first axis, which stands for all axes in formulas that are the same for each."""
    return str(quantities.letters.stride[0])[2:]


def _likewise(quantities: Quantities) -> str:
    return {1: "", 2: " The other axis likewise."}.get(quantities.rank, " The other axes likewise.")


def _notation(quantities: Quantities) -> Step:
    v = quantities.letters
    weight = (v.out_channels, v.in_channels / v.groups, *v.kernel)
    ends = "padding {} before and {} after"
    if quantities.transposed:
        weight, ends = (v.in_channels, v.out_channels / v.groups, *v.kernel), "padding {}, output padding {}"
    elif quantities.symmetric:
        ends = "padding {}"
    text = _say(
        "Input {}, weight {}, output {}: images, channels, sizes. On each axis stride {}, dilation {}, "
        + ends
        + ". There are {} groups, and {} bytes per element. One MAC is one multiply-add, two FLOP.",
        _shape_of((v.batch, v.in_channels, *v.size)),
        _shape_of(weight),
        _shape_of((v.batch, v.out_channels, *v.out)),
        v.stride[0],
        v.dilation[0],
        *(v.low[0], v.extra[0] if quantities.transposed else v.high[0])[: ends.count("{}")],
        v.groups,
        v.itemsize,
    )
    return Step("Notation", text)


def _shape(quantities: Quantities) -> tuple[Step, ...]:
    v, problem = quantities.letters, quantities.problem
    span, start = problem.effective_kernel[0], _I * v.stride[0]
    words = (
        "Along an axis the dilated kernel spans {} coordinates. Window {} starts {} into the padded input and ends within it."
    )
    windows = Step("Windows", _say(words, span, _I, start), (line(start + span, "<=", problem.padded_size[0]),))
    count = _say("The largest such {}, and one more since it counts from 0.", _I)
    return windows, Step("Output size", count, _defined(quantities, *map(str, v.out)))


def _transposed_shape(quantities: Quantities) -> tuple[Step, ...]:
    v = quantities.letters
    place = _I * v.stride[0] + _J * v.dilation[0] - v.low[0]
    words = (
        "The adjoint of a convolution: tap {} adds input {} to output {}. The padding is cut off both ends, and {} more outputs"
        " are kept at the high end."
    )
    scatter = Step("Scatter", _say(words, _J, _I, place, v.extra[0]), _defined(quantities, *map(str, v.out)))
    channels = v.out_channels / v.groups
    adjoint = ConvProblem.conv(
        (v.batch, v.out_channels, *v.out), (v.in_channels, channels, *v.kernel), v.stride, v.low, v.dilation, v.groups
    )
    words = "That convolution has output {} for every stride-many sizes {}; which one is wanted, the output padding says."
    room, extra, stride = line(adjoint.padded_size[0] - adjoint.effective_kernel[0]), line(v.extra[0]), line(v.stride[0])
    remainder = Line(
        rf"{extra.latex} = \left({room.latex}\right) \bmod {stride.latex}", f"{extra.plain} = ({room.plain}) mod {stride.plain}"
    )
    lines = (line(v.size[0], "=", adjoint.output_size[0]), remainder)
    return scatter, Step("Output padding", _say(words, v.size[0], v.out[0]), lines)


def _taps(quantities: Quantities) -> Step:
    v, axis = quantities.letters, _axis(quantities)
    place = _I * v.stride[0] + _J * v.dilation[0] - v.low[0]
    inner = v.out[0] if quantities.transposed else v.size[0]
    names = ("input", "output") if quantities.transposed else ("output", "input")
    words = (
        f"Tap {{}} joins {names[0]} {{}} to {names[1]} {{}}, where that lies in {{}}. Of the first {{}} {names[0]}s, {{}} find"
        " one under the tap; summed over the taps these are the {} pairs that do work." + _likewise(quantities)
    )
    count = sympy.Symbol("c")
    inside = line(0, "<=", place, "<", inner)
    text = _say(words, _J, _I, place, inside, count, v.reached[0](_J, count), v.pairs[0])
    return Step("Pairs that meet", text, _defined(quantities, f"V_{axis}", f"U_{axis}"))


def _work(quantities: Quantities) -> tuple[Step, ...]:
    text = Line.prose(
        "Each pair costs a MAC for every image and every two channels that share a group, the same in fprop, dgrad and wgrad."
        " The dense count takes taps on padding for work, too: it is what most tools print."
    )
    macs = Step("Multiply-adds", text, _defined(quantities, "MAC_useful", "MAC_dense"))
    text = Line.prose("A MAC is two FLOP. A bias adds one FLOP per output, counted apart.")
    return macs, Step("FLOP", text, _defined(quantities, "FLOP_useful", "FLOP_dense", "FLOP_bias"))


def _traffic(quantities: Quantities) -> tuple[Step, ...]:
    v, axis = quantities.letters, _axis(quantities)
    big, small = ("output", "input") if quantities.transposed else ("input", "output")
    words = (
        f"Windows may leave {big} coordinates out. What tap {{}} meets, tap {{}} meets again {{}} {small}s earlier, as long as"
        " there are so many; {} coordinates are left that no later tap meets." + _likewise(quantities)
    )
    later, earlier = _J + v.stride[0] / v.shared[0], v.dilation[0] / v.shared[0]
    text = _say(words, _J, later, earlier, v.fresh[0](_J))
    touched = Step("Touched coordinates", text, _defined(quantities, f"G_{axis}", f"F_{axis}", f"T_{axis}"))
    words = (
        "Compulsory traffic: each tensor moved once, of a tensor that is only read just what windows touch, and no bias. A"
        " column matrix (im2col) written and read adds twice its size."
    )
    if quantities.transposed:
        words += " The transposed convolution is dgrad of its adjoint; the gradient of its input is fprop."
    names = [f"bytes_{which}{kind}" for kind in ("", "_im2col") for which in _passes(quantities)]
    return touched, Step("Bytes", Line.prose(words), _defined(quantities, "parameters", *names))


def _passes(quantities: Quantities) -> tuple[Pass, ...]:
    return (Pass.DGRAD, Pass.FPROP, Pass.WGRAD) if quantities.transposed else tuple(Pass)


def _intensity(quantities: Quantities) -> tuple[Step, ...]:
    v, forward = quantities.letters, _passes(quantities)[0]
    lines = _defined(quantities, *(f"I_{which}" for which in _passes(quantities)))
    first = Step("Intensity", Line.prose("Useful FLOP for each compulsory byte."), lines)
    (intensity,) = (q for q in quantities.definitions if str(q) == f"I_{forward}")
    grown = []
    for letter in (v.batch, v.in_channels, v.out_channels):
        limit = line(sympy.factor(sympy.limit(intensity.expression, letter, sympy.oo)))
        tex = rf"\lim_{{{letter} \to \infty}} {latex(intensity.name)} = {limit.latex}"
        grown.append(Line(tex, f"{intensity} -> {limit.plain} as {letter} -> infinity"))
    words = "As one number grows alone, the traffic of the tensor that lacks it ceases to matter."
    second = Step("Limits", Line.prose(words), tuple(grown))
    ridge, least, peak, bandwidth = sympy.symbols("rho N_ridge P B", positive=True)
    (batch,) = sympy.solve(sympy.Eq(intensity.expression, ridge), v.batch)
    words = (
        "With a peak of {} FLOP/s and a bandwidth of {} byte/s, arithmetic binds where the intensity reaches the ridge {}: from"
        " a batch of {} on, or at no batch where that is not positive."
    )
    text = _say(words, peak, bandwidth, line(ridge, "=", peak / bandwidth), least)
    return first, second, Step("Ridge", text, (line(intensity.name, ">=", ridge), line(least, "=", sympy.factor(batch))))


def _special(quantities: Quantities, case: Special) -> Step:
    lines = [line(name, "=", value) for name, value in case.claims.items()]
    if case.substitution:
        lines += [
            line(sympy.Symbol(name), "=", case.quantity(quantities, name)) for name in ("MAC_useful", "MAC_dense", "parameters")
        ]
    return Step(f"Special case: {case.title}", Line.prose(case.assumption), tuple(lines))
