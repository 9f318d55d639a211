"""Calls that were made before, seen nevertheless by those who are to see every call: modes, transforms, profilers, hooks."""

import pytest
import torch
from test_recipes import conv, fused, nothing_is_known, operands  # noqa: F401
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import tritonconv
from tritonconv import recipes

pytestmark = pytest.mark.interpreter


class Functions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


class Dispatched(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


OFFSETS = torch.linspace(-1, 1, 8 * 5 * 4).view(1, 8, 5, 4).expand(2, 8, 5, 4).contiguous()


def video(x, w, b):
    prologue = tritonconv.Prologue(b, b, None, "silu")
    given = {"return_cache": False, "prologue": prologue}
    return tritonconv.causal_conv3d(x.unsqueeze(2), w[:, :, None, :1], b, padding=(0, 1), **given).squeeze(2)


#: A call of (x [2, 4, 6, 5], w [4, 4, 3, 3], b [4]), and the ops of it and of its backward pass.
CALLS = {
    "plain": (conv, ["fprop"], ["dgrad", "wgrad"]),
    "fused": (fused, ["fprop_fused"], ["dgrad", "wgrad"]),
    "unfold": (lambda x, w, b: tritonconv.unfold(x, 3), ["unfold"], ["fold"]),
    "fold": (lambda x, w, b: tritonconv.fold(x.flatten(2), (7, 6), 2), ["fold"], ["unfold"]),
    "deform": (lambda x, w, b: tritonconv.deform_conv2d(x, OFFSETS, w[..., :2, :2], b), ["deform"], ["deform_backward"]),
    "prologue": (lambda x, w, b: tritonconv.Prologue(b, None, None, "silu")(x), ["normalize"], []),
    "group norm": (lambda x, w, b: tritonconv.group_norm_prologue(x, 2, b, b).shift, ["group_scale"], []),
    "rms norm": (lambda x, w, b: tritonconv.rms_norm_prologue(x).rstd, ["rms_rstd"], []),
    "video": (video, ["video"], ["dgrad", "wgrad"]),
}
EVERY = pytest.mark.parametrize("name", CALLS)


@pytest.mark.parametrize("mode", [Functions, Dispatched])
@pytest.mark.parametrize("grad", [False, True])
@EVERY
def test_a_mode_sees_every_call(mode, grad, name, launched):
    call, ops, _ = CALLS[name]
    if name == "video" and grad and mode is Dispatched:
        ops = ["normalize", "video"]  # a mode of functions sees the call before autograd takes it apart
    tensors = operands(grad=grad)
    for _ in range(3):
        call(*tensors)
    with mode() as seeing:
        for _ in range(3):
            call(*tensors)
    seen = [name.split(".")[-2 if mode is Dispatched else -1] for name in seeing.seen if "tritonconv" in name]
    assert [op.split("::")[-1] for op in seen] == ops * 3


@EVERY
def test_a_mode_sees_every_backward_pass(name, launched):
    call, _, ops = CALLS[name]
    tensors = operands(grad=True)
    for _ in range(3):
        torch.autograd.grad(call(*tensors).sum(), tensors, allow_unused=True)
    y = call(*tensors).sum()
    with Dispatched() as seeing:
        torch.autograd.grad(y, tensors, allow_unused=True)
    assert [n for n in seeing.seen if "tritonconv" in n] == [f"tritonconv.{op}.default" for op in ops]


@EVERY
@pytest.mark.parametrize("grad", [False, True])
def test_a_profiler_sees_every_call(name, grad, launched):
    (call, ops, _), tensors, counts = CALLS[name], operands(grad=grad), []
    call(*tensors), call(*tensors)
    for _ in range(2):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            call(*tensors), call(*tensors)
        counts.append(sum(event.name == f"tritonconv::{ops[0]}" for event in seen.events()))
        recipes.forget()
    assert counts[0] == counts[1] >= 2


class Sub(torch.Tensor):
    pass


@EVERY
def test_a_subclass_stays_one(name, launched):
    call = CALLS[name][0]
    x, w, b = operands()
    call(x, w, b), call(x, w, b)
    assert type(call(x.as_subclass(Sub), w, b)) is Sub
    if name in ("plain", "fused", "deform", "video"):
        assert type(call(x, w.as_subclass(Sub), b)) is Sub


@EVERY
@pytest.mark.parametrize("grad", [False, True])
def test_autocast_casts(name, grad, launched):
    """Statistics and copied columns keep their dtype in a region, as they do where nothing was known."""
    call, tensors = CALLS[name][0], operands(grad=grad)
    with torch.autocast("cpu", torch.bfloat16):
        want = call(*tensors)
    recipes.forget()
    call(*tensors), call(*tensors)
    assert (want.dtype == torch.float32) == (name in ("unfold", "fold", "group norm", "rms norm"))
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            made = call(*tensors)
        assert made.dtype == want.dtype and torch.equal(made, want)


def test_a_negative_view_is_one(launched):
    x, w, b = operands()
    negative = torch.complex(x, x).conj().imag
    plain = torch.complex(x, -x).imag
    want = conv(plain, w, b)
    assert negative.is_neg() and negative.stride() == plain.stride()
    for _ in range(2):
        assert torch.allclose(conv(negative, w, b), want)


@EVERY
def test_transforms_of_functions(name, launched):
    call = CALLS[name][0]
    x, w, b = operands()
    leaf = x.clone().requires_grad_()
    for _ in range(2):
        call(x, w, b), call(leaf, w, b)
    want = call(x, w, b)
    if name != "deform":  # whose offsets are of a batch
        apart = torch.func.vmap(call, in_dims=(0, None, None))(x.unsqueeze(1), w, b)
        assert torch.allclose(apart.squeeze(1), want, atol=1e-5)
    grad = torch.func.grad(lambda x: call(x, w, b).square().sum())(x)
    assert torch.allclose(grad, torch.autograd.grad(call(leaf, w, b).square().sum(), leaf)[0], atol=1e-5)
    _, moved = torch.func.jvp(lambda x: call(x, w, b), (x,), (x,))
    direction = torch.autograd.forward_ad
    with direction.dual_level():
        tangent = direction.unpack_dual(call(direction.make_dual(x, x), w, b)).tangent
    assert torch.equal(tangent, moved)
    if name in ("plain", "unfold", "fold", "deform"):  # which are linear in x but for the bias
        flat = call(torch.zeros_like(x), w, b)
        assert torch.allclose(moved, want - flat, atol=1e-5)


@EVERY
def test_a_tracer_sees_every_call(name, launched):
    call, ops, _ = CALLS[name]
    x, w, b = operands()
    call(x, w, b), call(x, w, b)
    graph = torch.fx.experimental.proxy_tensor.make_fx(lambda x: call(x, w, b))(x)
    assert f"tritonconv.{ops[0]}" in graph.code
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert isinstance(call(mode.from_tensor(x), w, b), torch._subclasses.FakeTensor)


def test_a_predicate_is_asked_at_each_call(launched):
    """Also by the backward pass, which may come behind the region."""
    tensors, asked = operands(grad=True), []
    for _ in range(3):
        with tritonconv.use(where=lambda call: asked.append(str(call.which)) or True):
            y = torch.nn.functional.conv2d(*tensors, padding=1)
        for _ in range(2):
            torch.autograd.grad(y.sum(), tensors, retain_graph=True)
    assert asked == ["fprop", *["dgrad", "wgrad"] * 2] * 3


def test_saved_tensors_go_through_hooks(launched):
    tensors, packed = operands(grad=True), []
    for _ in range(2):
        conv(*tensors)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.shape) or t, lambda t: t):
        conv(*tensors)
    assert packed == [tensors[0].shape, tensors[1].shape]


def test_a_saved_tensor_that_was_changed_is_refused(launched):
    x, w, b = operands(grad=True)
    for _ in range(2):
        y = conv(x * 1, w, b)
    leaf = x * 1
    y = conv(leaf, w, b)
    leaf.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
