"""What `unfold` and `fold` count, which plan they take, and what `explain` and a network's report say of them."""

import math
from dataclasses import replace

import pytest
import sympy
import torch
from unfolded import CALLS

import tritonconv
from bench.unfold import GPU, LAYERS, Layer
from costmodel import unfold as model
from costmodel.device import find_device
from costmodel.networks.network import trace
from costmodel.problem import Pass
from costmodel.tiling import Plan
from costmodel.unfold import Unfolding
from tritonconv import reference

H200 = find_device("h200")


@pytest.mark.parametrize("name", CALLS)
def test_counts_are_those_of_the_loop(name):
    """Ones instead of pixels: a window's ones meet a pixel, and their sums say how often each is met."""
    shape, kernel, window = CALLS[name]
    rank = len(kernel)
    given = (window.get("dilation", 1), window.get("padding", 0), window.get("stride", 1))
    of = Unfolding.of(shape, kernel, *((n,) * rank if isinstance(n, int) else n for n in given))
    columns = reference.flatten_regions(torch.ones(shape), kernel, **window)
    met = reference.fold_regions(columns, shape[2:], kernel, **window)
    assert of.columns_shape == (columns.shape[0], columns.shape[2], columns.shape[1])
    assert (of.met, of.touched) == (int(columns.sum()), int((met > 0).sum()))
    assert of.additions == int((met - 1).clamp(min=0).sum())
    assert of.compulsory(2, Pass.FPROP) == 2 * (of.touched + columns.numel())
    assert of.compulsory(4, Pass.DGRAD) == 4 * (of.met + met.numel())


def test_the_formula_is_the_same_in_symbols():
    """Bytes of 3x3 windows with a border, of any image of 4 x 5 pixels or more; patches without one."""
    n, c, h, w = sympy.symbols("n c h w", positive=True, integer=True)
    of = Unfolding.of((n, c, h, w), (3, 3), (1, 1), (1, 1), (1, 1))
    at = {n: 2, c: 3, h: 4, w: 5}
    whole = Unfolding.of((2, 3, 4, 5), (3, 3), (1, 1), (1, 1), (1, 1))
    for which in (Pass.FPROP, Pass.DGRAD):
        assert of.compulsory(2, which).subs(at) == whole.compulsory(2, which)
    assert whole.compulsory(1, Pass.FPROP) == 6 * (20 + 9 * 20) and whole.met == 6 * 10 * 13
    patches = Unfolding.of((2, 3, 4, 6), (2, 3), (1, 1), (0, 0), (2, 3))
    assert patches.met == patches.touched == math.prod(patches.columns_shape) and patches.additions == 0


@pytest.mark.parametrize("name", GPU.values())
def test_every_device_has_plans_that_can_run(name):
    device = find_device(name)
    for layer in (*LAYERS, Layer("", 1, (5,), 3), Layer("", 5, (3, 3, 3), 2)):
        for which in (Pass.FPROP, Pass.DGRAD):
            for last in (False, True):
                for dtype in ("bfloat16", "float64"):
                    call = layer.call(which, dtype, last)
                    plans = model.candidates(call, device)
                    assert model.select(call, device) in plans and len(plans) == len(set(plans))
                    assert not any(model.refusal(call, plan) for plan in plans)
                    assert all(Plan.parse(str(plan)) == plan for plan in plans)


@pytest.mark.parametrize("dtype, most", [("bfloat16", 3), ("float32", 1.6)])
def test_a_large_batch_takes_about_the_time_of_its_bytes(dtype, most):
    """In 16 bits, instructions to an element are nearly as many as DRAM leaves time for, and more for three channels. Patches,
    whose pixels lie lines apart, are left out."""
    for layer in LAYERS[:4]:
        for which in (Pass.FPROP, Pass.DGRAD):
            call, twice = (each.call(which, dtype) for each in (layer, replace(layer, batch=64 * layer.batch)))
            plan = model.select(twice, H200)
            found = model.predict(twice, plan, H200)
            floor = found.bytes / (H200.bandwidth * 1e9)
            assert floor < found.seconds < most * floor
            assert found.bytes == twice.unfolding.compulsory(2 if dtype == "bfloat16" else 4, which)
            assert model.predict(call, model.select(call, H200), H200).seconds < found.seconds


def test_few_programs_share_out_the_taps():
    few = Layer("", 2, (16, 16), 9, padding=4, batch=1)
    plan = model.select(few.call(Pass.FPROP), H200)
    assert model.shares(few.call(Pass.FPROP), plan) > 1
    assert model.shares(LAYERS[1].call(Pass.FPROP), model.select(LAYERS[1].call(Pass.FPROP), H200)) == 1


def test_columns_of_transposed_tokens_are_copied_first():
    call = LAYERS[2].call(Pass.DGRAD, last=True)
    plan = model.select(call, H200)
    assert plan.pack == ("a",) and call.columns.unit == 1
    direct = replace(plan, pack=())
    found, alone = model.predict(call, plan, H200), model.predict(call, direct, H200)
    assert found.bytes - alone.bytes == 2 * 2 * math.prod(LAYERS[2].unfolding.columns_shape) and found.seconds < alone.seconds


@pytest.mark.interpreter
def test_explain_says_what_runs_and_what_it_costs(launches):
    x, y = torch.ones(1, 2, 4, 4), torch.ones(1, 8, 9)
    found = tritonconv.explain(tritonconv.unfold, x, 2)
    assert list(found.plans) == ["fprop", "dgrad"] and found.problem.output_size == (3, 3)
    back = tritonconv.explain(tritonconv.fold, y, (4, 4), 2, device="h100")
    assert list(back.plans) == ["dgrad", "fprop"] and not launches()
    for words in ("no atomics", "the gradient of a contiguous tensor", "its compiled code has run for sm_80 and sm_90"):
        assert words in str(back)
    forced = tritonconv.explain(tritonconv.unfold, x, 2, plan=found)
    assert forced.plans == found.plans and "forced by plan=" in str(forced)
    assert "input copied first" in str(tritonconv.explain(tritonconv.unfold, x, 2, plan="fprop:unfold:4x1x4:pack-a"))
    assert "no kernel is launched" in str(tritonconv.explain(tritonconv.unfold, x[:0], 2))
    with pytest.raises(RuntimeError, match="greater than the padded input"):
        tritonconv.explain(tritonconv.unfold, x, 5)


class Windows(torch.nn.Module):
    """A pointwise convolution, so that there is a gradient, then unfold and fold."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = tritonconv.unfold(self.stem(x), 3, padding=1, stride=2)
        return tritonconv.fold(y, (7, 9), 3, padding=1, stride=2)


def test_in_a_network_they_have_their_formula_and_plans():
    """And so have their gradients, which are each other."""
    net, device = trace(Windows(), (2, 3, 7, 9)), find_device("h100")
    of, layers = Unfolding.of((2, 8, 7, 9), (3, 3), (1, 1), (1, 1), (2, 2)), net.layers[1:]
    steps = [layer.forward for layer in layers] + [layer.backward[0].cost for layer in layers]
    for found, which in zip(steps, (Pass.FPROP, Pass.DGRAD, Pass.DGRAD, Pass.FPROP), strict=True):
        added = of.additions if which == Pass.DGRAD else 0
        assert (found.bytes, found.other_flops, found.useful_macs) == (of.compulsory(4, which), added, 0)
    assert not net.unknown
    row = net.on(device, "float16", training=True)[1]
    calls = [replace(call, dtype="float16") for call in (layers[0].call, layers[0].backward[0].call)]
    times = [model.predict(call, model.select(call, device), device).seconds for call in calls]
    assert row.plan.startswith("fprop:unfold:") and row.seconds == pytest.approx(sum(times))


def test_a_network_knows_how_their_tensors_lie():
    """Pixels whose channels are contiguous take another plan than rows."""
    shape = (2, 64, 56, 56)
    calls = []
    for format in (torch.contiguous_format, torch.channels_last):
        x = torch.empty(shape, device="meta").to(memory_format=format)
        layer = trace(tritonconv.nn.Unfold(3, padding=1, stride=2), x).layers[0]
        calls.append(layer.call)
        assert layer.forward.bytes == Unfolding.of(shape, (3, 3), (1, 1), (1, 1), (2, 2)).compulsory(4, Pass.FPROP)
    assert [(call.image.unit, call.image.align) for call in calls] == [(4, 8), (1, 16)]
    empty = trace(tritonconv.nn.Unfold(3), torch.empty(0, 2, 4, 4, device="meta"))
    assert empty.inference.bytes == 0 and not empty.unknown and not len(empty.on("h100"))
