"""Shapes, useful counts, bytes and costs against a walk over every window, on many random problems, and against torch."""

import itertools
import math
import random
from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel import ConvProblem, Cost, Pass, cost, training_cost
from costmodel.device import DEVICES, INTERPRETER
from costmodel.plan import Call, candidates

#: Random problems held against the walk: 1-D to 3-D, negative and asymmetric padding, dilation, groups, wide strides.
PROBLEMS = 12_000


def random_problem(draw, rank=None):
    """Any problem with at least one output an axis."""
    rank = rank or draw.randint(1, 3)
    groups = draw.choice((1, 1, 2, 3))
    axes = []
    while len(axes) < rank:
        n, k, s, d = draw.randint(1, 12), draw.randint(1, 5), draw.randint(1, 7), draw.randint(1, 4)
        low, high = draw.randint(-3, 6), draw.randint(-3, 6)
        if n + low + high >= d * (k - 1) + 1:
            axes.append((n, k, s, (low, high), d))
    n, k, s, padding, d = zip(*axes, strict=True)
    channels = (groups * draw.randint(1, 3), groups * draw.randint(1, 3))
    return ConvProblem(draw.randint(1, 3), *channels, groups, n, k, s, padding, d)


def walk(n, k, s, low, high, d):
    """(outputs, pairs that meet input, distinct inputs met) of one axis, by sliding the window along the padded line."""
    line = [place if 0 <= place < n else None for place in range(-low, n + high)]
    outputs, pairs, met = 0, 0, set()
    while outputs * s + d * (k - 1) < len(line):
        window = line[outputs * s :][: d * (k - 1) + 1 : d]
        pairs += sum(place is not None for place in window)
        met.update(place for place in window if place is not None)
        outputs += 1
    return outputs, pairs, len(met)


@pytest.fixture(scope="module")
def problems():
    draw = random.Random(11)
    return [random_problem(draw) for _ in range(PROBLEMS)]


def test_shapes_and_useful_counts_are_those_of_a_walk(problems):
    assert len(problems) >= 10_000 and {p.rank for p in problems} == {1, 2, 3}
    for p in problems:
        axes = zip(p.input_size, p.kernel_size, p.stride, p.padding, p.dilation, strict=True)
        outputs, pairs, met = zip(*(walk(n, k, s, lo, hi, d) for n, k, s, (lo, hi), d in axes), strict=True)
        assert (p.output_size, p.valid_pairs, p.touched_size) == (outputs, pairs, met), p
        joined = p.batch * p.out_channels * (p.in_channels // p.groups)  # image, filter and a channel it sees
        assert p.useful_macs == joined * math.prod(pairs), p
        assert p.macs == joined * math.prod(outputs) * math.prod(p.kernel_size), p
        assert p.flops == 2 * p.macs and p.useful_macs <= p.macs


def test_bytes_move_every_tensor_once(problems):
    for p in problems[:3000]:
        axes = zip(p.input_size, p.kernel_size, p.stride, p.padding, p.dilation, strict=True)
        met = math.prod(walk(n, k, s, lo, hi, d)[2] for n, k, s, (lo, hi), d in axes)
        pixels = math.prod(p.output_size)
        others = p.out_channels * (p.in_channels // p.groups) * math.prod(p.kernel_size) + p.batch * p.out_channels * pixels
        column = p.batch * p.in_channels * math.prod(p.kernel_size) * pixels
        whole = {Pass.DGRAD: math.prod(p.input_size)}
        for which in Pass:
            x = p.batch * p.in_channels * whole.get(which, met)
            for size, dtype in ((2, "bfloat16"), (4, "float32"), (8, "float64")):
                spent = cost(p, which, dtype=dtype)
                assert (spent.bytes, spent.im2col_bytes) == (size * (x + others), size * (x + others + 2 * column)), (p, which)


def ones_through_torch(p):
    """(x, w, conv(x, w)) of ones, float64: the convolution adds one for each pair that meets input."""
    x, w = (torch.ones(shape, dtype=torch.float64, requires_grad=True) for shape in (p.input_shape, p.weight_shape))
    margin = 10  # torch refuses a crop beyond the input, even where the other end is padded: pad both first
    ends = [end - margin for pair in reversed(p.padding) for end in pair]
    padded = F.pad(F.pad(x, [margin] * len(ends)), ends)
    return x, w, getattr(F, f"conv{p.rank}d")(padded, w, None, p.stride, 0, p.dilation, p.groups)


def test_useful_multiply_adds_are_torchs_sum_of_ones(problems):
    for p in problems[:700]:
        y = ones_through_torch(p)[2].detach()
        assert tuple(y.shape) == p.output_shape, p
        assert int(y.sum()) == p.useful_macs, p


def test_each_gradient_meets_as_many_pairs(problems):
    """The sum of a gradient of ones over ones counts the pairs of that pass."""
    for p in problems[:200]:
        x, w, y = ones_through_torch(p)
        dx, dw = torch.autograd.grad(y.sum(), (x, w))
        assert int(dx.sum()) == int(dw.sum()) == p.useful_macs, p


def test_transposed_shapes_and_counts_are_torchs():
    draw = random.Random(12)
    done = 0
    while done < 500:
        rank, groups = draw.randint(1, 3), draw.choice((1, 1, 2, 3))
        size, kernel = ([draw.randint(1, 6) for _ in range(rank)] for _ in range(2))
        stride, dilation = ([draw.randint(1, 4) for _ in range(rank)] for _ in range(2))
        padding = [draw.randint(0, 3) for _ in range(rank)]
        extra = [draw.randrange(max(s, d)) for s, d in zip(stride, dilation, strict=True)]
        x_shape = (draw.randint(1, 2), groups * draw.randint(1, 3), *size)
        w_shape = (x_shape[1], draw.randint(1, 3), *kernel)
        p = ConvProblem.conv_transpose(x_shape, w_shape, stride, padding, extra, groups, dilation, checked=False)
        if min(p.input_size) < 1:
            continue
        done += 1
        x, w = torch.ones(x_shape, dtype=torch.float64), torch.ones(w_shape, dtype=torch.float64)
        y = getattr(F, f"conv_transpose{rank}d")(x, w, None, stride, padding, extra, groups, dilation)
        assert tuple(y.shape) == p.input_shape and p.output_shape == x_shape
        assert int(y.sum()) == p.useful_macs, p
        assert p.macs == x.numel() * math.prod(w_shape[1:])
        assert int((y[0, 0] != 0).sum()) == math.prod(p.touched_size), p


sizes = st.tuples(
    st.integers(1, 40), st.integers(1, 7), st.integers(1, 9), st.integers(-4, 9), st.integers(-4, 9), st.integers(1, 6)
)


@settings(max_examples=500, deadline=None)
@given(sizes)
def test_one_axis_of_any_numbers(numbers):
    n, k, s, low, high, d = numbers
    p = ConvProblem(1, 1, 1, 1, (n,), (k,), (s,), ((low, high),), (d,))
    if n + low + high < d * (k - 1) + 1:
        return
    assert (p.output_size[0], p.valid_pairs[0], p.touched_size[0]) == walk(n, k, s, low, high, d)


def test_known_figures():
    """Useful shares published nowhere else can be worked out by hand: 3x3 same at 7 is ((3 * 7 - 2) / 21) squared."""
    p = ConvProblem.conv((32, 64, 56, 56), (64, 64, 3, 3), (1, 1), (1, 1), (1, 1))
    assert p.macs == 32 * 64 * 64 * 9 * 56 * 56 and p.useful_macs == 32 * 64 * 64 * (3 * 56 - 2) ** 2
    textbook = ConvProblem.conv((1, 100, 68, 68), (100, 100, 5, 5), (1, 1), (0, 0), (1, 1))
    assert textbook.macs == textbook.useful_macs == 100 * 100 * 5**2 * 64**2 == 1_024_000_000
    up = ConvProblem.conv_transpose((1, 1, 32), (1, 1, 4), (2,), (1,), (0,))
    assert up.valid_pairs == (126,) and up.input_size == (64,)
    strided = ConvProblem.conv((1, 1, 8, 8), (1, 1, 1, 1), (2, 2), (0, 0), (1, 1))
    assert strided.touched_size == (4, 4)


# ---- costs ------------------------------------------------------------------------------------------------------------------


def costs_of(draw, count, **given):
    return [cost(random_problem(draw), which, **given) for _, which in zip(range(count), itertools.cycle(Pass), strict=False)]


def test_costs_add_and_scale_field_by_field():
    first, second, third = costs_of(random.Random(1), 3, bias=True)
    names = [field.name for field in fields(Cost) if field.name != "issued_macs"]
    for name in names:
        assert getattr(first + second, name) == getattr(first, name) + getattr(second, name)
        assert getattr(first * 3, name) == getattr(3 * first, name) == 3 * getattr(first, name)
    assert (first + second) + third == first + (second + third) and first + second == second + first
    assert first + first == 2 * first and first + Cost(issued_macs=0) == first
    assert (first + second).issued_macs is None and (2 * first).issued_macs is None and first.issued_flops is None
    planned = Cost(1, 2, 3) + Cost(10, 20, 30)
    assert (planned.useful_flops, planned.dense_flops, planned.issued_flops) == (22, 44, 66)
    assert (planned.padding_waste, planned.tile_waste) == (0.5, 1 - 22 / 33)
    assert Cost(issued_macs=4) + Cost(issued_macs=0) == Cost(issued_macs=4)


def test_a_cost_is_the_problems_own_numbers(problems):
    for p, which in zip(problems[:600], itertools.cycle(Pass), strict=False):
        found = cost(p, which, dtype="float32")
        assert (found.useful_macs, found.dense_macs) == (p.useful_macs, p.macs)
        assert found.bytes == p.bytes(4, which) and found.bias_flops == 0
        assert found.intensity == 2 * p.useful_macs / p.bytes(4, which)
        assert math.isclose(found.padding_waste, 1 - p.useful_macs / p.macs)
        with_bias = cost(p, str(which), dtype="float32", bias=True)
        outputs = math.prod(p.output_shape)
        extra = (0, 0) if which == Pass.DGRAD else (outputs, 4 * p.out_channels)
        assert (with_bias.bias_flops, with_bias.bytes - found.bytes) == extra
        assert with_bias.dense_macs == found.dense_macs
        with_bias = cost(p, which, dtype="float32", bias=True, transposed=True)  # the layer's result is dgrad's
        outputs = math.prod(p.input_shape)
        extra = (0, 0) if which == Pass.FPROP else (outputs, 4 * p.in_channels)
        assert (with_bias.bias_flops, with_bias.bytes - found.bytes) == extra


def test_training_is_three_passes_and_two_without_the_input_gradient(problems):
    for p in problems[:200]:
        whole, first = training_cost(p, bias=True), training_cost(p, bias=True, input_gradient=False)
        assert (whole.dense_macs, first.dense_macs) == (3 * p.macs, 2 * p.macs)
        assert (whole.useful_macs, first.useful_macs) == (3 * p.useful_macs, 2 * p.useful_macs)
        assert whole == first + cost(p, Pass.DGRAD)
        assert whole.bytes - first.bytes == p.bytes(2, Pass.DGRAD)


def test_no_plan_issues_less_than_its_useful_work():
    """Gather plans and patches compute every tap of every output; dgrad's phases leave out what only padding would give."""
    draw, seen = random.Random(2), {which: 0 for which in Pass}
    devices = [*(d for d in DEVICES.values() if d.capability in (80, 90, 100)), INTERPRETER]
    for trial in range(240):
        p, which = random_problem(draw), list(Pass)[trial % 3]
        dtype, precision = draw.choice((("float16", "ieee"), ("float32", "tf32"), ("float32", "ieee"), ("float64", "ieee")))
        for plan in candidates(Call(p, which, dtype, precision), draw.choice(devices)):
            issued = cost(p, which, plan, dtype=dtype)
            assert issued.issued_macs >= issued.useful_macs, (p, str(plan))
            if which != Pass.DGRAD:
                assert issued.issued_macs >= issued.dense_macs and 0 <= issued.tile_waste < 1, (p, str(plan))
            assert cost(p, which, str(plan), dtype=dtype) == issued
            assert issued.issued_flops == 2 * issued.issued_macs
            seen[which] += 1
    assert min(seen.values()) > 300, seen


def test_a_plan_of_another_pass_is_refused(problems):
    plan = candidates(Call(problems[0], Pass.FPROP, "float16"), INTERPRETER)[0]
    with pytest.raises(ValueError, match=r"plan fprop:\S+ is for fprop, the cost asked for is of wgrad"):
        cost(problems[0], Pass.WGRAD, plan)
    with pytest.raises(ValueError):
        cost(problems[0], "backward")
