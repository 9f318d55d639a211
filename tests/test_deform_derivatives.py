"""Derivatives of deform_conv2d beyond the first, and its `vmap`: against the formula, and against one sample at a time.

What a derivative is made of does not depend on what computes it, so all but one test run the ops by torch.
"""

import pytest
import torch
from deformed import Tensors, by_formula, ours, tensors
from test_forward_mode import assert_same, by_torch  # noqa: F401  a fixture
from torch.func import grad, hessian, jvp, vmap

import tritonconv

CALLS = {
    "modulated": {"kernel": (2, 2), "padding": 1},
    "version 1": {"kernel": (1, 2), "masked": False, "stride": (2, 1)},
    "groups": {"kernel": (2, 1), "groups": 2, "offset_groups": 2, "dilation": (2, 1)},
}


def window_of(call):
    return {name: call[name] for name in ("stride", "padding", "dilation") if name in call}


def given(name, seed=0, dtype=torch.float64):
    """(the tensors that a call has, a function of them by the library, and one by the formula)."""
    of = tensors((2, 4, 3, 4), 2, dtype=dtype, seed=seed, **CALLS[name])
    places = [i for i, t in enumerate(of) if t is not None]

    def by(call):
        def function(*leaves):
            each = dict(zip(places, leaves, strict=True))
            return call(Tensors(*(each.get(i) for i in range(5))), **window_of(CALLS[name]))

        return function

    return [of[i] for i in places], by(ours), by(by_formula)


def repeated(function, leaves, times):
    """Gradients, gradients of a function of those, and so on."""
    leaves = [t.clone().requires_grad_() for t in leaves]
    made, found = [function(*leaves)], []
    for _ in range(times):
        made = torch.autograd.grad(sum((t**3).sum() for t in made), leaves, create_graph=True)
        made = [t / t.detach().abs().max() for t in made]
        found += made
    return found


@pytest.mark.parametrize("name", CALLS)
def test_gradients_of_gradients(name, by_torch):  # noqa: F811
    """To the third order where there is no mask, else to the second."""
    leaves, function, formula = given(name)
    times = 3 if name == "version 1" else 2
    for got, want in zip(repeated(function, leaves, times), repeated(formula, leaves, times), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CALLS)
def test_tangents_of_results_and_of_gradients(name, by_torch):  # noqa: F811
    leaves, function, formula = given(name)
    tangents = tuple(torch.randn(t.shape, generator=torch.Generator().manual_seed(1), dtype=t.dtype) for t in leaves)
    every = tuple(range(len(leaves)))
    for call in (lambda f: f, lambda f: grad(lambda *t: (f(*t) ** 3).sum(), every)):
        got, want = (jvp(call(f), tuple(leaves), tangents) for f in (function, formula))
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    bias = next(i for i, t in enumerate(leaves) if t.dim() == 1)  # alone, so that no sample has a tangent
    alone = [torch.func.jvp(lambda b, f=f: f(*leaves[:bias], b, *leaves[bias + 1 :]), (leaves[bias],), (leaves[bias],))
             for f in (function, formula)]  # fmt: skip
    torch.testing.assert_close(*alone)


def test_at_whole_offsets_they_are_towards_larger_ones(by_torch):  # noqa: F811
    """As the gradient is: the mixed derivative of x = [[0, 1], [2, 5]] at its first pixel is 5 - 2 - 1 + 0, and none behind."""
    x, w = torch.tensor([[0.0, 1.0], [2.0, 5.0]]).double().view(1, 1, 2, 2), torch.ones(1, 1, 1, 1).double()

    def value(first):
        row = torch.cat([first.view(1, 2, 1, 1), first.new_zeros(1, 2, 1, 1)], 3)
        return tritonconv.deform_conv2d(x, torch.cat([row, torch.zeros_like(row)], 2), w)[0, 0, 0, 0]

    at = [hessian(value)(torch.tensor(place).double()) for place in ((0.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (2.0, 0.0))]
    mixed = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double()
    assert [torch.equal(h, n * mixed) for h, n in zip(at, (2, -4, 1, 0), strict=True)] == [True] * 4


@pytest.mark.parametrize("mapped", [(0,), (1, 4), (2,), (3,), (0, 1, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "groups" else pytest.mark.slow) for n in CALLS])
def test_vmap(name, mapped, by_torch):  # noqa: F811
    """Of the input, of offset and mask, of weight and of bias: results, and each sample's own gradients."""
    many = [given(name, seed)[0] for seed in range(3)]
    _, function, _ = given(name)
    dims = tuple(0 if i in mapped else None for i in range(len(many[0])))
    if not any(d == 0 for d in dims):
        return
    every = tuple(range(len(dims)))
    each = [[many[j][i] if dim == 0 else many[0][i] for i, dim in enumerate(dims)] for j in range(3)]
    stacked = [torch.stack([sample[i] for sample in each]) if dim == 0 else each[0][i] for i, dim in enumerate(dims)]
    for wanted in (every, 0, (0, 1)):
        call = grad(lambda *t: (function(*t) ** 3).sum(), wanted)
        want = [call(*sample) for sample in each]
        got = vmap(call, dims)(*stacked)
        want = [torch.stack(parts) for parts in zip(*want, strict=True)] if isinstance(wanted, tuple) else torch.stack(want)
        assert_same(got, want)
    assert_same(vmap(function, dims)(*stacked), torch.stack([function(*sample) for sample in each]))


def test_half_precision_keeps_its_dtypes(by_torch):  # noqa: F811
    """Places are rounded down in float32, and every derivative has the dtype of its tensor."""
    leaves, function, formula = given("modulated", dtype=torch.bfloat16)
    leaves = [t.requires_grad_() for t in leaves]
    (dx, *_) = first = torch.autograd.grad((function(*leaves) ** 2).sum(), leaves, create_graph=True)
    second = torch.autograd.grad(dx.float().sum(), leaves, materialize_grads=True)
    assert {t.dtype for t in (*first, *second)} == {torch.bfloat16}
    exact = [t.detach().double().requires_grad_() for t in leaves]
    (dx, *_) = torch.autograd.grad((formula(*exact) ** 2).sum(), exact, create_graph=True)
    for got, want in zip(second, torch.autograd.grad(dx.sum(), exact, materialize_grads=True), strict=True):
        assert float((got.double() - want).abs().max()) <= 0.06 * float(want.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_kernels_answer_the_same(name, device, launched):
    leaves, function, formula = given(name)
    for got, want in zip(repeated(function, leaves, 2), repeated(formula, leaves, 2), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
