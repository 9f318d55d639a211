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


@pytest.mark.parametrize("mode", [Functions, Dispatched])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("call", [conv, fused], ids=["plain", "fused"])
def test_a_mode_sees_every_call(mode, grad, call, launched):
    tensors = operands(grad=grad)
    for _ in range(3):
        call(*tensors)
    with mode() as seeing:
        for _ in range(3):
            call(*tensors)
    assert sum("tritonconv" in name for name in seeing.seen) == 3


def test_a_mode_sees_every_backward_pass(launched):
    tensors = operands(grad=True)
    for _ in range(3):
        torch.autograd.grad(conv(*tensors).sum(), tensors)
    y = conv(*tensors).sum()
    with Dispatched() as seeing:
        torch.autograd.grad(y, tensors)
    assert [n for n in seeing.seen if "tritonconv" in n] == ["tritonconv.dgrad.default", "tritonconv.wgrad.default"]


def test_a_profiler_sees_every_call(launched):
    tensors, counts = operands(), []
    conv(*tensors), conv(*tensors)
    for _ in range(2):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            conv(*tensors), conv(*tensors)
        counts.append(sum(event.name == "tritonconv::fprop" for event in seen.events()))
        recipes.forget()
    assert counts[0] == counts[1] >= 2


class Sub(torch.Tensor):
    pass


def test_a_subclass_stays_one(launched):
    x, w, b = operands()
    conv(x, w, b), conv(x, w, b)
    assert type(conv(x.as_subclass(Sub), w, b)) is Sub and type(conv(x, w.as_subclass(Sub), b)) is Sub


def test_autocast_casts(launched):
    tensors = operands()
    conv(*tensors), conv(*tensors)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            assert conv(*tensors).dtype == torch.bfloat16


def test_a_negative_view_is_one(launched):
    x, w, b = operands()
    negative = torch.complex(x, x).conj().imag
    plain = torch.complex(x, -x).imag
    want = conv(plain, w, b)
    assert negative.is_neg() and negative.stride() == plain.stride()
    for _ in range(2):
        assert torch.allclose(conv(negative, w, b), want)


def test_transforms_of_functions(launched):
    x, w, b = operands()
    for _ in range(2):
        conv(x, w, b)
    want = conv(x, w, b)
    assert torch.allclose(torch.func.vmap(conv, in_dims=(0, None, None))(x.unsqueeze(1), w, b).squeeze(1), want, atol=1e-5)
    _, moved = torch.func.jvp(lambda x: conv(x, w, b), (x,), (torch.ones_like(x),))
    assert torch.allclose(moved, conv(torch.ones_like(x), w, None), atol=1e-5)
    grad = torch.func.grad(lambda x: conv(x, w, b).sum())(x)
    leaf = x.clone().requires_grad_()
    assert torch.allclose(grad, torch.autograd.grad(conv(leaf, w, b).sum(), leaf)[0])
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        assert torch.autograd.forward_ad.unpack_dual(conv(dual, w, b)).tangent is not None


def test_a_tracer_sees_every_call(launched):
    x, w, b = operands()
    conv(x, w, b), conv(x, w, b)
    graph = torch.fx.experimental.proxy_tensor.make_fx(lambda x: conv(x, w, b))(x)
    assert "tritonconv.fprop" in graph.code
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert isinstance(conv(mode.from_tensor(x), w, b), torch._subclasses.FakeTensor)


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
