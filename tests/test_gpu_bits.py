"""What only a GPU can show of bits: the same ones every time, alone and beside other work."""

from __future__ import annotations

import oracle
import pytest
import torch
from cases import Case
from gpu import RESULT, bits, expected, fp32_precision, half, on, run_pass, shrunken

from costmodel.problem import Pass

pytest_plugins = ["gpu"]  # its fixtures
pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("share_of_the_cores", "settled")]


#: Triton 3.6 leaves out a fence between the copies and the tensor cores of these kernels: a race, if one of them shows it.
REPEATED = {
    "resnet_3x3": (half((8, 64, 56, 56), (64, 64, 3, 3), padding=1), ""),
    "largest_tile": (half((8, 256, 14, 14), (256, 256, 3, 3), padding=1), "128x256x64:w8:s3"),
    "largest_tile_turned": (half((8, 256, 14, 14), (256, 256, 3, 3), padding=1, dtype="bfloat16"), "256x128x64:w8:s3"),
    "small_tile": (half((4, 128, 14, 14), (128, 128, 3, 3), padding=1, stride=2), "64x64x64:w4:s4"),
    "pointwise": (half((8, 256, 28, 28), (128, 256, 1, 1)), ""),
    "odd_contiguous": (Case("conv2d", (4, 35, 29, 31), (37, 35, 3, 3), bias=False, dtype="float16"), ""),
    "tf32": (half((4, 128, 28, 28), (128, 128, 3, 3), padding=1, dtype="float32"), ""),
    "merged_groups": (half((8, 128, 28, 28), (128, 4, 3, 3), padding=1, groups=32), "64x64x64:w4:s4:merge2"),
    "depthwise": (half((8, 144, 56, 56), (144, 1, 3, 3), padding=1, groups=144), ""),
    "depthwise_contiguous": (Case("conv2d", (8, 96, 28, 28), (96, 1, 7, 7), padding=3, groups=96, bias=False), ""),
}


class Load:
    """Work for another stream, a product on the tensor cores and a copy at each call."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()
        self.factor = torch.ones(2048, 2048, dtype=torch.bfloat16, device="cuda")
        self.product = torch.zeros_like(self.factor)
        self.source = torch.zeros(1 << 25, device="cuda")
        self.target = torch.zeros_like(self.source)

    def __call__(self) -> None:
        with torch.cuda.stream(self.stream):
            torch.mm(self.factor, self.factor, out=self.product)
            self.target.copy_(self.source)


@pytest.mark.parametrize("loaded", [False, True], ids=["alone", "under_load"])
@pytest.mark.parametrize("which", list(Pass))
@pytest.mark.parametrize("name", REPEATED)
def test_a_thousand_runs_give_the_same_bits(name: str, which: Pass, loaded: bool, device: str, size, launches) -> None:
    case, tile = REPEATED[name]
    case = shrunken(case, device)
    x, w, dy, problem = on(device, case)
    split = f":split{size(8, 2)}" if which == Pass.WGRAD else ""
    plan = f"{which}:{'patch' if problem.is_patch else 'gather'}:{tile}{split}" if tile else ""
    load = Load() if loaded and device == "cuda" else lambda: None
    runs = size(1000, 3)
    with fp32_precision("tf32"):
        first = run_pass(which, problem, x, w, dy, plan)
        differing = torch.zeros((), dtype=torch.int64, device=device)
        for _ in range(runs):
            load()
            differing += (bits(run_pass(which, problem, x, w, dy, plan)) != bits(first)).any()
        assert int(differing) == 0, f"{int(differing)} of {runs} runs differ from the first"
        assert launches()[which] == runs + 1
        assert launches()[f"depthwise {which}"] == (runs + 1 if "depthwise" in name else 0)
        want = {RESULT[which]: expected("conv2d", x, w, None, dy, **case.arguments)[RESULT[which]]}
        tf32 = oracle.uses_tf32(case.torch_dtype, device)
        oracle.assert_close({RESULT[which]: first}, want, oracle.repro(case), tf32)


@pytest.mark.parametrize("name", ["resnet_3x3", "merged_groups", "depthwise"])
def test_a_thousand_fused_runs_give_the_same_bits(name: str, device: str, size, launched) -> None:
    """The value and what is kept of it, where a residual and a scale follow in the same kernel."""
    case = shrunken(REPEATED[name][0], device)
    x, w, residual, problem = on(device, case)
    scale, shift = (case.values(what, (case.out_channels,)).to(device) for what in ("scale", "shift"))
    window = (problem.stride, [p for pair in problem.padding for p in pair], problem.dilation, problem.groups)
    follows = (scale, shift, residual, "gelu", 0.01, True)
    first, differing = torch.ops.tritonconv.fprop_fused(x, w, None, *window, *follows), 0
    for _ in range(size(1000, 3)):
        again = torch.ops.tritonconv.fprop_fused(x, w, None, *window, *follows)
        differing += sum((bits(a) != bits(b)).any() for a, b in zip(first, again, strict=True))
    assert int(differing) == 0
