"""Causal calls that were made before."""

import pytest
import torch
from test_recipes import nothing_is_known  # noqa: F401

import tritonconv
from tritonconv import recipes

pytestmark = pytest.mark.interpreter


def sequence(grad=False, dtype=torch.float32):
    torch.manual_seed(0)
    shapes = (2, 8, 12), (8, 4), (8,), (2, 8, 3)
    return [torch.randn(shape, dtype=dtype).requires_grad_(grad) for shape in shapes]


@pytest.mark.parametrize("layout", ["BCL", "BLC"])
@pytest.mark.parametrize("final", [False, True])
def test_a_known_causal_call(layout, final, launched, monkeypatch):
    x, w, b, state = sequence(grad=True)
    x = x.transpose(1, 2).contiguous().detach().requires_grad_() if layout == "BLC" else x

    def call():
        made = tritonconv.causal_conv1d(x, w, b, "silu", state, final, layout=layout)
        made = made if final else (made,)
        return *made, *torch.autograd.grad(sum(m.square().sum() for m in made), (x, w, b, state))

    first = call()
    second = call()
    ways = []
    for name in ("causal", "causal_backward"):
        monkeypatch.setattr(torch.ops.tritonconv, name, lambda *a, name=name: ways.append(name))
    third = call()
    assert not ways and len(first) == 5 + final
    assert all(torch.equal(g, other) for others in (second, third) for g, other in zip(first, others, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        {"activation": None},
        {"initial_state": None},
        {"return_final_state": True},
        {"bias": None},
        {"seq_idx": torch.zeros(2, 12).int()},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_a_causal_answer_is_in_the_key(change, launched):
    x, w, b, state = sequence()
    given = {"bias": b, "activation": "silu", "initial_state": state} | change
    if "seq_idx" in given:
        given["initial_state"] = None
    for _ in range(2):
        tritonconv.causal_conv1d(x, w, b, "silu", state)
        tritonconv.causal_conv1d(x, w, b, "silu")
    found = [tritonconv.causal_conv1d(x, w, **given) for _ in range(2)]
    recipes.forget()
    found.append(tritonconv.causal_conv1d(x, w, **given))
    first, *others = [made if isinstance(made, tuple) else (made,) for made in found]
    assert all(torch.equal(p, q) for other in others for p, q in zip(first, other, strict=True))


def test_a_known_update(launched, monkeypatch):
    x, w, b, state = sequence()
    tokens, states, made = x[..., 0].contiguous(), [state.clone() for _ in range(3)], []
    for number, each in enumerate(states):
        version = each._version
        if number == 2:
            monkeypatch.setattr(torch.ops.tritonconv, "causal_update", None)
        made.append(tritonconv.causal_conv1d_update(tokens, each, w, b, "silu"))
        assert each._version == version + 1
    assert all(torch.equal(made[0], m) and torch.equal(states[0], s) for m, s in zip(made, states, strict=True))


def test_a_known_update_looks_for_shared_memory(launched):
    _, w, b, _ = sequence()
    room = torch.randn(2, 8, 8)
    tokens, apart = room[..., :3], torch.randn(2, 8, 8)[..., :3]
    for _ in range(2):
        tritonconv.causal_conv1d_update(tokens, apart, w, b)
    with pytest.raises(RuntimeError, match="single memory location"):
        tritonconv.causal_conv1d_update(tokens, room[..., :3], w, b)
    with pytest.raises(RuntimeError, match="no gradients"):
        tritonconv.causal_conv1d_update(tokens, apart, w.clone().requires_grad_(), b)
