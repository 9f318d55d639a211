"""Depthwise convolutions through kernels of their own, in both layouts, against the float64 oracle."""

import dataclasses
import itertools
import math
import os
import random

import pytest
import torch
from cases import Case
from oracle import check

import tritonconv
from costmodel.device import DEVICES
from costmodel.families import depthwise
from costmodel.plan import candidates, select
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Call, Operand, Plan
from tritonconv import host
from tritonconv.kernels.window import tap_offsets

PASSES = {f"depthwise {which}" for which in Pass}
LAYOUTS = ("contiguous", "channels_last")

CASES = {
    "3x3": Case("conv2d", (2, 5, 6, 8), (5, 1, 3, 3), padding=1, groups=5),
    "stride_2": Case("conv2d", (1, 4, 7, 8), (4, 1, 3, 3), padding=1, stride=2, groups=4, dtype="float16"),
    "stride_3_by_2": Case("conv2d", (1, 3, 9, 8), (3, 1, 4, 3), padding=(2, 1), stride=(3, 2), groups=3),
    "stride_above_kernel": Case("conv2d", (2, 3, 9, 8), (3, 1, 2, 1), stride=4, padding=1, groups=3),
    "stride_and_dilation": Case("conv2d", (1, 3, 12, 11), (3, 1, 3, 3), stride=(2, 3), dilation=(3, 2), padding=3, groups=3),
    "stride_and_dilation_share_a_factor": Case("conv2d", (1, 3, 9, 9), (3, 1, 3, 3), stride=4, dilation=2, groups=3),
    "dilated_large": Case("conv2d", (1, 2, 9, 8), (2, 1, 5, 5), dilation=(3, 2), padding=(6, 4), groups=2),
    "kernel_above_input": Case("conv2d", (1, 3, 3, 4), (3, 1, 7, 9), padding=(3, 4), groups=3),
    "kernel_even_same": Case("conv2d", (1, 3, 5, 4), (3, 1, 4, 2), padding="same", groups=3),
    "kernel_13": Case("conv2d", (1, 2, 4, 8), (2, 1, 13, 15), padding=(6, 7), groups=2, dtype="float16"),
    "line_63": Case("conv1d", (1, 2, 40), (2, 1, 63), padding=31, groups=2),
    "pointwise": Case("conv2d", (2, 3, 4, 5), (3, 1, 1, 1), groups=3),
    "multiplier": Case("conv2d", (2, 3, 5, 6), (9, 1, 3, 3), padding=1, groups=3),
    "multiplier_strided": Case("conv2d", (1, 3, 7, 6), (6, 1, 3, 3), padding=1, stride=2, groups=3, dtype="bfloat16"),
    "one_channel": Case("conv2d", (2, 1, 5, 6), (4, 1, 3, 3), padding=1),
    "channels_37": Case("conv2d", (1, 37, 4, 5), (37, 1, 3, 3), padding=1, groups=37, dtype="float16"),
    "channels_40": Case("conv2d", (1, 40, 3, 4), (40, 1, 3, 3), padding=1, groups=40, dtype="bfloat16"),
    "causal_line": Case("conv1d", (2, 6, 11), (6, 1, 4), padding=3, groups=6, dtype="bfloat16"),
    "strided_line": Case("conv1d", (2, 3, 16), (3, 1, 5), padding=2, stride=2, groups=3),
    "video": Case("conv3d", (1, 3, 3, 4, 5), (3, 1, 3, 3, 3), padding=1, groups=3, dtype="float16"),
    "video_strided": Case("conv3d", (1, 2, 4, 5, 4), (2, 1, 3, 2, 3), padding=1, stride=(2, 1, 2), groups=2),
    "video_dilated": Case("conv3d", (1, 2, 5, 4, 6), (2, 1, 2, 3, 2), dilation=(3, 1, 2), groups=2),
    "float64": Case("conv2d", (1, 3, 5, 6), (3, 1, 3, 2), padding=1, groups=3, dtype="float64"),
    "transposed": Case("conv_transpose2d", (1, 4, 4, 5), (4, 1, 3, 3), stride=2, padding=1, output_padding=1, groups=4),
    "transposed_cropped": Case("conv_transpose2d", (1, 3, 3, 4), (3, 1, 2, 2), stride=3, output_padding=2, groups=3),
    "transposed_line": Case("conv_transpose1d", (2, 3, 6), (3, 1, 4), stride=2, padding=1, groups=3, dtype="float16"),
    "transposed_video": Case("conv_transpose3d", (1, 2, 2, 3, 3), (2, 1, 3, 3, 2), stride=(1, 2, 2), groups=2),
}


def assert_taken(launches):
    """The depthwise kernels ran in every pass. Only the interpreter takes them wherever they serve; a GPU may choose others."""
    assert launches and (PASSES <= set(launches) or not host.INTERPRETED)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_every_kind_takes_the_depthwise_kernels(name, layout, device, launches, overflow_checked):
    check(dataclasses.replace(CASES[name], x=layout, g=layout), device)
    assert_taken(launches())
    assert launches().total() == 6 or not host.INTERPRETED


@pytest.mark.parametrize("gradient", ["expanded", "sliced", "permuted", "channels_last"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "expanded", "permuted"])
def test_any_strides_are_right(layout, gradient, device, launches):
    """Layouts mixed within a call: slower, but right."""
    weight = "sliced" if layout == "sliced" else "contiguous"
    case = dataclasses.replace(CASES["3x3"], x=layout, w=weight, g=gradient, input=(2, 5, 4, 6))
    check(case, device)
    assert_taken(launches())
    assert launches().total() == 6 or not host.INTERPRETED


@pytest.mark.parametrize("case", [CASES["3x3"], CASES["transposed"]], ids=["plain", "transposed"])
def test_an_empty_batch_launches_nothing(case, device, launches):
    check(dataclasses.replace(case, input=(0, *case.input[1:])), device)
    assert not launches()


def test_negative_padding_crops(device, launched):
    """Three columns less on the left and a row less below, in one launch: the same as slicing first."""
    x, w, b = CASES["3x3"].tensors(device)
    op = torch.ops.tritonconv
    cropped = [1, 1], [1, -1, -3, 2], [1, 1], 5
    want = op.fprop(x[:, :, :-1, 3:].contiguous(), w, b, [1, 1], [1, 0, 0, 2], [1, 1], 5)
    for layout in (torch.contiguous_format, torch.channels_last):
        y = op.fprop(x.contiguous(memory_format=layout), w, b, *cropped)
        torch.testing.assert_close(y, want)
        dy = want.contiguous(memory_format=layout)
        dx = op.dgrad(dy, w, None, x.shape[2:], *cropped)
        inside = op.dgrad(dy, w, None, [x.shape[2] - 1, x.shape[3] - 3], [1, 1], [1, 0, 0, 2], [1, 1], 5)
        torch.testing.assert_close(dx[:, :, :-1, 3:], inside)
        assert not dx[:, :, -1].any() and not dx[:, :, :, :3].any()
        dw = op.wgrad(dy, x.contiguous(memory_format=layout), w.shape[2:], *cropped)
        small = op.wgrad(dy, x[:, :, :-1, 3:].contiguous(), w.shape[2:], [1, 1], [1, 0, 0, 2], [1, 1], 5)
        torch.testing.assert_close(dw, small)
    assert_taken(launched())


CHANNELS_LAST = dataclasses.replace(CASES["3x3"], x="channels_last", g="channels_last", dtype="bfloat16")
CONTIGUOUS = dataclasses.replace(CASES["3x3"], dtype="float16")
STRIDED = dataclasses.replace(CASES["stride_2"], dtype="float32")
WIDE = Case("conv2d", (1, 2, 4, 8), (2, 1, 3, 5), padding=(1, 2), groups=2, dtype="float16")
MULTIPLIED = CASES["multiplier"]
LINE = CASES["causal_line"]
FORCED = [
    (CHANNELS_LAST, "fprop:depthwise:4x8x1:w1:s3:rows2"),
    (CHANNELS_LAST, "fprop:depthwise:2x4x2:w1:s3:rows4:pack-b"),
    (CHANNELS_LAST, "fprop:depthwise:4x8x1:w1:s3:taps1x2:pack-b"),
    (CHANNELS_LAST, "dgrad:depthwise:3x8x2:w1:s3:rows3"),
    (CHANNELS_LAST, "dgrad:depthwise:4x8x1:w1:s3:taps1x2"),
    (CHANNELS_LAST, "wgrad:depthwise:2x8x2:w1:s3:split3:rows2"),
    (CHANNELS_LAST, "wgrad:depthwise:4x8x1:w1:s3:rows6:taps1x2"),
    (CONTIGUOUS, "fprop:depthwise:8x2x2:w1:s3:rows4"),
    (CONTIGUOUS, "fprop:depthwise:2x4x2:w1:s3:rows2"),
    (CONTIGUOUS, "fprop:depthwise:4x8x2:w1:s3:taps1x2"),
    (CONTIGUOUS, "dgrad:depthwise:8x8x1:w1:s3:rows6"),
    (CONTIGUOUS, "dgrad:depthwise:4x8x2:w1:s3:taps1x1"),
    (CONTIGUOUS, "wgrad:depthwise:8x4x1:w1:s3:split4:rows3"),
    (CONTIGUOUS, "wgrad:depthwise:4x4x2:w1:s3:split2:rows4:taps3x2"),
    (WIDE, "fprop:depthwise:8x2x1:w1:s3:taps1x4"),
    (WIDE, "dgrad:depthwise:4x2x2:w1:s3:taps1x4"),
    (WIDE, "wgrad:depthwise:8x2x1:w1:s3:rows2:taps1x4"),
    (STRIDED, "fprop:depthwise:2x4x2:w1:s3:rows2"),
    (STRIDED, "fprop:depthwise:4x4x1:w1:s3:taps1x3"),
    (STRIDED, "dgrad:depthwise:4x4x2:w1:s3:rows2"),
    (STRIDED, "dgrad:depthwise:6x4x1:w1:s3:taps1x2"),
    (STRIDED, "wgrad:depthwise:4x4x1:w1:s3:split4"),
    (MULTIPLIED, "fprop:depthwise:2x16x4:w1:s3:rows3"),
    (MULTIPLIED, "dgrad:depthwise:2x4x4:w1:s3:taps1x3"),
    (MULTIPLIED, "wgrad:depthwise:2x8x2:w1:s3:split2:rows5"),
    (LINE, "fprop:depthwise:2x8x1:w1:s3:rows3"),
    (LINE, "dgrad:depthwise:1x8x2:w1:s3:rows4"),
    (LINE, "wgrad:depthwise:4x8x1:w1:s3:split2"),
    (LINE, "wgrad:depthwise:1x8x2:w1:s3:split2:rows3"),
    (CASES["strided_line"], "wgrad:depthwise:2x4x2:w1:s3:rows2:taps1x2"),
]


@pytest.mark.parametrize("case, text", FORCED, ids=[f"{i}-{text}" for i, (_, text) in enumerate(FORCED)])
def test_a_forced_depthwise_plan_is_taken_and_right(case, text, device, launches):
    plan = Plan.parse(text)
    assert str(plan) == text
    x, w, b = case.tensors("cpu")
    words = tritonconv.explain(getattr(tritonconv, case.function), x, w, b, **case.arguments, plan=plan)
    assert words.plans[str(plan.which)] == plan and "forced by plan=" in str(words)
    check(case, device, plan=plan)
    assert_taken(launches())


@pytest.mark.parametrize(
    "text, message",
    [
        ("fprop:depthwise:4x6x1:w1:s3", "power of two"),
        ("dgrad:depthwise:3x8x1:w1:s3", "multiple of the stride"),
        ("dgrad:depthwise:4x8x1:w1:s3:taps1x1", "multiple of 2"),
        ("fprop:depthwise:4x8x1:w1:s3:taps3x3", "taps"),
        ("fprop:depthwise:4x8x1:w1:s3:split2", "split"),
        ("fprop:depthwise:4x8x1:w1:s3:pack-a", "only weights"),
        ("fprop:depthwise:4x8x1:w1:s3:merge2", "'depthwise' knows no merge, got 2"),
        ("dgrad:depthwise:4x8x1:w1:s3:fold", "knows no fold"),
        ("wgrad:depthwise:4x8x1:w1:s3:step1x1x2x2", "knows no step"),
        ("fprop:depthwise:4x8x1:w1:s3:group4", "knows no group_m"),
    ],
)
def test_a_depthwise_plan_that_does_not_serve_is_refused(text, message, device, launches):
    x, w, b = STRIDED.tensors(device)
    x.requires_grad_()
    w.requires_grad_()
    with pytest.raises(ValueError, match=message):
        y = tritonconv.conv2d(x, w, b, **STRIDED.arguments, plan=Plan.parse(text))
        y.sum().backward()
    dense, weight = torch.ones(1, 10, 5, 5, device=device), torch.ones(4, 5, 3, 3, device=device)
    with pytest.raises(ValueError, match="groups of 5 channels and 2 filters"):
        tritonconv.conv2d(dense, weight, groups=2, plan=Plan.parse("fprop:depthwise:4x8x1:w1:s3"))


def test_rows_and_channels_keep_to_themselves(device, launched):
    """A NaN in one channel, or an infinity in one row, reaches the outputs whose windows hold it and no other."""
    for layout in (torch.contiguous_format, torch.channels_last):
        x, w, b = CASES["3x3"].tensors(device)
        x[0, 1] = math.nan
        x[1, 2, 4] = math.inf
        y = tritonconv.conv2d(x.contiguous(memory_format=layout), w, b, padding=1, groups=5)
        assert y[0, 1].isnan().all()
        reached = torch.zeros_like(y, dtype=torch.bool)
        reached[0, 1] = True
        reached[1, 2, 3:6] = True
        assert torch.equal(y.isfinite(), ~reached)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_an_infinite_weight_is_nan_only_where_it_meets_padding(device, launched):
    """As docs/limits.md says: infinite where its tap lies inside; NaN or finite where it hangs over the border."""
    x, w = torch.ones(1, 1, 5, 6, device=device), torch.ones(1, 1, 3, 3, device=device)
    w[0, 0, 0, 0] = math.inf
    padded = torch.zeros(1, 1, 5, 6, dtype=torch.bool, device=device)
    padded[..., 0, :] = padded[..., 0] = True
    for plan in ("fprop:depthwise:4x2x2:w1:s3:rows5", "fprop:depthwise:4x2x2:w1:s3:taps1x2"):
        y = tritonconv.conv2d(x, w, padding=1, plan=Plan.parse(plan))
        assert (y[~padded] == math.inf).all() and y.isnan().any()
        assert torch.equal(y.isnan() | y.isfinite(), padded), plan


def test_partial_sums_give_the_same_bits_every_time(device):
    plan = Plan.parse("wgrad:depthwise:2x8x2:w1:s3:split3:rows2")
    x, w, b = CHANNELS_LAST.tensors(device)
    runs = []
    for _ in range(3):
        leaf = w.clone().requires_grad_()
        tritonconv.conv2d(x, leaf, b, padding=1, groups=5, plan=plan).sum().backward()
        runs.append(leaf.grad)
    assert all(torch.equal(runs[0], other) for other in runs[1:])


def drawn(seed):
    """A small call of narrow groups and a legal plan for each of its passes, as far as one is found, all at random."""
    rng = random.Random(seed)
    rank, groups, channels, filters = rng.randint(1, 3), rng.randint(1, 4), rng.choice((1, 1, 2, 3)), rng.choice((1, 1, 2))
    transposed = rng.random() < 0.3
    kernel, stride, dilation = (tuple(rng.randint(1, n) for _ in range(rank)) for n in (5 if rank < 3 else 3, 3, 3))
    padding = tuple(rng.randint(0, d * (k - 1) // 2 + 1) for k, d in zip(kernel, dilation, strict=True))
    size = [max(1, d * (k - 1) + 1 - 2 * p) + rng.randint(0, 6) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    if transposed:  # what a transposed output needs, it has: padding stays below the kernel's reach
        padding = tuple(min(p, d * (k - 1) // 2) for k, d, p in zip(kernel, dilation, padding, strict=True))
    case = Case(
        f"conv_transpose{rank}d" if transposed else f"conv{rank}d",
        (rng.randint(1, 2), groups * (filters if transposed else channels), *size),
        (groups * filters, channels, *kernel),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        dtype=rng.choice(("float32", "float16", "bfloat16", "float64")),
        x=rng.choice(LAYOUTS),
        g=rng.choice((*LAYOUTS, "sliced")),
        seed=seed,
    )
    plans = []
    for which, explained in tritonconv.explain(
        getattr(tritonconv, case.function), *case.tensors(), **case.arguments
    ).plans.items():
        for _ in range(200):
            columns = rng.choice((1, 2, 4, 8)) * rng.choice((1, stride[-1]))
            lanes, tiles = rng.choice((1, 2, 8, 16)), rng.choice((1, 2, 8))
            split = rng.randint(1, 4) if which == "wgrad" else 1
            taps = None
            if rng.random() < 0.5:
                rows = rng.choice((1, ((1,) * 2 + kernel)[-2])) if which == "wgrad" else 1
                taps = rows, rng.randint(1, kernel[-1] + 1)
            plan = Plan(Pass(which), "depthwise", columns, lanes, tiles, 4, 3, split=split, rows=rng.randint(1, 5), taps=taps)
            shapes = case.input, case.weight
            problem = (
                ConvProblem.conv_transpose(*shapes, stride, padding, (0,) * rank, groups, dilation)
                if transposed
                else ConvProblem.conv(*shapes, stride, padding, dilation, groups)
            )
            if not depthwise.refusal(Call(problem, Pass(which), case.dtype), plan):
                plans.append(plan)
                break
        assert explained.family == "depthwise" or min(channels, filters) > 1
    return case, plans


SEEDS = int(os.environ.get("TRITONCONV_FUZZ", "12"))


@pytest.mark.interpreter
@pytest.mark.parametrize("seed", [pytest.param(i, marks=pytest.mark.slow if i in (5, 6) else ()) for i in range(SEEDS)])
def test_any_legal_plan_is_right(seed, device, launches):
    case, plans = drawn(seed)
    assert plans
    check(case, device, plan=plans)
    assert_taken(launches())


def channelwise(shape, kernel, stride=1, padding=0, dilation=1, multiplier=1):
    """A depthwise problem; a multiplier below 1 is that of its transposed form, channels over filters."""
    rank = len(kernel)
    spread = [(value,) * rank for value in (stride, padding, dilation)]
    filters = int(shape[1] * multiplier)
    return ConvProblem.conv(shape, (filters, max(1, shape[1] // filters), *kernel), *spread, min(filters, shape[1]))


@pytest.mark.parametrize(
    "operand", [Operand(), Operand(4, 8, 8), Operand(-1, 1, 1)], ids=["channels-last", "contiguous", "neither"]
)
@pytest.mark.parametrize("which", list(Pass), ids=str)
def test_depthwise_is_chosen_by_predicted_time(which, operand):
    device = DEVICES["NVIDIA H100 80GB HBM3"]
    for problem in (
        channelwise((32, 144, 56, 56), (3, 3), padding=1),
        channelwise((32, 96, 56, 56), (7, 7), padding=3),
        channelwise((16, 128, 56, 56), (9, 9), padding=4),
        channelwise((8, 64, 8, 28, 28), (3, 3, 3), padding=1, stride=2),
        channelwise((8, 1024, 2048), (4,), padding=3),
        channelwise((8, 64, 28, 28), (3, 3), padding=2, dilation=2, multiplier=2),
        channelwise((8, 64, 28, 28), (3, 3), padding=1, multiplier=1 / 2),
    ):
        plan = select(Call(problem, which, "bfloat16", "ieee", operand, operand, operand), device)
        assert plan.family == "depthwise", problem
    if which == Pass.DGRAD:  # the sum over 512 filters of one channel is a matrix product
        one = channelwise((32, 1, 56, 56), (7, 7), padding=3, multiplier=512)
        assert select(Call(one, which, "float16", "ieee", operand, operand, operand), device).family in ("gather", "tma")


@pytest.mark.parametrize("operand", [Operand(), Operand(4, 8, 8)], ids=["channels-last", "contiguous"])
def test_the_workspace_of_a_weight_gradient_does_not_grow_with_its_rows(operand):
    """A row of 2^20 pixels takes no more parts than a picture."""
    device = DEVICES["NVIDIA H100 80GB HBM3"]
    for problem in (channelwise((1, 1024, 2**20), (4,)), channelwise((4, 64, 2**20), (63,), padding=31)):
        call = Call(problem, Pass.WGRAD, "bfloat16", "ieee", operand, operand, operand)
        for plan in candidates(call, device):
            if plan.family == "depthwise":
                assert depthwise.extra_bytes(call, plan) <= 2 * 4 * 1024 * math.prod(problem.weight_shape), plan


def test_the_geometry_of_an_axis():
    """3 taps, stride 2, padding 1: pixel 2i meets tap 1 of output i, pixel 2i + 1 taps 2 of i and 0 of i + 1."""
    problem = channelwise((1, 1, 9), (3,), stride=2, padding=1)
    assert depthwise.axis_of(problem, Pass.FPROP, 0) == (3, 2, 1, 0, 0, 1, 1)
    assert depthwise.axis_of(problem, Pass.DGRAD, 0) == (3, 2, 1, 1, 0, 1, 0)
    assert depthwise.axis_of(problem, Pass.FPROP, 0).window(4, False) == 9
    assert depthwise.axis_of(problem, Pass.DGRAD, 0).window(4, True) == 3


@pytest.mark.parametrize("which", [Pass.FPROP, Pass.DGRAD], ids=str)
def test_multiply_adds_are_those_that_the_kernels_unroll(which):
    """For every stride and dilation, with a factor in common or not: what meets in a trip by `tap_offsets`."""
    for kernel, stride, dilation in itertools.product(range(1, 5), repeat=3):
        call = Call(channelwise((1, 8, 40, 40), (kernel,) * 2, stride, 1, dilation), which, "float16")
        rows, columns = (depthwise.axis_of(call.problem, which, axis) for axis in (0, 1))
        unit, dgrad = stride if which == Pass.DGRAD else 1, which == Pass.DGRAD
        met = [
            sum(offset >= 0 for offset in tap_offsets(count, kernel, stride, dilation, axis.phase, axis.reach, dgrad))
            for count, axis in ((unit, rows), (4 * unit, columns))
        ]
        assert depthwise.work_of(call, 4 * unit, None).multiply_adds == math.prod(met), (kernel, stride, dilation)
        assert depthwise.work_of(call, 4 * unit, (1, kernel)).multiply_adds == met[1], (kernel, stride, dilation)


@pytest.mark.interpreter
def test_explain_says_how_a_depthwise_call_runs():
    case = CASES["3x3"]
    words = str(tritonconv.explain(tritonconv.conv2d, *case.tensors(), **case.arguments))
    assert "depthwise, multiply-adds in registers" in words and "every tap stays in registers" in words
    assert "partial sums of every tap, added in a fixed order" in words and "x is read along its rows" in words
