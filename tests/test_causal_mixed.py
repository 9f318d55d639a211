"""float32 weights and states beside activations of 16 bits, as inference engines keep them."""

import pytest
import torch

from tritonconv import causal_conv1d, causal_conv1d_update

C, K, L = 6, 4, 9


def close(got, want):
    torch.testing.assert_close(got.double(), want.double(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("state", ["none", "float32", "of x"])
def test_a_sequence(dtype, state, launched):
    x, w, b = torch.randn(2, C, L).to(dtype), torch.randn(C, K), torch.randn(C)
    initial = None if state == "none" else torch.randn(2, C, K - 1).to(torch.float32 if state == "float32" else dtype)
    y, final = causal_conv1d(x, w, b, "silu", initial, True)
    wide = [None if t is None else t.double() for t in (x, w, b)]
    want, last = causal_conv1d(*wide, "silu", None if initial is None else initial.double(), True)
    assert y.dtype == dtype and final.dtype == (torch.float32 if state == "float32" else dtype)
    close(y, want)
    assert torch.equal(final.double(), last)  # columns of x, and of a state where L is short, as they were
    assert torch.equal(causal_conv1d(x, w, b, "silu", initial), y)


@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16])
def test_the_weights_are_not_rounded(state, launched):
    """A weight that bfloat16 would round away decides the result."""
    w = torch.tensor([[-1.0, 1.0 + 2**-12]])
    x = torch.ones(1, 1, 2, dtype=torch.bfloat16)
    assert float(causal_conv1d(x, w)[0, 0, 1]) == 2**-12
    pool = torch.ones(3, 1, 1, dtype=state)
    index = torch.tensor([2], dtype=torch.int32)
    assert float(causal_conv1d_update(x[..., 0], pool, w, conv_state_indices=index)) == 2**-12


@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16])
def test_a_pool_is_changed_in_place(state, launched):
    x, w = torch.randn(2, C).bfloat16(), torch.randn(C, K)
    pool = torch.randn(5, C, K - 1).to(state)
    index = torch.tensor([3, 0], dtype=torch.int32)
    wide = pool.double()
    want = causal_conv1d_update(x.double(), wide, w.double(), conv_state_indices=index)
    close(causal_conv1d_update(x, pool, w, conv_state_indices=index), want)
    assert pool.dtype == state and torch.equal(pool.double(), wide)


def test_gradients(launched):
    x, w = torch.randn(1, C, L).bfloat16().requires_grad_(), torch.randn(C, K).requires_grad_()
    causal_conv1d(x, w).sum().backward()
    assert x.grad.dtype == torch.bfloat16 and w.grad.dtype == torch.float32
    close(w.grad[:, -1], x.detach().double().sum((0, 2)))


def test_other_mixtures_are_refused(launches):
    x = torch.randn(1, C, L)
    for given, weight in ((x, x[0, :, :K].half()), (x.half(), x[0, :, :K].bfloat16()), (x.half(), x[0, :, :K].double())):
        with pytest.raises(RuntimeError, match="x and weight must have the same dtype"):
            causal_conv1d(given, weight)
    assert not launches()
