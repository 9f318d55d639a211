"""The inverses of the size relation against trying every number, the printed derivations evaluated line by line."""

import functools
import itertools
import random
import re
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F

from costmodel.formulas.derivation import Line
from costmodel.formulas.inverse import same_padding, solve
from costmodel.problem import ConvProblem

UNKNOWNS = ("padding", "input", "kernel", "stride", "dilation")
REACH = range(-20, 40)
FLOORS = str.maketrans({"⌊": "floor(", "⌋": ")", "·": "*", "−": "-", "≤": "<="})


def forward(n, k, s, pair, d):
    """ConvProblem's output size, or None where the layer is impossible."""
    if min(n, k, s, d) < 1:
        return None
    padding = "same" if pair == "same" else (pair,)
    size = ConvProblem.conv((1, 1, n), (1, 1, k), (s,), padding, (d,), checked=False).output_size[0]
    return size if size >= 1 else None


def transposed(n, k, s, p, d, a):
    if min(n, k, s, d) < 1 or not 0 <= a < max(s, d):
        return None
    size = ConvProblem.conv_transpose((1, 1, n), (1, 1, k), (s,), (p,), (a,), 1, (d,), checked=False).input_size[0]
    return size if size >= 1 else None


@functools.cache
def code(line):
    """A printed line, which is a chain of relations, as Python."""
    return compile(re.sub(r"(?<![<>=])=", "==", line.translate(FLOORS).replace("≥", ">=")), line, "eval")


def truth(line, **letters):
    exact = {name: Fraction(value) for name, value in letters.items()}
    return bool(eval(code(line), {"floor": lambda x: x.__floor__()}, exact))


def check_lines(solution):
    """Every step with numbers says the same as the interval, on every integer that the unknown may be."""
    least = 0 if solution.solved_for in ("padding", "output_padding") else 1
    steps = [[line.plain for line in step.lines] for step in solution.steps[1:] if step.lines]
    for value in range(least, REACH.stop):
        for lines in steps:
            holds = all(truth(line, **{solution.symbol: value}) for line in lines)
            assert holds == (value in solution), (str(solution), value, lines)
    return len(steps)


def grid(count, seed):
    """Random givens: input, kernel, stride, (low, high), dilation, output."""
    draw = random.Random(seed)
    for _ in range(count):
        pair = draw.choice([(p := draw.randint(0, 4), p), (draw.randint(-2, 4), draw.randint(-2, 4))])
        yield draw.randint(1, 14), draw.randint(1, 5), draw.randint(1, 5), pair, draw.randint(1, 4), draw.randint(1, 9)


@pytest.mark.parametrize("for_", UNKNOWNS)
def test_every_integer_is_in_the_interval_exactly_where_it_gives_the_output(for_):
    found = 0
    for n, k, s, pair, d, o in grid(300, for_):
        givens = {"input": n, "kernel": k, "stride": s, "padding": pair, "dilation": d}
        del givens[for_]
        solution = solve(for_, output=o, **givens)
        for value in REACH:
            numbers = {**givens, for_: value}
            if for_ == "padding":
                numbers["padding"] = (value, value)
            given = (numbers[name] for name in ("input", "kernel", "stride", "padding", "dilation"))
            works = forward(*given) == o and (for_ != "padding" or value >= 0)
            assert works == (value in solution), (for_, givens, o, value, str(solution))
        assert solution.empty == bool(solution.reason)
        assert check_lines(solution) >= 1 or for_ == "stride"
        found += not solution.empty
    assert found > 30, "hardly any case had a solution"


def test_all_combinations_of_small_numbers():
    for n, k, s, p, d in itertools.product(range(1, 6), range(1, 4), range(1, 4), range(3), range(1, 3)):
        o = forward(n, k, s, (p, p), d)
        given = {"input": n, "kernel": k, "stride": s, "padding": p, "dilation": d}
        direct = solve("output", **given)
        assert (direct.low, direct.high) == (o, o)
        if o is None:
            assert "spans" in direct.reason
            continue
        for for_, value in given.items():
            rest = {name: number for name, number in given.items() if name != for_}
            assert value in solve(for_, output=o, **rest), (for_, rest, o)


def test_total_padding_takes_any_split():
    for n, k, s, _, d, o in grid(200, "total"):
        solution = solve("padding", output=o, input=n, kernel=k, stride=s, dilation=d, symmetric=False)
        assert solution.symbol == "P"
        for total in range(0, 40):
            for low in (0, total // 3, total):
                assert (forward(n, k, s, (low, total - low), d) == o) == (total in solution)
        check_lines(solution)


@pytest.mark.parametrize("for_", UNKNOWNS)
def test_same_padding_in_any_relation(for_):
    if for_ == "padding":
        return
    for n, k, s, _, d, o in grid(200, "same" + for_):
        givens = {"input": n, "kernel": k, "stride": s, "dilation": d}
        del givens[for_]
        solution = solve(for_, output=o, padding="same", **givens)
        for value in REACH:
            numbers = {**givens, for_: value}
            works = forward(numbers["input"], numbers["kernel"], numbers["stride"], "same", numbers["dilation"]) == o
            assert works == (value in solution), (for_, givens, o, value, str(solution))
        check_lines(solution)


@pytest.mark.parametrize("for_", (*UNKNOWNS, "output_padding"))
def test_transposed_inverses(for_):
    draw, found = random.Random(for_), 0
    names = ("input", "kernel", "stride", "padding", "dilation", "output_padding")
    for _ in range(300):
        numbers = [draw.randint(1, 9), draw.randint(1, 4), draw.randint(1, 4), draw.randint(0, 3), draw.randint(1, 3), 0]
        numbers[5] = draw.randrange(max(numbers[2], numbers[4]))
        o = transposed(*numbers) if draw.random() < 0.7 else draw.randint(1, 12)
        if o is None:
            continue
        given = dict(zip(names, numbers, strict=True))
        del given[for_]
        solution = solve(for_, output=o, transposed=True, **given)
        for value in REACH:
            arguments = [value if name == for_ else given[name] for name in names]
            works = transposed(*arguments) == o and (for_ != "padding" or value >= 0)
            assert works == (value in solution), (for_, given, o, value, str(solution))
        if for_ not in ("stride", "dilation", "output_padding"):  # their range hangs on the others: see the loop above
            check_lines(solution)
        found += not solution.empty
    assert found > 75


def test_transposed_sizes_are_torchs():
    draw = random.Random(5)
    for _ in range(200):
        n, k, s, p, d = draw.randint(1, 9), draw.randint(1, 5), draw.randint(1, 4), draw.randint(0, 3), draw.randint(1, 3)
        a = draw.randrange(max(s, d))
        solution = solve("output", input=n, kernel=k, stride=s, padding=p, dilation=d, transposed=True, output_padding=a)
        if solution.empty:
            continue
        x, w = torch.empty(1, 1, n, device="meta"), torch.empty(1, 1, k, device="meta")
        assert F.conv_transpose1d(x, w, None, s, p, a, 1, d).shape[-1] == solution.low


def test_sizes_that_share_an_output_are_as_many_as_the_stride_and_the_remainder_is_the_output_padding():
    for k, s, p, d, o in itertools.product(range(1, 5), range(1, 5), range(3), range(1, 3), range(3, 6)):
        given = {"kernel": k, "stride": s, "padding": p, "dilation": d}
        sizes = solve("input", output=o, **given)
        if sizes.empty:
            continue
        if sizes.low > 1:
            assert sizes.high - sizes.low + 1 == s
        for target in range(sizes.low, sizes.high + 1):
            extra = solve("output_padding", output=target, input=o, transposed=True, **given)
            assert extra.low == extra.high == (target + 2 * p - d * (k - 1) - 1) % s


def test_same_padding_is_even_exactly_where_the_dilated_kernel_is_odd():
    for k, d in itertools.product(range(1, 9), range(1, 5)):
        low, high = same_padding(k, d)
        assert forward(20 * d, k, 1, (low, high), d) == 20 * d
        assert (low == high) == (d * (k - 1) % 2 == 0) and 0 <= high - low <= 1
        one = solve("padding", output=40, input=40, kernel=k, dilation=d)
        assert one.empty == (low != high)
        assert (one.low, one.high) == (low, low) if low == high else f"({low}, {high})" in one.reason


def test_words_and_printing():
    assert str(solve("padding", output=112, input=224, kernel=7, stride=2)) == "p = 3"
    assert str(solve("input", output=112, kernel=7, stride=2, padding=3)) == "223 <= n <= 224"
    assert str(solve("stride", output=1, input=5, kernel=3)) == "s >= 3"
    assert str(solve("padding", output=2, input=9, kernel=3)) == ("no p: 2*p would have to be -5, and no multiple of 2 does")
    assert str(solve("kernel", output=9, input=8)) == "no k: only k = 0 would do, and the kernel is at least 1"
    solution = solve("padding", output=112, input=224, kernel=7, stride=2)
    assert r"111 &\leq (2 \cdot p + 217)/2 < 112" in solution.latex()
    assert "$$\n222 \\leq 2 \\cdot p + 217 \\leq 223\n$$" in solution.markdown()
    assert "    222 ≤ 2·p + 217 ≤ 223\n" in solution.plain()
    assert Line.of("o = ⌊−3/1⌋ + 1").latex == r"o = \lfloor -3/1 \rfloor + 1"


def test_the_general_relation_printed_first_is_the_one_computed():
    draw = random.Random(9)
    for _ in range(300):
        n, k, s, d, a = (draw.randint(1, 9) for _ in range(5))
        low, high = draw.randint(-2, 4), draw.randint(-2, 4)
        (line,) = solve("output", input=n, kernel=k).steps[0].lines
        size = ConvProblem.conv((1, 1, n), (1, 1, k), (s,), ((low, high),), (d,), checked=False).output_size[0]
        assert truth(line.plain, o=size, n=n, k=k, s=s, d=d, P=low + high)
        (line,) = solve("output", input=n, kernel=k, transposed=True).steps[0].lines
        size = ConvProblem.conv_transpose((1, 1, n), (1, 1, k), (s,), (low,), (a,), 1, (d,), checked=False).input_size[0]
        assert truth(line.plain, o=size, n=n, k=k, s=s, d=d, P=2 * low, a=a)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(for_="filter", output=1, input=1, kernel=1), "for_ must be one of output, input, .* got 'filter'"),
        (dict(for_="output_padding", output=1, input=1, kernel=1), "for_ must be one of"),
        (dict(for_="stride", output=1, input=1, kernel=1, stride=2), "stride is what is solved for"),
        (dict(for_="padding", output=1, kernel=1), "solving for padding needs input"),
        (dict(for_="padding", output=0, input=1, kernel=1), "output must be an integer of at least 1, got 0"),
        (dict(for_="padding", output=1, input=1.5, kernel=1), "input must be an integer of at least 1, got 1.5"),
        (dict(for_="input", output=1, kernel=1, padding="full"), "padding must be a number, .* got 'full'"),
        (dict(for_="input", output=1, kernel=1, padding="same", transposed=True), "numbers for a transposed convolution"),
        (dict(for_="input", output=1, kernel=1, output_padding=0), "belongs to a transposed convolution"),
        (dict(for_="input", output=1, kernel=1, transposed=True, output_padding=1), "less than the stride or the dilation"),
    ],
)
def test_bad_arguments_say_what_was_wrong(arguments, words):
    with pytest.raises(ValueError, match=words) as error:
        solve(**arguments)
    assert "\n" not in str(error.value)
