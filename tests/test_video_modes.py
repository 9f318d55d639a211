"""Padding of height and width other than zeros, against frames that torch padded."""

import pytest
import torch
import torch.nn.functional as F
from chunks import assert_close, tensors, written_out

import tritonconv

MODES = ["replicate", "reflect", "circular"]


def by_definition(x, w, b, cache, pads, mode, stride=1, dilation=1, upsample=1, time_padding="zeros"):
    line = written_out(x, cache, w.shape[2] - 1, time_padding).double()
    n, t = line.shape[0], line.shape[2]
    frames = line.transpose(1, 2).flatten(0, 1)
    if upsample == 2:
        frames = F.interpolate(frames, scale_factor=2, mode="nearest")
    frames = F.pad(frames, (pads[1], pads[1], pads[0], pads[0]), mode)
    line = frames.view(n, t, *frames.shape[1:]).transpose(1, 2)
    return F.conv3d(line, w.double(), b.double(), (1, stride, stride), 0, (1, dilation, dilation))


CALLS = {
    "hunyuan": ((2, 3, 2, 4, 5), (2, 3, 3, 3, 3), 0, (1, 1), {"time_padding": "replicate"}),
    "cached, wide": ((1, 3, 1, 4, 5), (2, 3, 2, 5, 3), 1, (3, 2), {}),
    "strided, dilated": ((1, 3, 1, 5, 6), (2, 3, 1, 3, 2), 0, (2, 1), {"stride": 2, "dilation": 2}),
    "upsample": ((1, 3, 2, 3, 4), (2, 3, 2, 3, 3), 1, (1, 1), {"upsample": 2}),
}


def call(x, w, b, cache, pads, mode, **window):
    window = dict(window)
    for name in ("stride", "dilation"):
        if name in window:
            window[name] = (1, window[name], window[name])
    return tritonconv.causal_conv3d(x, w, b, padding=pads, cache=cache, padding_mode=mode, return_cache=False, **window)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CALLS)
def test_the_definition(name, mode, device, launched):
    shape, weight, cached, pads, window = CALLS[name]
    x, w, b, cache = tensors(shape, weight, cached, device=device)
    assert_close(call(x, w, b, cache, pads, mode, **window), by_definition(x, w, b, cache, pads, mode, **window))


@pytest.mark.parametrize("mode", MODES)
def test_with_a_prologue(mode, device, launched):
    """The border repeats what is convolved, by index, so both ways agree."""
    x, w, b, cache = tensors((1, 3, 2, 3, 4), (2, 3, 2, 3, 3), 1, device=device)
    prologue = tritonconv.rms_norm_prologue(x, x.new_tensor([1, 2, 3]), eps=0.1, activation="silu")
    known = F.silu(x * (x.square().mean(1, True) + 0.1).rsqrt() * x.new_tensor([1, 2, 3]).view(-1, 1, 1, 1))
    want = by_definition(known, w, b, cache, (1, 2), mode)
    for plan in ("fprop:video:64x16x16:w4:s3", "fprop:video:64x16x16:w4:s3:apart"):
        assert_close(call(x, w, b, cache, (1, 2), mode, prologue=prologue, plan=plan), want)


@pytest.mark.parametrize("mode", MODES)
def test_gradients(mode, device):
    shape, weight, cached, pads, window = CALLS["cached, wide"]
    x, w, b, cache = tensors(shape, weight, cached, device=device)
    found = []
    for function in (call, by_definition):
        leaves = [t.detach().clone().requires_grad_() for t in (x, w, b, cache)]
        y = function(*leaves, pads, mode, **window)
        into = torch.linspace(-1, 2, y.numel(), dtype=y.dtype, device=device).view(y.shape)
        found.append(torch.autograd.grad(y, leaves, into))
    for got, want in zip(*found, strict=True):
        assert_close(got, want, 1e-12)


X, W = torch.zeros(1, 4, 2, 5, 6), torch.zeros(3, 4, 3, 3, 3)


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"padding_mode": "mirror"}, ValueError, "padding_mode must be one of 'zeros', .*, got padding_mode='mirror'"),
        ({"padding_mode": "reflect", "padding": (5, 0)}, RuntimeError, "'reflect' takes padding of less than the 5 pixels"),
        ({"padding_mode": "circular", "padding": (0, 7)}, RuntimeError, "'circular' takes padding of at most the 6 pixels"),
    ],
)
def test_errors_name_the_argument(change, error, words, launches):
    with pytest.raises(error, match=words):
        tritonconv.causal_conv3d(**{"x": X, "weight": W} | change)
    assert not launches()
