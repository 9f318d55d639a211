"""What a convolution should answer, in float64 on the CPU, and how far from it an answer may be (`bench.tolerance`).

On failure the c that would have been needed is printed, with a command that repeats the case.
Nothing here uses the library's own description of a convolution.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from cases import Case

from bench.tolerance import C_LIMIT, UNIT, Expected, needed_c
from tritonconv import host

Results = dict[str, torch.Tensor]


def run(
    call: Callable[..., torch.Tensor],
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None,
    gradient: torch.Tensor | Callable[[torch.Tensor], torch.Tensor],
    **arguments: object,
) -> Results:
    """The output of `call` and its gradients with respect to input, weight and bias."""
    leaves = {"input": x, "weight": w} | ({} if b is None else {"bias": b})
    leaves = {name: t.detach().requires_grad_() for name, t in leaves.items()}
    y = call(leaves["input"], leaves["weight"], leaves.get("bias"), **arguments)
    g = gradient(y.detach()) if callable(gradient) else gradient
    return {"output": y.detach()} | dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), g), strict=True))


def expected(
    function: str, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, g: torch.Tensor, **arguments: object
) -> dict[str, Expected]:
    """The exact output and gradients of torch.nn.functional's `function` for the output gradient g."""
    tensors = [None if t is None else t.detach().cpu().double() for t in (x, w, b, g)]

    def over(change: Callable[[torch.Tensor], torch.Tensor]) -> Results:
        x64, w64, b64, g64 = (None if t is None else change(t).contiguous() for t in tensors)
        return run(getattr(F, function), x64, w64, b64, g64, **arguments)

    value, magnitude, terms = over(torch.clone), over(torch.abs), over(torch.ones_like)
    return {name: Expected(value[name], magnitude[name], terms[name]) for name in value}


def uses_tf32(dtype: torch.dtype, device: str) -> bool:
    """Whether the kernels multiply in tf32: the interpreter never does, compiled code does on a GPU and on a CPU."""
    compiled = device != "cpu" or (host.runs_kernels() and not host.INTERPRETED)
    return dtype == torch.float32 and compiled and torch.backends.cudnn.conv.fp32_precision != "ieee"


def assert_close(got: Results, want: dict[str, Expected], repro: str, tf32: bool = False) -> None:
    """Fails unless every result has the shape wanted and is within the tolerance."""
    assert set(got) == set(want)
    for name, result in got.items():
        value = want[name].value
        assert result.shape == value.shape, f"{name}: shape {tuple(result.shape)}, not {tuple(value.shape)}\n{repro}"
        c = needed_c(result, want[name], tf32)
        if c > C_LIMIT:
            worst = int((result.detach().cpu().double() - value).abs().nan_to_num(torch.inf).argmax())
            where = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), value.shape))
            raise AssertionError(
                f"{name} of {result.dtype} needs c = {c:.3g}, at most {C_LIMIT:g} is allowed; worst at {where}: got "
                f"{result.flatten()[worst].item()!r}, want {value.flatten()[worst].item()!r}\n{repro}"
            )


def assert_like_torch(got: Results, peer: Results, want: dict[str, Expected], repro: str) -> None:
    """Fails if the largest error is more than twice the largest that torch makes in the same dtype.

    The floor is one rounding of the largest result and of the largest sum of absolute products: below it luck decides.
    """
    for name, result in got.items():
        if result.numel() == 0:
            continue
        ours, theirs = (float((t.detach().cpu().double() - want[name].value).abs().max()) for t in (result, peer[name]))
        out_unit, acc_unit = UNIT[result.dtype], UNIT[torch.float32]
        floor = out_unit * float(want[name].value.abs().max()) + acc_unit * float(want[name].magnitude.max())
        assert ours <= 2 * theirs + floor, f"{name}: error {ours:.3g}, torch's {theirs:.3g}, floor {floor:.3g}\n{repro}"


def repro(case: Case) -> str:
    return f"""repeat: PYTHONPATH=. python tests/oracle.py "{case}\""""


def check(case: Case, device: str = "cpu", library: object = None, **arguments: object) -> Results:
    """Runs the case forward and backward, holds it against the oracle and against torch, and answers its results.

    `arguments` are added to the call of the library alone (a forced plan).
    """
    if library is None:
        import tritonconv as library
    x, w, b = case.tensors(device)
    got = run(getattr(library, case.function), x, w, b, case.gradient, **case.arguments, **arguments)
    for name, result in got.items():
        assert result.dtype == case.torch_dtype, f"{name} is {result.dtype}\n{repro(case)}"
    g = case.gradient(got["output"])
    want = expected(case.function, x, w, b, g, **case.arguments)
    tf32 = uses_tf32(case.torch_dtype, device)
    assert_close(got, want, repro(case), tf32)
    # In float64 torch is the oracle itself; in half precision its transposed convolutions on the CPU sum in half.
    if case.dtype != "float64" and not tf32 and not (case.transposed and case.dtype in ("float16", "bfloat16")):
        x, w, b, g = (None if t is None else t.cpu() for t in (x, w, b, g))
        peer = run(getattr(F, case.function), x, w, b, g, **case.arguments)
        assert_like_torch(got, peer, want, repro(case))
    return got


def main(text: str) -> None:
    """Repeats one case, written as its repr."""
    device = "cuda" if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1" else "cpu"
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    check(eval(text, {"Case": Case}), device)
    print(f"ok on {device}: {text}")


if __name__ == "__main__":
    main(sys.argv[1])
