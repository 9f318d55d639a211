"""The formulas in letters against the numbers of ConvProblem and Cost, and their printing."""

import functools
import random
import re

import pytest
import sympy
from matplotlib.mathtext import MathTextParser

from costmodel import ConvProblem, Pass, cost
from costmodel.formulas.formula import symbolic
from costmodel.formulas.typeset import compiled
from costmodel.tiling import itemsize
from tests.test_counts import random_problem

KINDS = [(rank, transposed) for rank in (1, 2, 3) for transposed in (False, True)]
DTYPES = ("float16", "float32", "float64")


def names(formulas):
    return [str(s)[2:] for s in formulas.letters.stride], [str(s) for s in formulas.letters.out]


def random_transposed(draw, rank):
    """A transposed problem, the output padding as far as torch allows."""
    while True:
        groups = draw.choice((1, 1, 2, 3))
        size, kernel, stride, dilation = ([draw.randint(1, 6) for _ in range(rank)] for _ in range(4))
        padding = [draw.randint(0, 4) for _ in range(rank)]
        extra = [draw.randrange(max(pair)) for pair in zip(stride, dilation, strict=True)]
        x_shape, channels = (draw.randint(1, 3), groups * draw.randint(1, 3), *size), draw.randint(1, 3)
        w_shape = (x_shape[1], channels, *kernel)
        problem = ConvProblem.conv_transpose(x_shape, w_shape, stride, padding, extra, groups, dilation, checked=False)
        if min(problem.input_size) >= 1:
            return problem


@functools.cache
def typeset(text):
    """matplotlib's reading of a formula; raises ValueError where it is none."""
    return MathTextParser("path").parse(text)


def example(draw, rank, transposed):
    return random_transposed(draw, rank) if transposed else random_problem(draw, rank)


def numbers(formulas, problem, dtype):
    """What `subs` must give, from the integer path."""
    axes, outs = names(formulas)
    sizes = problem.input_size if formulas.transposed else problem.output_size
    work = cost(problem, dtype=dtype)
    expected = dict(zip(outs, sizes, strict=True))
    for letter, values in (("U", problem.valid_pairs), ("T", problem.touched_size)):
        expected |= {f"{letter}_{axis}": value for axis, value in zip(axes, values, strict=True)}
    expected |= {"MAC_useful": work.useful_macs, "MAC_dense": work.dense_macs}
    expected |= {"FLOP_useful": work.useful_flops, "FLOP_dense": work.dense_flops}
    for which in Pass:
        spent = cost(problem, which, dtype=dtype)
        expected |= {f"bytes_{which}": spent.bytes, f"bytes_{which}_im2col": spent.im2col_bytes}
        expected[f"I_{which}"] = sympy.Rational(spent.useful_flops, spent.bytes)
    return expected


@pytest.mark.parametrize(("rank", "transposed"), KINDS)
def test_the_formulas_with_numbers_put_in_are_the_numbers(rank, transposed):
    draw = random.Random(10 * rank + transposed)
    formulas = symbolic(rank, transposed)
    for _ in range(40):
        problem = example(draw, rank, transposed)
        dtype = draw.choice(DTYPES)
        found = formulas.subs(problem, dtype)
        expected = numbers(formulas, problem, dtype)
        assert {name: found[name] for name in expected} == expected, problem
        x, y = (problem.output_shape, problem.input_shape) if transposed else (problem.input_shape, problem.output_shape)
        bias = cost(problem, Pass.DGRAD if transposed else Pass.FPROP, bias=True, transposed=transposed).bias_flops
        assert found["FLOP_bias"] == bias
        assert found["parameters"] == x[1] * y[1] // problem.groups * sympy.prod(problem.kernel_size)


@pytest.mark.parametrize("rank", (1, 2))
def test_one_padding_an_axis(rank):
    draw, formulas, done = random.Random(rank), symbolic(rank, symmetric=True), 0
    assert len(formulas.hyper_parameters) == 5 + 5 * rank
    while done < 20:
        problem = random_problem(draw, rank)
        if any(low != high for low, high in problem.padding):
            with pytest.raises(ValueError, match="one padding an axis"):
                formulas.subs(problem)
            continue
        done += 1
        expected = numbers(formulas, problem, "float16")
        found = formulas.subs(problem)
        assert {name: found[name] for name in expected} == expected, problem


@pytest.mark.parametrize(("rank", "transposed"), KINDS)
def test_every_field_is_a_letter_and_the_same_properties_give_the_numbers(rank, transposed):
    """`problem` is a ConvProblem of letters: its own properties agree, and so do the closed forms."""
    draw, formulas = random.Random(rank), symbolic(rank, transposed)
    letters = formulas.problem

    def functions(values):
        return [compiled(formulas.hyper_parameters, sympy.sympify(value)) for value in values]

    own = ("output_shape", "input_shape", "weight_shape", "valid_pairs", "touched_size")
    of_letters = {name: functions(getattr(letters, name)) for name in own}
    work = functions((letters.useful_macs, letters.macs))
    closed = [*map(str, (*formulas.letters.out, *formulas.letters.touched)), "MAC_useful", "bytes_dgrad", "bytes_wgrad"]
    forms = dict(zip(closed, functions(map(formulas.closed_form, closed)), strict=True))
    for _ in range(30):
        problem = example(draw, rank, transposed)
        values = formulas.values(problem, 2)
        at = [values[letter] for letter in formulas.hyper_parameters]
        for name, entries in of_letters.items():
            assert tuple(entry(*at) for entry in entries) == getattr(problem, name), (name, problem)
        assert [entry(*at) for entry in work] == [problem.useful_macs, problem.macs]
        expected = numbers(formulas, problem, "float16")
        assert {name: form(*at) for name, form in forms.items()} == {name: expected[name] for name in closed}, problem


@pytest.mark.parametrize(("rank", "transposed"), KINDS)
def test_closed_forms_have_hyper_parameters_only(rank, transposed):
    formulas = symbolic(rank, transposed)
    for quantity in formulas.definitions:
        if not quantity.name.is_Function:
            form = formulas.closed_form(str(quantity))
            assert form.free_symbols <= set(formulas.hyper_parameters), quantity
            assert not form.atoms(sympy.core.function.AppliedUndef), quantity
    used = set().union(*(formulas.closed_form(f"I_{which}").free_symbols for which in Pass))
    assert used == set(formulas.hyper_parameters)


def satisfying(case, formulas, draw):
    """Without end: numbers for the letters that are left, under the case's condition, and for all hyper-parameters."""
    v, everything = formulas.letters, formulas.hyper_parameters
    left = set(everything) - set(case.substitution)
    left |= set().union(*(sympy.sympify(e).free_symbols for e in case.substitution.values())) - set(case.substitution)
    order = sorted(left, key=str)
    holds = sympy.lambdify(order, case.condition)
    values = sympy.lambdify(order, [case.substitution.get(e, e) for e in everything])
    while True:
        free = {s: draw.randint(1, 3 if s in (*v.kernel, *v.dilation) else 9) for s in order}
        if v.groups in free:  # groups divide the channels
            free |= {c: free[v.groups] * draw.randint(1, 3) for c in (v.in_channels, v.out_channels) if c in free}
        if holds(*free.values()):
            yield free, dict(zip(everything, values(*free.values()), strict=True))


@pytest.mark.parametrize(("rank", "transposed"), KINDS)
def test_special_cases_are_the_general_formulas(rank, transposed):
    formulas, draw = symbolic(rank, transposed, symmetric=True), random.Random(rank)
    claimed = ("MAC_useful", "MAC_dense", "parameters")
    for case in formulas.specials:
        claims = {str(name): value for name, value in case.claims.items()}
        claims |= {name: case.quantity(formulas, name) for name in claimed}
        done = 0
        for free, values in satisfying(case, formulas, draw):
            found = formulas.evaluate(values)
            if min(found[str(out)] for out in formulas.letters.out) < 1:
                continue
            known = free | {q.name: found[str(q)] for q in formulas.definitions if str(q) in found}
            for name, claim in claims.items():
                assert sympy.sympify(claim).subs(known) == found[name], (case.title, name, values)
            done += 1
            if done == 8:
                break


def test_special_cases_look_as_in_the_textbooks():
    plane = symbolic(2, symmetric=True)
    cases = {case.title: case for case in plane.specials}
    c, k, m, taps = sympy.symbols("C K m k", integer=True, positive=True)
    assert cases["one square image without padding"].quantity(plane, "MAC_dense") == c * k * taps**2 * m**2
    assert "MAC_useful = N·C·U_h·U_w" in plane.plain()
    assert "U_h = H·(2·r_h + 1) - r_h·d_h·(r_h + 1)" in plane.plain()


def test_limits_and_ridge_follow_from_the_intensity():
    """Far out, the printed limits are the intensity; and at the printed batch, the intensity is the ridge."""
    formulas = symbolic(1)
    text = formulas.plain()
    v = formulas.letters
    numbers = {str(s): 3 for s in formulas.hyper_parameters} | {"g": 1, "U_w": 21, "T_w": 8, "W_o": 9, "W": 11}
    intensity = next(q.expression for q in formulas.definitions if str(q) == "I_fprop")

    def value(expression, **others):
        return eval(expression.replace("·", "*").replace("^", "**"), {}, {**numbers, **others})

    found = re.findall(r"I_fprop -> (.*) as (\w) -> infinity", text)
    assert [letter for _, letter in found] == ["N", "C", "K"]
    for expression, letter in found:
        grown = {s: {**numbers, letter: 10**9}[str(s)] for s in intensity.free_symbols}
        assert abs(value(expression) / float(intensity.subs(grown)) - 1) < 1e-7, letter
    (batch,) = re.findall(r"N_ridge = (.*)", text)
    at = value(batch, rho=1.5)
    assert at > 0
    reached = intensity.subs({s: numbers[str(s)] for s in intensity.free_symbols if s != v.batch}).subs(v.batch, at)
    assert abs(float(reached) - 1.5) < 1e-12


@pytest.mark.parametrize(("rank", "transposed", "symmetric"), [(*kind, False) for kind in KINDS] + [(2, False, True)])
def test_every_line_is_mathematics_that_a_typesetter_takes(rank, transposed, symmetric):
    formulas = symbolic(rank, transposed, symmetric=symmetric)
    taken = 0
    for step in formulas.steps:
        for piece in re.findall(r"\$(.*?)\$", step.text.latex):
            typeset(f"${piece}$")
        for found in step.lines:
            assert not re.search(r"(?<![lr])floor|FloorDiv|Piecewise|Max|Min|TapSum|C_g|K_g|\\mathtt", found.latex), found.latex
            assert found.latex.count(r"\left") == found.latex.count(r"\right"), found.latex
            if "cases" not in found.latex:  # matplotlib has neither these nor \\bmod
                typeset(f"${found.latex}$".replace(r"\bmod", r"\mathrm{mod}"))
                taken += 1
    assert taken > 25


def test_latex_and_markdown_have_every_step():
    formulas = symbolic(2)
    tex, text = formulas.latex(), formulas.markdown()
    for step in formulas.steps:
        assert rf"\paragraph{{{step.title}.}}" in tex and f"**{step.title}.**" in text
        for found in step.lines:
            assert f"$$\n{found.latex}\n$$" in text
    assert tex.count(r"\begin{align*}") == tex.count(r"\end{align*}") == sum(bool(s.lines) for s in formulas.steps)
    assert tex.count("{") == tex.count("}")
    assert r"H_{o} &= \left\lfloor \frac{H + p_{h}^{\mathrm{lo}} + p_{h}^{\mathrm{hi}}" in tex
    assert r"\mathrm{MAC}_{\mathrm{dense}} &= \frac{N C K R S H_{o} W_{o}}{g}" in tex
    assert "MAC_dense = N·C·K·R·S·H_o·W_o/g" in formulas.plain()
    assert r"\bmod s_{h}" in symbolic(2, True).latex()


def test_the_printed_plain_lines_are_the_definitions():
    """Sizes, multiply-adds and bytes as they stand in the text, evaluated as Python."""
    draw, formulas = random.Random(4), symbolic(2)
    general = [step for step in formulas.steps if not step.title.startswith("Special")]
    lines = dict(found.plain.split(" = ", 1) for step in general for found in step.lines if " = " in found.plain)
    for _ in range(40):
        problem = random_problem(draw, 2)
        found = formulas.subs(problem)
        known = {str(s): value for s, value in formulas.values(problem, itemsize("float16")).items()} | found
        for name in ("H_o", "W_o", "MAC_dense", "bytes_fprop", "bytes_dgrad", "bytes_wgrad_im2col", "I_wgrad", "FLOP_bias"):
            source = (
                lines[name].replace("·", "*").replace("⌊(", "(((").replace(")/s_h⌋", "))//s_h)").replace(")/s_w⌋", "))//s_w)")
            )
            assert eval(source, {}, dict(known)) == pytest.approx(float(found[name]), rel=1e-14), name


def test_bad_arguments():
    with pytest.raises(ValueError, match="rank must be 1, 2 or 3, got 4"):
        symbolic(4)
    with pytest.raises(ValueError, match=r"name must be one of H_o, .* got 'MACs'"):
        symbolic(2).closed_form("MACs")
    with pytest.raises(ValueError, match="2 spatial axes, got 1"):
        symbolic(2).subs(random_problem(random.Random(0), 1))
