"""Fused kernels compiled ahead of time, and the plans that keep within what compiles."""

import pytest
import torch

#: (Call.epilogue, activation, residual, z) of an epilogue that fills its kind; all have a bias, a scale and a shift.
KINDS = [
    ("channels", "relu6", False, False),
    ("tensors", "relu", True, False),
    ("tensors", "hardswish", True, True),
    ("heavy", "gelu", True, True),
    ("heavy", "tanh", True, False),
]


#: 16 bits in full; wider arithmetic with what asks for most registers.
COMPILED = [("half", family, *kind) for family in ("gather", "patch") for kind in KINDS]
COMPILED += [pytest.param(arithmetic, "gather", *KINDS[2], marks=pytest.mark.slow) for arithmetic in ("tf32", "fp32", "fp64")]


@pytest.mark.aot
@pytest.mark.parametrize("arithmetic, family, kind, activation, residual, keep", COMPILED)
@pytest.mark.parametrize("which", ["fprop", "dgrad"])
@pytest.mark.parametrize("arch", [pytest.param(80, marks=pytest.mark.slow), 90, pytest.param(100, marks=pytest.mark.slow)])
def test_the_largest_tile_compiles_without_a_spill(arch, which, arithmetic, family, kind, activation, residual, keep):
    from bench.audit import DTYPES
    from costmodel.families import families
    from costmodel.families.gemm import MENU, epilogue_fits
    from costmodel.resources import resource_key, resource_table
    from costmodel.tiling import Plan, itemsize
    from tritonconv.launch import DTYPES as NAMES_OF

    dtype, precision = DTYPES[arithmetic]
    size = itemsize(NAMES_OF[dtype])
    plans = [Plan(which, family, *tile) for tile in MENU[arithmetic] if epilogue_fits(kind, "wide", tile, size, arch)]
    plan = next(p for p in plans if resource_table()[resource_key(p, arithmetic, "wide", arch)].spills == 0)
    found = compiled_ahead(families()[family].samples["wide"], plan, dtype, precision, arch, activation, residual, keep)
    assert found.spills == 0 and found.stack_bytes == 0 and not found.trip.serialized


@pytest.mark.aot
@pytest.mark.parametrize(
    "kind, activation, residual, keep", [("channels", "relu", False, False), ("tensors", "relu", True, False)]
)
@pytest.mark.parametrize("which, stride", [pytest.param("fprop", 1, marks=pytest.mark.slow), ("dgrad", 2)])
@pytest.mark.parametrize("arch", [pytest.param(80, marks=pytest.mark.slow), 90, pytest.param(100, marks=pytest.mark.slow)])
def test_the_largest_tile_of_a_contiguous_result_compiles_without_a_spill(
    arch, which, stride, kind, activation, residual, keep
):
    from costmodel.families.gemm import MENU, epilogue_fits
    from costmodel.problem import ConvProblem
    from costmodel.tiling import Plan

    plan = next(Plan(which, "gather", *tile) for tile in MENU["half"] if epilogue_fits(kind, "folded", tile, 2, arch))
    problem = ConvProblem.conv((32, 256, 28, 28), (256, 256, 3, 3), (stride,) * 2, (1, 1), (1, 1))
    found = compiled_ahead(problem, plan, torch.bfloat16, "ieee", arch, activation, residual, keep, contiguous=True)
    assert found.spills == 0 and found.stack_bytes == 0 and not found.trip.serialized


def compiled_ahead(problem, plan, dtype, precision, arch, activation, residual, keep, contiguous=False):
    """The audit of a fused kernel for dense channels-last operands, with bias, scale and shift."""
    from bench.aot import Pointer, compile_ahead
    from bench.audit import kernel_arguments, operands
    from bench.sass import audit
    from costmodel.problem import Pass
    from costmodel.tiling import Call
    from tritonconv import launch
    from tritonconv.kernels.epilogue import Fused

    which = Pass(plan.which)
    a, b, _ = operands(problem, which, True)
    _, _, out = operands(problem, which, not contiguous)
    key = launch.FusedKey(1, 1, out if residual else None, activation, 0.01, keep)
    call = Call(problem, which, launch.DTYPES[dtype], precision, *launch.describe(problem, which, a, b, out), key.kind(out))
    prepared = launch.prepare(plan, call, a, b, out, 1, key)
    kernel, arguments = kernel_arguments(prepared, dtype)
    place = Pointer(dtype)
    arguments["fused"] = Fused(place, place, place if residual else None, place if keep else None, *prepared.fused)
    warps, stages = arguments.pop("num_warps"), arguments.pop("num_stages")
    return audit(compile_ahead(kernel, arguments, arch=arch, num_warps=warps, num_stages=stages))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_the_plan_takes_no_tile_that_spills(dtype) -> None:
    """Where the convolution alone would take a larger one."""
    from costmodel.device import DEVICES
    from costmodel.families import tma
    from costmodel.families.gemm import EPILOGUE_LIMIT, epilogue_fits
    from costmodel.plan import select
    from costmodel.problem import ConvProblem, Pass
    from costmodel.tiling import Call, itemsize

    problem = ConvProblem.conv((32, 256, 56, 56), (256, 256, 3, 3), (1, 1), (1, 1), (1, 1))
    tiles = {}
    for kind in ("", *EPILOGUE_LIMIT):
        for which in (Pass.FPROP, Pass.DGRAD):
            for device in ("NVIDIA H200", "NVIDIA B200"):
                plan = select(Call(problem, which, dtype, "tf32", epilogue=kind), DEVICES[device])
                tile = plan.tile
                if plan.family == "tma":
                    assert tma.epilogue_fits(kind, tile)
                else:
                    assert epilogue_fits(kind, "wide", tile, itemsize(dtype), DEVICES[device].capability)
                tiles[kind, which, device] = tile.m * tile.n
    assert dtype == "float64" or tiles["", Pass.FPROP, "NVIDIA H200"] > tiles["heavy", Pass.FPROP, "NVIDIA H200"]
