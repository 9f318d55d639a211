"""Fused convolutions as ops of torch."""

import pytest
import torch
import torch.nn.functional as F
from epilogues import SMALL, fused, operands
from torch._subclasses.fake_tensor import FakeTensorMode

import tritonconv


@pytest.mark.parametrize("requires_grad", [False, True], ids=["plain", "differentiable"])
@pytest.mark.parametrize("activation", ["relu", "gelu", ""])
@pytest.mark.parametrize("function", SMALL)
def test_opcheck(function, activation, requires_grad, device, launched) -> None:
    case = SMALL[function]
    x, w, b, *after = (t.detach().clone().requires_grad_(requires_grad) for t in operands(case, device=device).values())
    if case.transposed:
        window = ([5, 2], [2, 2], [1, 1, 1, 1], [1, 1], 2)
        operator = torch.ops.tritonconv.dgrad_fused.default
    else:
        window = ([2, 1], [1, 1, 1, 1], [1, 1], 2)
        operator = torch.ops.tritonconv.fprop_fused.default
    torch.library.opcheck(operator, (x, w, b, *window, *after, activation))


@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "static"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("function", SMALL)
def test_compile(function, activation, dynamic, device, launched) -> None:
    torch._dynamo.reset()
    case = SMALL[function]
    tensors = operands(case, device=device)

    def layer(*values):
        return fused(case, dict(zip(tensors, values, strict=True)), activation=activation) * 2

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    results = []
    for call in (layer, compiled):
        leaves = [t.detach().requires_grad_() for t in tensors.values()]
        y = call(*leaves)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, case.gradient(y.detach()))])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)
        assert got.stride() == want.stride()


def test_autocast(device, launched) -> None:
    case = SMALL["conv2d"]
    leaves = {name: t.requires_grad_() for name, t in operands(case, device=device).items()}
    with torch.autocast(device, dtype=torch.bfloat16):
        y = fused(case, leaves, activation="gelu")
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(leaf.grad.dtype == torch.float32 for leaf in leaves.values())
    want = fused(case, {name: t.detach().bfloat16() for name, t in leaves.items()}, activation="gelu")
    assert torch.equal(y, want)


def test_flops_are_the_convolutions(device) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for case in SMALL.values():
        tensors = operands(case, device=device)
        totals = []
        for call in (
            lambda case=case, tensors=tensors: fused(case, tensors, activation="gelu"),
            lambda case=case: getattr(F, case.function)(*case.tensors(device), **case.arguments),
        ):
            with FlopCounterMode(display=False) as counter:
                call()
            totals.append(counter.get_total_flops())
        assert totals[0] == totals[1] > 0


def test_explain(device) -> None:
    case = SMALL["conv2d"]
    tensors = operands(case, device=device)
    said = str(tritonconv.explain(tritonconv.conv2d_fused, **tensors, **case.arguments, activation="gelu"))
    assert "scale, shift, residual, gelu" in said and "kept" not in said
    tensors["weight"].requires_grad_()
    said = str(tritonconv.explain(tritonconv.conv2d_fused, **tensors, **case.arguments, activation="gelu"))
    assert "before the activation is kept" in said
    case = SMALL["conv_transpose2d"]
    found = tritonconv.explain(tritonconv.conv_transpose2d_fused, *case.tensors(device), **case.arguments, activation="relu")
    assert set(found.plans) == {"fprop", "dgrad", "wgrad"} and "followed in the same kernel by relu" in str(found)


def test_an_empty_batch_lies_as_the_fake_one(device):
    """Weights alone that are channels-last make the result so, also where no kernel runs."""
    x, w = torch.ones(0, 3, 4, 5, device=device), torch.ones(2, 3, 1, 1, device=device).as_strided((2, 3, 1, 1), (3, 1, 3, 3))
    with FakeTensorMode() as mode:
        fake = tritonconv.conv2d_fused(mode.from_tensor(x), mode.from_tensor(w), activation="relu")
    assert tritonconv.conv2d_fused(x, w, activation="relu").stride() == fake.stride()
