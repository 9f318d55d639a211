"""Known calls of `depthwise_separable_conv2d`, in one kernel and in two."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from test_recipes import found, nothing_is_known, other_device, tf32, unaligned  # noqa: F401

import tritonconv
from tritonconv import recipes, separable
from tritonconv.separable import again, launch
from tritonconv.separable.again import Recipe

pytestmark = pytest.mark.interpreter
WAYS = ["fused", "apart"]


def tensors(grad=False, dtype=torch.float32):
    """x, the two weights, the two biases, residual."""
    torch.manual_seed(0)
    shapes = (1, 8, 3, 4), (8, 1, 3, 3), (4, 8, 1, 1), (8,), (4,), (1, 4, 3, 4)
    made = [torch.randn(shape, dtype=dtype) for shape in shapes]
    last = torch.channels_last
    return [(t.to(memory_format=last) if t.dim() == 4 else t).requires_grad_(grad) for t in made]


def conv(x, w1, w2, b1, b2, residual, **given):
    window = {"padding": 1, "activation": "relu", "pointwise_activation": "silu"}
    return tritonconv.depthwise_separable_conv2d(x, w1, w2, b1, b2, residual=residual, **(window | given))


def image(tensors):
    """The same without a batch."""
    return [t[0] if i in (0, 5) else t for i, t in enumerate(tensors)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("batched", [True, False])
def test_a_second_call_is_neither_checked_nor_planned_again(way, batched, launched, monkeypatch):
    given = tensors() if batched else image(tensors())
    first = conv(*given, plan=way)
    monkeypatch.setattr(separable, "checked", None)
    monkeypatch.setattr(launch, "arranged", None)
    second = conv(*given, plan=way)
    assert torch.equal(first, second) and first.stride() == second.stride() and first.dim() == 3 + batched


@pytest.mark.parametrize("way", WAYS)
def test_gradients_of_a_known_call_have_the_same_bits(way, found, launched):  # noqa: F811
    given = tensors(True)
    dy, made = torch.randn_like(conv(*given, plan=way)), []
    recipes.forget(), found.clear()
    for _ in range(3):
        made.append(torch.autograd.grad(conv(*given, plan=way), given, dy))
    assert any(isinstance(one, Recipe) for one in found)
    assert all(torch.equal(p, q) for later in made[1:] for p, q in zip(made[0], later, strict=True))


def test_second_derivatives_of_a_known_call(found, launched):  # noqa: F811
    x, w1, w2, b1, b2, _ = tensors(True, torch.float64)
    made = []
    for _ in range(3):
        y = conv(x[..., :1, :2], w1[..., :1, :2], w2, b1, b2, None, plan="fused", padding=0)
        first = torch.autograd.grad(y.square().sum(), (x, w1, w2), create_graph=True)
        made.append(torch.autograd.grad(sum(g.square().sum() for g in first), (x, w1, w2)))
    assert any(isinstance(one, Recipe) for one in found)
    assert all(torch.equal(p, q) and p.any() for other in made[1:] for p, q in zip(made[0], other, strict=True))


def with_key(i, change):
    def call(*given, **arguments):
        return conv(*(change(t) if i == j else t for j, t in enumerate(given)), **arguments)

    return call


def plain(**arguments):
    return lambda *given, **others: conv(*given, **(others | arguments))


#: What is changed: a context, or a call.
FLIPS = {
    "precision": tf32,
    "device model": other_device,
    "inference mode": torch.inference_mode,
    "batch invariant": tritonconv.batch_invariant,
    "requires_grad": with_key(2, lambda t: t.clone().requires_grad_()),
    "strides of x": with_key(0, torch.Tensor.contiguous),
    "strides of w1": with_key(1, lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0)),
    "strides of w2": with_key(2, lambda t: torch.stack([t, t], -1)[..., 0]),
    "stride of b1": with_key(3, lambda t: torch.stack([t, t], 1)[:, 0]),
    "alignment of b2": with_key(4, unaligned),
    "strides of the residual": with_key(5, torch.Tensor.contiguous),
    "shape": lambda *given, **rest: conv(given[0][..., :3], *given[1:5], given[5][..., :3], **rest),
    "unbatched": lambda *given, **rest: conv(*image(given), **rest),
    "no first bias": with_key(3, lambda t: None),
    "no second bias": with_key(4, lambda t: None),
    "no residual": with_key(5, lambda t: None),
    "dtype": lambda *given, **rest: conv(*(t.double() for t in given), **rest),
    "stride": lambda *given, **rest: conv(*given[:5], None, stride=2, **rest),
    "padding": lambda *given, **rest: conv(*given[:5], None, padding=2, **rest),
    "dilation": plain(dilation=2, padding=2),
    "activation": plain(activation="relu6"),
    "pointwise_activation": plain(pointwise_activation="relu"),
}
CONTEXTS = (tf32, other_device, torch.inference_mode, tritonconv.batch_invariant)


@pytest.mark.parametrize("name", [*FLIPS, "slope", "plan"])
def test_what_changes_the_answer_is_in_the_key(name, found, monkeypatch):  # noqa: F811
    """Nothing is launched: only the look-ups matter, and what they find."""
    monkeypatch.setattr(launch.Step, "start", lambda *_, **__: None)
    given = tensors()
    base, flip = {
        "slope": (plain(activation="leaky_relu"), plain(activation="leaky_relu", negative_slope=0.5)),
        "plan": (plain(), plain(plan="apart")),
    }.get(name) or (plain(), FLIPS[name])
    arguments = {} if name == "plan" else {"plan": "fused"}
    if name in ("stride", "padding"):
        base = lambda *given, **rest: conv(*given[:5], None, **rest)  # noqa: E731
    for _ in range(2):
        base(*given, plan="fused")
    assert isinstance(found[-1], Recipe) and found[-1].one is not None, "the call itself is not known"
    call = base if flip in CONTEXTS else flip
    with flip() if flip in CONTEXTS else torch.enable_grad():
        found.clear()
        first, second = call(*given, **arguments), call(*given, **arguments)
    of_calls = [one for one in found if one is None or isinstance(one, Recipe)]
    assert of_calls[0] is None and isinstance(of_calls[-1], Recipe)
    assert (of_calls[-1].one is None) == (name == "plan")
    assert (first.shape, first.stride(), first.dtype) == (second.shape, second.stride(), second.dtype)
    assert first.requires_grad == second.requires_grad


def test_no_tensor_is_kept(launched):
    given = tensors()
    for way in WAYS:
        conv(*given, plan=way), conv(*given, plan=way)
    held = [weakref.ref(t) for t in given]
    del given
    gc.collect()
    assert [ref() for ref in held] == [None] * len(held)


def test_an_allocator_with_other_addresses(launched, monkeypatch):
    """The second convolution is planned for a first result on a multiple of 16 bytes."""
    given = tensors()
    want = [conv(*given, plan="apart") for _ in range(2)][1]
    allocate = torch.empty_strided
    monkeypatch.setattr(torch, "empty_strided", lambda *a, **k: unaligned(allocate(*a, **k)).as_strided(*a[:2]))
    planned, followed = [], again.followed
    monkeypatch.setattr(again, "followed", lambda z, *rest: [planned.append(z.data_ptr() % 16), followed(z, *rest)][1])
    made = conv(*given, plan="apart")
    assert made.data_ptr() % 16 and torch.equal(made, want) and planned and planned[0]


def test_memory_runs_out_as_in_a_first_call(launched, monkeypatch):
    given, full = tensors(), [True]
    first = conv(*given, plan="apart")
    run = recipes.launch.perform

    def once(*arguments):
        if full and full.pop():
            raise torch.OutOfMemoryError("full")
        run(*arguments)

    monkeypatch.setattr(recipes.launch, "perform", once)
    assert torch.equal(conv(*given, plan="apart"), first) and not full


def test_32_threads_at_once(launched):
    """Each in one kernel or in two, known and not."""
    given = [t[..., :1, :1] if i in (0, 5) else t for i, t in enumerate(tensors())]
    want = {way: conv(*given, plan=way) for way in WAYS}
    recipes.forget()
    ready = threading.Barrier(32)

    def work(i):
        ready.wait()
        return torch.equal(conv(*given, plan=WAYS[i % 2]), want[WAYS[i % 2]])

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(work, range(32)))
