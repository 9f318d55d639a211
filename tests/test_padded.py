"""Padding modes of the convolutions, forward and backward, against torch's `pad` and convolution in float64."""

import copy
from dataclasses import replace

import padded
import pytest
import torch
import torch.nn.functional as F
from padded import LAYERS, MODES, Padded

import tritonconv
from costmodel.problem import ConvProblem
from tritonconv import cpu
from tritonconv.op import flat

SMALL = LAYERS["mixed"]


@pytest.mark.parametrize("name", LAYERS)
def test_results_and_gradients(name, launched):
    layer = LAYERS[name]
    padded.check(layer, *layer.tensors(torch.float32), plan="padded")
    assert launched()["padded fprop"] == launched()["padded wgrad"] == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["replicate", "weather"])
def test_dtypes_and_channels_last(name, dtype):
    layer = LAYERS[name]
    padded.check(layer, *layer.tensors(dtype, last=True))


def test_strides_of_the_operands():
    """Every second column, an axis of stride 0, transposed weights, and a bias of stride 2."""
    layer = LAYERS["reflect"]
    x, w, b = layer.tensors(torch.float32)
    wide = torch.zeros(2, 3, 4, 10)
    wide[..., ::2] = x
    padded.check(layer, wide[..., ::2], w.transpose(0, 1).contiguous().transpose(0, 1), b.repeat_interleave(2)[::2])
    padded.check(layer, x[:, :, :1].expand(-1, -1, 4, -1), w, b)


PLANS = [
    "fprop:padded:16x16x16:fold",
    "wgrad:padded:16x16x16:fold",
    "fprop:padded:16x16x16:split2",
    "wgrad:padded:16x16x16:split2",
    "fprop:padded:16x16x16:merge2:pack-a:pack-b",
    "dgrad:padded:16x16x16:merge2:pack-a",
    "wgrad:padded:16x16x16:merge2:pack-b:step1x1x4x4",
]


@pytest.mark.parametrize("plan", PLANS)
def test_plans(plan, launched):
    """Columns of the filter as channels, shared reductions, merged groups, operands copied to channels-last first."""
    shared = Padded((2, 3), (2, 2), ((1, 0), (1, 1)), ("circular", "reflect"), channels=18)
    layer = LAYERS["mixed"] if "merge" in plan else shared
    folded = [LAYERS[name] for name in ("1d", "1d of one pixel", "1d reflected", "circular", "weather", "3d")]
    for each in folded if "fold" in plan else [layer]:
        each = replace(each, dilation=1) if "fold" in plan else each
        padded.check(each, *each.tensors(torch.float32), plan=plan)


def test_an_empty_batch_and_none():
    x, w, b = SMALL.tensors(torch.float32)
    assert SMALL.ours(x[:0], w, b).shape == (0, *SMALL.ours(x, w, b).shape[1:])
    torch.testing.assert_close(SMALL.ours(x[0], w, b), SMALL.ours(x[:1], w, b)[0], rtol=0, atol=0)
    w.requires_grad_()
    (dw,) = torch.autograd.grad(SMALL.ours(x[:0], w, b).sum(), w)
    assert not dw.any()


def test_an_axis_without_padding_has_no_mode(launches):
    x, w, b = SMALL.tensors(torch.float32)
    torch.testing.assert_close(SMALL.ours(x, w, b, padding=0), F.conv2d(x, w, b, groups=2), rtol=1e-5, atol=1e-5)
    assert not any(name.startswith("padded") for name in launches())


def test_same_padding_puts_the_odd_pixel_at_the_high_end():
    x, w = torch.randn(1, 2, 5), torch.randn(2, 2, 4)
    want = F.conv1d(F.pad(x, (1, 2), mode="circular"), w)
    torch.testing.assert_close(tritonconv.conv1d(x, w, padding="same", padding_mode="circular"), want, rtol=1e-5, atol=1e-5)


def test_a_stride_beyond_all_pixels():
    """Its axis has one output, and what lies behind the only window is cropped."""
    layer = Padded((3,), (2,), ((2, 3),), "circular", stride=2**17)
    padded.check(layer, *layer.tensors(torch.float32))
    layer = Padded((4,), (2,), ((3, 1),), "reflect", stride=2**17)
    padded.check(layer, *layer.tensors(torch.float32))


# ---- derivatives ----------------------------------------------------------------------------------------------------

TINY = Padded((2, 2), (2, 1), ((1, 0), (1, 0)), ("reflect", "circular"), channels=1, filters=1, batch=1)


LINE = Padded((2,), (2,), ((1, 1),), "circular", channels=1, filters=1, batch=1)


@pytest.mark.parametrize("layer", [LINE, pytest.param(TINY, marks=pytest.mark.slow)], ids=["line", "plane"])
def test_derivatives_of_any_order(layer):
    x, w, _ = layer.tensors()
    tensors = [x.requires_grad_(), w.requires_grad_()]
    assert torch.autograd.gradcheck(layer.ours, tensors, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(layer.ours, tensors, fast_mode=True)


def test_the_ops_derivatives_have_the_mode_too():
    """dgrad and wgrad are differentiated as ops of their own."""
    x, w, _ = TINY.tensors()
    problem = ConvProblem.conv(x.shape, w.shape, (1, 1), TINY.padding, (1, 1), padding_mode=TINY.mode)
    window = (problem.stride, flat(problem.padding, problem.padding_mode), problem.dilation, 1)
    dy = torch.randn(problem.output_shape, dtype=torch.float64).requires_grad_()
    x, w, ops = x.requires_grad_(), w.requires_grad_(), torch.ops.tritonconv
    assert torch.autograd.gradcheck(lambda d, v: ops.dgrad(d, v, None, problem.input_size, *window), (dy, w), fast_mode=True)
    assert torch.autograd.gradcheck(lambda d, v: ops.wgrad(d, v, problem.kernel_size, *window), (dy, x), fast_mode=True)


def test_vmap_and_jvp():
    x, w, b = TINY.tensors()
    many = torch.stack([w, 2 * w])
    got = torch.vmap(TINY.ours, in_dims=(None, 0, None))(x, many, b)
    torch.testing.assert_close(got, torch.stack([TINY.ours(x, w, b), TINY.ours(x, 2 * w, b)]))
    y, tangent = torch.func.jvp(lambda x: TINY.ours(x, w, b), (x,), (x,))
    torch.testing.assert_close(tangent, y - b.view(1, -1, 1, 1))


def test_compiled_functions():
    torch._dynamo.reset()
    x, w, b = (t.requires_grad_() for t in SMALL.tensors(torch.float32))
    call = torch.compile(SMALL.ours, backend="aot_eager", fullgraph=True)
    y = SMALL.ours(x, w, b)
    torch.testing.assert_close(call(x, w, b), y, rtol=0, atol=0)
    want, got = (torch.autograd.grad(made.square().sum(), (x, w)) for made in (y, call(x, w, b)))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    torch._dynamo.reset()


# ---- fused, modules, other ways to compute --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weather", "mixed"])
def test_what_follows_is_in_the_same_kernel(name, launched):
    layer = LAYERS[name]
    x, w, b = (t.requires_grad_() for t in layer.tensors())
    want = padded.by_pad(x, w, b, **layer.window)
    scale, shift = (torch.randn(layer.filters, dtype=torch.float64, requires_grad=True) for _ in range(2))
    residual = torch.randn_like(want, requires_grad=True)
    after = want * scale.view(-1, 1, 1) + shift.view(-1, 1, 1) + residual
    given = {"scale": scale, "shift": shift, "residual": residual, "activation": "silu"}
    got = tritonconv.conv2d_fused(x, w, b, **layer.window, **given)
    torch.testing.assert_close(got, F.silu(after))
    assert launched() == {"fprop": 1, "padded fprop": 1}
    leaves = (x, w, b, scale, shift, residual)
    wants = torch.autograd.grad(F.silu(after).square().sum(), leaves)
    for one, other in zip(torch.autograd.grad(got.square().sum(), leaves), wants, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.interpreter
@pytest.mark.parametrize(
    ("mode", "ends"),
    [
        ("circular", ((1, 2), (3, 0))),
        ("reflect", ((0, 2), (1, 1))),
        ("replicate", ((4, 0), (0, 2))),
        (("zeros", "circular"), 1),
    ],
)
def test_narrow_groups_write_their_padding_out(mode, ends, launched):
    """Each would fill a sixteenth of a tile of the padded kernels, which `plan="padded"` still asks for."""
    x, w, b = (t.requires_grad_() for t in Padded((4, 4), (2, 3), ends, mode, 1, 1, 3, 3, 6).tensors())
    window = {"padding": ends, "padding_mode": mode, "groups": 3}
    pairs = ends if isinstance(ends, tuple) else ((ends, ends),) * 2
    want = padded.by_pad(x, w, b, padding=pairs, padding_mode=mode, groups=3)
    wants = torch.autograd.grad(want.square().sum(), (x, w, b), create_graph=True)
    got = tritonconv.conv2d(x, w, b, **window)
    gots = torch.autograd.grad(got.square().sum(), (x, w, b), create_graph=True)
    assert launched()["fprop"] == 1 and launched()["padded fprop"] == 0
    for one, other in zip((got, *gots), (want, *wants), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(tritonconv.conv2d(x, w, b, **window, plan="fprop:padded"), want)
    assert launched()["padded fprop"] == 1
    torch.testing.assert_close(tritonconv.conv2d(x[0], w, b, **window), want[0])
    said = str(tritonconv.explain(tritonconv.conv2d, x, w, b, **window))
    assert "padding written out" in said and "plan fprop:copied-depthwise:" in said


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_modules_pad_in_the_kernel(mode, rank, launched, monkeypatch):
    layer = getattr(torch.nn, f"Conv{rank}d")(2, 2, 2, padding="same" if rank == 1 else 1, padding_mode=mode)
    x = torch.randn(1, 2, *(3, 2, 3)[:rank])
    want = layer(x)
    mine = tritonconv.convert(layer)
    monkeypatch.setattr(F, "pad", None)
    torch.testing.assert_close(mine(x), want, rtol=1e-5, atol=1e-5)
    assert launched()["padded fprop"] == 1


def test_a_module_takes_a_mode_per_axis():
    layer = copy.deepcopy(tritonconv.nn.Conv2d(2, 3, 3, padding=1, padding_mode=("zeros", "circular")))
    assert "padding_mode=('zeros', 'circular')" in repr(layer)
    x = torch.randn(1, 2, 3, 4)
    want = padded.by_pad(x, layer.weight, layer.bias, padding=((1, 1), (1, 1)), padding_mode=layer.padding_mode)
    torch.testing.assert_close(layer(x), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tritonconv.revert(layer)(x), want, rtol=1e-5, atol=1e-5)  # stays ours: torch has one mode
    with pytest.raises(ValueError, match=r"tritonconv\.nn\.Conv2d\(\): padding_mode must be one of"):
        tritonconv.nn.Conv2d(2, 3, 3, padding_mode=("zeros", "wrap"))


@pytest.mark.parametrize("name", ["mixed", "replicate", "3d"])
def test_by_torchs_operators(name):
    """What computes CPU tensors outside the interpreter, and what an exported graph is decomposed into."""
    layer = LAYERS[name]
    x, w, b = (t.requires_grad_() for t in layer.tensors())
    steps = [(v,) * layer.rank if isinstance(v, int) else v for v in (layer.stride, layer.dilation)]
    problem = ConvProblem.conv(x.shape, w.shape, steps[0], layer.padding, steps[1], layer.groups, padding_mode=layer.mode)
    y = padded.by_pad(x, w, b, **layer.window)
    g = torch.randn_like(y)
    dx, dw, _ = torch.autograd.grad(y, (x, w, b), g)
    x, w, b = x.detach(), w.detach(), b.detach()
    torch.testing.assert_close(cpu.fprop(x, w, b, problem), y)
    torch.testing.assert_close(cpu.dgrad(g, w, None, problem), dx)
    torch.testing.assert_close(cpu.wgrad(g, x, problem), dw)
    window = (problem.stride, flat(problem.padding, problem.padding_mode), problem.dilation, problem.groups)
    table, ops = tritonconv.decompositions(), torch.ops.tritonconv
    torch.testing.assert_close(table[ops.fprop.default](x, w, b, *window), y)
    torch.testing.assert_close(table[ops.dgrad.default](g, w, None, problem.input_size, *window), dx)
    torch.testing.assert_close(table[ops.wgrad.default](g, x, problem.kernel_size, *window), dw)


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"padding_mode": "wrap"}, ValueError, "padding_mode must be one of 'zeros', 'reflect', .*got 'wrap'"),
        ({"padding_mode": 1}, TypeError, r"'padding_mode' must be a str or a tuple of 2 strs, got 1 of type int"),
        ({"padding_mode": ("zeros", None)}, TypeError, "'padding_mode' must be a str or a tuple"),
        ({"padding_mode": ("zeros",) * 3}, RuntimeError, r"expected padding_mode to be a str or 2 strs, got 3"),
        ({"padding_mode": "reflect", "padding": (4, 0)}, RuntimeError,
         r"'reflect' needs less padding than pixels, got padding \(4, 4\) and 4 pixels at spatial axis 0"),
        ({"padding_mode": "circular", "padding": (0, 6)}, RuntimeError,
         r"'circular' needs at most as much padding as pixels, got padding \(6, 6\) and 5 pixels at spatial axis 1"),
        ({"padding_mode": "circular", "padding": ((1, -1), (1, 1))}, RuntimeError, "negative padding is not supported"),
    ],
)  # fmt: skip
def test_what_is_refused(changed, error, words, launches):
    x, w, b = SMALL.tensors(torch.float32)
    with pytest.raises(error, match=words):
        SMALL.ours(x, w, b, **changed)
    assert not launches()


@pytest.mark.parametrize(("mode", "padding", "size"), [("reflect", 3, 3), ("circular", 4, 3), ("replicate", 1, 0)])
def test_torch_refuses_it_with_the_same_type(mode, padding, size):
    x, w = torch.ones(1, 1, size), torch.ones(1, 1, 1)
    with pytest.raises(RuntimeError):
        F.conv1d(F.pad(x, (padding, 0), mode=mode), w)
    with pytest.raises(RuntimeError):
        tritonconv.conv1d(x, w, padding=((padding, 0),), padding_mode=mode)


def test_transposed_convolutions_have_zeros_only():
    for nn in (torch.nn, tritonconv.nn):
        with pytest.raises(ValueError, match='Only "zeros" padding mode is supported for ConvTranspose2d'):
            nn.ConvTranspose2d(1, 1, 1, padding_mode="circular")
    dy, w = torch.ones(1, 1, 2), torch.ones(1, 1, 1)
    with pytest.raises(RuntimeError, match='only "zeros" padding mode is supported for a transposed convolution'):
        torch.ops.tritonconv.dgrad_fused(dy, w, None, [1], [1], [1, 0, 3], [1], 1)


@pytest.mark.parametrize("padding", [[1, 1, 4], [1, 1, -1], [1, 1, 0, 0], [1, 1, 1]])
def test_numbers_that_the_ops_refuse(padding):
    with pytest.raises(RuntimeError, match="padding"):
        torch.ops.tritonconv.fprop(torch.ones(1, 1, 1), torch.ones(1, 1, 1), None, [1], padding, [1], 1)


def test_plans_of_other_families_say_why_they_are_none():
    x, w, b = SMALL.tensors(torch.float32)
    with pytest.raises(ValueError, match="it pads with zeros, and the call asks for reflect,replicate padding"):
        SMALL.ours(x, w, b, plan="fprop:gather:16x16x16")
    with pytest.raises(ValueError, match=r"names the family 'gather', which cannot run fprop .*it pads with zeros"):
        SMALL.ours(x, w, b, plan="gather")
    with pytest.raises(ValueError, match="the padding of this call holds zeros on every axis"):
        SMALL.ours(x, w, b, plan="fprop:padded:16x16x16", padding_mode="zeros")
    with pytest.raises(ValueError, match="split must be 1 for dgrad, got 2"):
        SMALL.ours(x.requires_grad_(), w, b, plan="dgrad:padded:16x16x16:split2").sum().backward()
