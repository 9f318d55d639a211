"""What a deformable convolution counts, which plan it takes, and what `explain` says of it."""

from dataclasses import replace

import pytest
import sympy
import torch

import costmodel
import tritonconv
from bench.deform import GPU, LAYERS, predicted
from costmodel import deform as model
from costmodel import deform_backward
from costmodel.deform import Deformation, DeformCall
from costmodel.device import find_device
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Plan

H200 = find_device("h200")
#: 2 images of 6 channels, 5 x 6 pixels; 4 filters of 3 x 2 in 2 groups; 3 offset groups; output 3 x 5.
SMALL = Deformation(ConvProblem.conv((2, 6, 5, 6), (4, 3, 3, 2), (1, 1), (0, 0), (1, 1), 2), 3, True)


def test_what_is_counted_by_hand():
    assert SMALL.offset_shape == (2, 36, 3, 5) and SMALL.mask_shape == (2, 18, 3, 5)
    assert SMALL.run == 1  # groups of 3 channels and of 2
    places, macs = 2 * 15 * 6 * 3, 2 * 15 * 4 * 3 * 6
    assert (SMALL.places, SMALL.samples, SMALL.macs) == (places, 2 * places, macs)
    assert SMALL.flops == 2 * macs + 7 * 2 * places
    tensors = 2 * 6 * 30 + 2 * 36 * 15 + 2 * 18 * 15 + 4 * 3 * 6 + 2 * 4 * 15
    assert model.compulsory(SMALL, 2) == 2 * tensors
    assert model.compulsory(replace(SMALL, masked=False), 2) == 2 * (tensors - 2 * 18 * 15)
    assert model.column_bytes(SMALL, 4) == 2 * 4 * 2 * places
    each = {"inputs": 8, "places": 8, "weights": 7}
    for asked in (("inputs",), ("places",), ("weights",), ("inputs", "places"), ("inputs", "places", "weights")):
        flops = deform_backward.flops(SMALL, *(name in asked for name in ("inputs", "places", "weights")))
        count = len({"inputs" if name == "places" else name for name in asked})  # products: inputs and places share one
        assert flops == 2 * macs * count + 2 * places * sum(each[name] for name in asked)


def test_the_formula_is_the_same_in_symbols():
    n, c, h, w, k = sympy.symbols("n c h w k", positive=True, integer=True)
    problem = ConvProblem.conv((n, c, h, w), (k, c, 3, 3), (1, 1), (1, 1), (1, 1))
    of = Deformation(problem, 1, True)
    assert sympy.expand(of.flops - (2 * n * k * h * w * c * 9 + 7 * n * h * w * 9 * c)) == 0
    at = {n: 2, c: 256, h: 50, w: 76, k: 256}
    assert of.flops.subs(at) == LAYERS[1].deformation.flops


def test_the_workspace_by_hand():
    """Columns in float32, and of four pixels a place two numbers, a position of 64 bits and a weight."""
    places = SMALL.places // 2
    assert deform_backward.workspace(SMALL, 2) == 2 * places * 4 + 4 * places * (4 + 4 + 8 + 4)
    assert deform_backward.workspace(SMALL, 8) == 2 * places * 8 + 4 * places * (4 + 4 + 8 + 8)
    assert deform_backward.images_at_a_time(SMALL, 2) == 2
    large = replace(SMALL, problem=ConvProblem.conv((8, 256, 200, 304), (256, 256, 3, 3), (1, 1), (1, 1), (1, 1)))
    large = replace(large, offset_groups=1)
    assert deform_backward.images_at_a_time(large, 2) == 1


@pytest.mark.parametrize("name", GPU.values())
def test_every_device_has_a_plan_for_every_arithmetic(name):
    device = find_device(name)
    for layer in (*LAYERS, replace(LAYERS[0], channels=3), replace(LAYERS[1], channels=100, filters=50)):
        for dtype, precision in (("bfloat16", "ieee"), ("float32", "tf32"), ("float32", "ieee"), ("float64", "ieee")):
            for last in (True, False):
                call = layer.call(dtype, precision, last)
                plans = model.candidates(call, device)
                assert model.select(call, device) in plans
                assert not any(model.refusal(call, plan, device) for plan in plans)
                for which in (Pass.DGRAD, Pass.WGRAD):
                    plan = deform_backward.select(call, which, device)
                    assert not deform_backward.refusal(call, plan, which, device)
                    assert Plan.parse(str(plan)) == plan


def test_predictions_say_what_they_are_made_of():
    for layer in LAYERS:
        forward, backward = predicted(layer, H200)
        call = layer.call()
        floor = model.compulsory(layer.deformation, 2) / (H200.bandwidth * 1e9)
        assert floor < forward < backward < 1e-2
        parts = deform_backward.parts(call, H200)
        assert list(parts) == ["columns", "sort", "scatter", "weights"]
        assert backward >= sum(seconds for seconds, _ in parts.values())
    twice = replace(LAYERS[0], batch=4)
    assert predicted(twice, H200)[0] > 1.5 * predicted(LAYERS[0], H200)[0]


def test_a_weights_gradient_is_shared_out_where_tiles_are_few():
    plan = deform_backward.select(LAYERS[0].call(), Pass.WGRAD, H200)
    tiles = deform_backward.weights_tiles(LAYERS[0].deformation, plan)
    assert tiles < H200.sm_count < tiles * plan.split <= 3 * H200.sm_count
    pixels = -(-LAYERS[0].deformation.pixels // plan.block_k)
    assert (plan.split - 1) * -(-pixels // plan.split) < pixels  # the last share has a trip


@pytest.mark.interpreter
def test_explain_says_what_runs_and_what_it_costs(launches):
    x, offset, w = torch.randn(1, 4, 5, 5), torch.zeros(1, 18, 3, 3), torch.randn(6, 4, 3, 3)
    found = tritonconv.explain(tritonconv.deform_conv2d, x, offset, w)
    assert set(found.plans) == {"fprop", "dgrad", "wgrad"} and found.problem.out_channels == 6
    for words in ("no column buffer", "81 places", "no atomics", "MB of workspace"):
        assert words in str(found)
    assert found.predictions["dgrad"].seconds > 0 and not launches()
    forced = Plan.parse("fprop:deform:16x16x16:w4:s1")
    assert tritonconv.explain(tritonconv.deform_conv2d, x, offset, w, plan=forced).plans["fprop"] == forced
    assert "nothing to multiply" in str(tritonconv.explain(tritonconv.deform_conv2d, x[:0], offset[:0], w))
    with pytest.raises(RuntimeError, match="expected offset"):
        tritonconv.explain(tritonconv.deform_conv2d, x, offset[:, :1], w)


def test_a_call_as_its_kernel_sees_it():
    call = LAYERS[0].call(channels_last=False)
    plan = model.select(call, H200)
    assert plan.pack == ("a", "b") and model.widths(call, plan) == (8, 8)
    assert isinstance(call, DeformCall) and model.widths(call, replace(plan, pack=())) == (1, 1)


class Moved(torch.nn.Module):
    """A deformable layer behind one, whose offsets and mask are inputs."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 1, bias=False)
        self.layer = tritonconv.nn.DeformConv2d(8, 16, 3, padding=1)

    def forward(self, x):
        offset = x.new_zeros(2, 18, 9, 9)
        return self.layer(self.stem(x), offset, offset[:, :9])


def test_a_network_counts_it():
    """By hand: 162 pixels, 16 filters, 72 terms; 9 taps of 8 channels, 7 FLOP each, 8 more an element of input's gradient."""
    network = costmodel.trace(Moved(), (2, 3, 9, 9))
    _, layer = network.convolutions
    assert layer.op == "deform_conv2d" and not network.unknown
    macs, samples = 162 * 16 * 72, 162 * 9 * 8
    assert layer.forward.dense_macs == macs and layer.forward.other_flops == 7 * samples
    assert layer.forward.useful_macs == 2 * 16 * 8 * 25**2  # of offsets of zero: 25 of 27 taps an axis meet a pixel
    size = network.convolutions[0].forward.bytes // (3 * 8 + 162 * (3 + 8))
    assert layer.forward.bytes == size * (162 * (8 + 18 + 9 + 16) + 16 * 72 + 16)
    (gradient,) = (step for step in layer.backward if step.op.endswith("deform_backward"))
    assert gradient.cost.dense_macs == 2 * macs and gradient.cost.other_flops == (7 + 8) * samples
    assert "deform:" in str(network.on("h200").rows)
