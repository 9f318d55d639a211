"""Derivatives of derivatives: the three passes are closed under differentiation, so every order must be right."""

import cases
import oracle
import pytest
import torch
import torch.nn.functional as F
from cases import Case
from torch.autograd import gradcheck, gradgradcheck

import tritonconv

# Few taps, groups and phases: each is a program, and a second derivative launches some fifty kernels.
SMALL = {
    "1d": Case("conv1d", (2, 3, 6), (4, 3, 3), padding=1),
    "1d strided and dilated": Case("conv1d", (1, 4, 9), (4, 2, 2), stride=3, dilation=2, groups=2),
    "1d kernel below stride": Case("conv1d", (1, 2, 7), (2, 2, 1), stride=3, padding=1),
    "2d": Case("conv2d", (1, 2, 4, 4), (3, 2, 3, 1), stride=(2, 1), padding=(1, 0)),
    "2d same": Case("conv2d", (1, 2, 3, 4), (2, 2, 1, 4), padding="same"),
    "2d patches": Case("conv2d", (1, 2, 5, 4), (3, 2, 2, 2), stride=2),
    "2d pointwise": Case("conv2d", (1, 3, 2, 3), (2, 3, 1, 1)),
    "2d groups": Case("conv2d", (1, 3, 4, 3), (3, 1, 2, 1), groups=3, padding=1, stride=(1, 2)),
    "2d unbatched": Case("conv2d", (2, 3, 4), (2, 2, 2, 2)),
    "3d": Case("conv3d", (1, 2, 3, 2, 4), (2, 2, 2, 1, 2), stride=(1, 1, 2), padding=(1, 0, 0)),
    "1d transposed": Case("conv_transpose1d", (2, 3, 4), (3, 2, 3), stride=2, padding=1, output_padding=1),
    "2d transposed": Case("conv_transpose2d", (1, 4, 2, 3), (4, 1, 2, 1), stride=(1, 2), groups=2, output_padding=(0, 1)),
    "2d transposed dilated": Case("conv_transpose2d", (1, 2, 2, 1), (2, 2, 2, 1), dilation=2, output_padding=1),
    "2d transposed no overlap": Case("conv_transpose2d", (1, 2, 2, 2), (2, 3, 1, 2), stride=2),
    "3d transposed": Case("conv_transpose3d", (1, 2, 2, 1, 2), (2, 2, 2, 1, 1), stride=(1, 1, 2)),
}
every_small = pytest.mark.parametrize("case", SMALL.values(), ids=[name.replace(" ", "_") for name in SMALL])


def doubles(case: Case, device: str) -> tuple[torch.Tensor, ...]:
    return tuple(t.to(torch.float64).requires_grad_() for t in case.tensors(device))


@every_small
def test_gradcheck(case: Case, device: str, launched) -> None:
    call = getattr(tritonconv, case.function)
    assert gradcheck(lambda *t: call(*t, **case.arguments), doubles(case, device), fast_mode=True)


@every_small
def test_gradgradcheck(case: Case, device: str, launched) -> None:
    call = getattr(tritonconv, case.function)
    assert gradgradcheck(lambda *t: call(*t, **case.arguments), doubles(case, device), fast_mode=True)


@pytest.mark.parametrize("name", ["1d strided and dilated", "2d transposed dilated"])
def test_gradcheck_in_every_element(name: str, device: str, launched) -> None:
    """The fast mode projects on one random vector; twice, every entry of the Jacobian is held against differences."""
    case = SMALL[name]
    call = getattr(tritonconv, case.function)
    assert gradcheck(lambda *t: call(*t, **case.arguments), doubles(case, device))


@pytest.mark.parametrize("function", cases.FUNCTIONS)
def test_double_backward_through_a_sum(function: str, device: str, launched) -> None:
    """A gradient penalty, whose gradients arrive expanded, equals torch's."""
    rank = int(function[-2])
    case = Case(function, (2, 4, *(4,) * rank), (4, 2, *(2,) * rank), groups=2, stride=2, dtype="float64")

    def penalty(call, tensors):
        x, w, b = (t.detach().requires_grad_() for t in tensors)
        y = call(x, w, b, **case.arguments)
        dx, dw = torch.autograd.grad(y.square().sum(), (x, w), create_graph=True)
        (dx.square().sum() + dw.sum()).backward()
        return {"input": x.grad, "weight": w.grad, "bias": b.grad}

    tensors = case.tensors(device)
    got = penalty(getattr(tritonconv, function), tensors)
    want = penalty(getattr(F, function), [t.cpu() for t in tensors])
    for name in got:
        torch.testing.assert_close(got[name].cpu(), want[name], rtol=1e-11, atol=1e-11)


def test_third_derivative(device: str, launched) -> None:
    case = SMALL["1d"]
    results = []
    for call, place in ((tritonconv.conv1d, device), (F.conv1d, "cpu")):
        x, w, b = doubles(case, place)
        out = call(x, w, b, **case.arguments).pow(4).sum()
        for _ in range(3):
            (out,) = torch.autograd.grad(out, x, create_graph=True)
            out = out.pow(2).sum()
        results.append(out.detach().cpu())
    torch.testing.assert_close(*results, rtol=1e-11, atol=0)


@pytest.mark.parametrize("function", cases.FUNCTIONS)
def test_torch_func_grad(function: str, device: str, launched) -> None:
    rank = int(function[-2])
    case = Case(function, (2, 4, *(4,) * rank), (4, 4, *(3,) * rank), padding=1, stride=2, dtype="float64")
    x, w, b = case.tensors(device)
    call = getattr(tritonconv, function)
    dx, dw, db = torch.func.grad(lambda *t: call(*t, **case.arguments).sum(), argnums=(0, 1, 2))(x, w, b)
    got = {"output": call(x, w, b, **case.arguments), "input": dx, "weight": dw, "bias": db}
    want = oracle.expected(function, x, w, b, torch.ones_like(got["output"]), **case.arguments)
    oracle.assert_close(got, want, repr(case))


def test_torch_func_grad_of_grad(device: str, launched) -> None:
    x, w, _ = SMALL["2d"].tensors(device)

    def curvature(call, x, w):
        def loss(x, w):
            return call(x.double(), w.double(), stride=2).pow(3).sum()

        return torch.func.grad(lambda w: torch.func.grad(loss)(x, w).sum())(w)

    torch.testing.assert_close(
        curvature(tritonconv.conv2d, x, w).cpu(), curvature(F.conv2d, x.cpu(), w.cpu()), rtol=1e-6, atol=1e-6
    )


def test_derivative_of_each_pass_is_the_other_two(device: str, launches) -> None:
    """What makes the three passes closed under differentiation."""
    x, w, b = doubles(SMALL["2d"], device)
    window = ([2, 1], [1, 1, 0, 0], [1, 1], 1)  # stride, padding low and high, dilation, groups
    ops = torch.ops.tritonconv
    dy = ops.fprop(x, w, b, *window).detach().requires_grad_()
    passes = {
        "fprop": lambda: (ops.fprop(x, w, b, *window), (x, w, b)),
        "dgrad": lambda: (ops.dgrad(dy, w, None, x.shape[2:], *window), (dy, w)),
        "wgrad": lambda: (ops.wgrad(dy, x, w.shape[2:], *window), (dy, x)),
    }
    for name, forward in passes.items():
        out, inputs = forward()
        seen = launches()
        torch.autograd.grad(out, inputs, torch.ones_like(out))
        assert set(launches() - seen) - {"reduce"} == set(passes) - {name}


def test_gradient_of_a_result_used_twice(device: str, launched) -> None:
    """Weights shared by two calls, one feeding the other, as in a recurrent layer."""
    case = Case("conv2d", (1, 3, 4, 4), (3, 3, 3, 3), padding=1, dtype="float64")
    results = []
    for call, place in ((tritonconv.conv2d, device), (F.conv2d, "cpu")):
        x, w, b = doubles(case, place)
        call(call(x, w, b, padding=1).relu(), w, b, padding=1).square().sum().backward()
        results.append([t.grad.cpu() for t in (x, w, b)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
