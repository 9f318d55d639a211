"""What only a GPU can show of compilation: how many kernels many sizes take."""

from __future__ import annotations

import pytest
import torch
from gpu import half, on, run_pass

import tritonconv
from costmodel.problem import Pass
from tritonconv.kernels.dgrad import dgrad_kernel
from tritonconv.kernels.fprop import fprop_kernel
from tritonconv.kernels.reduce import reduce_kernel
from tritonconv.kernels.wgrad import wgrad_kernel

pytest_plugins = ["gpu"]  # its fixtures
pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("share_of_the_cores", "settled")]


def compiled(kernel) -> int:
    """How often this process has compiled a kernel for the current device (or read it from Triton's cache on disk)."""
    return len(kernel.device_caches[torch.cuda.current_device()][0])


def twenty_sizes() -> list[tuple[int, int, int]]:
    """(batch, height, width): one, even, odd, multiples of 16, and what Triton would specialise on."""
    return [(1 + i % 5, (1, 16, 31, 32, 7)[i % 5] + i // 5, 5 + 3 * i if i % 3 else 16 * (i // 3 + 1)) for i in range(20)]


ONE = {  # tiles and stages that no other test uses
    Pass.FPROP: "fprop:gather:64x32x32:w4:s2",
    Pass.DGRAD: "dgrad:gather:64x32x32:w4:s2",
    Pass.WGRAD: "wgrad:gather:32x64x32:w4:s2:split2:step1x1x4x8",
}


@pytest.mark.parametrize("which", list(Pass))
def test_twenty_sizes_compile_one_kernel(which: Pass, device: str, launched) -> None:
    kernel = {Pass.FPROP: fprop_kernel, Pass.DGRAD: dgrad_kernel, Pass.WGRAD: wgrad_kernel}[which]
    sizes = twenty_sizes()
    assert len(set(sizes)) == 20
    before, reductions = compiled(kernel), []
    for n, h, width in sizes:
        x, w, dy, problem = on(device, half((n, 32, h, width), (32, 32, 3, 3), padding=1))
        reductions.append(compiled(reduce_kernel))
        run_pass(which, problem, x, w, dy, ONE[which])
    assert compiled(kernel) - before == 1
    # the reduction of the partial sums knows no size of an image either; an earlier test may have compiled it
    assert compiled(reduce_kernel) - reductions[0] <= 1


def test_twenty_contiguous_sizes_compile_a_kernel_per_alignment(device: str, launched) -> None:
    """A contiguous image's rows are aligned to 1, 2, 4, 8 or 16 elements, as its width is, and that must be compiled in."""
    before = compiled(fprop_kernel)
    for n, h, width in twenty_sizes():
        case = half((n, 32, h, width), (32, 32, 3, 3), padding=1, x="contiguous", w="contiguous", g="contiguous")
        x, w, dy, problem = on(device, case)
        run_pass(Pass.FPROP, problem, x, w, dy, ONE[Pass.FPROP])
    assert compiled(fprop_kernel) - before <= 5


def test_own_choices_compile_a_kernel_per_plan(device: str, launched) -> None:
    """Where the plan follows the size, sizes that get the same plan share its kernel."""
    before, plans = compiled(fprop_kernel), set()
    for n, h, width in twenty_sizes():
        x, w, dy, problem = on(device, half((n, 32, h, width), (48, 32, 3, 3), padding=1))
        plans.add(str(tritonconv.explain(tritonconv.conv2d, x, w, padding=1).plans["fprop"]))
        run_pass(Pass.FPROP, problem, x, w, dy)
    assert compiled(fprop_kernel) - before <= len(plans)
