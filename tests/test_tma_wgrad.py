"""Weight gradients whose x comes as boxes: right wherever dy lies, nothing of other pixels, channels or filters in a sum."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import Case
from gpu import fp32_precision
from oracle import check
from test_tma import CASES, H100, LAST, LAYERS, TRANSPOSED, WGRAD, shifted

import tritonconv
from costmodel.families import tma
from costmodel.families.matrix import access, boxes, grid, issued_macs, reduction_step, vector_widths
from costmodel.plan import candidates, predict, select
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Operand, Plan, channels_last

pytest_plugins = ["gpu"]  # its fixture `fenced`


@pytest.mark.parametrize("layout", ["contiguous", "sliced", "permuted", "expanded"])
@pytest.mark.parametrize("name", ["3x3", "rest_of_channels", "stride_of_columns", "groups", "line", "space"])
def test_dy_may_lie_anyhow(name, layout, device, fenced, launches):
    check(replace(CASES[name], g=layout), device, plan=Plan.parse(WGRAD))
    assert launches()["tma wgrad"] == 1


@pytest.mark.parametrize("filters", [5, 37, 68])
def test_filters_may_be_any_number(filters, device, fenced, launches):
    case = replace(CASES["stride_2"], weight=(filters, 16, 3, 3), bias=False)
    check(case, device, plan=Plan.parse(WGRAD))
    assert launches()["tma wgrad"] == 1


@pytest.mark.parametrize("layout", ["contiguous", "sliced", "permuted", "expanded"])
def test_x_that_is_copied_first_may_lie_anyhow(layout, device, fenced, launches):
    check(replace(CASES["3x3"], x=layout, w=layout, g=layout), device, plan=Plan.parse(f"{WGRAD}:pack-a:pack-b"))
    assert launches()["tma wgrad"] == 1


def test_a_transposed_convolutions_weight_gradient(device, fenced, launches):
    """Its x is the gradient of the result, and its dy the input."""
    check(TRANSPOSED["stride_2"], device, plan=Plan.parse(WGRAD))
    assert launches()["tma wgrad"] == 1


FORCED = [
    ("3x3", "wgrad:tma:16x16x16:w4:s3"),
    ("3x3", "wgrad:tma:32x128x64:w4:s3:split3:step4x1x4x4"),
    ("3x3", "wgrad:tma:64x32x64:w4:s3:split7"),  # more programs than boxes: some add nothing
    ("72_channels", "wgrad:tma:64x32x16:w4:s3"),
    ("stride_2", "wgrad:tma:32x16x32:w4:s3:split2:step2x1x4x4"),
    ("groups", "wgrad:tma:64x32x32:w4:s3:merge2"),
    ("line", "wgrad:tma:64x32x16:w4:s3:step2x1x1x8"),
    ("space", "wgrad:tma:32x16x32:w4:s3:split2:step1x4x2x4"),
]


@pytest.mark.parametrize("name, text", FORCED)
def test_a_forced_plan_is_taken_and_right(name, text, device, fenced, launches):
    plan, case = Plan.parse(text), CASES[name]
    x, w, b = case.tensors("cpu")
    words = tritonconv.explain(getattr(tritonconv, case.function), x, w, b, **case.arguments, plan=plan)
    taken = words.plans["wgrad"]
    assert str(replace(taken, step=plan.step)) == text and taken.step is not None
    assert f"boxes of {' x '.join(map(str, taken.step))} pixels of x" in str(words)
    check(case, device, plan=plan)
    assert launches()["tma wgrad"] == 1 and launches()["reduce"] == (plan.split > 1)


def test_negative_padding_crops(device, fenced, launched):
    """Three columns less on the left and a row less below: the same as slicing first."""
    x, w, _ = CASES["3x3"].tensors(device)
    op, last = torch.ops.tritonconv, torch.channels_last
    inner = x[:, :, :-1, 3:].contiguous(memory_format=last)
    dy = op.fprop(inner, w, None, [1, 1], [1, 0, 0, 2], [1, 1], 1)
    kernel = list(w.shape[2:])
    got = op.wgrad(dy, x, kernel, [1, 1], [1, -1, -3, 2], [1, 1], 1, WGRAD)
    torch.testing.assert_close(got, op.wgrad(dy, inner, kernel, [1, 1], [1, 0, 0, 2], [1, 1], 1))
    assert launched()["tma wgrad"] == 1


# ---- what must not meet ---------------------------------------------------------------------------------------------


def gradient(function, x, w, dy, **settings):
    w = w.detach().requires_grad_()
    return torch.autograd.grad(function(x, w, **settings), w, dy)[0]


#: Boxes that the output's rows and columns leave a rest in, and in "rows" a last box shifted back by three of its four.
RESTS = {
    "padded": (conv := Case("conv2d", (3, 16, 7, 9), (24, 16, 3, 3), bias=False, padding=1, **LAST), WGRAD),
    "rows": (replace(conv, input=(1, 16, 5, 11)), "wgrad:tma:64x32x16:w4:s3:step1x1x4x4"),
    "strided": (replace(conv, input=(2, 16, 10, 14), stride=2, weight=(24, 16, 2, 3)), WGRAD),
    "dilated": (replace(conv, input=(1, 16, 9, 9), dilation=2, padding=0), WGRAD),
    "cropped_by_stride": (replace(conv, input=(1, 16, 6, 12), stride=(2, 3), padding=0), WGRAD),
}


@pytest.mark.parametrize("value", [torch.inf, torch.nan], ids=str)
@pytest.mark.parametrize("name", RESTS)
def test_what_is_finite_for_torch_stays_finite(name, value, device, launched):
    """An infinite pixel reaches the taps that meet it, and no sum where it is not a term: each border, one channel apart."""
    case, text = RESTS[name]
    x, w, _ = case.tensors(device)
    for channel, (row, column) in enumerate(((0, 0), (-1, -1), (-1, 0), (0, -1), (-2, 3), (3, -2))):
        x[-1 if channel % 2 else 0, channel, row, column] = value
    y = F.conv2d(x.cpu().double(), w.cpu().double(), **case.arguments)
    dy = case.gradient(y.to(x)).contiguous(memory_format=torch.channels_last)
    want = gradient(F.conv2d, x.cpu().double(), w.cpu().double(), dy.cpu().double(), **case.arguments)
    got = gradient(tritonconv.conv2d, x, w, dy, **case.arguments, plan=Plan.parse(text)).cpu()
    assert torch.equal(got.isfinite(), want.isfinite())
    assert 0 < int(want.isfinite().logical_not().sum()) and want[:, 6:].isfinite().all()
    assert launched()["tma wgrad"] == 1


def test_a_nan_in_dy_stays_in_its_filter(device, launched):
    """Tiles reach beyond the last filter of a group, and boxes beyond its last channel."""
    case = CASES["groups"]
    x, w, _ = case.tensors(device)
    dy = case.gradient(F.conv2d(x.cpu(), w.cpu(), **case.arguments).to(device))
    dy[0, 33, 2, 2] = torch.nan
    x[0, 16, 3, 3] = torch.inf
    want = gradient(F.conv2d, *(t.cpu().double() for t in (x, w, dy)), **case.arguments)
    got = gradient(tritonconv.conv2d, x, w, dy, **case.arguments, plan=Plan.parse(WGRAD)).cpu()
    assert torch.equal(got.isfinite(), want.isfinite())
    assert got[:32].isfinite().all() and not got[33].isfinite().any()
    assert launched()["tma wgrad"] == 1


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("3x3", "wgrad:tma:64x48x16:w4:s3", "block_n"),
        ("3x3", "wgrad:tma:64x512x16:w4:s3", "block_n"),
        ("3x3", "wgrad:tma:64x64x32:w4:s3:step1x1x4x4", "product 32"),
        ("3x3", "wgrad:tma:64x64x32:w4:s3:step1x2x4x4", "step"),
        ("3x3", "wgrad:tma:64x64x32:w4:s3:step1x1x8x4", "no wider than the output"),
        ("3x3", "wgrad:tma:64x64x32:w4:s3:step1x1x4x8", "no wider than the output"),
        ("3x3", "wgrad:tma:64x64x32:w4:s3:split0", "split"),
        ("3x3", "wgrad:tma:256x256x128:w8:s4", "shared memory"),
        ("3x3", "wgrad:tma:64x64x32:w4:s3:merge2", "merge"),
    ],
)
def test_a_plan_that_does_not_serve_the_call_is_refused(name, text, message, device, launches):
    with pytest.raises(ValueError, match=message):
        check(CASES[name], device, plan=Plan.parse(text))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"input": (2, 16, 7, 10)}, "must divide the input sizes"),
        ({"dtype": "float64"}, "float64"),
        ({"dtype": "float32"}, "float32"),
        ({"input": (2, 12, 8, 10), "weight": (24, 12, 3, 3)}, "x must have strides that are multiples of 16 bytes"),
        ({"weight": (24, 4, 3, 3), "groups": 4}, "each group's channels must be a multiple of 16 bytes, got 4 of 2"),
        ({"x": "contiguous"}, "x must have contiguous channels"),
    ],
)
def test_a_call_that_boxes_do_not_serve_is_refused(change, message, device, launches):
    with fp32_precision("ieee"), pytest.raises(ValueError, match=message):
        check(replace(CASES["stride_2"], **change), device, plan=Plan.parse(WGRAD))


def test_tf32_is_refused(device):
    with fp32_precision("tf32"), pytest.raises(ValueError, match="cannot transpose 32-bit pixels"):
        check(replace(CASES["3x3"], dtype="float32"), device, plan=Plan.parse(WGRAD))


def test_x_that_begins_between_16_bytes_is_refused_where_it_is_not_copied(device, launches):
    case = CASES["3x3"]
    x, w, _ = case.tensors(device)
    dy = case.gradient(F.conv2d(x.cpu(), w.cpu(), **case.arguments).to(device))
    odd, plan = shifted(x), Plan.parse(WGRAD)
    want = gradient(tritonconv.conv2d, x, w, dy, **case.arguments, plan=plan)
    with pytest.raises(ValueError, match="x must begin on a multiple of 16 bytes"):
        gradient(tritonconv.conv2d, odd, w, dy, **case.arguments, plan=plan)
    copied = replace(plan, pack=("b",))
    assert torch.equal(gradient(tritonconv.conv2d, odd, w, dy, **case.arguments, plan=copied), want)
    assert torch.equal(gradient(tritonconv.conv2d, x, w, shifted(dy), **case.arguments, plan=plan), want)
    assert launches()["tma wgrad"] == 3


# ---- the choice -----------------------------------------------------------------------------------------------------


def test_a_box_lies_within_the_output_but_for_its_images():
    seven = ConvProblem.conv((1, 64, 7, 7), (64, 64, 3, 3), (1, 1), (1, 1), (1, 1))
    assert reduction_step(seven, 64) == (1, 1, 8, 8)
    step = reduction_step(seven, 64, within=True)
    assert step == (4, 1, 4, 4) and boxes(seven, Pass.WGRAD, step) == 4
    line = ConvProblem.conv((2, 8, 5), (8, 8, 5), (1,), (2,), (1,))
    assert reduction_step(line, 128, within=True) == (32, 1, 1, 4)
    plan = Plan.parse("wgrad:tma:64x64x64:w4:s4:split2")
    assert grid(seven, plan) == (1, 1, 18) and issued_macs(seven, plan) == 9 * 4 * 64**3
    for size in (1, 3, 7, 14, 28, 56, 224):
        problem = ConvProblem.conv((32, 64, size, size), (64, 64, 1, 1), (1, 1), (0, 0), (1, 1))
        for block in (16, 64, 128):
            plan = Plan(Pass.WGRAD, "tma", 64, 64, block, 4, 4, step=reduction_step(problem, block, within=True))
            assert not tma.shape_refusal(channels_last(problem, Pass.WGRAD, "float16"), plan)


def test_dy_decides_how_a_kernel_reaches_memory():
    plan = Plan.parse("wgrad:tma:128x256x64:w8:s4")
    call = channels_last(LAYERS["resnet_3x3"], Pass.WGRAD, "bfloat16")
    assert access(call, plan) == "wide" and vector_widths(call, plan)[0] == 8
    for a in (Operand(4), Operand(1, 4, 4)):
        assert access(replace(call, a=a), plan) == "narrow"
        assert access(replace(call, a=a), replace(plan, pack=("a",))) == "wide"
    assert access(replace(call, b=Operand(4)), replace(plan, pack=("b",))) == "wide"


@pytest.mark.parametrize("groups", [1, 8])
def test_what_is_ranked_is_what_is_predicted(groups):
    problem = ConvProblem.conv((32, 128, 28, 28), (128, 128 // groups, 3, 3), (1, 1), (1, 1), (1, 1), groups)
    call = channels_last(problem, Pass.WGRAD, "bfloat16")
    found = candidates(call, H100)
    assert predict(call, select(call, H100), H100).seconds == min(predict(call, plan, H100).seconds for plan in found)
    ours = [plan for plan in found if plan.family == "tma"]
    assert any(plan.split > 1 for plan in ours) and all(not tma.call_refusal(call, plan, 90) for plan in ours)
    assert (max(plan.merge for plan in ours) > 1) == (groups > 1)
