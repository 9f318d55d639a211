"""Prologues of `causal_conv3d`: a normalisation and an activation while pixels are gathered, or by a kernel of their own."""

import pytest
import torch
import torch.nn.functional as F
from chunks import CALLS, assert_close, by_definition, tensors, written_out

import tritonconv
from costmodel.tiling import Plan
from tritonconv import recipes, steps
from tritonconv.epilogue import ACTIVATIONS
from tritonconv.video import launch as video_launch

TOGETHER, APART = "fprop:video:64x16x16:w4:s3", "fprop:video:64x16x16:w4:s3:apart"


def values(x, kinds, activation="silu", seed=7):
    """A prologue of x with these of "scale", "shift" and "rstd", in the dtype of statistics."""
    random = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    n, c, t, *size = x.shape
    shapes = {"scale": (n, c), "shift": (n, c), "rstd": (n, t, *size), "frames": (n, t, c), "weight": (c,)}

    def made(kind):
        return torch.randn(shapes[kind], generator=random, dtype=torch.float64).to(dtype).to(x.device)

    named = {{"frames": "scale", "weight": "scale"}.get(kind, kind): made(kind) for kind in kinds}
    return tritonconv.Prologue(**named, activation=activation)


def applied(x, prologue, exact=False):
    """x with a prologue by torch, in float64; rounded to x's dtype unless `exact`."""
    z = x.double()
    if prologue.rstd is not None:
        z = z * prologue.rstd.double().unsqueeze(1)
    for name in ("scale", "shift"):
        value = getattr(prologue, name)
        if value is not None:
            value = value.double().view(*{1: (1, 1), 2: (len(value), 1), 3: value.shape[:2]}[value.dim()], -1)
            value = value.transpose(1, 2)[..., None, None]
            z = z * value if name == "scale" else z + value
    z = ACTIVATIONS[prologue.activation].forward(z, prologue.negative_slope) if prologue.activation else z
    return z if exact else z.to(x.dtype)


KINDS = [("scale", "shift"), ("rstd", "weight"), ("frames",), ("shift",), ("rstd",), ()]
CASES = ["wan, cached", "replicate", "replicate the cache's", "upsample", "strided", "wan's downsampler", "upsample, odd"]


@pytest.mark.parametrize("plan", [TOGETHER, APART], ids=["together", "apart"])
@pytest.mark.parametrize("name, kinds", [(name, KINDS[i % 6]) for i, name in enumerate(CASES)])
def test_the_definition(name, kinds, plan, device, launched):
    """The frames of x are normalised, those of the cache and padding are not; the next cache holds what was convolved."""
    shape, weight, cached, window = CALLS[name]
    x, w, b, cache = tensors(shape, weight, cached, device=device)
    prologue = values(x, kinds)
    y, after = tritonconv.causal_conv3d(x, w, b, cache=cache, prologue=prologue, plan=plan, **window)
    known = applied(x, prologue)
    assert_close(y, by_definition(known, w, b, cache=cache, **window))
    reach = window.get("dilation", (1,))[0] * (weight[2] - 1)
    line = written_out(known, cache, reach, window.get("time_padding", "zeros"))
    kept = line[:, :, line.shape[2] - after.shape[2] :]
    assert (after - kept).abs().max() <= 1e-14 * kept.abs().max()


def test_masked_addresses_inside_of_the_tensors(device, launched, monkeypatch):
    """As on compute capability 10.x, in a chunk without a cache."""
    x, w, b, _ = tensors((1, 5, 2, 3, 4), (4, 5, 3, 3, 3), device=device)
    prologue = values(x, ("rstd", "weight", "shift"))
    want = by_definition(applied(x, prologue), w, b, 1, 1)
    monkeypatch.setattr(steps, "masks_inside", lambda capability: True)
    video_launch.prepare.cache_clear(), recipes.forget()
    y, _ = tritonconv.causal_conv3d(x, w, b, 1, 1, prologue=prologue, plan=TOGETHER)
    video_launch.prepare.cache_clear(), recipes.forget()
    assert_close(y, want)


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_every_activation(activation, device, launched):
    x, w, _, cache = tensors((1, 3, 1, 3, 4), (2, 3, 2, 2, 2), 1, device=device)
    prologue = values(x, ("shift",), activation)
    y = tritonconv.causal_conv3d(x, w, cache=cache, return_cache=False, padding=1, prologue=prologue)
    assert_close(y, by_definition(applied(x, prologue), w, cache=cache, padding=1))
    assert_close(prologue(x), applied(x, prologue))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_both_ways_agree(dtype, device, launched):
    """They convolve the same rounded values, so in the interpreter, which contracts nothing, they have the same bits."""
    x, w, b, cache = tensors((1, 20, 2, 3, 4), (6, 20, 3, 3, 3), 2, dtype=dtype, device=device)
    prologue = values(x, ("rstd", "weight", "shift"))
    results = [tritonconv.causal_conv3d(x, w, b, 1, 1, cache, prologue=prologue, plan=plan) for plan in (TOGETHER, APART)]
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    known = applied(x, prologue)
    unit = 2 * torch.finfo(dtype).eps
    assert (results[0][1].double() - known.double()).abs().max() <= unit * known.double().abs().max()


def test_any_layout_and_values_of_x_dtype(device, launched):
    x, w, b, cache = tensors((2, 4, 2, 4, 5), (3, 4, 2, 3, 3), 1, last=False, dtype=torch.float32, device=device)
    scale = torch.randn(2, 8, 2, device=device).transpose(1, 2)[..., ::2]  # channels that are not contiguous
    rstd = torch.rand(2, 2, 5, 4, device=device).transpose(2, 3)
    prologue = tritonconv.Prologue(scale, None, rstd, "relu")
    want = by_definition(applied(x, prologue), w, b, 1, 1, cache)
    for plan in (None, TOGETHER, APART):
        y, _ = tritonconv.causal_conv3d(x, w, b, 1, 1, cache, prologue=prologue, plan=plan)
        assert_close(y, want, 1e-6)
        assert y.is_contiguous()
    assert_close(prologue(x), applied(x, prologue), 1e-6)


def test_chunks_of_a_video(device, launched):
    """Statistics of each chunk's own frames, and a cache that needs none of an earlier one."""
    x, w, b, _ = tensors((1, 4, 5, 3, 4), (4, 4, 3, 3, 3), device=device)
    cache, results = None, []
    for chunk in x.split([1, 3, 1], 2):
        prologue = tritonconv.group_norm_prologue(chunk, 2, activation="silu")
        y, cache = tritonconv.causal_conv3d(chunk, w, b, padding=1, cache=cache, prologue=prologue)
        results.append(y)
    known = torch.cat([F.silu(F.group_norm(chunk, 2)) for chunk in x.split([1, 3, 1], 2)], 2)
    assert_close(torch.cat(results, 2), by_definition(known, w, b, padding=1))
    assert (cache - known[:, :, -2:]).abs().max() < 1e-13


@pytest.mark.parametrize("groups", [2, 3])
def test_groups(groups, device, launched):
    shape, cached = (2, 6, 2, 4, 5), 1
    x, w, b, cache = tensors(shape, (6, 6 // groups, 2, 3, 3), 0, device=device)
    _, _, _, cache = tensors(shape, (6, 6, 2, 3, 3), cached, device=device)
    prologue = values(x, ("scale", "shift"))
    known = torch.cat([cache, applied(x, prologue)], 2)
    want = F.conv3d(known, w, b, padding=(0, 1, 1), groups=groups)
    for plan in (TOGETHER, APART):
        y, after = tritonconv.causal_conv3d(x, w, b, 1, 1, cache, groups=groups, prologue=prologue, plan=plan)
        assert_close(y, want)
        assert_close(after, known[:, :, -1:])
    y, _ = tritonconv.causal_conv3d(x, w, b, 1, 1, cache, groups=groups)
    assert_close(y, F.conv3d(torch.cat([cache, x], 2), w, b, padding=(0, 1, 1), groups=groups))


@pytest.mark.parametrize("name", ["wan, cached", "upsample", "wan's downsampler"])
def test_a_shared_reduction(name, device, launches):
    """With everything that goes with it; the shares end inside a block of channels."""
    (n, _, *shape), (filters, _, *kernel), cached, window = CALLS[name]
    x, w, b, cache = tensors((n, 44, *shape), (filters, 44, *kernel), cached, device=device)
    prologue = values(x, ("rstd", "weight", "shift"))
    want = by_definition(applied(x, prologue), w, b, cache=cache, **window)
    residual = torch.randn(want.shape, dtype=torch.float64, device=device).contiguous()
    for plan in ("fprop:video:64x16x16:w4:s3:split3", "fprop:video:64x16x32:w4:s3:apart:split2"):
        given = {"prologue": prologue, "residual": residual, "plan": plan, **window}
        y, after = tritonconv.causal_conv3d(x, w, b, cache=cache, **given)
        assert_close(y, want + residual)
        assert after.shape[1] == 44 and torch.equal(y, tritonconv.causal_conv3d(x, w, b, cache=cache, **given)[0])
    plain = tritonconv.causal_conv3d(x, w, b, cache=cache, plan="fprop:video:64x16x16:w4:s3:split3", **window)
    assert_close(plain[0], by_definition(x, w, b, cache=cache, **window))
    assert launches()["reduce"] == 5


@pytest.mark.parametrize("last", [True, False], ids=["channels-last", "contiguous"])
def test_a_residual(last, device, launched):
    """Added before the one rounding, whatever its strides."""
    for dtype, unit in ((torch.float64, 1e-13), (torch.bfloat16, 1.01 * 2.0**-8)):
        x, w, b, cache = tensors((1, 4, 2, 4, 5), (6, 4, 3, 3, 3), 2, last, dtype, device)
        residual = torch.randn(1, 6, 2, 4, 5, device=device).to(dtype)
        want = by_definition(x, w, b, 1, 1, cache)
        for beside in (residual, residual.to(memory_format=torch.channels_last_3d), residual[..., :1].expand_as(residual)):
            y, _ = tritonconv.causal_conv3d(x, w, b, 1, 1, cache, residual=beside)
            assert_close(y, want + beside.double(), unit)
        y, _ = tritonconv.causal_conv3d(x, w, None, 1, 1, cache, residual=residual, prologue=values(x, ("scale",)))
        assert_close(y, by_definition(applied(x, values(x, ("scale",))), w, None, 1, 1, cache) + residual.double(), unit)


@pytest.mark.parametrize("kinds", [("scale", "shift"), ("rstd", "weight"), ("frames",)])
def test_gradients(kinds, device):
    x, w, b, cache = tensors((1, 3, 2, 3, 3), (2, 3, 2, 2, 2), 1, device=device)
    given = values(x, kinds)
    residual = torch.randn(1, 2, 2, 4, 4, dtype=torch.float64, device=device)

    def ours(x, w, b, cache, residual, *tensors):
        named = dict(zip((n for n in ("scale", "shift", "rstd") if getattr(given, n) is not None), tensors, strict=True))
        prologue = tritonconv.Prologue(**named, activation="silu")
        return tritonconv.causal_conv3d(x, w, b, 1, 1, cache, prologue=prologue, residual=residual)

    def definition(x, w, b, cache, residual, *tensors):
        named = dict(zip((n for n in ("scale", "shift", "rstd") if getattr(given, n) is not None), tensors, strict=True))
        known = applied(x, tritonconv.Prologue(**named, activation="silu"), exact=True)
        return by_definition(known, w, b, 1, 1, cache) + residual, known[:, :, -1:]

    found = []
    for call in (ours, definition):
        tensor_values = [t for t in given[:3] if t is not None]
        leaves = [t.detach().clone().requires_grad_() for t in (x, w, b, cache, residual, *tensor_values)]
        y, after = call(*leaves)
        into = [torch.linspace(-1, 2, t.numel(), dtype=t.dtype, device=device).view(t.shape) for t in (y, after)]
        first = torch.autograd.grad((y, after), leaves, into, create_graph=True)
        second = torch.autograd.grad([g.square().sum() for g in first if g.requires_grad], leaves, allow_unused=True)
        found.append([*first, *(t for t in second if t is not None)])
    assert len(found[0]) == len(found[1])
    for got, want in zip(*found, strict=True):
        assert_close(got, want.detach(), 1e-12)


X, W = torch.zeros(1, 4, 2, 5, 6), torch.zeros(3, 4, 3, 3, 3)


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"prologue": "silu"}, TypeError, "'prologue' must be a tritonconv.Prologue, got str"),
        ({"prologue": tritonconv.Prologue(scale=1.0)}, TypeError, r"'prologue.scale' must be a Tensor or None, got float"),
        ({"prologue": tritonconv.Prologue(scale=torch.zeros(5))}, RuntimeError, r"scale of shape \[4\], .*got .*scale \[5\]"),
        ({"prologue": tritonconv.Prologue(shift=torch.zeros(2, 4))}, RuntimeError, r"\[1, 4\].*got prologue.shift \[2, 4\]"),
        ({"prologue": tritonconv.Prologue(torch.zeros(1, 3, 4))}, RuntimeError, r"\[1, 2, 4\].*got prologue.scale \[1, 3, 4\]"),
        ({"prologue": tritonconv.Prologue(rstd=torch.zeros(1, 2, 5))}, RuntimeError, r"rstd of shape \[1, 2, 5, 6\]"),
        ({"prologue": tritonconv.Prologue(torch.zeros(4).half())}, RuntimeError, "float32 beside x of torch.float32, got"),
        ({"prologue": tritonconv.Prologue(activation="swish")}, ValueError, "activation must be None or one of .*'swish'"),
        ({"prologue": tritonconv.Prologue(negative_slope="x")}, TypeError, "'prologue.negative_slope' must be a number"),
        ({"residual": X}, RuntimeError, r"residual of the output's shape \[1, 3, 2, 3, 4\], got residual \[1, 4, 2, 5, 6\]"),
        ({"residual": 1}, TypeError, "'residual' must be a Tensor, got int"),
        ({"groups": 3}, RuntimeError, r"weight of 4 / 3 channels .*groups=3"),
        ({"groups": 2, "weight": W[:, :2]}, RuntimeError, "groups=2 must divide the 3 filters"),
        ({"groups": 0}, RuntimeError, "non-positive groups"),
        ({"plan": Plan.parse(APART)}, ValueError, "apart is for a call with a prologue"),
        ({"plan": Plan.parse(f"{TOGETHER}:split2")}, ValueError, "its 1 blocks of channels cannot be shared evenly by split=2"),
    ],
)
def test_errors_name_the_argument(change, error, words, launches):
    with pytest.raises(error, match=words):
        tritonconv.causal_conv3d(**{"x": X, "weight": W} | change)
    assert not launches()
