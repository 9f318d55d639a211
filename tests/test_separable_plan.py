"""Whether one kernel or two: what the cost model says of pairs, and what `explain` and `bench` make of it."""

from dataclasses import replace

import pytest
import torch
from standin import StandIn

import tritonconv
from bench import separable as bench
from bench.chains.run import measure
from bench.chains.separable import chain_of
from bench.separable import LAYERS, Layer
from costmodel import separable as model
from costmodel.device import find_device
from costmodel.problem import Pass
from costmodel.tiling import Plan

H100 = find_device("h100")
EARLY, LATE = LAYERS[2], LAYERS[11]  # 144 x 56x56 -> 24, where memory binds, and 960 x 7x7 -> 320


def test_counts_by_hand():
    pair = Layer("", 8, 10, 6, 3, 2, batch=2).pair
    assert pair.depthwise.output_size == (5, 5)
    assert pair.flops == 2 * 2 * 25 * 8 * (9 + 6)
    assert pair.between(2) == 2 * 2 * 8 * 25
    assert pair.bytes(2) == 2 * (2 * 8 * 100 + 8 * 9 + 6 * 8 + 2 * 6 * 25)


def test_a_plan_covers_the_result():
    pair = Layer("", 8, 10, 70, batch=3).pair
    plan = Plan.parse("fprop:separable:32x64x16:w4:s1:step1x1x4x2")
    assert model.grid(pair, plan) == (12, 2)  # 3 * 3 * 5 strips, four to a tile
    assert model.window(pair, (4, 2)) == (6, 4)


def test_what_a_strip_meets():
    """Rows 0 2 4 and 1 3 5 of two outputs one apart; 0 and 3 of one output."""
    problem = Layer("", 8, 10, 6).pair.depthwise
    assert model.met_of(problem, 0, 2) == {0, 1, 2, 3}
    wide = replace(problem, stride=(5, 1), dilation=(1, 3))
    assert model.met_of(wide, 0, 2) == {0, 1, 2, 5, 6, 7} and model.met_of(wide, 1, 1) == {0, 3, 6}


def test_one_kernel_where_memory_binds_and_two_where_little_moves():
    assert model.select(EARLY.call(), H100) is not None
    assert model.select(LATE.call(), H100) is None
    assert model.select(LATE.call(), H100, True) is not None


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_the_choice_is_the_least_predicted_time(layer):
    call = layer.call()
    chosen, best = model.select(call, H100), model.select(call, H100, True)
    times = {plan: model.predict(call, plan, H100).seconds for plan in model.candidates(call, H100)}
    assert times[best] == min(times.values())
    two = sum(one.seconds for one in model.apart(call, H100))
    assert chosen == (best if times[best] < two else None)


def test_the_aim_where_memory_binds():
    """By prediction 1.5 times as fast as two kernels at stride 1 on large images of many channels, and never slower there."""
    ratios = [two / one for two, one, _ in (bench.predicted(layer, H100) for layer in LAYERS[:6])]
    assert min(ratios) > 1.2 and min(ratios[2], ratios[4]) > 1.5


def test_what_is_made_again_is_counted():
    """Twice as many filters as a block holds: the depthwise part is done twice, and x comes twice where L2 has no room."""
    plan = Plan.parse("fprop:separable:64x64x64:w4:s1:step1x1x4x2:pack-b")
    one, two = (replace(EARLY, filters=n) for n in (64, 128))
    once, twice = (model.predict(layer.call(), plan, H100) for layer in (one, two))
    assert twice.tiles == 2 * once.tiles
    x = 2 * EARLY.batch * 144 * 56 * 56
    assert twice.bytes - once.bytes == x + 2 * 64 * (EARLY.batch * 56 * 56 + 144)
    small = replace(two, batch=4)
    assert model.predict(small.call(), plan, H100).bytes == small.pair.bytes(2) + 2 * 2 * 144 * 9


def test_contiguous_tensors_take_two_kernels():
    call = EARLY.call(channels_last=False)
    assert call.x.unit == 4 and model.select(call, H100) is None
    assert model.select(call, H100, True) is not None  # where it is asked for


def test_explain_of_what_one_kernel_is_not_for(monkeypatch):
    monkeypatch.setattr("tritonconv.separable.explain.device_model", lambda index: H100)
    x, w1, w2 = arguments()[0]
    assert "one kernel is for channels-last tensors" in str(
        tritonconv.explain(tritonconv.depthwise_separable_conv2d, x, w1, w2)
    )
    x, w1 = x.to(memory_format=torch.channels_last), torch.randn(8, 1, 11, 11)
    found = tritonconv.explain(tritonconv.depthwise_separable_conv2d, x, w1, w2, padding=5)
    assert "no tile of the menu has room" in str(found) and "two kernels run (NVIDIA H100" in str(found)


def test_a_filter_without_a_tile():
    """11x11: two kernels; where one is asked for, strips of a single pixel, and beyond the window's bits an error."""
    layer = replace(EARLY, kernel=11)
    assert model.candidates(layer.call(), H100) == [] and model.select(layer.call(), H100) is None
    plan = model.select(layer.call(), H100, True)
    assert plan.step == (1, 1, 1, 1) and not model.refusal(layer.call(), plan, H100)
    with pytest.raises(RuntimeError, match="window must have at most 32 rows and columns"):
        model.select(replace(EARLY, kernel=33).call(), H100, True)


def test_two_calls_are_those_of_the_fused_functions():
    first, second = EARLY.call().apart()
    assert first.which == second.which == Pass.FPROP
    assert first.epilogue == "channels" and second.epilogue == "" and first.out == second.a
    assert first.problem == EARLY.pair.depthwise and second.problem.input_shape == first.problem.output_shape


def arguments(**window):
    return (torch.randn(2, 8, 9, 9), torch.randn(8, 1, 3, 3), torch.randn(6, 8, 1, 1)), window


def test_explain_says_which_and_why():
    given, window = arguments(padding=1, activation="relu6")
    explain = tritonconv.explain
    words = {}
    for plan in (None, "fused", "apart", Plan.parse("fprop:separable:64x32x16:w4:s1:step1x1x4x2")):
        found = explain(tritonconv.depthwise_separable_conv2d, *given, **window, plan=plan)
        words[str(plan)] = str(found)
        assert found.problem.groups == 8 and set(found.plans) == set(found.predictions)
        assert set(found.plans) == ({"depthwise", "pointwise"} if plan == "apart" else {"separable"})
    assert "two kernels run, forced by plan=" in words["apart"] and "stay on the chip" in words["apart"]
    assert "one kernel runs, forced by plan=" in words["fused"] and "one kernel runs (" in words["None"]
    assert "64 pixels x 32 filters, 16 channels at a time" in words["fprop:separable:64x32x16:w4:s1:step1x1x4x2"]
    with pytest.raises(RuntimeError, match="pointwise_weight"):
        explain(tritonconv.depthwise_separable_conv2d, given[0], given[1], given[1])
    nothing = explain(tritonconv.depthwise_separable_conv2d, given[0][:0], *given[1:])
    assert "no kernel is launched" in str(nothing) and not nothing.plans


@pytest.mark.parametrize("layer", [Layer("Small", 8, 6, 5, batch=1), Layer("Small", 4, 7, 6, 5, 2, batch=1)])
def test_every_way_to_compute_a_pair_is_checked_and_timed(layer: Layer, launched) -> None:
    rows = measure(chain_of(layer, torch.float32, H100), False, StandIn((5e-5, 4e-5, 1e-5, 2e-5)))
    assert [row.way for row in rows] == ["torch", "torch contiguous", "tritonconv", "tritonconv apart", "copy"]
    assert all(row.ok for row in rows), [row.note for row in rows]
    assert [row.median_us for row in rows[:4]] == pytest.approx([50, 40, 10, 20])
    assert [row.predicted_us is None for row in rows] == [True, True, False, False, True]
