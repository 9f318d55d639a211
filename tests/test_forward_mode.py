"""Forward mode, alone and under or over the backward pass: an answer that is wrong looks like a zero, so each is compared.

What a derivative is made of does not depend on what computes it: most tests run the ops by torch (`by_torch`), in a
tenth of the interpreter's time, and one test runs the kernels.
"""

import contextlib
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize
from torch.utils._pytree import tree_leaves

import tritonconv
from tritonconv import host
from tritonconv.epilogue import ACTIVATIONS

pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop"),  # of a vmap over an op without a rule
    pytest.mark.filterwarnings("ignore:Warning only once for all operators"),  # `by_torch` puts others in the kernels' place
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node"),  # `linearize`, whatever it is given
]
OPS = torch.ops.tritonconv
PLACE = ([2], [1, 0], [1], 2)  # stride, padding, dilation, groups
STARTS = torch.tensor([0, 2, 2, 4], dtype=torch.int32)  # two columns, none, two, and one of nobody
IDS = torch.tensor([[0, 0, 2, 2, -1]], dtype=torch.int32)


def of(activation):
    return lambda *t: OPS.fprop_fused(*t[:3], *PLACE, *t[3:], activation, 0.01, True)


def of_transposed(activation):
    return lambda *t: OPS.dgrad_fused(*t[:3], [5], *PLACE, *t[3:], activation, 0.01, True)


def separable(between, activation):
    return lambda *t: OPS.separable(*t, [1, 1], [0, 1, 0, 0], [1, 1], between, activation)


def causal_backward(activation):
    return lambda dy, x, w, b, s, dfinal: OPS.causal_backward(dy, x, w, b, s, IDS, STARTS, dfinal, activation, True, True, True)


def video(upsample, time_padding):
    return lambda x, w, b, cache: OPS.video(x, w, b, cache, [1, 1, 1], [1, 0, 0, 1], [1, 1, 1], upsample, time_padding, True)


def deform(x, offset, w, b, mask):
    return OPS.deform(x, offset, w, b, mask, [1, 1], [0, 1], [1, 1])


def deform_backward(dy, x, offset, w, mask):
    return OPS.deform_backward(dy, x, offset, w, mask, [1, 1], [0, 1], [1, 1], [True] * 4)


def normalize(activation):
    return lambda x, scale, shift, rstd: OPS.normalize(x, scale, shift, rstd, activation, 0.01)


def group_scale(per_frame):
    return lambda x, w, b: OPS.group_scale(x, w, b, 2, 0.5, per_frame)


def fprop_normalized(x, w, b, scale, shift, rstd):
    return OPS.fprop_normalized(x, w, b, *PLACE, scale, shift, rstd, "silu")


PACKED = ((1, 2, 5), (2, 3), (2,), (3, 2, 2))
FRAMES = ((1, 2, 2, 2, 2), (2, 2, 2, 2, 1), (2,), (1, 2, 1, 2, 2))
FUSED = ((1, 4, 5), (2, 2, 2), (2,), (2,), (2,), (1, 2, 3))
FUSED_TRANSPOSED = ((1, 2, 3), (2, 2, 2), (4,), (4,), (4,), (1, 4, 5))
PAIR = ((1, 2, 2, 2), (2, 1, 2, 1), (2, 2, 1, 1), (2,), (2,), (1, 2, 2, 2))
#: Every op that has derivatives, some in several ways: a function of tensors of these shapes.
WAYS = {
    "fprop": (lambda x, w, b: OPS.fprop(x, w, b, *PLACE), ((1, 4, 5), (2, 2, 2), (2,))),
    "dgrad": (lambda dy, w, b: OPS.dgrad(dy, w, b, [5], *PLACE), ((1, 2, 3), (2, 2, 2), (4,))),
    "wgrad": (lambda dy, x: OPS.wgrad(dy, x, [2], *PLACE), ((1, 2, 3), (1, 4, 5))),
    "unfold": (lambda x: OPS.unfold(x, [2, 1], [1, 1], [1, 0], [1, 2]), ((1, 2, 2, 3),)),
    "fold": (lambda y: OPS.fold(y, [2, 3], [2, 1], [1, 1], [1, 0], [1, 2]), ((1, 4, 6),)),
    "deform": (deform, ((1, 2, 2, 2), (1, 4, 2, 3), (1, 2, 1, 2), (1,), (1, 2, 2, 3))),
    "deform_backward": (deform_backward, ((1, 1, 2, 3), (1, 2, 2, 2), (1, 4, 2, 3), (1, 2, 1, 2), (1, 2, 2, 3))),
    "fprop_fused silu": (of("silu"), FUSED),
    "dgrad_fused gelu": (of_transposed("gelu"), FUSED_TRANSPOSED),
    **{f"separable {a} {b}": (separable(a, b), PAIR) for a, b in (("silu", "tanh"), ("", "gelu"))},
    "causal": (lambda x, w, b, s: OPS.causal(x, w, b, s, IDS, STARTS, "", True), PACKED),
    "causal silu": (lambda x, w, b, s: OPS.causal(x, w, b, s, IDS, STARTS, "silu", True), PACKED),
    "causal_backward": (causal_backward(""), ((1, 2, 5), *PACKED, (3, 2, 2))),
    "causal_backward silu": (causal_backward("silu"), ((1, 2, 5), *PACKED, (3, 2, 2))),
    "normalize silu": (normalize("silu"), ((2, 2, 1, 2, 2), (2, 1, 2), (1, 1, 2), (2, 1, 2, 2))),
    "normalize relu": (normalize("relu"), ((1, 2, 2, 1, 2), (1, 2, 2), (1, 1, 2), (1, 2, 1, 2))),
    "normalize": (lambda x, shift: OPS.normalize(x, None, shift, None), ((1, 2, 2, 1, 2), (1, 2, 2))),
    "group_scale": (group_scale(False), ((2, 4, 2, 1, 2), (4,), (4,))),
    "group_scale per frame": (group_scale(True), ((1, 4, 2, 2, 1), (4,), (4,))),
    "group_scale alone": (lambda x: OPS.group_scale(x, None, None, 1, 0.5, False), ((1, 2, 1, 2, 2),)),
    "rms_rstd": (lambda x: OPS.rms_rstd(x, 0.5), ((2, 3, 1, 2, 2),)),
    "fprop_normalized": (fprop_normalized, ((1, 4, 5), (2, 2, 2), (2,), (1, 1, 4), (1, 1, 4), (1, 1, 1, 5))),
    "video": (video(1, "replicate"), FRAMES),
    "video upsample": (video(2, "zeros"), FRAMES),
}


def ways(slow=()):
    """All of them; those named are slow."""
    each = [pytest.param(name, marks=pytest.mark.slow if name in slow else (), id=name.replace(" ", "-")) for name in WAYS]
    return pytest.mark.parametrize("way", each)


@contextlib.contextmanager
def computed_by_torch():
    """The ops as CPU tensors get them outside the interpreter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "_kernels", False)
        yield


@pytest.fixture
def by_torch(launches):
    with computed_by_torch():
        yield
    assert not launches(), "a kernel was launched"


def values(shapes, device="cpu", seed=0):
    random = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=random, dtype=torch.float64).to(device) for shape in shapes)


def assert_same(got, want):
    for one, other in zip(tree_leaves(got), tree_leaves(want), strict=True):
        torch.testing.assert_close(one.cpu(), other.cpu(), rtol=1e-11, atol=1e-11)


def test_no_op_is_forgotten() -> None:
    """A new op is here too, and in one of the lists below."""
    registered = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("tritonconv::")}
    assert registered == {name.split()[0] for name in WAYS} | {"causal_update"}


@ways(slow=("deform_backward", "normalize relu", "normalize", "group_scale alone"))
def test_gradcheck(way, by_torch) -> None:
    call, shapes = WAYS[way]
    tensors = tuple(t.requires_grad_() for t in values(shapes))
    # The others' derivatives backwards have tests of their own.
    backwards = way.startswith(("causal", "unfold", "fold", "deform", "normalize", "group_scale", "rms_rstd"))
    assert gradcheck(call, tensors, check_forward_ad=True, check_backward_ad=backwards, fast_mode=True)
    options = {"check_rev_over_rev": backwards, "check_undefined_grad": False, "fast_mode": True}
    assert gradgradcheck(call, tensors, check_fwd_over_rev=True, **options)


@ways(slow=("deform", "deform_backward", "normalize", "group_scale"))
def test_kernels_answer_the_same(way, device, launched) -> None:
    """Tangents of results and of gradients, by the kernels and by torch, which `test_gradcheck` holds against differences."""
    call, shapes = WAYS[way]

    def both(*given):
        first = grad(lambda *t: sum((r * r).sum() for r in tree_leaves(call(*t))), tuple(range(len(given))))
        return call(*given), first(*given)

    got = jvp(both, values(shapes, device), values(shapes, device, seed=1))
    with computed_by_torch():
        assert_same(got, jvp(both, values(shapes), values(shapes, seed=1)))


def silu(z):
    """F.silu, whose own derivative has none in forward mode where no gradient is recorded."""
    return z * z.sigmoid()


def group_norm(x):
    """F.group_norm of two groups, whose own backward has no tangents in torch."""
    variance, mean = torch.var_mean(x.unflatten(1, (2, -1)), (2, 3), correction=0, keepdim=True)
    return ((x.unflatten(1, (2, -1)) - mean) * (variance + 0.5).rsqrt()).flatten(1, 2)


def normed(x, w, b):
    """GroupNorm with a weight and SiLU before a convolution; b is the weight of both."""
    return tritonconv.conv1d_fused(x, w, b, prologue=tritonconv.group_norm_prologue(x, 2, b, None, 0.5, activation="silu"))


def normed_causal3d(x, w, b):
    """RMSNorm and SiLU before a causal convolution of a video."""
    prologue = tritonconv.rms_norm_prologue(x, eps=0.5, activation="silu")
    return tritonconv.causal_conv3d(x, w, b, prologue=prologue, return_cache=False)


def causal3d(x, w, b):
    return tritonconv.causal_conv3d(x, w, b, return_cache=False)


#: Functions of (x, w, b) beside what torch makes of them.
FUNCTIONS = {
    "conv1d": (tritonconv.conv1d, F.conv1d, ((2, 3, 4), (2, 3, 2), (2,))),
    "conv_transpose1d": (tritonconv.conv_transpose1d, F.conv_transpose1d, ((2, 2, 3), (2, 3, 2), (3,))),
    "depthwise": (
        lambda x, w, b: tritonconv.conv1d(x, w, b, groups=3),
        lambda x, w, b: F.conv1d(x, w, b, groups=3),
        ((2, 3, 4), (3, 1, 2), (3,)),
    ),
    "fused": (
        lambda x, w, b: tritonconv.conv1d_fused(x, w, b, scale=b, shift=2 * b, activation="silu"),
        lambda x, w, b: silu((F.conv1d(x, w, b) * b[:, None]) + 2 * b[:, None]),
        ((1, 3, 4), (2, 3, 2), (2,)),
    ),
    "separable": (
        lambda x, w, b: tritonconv.depthwise_separable_conv2d(x, w, b, activation="silu", pointwise_activation="tanh"),
        lambda x, w, b: F.conv2d(silu(F.conv2d(x, w, groups=2)), b).tanh(),
        ((1, 2, 2, 3), (2, 1, 2, 2), (3, 2, 1, 1)),
    ),
    "causal_conv1d": (
        lambda x, w, b: tritonconv.causal_conv1d(x, w, b, "silu"),
        lambda x, w, b: silu(F.conv1d(F.pad(x, (2, 0)), w[:, None], b, groups=2)),
        ((2, 2, 4), (2, 3), (2,)),
    ),
    "causal_conv3d": (
        causal3d,
        lambda x, w, b: F.conv3d(F.pad(x, (0, 0, 0, 0, 1, 0)), w, b),
        ((1, 2, 2, 2, 2), (2, 2, 2, 1, 2), (2,)),
    ),
    "group_norm before conv1d": (
        normed,
        lambda x, w, b: F.conv1d(silu(group_norm(x) * b[:, None]), w, b),
        ((2, 4, 3), (4, 4, 2), (4,)),
    ),
    "rms_norm before causal_conv3d": (
        normed_causal3d,
        lambda x, w, b: F.conv3d(F.pad(silu(x * (x.square().mean(1, True) + 0.5).rsqrt()), (0, 0, 0, 0, 1, 0)), w, b),
        ((1, 2, 2, 2, 2), (2, 2, 2, 1, 2), (2,)),
    ),
}


def by_duals(loss, tensors, tangents):
    """The first derivatives' duals by torch.autograd, which nothing of torch.func stands around."""
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t.detach().requires_grad_(), v) for t, v in zip(tensors, tangents, strict=True)]
        y = loss(*duals)
        first = torch.autograd.grad(y, duals)
        return [t for each in (y, *first) for t in forward_ad.unpack_dual(each)]


TRANSFORMS = {
    "jvp": jvp,
    "jvp of grad": lambda f, t, v: jvp(grad(f, (0, 1, 2)), t, v),
    "grad of jvp": lambda f, t, v: grad(lambda *t: jvp(f, t, v)[1], (0, 1, 2))(*t),
    "jvp of jvp": lambda f, t, v: jvp(lambda *t: jvp(f, t, v)[1], t, v),
    "jvp of jvp of grad": lambda f, t, v: jvp(lambda *t: jvp(grad(f, (0, 1, 2)), t, v)[1], t, v),
    "linearize": lambda f, t, v: linearize(f, *t)[1](*v),
    "hessian": lambda f, t, v: hessian(f, (1, 2))(*t),
    "jacfwd of grad": lambda f, t, v: jacfwd(grad(f, 1), (1, 2))(*t),
    "jacrev of jacfwd": lambda f, t, v: jacrev(jacfwd(f, 2), (1, 2))(*t),
    "jacfwd of jacfwd": lambda f, t, v: jacfwd(jacfwd(f, 2), (1, 2))(*t),
    "duals": by_duals,
}


#: The functions whose derivatives are more than the three primitives again, under each transform; the others under these.
CURVED, USUAL = ("fused", "separable", "causal_conv1d"), ("jvp", "jvp of grad", "hessian", "duals")
PAIRS = [(transform, name) for name in FUNCTIONS for transform in (TRANSFORMS if name in CURVED else USUAL)]


@pytest.mark.parametrize("transform, name", PAIRS, ids=["-".join(pair).replace(" ", "-") for pair in PAIRS])
def test_transforms_answer_what_torch_does(transform, name, by_torch) -> None:
    ours, torchs, shapes = FUNCTIONS[name]
    tensors, tangents = values(shapes), values(shapes, seed=1)

    def loss(function):
        return lambda *t: function(*t).pow(3).sum()

    apply = TRANSFORMS[transform]
    assert_same(apply(loss(ours), tensors, tangents), apply(loss(torchs), tensors, tangents))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_to_the_second_order(activation, by_torch) -> None:
    """With and without gradients being recorded: torch's own derivative of SiLU has none of its own."""
    x, w, b = values(((1, 3, 4), (2, 3, 2), (2,)))
    tangents = values((x.shape, w.shape, b.shape), seed=1)

    def ours(x, w, b):
        return tritonconv.conv1d_fused(x, w, b, activation=activation)

    def torchs(x, w, b):
        return ACTIVATIONS[activation].forward(F.conv1d(x, w, b), 0.01)

    assert_same(jvp(ours, (x, w, b), tangents), jvp(torchs, (x, w, b), tangents))
    twice = [jacfwd(jacfwd(lambda b, f=f: f(x, w, b)))(b) for f in (ours, torchs)]
    with torch.no_grad():
        twice.append(jacfwd(jacfwd(lambda b: ours(x, w, b)))(b))
    assert_same(twice[0], twice[1])
    assert_same(twice[2], twice[1])


@pytest.mark.parametrize(
    "name, dynamic", [("conv1d", True), ("fused", True), ("fused", False), ("causal_conv1d", True), ("causal_conv3d", False)]
)
def test_compile_of_a_jvp(name, dynamic, by_torch) -> None:
    torch._dynamo.reset()
    ours, torchs, shapes = FUNCTIONS[name]
    tensors, tangents = values(shapes), values(shapes, seed=1)

    def both(function):
        def call(*given):
            half = len(given) // 2
            primals, tangents = given[:half], given[half:]
            first = grad(lambda *t: function(*t).pow(3).sum(), (0, 1, 2))
            return jvp(function, primals, tangents), jvp(first, primals, tangents)

        return call

    compiled = torch.compile(both(ours), backend="aot_eager", fullgraph=True, dynamic=dynamic)
    assert_same(compiled(*tensors, *tangents), both(torchs)(*tensors, *tangents))


def test_a_tangent_of_what_is_changed_in_place_is_refused() -> None:
    x, state, w = values(((1, 2), (1, 2, 2), (2, 3)))
    words = "causal_conv1d_update.* has no derivatives.* forward mode"
    for call in (
        lambda x: tritonconv.causal_conv1d_update(x, state, w),
        lambda w: tritonconv.causal_conv1d_update(x, state, w),
    ):
        given = x if call.__code__.co_varnames[0] == "x" else w
        with pytest.raises(RuntimeError, match=words):
            jvp(call, (given,), (torch.ones_like(given),))
        with forward_ad.dual_level(), pytest.raises(RuntimeError, match=words):
            call(forward_ad.make_dual(given, torch.ones_like(given)))
        torch._dynamo.reset()
        with pytest.raises(RuntimeError, match=words):
            torch.compile(lambda t, call=call: jvp(call, (t,), (torch.ones_like(t),)), backend="aot_eager")(given)


def test_what_forward_mode_would_want_is_not_kept(device) -> None:
    """A node of the backward graph keeps what its backward reads, not what its tangents would."""
    x, w, b = values(((1, 3, 4), (2, 3, 2), (2,)), device)
    b.requires_grad_()
    for call in (tritonconv.conv1d, lambda *t: tritonconv.conv1d_fused(*t, activation="silu")):
        operand = x.clone()
        y = call(operand, w, b)
        seen = weakref.ref(operand), weakref.ref(y)
        del operand
        assert seen[0]() is None and y.requires_grad
        del y
        assert seen[1]() is None
