"""Prologues of the fused convolutions: a normalisation and an activation while pixels are gathered, or by a kernel before."""

import pytest
import torch
import torch.nn.functional as F
from padded import Padded, by_pad
from test_prologue import applied as applied_to_video

import tritonconv
from costmodel.families import family
from costmodel.problem import Pass
from costmodel.tiling import Call, Plan
from tritonconv import launch, steps
from tritonconv.ahead import op
from tritonconv.ahead.launch import prepare
from tritonconv.epilogue import Epilogue
from tritonconv.normalize.check import as_video, unsqueezed
from tritonconv.normalize.launch import Values

TOGETHER = "fprop:padded:64x16x16:w4:s3:together"
#: Of one axis to three: all modes, strides, dilation, groups, uneven padding, a pointwise layer. Tiles of 64 rows span images.
LAYERS = {
    "1d zeros": Padded((6,), (3,), ((2, 1),), "zeros", dilation=2),
    "1d reflect": Padded((5,), (2,), ((1, 2),), "reflect", stride=2, channels=5),
    "pointwise": Padded((3, 5), (1, 1), ((0, 0), (0, 0)), "zeros"),
    "2d zeros": Padded((4, 5), (2, 3), ((1, 0), (1, 1)), "zeros", stride=(1, 2), groups=2, channels=4),
    "2d circular": Padded((3, 4), (2, 2), ((1, 1), (0, 2)), ("zeros", "circular"), stride=2),
    "3d zeros": Padded((2, 3, 3), (2, 1, 2), ((1, 0), (0, 0), (1, 1)), "zeros", channels=2),
    "3d replicate": Padded(
        (2, 2, 3), (1, 2, 2), ((1, 0), (1, 1), (0, 1)), ("replicate", "zeros", "replicate"), stride=(2, 1, 1)
    ),
}
#: What a prologue has, by turns. "weight": scale per channel alone; "one": of one image for all.
KINDS = [("scale", "shift"), ("rstd", "weight"), ("shift",), ("scale", "rstd", "shift"), ("one", "shift"), ("rstd",), ()]


def prologue_of(x, kinds, activation="silu", seed=7):
    """A prologue of x with these tensors, in the dtype of statistics."""
    random = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    n, c, *size = x.shape
    shapes = {"scale": (n, c), "shift": (n, c), "rstd": (n, *size), "weight": (c,), "one": (1, c)}
    named = {}
    for kind in kinds:
        made = torch.randn(shapes[kind], generator=random, dtype=torch.float64).to(dtype).to(x.device)
        named[{"weight": "scale", "one": "scale"}.get(kind, kind)] = made
    return tritonconv.Prologue(**named, activation=activation)


def applied(x, prologue, exact=False):
    """x with a prologue by torch, in float64; rounded to x's dtype unless `exact`."""
    rstd = None if prologue.rstd is None else unsqueezed(prologue.rstd, 1, 4)
    return applied_to_video(as_video(x), prologue._replace(rstd=rstd), exact).reshape(x.shape)


def fused(layer, x, w, b=None, **given):
    return getattr(tritonconv, f"conv{layer.rank}d_fused")(x, w, b, **(layer.window | given))


def definition(layer, x, w, b, prologue):
    w, b = w.double(), None if b is None else b.double()
    return by_pad(applied(x, prologue).double(), w, b, **layer.window)


def assert_close(got, want, unit=1e-13):
    assert got.shape == want.shape and (got.double() - want).abs().max() <= unit * want.abs().max()


@pytest.mark.parametrize("name, kinds", [*zip(LAYERS, KINDS, strict=True)])
def test_the_definition(name, kinds, device, launches):
    """Padding holds zeros, or pixels that have the prologue; one kernel computes it, or two."""
    layer = LAYERS[name]
    x, w, b = layer.tensors(device=device)
    prologue = prologue_of(x, kinds)
    want = definition(layer, x, w, b, prologue)
    assert_close(fused(layer, x, w, b, prologue=prologue, plan=TOGETHER), want)
    assert launches() == {"fprop": 1, "padded fprop": 1}
    family = "padded" if name in ("1d reflect", "2d circular", "3d replicate") else "patch" if name == "pointwise" else "gather"
    assert_close(fused(layer, x, w, b, prologue=prologue, plan=f"fprop:{family}:64x16x16"), want)
    assert launches()["fprop"] == 2 and launches()["prologue"] == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_both_ways_agree(dtype, device, launched):
    """They convolve the same rounded values, so in the interpreter, which contracts nothing, they have the same bits. float64
    differs by one rounding of each value, and one of the result."""
    layer = Padded((3, 4), (2, 2), ((1, 0), (0, 1)), "zeros", channels=20)
    x, w, b = layer.tensors(dtype, device)
    prologue = prologue_of(x, ("scale", "rstd", "shift"))
    first, second = (fused(layer, x, w, b, prologue=prologue, plan=p) for p in (TOGETHER, "fprop:gather:64x16x16"))
    assert torch.equal(first, second) and first.dtype == dtype
    z, unit = applied(x, prologue, exact=True), torch.finfo(dtype).eps
    exact = by_pad(z, w.double(), b.double(), **layer.window)
    magnitude = by_pad(z.abs(), w.double().abs(), b.double().abs(), **layer.window)
    assert ((first.double() - exact).abs() <= 2 * unit * magnitude).all()


@pytest.mark.parametrize("plan", [TOGETHER, f"{TOGETHER}:split2", "gather"], ids=["together", "shared", "apart"])
def test_an_epilogue_behind_it(plan, device, launched):
    layer = Padded((3, 3), (2, 2), ((1, 0), (0, 1)), "zeros", channels=20)
    x, w, b = layer.tensors(device=device)
    prologue, (scale, shift) = prologue_of(x, ("scale", "shift"), "gelu"), torch.randn(2, 4, dtype=x.dtype, device=device)
    want = definition(layer, x, w, b, prologue) * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    residual = torch.randn_like(want).to(memory_format=torch.channels_last)
    given = {"scale": scale, "shift": shift, "residual": residual, "activation": "leaky_relu", "negative_slope": 0.3}
    y = fused(layer, x, w, b, prologue=prologue, plan=plan.replace(":together:split2", ":split2:together"), **given)
    assert_close(y, F.leaky_relu(want + residual, 0.3))


@pytest.mark.parametrize("inside", [False, True], ids=["", "masks inside"])
def test_tiles_of_one_image_and_of_many(inside, device, launched, monkeypatch):
    """Of 16 results an image, a tile holds those of one image or of four; channels end inside a block. Masked addresses lie
    inside of the tensors as on compute capability 10.x."""
    layer = Padded((4, 4), (3, 1), ((1, 1), (0, 0)), "reflect", channels=5, batch=5)
    x, w, _ = layer.tensors(device=device, last=True)
    prologue = prologue_of(x, ("scale", "rstd", "shift"))
    monkeypatch.setattr(steps, "masks_inside", lambda capability: inside)
    launch.prepare_call.cache_clear()
    for rows in (16, 64):
        y = fused(layer, x, w, prologue=prologue, plan=TOGETHER.replace("64", str(rows)))
        assert_close(y, definition(layer, x, w, None, prologue))
    launch.prepare_call.cache_clear()


def test_any_layout_and_values_of_x_dtype(device, launched):
    layer = Padded((3, 4), (2, 2), ((0, 0), (1, 0)), "zeros", channels=4)
    x, w, b = layer.tensors(torch.float32, device)
    x = torch.cat([x, x], 1)[:, ::2].transpose(2, 3).contiguous().transpose(2, 3)
    scale = torch.randn(8, 2, device=device).t()[:, ::2]  # channels that are not contiguous
    prologue = tritonconv.Prologue(scale, None, torch.rand(2, 4, 3, device=device).transpose(1, 2), "relu")
    for plan in (TOGETHER, "gather"):
        y = fused(layer, x, w, b, prologue=prologue, plan=plan)
        assert_close(y, definition(layer, x, w, b, prologue), 1e-6)
        assert y.stride() == F.conv2d(x, w, b, padding=(0, 1))[..., :4].contiguous().stride()
    one = fused(layer, x[0], w, b, prologue=prologue._replace(scale=scale[:1], rstd=prologue.rstd[:1]))  # without a batch
    assert_close(one, y[0].double(), 1e-6)


@pytest.mark.parametrize("size", [(6,), (2, 3)], ids=str)
def test_norms_of_one_and_two_axes(size, device, launched):
    x = torch.randn(2, 4, *size, dtype=torch.float64, device=device)
    weight, bias = torch.randn(2, 4, dtype=torch.float64, device=device)
    prologue = tritonconv.group_norm_prologue(x, 2, weight, bias, activation="silu")
    assert prologue.scale.shape == (2, 4)
    assert_close(prologue(x), F.silu(F.group_norm(x, 2, weight, bias)))
    prologue = tritonconv.rms_norm_prologue(x, weight, bias, 1e-24)
    assert prologue.rstd.shape == (2, *size)
    each = (-1, *(1,) * len(size))
    assert_close(prologue(x), F.normalize(x, dim=1) * 2 * weight.view(each) + bias.view(each))


@pytest.mark.parametrize("norm", ["group", "rms"])
def test_gradients(norm, device):
    """To the second order, through the statistics too; the prologue is then a kernel of its own, whatever is forced."""
    layer = Padded((3, 3), (2, 2), ((1, 0), (0, 1)), "zeros" if norm == "group" else "circular", channels=4, filters=2)
    x, w, b = layer.tensors(device=device)
    gamma, beta = torch.randn(2, 4, dtype=torch.float64, device=device)
    residual = torch.randn(2, 2, 3, 3, dtype=torch.float64, device=device)

    def ours(x, w, b, gamma, beta, residual):
        if norm == "group":
            prologue = tritonconv.group_norm_prologue(x, 2, gamma, beta, activation="silu")
        else:
            prologue = tritonconv.rms_norm_prologue(x, gamma, beta, activation="silu")
        return fused(layer, x, w, b, prologue=prologue, residual=residual, activation="tanh", plan=TOGETHER)

    def torchs(x, w, b, gamma, beta, residual):
        if norm == "group":
            y = F.group_norm(x, 2, gamma, beta)
        else:
            y = x * (x.square().mean(1, keepdim=True) + 1e-6).rsqrt() * gamma.view(-1, 1, 1) + beta.view(-1, 1, 1)
        return torch.tanh(by_pad(F.silu(y), w, b, **layer.window) + residual)

    found = []
    for call in (ours, torchs):
        leaves = [t.detach().clone().requires_grad_() for t in (x, w, b, gamma, beta, residual)]
        y = call(*leaves)
        into = torch.linspace(-1, 2, y.numel(), dtype=y.dtype, device=device).view(y.shape)
        first = torch.autograd.grad(y, leaves, into, create_graph=True)
        found.append([y, *first, *torch.autograd.grad([g.square().sum() for g in first], leaves)])
    for got, want in zip(*found, strict=True):
        assert_close(got, want.detach(), 1e-11)


SMALL = Padded((2, 3), (1, 2), ((0, 0), (0, 1)), "zeros", channels=2, filters=2)


@pytest.mark.parametrize("records", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["gradients", "inference"])
def test_compiled_graphs(records, device, launched):
    x, w, b = SMALL.tensors(torch.float32, device)

    def call(x, w):
        prologue = tritonconv.group_norm_prologue(x, 1, activation="silu")
        return fused(SMALL, x, w, b, prologue=prologue, residual=x, activation="relu")

    found = []
    for function in (call, torch.compile(call, backend="aot_eager", fullgraph=True)):
        given = x.clone().requires_grad_(records)
        y = function(given, w)
        found.append((y.detach(), *(torch.autograd.grad(y.square().sum(), given) if records else ())))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_vmap_autocast_and_one_image_at_a_time(device, launched):
    x, w, b = SMALL.tensors(torch.float32, device)
    prologue = prologue_of(x, ("scale", "rstd", "shift"))

    def one(image, weight, scale, rstd):
        own = prologue._replace(scale=scale, rstd=rstd[None], shift=prologue.shift[:1])
        return fused(SMALL, image[None], weight, b, prologue=own, activation="relu")[0]

    both = torch.stack([w, 2 * w])
    got = torch.vmap(one)(x, both, prologue.scale, prologue.rstd)
    want = torch.stack([one(*each) for each in zip(x, both, prologue.scale, prologue.rstd, strict=True)])
    assert_close(got, want.double(), 1e-6)
    shared = torch.vmap(one, (0, None, 0, 0))(x, w, prologue.scale, prologue.rstd)
    before = launched()["padded fprop"]
    with tritonconv.batch_invariant():
        fixed = fused(SMALL, x, w, b, prologue=prologue._replace(shift=prologue.shift[:1]), activation="relu")
        assert launched()["padded fprop"] == before + len(x)
        alone = [one(*each) for each in zip(x, (w, w), prologue.scale, prologue.rstd, strict=True)]
    assert torch.equal(fixed, torch.stack(alone))
    assert_close(shared, fixed.double(), 1e-6)
    with torch.autocast(device.split(":")[0], torch.bfloat16):
        y = fused(SMALL, x, w, b, prologue=prologue)
    low = (t.bfloat16() for t in (x, w, b))
    assert y.dtype == torch.bfloat16 and torch.equal(y, fused(SMALL, *low, prologue=prologue))


def test_torchs_operators_on_a_cpu():
    """Outside of the interpreter."""
    x, w, b = SMALL.tensors(torch.float64)
    prologue = prologue_of(x, ("scale", "shift"))
    values = Values(prologue.scale.unsqueeze(1), prologue.shift.unsqueeze(1), None, "silu")
    problem = op._problem(op._FPROP, x, w, (b, (1, 1), [0, 0, 0, 1], (1, 1), 1))
    want = definition(SMALL, x, w, b, prologue)
    assert_close(op._by_torch(problem, x, w, b, values, Epilogue(), ""), want)
    assert_close(op._by_torch(problem, x, w, b, values, Epilogue(activation="relu"), ""), want.relu())


# ---- what is refused ------------------------------------------------------------------------------------------------------

X, W = torch.zeros(2, 4, 5, 6), torch.zeros(3, 4, 3, 3)
Prologue = tritonconv.Prologue


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"prologue": "silu"}, TypeError, "'prologue' must be a tritonconv.Prologue, got str"),
        ({"prologue": Prologue(scale=1.0)}, TypeError, r"'prologue.scale' must be a Tensor or None, got float"),
        (
            {"prologue": Prologue(scale=torch.zeros(5))},
            RuntimeError,
            r"of shape \[4\] or \[2, 4\] for .*got .*scale \[5\]",
        ),
        ({"prologue": Prologue(shift=torch.zeros(3, 4))}, RuntimeError, r"shift of shape \[4\] or \[2, 4\]"),
        ({"prologue": Prologue(torch.zeros(2, 1, 4))}, RuntimeError, r"got prologue.scale \[2, 1, 4\]"),
        ({"prologue": Prologue(rstd=torch.zeros(2, 1, 5, 6))}, RuntimeError, r"rstd of shape \[2, 5, 6\]"),
        ({"prologue": Prologue(torch.zeros(4).half())}, RuntimeError, "float32 beside x of torch.float32, got"),
        ({"prologue": Prologue(torch.zeros(4, device="meta"))}, RuntimeError, "must be on the same device, got x cpu and"),
        ({"prologue": Prologue(activation="swish")}, ValueError, "activation must be None or one of .*'swish'"),
        ({"prologue": Prologue(negative_slope="x")}, TypeError, "'prologue.negative_slope' must be a number"),
        ({"plan": TOGETHER}, ValueError, "together is for a call with a prologue|holds zeros on every axis"),
        ({"plan": TOGETHER, "padding": 1, "padding_mode": "reflect"}, ValueError, "together is for a call with a prologue"),
        (
            {"prologue": Prologue(), "plan": f"{TOGETHER}:fold"},
            ValueError,
            "not applied to columns that are read as channels",
        ),
        ({"prologue": Prologue(), "plan": "patch"}, ValueError, "family 'patch'"),
        ({"prologue": Prologue(), "plan": "wgrad:gather:64x16x16"}, ValueError, "does not run"),
    ],
)
def test_errors_name_the_argument(change, error, words, launches):
    with pytest.raises(error, match=words):
        tritonconv.conv2d_fused(**{"input": X, "weight": W} | change)
    assert not launches()


@pytest.mark.slow
def test_as_an_op_of_torch(device):
    x, w, b = SMALL.tensors(torch.float32, device)
    scale, rstd = torch.randn(2, 1, 2, device=device), torch.rand(2, 1, 2, 3, device=device)
    given = (x, w, b, [1, 1], [0, 0, 0, 1], [1, 1], 1, scale, None, rstd, "silu", 0.01, b, None, None, "relu", 0.01, "")
    torch.library.opcheck(torch.ops.tritonconv.fprop_normalized.default, given)
    recorded = [t.requires_grad_() if isinstance(t, torch.Tensor) else t for t in given]
    torch.library.opcheck(torch.ops.tritonconv.fprop_normalized.default, tuple(recorded))


def test_other_functions_and_norms_refuse(launches):
    with pytest.raises(TypeError, match="unexpected keyword argument 'prologue'"):
        tritonconv.conv_transpose2d_fused(X, W, prologue=Prologue())
    with pytest.raises(RuntimeError, match=r"per_frame=True is for x of 5 axes \[N, C, T, H, W\], got x \[2, 4, 5, 6\]"):
        tritonconv.group_norm_prologue(X, 2, per_frame=True)
    with pytest.raises(RuntimeError, match=r"x of 3 to 5 axes, .*got x \[4, 5\]"):
        tritonconv.rms_norm_prologue(X[0, 0, :4, :5])
    assert (
        family("padded").refusal(
            Call(tritonconv.explain(tritonconv.conv2d, X, W).problem, Pass.FPROP, "float32"),
            Plan.parse(TOGETHER),
            None,
        )
        == "together is for a call with a prologue"
    )
    assert prepare.cache_info() is not None and not launches()
