"""Known calls of `causal_conv3d`: what is looked up, what is in the key, and what each call looks at anew."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from test_recipes import found, nothing_is_known, other_device, tf32, unaligned  # noqa: F401

import tritonconv
from costmodel.tiling import Plan
from tritonconv import recipes
from tritonconv.video import check, launch
from tritonconv.video.again import Recipe

pytestmark = pytest.mark.interpreter
LAST = torch.channels_last_3d


def tensors(grad=False, dtype=torch.float32):
    """x, w, b, cache, residual and the scale of a prologue; all are channels-last."""
    torch.manual_seed(0)
    shapes = (1, 4, 2, 4, 3), (4, 4, 2, 3, 3), (4,), (1, 4, 1, 4, 3), (1, 4, 2, 4, 3), (4,)
    made = [torch.randn(shape, dtype=dtype) for shape in shapes]
    return [(t.to(memory_format=LAST) if t.dim() == 5 else t).requires_grad_(grad) for t in made]


def conv(x, w, b, cache=None, residual=None, **given):
    return tritonconv.causal_conv3d(x, w, b, **{"padding": 1, "cache": cache, "residual": residual, **given})


def prologue(scale, activation="silu", **given):
    return tritonconv.Prologue(scale, scale, None, activation, **given)


def results(given):
    return given if isinstance(given, tuple) else (given,)


CALLS = {
    "plain": lambda x, w, b, *_: conv(x, w, b),
    "cached, residual": lambda x, w, b, cache, residual, _: conv(x, w, b, cache, residual),
    "contiguous": lambda x, w, b, cache, *_: conv(x.contiguous(), w.contiguous(), b, cache.contiguous()),
    "upsample": lambda x, w, b, *_: conv(x, w, b, upsample=2, return_cache=False),
}
PROLOGUES = {
    "together": lambda x, w, b, cache, _, s: conv(x, w, b, cache, prologue=prologue(s), plan="fprop:video:16x16x16:w4:s3"),
    "apart": lambda x, w, b, cache, _, s: conv(x, w, b, cache, prologue=prologue(s), plan="fprop:video:16x16x16:w4:s3:apart"),
    "strided": lambda x, w, b, cache, _, s: conv(x, w, b, cache, prologue=prologue(torch.stack([s, s], 1)[:, 0])),
}


@pytest.mark.parametrize("name", [*CALLS, *PROLOGUES])
def test_a_second_call_is_neither_checked_nor_planned_again(name, found, launched, monkeypatch):  # noqa: F811
    call, given = (CALLS | PROLOGUES)[name], tensors()
    first = results(call(*given))
    monkeypatch.setattr(check, "call", None)
    monkeypatch.setattr(launch, "arranged", None)
    second = results(call(*given))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other) and one.stride() == other.stride()


@pytest.mark.parametrize("name", ["cached, residual", "upsample"])
def test_gradients_of_a_known_call_have_the_same_bits(name, found, launched):  # noqa: F811
    given, made = tensors(True), []
    for _ in range(3):
        made.append(results(CALLS[name](*given)))
        torch.manual_seed(1)
        made[-1] += torch.autograd.grad(made[-1], given, [torch.randn_like(t) for t in made[-1]], allow_unused=True)
    assert isinstance(found[-1], Recipe) or any(isinstance(one, Recipe) for one in found)
    for later in made[1:]:
        assert all(p is None if q is None else torch.equal(p, q) for p, q in zip(made[0], later, strict=True))


def test_second_derivatives_of_a_known_call(found, launched):  # noqa: F811
    x, w, b, *_ = tensors(True, torch.float64)
    made = []
    for _ in range(3):
        y = conv(x[..., :1, :2], w[..., :1, :2].contiguous(), b, return_cache=False, padding=0)
        first = torch.autograd.grad(y.square().sum(), (x, w), create_graph=True)
        made.append(torch.autograd.grad(first[0].square().sum() + first[1].square().sum(), (x, w)))
    assert any(isinstance(one, Recipe) for one in found)
    assert all(torch.equal(p, q) and p.any() for other in made[1:] for p, q in zip(made[0], other, strict=True))


def with_key(name, change):
    """A call with one of its tensors changed."""

    def call(x, w, b, cache, *_):
        given = {"x": x, "w": w, "b": b, "cache": cache}
        return conv(**(given | {name: change(given[name])}))

    return call


def plain(**arguments):
    return lambda x, w, b, cache, *_: conv(x, w, b, cache, **arguments)


def by_16_bytes(t):
    """The tensor at an address that is a multiple of 16 and not of 32."""
    room = t.new_empty(t.numel() + 8)
    first = next(i for i in range(8) if room[i:].data_ptr() % 32 == 16)
    dense = room[first : first + t.numel()].view(t.shape[0], *t.shape[2:], t.shape[1]).movedim(-1, 1)
    return dense.copy_(t)


#: What is changed against `plain()`: a context, or a call.
FLIPS = {
    "precision": tf32,
    "device model": other_device,
    "inference mode": torch.inference_mode,
    "batch invariant": tritonconv.batch_invariant,
    "requires_grad": with_key("w", lambda t: t.clone().requires_grad_()),
    "strides of x": with_key("x", torch.Tensor.contiguous),
    "strides of w": with_key("w", torch.Tensor.contiguous),
    "strides of the cache": with_key("cache", torch.Tensor.contiguous),
    "stride of b": with_key("b", lambda t: torch.stack([t, t], 1)[:, 0]),
    "alignment of b": with_key("b", unaligned),
    "x at 16 bytes": with_key("x", by_16_bytes),
    "cache at 16 bytes": with_key("cache", by_16_bytes),
    "shape": with_key("x", lambda t: t[:, :, :1]),
    "no cache": with_key("cache", lambda t: None),
    "an empty cache": with_key("cache", lambda t: t[:, :, :0]),
    "no bias": with_key("b", lambda t: None),
    "dtype": lambda *given: plain()(*(t.double() for t in given)),
    "stride": plain(stride=(2, 1, 1)),
    "padding": plain(padding=0),
    "dilation": plain(dilation=(1, 2, 1), padding=(2, 1)),
    "no next cache": plain(return_cache=False),
    "upsample": plain(upsample=2),
    "time_padding": lambda x, w, b, *_: conv(x, w, b, time_padding="replicate"),
    "groups": lambda x, w, b, *_: conv(x, w[:, :2], b, groups=2),
    "padding_mode": plain(padding_mode="replicate"),
    "summed_taps": plain(upsample=2, summed_taps=False),
    "plan": plain(plan=Plan.parse("fprop:video:16x16x16:w4:s3")),
    "residual": CALLS["cached, residual"],
    "prologue": PROLOGUES["together"],
    "activation": lambda x, w, b, cache, _, s: conv(x, w, b, cache, prologue=prologue(s, "relu")),
    "slope": lambda x, w, b, cache, _, s: conv(x, w, b, cache, prologue=prologue(s, "leaky_relu", negative_slope=0.5)),
    "scale alone": lambda x, w, b, cache, _, s: conv(x, w, b, cache, prologue=tritonconv.Prologue(s)),
    "shift alone": lambda x, w, b, cache, _, s: conv(x, w, b, cache, prologue=tritonconv.Prologue(shift=s)),
}
LEAKY = lambda x, w, b, cache, _, s: conv(x, w, b, cache, prologue=prologue(s, "leaky_relu"))  # noqa: E731
#: What a flip is compared with, where that is not `plain()`.
BASES = {"summed_taps": plain(upsample=2), "activation": LEAKY, "slope": LEAKY}
CONTEXTS = (tf32, other_device, torch.inference_mode, tritonconv.batch_invariant)


@pytest.mark.parametrize("name", FLIPS)
def test_what_changes_the_answer_is_in_the_key(name, found, monkeypatch):  # noqa: F811
    """Nothing is launched: only the look-ups matter, and what they find."""
    monkeypatch.setattr(launch.Step, "start", lambda *_, **__: None)
    given, flip = tensors(), FLIPS[name]
    base = BASES.get(name, plain())
    for _ in range(2):
        base(*given)
    assert isinstance(found[-1], Recipe), "the call itself is not known"
    call = base if flip in CONTEXTS else flip
    with flip() if flip in CONTEXTS else torch.enable_grad():
        found.clear()
        first, second = results(call(*given)), results(call(*given))
        assert found[0] is None and isinstance(found[1], Recipe)
    for one, two in zip(first, second, strict=True):
        assert (one.shape, one.stride(), one.dtype) == (two.shape, two.stride(), two.dtype)
        assert one.requires_grad == two.requires_grad


def test_a_changed_weight_is_read_anew(launched):
    """Summed taps and channels-last copies belong to a version of the weight, and no recipe holds them."""
    x, w, b, *_ = tensors()
    x = x[..., :2, :1]
    for call in (CALLS["upsample"], lambda *t: conv(t[0], t[1].contiguous(), t[2], return_cache=False)):
        for _ in range(2):
            before = call(x, w, b)
        w.mul_(2)
        after = call(x, w, b)
        bias = b.view(-1, 1, 1, 1)
        assert not torch.equal(after, before) and torch.allclose(after - bias, 2 * (before - bias), atol=1e-5)


def test_no_tensor_is_kept(launched):
    given = tensors()
    PROLOGUES["together"](*given), PROLOGUES["together"](*given)
    held = [weakref.ref(t) for t in given]
    del given
    gc.collect()
    assert [ref() for ref in held] == [None] * len(held)


def test_frames_far_apart(found, launched, monkeypatch):  # noqa: F811
    """The addresses of x and the cache are in no key, and what their distance changes is looked at in each call."""
    given, started = tensors(), []
    near = [plain()(*given) for _ in range(2)][1]
    recipe = found[-1]
    monkeypatch.setattr(recipes, "known", lambda key: recipe._replace(arranged=recipe.arranged._replace(distances=(1, 0))))
    start = launch.Step.start
    monkeypatch.setattr(launch.Step, "start", lambda step, *a, **k: [started.append(step), start(step, *a, **k)][1])
    far = plain()(*given)
    assert str(started[0].constants["REACH"]) == "int64" and str(recipe.arranged.near.main.constants["REACH"]) == "int32"
    assert all(torch.equal(p, q) for p, q in zip(near, far, strict=True))


def test_a_bad_call_stays_bad_beside_a_known_one(launched):
    x, w, b, cache, residual, scale = tensors()
    for _ in range(2):
        conv(x, w, b, cache, residual, prologue=prologue(scale))
    for bad in (
        {"stride": True},
        {"cache": cache[..., :2]},
        {"residual": residual[..., :2]},
        {"prologue": prologue(scale[:2])},
        {"prologue": (scale, scale, None, "silu", 0.01)},
        {"prologue": prologue(scale, "tanhh")},
        {"b": b.double()},
    ):
        with pytest.raises((TypeError, RuntimeError, ValueError), match=r"causal_conv3d\(\)"):
            conv(**{"x": x, "w": w, "b": b, "cache": cache, "residual": residual, "prologue": prologue(scale), **bad})


def test_32_threads_at_once(launched):
    """Each with its own chunk, all with the same weight, known and not."""
    x, w, b, cache, *_ = (t[..., :1, :2] if t.dim() == 5 else t for t in tensors())
    inputs = [x * i for i in range(4)]
    want = [conv(one, w, b, cache, padding=0) for one in inputs]
    recipes.forget()
    ready = threading.Barrier(32)

    def work(i):
        ready.wait()
        made = conv(inputs[i % 4], w, b, cache, padding=0)
        return all(torch.equal(p, q) for p, q in zip(made, want[i % 4], strict=True))

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(work, range(32)))
