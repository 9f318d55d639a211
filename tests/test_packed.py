"""Packed weights: summed taps of magnified frames, contiguous weights, and that neither is ever stale."""

import gc
import weakref

import pytest
import torch
from chunks import assert_close, by_definition, tensors

import tritonconv
from bench.tolerance import C_LIMIT, UNIT, Expected
from tritonconv import packed
from tritonconv.video import weights


def magnify(x, w, **named):
    return tritonconv.causal_conv3d(x, w, return_cache=False, padding=1, upsample=2, **named)


@pytest.mark.parametrize("padding", [0, 1, (2, 1)], ids=str)
@pytest.mark.parametrize("kernel", [(1, 3, 3), (2, 1, 3), (1, 5, 1)], ids=str)
def test_summed_taps_are_the_definition(kernel, padding, device, launched):
    if padding == 0 and kernel[1] == 5:
        padding = (1, 0)
    x, w, b, _ = tensors((1, 3, 2, 3, 4), (2, 3, *kernel), device=device)
    y = tritonconv.causal_conv3d(x, w, b, padding=padding, return_cache=False, upsample=2)
    assert_close(y, by_definition(x, w, b, padding=padding, upsample=2))


def test_which_taps_see_the_same_row():
    assert weights.rows_of(0, 1, 3) == [[0], [1, 2]] and weights.rows_of(1, 1, 3) == [[0, 1], [2]]
    assert weights.rows_of(0, 0, 3) == [[0, 1], [2]] and weights.rows_of(1, 2, 5) == [[0], [1, 2], [3, 4]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_rounding_of_the_sums(dtype, device, launched):
    """A summed weight is off by at most one rounding unit, and by half a least step: so is its share of a result."""
    x, w, _, cache = tensors((1, 16, 1, 3, 4), (4, 16, 2, 3, 3), 1, dtype=dtype, device=device)
    y = magnify(x, w, cache=cache)
    x, w, cache = (t.double() for t in (x, w, cache))
    exact = by_definition(x, w, None, 1, 1, cache, upsample=2)
    sums = by_definition(x.abs(), w.abs(), None, 1, 1, cache.abs(), upsample=2)
    terms = by_definition(x * 0 + 1, w * 0 + 1, None, 1, 1, cache * 0 + 1, upsample=2)
    want = Expected(exact, sums, terms)
    room = want.rounding(dtype) + C_LIMIT * want.accumulation(dtype) + UNIT[dtype] * sums
    assert bool((want.difference(y) <= room).all())
    every = magnify(x.to(dtype), w.to(dtype), cache=cache.to(dtype), summed_taps=False)
    assert bool((want.difference(every) <= want.rounding(dtype) + C_LIMIT * want.accumulation(dtype)).all())
    assert not torch.equal(every, y)  # so the sums are what is multiplied


def changes():
    """Ways in which a weight gets other values."""

    def in_place(w):
        with torch.no_grad():
            w.mul_(-2)

    def through_a_view(w):
        w.detach()[0].add_(1)

    def other_memory(w):
        w.data = w.data * 3

    def twice_at_the_same_address(w):
        """The allocator may give the first memory out again, without a call in between."""
        w.data = w.data * 3
        w.data = w.data * -2

    def an_optimizer(w):
        w.grad = torch.ones_like(w)
        torch.optim.SGD([w], 0.5).step()
        torch.optim.AdamW([w], 0.5, foreach=True).step()

    def a_state(w):
        holder = torch.nn.Module()
        holder.w = w
        holder.load_state_dict({"w": torch.full_like(w, 0.5)})

    def said(w):
        w.data.mul_(5)
        tritonconv.forget_packed(w)

    return [in_place, through_a_view, other_memory, twice_at_the_same_address, an_optimizer, a_state, said]


@pytest.mark.parametrize("change", changes(), ids=lambda change: change.__name__)
def test_never_stale(change, device, launched):
    x, w, _, _ = tensors((1, 2, 1, 2, 2), (2, 2, 1, 3, 3), last=False, device=device)
    w = torch.nn.Parameter(w)
    for _ in range(2):
        with torch.no_grad():
            assert_close(magnify(x, w), by_definition(x, w, padding=1, upsample=2))
            contiguous = tritonconv.causal_conv3d(x, w, padding=1, return_cache=False)
            assert_close(contiguous, by_definition(x, w, padding=1))
        change(w)
    with torch.no_grad():
        assert_close(magnify(x, w), by_definition(x, w, padding=1, upsample=2))


def test_made_once_for_a_version(device, monkeypatch):
    made = []
    real = weights.summed
    monkeypatch.setattr(weights, "summed", lambda *given: made.append(1) or real(*given))
    x, w, _, _ = tensors((1, 2, 1, 2, 2), (2, 2, 1, 3, 3), device=device)
    for _ in range(3):
        magnify(x, w)
    w.add_(1)
    magnify(x, w)
    assert len(made) == 2
    with torch.inference_mode():
        inferred = w + 1
        for _ in range(2):
            assert_close(magnify(x, inferred), by_definition(x, w + 1, padding=1, upsample=2))
    assert len(made) == 4  # no counter says whether such a tensor changed


def test_nothing_is_kept_for_a_freed_weight(device):
    tritonconv.forget_packed()
    x, w, _, _ = tensors((1, 2, 1, 2, 2), (2, 2, 1, 3, 3), device=device)
    magnify(x, w)
    assert len(packed._KEPT) == 1
    (kept,) = packed._KEPT[w].values()
    gone = weakref.ref(kept.packed)
    del kept, w
    gc.collect()
    assert len(packed._KEPT) == 0 and gone() is None
    with pytest.raises(TypeError, match="'weight' must be a Tensor or None, got int"):
        tritonconv.forget_packed(1)
