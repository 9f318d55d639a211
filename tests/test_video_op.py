"""`causal_conv3d` as an op of torch: gradients, compiled graphs, autocast, errors."""

import pytest
import torch
from chunks import CALLS, OPS, assert_close, by_definition, tensors, written_out
from torch.utils.flop_counter import FlopCounterMode

import tritonconv
from costmodel.tiling import Plan

GRADIENTS = [
    "wan, first chunk",
    "one cached frame of two",
    "upsample frames",
    "replicate the cache's",
    "wan's downsampler",
    "upsample, replicate",
]


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
