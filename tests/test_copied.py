"""Padding modes by a copy of x and a family that pads with zeros: results, when it is chosen, what it counts and says."""

import math
import warnings
from dataclasses import replace

import padded
import pytest
import torch
from padded import LAYERS, Padded

import tritonconv
from costmodel import layer
from costmodel.device import find_device
from costmodel.families import behind_copies, family
from costmodel.families.copied import copied_bytes
from costmodel.legality import refusal
from costmodel.networks.network import trace
from costmodel.plan import candidates, predict, select
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Plan, channels_last
from costmodel.timing import from_dram, overhead, traffic
from tritonconv import explain, host, padding
from tritonconv.families import copied, written
from tritonconv.launch import device_model
from tritonconv.layout import channels_last_strides, dense_strides
from tritonconv.prepared import key

H200, A100 = find_device("h200"), find_device("a100")
BLOCK = layer("conv2d 256x64x64 k3 p1 reflect c256 n32").problem
SMALL = layer("conv2d 256x16x16 k3 p1 reflect c256 n1").problem
DEPTHWISE = layer("conv2d 96x56x56 k7 p3 circular c96 n32 g96").problem


def problem_of(of: Padded, x: torch.Tensor, w: torch.Tensor) -> ConvProblem:
    steps = (n if isinstance(n, tuple) else (n,) * of.rank for n in (of.stride, of.dilation))
    stride, dilation = steps
    return ConvProblem.conv(x.shape, w.shape, stride, of.padding, dilation, of.groups, padding_mode=of.mode)


def run(step, **given):
    """What a step wrote into a tensor of NaN, the last one given."""
    result = list(given.values())[-1].fill_(math.nan)
    step.start(*step.values({"bias": None, **given}))
    return result


@pytest.mark.parametrize("last", [False, True], ids=["rows", "channels last"])
@pytest.mark.parametrize("turned", [False, True], ids=["as x", "the other layout"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_copy_and_its_transpose(name, turned, last):
    """Into tensors of either layout, as torch's operators that autograd sees through do it."""
    x, w, _ = LAYERS[name].tensors(torch.float32, last=last)
    problem = problem_of(LAYERS[name], x, w)
    want = padding.written_out(x, problem)
    plain = dense_strides(want.shape, range(want.dim() - 1, -1, -1))
    strides = channels_last_strides(want.shape) if last != turned else plain
    into = torch.empty_strided(want.shape, strides)
    assert torch.equal(run(written.copy(key(x), key(into), problem, "float32"), a=x, out=into), want)
    g = torch.empty_strided(want.shape, strides).copy_(torch.randn(want.shape))
    dx = torch.empty_like(x)
    run(written.fold(key(g), key(dx), problem, "float32", None, False), workspace=g, out=dx)
    torch.testing.assert_close(dx, padding.folded(g, problem))


@pytest.mark.parametrize("name", ["1d of one pixel", "reflect", "replicate", "mixed", "weather", "3d"])
def test_results_and_gradients(name, launched):
    """By the gather in every pass, whose tolerance is that of one sum."""
    of = LAYERS[name]
    padded.check(of, *of.tensors(torch.float32, last=name == "mixed"), plan="copied-gather")
    assert launched()["padded fprop"] == launched()["padded wgrad"] == 0 < launched()["fprop"]


def test_an_epilogue_follows_in_the_same_kernel():
    of = LAYERS["circular"]
    x, w, b = of.tensors(torch.float32)
    given = {**of.window, "activation": "relu", "scale": b, "residual": torch.ones(2, 4, *of.ours(x, w).shape[2:])}
    want = tritonconv.conv2d_fused(x, w, **given, plan="padded")
    torch.testing.assert_close(tritonconv.conv2d_fused(x, w, **given, plan="copied-gather"), want)


@pytest.mark.parametrize("device", [H200, A100], ids=["h200", "a100"])
@pytest.mark.parametrize("which", Pass)
@pytest.mark.parametrize("problem", [BLOCK, SMALL, DEPTHWISE], ids=["block", "small", "depthwise"])
def test_the_choice_is_the_least_of_both(problem, which, device):
    call = channels_last(problem, which, "bfloat16")
    plans, found = candidates(call, device), select(call, device)
    times = {plan: predict(call, plan, device).seconds for plan in plans}
    assert times[found] == pytest.approx(min(times.values())) and "padded" in {plan.family for plan in plans}
    for plan in plans[:: max(1, len(plans) // 8)]:
        assert not refusal(call, plan, device) and Plan.parse(str(plan)) == plan


def test_what_is_chosen():
    """On Hopper the copy opens the way to boxes of pixels for large layers; narrow groups fill no tile of the other kernels."""
    chosen = {which: select(channels_last(BLOCK, which, "bfloat16"), H200).family for which in Pass}
    assert {*chosen.values()} == {"copied-tma"}
    families = {plan.family for plan in candidates(channels_last(BLOCK, Pass.DGRAD, "bfloat16"), H200)}
    assert families == {"padded", "copied-tma"}  # a gather into 32 bits is what "padded" launches
    assert "copied-gather" in {plan.family for plan in candidates(channels_last(BLOCK, Pass.DGRAD, "float32"), H200)}
    assert {select(channels_last(SMALL, which, "bfloat16"), H200).family for which in Pass} == {"padded"}
    assert {select(channels_last(DEPTHWISE, which, "bfloat16"), H200).family for which in Pass} == {"copied-depthwise"}


@pytest.mark.parametrize("which", Pass)
def test_what_it_counts(which):
    """The other family's time and bytes, and those of the copies."""
    call = channels_last(BLOCK, which, "float32")
    of = behind_copies()["copied-gather"]
    plan = of.quickest(call, H200, math.inf)[1]
    plain = channels_last(BLOCK.written_out, which, "float32")
    inner = replace(plan, family="gather")
    inside, whole = 32 * 256 * 64 * 64, 32 * 256 * 66 * 66
    moved = 4 * (inside + whole)
    assert of.copied_bytes(call) == moved
    constants = H200.calibration("gather")
    copy = overhead(1, H200, constants) + from_dram(moved, H200, constants)
    found, alone = predict(call, plan, H200), predict(plain, inner, H200)
    assert found.seconds == pytest.approx(alone.seconds + copy) and found.bytes == alone.bytes + moved
    one, other = of.counted(call, plan), family("gather").counted(plain, inner)
    assert (one.issued_macs, one.launches) == (other.issued_macs, other.launches + 1)
    assert traffic(call).compulsory + one.extra_bytes == traffic(plain).compulsory + other.extra_bytes + moved


def test_a_gradient_of_16_bits_is_added_up_in_32():
    """The buffer takes twice the bytes; narrow groups have one of x's type."""
    call, inside, whole = channels_last(BLOCK, Pass.DGRAD, "bfloat16"), 32 * 256 * 64 * 64, 32 * 256 * 66 * 66
    assert behind_copies()["copied-tma"].copied_bytes(call) == (2 + 4) * whole + 2 * inside
    narrow = behind_copies()["copied-depthwise"]
    assert narrow.sums("bfloat16") == 2 and narrow.copied_bytes(call) == 2 * (inside + whole)


def test_images_are_rounded_one_by_one_in_narrow_groups_alone():
    """Three channels and four filters are served by the kernels for narrow groups too."""
    few, names = layer("conv2d 3x4x5 k3 p1 replicate c4 n2").problem, ("copied-depthwise", "copied-band")
    for dtype, left in (("float16", True), ("bfloat16", True), ("float32", False)):
        call = channels_last(few, Pass.DGRAD, dtype)
        assert not left or not {plan.family for plan in candidates(call, H200)} & {*names}
        assert behind_copies()["copied-depthwise"].is_left_out(call) == left
    assert "copied-depthwise" in {plan.family for plan in candidates(channels_last(DEPTHWISE, Pass.DGRAD, "float16"), H200)}


@pytest.mark.parametrize("plan", ["copied-tma", "copied-gather"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_each_pixel_of_a_gradient_is_rounded_once(dtype, plan, launched):
    """Held to the tolerance of one rounding, at a border where nine places hold a pixel."""
    here = device_model(host.index_of(torch.empty(0)))
    if plan == "copied-tma" and not here.interpreted and here.capability < 90:
        plan = "copied-gather"  # boxes of pixels need compute capability 9.0
    of = Padded((3, 4), (3, 3), ((2, 2), (2, 2)), "replicate", channels=8, filters=8)
    forced = f"dgrad:{plan}:16x16x16:w4:s1:pack-a"  # the gradient of y is contiguous
    padded.check(of, *of.tensors(dtype, last=True), plan=[forced, "fprop:padded"])
    found = launched()
    assert found["dgrad"] == 1 and (found["copied-tma dgrad"] == 1) == (plan == "copied-tma"), found


def test_explain_says_which_and_why():
    x = torch.empty(32, 256, 64, 64, device="meta", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    w = torch.empty(256, 256, 3, 3, device="meta", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    found = explain(tritonconv.conv2d, x, w, padding=1, padding_mode="reflect", device="h200")
    assert found.plans["fprop"].family == "copied-tma"
    for words in (
        "of x with its reflect x reflect padding written out",
        "x with its padding: 71.4 MB, in a launch of its own",
        "least predicted time of",
        "then a sum of each pixel's images",
        "the gradient of x with its padding: 143 MB, in a launch of its own",
    ):
        assert words in str(found), words
    assert str(found).count("the result leaves as boxes too") == 1 and "each thread stores its own results" in str(found)
    forced = explain(tritonconv.conv2d, x, w, padding=1, padding_mode="reflect", device="h200", plan="padded")
    assert {plan.family for plan in forced.plans.values()} == {"padded"}
    kept = explain(tritonconv.conv2d, x, w, padding=1, padding_mode="reflect", device="h200", plan=found)
    assert kept.plans == found.plans


def test_a_network_knows_the_copy():
    """Of a depthwise layer, whose padding is written out: its time by `predict`, the copy in it."""
    net = trace(tritonconv.nn.Conv2d(96, 96, 7, padding=3, groups=96, padding_mode="circular"), (32, 96, 56, 56))
    row = net.on("h100", "bf16")[0]
    plain = trace(torch.nn.Conv2d(96, 96, 7, groups=96), (32, 96, 62, 62)).on("h100", "bf16")[0]
    copy = copied_bytes(DEPTHWISE, Pass.FPROP, 2, 2) / (find_device("h100").bandwidth * 1e9)
    assert row.plan.startswith("fprop:copied-depthwise:") and row.seconds > plain.seconds + copy


def test_what_cannot_be_asked():
    x, w = torch.ones(2, 4, 5, 5), torch.ones(4, 4, 3, 3)
    with pytest.raises(ValueError, match="it is for padding that holds pixels, and the padding of this call holds zeros"):
        tritonconv.conv2d(x, w, padding=1, plan="copied-gather")
    with pytest.raises(ValueError, match="plan 'copied-fft' names no family"):
        tritonconv.conv2d(x, w, padding=1, padding_mode="circular", plan="copied-fft")
    given = (x[:, :, :3, :3], w, torch.ones(4), [3, 3], [1, 1], [1, 1, 1, 1, 3, 3], [1, 1], 1)
    dx = torch.ops.tritonconv.dgrad(*given)  # the op itself takes a bias, which one family adds
    alone = torch.ops.tritonconv.dgrad(*given[:2], None, *given[3:])
    torch.testing.assert_close(dx, alone + 1)
    with pytest.raises(ValueError, match="sums images behind its kernel, which adds the bias"):
        torch.ops.tritonconv.dgrad(*given, "dgrad:copied-gather:16x16x16")


def test_no_memory_for_the_copy(monkeypatch, launched):
    """The call runs by index arithmetic, and says so once."""
    of = LAYERS["reflect"]
    x, w, b = of.tensors(torch.float32)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(copied.Written, "written", full)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            torch.testing.assert_close(of.ours(x, w, b, plan="copied-gather"), of.ours(x, w, b, plan="padded"))
    assert len(said) == 1 and "no memory for a copy of x with its padding, so it runs as padded" in str(said[0].message)
    assert launched()["padded fprop"] == 4 and launched()["fprop"] == 4
