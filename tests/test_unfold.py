"""`unfold` and `fold` against the loops of `tritonconv.reference` and against torch."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import vmap
from unfolded import CALLS, assert_folded, check, columns, image

import tritonconv
from costmodel.problem import Pass
from costmodel.tiling import Plan
from costmodel.unfold import Unfolding
from tritonconv.columns import launch

NAN = float("nan")


@pytest.mark.parametrize("name", CALLS)
def test_every_shape(name, device, launches):
    check(name, device=device)
    assert launches() == ({} if name == "empty batch" else {"unfold": 1, "fold": 1})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_every_dtype(dtype, device, launched):
    check("1-D", dtype, device)
    check("kernel < stride", dtype, device)


def last(t):
    return t.transpose(1, -1).contiguous().transpose(1, -1)


def sliced(t):
    wide = t.new_full([2 * n + 1 for n in t.shape], NAN)
    return wide[tuple(slice(1, None, 2) for _ in t.shape)].copy_(t)


def expanded(t):
    return t[:, :, :1].expand(t.shape)


@pytest.mark.parametrize("laid", [last, sliced, expanded], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["2-D", "patches"])
def test_tensors_may_lie_anyhow(name, laid, device, launched):
    check(name, torch.float32, device, laid)


def test_plans_may_be_forced(device):
    """Blocks smaller than the problem along every axis, taps shared out unevenly, a copy before; one channel, one warp."""
    for unfold, fold in (
        ("fprop:unfold:4x2x4:w1:s1", "dgrad:unfold:4x2x1:w1:s1"),
        ("fprop:unfold:16x1x6:w4:s1:pack-a", "dgrad:unfold:32x1x1:w4:s1:pack-a"),
    ):
        check("2-D", torch.float32, device, last, unfold=unfold, fold=Plan.parse(fold))
    x, y = image((1, 2, 4, 4)), columns((1, 2, 4, 4), (2, 2), {})
    for call, words in (
        (lambda: tritonconv.unfold(x, 2, plan="fprop:unfold:4x3x4"), "block_n must be a power of two, got 3"),
        (lambda: tritonconv.unfold(x, 2, plan="fprop:unfold:4x4x0"), "block_k must be a number of taps of at least 1, got 0"),
        (lambda: tritonconv.unfold(x, 2, plan="fprop:unfold:4x4x1:pack-b"), "pack may name a"),
        (lambda: tritonconv.fold(y, 4, 2, plan="dgrad:unfold:4x4x2"), "block_k must be 1, for one program sums all taps"),
        (lambda: tritonconv.unfold(x, 2, plan="fprop:gather:16x16x16"), "unfold takes plans fprop:unfold, got fprop:gather"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_offsets_of_64_bits(device, monkeypatch):
    """Where 32 bits do not reach; the first image is always reached by a 64-bit base."""
    of = Unfolding.of((1, 4, 30000, 30000), (3, 3), (1, 1), (1, 1), (1, 1))
    keys = [launch.contiguous(tuple(shape)) for shape in (of.problem.input_shape, of.columns_shape)]
    for which in (Pass.FPROP, Pass.DGRAD):
        made = launch.prepare(of, which, torch.float16, -1, *keys, f"{which}:unfold:256x4x1")
        assert str(made.main.constants["INDEX"]) == "int64"
    monkeypatch.setattr(launch, "INT32_MAX", 50)
    launch.prepare.cache_clear()
    check("3-D", device=device, unfold="fprop:unfold:64x4x4", fold="dgrad:unfold:64x4x1")
    launch.prepare.cache_clear()


def test_as_torch_computes_it(device, launched):
    """Batched and not, with ints, which are of rank 2."""
    x = image((2, 3, 4, 5), torch.float32, device)
    y = F.unfold(x, 2, padding=1)
    for a, b in ((x, y), (x[0], y[0])):
        assert torch.equal(tritonconv.unfold(a, 2, padding=1), F.unfold(a, 2, padding=1))
        torch.testing.assert_close(tritonconv.fold(b, (4, 5), 2, 1, 1), F.fold(b, (4, 5), 2, 1, 1))
    with torch.autocast(device, torch.bfloat16):
        assert tritonconv.unfold(x, 2).dtype == F.unfold(x, 2).dtype == torch.float32
        assert tritonconv.fold(y, (4, 5), 2, 1, 1).dtype == torch.float32


def test_gradients_are_each_others(device, launches):
    x = image((1, 2, 4, 3), torch.float32, device).requires_grad_()
    y = tritonconv.unfold(x, 2)
    g = image(y.shape, torch.float32, device, 2)
    (dx,) = torch.autograd.grad(y, x, g)
    assert_folded(g, (4, 3), (2, 2), {}, dx)
    z = g.detach().requires_grad_()
    (dz,) = torch.autograd.grad(tritonconv.fold(z, (4, 3), 2), z, x.detach())
    assert torch.equal(dz, y) and launches() == {"unfold": 2, "fold": 2}


def test_a_gradient_takes_the_plan_that_was_given(device):
    """A dictionary by pass, of a whole step."""
    plans = ["fprop:unfold:4x1x4:w1:s1", "dgrad:unfold:4x1x1:w1:s1"]
    x = image((1, 1, 3, 3), device=device).requires_grad_()
    tritonconv.unfold(x, 2, plan=plans).sum().backward()
    assert torch.equal(x.grad, torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=torch.float64).view(1, 1, 3, 3))
    with pytest.raises(ValueError, match="dgrad:gather"):
        tritonconv.unfold(x, 2, plan=[plans[0], "dgrad:gather:16x16x16"]).sum().backward()


def test_one_launch_under_vmap(device, launches):
    x = image((3, 2, 1, 4), torch.float32, device)
    got = vmap(lambda t: tritonconv.unfold(t, (2,)), in_dims=1, out_dims=1)(x)
    want = torch.stack([tritonconv.unfold(x[:, i], (2,)) for i in range(2)], 1)
    assert torch.equal(got, want) and launches()["unfold"] == 3
    back = vmap(lambda t: tritonconv.fold(t, (4,), (2,)), in_dims=1)(want)
    assert torch.equal(back[1], tritonconv.fold(want[:, 1], (4,), (2,)))


def test_modules_are_torchs(device, launched):
    x = image((1, 2, 4, 4), torch.float32, device)
    layer, plain = tritonconv.nn.Unfold(2, stride=2), torch.nn.Unfold(2, stride=2)
    assert torch.equal(layer(x), plain(x)) and repr(layer) == repr(plain) and isinstance(layer, torch.nn.Unfold)
    back, theirs = tritonconv.nn.Fold((4, 4), 2, stride=2), torch.nn.Fold((4, 4), 2, stride=2)
    assert torch.equal(back(layer(x)), theirs(plain(x))) and repr(back) == repr(theirs)
    graph = torch.fx.symbolic_trace(torch.nn.Sequential(layer, back))
    assert torch.equal(graph(x), x) and [node.op for node in graph.graph.nodes].count("call_module") == 2


def test_compiled_whole_and_for_any_size(device, launched):
    def call(x):
        return tritonconv.fold(2 * tritonconv.unfold(x, 2, padding=1), x.shape[2:], 2, padding=1)

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for height in (3, 4):
        x = image((1, 1, height, 2), torch.float32, device).requires_grad_()
        y = compiled(x)
        assert torch.equal(y, 8 * x)
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert bool((dx == 8).all())


@pytest.mark.slow
def test_opcheck(device):
    ops = torch.ops.tritonconv
    window = ([2], [1], [1], [1])
    torch.library.opcheck(ops.unfold.default, (image((1, 1, 3), device=device).requires_grad_(), *window))
    torch.library.opcheck(ops.fold.default, (image((1, 2, 4), device=device).requires_grad_(), [3], *window))


X, Y = torch.zeros(2, 3, 5, 6), torch.zeros(2, 12, 20)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda f: f.unfold("x", 2), TypeError, "'input' must be a Tensor, got str"),
        (lambda f: f.unfold(X, 2.0), TypeError, r"'kernel_size' must be an int or a tuple of 2 ints, got 2.0 of type float"),
        (lambda f: f.unfold(X, "same"), TypeError, "'kernel_size' must be"),
        (lambda f: f.unfold(X, 2, padding="same"), TypeError, "'padding' must be an int"),
        (lambda f: f.unfold(X[0, 0], (2, 2)), RuntimeError, r"expected 3D .* or 4D .*got input \[5, 6\]"),
        (lambda f: f.unfold(X.long(), 2), RuntimeError, "input has dtype torch.int64; tritonconv takes float16"),
        (lambda f: f.unfold(X, 2, stride=(1,)), RuntimeError, r"expected stride to be an int or 2 ints, got 1: stride=\(1,\)"),
        (lambda f: f.unfold(X, (2,) * 4), RuntimeError, r"kernel_size to be an int or 1 to 3 ints, got 4: kernel_size=\(2, 2"),
        (lambda f: f.unfold(X, 0), RuntimeError, "non-positive kernel_size is not supported, got kernel_size=0"),
        (lambda f: f.unfold(X, 2, dilation=0), RuntimeError, "non-positive dilation"),
        (lambda f: f.unfold(X, 2, padding=-1), RuntimeError, "negative padding is not supported, got padding=-1"),
        (lambda f: f.unfold(X, 2, stride=0), RuntimeError, "non-positive stride"),
        (lambda f: f.unfold(X[:, :0], 2), RuntimeError, r"only the batch may be empty, got input of shape \[2, 0, 5, 6\]"),
        (lambda f: f.unfold(X, 7), RuntimeError, r"greater than the padded input.*kernel_size=\(7, 7\), dilation=\(1, 1\)"),
        (lambda f: f.unfold(X, 4, dilation=2), RuntimeError, r"greater than the padded input.*dilation=\(2, 2\)"),
        (lambda f: f.fold(1, 5, 2), TypeError, "'input' must be a Tensor, got int"),
        (lambda f: f.fold(Y, 5.5, 2), TypeError, "'output_size' must be an int"),
        (lambda f: f.fold(X, (5, 6), 2), RuntimeError, r"expected 2D .* or 3D .*got input \[2, 3, 5, 6\]"),
        (
            lambda f: f.fold(Y, (5, 6), (2, 2, 2)),
            RuntimeError,
            r"output_size to be an int or 3 ints, got 2: output_size=\(5, 6\)",
        ),
        (lambda f: f.fold(Y[:, 1:], (5, 6), 2), RuntimeError, r"\[N, C \* 4, L\] .*got input \[2, 11, 20\], whose 11 rows"),
        (lambda f: f.fold(Y, (5, 5), 2), RuntimeError, r"4 \* 4 = 16 windows for output_size=\(5, 5\).*got input .* with 20"),
        (lambda f: f.fold(Y, (1, 6), 2), RuntimeError, r"padded input.*output_size=\(1, 6\), kernel_size=\(2, 2\)"),
        (lambda f: f.fold(Y, (0, 6), 2), RuntimeError, "non-positive output_size"),
        (lambda f: f.fold(Y[:, :, :0], (5, 6), 2), RuntimeError, "only the batch may be empty"),
    ],
)
def test_what_does_not_go_together_is_refused_in_words(call, error, words, launches):
    """Torch refuses it too, with the same type where it says so on purpose."""
    with pytest.raises(error, match=words):
        call(tritonconv)
    with pytest.raises((error, RuntimeError, IndexError)):  # of an axis too few torch says IndexError from within
        call(F)
    assert not launches()


def test_other_ranks_are_asked_for_by_tuples(launches):
    with pytest.raises(RuntimeError, match="windows of another rank have a kernel_size of 1 or 3 ints"):
        tritonconv.unfold(torch.zeros(1, 1, 3, 3, 3), 2)
    with pytest.raises(RuntimeError, match=r"expected 2D \(unbatched\) or 3D \(batched\) input for kernel_size=\(2,\)"):
        tritonconv.unfold(X, (2,))
    with pytest.raises(TypeError, match="plan"):
        tritonconv.unfold(X, 2, plan=3)
    assert not launches()
    assert tritonconv.fold(torch.ones(1, 8, 1), (2, 2, 2), 2).shape == (1, 1, 2, 2, 2)
