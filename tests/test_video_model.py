"""What the cost model, `explain` and a trace say of `causal_conv3d`."""

import doctest
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from chunks import tensors, written_out
from hypothesis import given, settings
from hypothesis import strategies as st

import costmodel
import tritonconv
from costmodel import video as model
from costmodel.device import DEVICES, find_device
from costmodel.prologue import Prologue
from costmodel.tiling import Plan


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 6), st.integers(3, 5), st.integers(3, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
    st.integers(1, 3),
    st.integers(1, 2),
    st.sampled_from([1, 2]),
    st.sampled_from(model.TIME_PADDING),
    st.data(),
)
def test_what_the_model_says_is_what_torch_does(shape, filters, stride, dilation, upsample, padding, data):
    k, *kernel = filters
    reach = dilation * (kernel[0] - 1)
    cached = data.draw(st.integers(0, reach))
    strides = (stride, 1, 1) if upsample == 2 else (stride, 2, 1)
    chunk = model.Chunk.of(shape, (k, shape[1], *kernel), cached, strides, (1, 0, 2, 1), (dilation, 1, 1), upsample, padding)
    x = torch.ones(shape, dtype=torch.float64)
    cache = torch.ones(*shape[:2], cached, *shape[3:], dtype=torch.float64)
    line = written_out(x, cache, reach, padding)
    w = torch.ones(k, shape[1], *kernel, dtype=torch.float64)
    frames = line.shape[2]
    windows = [o * stride for o in range(frames) if o * stride + reach < frames]
    if not windows:
        assert chunk.output_shape[2] == 0 and chunk.live_taps == 0 and chunk.kept == frames
        return
    padded = F.pad(line.repeat_interleave(upsample, 3).repeat_interleave(upsample, 4), (2, 1, 1, 0))
    assert chunk.output_shape == F.conv3d(padded, w, None, strides, 0, (dilation, 1, 1)).shape
    assert chunk.frame == shape[3:] and chunk.known == cached + shape[2] and chunk.spatial.input_size[0] == frames
    one, other = chunk.spatial, chunk.differentiated
    assert (one.padded_size, one.output_size, one.weight_shape) == (other.padded_size, other.output_size, other.weight_shape)
    assert other.input_size[0] == (frames if chunk.replicate else chunk.known)
    live = [first + tap * dilation for first in windows for tap in range(kernel[0])]
    alive = len(live) if padding != "zeros" else sum(frame >= frames - cached - shape[2] for frame in live)
    assert chunk.live_taps == alive
    assert chunk.kept == (frames - windows[-1] - stride if padding == "valid" else reach)
    of, moved = model.elements(chunk), model.chain(chunk, 1)
    assert of["x"] == x.numel() and of["cache"] == cache.numel()
    assert moved["conv3d"] == padded.numel() + w.numel() + of["y"] and moved["bias"] == 2 * of["y"]


def test_the_cost_of_a_call():
    """A layer of Wan's decoder on a cached frame: 50 GFLOP, so that time is arithmetic's, and fewer bytes than in a chain."""
    shapes = (1, 384, 1, 120, 208), (384, 384, 3, 3, 3)
    found = model.forecast(*shapes, 2, padding=(1,) * 4)
    chunk = model.Chunk.of(*shapes, 2, padding=(1,) * 4)
    assert chunk.flops == 2 * 120 * 208 * 384 * 384 * 27
    assert found.bytes == model.compulsory(chunk, 2) == 2 * (120 * 208 * 384 * (1 + 2 + 1 + 2) + 27 * 384 * 384)
    assert sum(model.chain(chunk, 2).values()) > 2.5 * found.bytes
    assert list(model.chain(chunk, 2)) == ["cat", "pad", "conv3d", "bias", "clone"]
    assert found.seconds > chunk.flops / 989e12 and found.low < found.seconds < found.high
    first = model.forecast(*shapes, 0, padding=(1,) * 4)  # of whose three taps in time one meets a frame
    assert first.seconds < 0.5 * found.seconds
    with pytest.raises(ValueError, match="device"):
        model.forecast(*shapes, device="abacus")
    assert not doctest.testmod(model).failed


def with_prologue(x, weight, padding=0):
    chunk = model.Chunk.of(x, weight, padding=(padding,) * 4)
    return replace(chunk, prologue=Prologue("silu", values=2 * x[1]))


def test_a_prologue_is_applied_where_it_costs_less():
    """While gathered, every tap and every block of filters pays for it; apart, x is written and read once more."""
    device = find_device("h200")
    deep = with_prologue((1, 384, 1, 120, 208), (384, 384, 3, 3, 3), 1)
    pointwise = with_prologue((1, 96, 4, 480, 832), (16, 96, 1, 1, 1))
    assert model.select(deep, "bfloat16", "ieee", device).apart
    assert not model.select(pointwise, "bfloat16", "ieee", device).apart
    for chunk in (deep, pointwise):
        plan = model.select(replace(chunk, prologue=None), "bfloat16", "ieee", device)
        plain = model.predict(replace(chunk, prologue=None), plan, "bfloat16", "ieee", device)
        apart = model.predict(chunk, replace(plan, apart=True), "bfloat16", "ieee", device)
        together = model.predict(chunk, plan, "bfloat16", "ieee", device)
        held = model.elements(chunk)["x"]
        assert apart.bytes == plain.bytes + 2 * 2 * held + 4 * chunk.prologue.values
        assert together.bytes == plain.bytes + 4 * chunk.prologue.values and together.seconds > plain.seconds
        assert apart.low < apart.seconds < apart.high
    assert all(not plan.apart for plan in model.candidates(replace(deep, prologue=None), "bfloat16", "ieee", device))


def test_groups_residuals_and_summed_taps_count():
    device = find_device("h200")
    chunk = model.Chunk.of((1, 64, 2, 8, 8), (128, 32, 3, 3, 3), padding=(1,) * 4, groups=2)
    assert chunk.depth == 32 and chunk.flops == 2 * 2 * 64 * 128 * 32 * 27
    plan = model.select(chunk, "bfloat16", "ieee", device)
    assert model.tiles(chunk, replace(plan, block_n=128))[1] == 2  # a tile holds filters of one group
    beside = replace(chunk, residual=True)
    assert model.compulsory(beside, 2) - model.compulsory(chunk, 2) == 2 * 128 * 2 * 64 and "add" in model.chain(beside, 2)
    up = model.Chunk.of((1, 64, 2, 8, 8), (64, 64, 3, 3, 3), padding=(1,) * 4, upsample=2)
    summed = up.with_summed_taps()
    assert model.trips(up, plan) == 2.25 * model.trips(summed, plan) and summed.flops == up.flops
    assert replace(up, mode="reflect").with_summed_taps() == replace(up, mode="reflect")  # its border is no pixel's neighbour
    bordered = model.Chunk.of((1, 64, 2, 8, 8), (64, 64, 3, 3, 3), padding=(1,) * 4, mode="replicate")
    gathered = replace(bordered, mode="zeros")
    times = [model.predict(c, plan, "bfloat16", "ieee", device).seconds for c in (gathered, bordered)]
    assert times[0] <= times[1] and "padded by 'replicate'" in str(bordered)


def test_a_small_chunk_shares_its_reduction():
    device = find_device("h200")
    small = model.Chunk.of((1, 1024, 1, 16, 16), (1024, 1024, 3, 3, 3), 2, padding=(1,) * 4)
    plan = model.select(small, "bfloat16", "ieee", device)
    assert plan.split > 1 and not model.refusal(small, plan, "bfloat16", "ieee", device)
    alone = model.predict(small, replace(plan, split=1), "bfloat16", "ieee", device)
    shared = model.predict(small, plan, "bfloat16", "ieee", device)
    assert shared.seconds < alone.seconds and shared.tiles == plan.split * alone.tiles
    assert shared.bytes - alone.bytes == 2 * 4 * plan.split * model.elements(small)["y"]
    large = model.Chunk.of((1, 384, 1, 120, 208), (384, 384, 3, 3, 3), 2, padding=(1,) * 4)
    assert all(each.split == 1 for each in model.candidates(large, "bfloat16", "ieee", device) if each.block_m <= 128)


def test_explain_says_where_a_prologue_is_applied(device, launches):
    x, w, _, _ = tensors((1, 16, 2, 4, 5), (16, 16, 3, 3, 3), dtype=torch.float32, device=device)
    prologue = tritonconv.Prologue(torch.ones(16), activation="silu")
    found = tritonconv.explain(tritonconv.causal_conv3d, x, w, padding=1, prologue=prologue)
    assert "normalised first (scale, silu)" in str(found) and "is applied while pixels are gathered" in str(found)
    found = tritonconv.explain(tritonconv.causal_conv3d, x, w, padding=1, prologue=prologue, device="h200")
    assert "it would take" in str(found) and "in all" in str(found)
    found = tritonconv.explain(tritonconv.causal_conv3d, x, w.contiguous(), padding=1, upsample=2)
    assert "weights of taps that see the same pixel are summed" in str(found)
    assert "copied to channels-last, once" in str(tritonconv.explain(tritonconv.causal_conv3d, x, w.contiguous()))
    assert not launches()


def test_explain_says_what_a_call_takes(device, launches):
    x, w, _, cache = tensors((1, 16, 2, 4, 5), (16, 16, 3, 3, 3), 2, dtype=torch.float32, device=device)
    found = tritonconv.explain(tritonconv.causal_conv3d, x, w, padding=1, cache=cache.contiguous())
    assert list(found.plans) == ["forward"] and found.plans["forward"].family == "video" and not launches()
    for words in ("2 of 4 frames cached", "write the next cache, 2 frames", "cache copied first", "cat, pad, conv3d"):
        assert words in str(found), str(found)
    forced = tritonconv.explain(tritonconv.causal_conv3d, x, w, padding=1, plan=Plan.parse("fprop:video:32x16x32:w4:s3"))
    assert "tile 32x16x32" in str(forced) and "forced by plan=" in str(forced)
    with pytest.raises(RuntimeError, match="weight of 16 channels"):
        tritonconv.explain(tritonconv.causal_conv3d, x, w[:, :8])


def test_a_plan_for_every_device():
    chunk = model.Chunk.of((1, 384, 1, 120, 208), (384, 384, 3, 3, 3), 2, padding=(1,) * 4)
    for name in ("a100", "h100", "b200"):
        device = find_device(name)
        for dtype, precision in (("bfloat16", "ieee"), ("float32", "tf32"), ("float32", "ieee"), ("float64", "ieee")):
            plan = model.select(chunk, dtype, precision, device)
            assert not model.refusal(chunk, plan, dtype, precision, device)
            far = model.select(chunk, dtype, precision, device, far=True)
            assert far.block_m * far.block_n <= 64 * 64
        assert all(found.block_m <= 128 for found in model.candidates(chunk, "bfloat16", "ieee", device, last=False))
        with pytest.raises(ValueError, match="shared memory"):
            model.checked(chunk, Plan.parse("fprop:video:256x256x128:w8:s4"), "float32", "ieee", device)


@pytest.mark.parametrize("device", [d for d in DEVICES.values() if d.capability >= 80], ids=lambda device: device.name)
def test_a_call_without_a_result_has_a_plan(device):
    """Too few frames for a window, and all of them kept: the launch that fills the next cache needs a plan."""
    chunk = model.Chunk.of((1, 8, 1, 4, 4), (8, 8, 3, 1, 1), time_padding="valid")
    plan = model.select(chunk, "bfloat16", "tf32", device)
    found = model.predict(chunk, plan, "bfloat16", "tf32", device)
    assert chunk.kept == 1 and found.tiles == 0 and found.seconds > 0


class Decoder(torch.nn.Module):
    """A causal layer of a model, on a chunk of two frames behind two cached ones."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv3d(8, 16, 3)
        self.register_buffer("cache", torch.zeros(1, 8, 2, 4, 5))

    def forward(self, x):
        return tritonconv.causal_conv3d(x, self.conv.weight, self.conv.bias, padding=1, cache=self.cache)[0]


def test_a_traced_model_counts_it():
    found = costmodel.trace(Decoder(), (1, 8, 2, 4, 5))
    (record,) = [layer for layer in found.layers if layer.operator == "tritonconv::video"]
    chunk = model.Chunk.of((1, 8, 2, 4, 5), (16, 8, 3, 3, 3), 2, padding=(1,) * 4)
    assert record.forward.dense_macs == chunk.problem.macs and not found.unknown
    assert record.forward.bytes == model.compulsory(chunk, 4) + 4 * 16  # and the bias
