"""Chosen plans held against their candidates by counts of executed code, and what that taught the cost model."""

from dataclasses import replace

import pytest

from bench.compiled import regret
from bench.compiled.counted_time import Counts, Timed, timed, trips
from bench.compiled.regret import ChoiceRow, Regret
from bench.providers.ours import call_of
from bench.work import Work
from costmodel.device import DEVICES
from costmodel.families.depthwise import DepthwisePlan, shape_of, tile_of, work_of
from costmodel.families.depthwise_lines import touched_lines
from costmodel.families.gemm import GatherPlan
from costmodel.families.matrix import scattered_lines
from costmodel.plan import predict, select
from costmodel.problem import ConvProblem, Pass
from costmodel.reports.notation import parse
from costmodel.tiling import Plan

H200 = DEVICES["NVIDIA H200"]
VIT = ConvProblem.conv((32, 3, 224, 224), (768, 3, 16, 16), (16, 16), (0, 0), (1, 1))


def work(problem, which=Pass.FPROP, dtype="float16", layout="channels_last"):
    return Work(problem, which, dtype, "ieee", layout)


def row(problem, plan, **counts):
    given = dict(instructions=1.0, lines=0.0, wavefronts=0.0) | counts
    kernel = dict(kernel="fprop_kernel", triton="", source="")
    return ChoiceRow("a/layer", H200.name, "fprop", str(problem), plan, **given, **kernel)


def test_regret_is_over_the_least_counted_time():
    plans = (Timed("a", 1e-6, 3e-6, "cache lines"), Timed("b", 2e-6, 2e-6, "arithmetic"))
    found = Regret("layer", "fprop", plans[0], plans)
    assert found.best is plans[1] and found.ratio == 1.5


@pytest.mark.parametrize(
    ("counts", "bound"),
    [
        ({"instructions": 1e6}, "instruction issue"),
        ({"lines": 1e6}, "cache lines"),
        ({"wavefronts": 1e6}, "shared memory"),
        ({}, "arithmetic"),
    ],
)
def test_the_largest_count_sets_a_programs_clocks(counts, bound):
    of = work(ConvProblem.conv((32, 256, 56, 56), (256, 256, 3, 3), (1, 1), (1, 1), (1, 1)))
    plan = str(select(call_of(of), H200))
    found, least = (regret.timed_row(row(of.problem, plan, **given), of) for given in (counts, {}))
    assert found.bound == bound
    assert found.counted == least.counted if bound == "arithmetic" else found.counted > least.counted
    assert found.predicted == predict(call_of(of), select(call_of(of), H200), H200).seconds


def test_counts_double_the_time_where_they_bind():
    of = work(ConvProblem.conv((256, 256, 56, 56), (256, 256, 3, 3), (1, 1), (1, 1), (1, 1)))
    plan = str(select(call_of(of), H200))
    once, twice = (regret.timed_row(row(of.problem, plan, lines=lines), of).counted for lines in (1e6, 2e6))
    assert twice == pytest.approx(2 * once, rel=0.01)


@pytest.mark.parametrize(
    ("problem", "which"),
    [
        (ConvProblem.conv((256, 256, 14, 14), (256, 256, 3, 3), (1, 1), (1, 1), (1, 1)), Pass.WGRAD),
        (ConvProblem.conv((256, 96, 56, 56), (96, 1, 3, 3), (1, 1), (1, 1), (1, 1), 96), Pass.FPROP),
        (ConvProblem.conv((256, 96, 56, 56), (96, 1, 3, 3), (1, 1), (1, 1), (1, 1), 96), Pass.WGRAD),
    ],
)
def test_counts_of_a_shorter_loop_are_scaled_to_the_layers(problem, which):
    call = call_of(work(problem, which))
    plan = select(call, H200)
    whole = trips(problem, plan)
    once = timed(call, plan, Counts(8e6, 0.0, 0.0, whole), H200)
    half = timed(call, plan, Counts(4e6, 0.0, 0.0, whole / 2), H200)
    assert half.counted == pytest.approx(once.counted) and once.bound in ("instruction issue", "latency")
    assert timed(call, plan, Counts(8e6, 0.0, 0.0, whole / 2), H200).counted > 1.9 * once.counted


def test_lines_and_wavefronts_bind_a_depthwise_kernel_too():
    problem = ConvProblem.conv((256, 96, 56, 56), (96, 1, 3, 3), (1, 1), (1, 1), (1, 1), 96)
    call = call_of(work(problem))
    plan = select(call, H200)
    least = timed(call, plan, Counts(1.0, 0.0, 0.0, trips(problem, plan)), H200)
    for counts, bound in ((Counts(1.0, 1e5, 0.0, 0.0), "cache lines"), (Counts(1.0, 0.0, 1e5, 0.0), "shared memory")):
        bounded = timed(call, plan, counts, H200)
        assert bounded.bound == bound and bounded.counted > 2 * least.counted


def test_what_comes_before_and_after_the_loop_is_left_out():
    short, long = (Counts(100.0 + 10 * n, 5.0 + n, 2.0, n) for n in (4, 12))
    assert long.beyond(short) == Counts(80.0, 8.0, 0.0, 8)
    assert long.beyond(short).at(4) == Counts(40.0, 4.0, 0.0, 4)


def test_the_page_is_made_from_the_rows():
    rows = regret.rows()
    assert rows and regret.PAGE.read_text("utf-8") == regret.page(rows), "python -m bench validate --choice renews it"


def test_patches_of_an_odd_number_of_channels_touch_a_line_per_element():
    """Counted: up to one line per element, 8,355 lines in a trip of 128x128x64, which takes 512 clocks of arithmetic."""
    plan = GatherPlan.parse("fprop:patch:128x128x64:w8:s3")
    assert scattered_lines(call_of(work(VIT)), plan) == (0.75, 0)  # neighbouring patches are 96 bytes apart
    assert scattered_lines(call_of(work(replace(VIT, kernel_size=(32, 32), stride=(32, 32)))), plan) == (1, 0)
    wide = replace(VIT, in_channels=8)
    assert scattered_lines(call_of(work(wide)), plan) == (0, 0)
    assert scattered_lines(call_of(work(VIT, layout="contiguous")), plan) == (0, 0)
    assert scattered_lines(call_of(work(VIT)), GatherPlan.parse("fprop:gather:128x128x64:w8:s3")) == (0, 0)


@pytest.mark.parametrize(("which", "lines"), [(Pass.FPROP, 1.0), (Pass.DGRAD, 9 * 2 / 128)])
def test_contiguous_weights_touch_a_line_per_filter(which, lines):
    """Counted for 64x64x32 of 20 channels, 3x3: 1,319 lines in a trip of fprop for 2,048 weights, of which 1,280 exist."""
    of = call_of(work(ConvProblem.conv((2, 20, 32, 32), (64, 20, 3, 3), (1, 1), (1, 1), (1, 1)), which, layout="contiguous"))
    assert scattered_lines(of, GatherPlan.parse(f"{which}:gather:64x64x32:w4:s4")) == (0, lines)
    assert scattered_lines(of, GatherPlan.parse(f"{which}:gather:64x64x32:w4:s4:pack-b")) == (0, 0)


@pytest.mark.parametrize(
    ("stride", "plan", "lines"),
    [
        # Counted per trip: 4,369 lines for 128 x 32 elements, 1,094 for 64 x 32 and 596 for 32 x 32, of which 64 are of dy.
        (8, "wgrad:gather:64x128x32:w4:s4", 1.0),
        (8, "wgrad:gather:64x64x32:w4:s4", 0.5),
        (2, "wgrad:gather:64x32x32:w4:s4", 0.5),
        (1, "wgrad:gather:64x64x32:w4:s4", 0.0),
        (8, "wgrad:gather:64x64x32:w4:s4:pack-b", 0.0),
        (8, "wgrad:tma:64x64x32:w4:s4:pack-b", 0.0),
    ],
)
def test_strided_rows_of_a_weight_gradient_touch_a_line_per_channel(stride, plan, lines):
    line = ConvProblem.conv((1, 128, 8192), (128, 128, 8), (stride,), (4,), (1,))
    assert scattered_lines(call_of(work(line, Pass.WGRAD, layout="contiguous")), Plan.parse(plan)) == (0, lines)


def test_a_patch_embedding_takes_folded_columns():
    """By counts the fold takes a quarter of the patch kernel's time, which the estimate without lines did not see."""
    assert select(call_of(work(VIT)), H200).fold
    patch = GatherPlan.parse("fprop:patch:128x128x64:w8:s3")
    assert predict(call_of(work(VIT)), patch, H200).bound == "cache lines"


@pytest.mark.parametrize(
    ("problem", "plan", "layout", "lines"),
    [
        # Counted: 55,018 lines in 288 trips. Each of 32 lanes reads 6 pixels, 4 pixels of 64 bytes away from its neighbour's.
        ("conv3d n2 c1 128x128x128 -> 32 k3x3x3 p1,1,1", "dgrad:depthwise:4x1x32:w1:s3:taps1x3", "channels_last", 192),
        # Counted: 3,103 in 8 trips. 32 column tiles store 8 pixels of 32 bytes each, two channels per lane; x has one channel.
        ("conv2d n16 c1 48x480 -> 16 k3x3 p1,1", "fprop:depthwise:8x2x32:w1:s3:rows6", "channels_last", 256),
        # Counted: 1,013.8 in 34 trips. A warp has the 64 neighbouring channels of a pixel: a line.
        ("conv2d n64 c384 64x64 -> 384 k3x3 p1,1 g384", "fprop:depthwise:8x64x1:w1:s3:rows32", "channels_last", 18),
        ("conv2d n64 c384 64x64 -> 384 k3x3 p1,1 g384", "fprop:depthwise:8x4x16:w1:s3:rows32", "contiguous", 0),
    ],
)
def test_lanes_that_are_no_neighbours_touch_a_line_each(problem, plan, layout, lines):
    parsed = DepthwisePlan.parse(plan)
    call = call_of(work(parse(problem).problem, parsed.which, layout=layout))
    tile = tile_of(parsed)
    assert touched_lines(call, shape_of(call.problem, call.which), tile, work_of(call, tile.columns, tile.taps)) == lines


def test_one_channel_in_32_columns_is_left_to_a_matrix_product():
    """By counts the depthwise kernel takes eight times what its instructions take, since every lane reads a line of its own."""
    first = parse("conv3d n2 c1 128x128x128 -> 32 k3x3x3 p1,1,1").problem
    call = call_of(work(first, Pass.DGRAD))
    assert isinstance(select(call, H200), GatherPlan)
    forced = DepthwisePlan.parse("dgrad:depthwise:4x1x32:w1:s3:taps1x3:pack-b")
    assert predict(call, forced, H200).bound == "cache lines"
