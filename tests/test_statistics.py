"""The statistics of `group_norm_prologue` and `rms_norm_prologue` against torch in float64."""

import pytest
import torch
import torch.nn.functional as F
from chunks import assert_close

import tritonconv
from bench.tolerance import C_LIMIT, UNIT

OPS = torch.ops.tritonconv


def video(*shape, last=True, dtype=torch.float64, device="cpu", mean=0.0):
    random = torch.Generator().manual_seed(3)
    made = (torch.randn(shape, generator=random, dtype=torch.float64) + mean).to(dtype).to(device)
    return made.contiguous(memory_format=torch.channels_last_3d) if last else made


def expected(x, groups, weight, bias, eps, per_frame):
    if per_frame:
        n, c, t, h, w = x.shape
        frames = F.group_norm(x.double().transpose(1, 2).reshape(n * t, c, h, w), groups, weight, bias, eps)
        return frames.view(n, t, c, h, w).transpose(1, 2)
    return F.group_norm(x.double(), groups, weight, bias, eps)


@pytest.mark.parametrize("per_frame", [False, True], ids=["images", "frames"])
@pytest.mark.parametrize("last", [True, False], ids=["channels-last", "contiguous"])
def test_group_norm(last, per_frame, device, launched):
    x = video(2, 6, 3, 4, 5, last=last, device=device, mean=2.0)
    weight, bias = torch.randn(2, 6, dtype=torch.float64, device=device)
    prologue = tritonconv.group_norm_prologue(x, 3, weight, bias, 1e-3, per_frame=per_frame)
    assert prologue.scale.shape == (2, 3 if per_frame else 1, 6) and prologue.rstd is None
    assert_close(prologue(x), expected(x, 3, weight, bias, 1e-3, per_frame))
    assert prologue(x).is_contiguous(memory_format=torch.channels_last_3d)
    plain = tritonconv.group_norm_prologue(x, 1, activation="silu")
    assert_close(plain(x), F.silu(expected(x, 1, None, None, 1e-5, False)))


def test_many_shares_and_a_large_mean(device, launched):
    """The mean is 4096 times the deviation: sums of squares in float32 would have no digit left."""
    x = video(1, 3, 5, 20, 25, dtype=torch.float32, device=device, mean=4096.0)  # 2500 pixels, in three shares
    prologue = tritonconv.group_norm_prologue(x, 3)
    exact = (x.double().var((2, 3, 4), correction=0) + 1e-5).rsqrt()
    bound = C_LIMIT / 2 * UNIT[torch.float32] * (5 * 20 * 25) ** 0.5  # of a sum of as many squares, halved by the root
    assert (prologue.scale[:, 0].double() / exact - 1).abs().max() < bound
    assert torch.equal(tritonconv.group_norm_prologue(x, 3).shift, prologue.shift)
    half = x[:, :, :, :, :24]  # a view, not dense, whose lanes the compiler may share out in another way than a copy's
    exact = (half.double().var((2, 3, 4), correction=0) + 1e-5).rsqrt()
    for each in (half, half.contiguous()):
        assert (tritonconv.group_norm_prologue(each, 3).scale[:, 0].double() / exact - 1).abs().max() < bound


def test_the_batch_changes_no_bit(device, launched):
    x = video(3, 4, 2, 3, 4, dtype=torch.bfloat16, device=device)
    together = tritonconv.group_norm_prologue(x, 2)
    for i in range(3):
        alone = tritonconv.group_norm_prologue(x[i : i + 1], 2)
        assert torch.equal(alone.scale, together.scale[i : i + 1]) and torch.equal(alone.shift, together.shift[i : i + 1])


@pytest.mark.parametrize("last", [True, False], ids=["channels-last", "contiguous"])
def test_rms_norm(last, device, launched):
    x = video(2, 5, 2, 3, 4, last=last, device=device)
    weight, bias = torch.randn(2, 5, dtype=torch.float64, device=device)
    prologue = tritonconv.rms_norm_prologue(x, weight, bias, 1e-3, "silu")
    rstd = (x.square().mean(1) + 1e-3).rsqrt()
    assert_close(prologue.rstd, rstd)
    each = (1, -1, 1, 1, 1)
    assert_close(prologue(x), F.silu(x * rstd.unsqueeze(1) * weight.view(each) + bias.view(each)))


def test_wans_norm(device, launched):
    """F.normalize over the channels times sqrt(C) and gamma, of a pixel of zeros too."""
    x = video(1, 7, 2, 3, 4, dtype=torch.float32, device=device)
    x[0, :, 1, 1, 1] = 0
    gamma = torch.randn(7, device=device)
    want = F.normalize(x.double(), dim=1) * 7**0.5 * gamma.double().view(1, -1, 1, 1, 1)
    assert_close(tritonconv.rms_norm_prologue(x, gamma, eps=1e-24)(x), want, 1e-6)


@pytest.mark.parametrize("per_frame", [False, True], ids=["images", "frames"])
def test_gradients_of_group_norm(per_frame, device):
    x = video(2, 4, 2, 1, 2, device=device)
    weight, bias = torch.randn(2, 4, dtype=torch.float64, device=device)
    found = []
    for call in (
        lambda *t: tritonconv.group_norm_prologue(t[0], 2, *t[1:], 1e-2, "tanh", per_frame=per_frame)(t[0]),
        lambda *t: torch.tanh(expected(t[0], 2, *t[1:], 1e-2, per_frame)),
    ):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        found.append(both_gradients(call, leaves))
    for got, want in zip(*found, strict=True):
        assert_close(got, want, 1e-11)


@pytest.mark.parametrize("per_frame", [False, True], ids=["images", "frames"])
@pytest.mark.parametrize("name", ["scale", "shift"])
def test_gradients_of_scale_or_of_shift_alone(name, per_frame, device):
    """A gradient that does not arrive is no tensor of zeros."""
    x = video(2, 4, 2, 1, 2, device=device)
    given, found = torch.randn(2, 4, dtype=torch.float64, device=device), []

    def by_definition(x, weight, bias):
        parts = x.transpose(1, 2).reshape(2, 2, 2, 4) if per_frame else x.reshape(2, 1, 2, 8)
        variance, mean = torch.var_mean(parts, -1, correction=0, keepdim=True)
        scale = (weight.view(2, 2) * (variance + 1e-2).rsqrt()).flatten(2)
        return {"scale": scale, "shift": bias - mean.expand(*mean.shape[:3], 2).flatten(2) * scale}[name]

    for call in (
        lambda *t: getattr(tritonconv.group_norm_prologue(t[0], 2, *t[1:], 1e-2, per_frame=per_frame), name),
        by_definition,
    ):
        leaves = [t.clone().requires_grad_() for t in (x, *given)]
        y = call(*leaves)
        first = torch.autograd.grad(y, leaves, torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape).to(device),
                                    create_graph=True, allow_unused=True)  # fmt: skip
        kept = [g for g in first if g is not None]
        second = torch.autograd.grad(sum(g.square().sum() for g in kept), leaves, allow_unused=True)
        found.append([*first, *second])
    for got, want in zip(*found, strict=True):
        assert (got is None or not got.any()) if want is None else torch.allclose(got, want, rtol=1e-11, atol=1e-11)


def test_gradients_of_rms_norm(device):
    x = video(2, 4, 2, 1, 2, device=device)
    weight, bias = torch.randn(2, 4, dtype=torch.float64, device=device)
    each, found = (1, -1, 1, 1, 1), []
    for call in (
        lambda x, w, b: tritonconv.rms_norm_prologue(x, w, b, 1e-2, "silu")(x),
        lambda x, w, b: F.silu(x * (x.square().mean(1, True) + 1e-2).rsqrt() * w.view(each) + b.view(each)),
    ):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        found.append(both_gradients(call, leaves))
    for got, want in zip(*found, strict=True):
        assert_close(got, want, 1e-11)


def both_gradients(call, leaves):
    """First and second ones."""
    y = call(*leaves)
    into = torch.linspace(-1, 2, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)
    first = torch.autograd.grad(y, leaves, into, create_graph=True)
    return [t.detach() for t in (*first, *torch.autograd.grad([g.square().sum() for g in first], leaves))]


@pytest.mark.slow
def test_as_ops_of_torch(device):
    x = video(2, 4, 2, 2, 3, dtype=torch.float32, device=device)
    w, rstd = torch.randn(4, device=device), torch.rand(2, 2, 2, 3, device=device)
    scale = torch.randn(2, 1, 4, device=device)
    leaves = [t.requires_grad_() for t in (x, w, scale, rstd)]
    torch.library.opcheck(OPS.group_scale.default, (x, w, None, 2, 1e-3, True))
    torch.library.opcheck(OPS.rms_rstd.default, (x, 1e-3))
    torch.library.opcheck(OPS.normalize.default, (x, scale, None, rstd, "silu"))
    assert leaves
    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        prologue = tritonconv.group_norm_prologue(x, 2, w)
        assert prologue.scale.dtype == torch.float32 and prologue(x).dtype == torch.bfloat16
        y, _ = tritonconv.causal_conv3d(x, torch.randn(3, 4, 1, 1, 1, device=device), prologue=prologue)
        assert y.dtype == torch.bfloat16


def test_nothing_to_do(device, launches):
    x = video(2, 4, 2, 2, 3, device=device)[:0]
    assert tritonconv.group_norm_prologue(x, 2)(x).shape == x.shape
    assert tritonconv.rms_norm_prologue(x)(x).shape == x.shape and not launches()


X = torch.zeros(1, 4, 2, 3, 3)


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"x": 1}, TypeError, "'x' must be a Tensor, got int"),
        ({"x": X[0, :, :, 0, 0]}, RuntimeError, r"x of 3 to 5 axes, \[N, C, L\] or .*, got x \[4, 2\]"),
        ({"x": X.long()}, RuntimeError, "x has dtype torch.int64"),
        ({"x": X[:, :, :0]}, RuntimeError, "only the batch may be empty"),
        ({"num_groups": 3}, RuntimeError, r"num_groups must divide the 4 channels of x \[1, 4, 2, 3, 3\], got 3"),
        ({"num_groups": 2.0}, TypeError, "'num_groups' must be int, got 2.0"),
        ({"weight": torch.zeros(3)}, RuntimeError, r"weight of shape \[4\] for x .* got weight \[3\]"),
        ({"bias": [0.0]}, TypeError, "'bias' must be a Tensor or None, got list"),
        ({"bias": torch.zeros(4).double()}, RuntimeError, "bias of dtype torch.float32 beside x of torch.float32"),
        ({"bias": torch.zeros(4, device="meta")}, RuntimeError, "same device, got x cpu and bias meta"),
        ({"eps": -1.0}, ValueError, r"eps must be at least 0 and finite, got eps=-1.0"),
        ({"eps": "1"}, TypeError, "'eps' must be a number, got '1'"),
        ({"activation": "swish"}, ValueError, "activation must be None or one of .*, got activation='swish'"),
    ],
)
def test_errors_name_the_argument(change, error, words, launches):
    with pytest.raises(error, match=words):
        tritonconv.group_norm_prologue(**{"x": X, "num_groups": 2} | change)
    if "num_groups" not in change:
        with pytest.raises(error, match=words):
            tritonconv.rms_norm_prologue(**{"x": X} | change)
    assert not launches()
