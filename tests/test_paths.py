"""Each way through the kernels is chosen where it should be, launched, right, and right when forced."""

import pytest
import torch
from cases import Case
from oracle import check

import tritonconv
from bench.launched import COUNTS
from costmodel.tiling import Plan


def explain(case: Case, **extra):
    x, w, b = case.tensors("cpu")
    return tritonconv.explain(getattr(tritonconv, case.function), x, w, b, **case.arguments, **extra)


POINTWISE = Case("conv2d", (2, 8, 5, 6), (4, 8, 1, 1))
PATCHES = Case("conv2d", (2, 3, 9, 10), (4, 3, 4, 4), stride=4)
PATCHES_3D = Case("conv3d", (1, 3, 4, 5, 9), (4, 3, 2, 2, 4), stride=(2, 2, 4))
STRIDED = Case("conv2d", (1, 4, 7, 8), (5, 4, 3, 3), stride=2, padding=1)
EMPTY_PHASES = Case("conv_transpose2d", (1, 4, 3, 4), (4, 3, 1, 1), stride=2, output_padding=1)
GROUPED = Case("conv2d", (2, 6, 6, 7), (4, 3, 3, 2), padding=1, groups=2, dtype="bfloat16")
PLAIN = Case("conv2d", (2, 16, 6, 7), (24, 16, 3, 3), padding=1)

POINTWISE_ROWS = Case("conv2d", (2, 8, 3, 16), (8, 8, 1, 1))
PADDED_ROWS = Case("conv2d", (2, 8, 3, 16), (8, 8, 3, 3), padding=(1, 2))

DEEP = Case("conv2d", (2, 40, 5, 6), (40, 20, 3, 3), padding=1, groups=2)
DEEP_STRIDED = Case("conv2d", (1, 40, 7, 8), (48, 40, 3, 1), stride=2, padding=(1, 0), dtype="bfloat16")
DEEP_TRANSPOSED = Case("conv_transpose3d", (1, 36, 2, 3, 2), (36, 5, 1, 2, 2), stride=(1, 2, 2), x="channels_last")
DEEP_POINTWISE = Case("conv1d", (2, 40, 9), (36, 40, 1))

STEM = Case("conv2d", (2, 3, 9, 10), (8, 3, 7, 5), stride=(1, 2), padding=3, dtype="float16")
STEM_SAME = Case("conv2d", (2, 2, 5, 6), (5, 2, 2, 4), padding="same", dilation=(2, 1), x="channels_last")
STEM_1D = Case("conv1d", (3, 1, 11), (5, 1, 9), stride=3, padding=7)
STEM_3D = Case("conv3d", (1, 5, 3, 4, 6), (6, 5, 2, 1, 3), padding=(1, 0, 1), dtype="bfloat16")
CROPPED_END = Case("conv_transpose2d", (2, 8, 3, 4), (8, 3, 4, 4), stride=3, padding=1, output_padding=2)


@pytest.mark.parametrize(
    "case, family, words",
    [
        (POINTWISE, "patch", "plain GEMM"),
        (PATCHES, "patch", "plain GEMM"),
        (PATCHES_3D, "patch", "plain GEMM"),
        (STRIDED, "gather", "4 stride phases in one launch"),
        (EMPTY_PHASES, "gather", "4 stride phases in one launch (3 without a tap)"),
        pytest.param(GROUPED, "gather", "implicit GEMM", marks=pytest.mark.interpreter),  # a GPU's plan for dx is depthwise
        (PLAIN, "gather", "implicit GEMM"),
    ],
    ids=lambda value: None if isinstance(value, Case) else str(value).replace(" ", "-"),
)
def test_the_path_is_chosen_said_and_right(case, family, words, device, launched):
    explanation = explain(case)
    assert {plan.family for plan in explanation.plans.values()} == {family}
    assert words in str(explanation)
    check(case, device)
    assert set(launched()) >= {"fprop", "dgrad", "wgrad"}


FORCED = [
    (PLAIN, "fprop:gather:32x32x64:w4:s4"),
    (PLAIN, "fprop:gather:128x256x32:w8:s3"),
    (PLAIN, "fprop:gather:64x64x32:w4:s4:group1:pack-a:pack-b"),
    (PLAIN, "dgrad:gather:64x32x64:w4:s4:pack-b"),
    (PLAIN, "wgrad:gather:32x32x64:w4:s4:split2"),
    (PLAIN, "wgrad:gather:16x16x64:w4:s4:split3:step2x1x4x8:pack-a"),
    (STRIDED, "dgrad:gather:16x16x16:w4:s3"),
    (POINTWISE, "fprop:gather:64x32x64:w4:s4"),
    (POINTWISE, "wgrad:patch:16x16x64:w4:s4:split2"),
    (PATCHES, "fprop:gather:32x32x64:w4:s4"),
    (PATCHES, "dgrad:gather:32x32x64:w4:s4"),
    (PATCHES, "wgrad:gather:16x16x64:w4:s4"),
    (PATCHES_3D, "dgrad:patch:16x16x16:w4:s3:pack-a"),
    (EMPTY_PHASES, "dgrad:gather:16x16x16:w4:s3"),
    (PLAIN, "fprop:gather:32x32x32:w4:s4:x3"),
    (PLAIN, "wgrad:gather:32x32x32:w4:s4:x3"),
    (POINTWISE_ROWS, "fprop:patch:64x16x16:w4:s4"),
    (POINTWISE_ROWS, "dgrad:patch:64x16x16:w4:s4"),
    (PADDED_ROWS, "dgrad:gather:64x16x16:w4:s4"),
    (DEEP, "fprop:gather:64x32x16:w4:s4:split2"),
    (DEEP, "dgrad:gather:64x32x16:w4:s4:split2"),
    (DEEP_STRIDED, "fprop:gather:16x64x16:w4:s4:split3"),
    (DEEP_STRIDED, "dgrad:gather:16x64x16:w4:s4:split3"),
    (DEEP_TRANSPOSED, "dgrad:patch:16x64x16:w4:s4:split3"),
    (DEEP_TRANSPOSED, "dgrad:gather:16x16x16:w4:s4:split2"),
    (DEEP_POINTWISE, "fprop:patch:32x64x16:w4:s4:split3"),
    (DEEP_POINTWISE, "dgrad:patch:32x64x16:w4:s4:split3:pack-b"),
    (STEM, "fprop:gather:64x16x32:w4:s4:fold"),
    (STEM, "fprop:gather:64x16x16:w4:s4:fold:split2"),
    (STEM, "wgrad:gather:16x32x64:w4:s4:fold"),
    (STEM, "wgrad:gather:16x16x16:w4:s4:split2:fold:pack-a"),
    (STEM_SAME, "fprop:gather:64x16x32:w4:s4:fold"),
    (STEM_SAME, "wgrad:gather:16x32x64:w4:s4:fold"),
    (STEM_1D, "fprop:gather:32x16x16:w4:s4:fold"),
    (STEM_1D, "wgrad:gather:16x16x32:w4:s4:fold"),
    (STEM_3D, "fprop:gather:32x16x32:w4:s4:fold"),
    (CROPPED_END, "wgrad:gather:16x16x64:w4:s4:fold"),
]


@pytest.mark.parametrize("case, text", FORCED, ids=lambda value: None if isinstance(value, Case) else value)
def test_a_forced_plan_is_taken_and_right(case, text, device, launched):
    plan = Plan.parse(text)
    taken = explain(case, plan=plan).plans[str(plan.which)]
    assert set(text.split(":")) <= set(str(taken).split(":")) and "forced by plan=" in str(explain(case, plan=plan))
    check(case, device, plan=plan)
    assert ("reduce" in launched()) == (plan.split > 1 or any(p.split > 1 for p in explain(case).plans.values()))


def test_several_plans_are_forced_at_once(device):
    both = [Plan.parse("fprop:gather:64x64x32:w4:s4"), Plan.parse("wgrad:gather:32x32x64:w4:s4:split2")]
    plans = explain(PLAIN, plan=both).plans
    assert str(plans["fprop"]) == str(both[0]) and plans["wgrad"].split == 2
    check(PLAIN, device, plan=both)


@pytest.mark.parametrize(
    "text, message",
    [
        ("fprop:patch:64x64x32:w4:s4", "patch"),
        ("fprop:gather:64x48x32:w4:s4", "block_n"),
        ("fprop:gather:256x256x128:w8:s4", "shared memory"),
        ("fprop:gather:64x64x32:w4:s4:split2", "1 blocks of the reduction cannot be split 2 ways"),
        ("fprop:winograd:64x64x32:w4:s4", "winograd"),
        ("fprop:gather:64x64x32:w4:s4:fold", "fold is for"),
        ("fprop:gather:64x64x32:w4:s4:merge0", "merge"),
        ("fprop:gather:64x64x32:w4:s4:rows2", "'gather' knows no rows, got 2"),
        ("fprop:patch:64x64x32:w4:s4:taps1x2", "'patch' knows no taps"),
    ],
)
def test_a_plan_that_does_not_serve_the_call_is_refused(text, message, device):
    x, w, _ = PLAIN.tensors(device)
    before = COUNTS.total()
    with pytest.raises(ValueError, match=message):
        tritonconv.conv2d(x, w, padding=1, plan=Plan.parse(text))
    assert COUNTS.total() == before


def test_explain_takes_no_other_function():
    for function in (torch.nn.functional.linear, "conv2d", [3]):
        with pytest.raises(TypeError, match="six functions"):
            tritonconv.explain(function, torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1))


def test_explain_raises_what_the_call_raises():
    with pytest.raises(RuntimeError, match="channels"):
        tritonconv.explain(tritonconv.conv2d, torch.ones(1, 3, 4, 4), torch.ones(2, 4, 1, 1))


def test_split_partial_sums_give_the_same_bits_every_time(device):
    x, w, _ = PLAIN.tensors(device)
    plan = Plan.parse("wgrad:gather:32x32x64:w4:s4:split2")
    runs = []
    for _ in range(3):
        leaf = w.clone().requires_grad_()
        y = tritonconv.conv2d(x, leaf, padding=1, plan=plan)
        y.backward(torch.ones_like(y))
        runs.append(leaf.grad)
    assert all(torch.equal(runs[0], other) for other in runs[1:])


@pytest.mark.parametrize("layout", ["every second element", "one element for all"])
@pytest.mark.parametrize("case", [PLAIN, EMPTY_PHASES, POINTWISE], ids=["gather", "phases", "patch"])
def test_a_bias_may_have_any_stride(case, layout, device):
    x, w, b = case.tensors(device)
    bias = b.repeat_interleave(2)[::2] if layout == "every second element" else b[:1].expand(b.shape)
    function = getattr(tritonconv, case.function)
    assert bias.stride() != (1,)
    got, want = (function(x, w, t, **case.arguments) for t in (bias, bias.contiguous()))
    assert torch.equal(got, want)


@pytest.mark.parametrize("name", ["conv2d", "conv2d_fused"])
def test_explain_plans_for_what_autocast_casts_to(name, device):
    function = getattr(tritonconv, name)
    x, w, b = (t.to(device, torch.float32) for t in PLAIN.tensors())
    with torch.autocast(device, dtype=torch.bfloat16):
        cast, wide = tritonconv.explain(function, x, w, b), tritonconv.explain(function, x.double(), w.double(), b.double())
    assert str(cast) == str(tritonconv.explain(function, x.bfloat16(), w.bfloat16(), b.bfloat16()))
    assert "bfloat16" in str(cast) and "float64" in str(wide) and "float32" in str(tritonconv.explain(function, x, w, b))


def test_explain_says_how_products_of_float32_are_made():
    """All of what explains itself: torch's six, the pair and the causal convolution of video."""
    x, w = torch.ones(1, 4, 6, 6), torch.ones(4, 4, 3, 3)
    pair = (torch.ones(4, 1, 3, 3), torch.ones(8, 4, 1, 1))
    calls = [
        (tritonconv.conv2d, (x, w)),
        (tritonconv.depthwise_separable_conv2d, (x, *pair)),
        (tritonconv.causal_conv3d, (torch.ones(1, 2, 2, 4, 4), torch.ones(2, 2, 1, 3, 3))),
    ]
    for precision in ("tf32", "ieee"):
        before, torch.backends.cudnn.conv.fp32_precision = torch.backends.cudnn.conv.fp32_precision, precision
        try:
            said = [str(tritonconv.explain(function, *args)).splitlines()[0] for function, args in calls]
        finally:
            torch.backends.cudnn.conv.fp32_precision = before
        assert all(line.endswith(f"float32, {precision}") for line in said)
    half = tritonconv.explain(tritonconv.conv2d, x.half(), w.half())
    assert str(half).splitlines()[0].endswith("float16")
