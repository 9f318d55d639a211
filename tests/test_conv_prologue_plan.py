"""The plan of a convolution with a prologue: together or apart, what `explain`, a trace and a launch say of it."""

import pytest
import torch

import costmodel
import tritonconv
from costmodel import ahead
from costmodel.device import find_device
from costmodel.plan import candidates
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Call, Plan
from tritonconv import launch
from tritonconv.ahead.launch import described, ways
from tritonconv.describe import describe
from tritonconv.normalize.launch import Values

H200 = find_device("h200")


def meta(*shape, last=True, dtype=torch.bfloat16):
    made = torch.empty(shape, dtype=dtype, device="meta")
    return made.to(memory_format=torch.channels_last) if last else made


def explained(filters, kernel, **given):
    x, w = meta(1, 256, 64, 64), meta(filters, 256 // given.get("groups", 1), kernel, kernel)
    values = torch.empty(2, 1, 256, device="meta")
    prologue = tritonconv.Prologue(*values, None, "silu")
    return tritonconv.explain(tritonconv.conv2d_fused, x, w, prologue=prologue, device=H200, **given)


def test_the_quicker_way_is_taken_and_both_are_told():
    """A pointwise layer of few filters normalises each pixel once; 3x3 taps of many filters do so 18 times and more."""
    few, many = explained(64, 1), explained(512, 3, padding=1)
    assert ahead.is_together(few.plans["fprop"]) and not ahead.is_together(many.plans["fprop"])
    assert "applied while pixels are gathered" in few.words and "by a kernel of its own it would take" in few.words
    assert "by a kernel of its own first" in many.words and "for each tap and block of filters it would take" in many.words
    cases = ((few, "patch", (64, 1)), (many, "padded", (512, 3)))
    for found, way, layer in cases:
        other = explained(*layer, padding=layer[1] // 2, plan=f"fprop:{way}")
        assert other.predictions["fprop"].seconds > found.predictions["fprop"].seconds
        assert ahead.is_together(other.plans["fprop"]) == (way == "padded")


def test_the_plan_is_the_quickest_of_all_candidates():
    found = explained(64, 1)
    problem, prologue = found.problem, described(Values(torch.empty(1, 1, 256), None, None, "silu"))
    lie = [(shape, shape_strides(shape)) for shape in (problem.input_shape, problem.weight_shape, problem.output_shape)]
    both = ways(problem, "bfloat16", "ieee", *lie, "", (True, True), prologue)
    plans = [plan for call in both for plan in candidates(call, H200)]
    least = min(plans, key=lambda plan: ahead.predict(both, plan, H200).seconds)
    assert ahead.quickest(both, H200)[0] == least and len({ahead.is_together(plan) for plan in plans}) == 2


def shape_strides(shape):
    return torch.empty(shape, device="meta").to(memory_format=torch.channels_last).stride()


@pytest.mark.parametrize("size, bits", [(40000, 32), (60000, 64)])
def test_values_per_pixel_of_an_expanded_image_are_reached(size, bits):
    """All pixels of x are one pixel in memory, so that 32 bits reach it, but rstd has a value for each."""
    problem = ConvProblem.conv((1, 16, size, size), (16, 16, 1, 1), (2, 2), (0, 0), (1, 1))
    x, w, y = ((shape, shape_strides(shape)) for shape in (problem.input_shape, problem.weight_shape, problem.output_shape))
    x, y = (x[0], (16, 1, 0, 0)), (y[0], (16, 1, 0, 0))
    call = Call(
        problem, Pass.FPROP, "float16", "ieee", *describe(problem, Pass.FPROP, x, w, y), prologue=ahead.Prologue(rstd=True)
    )
    made = launch.prepare(Plan.parse("fprop:padded:64x16x16:w4:s3:together"), call, x, w, y, None)
    assert made.main.constants["INDEX"].primitive_bitwidth == bits


def test_what_cannot_be_applied_together_says_so():
    """Narrow groups and values per frame; and gradients, where they are recorded."""
    words = explained(256, 3, padding=1, groups=256).words
    assert "cannot be applied while pixels are gathered: its groups have one channel or one filter" in words
    words = explained(256, 3, padding=1, groups=256, padding_mode="reflect").words
    assert "written out" in words and "cannot be applied while pixels are gathered: its groups have one channel" in words
    x, w = torch.empty(1, 8, 3, 4, 4, device="meta"), torch.empty(8, 8, 1, 1, 1, device="meta")
    prologue = tritonconv.Prologue(torch.empty(1, 3, 8, device="meta"))
    call = (tritonconv.conv3d_fused, x, w)
    assert "its values differ from frame to frame" in tritonconv.explain(*call, prologue=prologue, device=H200).words
    recorded = tritonconv.explain(*call[:2], w.requires_grad_(), prologue=prologue, device=H200)
    assert "because gradients are recorded" in recorded.words


def test_a_model_and_a_trace_know_the_prologue(device):
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(64, 32, 1)

        def forward(self, x):
            prologue = tritonconv.group_norm_prologue(x, 8, activation="silu")
            return tritonconv.conv2d_fused(x, self.conv.weight, self.conv.bias, prologue=prologue)

    block = Block().requires_grad_(False)
    (row,) = [row for row in costmodel.trace(block, (1, 64, 32, 32)).on("h200", "bfloat16").rows if row.plan]
    assert row.plan.endswith(":together") and row.layer.call == ahead.Prologue("silu", True, True, False, 128)
    with torch.no_grad():
        found = tritonconv.explain(block, (1, 64, 32, 32), device="h200")
    assert "(scale, shift, silu)" in found.calls[-1].explanation.words
