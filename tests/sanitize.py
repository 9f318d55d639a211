"""Small convolutions through every kernel, each tensor in an allocation of its own, to run under compute-sanitizer:

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 PYTHONPATH=. compute-sanitizer python tests/sanitize.py [--plant]

Results are held against the oracle too. With --plant one result is an image too short, which memcheck must report.
"""

import os
import sys

import oracle
import torch
from cases import Case

import tritonconv
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Plan
from tritonconv import launch

WIDE = {"dtype": "float16", "x": "channels_last", "w": "channels_last", "g": "channels_last"}
CASES = [
    (Case("conv2d", (2, 35, 11, 9), (37, 35, 3, 3), padding=1, dtype="float16"), ""),
    (Case("conv2d", (2, 64, 9, 11), (72, 64, 3, 3), padding=1, **WIDE), ""),
    (Case("conv2d", (2, 64, 9, 11), (72, 64, 3, 3), padding=1, **WIDE), "fprop:gather:128x256x64:w8:s3"),
    (Case("conv2d", (2, 64, 9, 11), (72, 64, 3, 3), padding=1, **WIDE), "dgrad:gather:256x128x64:w8:s3"),
    (Case("conv2d", (2, 64, 9, 11), (72, 64, 3, 3), padding=1, **WIDE), "wgrad:gather:64x64x32:w4:s4:split3"),
    (Case("conv2d", (2, 40, 13, 9), (24, 40, 3, 2), stride=(2, 3), padding=1, **WIDE), ""),
    (Case("conv2d", (2, 24, 7, 5), (40, 24, 1, 1), **WIDE), ""),
    (Case("conv2d", (2, 3, 17, 18), (20, 3, 4, 4), stride=4, dtype="bfloat16"), ""),
    (Case("conv2d", (2, 12, 9, 9), (12, 1, 5, 5), groups=12, padding=2, dtype="float32"), ""),
    (Case("conv1d", (3, 10, 70), (12, 5, 4), groups=2, dilation=3, padding=5, dtype="float64"), ""),
    (Case("conv3d", (1, 5, 5, 6, 7), (6, 5, 3, 2, 3), padding=1, stride=2, dtype="float16"), ""),
    (Case("conv_transpose2d", (2, 24, 5, 6), (24, 9, 3, 3), stride=3, output_padding=2, dtype="float16"), ""),
]
#: Where the GPU has TMA: boxes that reach beyond every edge of a tensor that ends with its allocation.
BOXED = [
    (Case("conv2d", (2, 64, 9, 11), (72, 64, 3, 3), padding=1, **WIDE), "fprop:tma:128x64x64:w4:s4"),
    (Case("conv2d", (2, 64, 9, 11), (72, 64, 3, 3), padding=1, **WIDE), "dgrad:tma:128x64x64:w4:s4"),
    (Case("conv2d", (2, 32, 10, 8), (24, 32, 3, 3), stride=2, padding=1, **WIDE), "fprop:tma:64x64x32:w4:s4"),
    (Case("conv2d", (2, 32, 10, 8), (24, 32, 3, 3), stride=2, padding=1, **WIDE), "dgrad:tma:64x64x32:w4:s4"),
    (Case("conv2d", (2, 64, 9, 11), (72, 64, 3, 3), padding=1, **WIDE), "wgrad:tma:128x64x64:w4:s4:split2"),
    (Case("conv2d", (2, 40, 10, 8), (37, 40, 3, 3), stride=2, padding=1, **WIDE), "wgrad:tma:64x64x32:w4:s4"),
]


def alone(t: torch.Tensor | None) -> torch.Tensor | None:
    """The tensor in an allocation that ends where it ends; those of `Case` have NaN around them."""
    return None if t is None else t.clone()


def check(case: Case, plan: str, device: str) -> None:
    x, w, b = map(alone, case.tensors(device))
    forced = {"plan": Plan.parse(plan)} if plan else {}
    call = getattr(tritonconv, case.function)
    got = oracle.run(call, x, w, b, lambda y: alone(case.gradient(y)), **case.arguments, **forced)
    want = oracle.expected(case.function, x, w, b, case.gradient(got["output"]), **case.arguments)
    oracle.assert_close(got, want, oracle.repro(case), oracle.uses_tf32(case.torch_dtype, device))


def write_past_the_end(device: str) -> None:
    """A forward pass told that its result has two images, into memory for one."""
    x, w, _ = CASES[0][0].tensors(device)
    problem = ConvProblem.conv(x.shape, w.shape, (1, 1), (1, 1), (1, 1))
    short = torch.zeros((1, *problem.output_shape[1:]), dtype=x.dtype, device=device)
    launch.execute(Pass.FPROP, problem, x, w, short)
    torch.cuda.synchronize()


def main() -> None:
    device = "cuda" if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1" else "cpu"
    if "--plant" in sys.argv:
        write_past_the_end(device)
    else:
        boxed = device == "cpu" or torch.cuda.get_device_capability()[0] in (9, 10)
        for case, plan in CASES + BOXED * boxed:
            check(case, plan, device)
    print("all right")


if __name__ == "__main__":
    main()
