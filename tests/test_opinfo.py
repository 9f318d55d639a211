"""torch's own samples for its convolutions, and its own list of what must raise.

Complex samples are left out: this library refuses complex tensors. For the transposed functions torch has no list of
errors; `test_errors.py` stands in for it.
"""

import functools

import cases
import oracle
import pytest
import torch

import tritonconv

pytest.importorskip("expecttest", reason="torch's samples need it")


@functools.cache
def samples(function: str):
    """torch's description of one function: where its sample calls come from."""
    from torch.testing._internal.common_methods_invocations import op_db

    (found,) = (op for op in op_db if op.name == f"nn.functional.{function}")
    return found


def every_function_and_dtype():
    """3-D takes minutes in the interpreter: left to make aot-slow, where 2-D and other tests of 3-D are not."""
    for function in cases.FUNCTIONS:
        for dtype in cases.DTYPES:
            slow = function.endswith("3d")
            yield pytest.param(function, dtype, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize("function, dtype", list(every_function_and_dtype()))
def test_samples(function: str, dtype: str, device: str, launched) -> None:
    torch.manual_seed(0)
    wanted = getattr(torch, dtype)
    count = 0
    for sample in samples(function).sample_inputs(device, wanted, requires_grad=True):
        x, (w, b) = sample.input, sample.args
        repro = f"{function}({sample.summary()})"
        seen = sum(launched().values())
        y_shape = getattr(torch.nn.functional, function)(x.detach(), w.detach(), None, **sample.kwargs).shape
        g = torch.randn(y_shape, dtype=torch.float64).to(device, wanted)
        got = oracle.run(getattr(tritonconv, function), x, w, b, g, **sample.kwargs)
        want = oracle.expected(function, x, w, b, g, **sample.kwargs)
        oracle.assert_close(got, want, repro, oracle.uses_tf32(wanted, device))
        assert all(t.dtype == wanted for t in got.values()), repro
        assert sum(launched().values()) >= seen + 3, f"fewer than three launches for {repro}"
        count += 1
    assert count >= 10


@pytest.mark.parametrize("function", cases.FUNCTIONS[:3])
def test_errors(function: str, device: str, launches) -> None:
    count = 0
    for error in samples(function).error_inputs(device):
        sample = error.sample_input
        with pytest.raises(error.error_type) as raised:
            getattr(tritonconv, function)(sample.input, *sample.args, **sample.kwargs)
        assert type(raised.value) is error.error_type, sample.summary()
        count += 1
    assert count >= 9 and not launches()
