"""States whose columns lie 2^29 elements apart, so that a column's place takes 64 bits. Contiguous copies are the oracle."""

import pytest
import torch

import tritonconv

TAPS, CHANNELS, APART = 6, 3, 2**29


@pytest.fixture
def far(tmp_path):
    """A function that lays [outer, CHANNELS, TAPS - 1] over a sparse file, its columns APART elements from one another."""
    files = []

    def lay(values: torch.Tensor) -> torch.Tensor:
        outer = values.shape[0]
        files.append(tmp_path / f"{len(files)}")
        memory = torch.from_file(str(files[-1]), shared=True, size=(TAPS - 1) * APART, dtype=values.dtype)
        return memory.as_strided((outer, CHANNELS, TAPS - 1), (CHANNELS, 1, APART)).copy_(values)

    yield lay
    for file in files:
        file.unlink()


@pytest.mark.parametrize("packed", [False, True])
def test_states_and_gradients(packed, far, launched):
    sequences, length = (2, 3)
    shape = (1, CHANNELS, sequences * length) if packed else (sequences, CHANNELS, length)
    bounds = {"cu_seqlens": torch.tensor([0, length, sequences * length], dtype=torch.int32)} if packed else {}
    x, w = torch.randn(shape).half(), torch.randn(CHANNELS, TAPS).half()
    state, dfinal = (torch.randn(sequences, CHANNELS, TAPS - 1).half() for _ in range(2))
    dy, results = torch.randn(shape).half(), []
    for place in (far, torch.clone):
        inputs = [x.clone().requires_grad_(), w.clone().requires_grad_(), place(state).requires_grad_()]
        y, final = tritonconv.causal_conv1d(
            inputs[0], inputs[1], activation="silu", initial_state=inputs[2], return_final_state=True, **bounds
        )
        results.append((y, final, *torch.autograd.grad((y, final), inputs, (dy, place(dfinal)))))
    for got, exact in zip(*results, strict=True):
        assert torch.equal(got, exact)


def test_tokens_one_at_a_time(far, launched):
    state, x, w = (
        torch.randn(2, CHANNELS, TAPS - 1).half(),
        torch.randn(2, CHANNELS, 2).half(),
        torch.randn(CHANNELS, TAPS).half(),
    )
    results = []
    for place in (far, torch.clone):
        memory = place(state)
        results.append((tritonconv.causal_conv1d_update(x, memory, w), memory))
    for got, exact in zip(*results, strict=True):
        assert torch.equal(got, exact)
