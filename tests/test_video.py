"""The causal convolution of video against its definition in float64: the known frames written out, then torch's conv3d."""

import doctest
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import costmodel
import tritonconv
from bench.tolerance import UNIT
from costmodel import video as model
from costmodel.device import DEVICES, find_device
from costmodel.tiling import Plan
from tritonconv.video import check as video_check
from tritonconv.video import cpu as video_cpu
from tritonconv.video import launch as video_launch
from tritonconv.video.op import chunk_of

OPS = torch.ops.tritonconv


def written_out(x, cache, reach, time_padding):
    """The frames that the first window begins with, to the last of x."""
    line = x if cache is None else torch.cat([cache, x], 2)
    if time_padding != "valid":
        for _ in range(reach - (line.shape[2] - x.shape[2])):
            before = line[:, :, :1] if time_padding == "replicate" else torch.zeros_like(line[:, :, :1])
            line = torch.cat([before, line], 2)
    return line


def by_definition(x, w, b=None, stride=1, padding=0, cache=None, dilation=1, upsample=1, time_padding="zeros"):
    """y in float64."""
    x, w, b, cache = (None if t is None else t.double() for t in (x, w, b, cache))
    in_time = dilation if isinstance(dilation, int) else dilation[0]
    line = written_out(x, cache, in_time * (w.shape[2] - 1), time_padding)
    if upsample == 2:
        line = F.interpolate(line, scale_factor=(1, 2, 2), mode="nearest")
    pads = (padding, padding) if isinstance(padding, int) else padding
    return F.conv3d(line, w, b, stride, (0, *pads), dilation)


def tensors(x, w, cached=0, last=True, dtype=torch.float64, device="cpu", seed=0):
    """x, weight, bias and cache of these shapes."""
    random = torch.Generator().manual_seed(seed)

    def values(*shape):
        found = torch.randn(shape, generator=random, dtype=torch.float64).to(dtype).to(device)
        return found.to(memory_format=torch.channels_last_3d) if last and len(shape) == 5 else found

    cache = values(*x[:2], cached, *x[3:]) if cached else None
    return values(*x), values(*w), values(w[0]), cache


def assert_close(got, want, rounding=1e-13):
    assert got.shape == want.shape
    if want.numel():
        assert (got.detach().cpu().double() - want.cpu()).abs().max() <= rounding * want.abs().max()


CALLS = {
    "wan, cached": ((2, 5, 1, 6, 7), (4, 5, 3, 3, 3), 2, {"padding": 1}),
    "wan, first chunk": ((1, 5, 1, 6, 7), (4, 5, 3, 3, 3), 0, {"padding": 1}),
    "one cached frame of two": ((1, 5, 2, 6, 7), (4, 5, 3, 3, 3), 1, {"padding": 1}),
    "replicate": ((2, 5, 3, 6, 7), (4, 5, 3, 3, 3), 0, {"padding": 1, "time_padding": "replicate"}),
    "replicate the cache's": ((1, 5, 2, 4, 5), (4, 5, 4, 1, 1), 1, {"time_padding": "replicate"}),
    "replicate, dilated": (
        (1, 4, 3, 5, 4),
        (3, 4, 3, 3, 2),
        1,
        {"time_padding": "replicate", "dilation": (2, 1, 2), "padding": (0, 1)},
    ),
    "dilated in time": ((1, 4, 3, 4, 5), (3, 4, 3, 1, 1), 3, {"dilation": (2, 1, 1)}),
    "wan's downsampler": ((1, 5, 4, 6, 7), (4, 5, 3, 1, 1), 1, {"stride": (2, 1, 1), "time_padding": "valid"}),
    "strided": ((2, 4, 4, 6, 7), (3, 4, 3, 3, 3), 2, {"stride": (2, 2, 3), "padding": (1, 2)}),
    "stride over the kernel": ((1, 4, 4, 6, 7), (3, 4, 1, 2, 2), 0, {"stride": (2, 3, 3)}),
    "a window of 49 taps": ((1, 4, 2, 6, 7), (3, 4, 2, 7, 7), 1, {"padding": 3, "dilation": (1, 1, 2)}),
    "no spatial padding": ((1, 4, 2, 6, 7), (3, 4, 2, 3, 3), 1, {}),
    "upsample frames": ((2, 5, 2, 4, 5), (4, 5, 1, 3, 3), 0, {"padding": 1, "upsample": 2}),
    "upsample": ((1, 5, 2, 4, 5), (4, 5, 3, 3, 3), 1, {"padding": 1, "upsample": 2}),
    "upsample, odd": ((1, 3, 2, 4, 5), (4, 3, 2, 2, 4), 1, {"padding": (0, 2), "dilation": (1, 2, 1), "upsample": 2}),
    "upsample, replicate": ((1, 3, 2, 3, 4), (4, 3, 3, 3, 3), 0, {"padding": 2, "upsample": 2, "time_padding": "replicate"}),
}


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
            video_check.follows(chunk, frames)
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
    y = tritonconv.causal_conv3d(x, w, b, 1, 1, cache, False, upsample=2, plan=plan)
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
    monkeypatch.setattr(video_launch, "near", lambda *_: False)
    far = tritonconv.causal_conv3d(x, w, b, 1, 1, cache)
    assert all(torch.equal(a, b) for a, b in zip(near, far, strict=True))


class Far:
    """A tensor that lies somewhere."""

    def __init__(self, shape, address):
        self.shape, self.address, self.strides = shape, address, torch.empty(shape, device="meta").stride()

    def element_size(self):
        return 2

    def data_ptr(self):
        return self.address

    def stride(self, axis):
        return self.strides[axis]


@pytest.mark.parametrize("gigabytes, is_near", [(0, True), (60, True), (-60, True), (65, False), (-65, False)])
def test_how_far_32_bits_reach(gigabytes, is_near):
    chunk = model.Chunk.of((1, 64, 4, 60, 104), (64, 64, 3, 3, 3), 2)
    x, cache = Far((1, 64, 4, 60, 104), (100 + gigabytes) << 30), Far((1, 64, 2, 60, 104), 100 << 30)
    assert video_launch.near(chunk, x, cache) == is_near


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
            video_launch.prepare.cache_clear()
            got = tritonconv.causal_conv3d(x, w, b, cache=cache, **window)
            video_launch.prepare.cache_clear()
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True)), name


def test_a_window_far_wider_than_the_frame(device, launched):
    """From row to row of a filter is more than 2^31 units, though all of x is near."""
    width, apart = 100_000, 5_500
    x, w, _, _ = tensors((1, 16, 1, 1, width), (1, 16, 1, 3, 1), device=device)
    y, _ = tritonconv.causal_conv3d(x, w, padding=(apart, 0), dilation=(1, apart, 1))
    assert_close(y, by_definition(x, w[:, :, :, 1:2]))


GRADIENTS = ["one cached frame of two", "replicate the cache's", "wan's downsampler", "upsample, replicate"]


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name, device):
    """By torch's rules on the definition, which has them from autograd; y and the next cache both count."""
    shape, weight, cached, window = CALLS[name]
    x, w, b, cache = tensors(shape, weight, cached, device=device)
    reach = window.get("dilation", (1,))[0] * (weight[2] - 1)

    def ours(*leaves):
        return tritonconv.causal_conv3d(*leaves[:3], cache=leaves[3] if cached else None, **window)

    def definition(x, w, b, cache=None):
        y = by_definition(x, w, b, cache=cache, **window)
        line = written_out(x, cache, reach, window.get("time_padding", "zeros"))
        kept = line.shape[2] - 2 * y.shape[2] if window.get("time_padding") == "valid" else reach
        return y, line[:, :, line.shape[2] - kept :]

    found = []
    for call in (ours, definition):
        leaves = [t.detach().clone().requires_grad_() for t in (x, w, b, cache) if t is not None]
        y, after = call(*leaves)
        into = [torch.linspace(-1, 2, t.numel(), dtype=t.dtype, device=device).view(t.shape) for t in (y, after)]
        first = torch.autograd.grad((y, after), leaves, into, create_graph=True)
        second = torch.autograd.grad([g.square().sum() for g in first if g.requires_grad], leaves, allow_unused=True)
        found.append([*first, *(t for t in second if t is not None)])
    assert len(found[0]) == len(found[1])
    for got, want in zip(*found, strict=True):
        assert_close(got, want.detach(), 1e-12)


def test_gradcheck(device):
    x, w, _, cache = tensors((1, 1, 1, 2, 1), (1, 1, 3, 2, 1), 1, device=device)
    leaves = [t.requires_grad_() for t in (x, w, cache)]

    def call(x, w, cache):
        return tritonconv.causal_conv3d(x, w, cache=cache, time_padding="replicate")

    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


def test_a_gradient_that_is_expanded_or_absent(device):
    x, w, b, cache = tensors((1, 3, 2, 4, 5), (4, 3, 3, 3, 3), 2, device=device)
    leaves = [t.requires_grad_() for t in (x, w, b, cache)]
    y, after = tritonconv.causal_conv3d(*leaves[:3], padding=1, cache=cache)
    dx, dcache = torch.autograd.grad(after.sum(), (x, cache), retain_graph=True, allow_unused=True)
    assert torch.equal(dx, torch.ones_like(x)) and not dcache.any()  # of the next cache, two frames of x
    got = torch.autograd.grad(y.sum(), leaves)  # an expanded gradient
    want = torch.autograd.grad(by_definition(x, w, b, 1, 1, cache).sum(), leaves)
    for ours, theirs in zip(got, want, strict=True):
        assert_close(ours, theirs, 1e-12)


def test_compiles_whole(device):
    x, w, b, cache = tensors((1, 3, 2, 4, 5), (4, 3, 3, 3, 3), 2, dtype=torch.float32, device=device)

    def call(x, w, b, cache):
        y, cache = tritonconv.causal_conv3d(x, w, b, 1, 1, cache)
        y, cache = tritonconv.causal_conv3d(torch.relu(x), w, b, 1, "same", cache, upsample=2)
        return y, cache

    leaves, results = [t.requires_grad_() for t in (x, w, b, cache)], []
    for function in (call, torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")):
        y, after = function(*leaves)
        results.append([y, after, *torch.autograd.grad(y.sum() + after.square().sum(), leaves)])
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)
    assert all(ours.stride() == theirs.stride() for ours, theirs in zip(results[0][:2], results[1], strict=False))


def test_the_op_keeps_its_promises(device):
    x, w, b, cache = tensors((1, 2, 1, 2, 3), (2, 2, 2, 2, 2), 1, dtype=torch.float32, device=device)
    leaves = [t.requires_grad_() for t in (x, w, b, cache)]
    torch.library.opcheck(OPS.video.default, (*leaves, [1, 1, 1], [1, 1, 0, 1], [1, 1, 1], 2, "zeros", True))
    x, w = x.detach().contiguous(), w.detach()
    with pytest.raises(RuntimeError, match=r"same dtype, got .*float32 and .*float64"):
        OPS.video(x, w, None, cache.double(), [1, 1, 1], [0] * 4, [1, 1, 1], 1, "zeros", False)
    torch.library.opcheck(OPS.video.default, (x, w, None, None, [2, 1, 1], [0] * 4, [1, 1, 1], 1, "replicate", False))


def test_autocast_flops_and_functions_of_functions(device):
    x, w, b, cache = tensors((1, 3, 2, 4, 5), (4, 3, 3, 3, 3), 2, dtype=torch.float32, device=device)
    with torch.autocast(device, torch.bfloat16):
        y, after = tritonconv.causal_conv3d(x, w, b, 1, 1, cache)
    assert y.dtype == after.dtype == torch.bfloat16
    with FlopCounterMode(display=False) as counted:
        y, _ = tritonconv.causal_conv3d(x.requires_grad_(), w.requires_grad_(), b, 1, 1, cache)
        y.sum().backward()
    assert counted.get_total_flops() == 3 * 2 * (2 * 4 * 5) * 4 * 3 * 27 + 2 * (2 * 2 * 4 * 5) * 0
    got = torch.func.grad(lambda x: tritonconv.causal_conv3d(x, w, b, 1, 1, cache, False).square().sum())(x.detach())
    want = torch.func.grad(lambda x: by_definition(x, w, b, 1, 1, cache).square().sum())(x.detach().double())
    assert_close(got, want.detach(), 1e-5)


X, W = torch.zeros(1, 4, 2, 5, 6), torch.zeros(3, 4, 3, 3, 3)


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"x": "x"}, TypeError, "'x' must be a Tensor, got str"),
        ({"x": X[0]}, RuntimeError, r"x of 5 axes \[N, C, T, H, W\], got x \[4, 2, 5, 6\]"),
        ({"x": X[:, :, :0]}, RuntimeError, r"only the batch may be empty, got x of shape \[1, 4, 0, 5, 6\]"),
        ({"weight": W[:, :3]}, RuntimeError, r"weight of 4 channels .*got weight \[3, 3, 3, 3, 3\]"),
        ({"weight": W.half()}, RuntimeError, "same dtype, got x torch.float32 and weight torch.float16"),
        ({"bias": torch.zeros(4)}, RuntimeError, r"bias of shape \[3\].*got bias \[4\]"),
        ({"cache": X.double()}, RuntimeError, "same dtype, got x torch.float32 and cache torch.float64"),
        ({"cache": X.to("meta")}, RuntimeError, "same device, got x cpu and cache meta"),
        ({"cache": X[:, :3]}, RuntimeError, r"cache of shape \[1, 4, 0 to 2, 5, 6\].*got cache \[1, 3, 2, 5, 6\]"),
        ({"cache": torch.zeros(1, 4, 3, 5, 6)}, RuntimeError, r"cache of shape \[1, 4, 0 to 2, 5, 6\].*\[1, 4, 3, 5, 6\]"),
        ({"cache": X[..., :5]}, RuntimeError, r"got cache \[1, 4, 2, 5, 5\]"),
        ({"stride": (1, 1)}, RuntimeError, "stride to be an int or 3 ints, got 2"),
        ({"stride": (3, 1, 1)}, RuntimeError, r"multiple of 3 frames.*got x \[1, 4, 2, 5, 6\].*return_cache=False"),
        ({"padding": (1, 1, 1)}, RuntimeError, r"padding is \(height, width\), got padding=\(1, 1, 1\).*last two, \(1, 1\)"),
        ({"padding": "valid"}, RuntimeError, "must be 'same', an int or .* got padding='valid'"),
        ({"padding": "same", "stride": (1, 2, 2)}, RuntimeError, r"'same' is not supported .* got stride=\(1, 2, 2\)"),
        ({"padding": -1}, RuntimeError, "negative padding"),
        ({"dilation": (1, 3, 1)}, RuntimeError, r"larger than the padded frame: weight .* with dilation=\(1, 3, 1\)"),
        ({"return_cache": 1}, TypeError, "'return_cache' must be bool, got 1 of type int"),
        ({"upsample": 3}, ValueError, "upsample must be 1 or 2, got upsample=3"),
        ({"upsample": 2, "stride": (1, 2, 1)}, RuntimeError, r"goes with stride 1 in height and width, got stride=\(1, 2, 1\)"),
        ({"time_padding": "reflect"}, ValueError, "one of 'zeros', 'replicate', 'valid', got time_padding='reflect'"),
        (
            {"x": X[:, :, :1], "weight": W[:, :, :1], "stride": (3, 1, 1), "time_padding": "valid"},
            RuntimeError,
            "begins 2 frames behind x",
        ),
        ({"plan": Plan.parse("fprop:gather:64x64x64:w4:s3")}, ValueError, "takes plans fprop:video, got fprop:gather"),
        ({"plan": Plan.parse("fprop:video:64x64x64:w4:s3:split2")}, ValueError, "knows a tile, warps, stages and group only"),
        ({"plan": Plan.parse("fprop:video:64x64x64:w64:s3")}, ValueError, "warps must be a power of two of at most 32, got 64"),
        ({"plan": Plan.parse("fprop:video:64x64x16:w4:s3:group2147483648")}, ValueError, r"below 2\^31, got group 2147483648"),
        ({"plan": Plan.parse("fprop:video:2048x1024x16:w4:s1")}, ValueError, "span at most 1048576 values, got 2048x1024x16"),
        ({"plan": Plan.parse("fprop:video:64x8x64:w4:s3")}, ValueError, "block_n must be a power of two of at least 16"),
    ],
)
def test_errors_name_the_argument(change, error, words, launches):
    with pytest.raises(error, match=words):
        tritonconv.causal_conv3d(**{"x": X, "weight": W} | change)
    assert not launches()


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
            assert not model.refuses(chunk, plan, dtype, device)
            far = model.select(chunk, dtype, precision, device, far=True)
            assert far.block_m * far.block_n <= 64 * 64
        assert all(found.block_m <= 128 for found in model.candidates(chunk, "bfloat16", "ieee", device, last=False))
        with pytest.raises(ValueError, match="shared memory"):
            model.checked(chunk, Plan.parse("fprop:video:256x256x128:w8:s4"), "float32", device)


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


def test_the_recipe_of_the_readme(device, launched):
    """As it is written, but for the sizes and the device."""
    text = (Path(__file__).parent.parent / "README.md").read_text()
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
