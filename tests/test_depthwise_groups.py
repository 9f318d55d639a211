"""Groups of a few channels, and depthwise transposed convolutions with a multiplier, through the depthwise kernels."""

import dataclasses
import math

import pytest
import torch
from cases import Case
from oracle import check
from torch.autograd import gradcheck

import tritonconv
from bench.audit import operands
from costmodel.device import DEVICES, INTERPRETER
from costmodel.families import depthwise, depthwise_choice, family
from costmodel.plan import predict, select
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Call, Operand, Plan, channels_last
from tritonconv import host, launch
from tritonconv.launch import describe
from tritonconv.layout import filters_last_copy, filters_last_strides

H100 = DEVICES["NVIDIA H100 80GB HBM3"]
PASSES = {f"depthwise {which}" for which in Pass}
LAYOUTS = ("contiguous", "channels_last")

#: One channel or one filter a group: the interpreter takes the depthwise kernels unasked.
ALONE = {
    "transposed": Case("conv_transpose2d", (2, 3, 4, 5), (3, 2, 3, 3), stride=2, padding=1, output_padding=1, groups=3),
    "transposed_by_5": Case("conv_transpose2d", (1, 3, 4, 4), (3, 5, 3, 2), padding=1, groups=3, dtype="bfloat16"),
    "transposed_cropped": Case("conv_transpose2d", (1, 2, 3, 4), (2, 3, 2, 2), stride=3, output_padding=2, groups=2),
    "transposed_dilated": Case("conv_transpose2d", (1, 2, 3, 4), (2, 4, 3, 2), stride=(2, 1), dilation=(3, 2), groups=2),
    "transposed_large": Case("conv_transpose2d", (1, 2, 3, 9), (2, 2, 7, 13), padding=(3, 6), groups=2, dtype="float16"),
    "transposed_line": Case("conv_transpose1d", (2, 3, 7), (3, 2, 4), stride=2, padding=1, groups=3, dtype="float16"),
    "transposed_video": Case("conv_transpose3d", (1, 2, 2, 3, 3), (2, 2, 3, 2, 2), stride=(1, 2, 2), groups=2),
    "transposed_video_strided": Case("conv_transpose3d", (1, 2, 2, 2, 3), (2, 3, 2, 2, 1), stride=(2, 1, 1), groups=2),
    "transposed_unbatched": Case("conv_transpose2d", (3, 4, 5), (3, 2, 3, 3), stride=2, groups=3, bias=False),
    "one_filter": Case("conv2d", (2, 6, 5, 8), (3, 2, 3, 3), padding=1, groups=3),
    "one_filter_strided": Case("conv2d", (1, 12, 7, 6), (4, 3, 3, 2), padding=1, stride=2, groups=4, dtype="bfloat16"),
    "one_filter_of_all": Case("conv2d", (1, 5, 4, 6), (1, 5, 3, 3), padding=1),
    "float64": Case("conv_transpose2d", (1, 2, 3, 4), (2, 3, 3, 2), padding=1, groups=2, dtype="float64"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ALONE)
def test_one_channel_or_filter_takes_the_depthwise_kernels(name, layout, device, launches, overflow_checked):
    check(dataclasses.replace(ALONE[name], x=layout, g=layout), device)
    # a GPU's plans are by their predicted times
    if launch.device_model(host.index_of(torch.empty(0, device=device))).interpreted:
        assert PASSES <= set(launches()) and launches().total() == 6


TWO = Case("conv2d", (2, 6, 4, 7), (6, 2, 3, 3), padding=1, groups=3)
#: Several of both: by plans that ask for it.
SEVERAL = {
    "2x2": TWO,
    "2x2_half": dataclasses.replace(
        TWO, input=(1, 6, 3, 8), dtype="float16", x="channels_last", g="channels_last", w="channels_last"
    ),
    "2x3": Case("conv2d", (1, 4, 6, 5), (6, 2, 3, 2), padding=(2, 1), dilation=(2, 1), groups=2, dtype="bfloat16"),
    "3x2": Case("conv2d", (1, 6, 5, 6), (4, 3, 3, 3), padding=1, stride=2, groups=2),
    "3x3": Case("conv2d", (1, 9, 3, 6), (9, 3, 3, 3), padding=1, groups=3, x="channels_last", g="channels_last"),
    "4x4": Case("conv2d", (1, 8, 3, 5), (8, 4, 2, 3), padding=1, groups=2, dtype="float16", x="channels_last"),
    "above_input": Case("conv2d", (1, 4, 2, 3), (4, 2, 5, 5), padding=2, groups=2, g="sliced"),
    "stride_above_kernel": Case("conv2d", (1, 4, 7, 6), (4, 2, 2, 1), padding=1, stride=3, groups=2, g="expanded"),
    "pointwise": Case("conv2d", (1, 6, 4, 5), (6, 3, 1, 1), groups=2),
    "line": Case("conv1d", (2, 6, 11), (6, 2, 4), padding=3, groups=3, x="channels_last"),
    "line_strided": Case("conv1d", (1, 4, 16), (6, 2, 5), padding=2, stride=2, groups=2, dtype="float16"),
    "video": Case("conv3d", (1, 4, 2, 2, 5), (4, 2, 2, 2, 3), padding=1, groups=2, x="channels_last"),
    "unbatched": Case("conv2d", (4, 5, 6), (4, 2, 3, 3), padding="same", groups=2),
    "transposed": Case("conv_transpose2d", (1, 4, 4, 5), (4, 2, 3, 3), stride=2, padding=1, output_padding=1, groups=2),
    "transposed_line": Case("conv_transpose1d", (2, 4, 6), (4, 3, 4), stride=2, groups=2, dtype="bfloat16"),
    "transposed_video": Case("conv_transpose3d", (1, 4, 2, 3, 3), (4, 2, 2, 2, 2), stride=(1, 2, 1), groups=2),
    "float64": Case("conv2d", (1, 4, 5, 6), (4, 2, 3, 2), padding=1, groups=2, dtype="float64"),
}
#: Windows that slide down the rows, and taps in a loop.
PLANS = ("{}:depthwise:{}x16x4:w4:s3:rows3", "{}:depthwise:{}x16x4:w4:s3:taps1x{}")


LOOPED = ("2x2_half", "2x3", "3x2", "4x4", "line_strided", "video", "transposed", "float64")


@pytest.mark.parametrize(
    "name, text",
    [pytest.param(name, PLANS[0], id=name) for name in SEVERAL]
    + [pytest.param(name, PLANS[1], id=f"{name}-looped") for name in LOOPED],
)
def test_a_plan_takes_several_channels_and_filters(name, text, device, launches, overflow_checked):
    case = SEVERAL[name]
    step = case.stride if isinstance(case.stride, int) else case.stride[-1]
    plans = [Plan.parse(text.format(which, 2 * step, step if which == Pass.DGRAD else 2)) for which in Pass]
    x, w, b = case.tensors("cpu")
    taken = tritonconv.explain(getattr(tritonconv, case.function), x, w, b, **case.arguments, plan=plans)
    assert {plan.family for plan in taken.plans.values()} == {"depthwise"}
    check(case, device, plan=plans)
    assert PASSES <= set(launches()) and launches().total() == 6


@pytest.mark.parametrize(
    "text",
    ["fprop:depthwise:2x8x1:w1:s3:rows5:pack-b", "dgrad:depthwise:4x4x2:w1:s3:rows2:pack-b", "fprop:gather:16x16x16:w4:s3"],
)
def test_weights_may_be_copied_and_groups_taken_by_other_kernels(text, device):
    for case in (SEVERAL["2x2_half"], SEVERAL["3x3"]):
        check(case, device, plan=Plan.parse(text))


@pytest.mark.parametrize("case", [ALONE["transposed"], TWO], ids=["transposed", "2x2"])
def test_an_empty_batch_launches_nothing(case, device, launches):
    check(dataclasses.replace(case, input=(0, *case.input[1:])), device)
    assert not launches()


def test_negative_padding_crops(device, launched):
    """The same as slicing first."""
    x, w, b = TWO.tensors(device)
    op, plan = torch.ops.tritonconv, "fprop:depthwise:4x8x1:w1:s3:rows2;dgrad:depthwise:4x8x1:w1:s3:rows2"
    cropped, sliced = (([1, 1], pads, [1, 1], 3, plan) for pads in ([1, -1, -3, 2], [1, 0, 0, 2]))
    want = op.fprop(x[:, :, :-1, 3:].contiguous(), w, b, *sliced)
    torch.testing.assert_close(op.fprop(x, w, b, *cropped), want)
    dx = op.dgrad(want, w, None, x.shape[2:], *cropped)
    torch.testing.assert_close(dx[:, :, :-1, 3:], op.dgrad(want, w, None, [x.shape[2] - 1, x.shape[3] - 3], *sliced))
    assert not dx[:, :, -1].any() and not dx[:, :, :, :3].any()


def test_groups_keep_to_themselves(device, launched):
    """A NaN or an infinity reaches the filters of its own group and no other, which merged groups would not promise."""
    plan = Plan.parse("fprop:depthwise:4x8x1:w1:s3:rows5")
    for layout in (torch.contiguous_format, torch.channels_last):
        x, w, b = TWO.tensors(device)
        x[0, 1], x[1, 2] = math.nan, math.inf
        y = tritonconv.conv2d(x.contiguous(memory_format=layout), w, b, padding=1, groups=3, plan=plan)
        reached = torch.zeros_like(y, dtype=torch.bool)
        reached[0, :2] = reached[1, 2:4] = True
        assert torch.equal(y.isfinite(), ~reached)


@pytest.mark.parametrize("name", ["transposed", "2x2"])
def test_gradients_to_second_order(name, device, launched):
    case = dataclasses.replace((ALONE | {"2x2": TWO})[name], dtype="float64", input=(1, 4, 2, 2), bias=False)
    case = dataclasses.replace(case, weight=(4, 2, 2, 2), groups=4 if case.transposed else 2)
    plans = [Plan.parse(f"{which}:depthwise:2x8x2:w1:s3:rows4") for which in Pass]
    x, w, _ = (t if t is None else t.requires_grad_() for t in case.tensors(device))
    call = getattr(tritonconv, case.function)
    assert gradcheck(lambda x, w: call(x, w, **case.arguments, plan=plans), (x, w), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x, w: call(x, w, **case.arguments, plan=plans), (x, w), fast_mode=True)
    assert PASSES <= set(launched())


def test_explain_says_what_a_lane_sums():
    case = SEVERAL["2x2_half"]
    plans = [Plan.parse(f"{which}:depthwise:4x8x2:w1:s3") for which in Pass]
    words = str(tritonconv.explain(tritonconv.conv2d, *case.tensors(), **case.arguments, plan=plans))
    assert "each channel sums the 2 of its group in x, in one load" in words and "its group in dy, in one load" in words
    assert "8 pairs of a filter and a channel x 2 tiles of 4 columns" in words


def grouped(channels, filters, shape=(32, 512, 56, 56), kernel=(3, 3)):
    groups, rank = shape[1] // channels, len(kernel)
    padding = tuple(k // 2 for k in kernel)
    return ConvProblem.conv(shape, (groups * filters, channels, *kernel), (1,) * rank, padding, (1,) * rank, groups)


def test_who_is_served():
    """One channel or filter a group with any number of the other; up to four of both. The interpreter takes the first only."""
    for channels, filters, served, unasked in (
        (1, 7, True, True),
        (7, 1, True, True),
        (2, 2, True, False),
        (4, 4, True, False),
        (2, 5, False, False),
    ):
        problem = grouped(channels, filters, (1, 4 * channels, 8, 8))
        assert depthwise.is_narrow(problem) == served
        assert family("depthwise").is_for(problem, H100) == served
        assert family("depthwise").is_for(problem, INTERPRETER) == unasked


@pytest.mark.parametrize("which", list(Pass), ids=str)
def test_groups_of_two_are_chosen_by_predicted_time(which):
    """Against dense kernels, single groups and merged ones."""
    call = channels_last(grouped(2, 2), which, "bfloat16")
    chosen = select(call, H100)
    merged = Plan(which, "gather", 128, 32, 32, 4, chosen.num_stages, merge=16)
    assert chosen.family == "depthwise"
    assert predict(call, chosen, H100).seconds < predict(call, merged, H100).seconds


@pytest.mark.parametrize("which", list(Pass), ids=str)
@pytest.mark.parametrize(
    "problem",
    [
        grouped(1, 1),
        grouped(1, 1, (1, 7, 9, 9), (4, 5)),
        grouped(1, 1, (8, 64, 16, 28, 28), (3, 3, 4)),
        grouped(1, 1, (8, 64, 2048), (4,)),
        grouped(1, 2, (8, 64, 28, 28), (1, 8)),
        grouped(1, 2, (8, 64, 28, 28), (8, 1)),
        grouped(1, 1, (8, 48, 28, 28), (1, 1)),
        grouped(1, 16, (8, 1, 28, 28)),
        grouped(1, 1, (8, 1, 16, 28)),
        grouped(1, 1, (1, 1, 28), (3,)),
        grouped(2, 2),
        grouped(2, 1),
        grouped(3, 1, (1, 384, 5, 5)),
        grouped(5, 1, (1, 5, 5, 6)),
        grouped(4, 3, (1, 384, 5, 5)),
        grouped(3, 4, (1, 384, 1, 5)),
    ],
    ids=str,
)
def test_a_prediction_is_of_the_call_that_channels_last_tensors_make(problem, which):
    """By `costmodel.predict`, which has no tensors."""
    assumed = channels_last(problem, which, "bfloat16")
    real = describe(problem, which, *operands(problem, which, True))
    for said, true in zip((assumed.a, assumed.b, assumed.out), real, strict=True):
        assert (said.unit, said.outside) == (true.unit, true.outside), (said, true)


@pytest.mark.parametrize("planes", [False, True], ids=["channels-last", "contiguous"])
@pytest.mark.parametrize("which", list(Pass), ids=str)
def test_the_quickest_is_the_least_of_all(which, planes):
    """Tiles are skipped by a floor under their time: none that would have won, and of equals the first is taken."""
    lies = (Operand(4, 8, 8),) * 3 if planes else ()
    for problem in (
        grouped(1, 1),
        grouped(1, 1, (1, 960, 7, 7)),
        grouped(1, 1, (16, 64, 33, 33), (31, 31)),
        grouped(1, 2, (8, 1024, 2048), (4,)),
        grouped(2, 4, (1, 64, 8, 28, 28), (3, 3, 3)),
        grouped(3, 1, (32, 510, 56, 56)),
    ):
        call = Call(problem, which, "bfloat16", "ieee", *lies)
        plans = depthwise_choice.candidates(call, H100)
        times = [predict(call, plan, H100).seconds for plan in plans]
        assert depthwise_choice.quickest(call, H100) == (min(times), plans[times.index(min(times))])


def test_what_a_lane_sums_is_counted():
    """Twice the multiply-adds of a depthwise layer per lane; the two channels of a pixel come in one load."""
    one, two = (channels_last(grouped(n, n), Pass.FPROP, "bfloat16") for n in (1, 2))
    alone, pair = (depthwise.work_of(call, 4, None) for call in (one, two))
    assert pair.multiply_adds == 2 * alone.multiply_adds == 72 and pair.read == 2 * alone.read and pair.loads == alone.loads
    assert pair.held - alone.held == 9
    plan = Plan.parse("fprop:depthwise:4x32x1:w1:s3:rows56")
    assert depthwise.issued_macs(two.problem, plan) == 32 * 16 * 14 * (56 + 2) * 32 * 72
    three = channels_last(grouped(3, 3, (32, 510, 56, 56)), Pass.FPROP, "bfloat16")
    assert depthwise.work_of(three, 4, None).loads == 3 * alone.loads
    planes = Call(two.problem, Pass.FPROP, "bfloat16")
    assert depthwise.loads_together(two, None) and not depthwise.loads_together(three, None)
    assert depthwise.loads_together(planes, None) and not depthwise.loads_together(planes, (1, 3))


def test_filters_lie_next_to_each_other():
    w = torch.randn(6, 2, 3, 4)
    copied = filters_last_copy(w)
    assert copied.stride() == filters_last_strides(w.shape) == (1, 6, 48, 12) and torch.equal(copied, w)
