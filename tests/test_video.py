"""The causal convolution of video against its definition in float64: the known frames written out, then torch's conv3d."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from chunks import CALLS, assert_close, by_definition, tensors, written_out
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tritonconv
from bench.tolerance import UNIT
from costmodel import video as model
from costmodel.tiling import Plan
from tritonconv import recipes, steps
from tritonconv.video import check as video_check
from tritonconv.video import cpu as video_cpu
from tritonconv.video import launch as video_launch
from tritonconv.video.op import chunk_of


@pytest.mark.parametrize("last", [True, False], ids=["channels-last", "contiguous"])
@pytest.mark.parametrize("name", CALLS)
def test_the_definition(name, last, device, launched):
    shape, weight, cached, window = CALLS[name]
    x, w, b, cache = tensors(shape, weight, cached, last, device=device)
    y, after = tritonconv.causal_conv3d(x, w, b, cache=cache, **window)
    want = by_definition(x, w, b, cache=cache, **window)
    assert_close(y, want)
    assert y.is_contiguous(memory_format=torch.channels_last_3d if last else torch.contiguous_format)
    reach = (window.get("dilation", (1,))[0]) * (weight[2] - 1)
    line = written_out(x, cache, reach, window.get("time_padding", "zeros"))
    kept = line.shape[2] - want.shape[2] * 2 if window.get("time_padding") == "valid" else reach
    assert after.shape[2] == kept and torch.equal(after, line[:, :, line.shape[2] - kept :])
    assert after.numel() == 0 or after.untyped_storage().data_ptr() not in {
        t.untyped_storage().data_ptr() for t in (x, cache) if t is not None
    }
    alone = tritonconv.causal_conv3d(x, w, b, cache=cache, return_cache=False, **window)
    assert torch.equal(alone, y)


@pytest.mark.parametrize("name", CALLS)
def test_torchs_operators_are_the_definition(name):
    """What CPU tensors take without the interpreter."""
    shape, weight, cached, window = CALLS[name]
    x, w, b, cache = tensors(shape, weight, cached)
    defaults = {"stride": 1, "padding": 0, "cache": cache, "keeps": True, "dilation": 1, "upsample": 1, "time_padding": "zeros"}
    arguments = video_check.call(x, w, b, *(defaults | window).values())
    chunk = chunk_of(x.shape, w.shape, None if cache is None else cache.shape, *arguments)
    y, after = video_cpu.forward(chunk, x, w, b, cache, True)
    assert_close(y, by_definition(x, w, b, cache=cache, **window))
    assert y.shape == chunk.output_shape and after.shape == chunk.next_shape


def test_nothing_overflows(device, overflow_checked):
    x, w, b, cache = tensors((1, 4, 2, 4, 5), (3, 4, 3, 4, 8), 2, device=device)  # 32 taps in a frame: all bits of a word
    y, _ = tritonconv.causal_conv3d(x, w, b, 1, (2, 4), cache)
    assert_close(y, by_definition(x, w, b, 1, (2, 4), cache))
    x, w, b, cache = tensors(*CALLS["upsample, odd"][:3], device=device)
    y, _ = tritonconv.causal_conv3d(x, w, b, cache=cache, **CALLS["upsample, odd"][3])
    assert_close(y, by_definition(x, w, b, cache=cache, **CALLS["upsample, odd"][3]))


SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 2), st.integers(1, 3))  # taps, dilation, stride in time


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data(), sizes=SHAPES, padding=st.sampled_from(model.TIME_PADDING), cpu=st.booleans())
def test_chunks_are_the_whole_sequence(data, sizes, padding, cpu, device):
    """In the interpreter, and by torch's operators, which are much faster."""
    taps, dilation, stride = sizes
    lengths = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    if padding != "valid":
        lengths = [stride * n for n in lengths[:-1]] + lengths[-1:]
    x, w, b, _ = tensors((1, 2, sum(lengths), 2, 3), (3, 2, taps, 1, 1), device=device)
    window = {"stride": (stride, 1, 1), "dilation": (dilation, 1, 1), "time_padding": padding}

    def run(frames, cache, keeps):
        if not cpu:
            return tritonconv.causal_conv3d(frames, w, b, cache=cache, return_cache=keeps, **window)
        before = None if cache is None else cache.shape
        chunk = chunk_of(frames.shape, w.shape, before, window["stride"], (0,) * 4, window["dilation"], 1, padding)
        if keeps:
            video_check.follows(chunk, frames.shape)
        y, after = video_cpu.forward(chunk, frames, w, b, cache, keeps)
        return (y, after) if keeps else y

    if padding == "valid" and sum(lengths) <= dilation * (taps - 1):
        return  # torch's conv3d answers no empty result
    whole, results, cache = by_definition(x, w, b, **window), [], None
    for i, frames in enumerate(x.split(lengths, 2)):
        if i == len(lengths) - 1:
            results.append(run(frames, cache, False))
            break
        try:
            y, cache = run(frames, cache, True)
        except RuntimeError as error:  # a stride over the window may end between two chunks
            assert stride > dilation * (taps - 1) + 1 and "begins" in str(error)
            return
        results.append(y)
    assert_close(torch.cat(results, 2), whole)


def wan(x, w, b, cache):
    """As diffusers' WanCausalConv3d and the blocks around it: (y, the next cache, of one frame after a single first one)."""
    after = x[:, :, -2:].clone()
    if after.shape[2] < 2 and cache is not None:
        after = torch.cat([cache[:, :, -1:], after], 2)
    pads = [1, 1, 1, 1, 2, 0]
    if cache is not None:
        x, pads[4] = torch.cat([cache, x], 2), 2 - cache.shape[2]
    return F.conv3d(F.pad(x, pads), w, b), after


def wan_downsampler(x, w, b, cache):
    """As diffusers' WanResample, "downsample3d", behind its first frame."""
    return F.conv3d(torch.cat([cache[:, :, -1:], x], 2), w[..., 1:2, 1:2], b, (2, 1, 1)), x[:, :, -1:].clone()


def cogvideox(x, w, b, cache):
    """As diffusers' CogVideoXCausalConv3d."""
    x = torch.cat([x[:, :, :1]] * 2 + [x] if cache is None else [cache, x], 2)
    return F.conv3d(x, w, b, padding=(0, 1, 1)), x[:, :, -2:].clone()


@pytest.mark.parametrize("theirs, chunks", [(wan, (1, 1, 4, 2, 1)), (wan_downsampler, (4, 2, 4)), (cogvideox, (3, 2, 1))])
def test_what_models_write_today(theirs, chunks, device, launched):
    x, w, b, cache = tensors((1, 4, sum(chunks), 3, 4), (3, 4, 3, 3, 3), 1, device=device)
    down = theirs is wan_downsampler
    own = cache if down else None
    cache, used = own, w[..., 1:2, 1:2] if down else w
    window = {"stride": (2, 1, 1), "time_padding": "valid"} if down else {"padding": 1}
    window |= {"time_padding": "replicate"} if theirs is cogvideox else {}
    for chunk in x.split(chunks, 2):
        want, cache = theirs(chunk, w, b, cache)
        y, own = tritonconv.causal_conv3d(chunk, used, b, cache=own, **window)
        assert_close(y, want)
        assert torch.equal(own[:, :, own.shape[2] - cache.shape[2] :], cache)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_every_type_is_rounded_once(dtype, device, launched):
    x, w, b, cache = tensors((1, 32, 2, 5, 6), (16, 32, 3, 3, 3), 2, dtype=dtype, device=device)
    y, after = tritonconv.causal_conv3d(x, w, b, 1, 1, cache)
    rounding = 1.01 * UNIT[dtype] if dtype != torch.float32 else 64 * UNIT[dtype]
    assert y.dtype == after.dtype == dtype
    assert_close(y, by_definition(x, w, b, 1, 1, cache), rounding)
    assert torch.equal(after, x)


def test_upsampling_is_exactly_interpolation(device, launched):
    """The same sums in the same order as of the frames magnified first."""
    x, w, b, cache = tensors((1, 16, 2, 3, 4), (16, 16, 3, 3, 3), 2, dtype=torch.float32, device=device)
    plan = Plan.parse("fprop:video:16x16x16:w4:s3")
    y = tritonconv.causal_conv3d(x, w, b, 1, 1, cache, False, upsample=2, summed_taps=False, plan=plan)
    x, cache = (F.interpolate(t, scale_factor=(1, 2, 2)).contiguous(memory_format=torch.channels_last_3d) for t in (x, cache))
    assert torch.equal(y, tritonconv.causal_conv3d(x, w, b, 1, 1, cache, False, plan=plan))


@pytest.mark.parametrize("plan", ["fprop:video:16x16x16:w4:s3", "fprop:video:32x16x32:w4:s3:group3"])
def test_tiles_that_end_inside(plan, device, launched):
    x, w, b, cache = tensors((2, 17, 2, 5, 7), (18, 17, 2, 3, 3), 1, device=device)
    y, after = tritonconv.causal_conv3d(x, w, b, 1, 1, cache, plan=Plan.parse(plan))
    assert_close(y, by_definition(x, w, b, 1, 1, cache))
    assert torch.equal(after, x[:, :, 1:])


def test_addresses_far_apart(device, launched, monkeypatch):
    x, w, b, cache = tensors((2, 16, 2, 3, 4), (8, 16, 2, 3, 3), 1, device=device)
    near = tritonconv.causal_conv3d(x, w, b, 1, 1, cache)
    monkeypatch.setattr(video_launch, "near_range", lambda *_: (1, 0))
    recipes.forget()
    far = tritonconv.causal_conv3d(x, w, b, 1, 1, cache)
    assert all(torch.equal(a, b) for a, b in zip(near, far, strict=True))


@pytest.mark.parametrize("name", ["one cached frame of two", "dilated in time", "replicate"])
def test_masked_addresses_inside_of_the_tensors(name, device, launched, monkeypatch):
    """As on compute capability 10.x: of a window that begins before the first frame too, whose first weights are skipped."""
    shape, weight, cached, window = CALLS[name]
    x, w, b, cache = tensors(shape, weight, cached, device=device)
    monkeypatch.setattr(steps, "masks_inside", lambda capability: True)
    video_launch.prepare.cache_clear(), recipes.forget()
    y, _ = tritonconv.causal_conv3d(x, w, b, cache=cache, **window)
    video_launch.prepare.cache_clear(), recipes.forget()
    assert_close(y, by_definition(x, w, b, cache=cache, **window))


@pytest.mark.parametrize("gigabytes, is_near", [(0, True), (60, True), (-60, True), (65, False), (-65, False)])
@pytest.mark.parametrize("batch", [1, 3])
def test_how_far_32_bits_reach(batch, gigabytes, is_near):
    """Units are 16 elements of 2 bytes. The images of one tensor may be farther apart than those of the other."""
    shape = (batch, 64, 4, 60, 104)
    chunk = model.Chunk.of(shape, (64, 64, 3, 3, 3), 2)
    low, high = video_launch.near_range(chunk, shape, (1 << 29, 0), 2)
    assert (low <= gigabytes << 29 <= high) == is_near
    if batch == 3:
        assert not low <= 63 << 29 <= high and low <= -63 << 29
    back, ahead = video_launch.near_range(chunk, shape, (0, 1 << 29), 2)
    reach = chunk.cached * 64 * 60 * 104
    assert (back, ahead) == (2 * reach - high, 2 * reach - low)


def views(x):
    """Tensors of the values of x that lie in other ways."""
    last = torch.channels_last_3d
    n, c, t, h, w = x.shape
    yield "frames of a longer sequence", torch.cat([x, x], 2).contiguous(memory_format=last)[:, :, t:]
    yield "every second frame", x.repeat_interleave(2, 2).contiguous(memory_format=last)[:, :, ::2]
    yield "a crop", F.pad(x, (1, 2, 0, 1)).contiguous(memory_format=last)[..., :h, 1 : 1 + w]
    yield "some of more channels", torch.cat([x, x], 1).contiguous(memory_format=last)[:, c:]
    yield "expanded", x[:1].expand(n, -1, -1, -1, -1)
    yield "time before batch", x.transpose(0, 2).contiguous(memory_format=last).transpose(0, 2)
    odd = x.new_zeros(x.numel() + 1)[1:].view(n, t, h, w, c).permute(0, 4, 1, 2, 3)
    yield "at an odd address", odd.copy_(x)


def test_any_strides(device, launched):
    x, w, b, cache = tensors((2, 4, 2, 4, 5), (3, 4, 3, 3, 3), 2, device=device)
    w = w.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    caches = list(views(cache))
    for (name, x_view), (_, cache_view) in zip(views(x), caches[3:] + caches[:3], strict=True):
        y, after = tritonconv.causal_conv3d(x_view, w, b, 1, 1, cache_view)
        assert_close(y, by_definition(x_view, w, b, 1, 1, cache_view))
        assert torch.equal(after, x_view), name


def test_nothing_to_do(device, launches):
    x, w, b, _ = tensors((1, 4, 2, 4, 5), (3, 4, 4, 3, 3), device=device)
    y, after = tritonconv.causal_conv3d(x[:0], w, b, padding=1)
    assert y.shape == (0, 3, 2, 4, 5) and after.shape == (0, 4, 3, 4, 5) and not launches()
    empty = x[:, :, :0]
    y, after = tritonconv.causal_conv3d(x, w, b, padding=1, cache=empty, time_padding="valid")
    assert y.shape == (1, 3, 0, 4, 5) and torch.equal(after, x)  # too few for a window: all are kept
    y, after = tritonconv.causal_conv3d(x, w, b, padding=1, cache=after, time_padding="valid")
    assert_close(y, by_definition(torch.cat([x, x], 2), w, b, padding=1, time_padding="valid"))
    y, after = tritonconv.causal_conv3d(x, w[:, :, :1], padding=1)
    assert_close(y, by_definition(x, w[:, :, :1], padding=1))
    assert after.shape == (1, 4, 0, 4, 5)


@pytest.mark.parametrize("shape, mode", [((0, 3, 2, 4, 4), "zeros"), ((1, 3, 1, 4, 4), "valid")])
def test_gradients_of_an_empty_result_are_zeros(shape, mode, device):
    """As of torch's conv3d: an empty batch, or no frames, leaves the weights a gradient."""
    x, w, b, cache = tensors(shape, (2, 3, 3, 3, 3), 1, device=device)
    given = [t.requires_grad_() for t in (x, w, b, cache)]
    y = tritonconv.causal_conv3d(x, w, b, padding=1, cache=cache, return_cache=False, time_padding=mode)
    assert y.numel() == 0
    for tensor, gradient in zip(given, torch.autograd.grad(y.sum(), given), strict=True):
        assert gradient.shape == tensor.shape and not gradient.any()


def test_64_bit_offsets(device, launched, monkeypatch):
    for name in ("wan, cached", "upsample, replicate", "strided"):
        x, w, cached, window = CALLS[name]
        x, w, b, cache = tensors(x, w, cached, device=device)
        want = tritonconv.causal_conv3d(x, w, b, cache=cache, **window)
        with monkeypatch.context() as patched:
            patched.setattr(video_launch, "fits_int32", lambda *_: False)
            video_launch.prepare.cache_clear(), recipes.forget()
            got = tritonconv.causal_conv3d(x, w, b, cache=cache, **window)
            video_launch.prepare.cache_clear(), recipes.forget()
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True)), name


def test_a_window_far_wider_than_the_frame(device, launched):
    """From row to row of a filter is more than 2^31 units, though all of x is near."""
    width, apart = 100_000, 5_500
    x, w, _, _ = tensors((1, 16, 1, 1, width), (1, 16, 1, 3, 1), device=device)
    y, _ = tritonconv.causal_conv3d(x, w, padding=(apart, 0), dilation=(1, apart, 1))
    assert_close(y, by_definition(x, w[:, :, :, 1:2]))


def test_the_recipe_of_the_docs(device, launched):
    """As it is written, but for the sizes and the device."""
    text = (Path(__file__).parent.parent / "docs" / "functions.md").read_text()
    (recipe,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "causal_conv3d" in block]
    small = recipe.replace('"cuda"', f'"{device}"').replace("384", "16").replace("60, 104", "3, 4")
    names = {"torch": torch, "tritonconv": tritonconv}
    exec(small, names)
    layer, video = names["layer"], names["video"]
    got = torch.cat(names["results"], 2)
    assert_close(got, by_definition(video, layer.weight, layer.bias, padding=1).detach(), 1.01 * UNIT[torch.bfloat16])
    assert torch.equal(names["cache"], video[:, :, -2:])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("last", [True, False], ids=["channels-last", "contiguous"])
@pytest.mark.parametrize("name", CALLS)
def test_on_a_gpu(name, last, dtype, device, launched):
    (n, _, t, h, width), (_, _, *kernel), cached, window = CALLS[name]
    x, w, b, cache = tensors((n, 96, t, 8 * h, 8 * width), (192, 96, *kernel), cached, last, dtype, device)
    y, after = tritonconv.causal_conv3d(x, w, b, cache=cache, **window)
    assert_close(y, by_definition(x, w, b, cache=cache, **window), 1.01 * UNIT[dtype])
    want = tritonconv.causal_conv3d(*(t.cpu() for t in (x, w, b)), cache=None if cache is None else cache.cpu(), **window)[1]
    assert torch.equal(after.cpu(), want)


@pytest.mark.gpu
def test_a_result_above_2_to_31_elements(device, launched):
    """Of a frame that 32-bit offsets do not reach across."""
    x, cache = (torch.randn(1, 16, t, 4096, 4096, device=device, dtype=torch.bfloat16) for t in (2, 1))
    w = torch.randn(80, 16, 2, 3, 3, device=device, dtype=torch.bfloat16)
    y, after = tritonconv.causal_conv3d(x, w, padding=1, cache=cache)
    assert y.is_contiguous() and y.numel() > 2**31
    x_crop, before = (t[..., 4000:4018, 4069:4091] for t in (x, cache))
    assert_close(
        y[..., 4001:4017, 4070:4090], by_definition(x_crop.cpu(), w.cpu(), cache=before.cpu()), 1.01 * UNIT[torch.bfloat16]
    )
    assert torch.equal(after, x[:, :, 1:])
