"""Derivatives of convolutions with an epilogue, and what is kept for them."""

import pytest
import torch
import torch.nn.functional as F
from cases import Case
from epilogues import EXTRAS, NAMES, SMALL, chain, fused, operands
from torch.autograd import gradcheck, gradgradcheck

TINY = {
    "conv1d": Case("conv1d", (1, 2, 4), (4, 1, 2), groups=2, stride=2, dtype="float64"),
    "conv_transpose1d": Case("conv_transpose1d", (1, 2, 2), (2, 2, 2), groups=2, stride=2, dtype="float64"),
}


#: What is differentiated from y, from z and not at all; `test_fused.test_activation` has every activation's gradients.
BY_DEFAULT = [(function, name) for function in TINY for name in (None, "relu", "gelu")]
SLOW = [(function, name) for function in TINY for name in NAMES if (function, name) not in BY_DEFAULT]


@pytest.mark.parametrize("function, activation", [*BY_DEFAULT, *(pytest.param(*c, marks=pytest.mark.slow) for c in SLOW)])
def test_gradcheck(activation, function, device, launched) -> None:
    case = TINY[function]
    tensors = {name: t.requires_grad_() for name, t in operands(case, device=device).items()}

    def call(*values):
        return fused(case, dict(zip(tensors, values, strict=True)), activation=activation)

    assert gradcheck(call, tuple(tensors.values()), fast_mode=activation != "gelu")  # gelu: every entry of the Jacobian
    assert gradgradcheck(call, tuple(tensors.values()), fast_mode=True)


def test_second_derivative_by_create_graph(device, launched) -> None:
    """A gradient penalty, where z, kept for the first derivative, must carry the second."""
    case = Case(**vars(SMALL["conv2d"]) | {"dtype": "float64"})
    tensors = operands(case, device=device)
    results = []
    for library in (True, False):
        leaves = {name: t.detach().cpu().requires_grad_() for name, t in tensors.items()}
        if library:
            leaves = {name: t.detach().to(device).requires_grad_() for name, t in tensors.items()}
            y = fused(case, leaves, activation="silu")
        else:
            x, w, b = (leaves[name] for name in ("input", "weight", "bias"))
            y = F.silu(chain("conv2d", x, w, b, *(leaves[name] for name in EXTRAS), **case.arguments))
        first = torch.autograd.grad(y.sum(), list(leaves.values()), create_graph=True)
        sum(g.square().sum() for g in first).backward()
        results.append([leaf.grad.cpu() for leaf in leaves.values()])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_torch_func_grad(activation, device, launched) -> None:
    case = Case(**vars(SMALL["conv2d"]) | {"dtype": "float64"})
    tensors = operands(case, device=device)

    def loss(*values):
        return fused(case, dict(zip(tensors, values, strict=True)), activation=activation).square().sum()

    got = torch.func.grad(loss, argnums=tuple(range(len(tensors))))(*tensors.values())
    leaves = [t.detach().requires_grad_() for t in tensors.values()]
    want = torch.autograd.grad(loss(*leaves), leaves)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_only_the_gradients_asked_for_are_computed(device, launches) -> None:
    case = SMALL["conv2d"]
    passes = {"input": {"dgrad"}, "weight": {"wgrad"}, "scale": {"wgrad"}, "shift": set(), "residual": set(), "bias": set()}
    for name, wanted in passes.items():
        tensors = operands(case, device=device)
        tensors[name].requires_grad_()
        y = fused(case, tensors, activation="gelu")
        seen = launches()
        y.backward(case.gradient(y))
        assert set(launches() - seen) - {"reduce"} == wanted, name
        assert {key for key, t in tensors.items() if t.grad is not None} == {name}


#: Which value an activation's backward keeps.
KEPT = dict.fromkeys(("relu", "relu6", "leaky_relu", "sigmoid", "tanh"), "y") | dict.fromkeys(
    ("gelu", "gelu_tanh", "silu", "hardswish"), "z"
)


@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("leaf", ["input", "weight", "bias", "scale", "shift", "residual"])
def test_only_what_the_backward_needs_is_kept(leaf, activation, device, launched) -> None:
    case = SMALL["conv2d"]
    tensors = operands(case, device=device)
    tensors[leaf].requires_grad_()
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = fused(case, tensors, activation=activation)
    wanted = {
        "input": ("weight", "scale"),
        "weight": ("input", "scale"),
        "bias": ("scale",),
        "scale": ("input", "weight", "bias"),
        "shift": (),
        "residual": (),
    }[leaf]
    places = {t.data_ptr(): name for name, t in tensors.items()} | {y.data_ptr(): "y"}
    assert sorted(places.get(t.data_ptr(), "z") for t in saved) == sorted(
        (*wanted, *([KEPT[activation]] if activation else []))
    )


def test_nothing_is_kept_without_a_gradient(device, launched) -> None:
    case = SMALL["conv2d"]
    tensors = operands(case, device=device)
    window = ([2, 1], [1, 1, 1, 1], [1, 1], 2)
    op = torch.ops.tritonconv.fprop_fused
    x, w, b, *after = tensors.values()
    assert op(x, w, b, *window, *after, "gelu")[1].numel() == 0
    assert op(x, w, b, *window, *after, "gelu", keep=True)[1].numel() > 0
    w.requires_grad_()
    assert op(x, w, b, *window, *after, "relu")[1].numel() == 0
    assert op(x, w, b, *window, *after, "gelu")[1].numel() > 0
    with torch.no_grad():
        assert op(x, w, b, *window, *after, "gelu")[1].numel() == 0
