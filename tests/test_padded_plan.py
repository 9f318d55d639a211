"""Padding modes in the cost model: problems and their words, counts, which family serves them, plans and predicted times."""

import itertools
import math

import padded
import pytest
import torch

import costmodel
import tritonconv
from costmodel.device import find_device
from costmodel.families import behind_copies, families, serving
from costmodel.families.padded import workspace_shape
from costmodel.legality import refusal
from costmodel.plan import candidates, select
from costmodel.problem import ConvProblem, Pass
from costmodel.reports.notation import parse
from costmodel.tiling import Plan, channels_last
from costmodel.timing import traffic
from tritonconv import explain

WEATHER = ConvProblem.conv((4, 64, 45, 90), (64, 64, 3, 3), (1, 1), (1, 1), (1, 1), padding_mode=("zeros", "circular"))


def problem_of(layer):
    steps = [(v,) * layer.rank if isinstance(v, int) else v for v in (layer.stride, layer.dilation)]
    shape, weight = (layer.batch, layer.channels, *layer.size), (layer.filters, layer.channels // layer.groups, *layer.kernel)
    return ConvProblem.conv(shape, weight, steps[0], layer.padding, steps[1], layer.groups, padding_mode=layer.mode)


@pytest.mark.parametrize("name", padded.LAYERS)
def test_counts_are_those_of_the_padded_form(name):
    """Every place of a padding that holds pixels is one that a tap meets; pixels that windows cover are counted once."""
    layer = padded.LAYERS[name]
    problem = problem_of(layer)
    ones, w = torch.ones(1, 1, *layer.size, dtype=torch.float64), torch.ones(1, 1, *layer.kernel, dtype=torch.float64)
    window = layer.window | {"groups": 1}
    met = padded.by_pad(ones, w, None, **window).sum()
    assert problem.useful_macs == met * problem.batch * problem.out_channels * problem.channels_per_group
    ones.requires_grad_()
    (seen,) = torch.autograd.grad(padded.by_pad(ones, w, None, **window).sum(), ones)
    touched = costmodel.problem.product(problem.touched_size)
    assert int((seen > 0).sum()) <= touched <= ones.numel()
    if name not in ("strided", "replicate"):  # whose windows leave pixels out
        assert touched == int((seen > 0).sum())


def test_zeros_is_the_problem_it_was():
    given = (2, 3, 4, 5), (6, 3, 2, 2), (1, 1), (1, 0), (1, 1)
    plain = ConvProblem.conv(*given)
    assert ConvProblem.conv(*given, padding_mode="zeros") == plain == ConvProblem.conv(*given, padding_mode=("zeros",) * 2)
    assert plain.padding_mode == () and plain.modes == ("zeros", "zeros") and plain.written_out is plain
    circular = ConvProblem.conv(*given, padding_mode="circular")
    assert circular.padding_mode == ("circular", "zeros")  # the other axis has no padding
    assert hash(circular) != hash(plain) and circular.output_shape == plain.output_shape
    assert str(circular) == f"{plain} circular,zeros" and circular.written_out.input_size == (6, 5)
    assert circular.with_unit_axes().padding_mode == ("zeros", "circular", "zeros")


@pytest.mark.parametrize("name", padded.LAYERS)
def test_words_are_read_back(name):
    problem = problem_of(padded.LAYERS[name])
    assert parse(str(problem)).problem == problem
    assert costmodel.layer(parse(str(problem)).words).problem == problem


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("conv2d 4x8x8 k3 p1 reflect circular", "the padding mode is given twice"),
        ("conv3d 4x8x8x8 k3 p1 zeros,reflect", "zeros,reflect has 2 modes: conv3d takes one for all axes or 3"),
        ("conv2d 4x8x8 k3 p8 reflect", "'reflect' needs less padding than pixels"),
        ("conv2d 4x8x8 k3 p9 circular", "'circular' needs at most as much padding as pixels"),
        ("conv_transpose2d 4x8x8 k3 p1 circular", "circular is for other layers"),
        ("conv2d 4x8x8 k3 p1 wrap", "cannot read 'wrap'"),
    ],
)
def test_words_that_are_refused(words, says):
    with pytest.raises(ValueError, match=says):
        costmodel.layer(words)
    assert costmodel.layer("conv2d 4x8x8 k3 p0 reflect").problem.padding_mode == ()


def test_the_functions_of_the_cost_model_take_a_mode():
    layer = costmodel.conv2d((1, 4, 8, 8), (4, 4, 3, 3), padding=1, padding_mode=("zeros", "circular"))
    assert layer.words == "conv2d 4x8x8 k3 p1 zeros,circular c4 n1"
    with pytest.raises(ValueError, match=r"padding_mode must be one of .* got 'wrap'"):
        costmodel.conv2d((1, 4, 8, 8), (4, 4, 3, 3), padding=1, padding_mode="wrap")


@pytest.mark.parametrize("which", Pass)
def test_one_family_serves_it_and_says_its_time(which):
    call, device = channels_last(WEATHER, which, "float16"), find_device("h200")
    assert {each.name for each in serving(WEATHER)} == {"padded", *behind_copies()}
    plans = [plan for plan in candidates(call, device) if plan.family == "padded"]
    _, found = families()["padded"].quickest(call, device, math.inf)
    assert not refusal(call, found, device) and Plan.parse(str(found)) == found
    least = min(families()["padded"].predict(call, plan, device).seconds for plan in plans)
    prediction = families()["padded"].predict(call, found, device)
    assert prediction.seconds == pytest.approx(least) and prediction.low < prediction.seconds < prediction.high
    counted = families()["padded"].counted(call, found)
    assert counted.issued_macs >= WEATHER.macs and prediction.bytes >= traffic(call).compulsory + counted.extra_bytes
    zeros = channels_last(ConvProblem.conv((4, 64, 45, 90), (64, 64, 3, 3), (1, 1), (1, 1), (1, 1)), which, "float16")
    assert not {each.name for each in serving(zeros.problem)} & {"padded", *behind_copies()}
    assert "it pads with zeros, and the call asks for zeros,circular padding" in refusal(call, select(zeros, device), device)


def test_the_input_gradient_says_what_its_workspace_costs():
    call, device = channels_last(WEATHER, Pass.DGRAD, "float16"), find_device("h200")
    counted = families()["padded"].counted(call, plan := families()["padded"].quickest(call, device, math.inf)[1])
    assert workspace_shape(WEATHER) == (4, 45, 92, 64)  # only the circular axis is written out
    assert counted.launches == 2
    pixels = 4 * 64 * 45 * 92
    assert counted.extra_bytes == 2 * 4 * pixels  # float32, written and read
    assert families()["padded"].counted(channels_last(WEATHER, Pass.FPROP, "float16"), plan_of(Pass.FPROP)).extra_bytes == 0
    assert refusal(call, plan.parse("dgrad:padded:64x64x64:split2"), device) == "split must be 1 for dgrad, got 2"


def plan_of(which):
    return families()["padded"].quickest(channels_last(WEATHER, which, "float16"), find_device("h200"), math.inf)[1]


def test_explain_says_what_runs():
    x, w = torch.empty(4, 64, 45, 90, device="meta", dtype=torch.float16), torch.empty(64, 64, 3, 3, device="meta").half()
    found = explain(tritonconv.conv2d, x, w, padding=1, padding_mode=("zeros", "circular"), device="h200")
    assert {plan.family for plan in found.plans.values()} == {"padded"} and found.problem == WEATHER
    lines = str(found).splitlines()
    assert any("whose sources index arithmetic finds, padding zeros x circular" in line for line in lines)
    assert any(line.startswith("dgrad: ") and line.endswith("then a sum of each pixel's images") for line in lines)
    assert "  workspace 4 x 45 x 92 x 64 in torch.float32" in lines


def test_a_trace_of_a_converted_model_has_the_mode():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), torch.nn.ReLU())
    network = costmodel.trace(tritonconv.convert(net), (2, 3, 8, 8))
    (layer,) = [layer for layer in network.layers if layer.problem is not None]
    assert layer.problem.padding_mode == ("circular", "circular")
    backward = [step.problem for step in layer.backward if step.problem is not None]
    assert backward and all(problem.padding_mode == ("circular", "circular") for problem in backward)


def test_symbols_keep_their_mode():
    sympy = pytest.importorskip("sympy")
    n, p = sympy.symbols("n p", positive=True, integer=True)
    problem = ConvProblem.conv((1, 1, n), (1, 1, 3), (1,), (p,), (1,), padding_mode="circular")
    assert problem.padding_mode == ("circular",)
    for size, pad in itertools.product((5, 8), (1, 2)):
        known = ConvProblem.conv((1, 1, size), (1, 1, 3), (1,), (pad,), (1,), padding_mode="circular")
        values = {n: size, p: pad}
        assert problem.useful_macs.subs(values) == known.useful_macs
        assert problem.bytes(2).subs(values) == known.bytes(2)
