"""Chosen plans held against their candidates by counts of executed code, and what that taught the cost model."""

from dataclasses import replace

import pytest

from bench.compiled import regret
from bench.compiled.regret import ChoiceRow, Regret, Timed
from bench.providers.ours import call_of
from bench.work import Work
from costmodel.device import DEVICES
from costmodel.families.gemm import GatherPlan
from costmodel.families.matrix import scattered_lines
from costmodel.plan import predict, select
from costmodel.problem import ConvProblem, Pass

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
    found, least = (regret.timed(row(of.problem, plan, **given), of) for given in (counts, {}))
    assert found.bound == bound
    assert found.counted == least.counted if bound == "arithmetic" else found.counted > least.counted
    assert found.predicted == predict(call_of(of), select(call_of(of), H200), H200).seconds


def test_counts_double_the_time_where_they_bind():
    of = work(ConvProblem.conv((256, 256, 56, 56), (256, 256, 3, 3), (1, 1), (1, 1), (1, 1)))
    plan = str(select(call_of(of), H200))
    once, twice = (regret.timed(row(of.problem, plan, lines=lines), of).counted for lines in (1e6, 2e6))
    assert twice == pytest.approx(2 * once, rel=0.01)


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


def test_a_patch_embedding_takes_folded_columns():
    """By counts the fold takes a quarter of the patch kernel's time, which the estimate without lines did not see."""
    assert select(call_of(work(VIT)), H200).fold
    patch = GatherPlan.parse("fprop:patch:128x128x64:w8:s3")
    assert predict(call_of(work(VIT)), patch, H200).bound == "cache lines"
