"""Calls that were made before: what is looked up, what is not, and that nobody who is to see a call misses it."""

import contextlib
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

import tritonconv
from costmodel.device import DEVICES
from costmodel.tiling import Plan
from tritonconv import check, host, launch, recipes, steps
from tritonconv.recipes import Recipe

pytestmark = pytest.mark.interpreter


@pytest.fixture(autouse=True)
def nothing_is_known():
    recipes.forget()


@pytest.fixture
def found(monkeypatch):
    """What was found at each look-up, None for nothing."""
    seen, known = [], recipes.known

    def look(key):
        seen.append(known(key))
        return seen[-1]

    monkeypatch.setattr(recipes, "known", look)
    return seen


def operands(dtype=torch.float32, grad=False):
    torch.manual_seed(0)
    x, w, b = torch.randn(2, 4, 6, 5), torch.randn(4, 4, 3, 3), torch.randn(4)
    return [t.to(dtype).requires_grad_(grad) for t in (x, w, b)]


def conv(x, w, b, **arguments):
    return tritonconv.conv2d(x, w, b, **{"padding": 1, **arguments})


def fused(x, w, b, **arguments):
    return tritonconv.conv2d_fused(x, w, b, **{"padding": 1, "activation": "relu", **arguments})


# ---- what is looked up ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [conv, fused, lambda *t: tritonconv.conv_transpose2d(*t, 2, 1)], ids=["conv", "fused", "t"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_second_call_is_neither_checked_nor_planned_again(call, grad, launched, monkeypatch):
    tensors = operands(grad=grad)
    first = call(*tensors)
    for name in ("conv", "conv_transpose", "tensors"):
        monkeypatch.setattr(check, name, None)
    monkeypatch.setattr(launch, "prepare_call", None)
    second = call(*tensors)
    assert torch.equal(first, second) and first.stride() == second.stride() and second.requires_grad == grad
    assert sum(launched().values()) >= 2


@pytest.mark.parametrize("call", [conv, fused, lambda *t: tritonconv.conv_transpose2d(*t, 2, 1)], ids=["conv", "fused", "t"])
def test_gradients_of_a_known_call_have_the_same_bits(call, launched, monkeypatch):
    tensors = operands(grad=True)
    dy = torch.randn_like(call(*tensors))
    first, second = (torch.autograd.grad(call(*tensors), tensors, dy) for _ in range(2))
    ways = []
    for name in ("fprop", "dgrad", "wgrad", "fprop_fused", "dgrad_fused"):
        monkeypatch.setattr(torch.ops.tritonconv, name, lambda *a, name=name: ways.append(name))
    third = torch.autograd.grad(call(*tensors), tensors, dy)
    assert not ways
    assert all(torch.equal(g, other) for others in (second, third) for g, other in zip(first, others, strict=True))


def test_second_derivatives_of_a_known_call(launched):
    x, w, _ = operands(torch.float64, grad=True)
    for _ in range(2):
        torch.autograd.grad(conv(x, w, None).square().sum(), (x, w))
    assert torch.autograd.gradgradcheck(lambda x, w: conv(x[:1, :, :3, :3], w, None), (x, w), fast_mode=True)


def test_no_tensor_is_kept(launched):
    tensors = operands()
    conv(*tensors), conv(*tensors)
    held = [weakref.ref(t) for t in tensors]
    del tensors
    gc.collect()
    assert [ref() for ref in held] == [None] * 3


def test_the_oldest_makes_room(monkeypatch, launched):
    monkeypatch.setattr(recipes, "MOST", 3)
    x, w, b = operands()
    for size in range(5, 1, -1):
        conv(x[:, :, :, :size].contiguous(), w, b)
    assert len(recipes._KNOWN) == 3


def test_memory_runs_out_as_in_a_first_call(monkeypatch, launched):
    tensors = operands()
    first = conv(*tensors)
    run, full = steps.Launch.run, [True]

    def once(self, *given):
        if full and full.pop():
            raise torch.OutOfMemoryError("full")
        run(self, *given)

    monkeypatch.setattr(steps.Launch, "run", once)
    assert torch.equal(conv(*tensors), first) and not full


# ---- what the key holds --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def tf32():
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "tf32" if before != "tf32" else "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision = before


@contextlib.contextmanager
def other_device():
    """The same GPU with another calibration, whose answers the recipe of another one must not give."""
    host.use(replace(DEVICES["NVIDIA H200"], clock=DEVICES["NVIDIA H200"].clock + 1))
    yield
    host.use(host.model(-1))


def changed(name):
    def call(x, w, b, given):
        tensors = {"x": x, "w": w, "b": b}
        tensors[name] = given(tensors[name])
        return conv(*tensors.values())

    return call


def unaligned(t):
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)


def strided(t):
    return torch.stack([t, t], -1)[..., 0]


CHANNELS_LAST = lambda t: t.contiguous(memory_format=torch.channels_last)  # noqa: E731
CONSTANTS = lambda r: r.launch.main.constants  # noqa: E731
#: What is changed, how, and what of the recipe differs then (nothing: a look-up that fails is enough).
FLIPS = {
    "precision": (tf32, None, lambda r: CONSTANTS(r)["PRECISION"]),
    "grad mode": (torch.no_grad, "grad", lambda r: r.records),
    "requires_grad": (None, lambda x, w, b: conv(x.clone().requires_grad_(), w, b), lambda r: r.records),
    "inference mode": (torch.inference_mode, None, None),
    "batch invariant": (tritonconv.batch_invariant, None, lambda r: r.window[-1]),
    "device model": (other_device, None, lambda r: r.launch.plan),
    "below autograd": (torch._C._AutoDispatchBelowAutograd, None, None),
    "strides of x": (None, lambda x, w, b: conv(CHANNELS_LAST(x), w, b), lambda r: r.strides),
    "strides of w": (None, lambda x, w, b: conv(x, CHANNELS_LAST(w), b), lambda r: r.strides),
    "stride of b": (None, lambda x, w, b: conv(x, w, strided(b)), lambda r: r.launch.main.arguments),
    "no bias": (None, lambda x, w, b: conv(x, w, None), lambda r: CONSTANTS(r)["HAS_BIAS"]),
    "alignment of x": (None, lambda x, w, b: conv(unaligned(x), w, b), None),
    "alignment of w": (None, lambda x, w, b: conv(x, unaligned(w), b), None),
    "shape of x": (None, lambda x, w, b: conv(x[..., :4].contiguous(), w, b), lambda r: r.shape),
    "shape of w": (None, lambda x, w, b: conv(x, w[:, :, :1].contiguous(), b), lambda r: r.shape),
    "batch": (None, lambda x, w, b: conv(x[:1], w, b), lambda r: r.shape),  # the strides are the same
    "dtype": (None, lambda *t: conv(*(v.double() for v in t)), lambda r: CONSTANTS(r)["ACC"]),
    "stride": (None, lambda *t: conv(*t, stride=2), lambda r: r.shape),
    "padding": (None, lambda *t: conv(*t, padding=(1, 0)), lambda r: r.shape),
    "both ends": (None, lambda *t: conv(*t, padding=((0, 1), (1, 1))), lambda r: r.shape),
    "dilation": (None, lambda *t: conv(*t, dilation=2), lambda r: CONSTANTS(r)["DILATION"]),
    "plan": (None, lambda *t: conv(*t, plan=Plan.parse("fprop:gather:16x16x16:w4:s1")), lambda r: r.launch.plan),
    "function": (None, lambda *t: tritonconv.conv_transpose2d(*t, 1, 1), lambda r: r.which),
    "epilogue": (None, fused, lambda r: r.activation),
    "activation": (None, lambda *t: fused(*t, activation="silu"), lambda r: r.activation),
    "scale": (None, lambda x, w, b: fused(x, w, b, scale=b), lambda r: r.launch.fused),
    "residual": (None, lambda x, w, b: fused(x, w, b, residual=x), lambda r: r.launch.fused),
}


@pytest.mark.parametrize("name", FLIPS)
def test_what_changes_the_answer_is_in_the_key(name, found, launched):
    context, call, differs = FLIPS[name]
    tensors = operands(grad=call == "grad")
    call = call if callable(call) else conv
    with contextlib.suppress(RuntimeError):  # frozen flags of torch's test helpers
        conv(*tensors), conv(*tensors)
    assert isinstance(found[-1], Recipe), "the call itself is not known"
    base = found[-1]
    with context() if context else contextlib.nullcontext():
        found.clear()
        first, second = call(*tensors), call(*tensors)
        assert found[0] is None and isinstance(found[1], Recipe)
        recipes.forget()
        cold = call(*tensors)
    assert torch.equal(first, second) and torch.equal(second, cold) and second.requires_grad == cold.requires_grad
    if differs:
        assert differs(found[1]) != differs(base)


def test_types_of_the_same_size(found, launched):
    for dtype in (torch.float16, torch.bfloat16, torch.float16):
        tensors = operands(dtype)
        for _ in range(2):
            assert conv(*tensors).dtype == dtype
    assert [recipe is None for recipe in found] == [True, False, True, False, False, False]


def test_a_longer_tail_of_the_same_call(found, launched):
    """Arguments that are equal and mean the same have keys of their own: no harm but a look-up."""
    tensors = operands()
    for padding in (1, (1, 1), [1, 1]):
        conv(*tensors, padding=padding)
    assert found == [None] * 3


@pytest.mark.parametrize("value", [True, 1.0, torch.ones(1), "1", None, np.array(1.0), np.array([1]), b"\1"], ids=repr)
def test_what_equals_a_known_argument_is_refused_as_before(value, launched):
    tensors = operands()
    conv(*tensors, stride=1, dilation=(1, 1)), conv(*tensors, stride=1, dilation=(1, 1))
    conv(*tensors, stride=np.int64(1)), conv(*tensors, stride=np.int64(1))
    for arguments in ({"stride": value}, {"dilation": (1, value)}):
        errors = []
        for _ in range(2):
            with pytest.raises((TypeError, RuntimeError)) as error:
                conv(*tensors, **arguments)
            errors.append((type(error.value), str(error.value)))
            recipes.forget()
        assert errors[0] == errors[1]


def test_plans_that_can_be_read_once(found, launched):
    tensors, plan = operands(), Plan.parse("fprop:gather:16x16x16:w4:s1")
    for plans in ([plan], (plan,)):
        conv(*tensors, plan=plans), conv(*tensors, plan=plans)
        assert found[-1].launch.plan == plan
    with pytest.raises(ValueError, match="cannot run"):
        conv(*tensors, plan=(Plan.parse(f"fprop:gather:16x16x16:w4:s1:split{n}") for n in (7,)))


def test_a_bad_call_stays_bad_beside_a_known_one(launched):
    x, w, b = operands()
    conv(x, w, b), conv(x, w, b)
    for bad in ((x, w, b[:3]), (x.double(), w, b), (x, w, "b"), (x[0, 0], w, b), (x[:, :3], w, b)):
        with pytest.raises((TypeError, RuntimeError), match=r"conv2d\(\)"):
            conv(*bad)


# ---- threads -------------------------------------------------------------------------------------------------------------


def test_32_threads_at_once(launched):
    """Each with its own sizes and all with the same, known and not, in grad mode and not."""
    x, w, b = operands()
    sizes = [(n, s) for n in (1, 2) for s in (3, 4, 5)]
    images = {(n, s): x[:n, :, :, :s].contiguous() for n, s in sizes}
    want = {at: torch.nn.functional.conv2d(image, w, b, padding=1) for at, image in images.items()}
    ready = threading.Barrier(32)

    def work(i):
        ready.wait()
        for j in range(3):
            at = sizes[(i + j) % len(sizes)]
            leaf = images[at].clone().requires_grad_(i % 2 == 0)
            with torch.set_grad_enabled(i % 4 < 2):
                y = conv(leaf, w, b)
            assert y.requires_grad == (i % 4 == 0)
            assert torch.allclose(y, want[at], atol=1e-4)
        return True

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(work, range(32)))
