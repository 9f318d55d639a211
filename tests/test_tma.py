"""The kernels that copy boxes by TMA: right wherever a forced plan may take them, refused elsewhere, chosen where they pay."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import Case
from gpu import fp32_precision
from oracle import check

import tritonconv
from costmodel.device import DEVICES, INTERPRETER
from costmodel.families import tma
from costmodel.families.matrix import access, grid, issued_macs, stores_boxes
from costmodel.plan import candidates, predict, select
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Operand, Plan, channels_last
from tritonconv.families.tma import described
from tritonconv.launch import describe, key
from tritonconv.layout import channels_last_strides

pytest_plugins = ["gpu"]  # its fixture `fenced`

LAST = {"dtype": "float16", "x": "channels_last", "w": "channels_last", "g": "channels_last"}
FPROP, DGRAD = "fprop:tma:64x64x16:w4:s3", "dgrad:tma:64x64x16:w4:s3"
WGRAD = "wgrad:tma:64x64x32:w4:s3:split2"


def conv(function, x, w, **settings) -> Case:
    return Case(function, x, w, **{**LAST, **settings})


CASES = {
    "3x3": conv("conv2d", (3, 16, 6, 7), (24, 16, 3, 3), padding=1),
    "bfloat16": conv("conv2d", (1, 16, 5, 7), (16, 16, 3, 3), padding=1, dtype="bfloat16"),
    "8_channels": conv("conv2d", (2, 8, 5, 5), (8, 8, 3, 3), padding=1),
    "rest_of_channels": conv("conv2d", (1, 24, 5, 6), (40, 24, 3, 2), padding=1),
    "72_channels": conv("conv1d", (2, 72, 9), (72, 72, 3), padding=1),
    "one_pixel": conv("conv2d", (1, 8, 1, 1), (8, 8, 1, 1)),
    "one_row": conv("conv2d", (1, 16, 1, 6), (8, 16, 1, 3), padding=(0, 1)),
    "rest_of_boxes": conv("conv2d", (5, 16, 9, 11), (72, 16, 1, 1)),
    "kernel_above_input": conv("conv2d", (1, 16, 2, 3), (16, 16, 5, 5), padding=2),
    "same_even_kernel": conv("conv2d", (1, 16, 5, 4), (16, 16, 4, 2), padding="same"),
    "dilated": conv("conv2d", (1, 16, 9, 8), (16, 16, 3, 3), padding=(2, 3), dilation=(2, 3)),
    "stride_2": conv("conv2d", (2, 16, 8, 10), (24, 16, 3, 3), padding=1, stride=2),
    "stride_2_dilated": conv("conv2d", (1, 16, 10, 12), (16, 16, 3, 2), padding=3, stride=2, dilation=(3, 2)),
    "stride_of_rows": conv("conv2d", (1, 24, 8, 7), (16, 24, 3, 3), padding=1, stride=(2, 1)),
    "stride_of_columns": conv("conv2d", (1, 16, 5, 8), (16, 16, 2, 3), padding=1, stride=(1, 2)),
    "stride_3": conv("conv2d", (1, 16, 9, 6), (16, 16, 4, 5), padding=(4, 2), stride=3),
    "kernel_below_stride": conv("conv2d", (2, 16, 6, 8), (16, 16, 1, 2), stride=(3, 4)),
    "pointwise_stride_2": conv("conv2d", (2, 32, 6, 4), (24, 32, 1, 1), stride=2),
    "groups": conv("conv2d", (2, 32, 5, 6), (64, 16, 3, 3), padding=1, groups=2),
    "groups_strided": conv("conv2d", (1, 32, 6, 6), (32, 16, 3, 3), padding=1, stride=2, groups=2),
    "line": conv("conv1d", (2, 24, 13), (40, 24, 5), padding=4, dilation=2),
    "line_stride_2": conv("conv1d", (3, 16, 12), (16, 16, 3), padding=1, stride=2),
    "space": conv("conv3d", (1, 16, 3, 4, 5), (24, 16, 2, 3, 2), padding=1),
    "space_dilated": conv("conv3d", (2, 16, 4, 3, 4), (16, 16, 2, 1, 2), padding=(2, 0, 1), dilation=(3, 1, 2)),
    "space_strided": conv("conv3d", (1, 16, 3, 3, 6), (16, 16, 2, 1, 3), padding=(1, 0, 1), stride=(1, 1, 2)),
}
TRANSPOSED = {
    "stride_2": conv("conv_transpose2d", (2, 16, 4, 3), (16, 24, 3, 3), padding=1, stride=2, output_padding=1),
    "phases_without_taps": conv("conv_transpose2d", (1, 16, 3, 4), (16, 8, 2, 1), stride=(3, 2), output_padding=(1, 1)),
    "dilation_and_stride_share_a_factor": conv(
        "conv_transpose2d", (1, 24, 3, 3), (24, 8, 3, 2), stride=4, dilation=2, padding=2
    ),
    "line": conv("conv_transpose1d", (2, 40, 5), (40, 8, 4), stride=3, padding=2, output_padding=1),
    "space": conv("conv_transpose3d", (1, 16, 2, 2, 3), (16, 8, 2, 1, 3), stride=(2, 1, 2), padding=(1, 0, 1)),
    "groups": conv("conv_transpose2d", (1, 32, 3, 3), (32, 8, 3, 3), stride=2, groups=2, padding=1),
}


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_convolution(name, device, fenced, launches):
    case = CASES[name]
    check(case, device, plan=[Plan.parse(text) for text in (FPROP, DGRAD, WGRAD)])
    assert {name: n for name, n in launches().items() if " " in name} == {"tma fprop": 1, "tma dgrad": 1, "tma wgrad": 1}
    assert launches()["reduce"] >= 1


@pytest.mark.parametrize("name", TRANSPOSED)
def test_every_kind_of_transposed_convolution(name, device, fenced, launches):
    """Its forward pass is dgrad; its backward pass is fprop, whose stride the sizes here do not divide."""
    check(TRANSPOSED[name], device, plan=Plan.parse(DGRAD))
    assert launches()["tma dgrad"] == 1


FORCED = [
    ("3x3", "fprop:tma:16x16x16:w4:s3"),
    ("3x3", "fprop:tma:128x32x32:w4:s3:group1"),
    ("3x3", "fprop:tma:64x64x16:w4:s3:step1x1x16x4"),
    ("3x3", "dgrad:tma:64x16x32:w4:s3:step16x1x2x2"),
    ("stride_2", "dgrad:tma:32x16x32:w4:s3:step2x1x8x2"),
    ("groups", "fprop:tma:64x32x32:w4:s3:merge2"),
    ("groups", "dgrad:tma:64x32x64:w4:s3:merge2"),
    ("space", "fprop:tma:64x64x16:w4:s3:step1x2x8x4"),
]


@pytest.mark.parametrize("name, text", FORCED)
def test_a_forced_plan_is_taken_and_right(name, text, device, fenced, launches):
    plan, case = Plan.parse(text), CASES[name]
    x, w, b = case.tensors("cpu")
    words = tritonconv.explain(getattr(tritonconv, case.function), x, w, b, **case.arguments, plan=plan)
    taken = words.plans[str(plan.which)]
    assert str(replace(taken, step=plan.step)) == text and taken.step is not None
    assert "copied by TMA" in str(words) and "x".join(map(str, taken.step)) in str(words).replace(" x ", "x")
    check(case, device, plan=plan)
    assert launches()[f"tma {plan.which}"] == 1


@pytest.mark.parametrize("name", ["3x3", "line", "space"])
@pytest.mark.parametrize("layout", ["contiguous", "sliced", "permuted", "expanded"])
def test_operands_that_are_copied_first_may_lie_anyhow(name, layout, device, fenced, launches):
    """The result is contiguous then, and each thread stores its own."""
    case = replace(CASES[name], x=layout, w=layout, g=layout)
    check(case, device, plan=[Plan.parse(f"{text}:pack-a:pack-b") for text in (FPROP, DGRAD)])
    assert launches()["tma fprop"] == launches()["tma dgrad"] == 1


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_memory_format_is_torchs(layout, device, launched):
    x, w, b = replace(CASES["stride_2"], x=layout).tensors(device)
    packed = ":pack-a" if layout == "contiguous" else ""
    y = tritonconv.conv2d(x, w.contiguous(), b, stride=2, padding=1, plan=Plan.parse(f"{FPROP}{packed}:pack-b"))
    want = F.conv2d(x.float(), w.contiguous().float(), b.float(), stride=2, padding=1)
    assert y.stride() == want.stride()
    assert launched()["tma fprop"] == 1


@pytest.mark.parametrize("text", [FPROP, DGRAD])
def test_negative_padding_crops(text, device, fenced, launched):
    """Three columns less on the left and a row less below, in one launch: the same as slicing first."""
    x, w, b = CASES["3x3"].tensors(device)
    op, last = torch.ops.tritonconv, torch.channels_last
    window = [1, 1], [1, -1, -3, 2], [1, 1], 1
    inner = [1, 1], [1, 0, 0, 2], [1, 1], 1
    want = op.fprop(x[:, :, :-1, 3:].contiguous(memory_format=last), w, b, *inner)
    if text == FPROP:
        torch.testing.assert_close(op.fprop(x, w, b, *window, text), want)
    else:
        dx = op.dgrad(want, w, None, x.shape[2:], *window, text)
        inside = op.dgrad(want, w, None, [x.shape[2] - 1, x.shape[3] - 3], *inner)
        torch.testing.assert_close(dx[:, :, :-1, 3:], inside)
        assert not dx[:, :, -1].any() and not dx[:, :, :, :3].any()
    assert launched()["tma " + text.split(":")[0]] == 1


def test_tf32(device, fenced, launched):
    """32-bit elements: four of them are 16 bytes."""
    with fp32_precision("tf32"):
        case = conv("conv2d", (2, 12, 5, 8), (20, 12, 3, 3), padding=1, dtype="float32")
        check(case, device, plan=Plan.parse(FPROP))
        with pytest.raises(ValueError, match="32-bit"):
            check(case, device, plan=Plan.parse(DGRAD))
    assert launched()["tma fprop"] == 1


@pytest.mark.parametrize("which", ["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize("residual", [None, "contiguous", "channels_last"])
def test_an_epilogue_follows_in_the_same_kernel(which, residual, device, fenced, launches):
    case = CASES["stride_2"] if which == "conv2d" else TRANSPOSED["stride_2"]
    x, w, b = case.tensors(device)
    channels = case.out_channels
    scale, shift = (case.values(role, (channels,)).to(device) for role in ("scale", "shift"))
    extra = {}
    exactly = [t.cpu().double() for t in (x, w, b, scale, shift)]
    z = getattr(F, which)(*exactly[:3], **case.arguments)
    z = z * exactly[3].view(-1, 1, 1) + exactly[4].view(-1, 1, 1)
    if residual:
        extra["residual"] = case.values("residual", tuple(z.shape)).to(device)
        if residual == "channels_last":
            extra["residual"] = extra["residual"].contiguous(memory_format=torch.channels_last)
        z = z + extra["residual"].cpu().double()
    x.requires_grad_()  # so that z is kept
    plan = Plan.parse(FPROP if which == "conv2d" else DGRAD)
    y = getattr(tritonconv, f"{which}_fused")(
        x, w, b, **case.arguments, scale=scale, shift=shift, activation="silu", plan=plan, **extra
    )
    assert launches() == {str(plan.which): 1, f"tma {plan.which}": 1}
    # silu is at most 1.1 steep; a float32 sum of a few hundred products is exact beside one rounding to float16
    torch.testing.assert_close(y.detach().cpu().double(), F.silu(z), atol=2e-4, rtol=2.0**-10)


def test_an_empty_batch_launches_nothing(device, launches):
    case = replace(CASES["3x3"], input=(0, 16, 6, 7))
    check(case, device, plan=[Plan.parse(FPROP), Plan.parse(DGRAD), Plan.parse(WGRAD)])
    assert not launches()


def test_phases_without_taps_meet_neither_tensor(device, fenced, launched):
    """They hold the bias, whatever the tensors do: zero times an infinite element would be NaN."""
    case = TRANSPOSED["phases_without_taps"]
    x, w, b = case.tensors(device)
    for a, weights in ((torch.full_like(x, torch.inf), w), (x, torch.full_like(w, torch.inf))):
        y = tritonconv.conv_transpose2d(a, weights, b, **case.arguments, plan=Plan.parse(DGRAD))
        for untouched in (y[:, :, 2::3], y[:, :, :, 1::2]):
            assert torch.equal(untouched, b.view(-1, 1, 1).expand_as(untouched))
    assert launched()["tma dgrad"] == 2


def shifted(t: torch.Tensor) -> torch.Tensor:
    """The same values and strides, one element further in memory."""
    room = torch.zeros(t.untyped_storage().nbytes() // t.element_size() + 8, dtype=t.dtype, device=t.device)
    return room.as_strided(t.shape, t.stride(), 1).copy_(t)


@pytest.mark.parametrize("name", ["input", "weight"])
def test_a_view_that_begins_between_16_bytes_is_refused_where_it_is_not_copied(name, device, launches):
    """The same shapes and strides as an aligned tensor that has just been served."""
    case = CASES["3x3"]
    x, w, b = case.tensors(device)
    plan, settings = Plan.parse(FPROP), case.arguments
    want = tritonconv.conv2d(x, w, b, **settings, plan=plan)
    odd = {"input": x, "weight": w} | {name: shifted({"input": x, "weight": w}[name])}
    assert odd[name].data_ptr() % 16
    with pytest.raises(ValueError, match="16 bytes"):
        tritonconv.conv2d(**odd, bias=b, **settings, plan=plan)
    with pytest.raises(ValueError, match="16 bytes"):
        tritonconv.explain(tritonconv.conv2d, **odd, bias=b, **settings, plan=plan)
    copied = replace(plan, pack=("a" if name == "input" else "b",))
    assert torch.equal(tritonconv.conv2d(**odd, bias=b, **settings, plan=copied), want)
    assert launches()["tma fprop"] == 2
    torch.testing.assert_close(tritonconv.conv2d(**odd, bias=b, **settings), want)


def test_an_infinite_weight_stays_in_its_filter(device, launched):
    """Channels that leave a rest in a box meet weights of the next tap there, times zero."""
    case = CASES["rest_of_channels"]
    x, w, b = case.tensors(device)
    w[3, 2, 1, 1] = torch.inf
    y = tritonconv.conv2d(x, w, b, **case.arguments, plan=Plan.parse(FPROP))
    finite = y.isfinite().all(dim=(0, 2, 3))
    assert not y[:, 3].isfinite().any() and int(finite.sum()) == y.shape[1] - 1
    assert launched()["tma fprop"] == 1


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("3x3", "fprop:tma:64x48x16:w4:s3", "block_n"),
        ("3x3", "fprop:tma:512x64x16:w4:s3", "block_m"),
        ("3x3", "fprop:tma:64x64x16:w4:s3:step1x1x4x4", "step"),
        ("3x3", "fprop:tma:64x64x16:w4:s3:step1x2x4x8", "step"),
        ("3x3", "fprop:tma:256x256x128:w8:s4", "shared memory"),
        ("3x3", "fprop:tma:64x64x16:w4:s3:split2", "split"),
        ("3x3", "fprop:tma:64x64x16:w4:s3:merge2", "merge"),
        ("3x3", "fprop:tma:64x64x16:w4:s3:fold", "'tma' knows no fold"),
        ("3x3", "dgrad:tma:64x64x16:w4:s3:rows2", "knows no rows"),
        ("groups", "fprop:tma:64x64x32:w4:s3", "the next group"),
        ("stride_2", "fprop:tma:64x64x32:w4:s3", "the next column"),
    ],
)
def test_a_plan_that_does_not_serve_the_call_is_refused(name, text, message, device, launches):
    case = CASES[name]
    with pytest.raises(ValueError, match=message):
        check(case, device, plan=Plan.parse(text))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"input": (2, 16, 7, 10)}, "must divide the input sizes"),
        ({"dtype": "float64"}, "float64"),
        ({"dtype": "float32"}, "float32"),
        ({"input": (2, 12, 8, 10), "weight": (24, 12, 3, 3)}, "x must have strides that are multiples of 16 bytes"),
        ({"x": "contiguous"}, "x must have contiguous channels"),
        ({"w": "contiguous"}, "w must have contiguous channels"),
        ({"input": (2, 16, 8, 8), "x": "permuted"}, "x must have contiguous channels"),
    ],
)
def test_a_call_that_boxes_do_not_serve_is_refused(change, message, device, launches):
    with fp32_precision("ieee"), pytest.raises(ValueError, match=message):
        check(replace(CASES["stride_2"], **change), device, plan=Plan.parse(FPROP))


def test_only_three_axes_are_strided_in_a_descriptor(device):
    case = replace(CASES["space_strided"], stride=(2, 1, 1), input=(1, 16, 4, 3, 6))
    with pytest.raises(ValueError, match="the last axis alone"):
        check(case, device, plan=Plan.parse(FPROP))


def test_rows_and_columns_that_changed_places_are_no_box():
    """Strides that grow in another order than (channel, column, row, image) are not left to the driver."""
    shape = (2, 16, 4, 6)
    dense = channels_last_strides(shape)
    swapped = (dense[0], 1, 16, 64)
    problem = ConvProblem.conv(shape, (16, 16, 3, 3), (1, 1), (1, 1), (1, 1))
    weights = (problem.weight_shape, channels_last_strides(problem.weight_shape))
    out = (problem.output_shape, channels_last_strides(problem.output_shape))
    for strides, boxed in ((dense, True), (swapped, False), ((0, *dense[1:]), False), ((2 * dense[0], *dense[1:]), True)):
        a, w, y = describe(problem, Pass.FPROP, (shape, strides), weights, out)
        assert (a.boxed, w.boxed, y.boxed) == (boxed, True, True)
    a, w, _ = describe(problem, Pass.FPROP, (shape, dense), weights, out, (False, True))
    assert (a.boxed, w.boxed) == (False, True)
    same = (problem.weight_shape, (0, *weights[1][1:]))  # one filter for all
    assert not describe(problem, Pass.FPROP, (shape, dense), same, out)[1].boxed
    wider = (problem.weight_shape, tuple(2 * s if s > 1 else s for s in weights[1]))  # a slice of more channels
    assert not describe(problem, Pass.FPROP, (shape, dense), wider, out)[1].boxed


# ---- descriptors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape, stride, sizes, strides",
    [
        ((2, 16, 6, 8), (1, 1), [2, 6, 8, 16], [768, 128, 16, 1]),
        ((2, 16, 6, 8), (2, 2), [2, 3, 2, 4, 32], [768, 256, 128, 32, 1]),
        ((2, 16, 6, 8), (3, 1), [2, 2, 3, 8, 16], [768, 384, 128, 16, 1]),
        ((2, 16, 6, 8), (1, 4), [2, 6, 2, 64], [768, 128, 64, 1]),
        ((2, 16, 8), (2,), [2, 4, 32], [128, 32, 1]),
        ((1, 16, 2, 3, 8), (1, 1, 2), [1, 2, 3, 4, 32], [768, 384, 128, 32, 1]),
        ((1, 12, 1, 1), (1, 1), [1, 1, 1, 12], [16, 16, 16, 1]),  # axes of one element may have any stride in torch
    ],
)
def test_what_a_descriptor_says(shape, stride, sizes, strides):
    got = described((shape, channels_last_strides(shape)), 2, [], stride)
    assert got == (sizes, strides, [])


def test_a_descriptor_of_a_slice_keeps_its_strides():
    x = torch.zeros(2, 6, 8, 32)[..., :16].permute(0, 3, 1, 2)
    assert described(key(x), 2, [], (1, 1))[1] == [1536, 256, 32, 1]
    assert described(key(x), 2, [], (1, 2))[:2] == ([2, 6, 4, 48], [1536, 256, 64, 1])


# ---- the choice -----------------------------------------------------------------------------------------------------

H100 = DEVICES["NVIDIA H100 80GB HBM3"]
LAYERS = {
    "resnet_3x3": ConvProblem.conv((32, 64, 56, 56), (64, 64, 3, 3), (1, 1), (1, 1), (1, 1)),
    "stride_2": ConvProblem.conv((32, 128, 56, 56), (128, 128, 3, 3), (2, 2), (1, 1), (1, 1)),
    "video": ConvProblem.conv((2, 64, 16, 56, 56), (64, 64, 3, 3, 3), (1,) * 3, (1,) * 3, (1,) * 3),
}


@pytest.mark.parametrize("which", list(Pass))
@pytest.mark.parametrize("name", LAYERS)
def test_large_layers_take_boxes_on_hopper_alone(name, which):
    call = channels_last(LAYERS[name], which, "bfloat16")
    chosen = select(call, H100)
    assert chosen.family == "tma"
    ours = {plan.family: predict(call, plan, H100).seconds for plan in reversed(candidates(call, H100))}
    assert predict(call, chosen, H100).seconds <= min(ours.values())
    for device in (INTERPRETER, DEVICES["NVIDIA A100-SXM4-80GB"]):
        assert select(call, device).family != "tma"
        assert all(plan.family != "tma" for plan in candidates(call, device))
    assert "9.x or 10.x" in tma.call_refusal(call, chosen, 80) and not tma.call_refusal(call, chosen, 90)


def test_groups_laid_together_are_predicted_as_one():
    """What `select` ranks is what `predict` says, whether the result leaves as boxes or not."""
    merged_groups = ConvProblem.conv((32, 128, 28, 28), (128, 16, 3, 3), (1, 1), (1, 1), (1, 1), 8)
    call = channels_last(merged_groups, Pass.FPROP, "bfloat16")
    whole = Plan.parse("fprop:tma:256x128x64:w8:s4:merge8")
    assert access(call, whole) == "wide" and access(call, replace(whole, merge=4)) == "scattered"
    best = predict(call, select(call, H100), H100).seconds
    assert best == min(predict(call, plan, H100).seconds for plan in candidates(call, H100))
    assert any(plan.family == "tma" and plan.merge > 1 for plan in candidates(call, H100))


def test_no_candidate_is_one_that_would_be_refused():
    problems = [
        *LAYERS.values(),
        ConvProblem.conv((4, 48, 28, 28), (96, 24, 3, 3), (2, 2), (1, 1), (1, 1), 2),
        ConvProblem.conv((4, 40, 28, 28), (24, 40, 3, 3), (2, 2), (1, 1), (1, 1)),
        ConvProblem.conv((4, 40, 27, 27), (24, 40, 3, 3), (2, 2), (1, 1), (1, 1)),
        ConvProblem.conv((4, 128, 28, 28), (128, 4, 3, 3), (1, 1), (1, 1), (1, 1), 32),
    ]
    for problem in problems:
        for which in Pass:
            for dtype, precision in (("float16", "ieee"), ("float32", "tf32"), ("float32", "ieee"), ("float64", "ieee")):
                call = channels_last(problem, which, dtype, precision)
                for operand in (call.a, Operand(4, 16), Operand(boxed=False)):
                    asked = replace(call, a=operand)
                    plans = [plan for plan in candidates(asked, H100) if plan.family == "tma"]
                    assert all(not tma.call_refusal(asked, plan, 90) and not tma.shape_refusal(asked, plan) for plan in plans)
                    if which != Pass.WGRAD and (not operand.boxed or operand.unit != 1):
                        assert all("a" in plan.pack for plan in plans)


def test_boxes_are_counted_with_what_they_waste():
    problem = ConvProblem.conv((3, 64, 9, 9), (64, 64, 3, 3), (1, 1), (1, 1), (1, 1))
    plan = Plan.parse("fprop:tma:64x64x64:w4:s4:step1x1x8x8")
    assert grid(problem, plan) == (3 * 2 * 2, 1, 1)
    assert issued_macs(problem, plan) == 12 * 64 * 64 * 64 * 9
    strided = replace(problem, stride=(2, 2))
    assert grid(strided, Plan.parse("dgrad:tma:64x64x64:w4:s4:step1x1x8x8")) == (3, 1, 4)  # phases of 5 x 5 pixels


def test_a_result_leaves_as_boxes_where_its_channels_lie_alone():
    plain = channels_last(LAYERS["resnet_3x3"], Pass.FPROP, "bfloat16")
    strided = channels_last(LAYERS["stride_2"], Pass.DGRAD, "bfloat16")
    grouped = channels_last(replace(LAYERS["resnet_3x3"], groups=2), Pass.FPROP, "bfloat16")
    rest = channels_last(replace(LAYERS["resnet_3x3"], out_channels=257), Pass.FPROP, "bfloat16")
    assert stores_boxes(plain) and not any(map(stores_boxes, (strided, grouped, rest, replace(plain, out=Operand(4)))))
