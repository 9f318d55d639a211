"""padding=((low, high), ...): the two ends of each axis, forward and backward, against `F.pad` and torch's convolution."""

import pytest
import torch
import torch.nn.functional as F

import tritonconv

CASES = {
    1: ((5,), ((2, 0),)),
    2: ((4, 5), ((0, 2), (1, 0))),
    3: ((3, 4, 3), ((1, 0), (0, 0), (0, 3))),
}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("rank", CASES)
def test_against_torch(rank, fused, launched):
    size, padding = CASES[rank]
    x, w = torch.randn(2, 3, *size).requires_grad_(), torch.randn(4, 3, *(2,) * rank).requires_grad_()
    ends = [end for pair in reversed(padding) for end in pair]
    want = getattr(F, f"conv{rank}d")(F.pad(x, ends), w, stride=2)
    want = want.relu() if fused else want
    gradients = torch.autograd.grad(want.square().sum(), (x, w))
    if fused:
        y = getattr(tritonconv, f"conv{rank}d_fused")(x, w, stride=2, padding=padding, activation="relu")
    else:
        y = getattr(tritonconv, f"conv{rank}d")(x, w, stride=2, padding=list(map(list, padding)))
    torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-4)
    for got, right in zip(torch.autograd.grad(y.square().sum(), (x, w)), gradients, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("padding", "error", "words"),
    [
        (((1, 0),), RuntimeError, r"expected padding to be an int, 2 ints, or 2 pairs of a low and a high end"),
        (((1, 0), 1), RuntimeError, r"2 pairs of a low and a high end, got padding=\(\(1, 0\), 1\)"),
        (((1, 0), (1, 0, 0)), RuntimeError, "2 pairs of a low and a high end"),
        (((1, 0), (0, -1)), RuntimeError, "negative padding is not supported"),
        (((1, 0), (0, 1.0)), TypeError, "argument 'padding' must be"),
    ],
)
def test_what_is_refused(padding, error, words, launches):
    with pytest.raises(error, match=words):
        tritonconv.conv2d(torch.ones(1, 2, 4, 4), torch.ones(2, 2, 2, 2), padding=padding)
    assert not launches()


def test_compiled():
    torch._dynamo.reset()
    call = torch.compile(lambda x, w: tritonconv.conv1d(x, w, padding=((2, 0),)), backend="eager", fullgraph=True)
    x, w = torch.randn(1, 2, 6), torch.randn(3, 2, 3)
    torch.testing.assert_close(call(x, w), F.conv1d(F.pad(x, (2, 0)), w), rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()
