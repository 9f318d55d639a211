"""What the kernels of large depthwise filters compile to: warpgroup MMAs that read shared memory, 16-byte copies, no spill."""

import pytest
import torch

from bench.aot import Pointer, compile_ahead, since
from bench.audit import compile_plan, kernel_arguments, operands
from bench.band import call_of, layer
from bench.sass import audit
from costmodel.device import DEVICES
from costmodel.families import band
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Call, Plan
from tritonconv import launch
from tritonconv.kernels.epilogue import Fused
from tritonconv.prepared import FusedKey

pytestmark = pytest.mark.aot

B200 = DEVICES["NVIDIA B200"]
PROBLEM = layer(31, 32)


def menu():
    """Every tile of every pass, once for each architecture; fprop stands for dgrad, which differs in numbers alone."""
    for arch in (90, 80, 100):
        for which in (Pass.FPROP, Pass.WGRAD):
            for number, plan in enumerate(p for p in band.plans(call_of(PROBLEM, which), B200) if p.split == 1):
                quick = arch == 90 and number in (0, 6) if which == Pass.FPROP else arch == 90 and number == 0
                yield pytest.param(arch, plan, id=f"{plan}:sm{arch}", marks=[] if quick else pytest.mark.slow)


@pytest.mark.parametrize("arch, plan", list(menu()))
def test_tensor_cores_are_fed_from_shared_memory(arch, plan):
    found = compile_plan(PROBLEM, plan, torch.bfloat16, "ieee", arch, channels_last=False)
    trip, counted = found.trip, band.resources(call_of(PROBLEM, plan.which), plan)
    # Triton 3.9 reserves 8 bytes for a weight gradient on sm_90 and leaves them alone: no instruction reads or writes them.
    reserved = since({(3, 6): 0, (3, 9): 8}) if plan.which == Pass.WGRAD and arch == 90 else 0
    assert found.spills == 0 and found.stack_bytes <= reserved and not trip.serialized
    assert trip.classes["ldg"] == trip.classes["sts"] == 0, "a load is not a copy to shared memory"
    small = plan.block_m < 64  # its pixels are fewer than 16 bytes per thread
    assert set(trip.copies) == {"LDGSTS"} and set(trip.copies["LDGSTS"]) == ({8, 16} if small else {16})
    if arch == 90:
        assert found.registers <= counted.registers and trip.instructions <= counted.trip
        if not small:
            assert all(form.operands == "SS" and form.shape.startswith("64x") for form in trip.mma)
            multiplied = sum(form.count * 64 * int(form.shape.split("x")[1]) * 16 for form in trip.mma)
            assert multiplied * (plan.num_warps // 4) == plan.block_m * plan.block_n * plan.block_k
    if arch != 80:
        assert found.shared_bytes <= counted.shared + 16  # a barrier


@pytest.mark.parametrize("which, most", [(Pass.FPROP, 125), (Pass.DGRAD, 125), (Pass.WGRAD, 110)])
def test_a_trip_is_as_short_as_it_was(which, most):
    """Measured: 116 to 121 instructions for 128 x 256 x 32 and two HGMMA, 99 to 107 for wgrad's 128 x 128 x 32."""
    text = (
        "wgrad:band:128x128x32:w8:s3:step1x1x4x32:rows4"
        if which == Pass.WGRAD
        else f"{which}:band:128x256x32:w8:s4:step1x1x8x32"
    )
    found = compile_plan(PROBLEM, Plan.parse(text), torch.float16, "ieee", 90, channels_last=False)
    assert found.trip.instructions <= most and found.spills == 0


def test_diagonals_take_the_instructions_that_the_model_counts():
    for text in ("wgrad:band:128x128x32:w8:s3:step1x1x4x32:rows4", "wgrad:band:64x64x32:w4:s3:step1x1x4x16:rows4"):
        plan = Plan.parse(text)
        found = compile_plan(PROBLEM, plan, torch.float16, "ieee", 90, channels_last=False)
        sums = plan.block_m * plan.block_n // (32 * plan.num_warps)
        assert found.instructions - found.trip.instructions <= 1.1 * band.DIAGONAL_INSTRUCTIONS * sums


#: (activation, residual, z, whether the residual lies otherwise): what asks for most registers of each kind of epilogue.
EPILOGUES = {
    "channels": ("relu6", False, False, False),
    "tensors": ("hardswish", True, True, False),
    "heavy": ("gelu", True, True, True),
}


@pytest.mark.parametrize("arch", [90, pytest.param(80, marks=pytest.mark.slow), pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", EPILOGUES)
def test_what_follows_a_tile_does_not_spill(kind, arch):
    """The largest tiles of each number of warps that may have it."""
    activation, residual, keep, elsewhere = EPILOGUES[kind]
    a, b, out = operands(PROBLEM, Pass.FPROP, False)
    _, _, otherwise = operands(PROBLEM, Pass.FPROP, True)
    key = FusedKey(1, 1, (otherwise if elsewhere else out) if residual else None, activation, 0.01, keep)
    call = Call(PROBLEM, Pass.FPROP, "bfloat16", "ieee", *launch.describe(PROBLEM, Pass.FPROP, a, b, out), key.kind(out))
    assert call.epilogue == kind
    place, largest = Pointer(torch.bfloat16), {}
    for plan in band.plans(call, B200):
        if plan.block_m * plan.block_n == band.EPILOGUE_SUMS[kind] * 32 * plan.num_warps:
            largest.setdefault(plan.num_warps, plan)
    assert set(largest) == {4, 8}
    for plan in largest.values():
        prepared = launch.prepare(plan, call, a, b, out, 1, key)
        kernel, arguments = kernel_arguments(prepared, torch.bfloat16)
        pointers = place, place, place if residual else None, place if keep else None
        arguments["fused"] = Fused(*pointers, *prepared.fused)
        warps, stages = arguments.pop("num_warps"), arguments.pop("num_stages")
        found = audit(compile_ahead(kernel, arguments, arch=arch, num_warps=warps, num_stages=stages))
        assert found.spills == 0 and found.stack_bytes == 0 and not found.trip.serialized


OTHERS = {
    "odd_rows": ConvProblem.conv((9, 40, 27, 23), (40, 1, 13, 17), (1, 1), ((1, 2), (3, 0)), (1, 1), 40),
    "cropped": ConvProblem.conv((9, 40, 32, 64), (40, 1, 13, 17), (1, 1), ((-1, 2), (-9, 6)), (1, 1), 40),
    "one_image": ConvProblem.conv((1, 96, 56, 56), (96, 1, 51, 5), (1, 1), (25, 2), (1, 1), 96),
    "large": ConvProblem.conv((2, 64, 1024, 1024), (64, 1, 63, 63), (1, 1), (31, 31), (1, 1), 64),
}


#: Left to `make aot-slow`.
SLOW = ("one_image", "large")


@pytest.mark.parametrize("arch", [90, pytest.param(80, marks=pytest.mark.slow), pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in OTHERS])
def test_the_plans_of_other_layers_do_not_spill(name, arch):
    gpu = DEVICES[{80: "NVIDIA A100-SXM4-80GB", 90: "NVIDIA H100 80GB HBM3", 100: "NVIDIA B200"}[arch]]
    for which in Pass:
        call = call_of(OTHERS[name], which)
        _, plan = band.quickest(call, gpu, float("inf"))
        assert plan is not None
        found = compile_plan(call.problem, plan, torch.float16, "ieee", arch, channels_last=False)
        assert found.spills == 0 and not found.trip.serialized and set(found.trip.copies) == {"LDGSTS"}
