"""Kernels compiled ahead of time for sm_80, sm_90 and sm_100, and what their machine code must show. Needs no GPU.

Run apart from the interpreter: `pytest -m aot`.
"""

import json
from dataclasses import replace

import pytest
import torch
import triton

from bench.aot import VERSION, Pointer, compile_ahead, since
from bench.audit import (
    DTYPES,
    TABLE,
    Row,
    compile_plan,
    compile_prepared,
    compile_row,
    operands,
    prepared_launch,
)
from bench.sass import audit
from costmodel.device import DEVICES
from costmodel.families import family
from costmodel.families.gemm import MENU
from costmodel.families.matrix import reduction_step
from costmodel.plan import select
from costmodel.problem import ConvProblem, Pass
from costmodel.resources import resource_table
from costmodel.tiling import Call, Plan
from tritonconv.families.gemm import reduction
from tritonconv.kernels.epilogue import Fused
from tritonconv.kernels.reduce import reduce_kernel
from tritonconv.launch import describe, prepare_call
from tritonconv.layout import channels_last_strides
from tritonconv.prepared import FusedKey

pytestmark = pytest.mark.aot

WIDE = family("gather").samples["wide"]
#: The tensor-core instruction of each arithmetic. ieee float32 must not use one; float64 on sm_100 gets it since Triton 3.8.
MMA = {
    ("half", 80): "HMMA.16816.F32.BF16",
    ("half", 90): "HGMMA.64x",
    ("half", 100): "UTCHMMA",
    ("tf32", 80): "HMMA.1688.F32.TF32",
    ("tf32", 90): "HGMMA.64x",
    ("tf32", 100): "UTC",
    ("fp64", 80): "DMMA",
    ("fp64", 90): "DMMA",
    ("fp64", 100): "DMMA",
}


def largest(row: Row) -> Row:
    """The first tile of the menu that the plan may choose in a row's place."""
    tiles = (replace(row, tile=tile) for tile in MENU[row.kind])
    return next(row for row in tiles if resource_table()[row.key].spills == 0)


def rows():
    for arch in (80, 90, 100):
        for which in Pass:
            for name in ("gather", "patch"):
                for kind in MENU:
                    yield largest(Row(which, name, kind, "wide", MENU[kind][0], arch))
                    if name == "patch":
                        yield largest(Row(which, name, kind, "folded", MENU[kind][0], arch))
                    if arch == 90:
                        yield Row(which, name, kind, "narrow", MENU[kind][-1], arch)


@pytest.mark.parametrize("row", list(rows()), ids=lambda row: row.key)
def test_a_family_compiles_without_spill_as_the_table_says(row):
    found = compile_row(row)
    assert found.spills == 0 and found.stack_bytes == 0
    assert not found.trip.serialized
    assert all(form.operands != "RS" for form in found.trip.mma), "an HGMMA reads A from registers"
    opcodes = {form.opcode for form in found.trip.mma}
    if row.kind == "fp32" or (row.kind == "fp64" and row.arch == 100 and VERSION < (3, 8)):
        assert not opcodes, "ieee float32 must not use tensor cores"
        multiply_adds = row.tile.m * row.tile.n * row.tile.k // (32 * row.tile.warps)
        assert 2 * found.trip.classes["fma"] >= multiply_adds  # sm_100 has an instruction for two
    elif row.access == "wide":
        assert opcodes and all(opcode.startswith(MMA[row.kind, row.arch]) for opcode in opcodes)
    if row.access == "wide" and row.kind == "half":
        assert set(found.trip.copies) == {"LDGSTS"} and found.trip.narrowest_load == 16
    registers, shared, spills, _ = resource_table()[row.key]
    assert spills == 0 and found.shared_bytes <= shared
    if triton.__version__ in json.loads(TABLE.read_text())[row.key]:
        assert found.registers <= registers


@pytest.mark.parametrize(
    "plan, limits",
    [
        ("fprop:gather:128x128x64:w8:s3", {(3, 6): 101, (3, 9): 104}),
        ("fprop:gather:128x256x64:w8:s3", {(3, 6): 116}),
        ("wgrad:gather:128x128x64:w8:s3:split4", {(3, 6): 168}),
    ],
)
def test_a_trip_is_as_short_as_it_was(plan, limits):
    """Measured: 94, 107 and 142 instructions on Triton 3.6; 100, 111 and 155 on 3.7.1, which adds fences. 3.9 spends three
    more in the uniform datapath."""
    parsed = Plan.parse(plan)
    if parsed.which == Pass.WGRAD:
        parsed = replace(parsed, step=reduction_step(WIDE, parsed.block_k))
    found = compile_plan(WIDE, parsed, torch.bfloat16, "ieee", 90, has_bias=False)
    assert found.trip.instructions <= since(limits)
    assert not found.trip.serialized


CASES = {
    "conv1d": ConvProblem.conv((8, 64, 4096), (64, 64, 5), (1,), (2,), (1,)),
    "conv3d": ConvProblem.conv((2, 64, 16, 32, 32), (64, 64, 3, 3, 3), (1,) * 3, (1,) * 3, (1,) * 3),
    "large kernel": ConvProblem.conv((2, 64, 64, 64), (64, 64, 7, 7), (1, 1), (3, 3), (1, 1)),
    "stride and dilation": ConvProblem.conv((2, 64, 65, 65), (64, 64, 3, 3), (2, 3), (1, 1), (3, 2)),
    "groups": ConvProblem.conv((2, 128, 33, 33), (128, 16, 3, 3), (1, 1), (1, 1), (1, 1), 8),
    "24 channels": ConvProblem.conv((2, 24, 33, 33), (40, 24, 3, 3), (1, 1), (1, 1), (1, 1)),
    "image above 2^31 elements": ConvProblem.conv((2, 64, 8192, 8192), (64, 64, 3, 3), (1, 1), (1, 1), (1, 1)),
    "patches": ConvProblem.conv((2, 3, 2, 224, 224), (64, 3, 2, 16, 16), (2, 16, 16), (0, 0, 0), (1, 1, 1)),
}


@pytest.mark.parametrize("which", list(Pass), ids=str)
@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_problem_compiles_without_spill(name, which):
    problem = CASES[name]
    family = "patch" if problem.is_patch else "gather"
    plan = Plan(which, family, 64, 64, 32, 4, 4)
    if which == Pass.WGRAD:
        plan = replace(plan, split=2, step=reduction_step(problem, 32))
    found = compile_plan(problem, plan, torch.float16, "ieee", 90)
    assert found.spills == 0 and not found.trip.serialized
    if name == "24 channels":  # a multiple of 8, not of 16: still 16-byte loads
        assert found.trip.narrowest_load == 16


def test_float32_follows_the_precision_flag():
    for precision, used in (("tf32", True), ("ieee", False)):
        for which in Pass:
            plan = Plan(which, "gather", 64, 64, 32, 4, 3)
            plan = replace(plan, step=reduction_step(WIDE, 32)) if which == Pass.WGRAD else plan
            found = compile_plan(WIDE, plan, torch.float32, precision, 90)
            assert bool(found.trip.mma) == used, (which, precision)
            assert all("TF32" in form.opcode for form in found.trip.mma)


def test_dtypes_of_the_table_cover_the_menu():
    assert set(DTYPES) == set(MENU)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_the_reduction_of_split_sums_compiles(dtype, arch):
    plan = Plan.parse("wgrad:gather:64x64x32:w4:s4:split4:step1x1x4x8")
    prepared = prepared_launch(WIDE, plan, dtype, "ieee", channels_last=True)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    pointers = [Pointer(accumulator), None, Pointer(dtype)]
    arguments = dict(zip(reduce_kernel.arg_names, [*pointers, *prepared.after[0].arguments], strict=False))
    found = audit(compile_ahead(reduce_kernel, arguments | prepared.after[0].constants, arch=arch))
    assert found.spills == 0 and found.trip.classes["ldg"] > 0 and not found.trip.mma


@pytest.mark.parametrize("given", ["scale", "residual", "z"])
def test_the_reduction_compiles_with_a_part_of_an_epilogue(given):
    """Triton 3.6 does not compare a tuple of pointers of which one is None with None."""
    shape = WIDE.output_shape
    key = (shape, channels_last_strides(shape))
    fused = FusedKey(1 if given == "scale" else None, None, key if given == "residual" else None, "relu", 0.0, given == "z")
    follows, step = reduction(Pass.FPROP, 2, key, 4, (1, 1, 1), None, fused, False)
    values = Fused(
        *(Pointer(torch.float16) if given == name else None for name in ("scale", "shift", "residual", "z")), *follows
    )
    pointers = [Pointer(torch.float32), None, Pointer(torch.float16)]
    arguments = dict(zip(reduce_kernel.arg_names, [*pointers, *step.arguments], strict=False))
    assert audit(compile_ahead(reduce_kernel, arguments | step.constants | {"fused": values}, arch=90)).spills == 0


@pytest.mark.parametrize("arch", [pytest.param(80, marks=pytest.mark.slow), 90, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("which", [Pass.FPROP, Pass.DGRAD], ids=str)
@pytest.mark.parametrize("family, channels, stride", [("gather", 720, 1), ("gather", 512, 2), ("patch", 512, 1)])
def test_sharing_a_reduction_costs_no_occupancy(family, channels, stride, which, arch):
    """Nor do the loop's loads change; partial sums are stored with fewer addresses than results."""
    kernel = 1 if family == "patch" else 3
    shape = (channels, channels, kernel, kernel)
    problem = ConvProblem.conv((2, channels, 8, 8), shape, (stride,) * 2, (kernel // 2,) * 2, (1, 1))
    alone = Plan(which, family, 128, 128, 64, 8, 3)
    found, whole = (compile_plan(problem, replace(alone, split=n), torch.bfloat16, "ieee", arch) for n in (4, 1))
    assert found.spills == 0 and found.trip.copies == whole.trip.copies and not found.trip.serialized
    assert 65536 // (256 * found.registers) >= 65536 // (256 * whole.registers)


@pytest.mark.parametrize("which", list(Pass), ids=str)
def test_three_products_in_tf32_stand_for_one(which):
    plan = replace(Plan(which, "gather", 64, 64, 32, 4, 3), x3=True)
    plan = replace(plan, step=reduction_step(WIDE, 32)) if which == Pass.WGRAD else plan
    found, once = (compile_plan(WIDE, p, torch.float32, "tf32", 90) for p in (plan, replace(plan, x3=False)))
    assert found.spills == 0 and all("TF32" in form.opcode for form in found.trip.mma)
    assert sum(form.count for form in found.trip.mma) == 3 * sum(form.count for form in once.trip.mma)


@pytest.mark.parametrize("which", [Pass.FPROP, Pass.WGRAD], ids=str)
def test_a_stem_folds_its_columns(which):
    """ResNet's first layer: four padded channels come in one 8-byte copy, and a filter row is one trip."""
    problem = ConvProblem.conv((32, 3, 224, 224), (64, 3, 7, 7), (2, 2), (3, 3), (1, 1))
    a, b, out = operands(problem, which, True)
    plan = select(Call(problem, which, "bfloat16", "ieee", *describe(problem, which, a, b, out)), DEVICES["NVIDIA H200"])
    assert plan.fold
    bias = None if which == Pass.WGRAD else 1
    found = compile_prepared(
        prepare_call(which, problem, torch.bfloat16, "ieee", -1, a, b, out, bias, str(plan)), torch.bfloat16, 90
    )
    narrowest = 8 if which == Pass.FPROP else 4
    assert found.spills == 0 and found.trip.narrowest_load >= narrowest and "LDGSTS" in found.trip.copies


#: The GPU whose plans are compiled for an architecture.
GPUS = {80: "NVIDIA A100-SXM4-80GB", 90: "NVIDIA H200", 100: "NVIDIA B200"}


def compiled_as_chosen(problem, which, channels_last, arch=90):
    """(plan, audit) of what is chosen for dense bfloat16 tensors."""
    a, b, out = operands(problem, which, channels_last)
    call = Call(problem, which, "bfloat16", "ieee", *describe(problem, which, a, b, out))
    plan = select(call, DEVICES[GPUS[arch]])
    bias = None if which == Pass.WGRAD else 1
    launch = prepare_call(which, problem, torch.bfloat16, "ieee", -1, a, b, out, bias, str(plan))
    return plan, compile_prepared(launch, torch.bfloat16, arch)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("which", list(Pass), ids=str)
def test_the_plan_chosen_for_patches_does_not_spill(which, channels_last):
    """ViT's embedding and a downsampling layer as the H200's plans run them."""
    for shape, weight in (((64, 3, 224, 224), (768, 3, 16, 16)), ((64, 96, 56, 56), (192, 96, 2, 2))):
        problem = ConvProblem.conv(shape, weight, weight[2:], (0, 0), (1, 1))
        plan, found = compiled_as_chosen(problem, which, channels_last)
        assert found.spills == 0, plan
        if which == Pass.FPROP and not channels_last and weight[1] == 3:
            assert found.trip.narrowest_load == 16, "sixteen neighbouring pixels of a patch are one run of memory"


CONTIGUOUS = {
    "1-D": ConvProblem.conv((32, 256, 4096), (256, 256, 4), (1,), (1,), (1,)),
    "3x3": ConvProblem.conv((32, 128, 28, 28), (128, 128, 3, 3), (1, 1), (1, 1), (1, 1)),
    "3x3 stride 2": ConvProblem.conv((32, 128, 57, 57), (256, 128, 3, 3), (2, 2), (1, 1), (1, 1)),
    "1x1": ConvProblem.conv((32, 64, 56, 56), (256, 64, 1, 1), (1, 1), (0, 0), (1, 1)),
    "1x1 of 14x14": ConvProblem.conv((32, 1024, 14, 14), (256, 1024, 1, 1), (1, 1), (0, 0), (1, 1)),
    "3-D": ConvProblem.conv((2, 64, 15, 56, 56), (64, 64, 3, 3, 3), (1,) * 3, (1,) * 3, (1,) * 3),
    "1-D above 2^31": ConvProblem.conv((2, 64, 1 << 27), (64, 64, 4), (2,), (1,), (1,)),
    "2-D above 2^31": ConvProblem.conv((8, 128, 4096, 8191), (128, 128, 3, 3), (1, 1), (1, 1), (1, 1)),
    "3-D above 2^31": ConvProblem.conv((8, 128, 63, 512, 512), (256, 128, 3, 3, 3), (2,) * 3, (1,) * 3, (1,) * 3),
}
QUICK = {("3x3", Pass.FPROP), ("3x3 stride 2", Pass.DGRAD), ("1x1", Pass.DGRAD), ("2-D above 2^31", Pass.DGRAD)}


@pytest.mark.parametrize(
    "name, which",
    [
        pytest.param(name, which, marks=() if (name, which) in QUICK else pytest.mark.slow, id=f"{name} {which}")
        for name in CONTIGUOUS
        for which in (Pass.FPROP, Pass.DGRAD)
    ],
)
def test_the_plan_chosen_for_contiguous_tensors_does_not_spill(name, which):
    """Their results are stored otherwise than those of the table's "wide" rows."""
    plan, found = compiled_as_chosen(CONTIGUOUS[name], which, channels_last=False)
    assert found.spills == 0 and found.stack_bytes == 0 and not found.trip.serialized, plan
    if name == "1x1":
        assert found.trip.narrowest_load == 16, "neighbouring pixels are one run of memory"


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 100])
@pytest.mark.parametrize("which", [Pass.FPROP, Pass.DGRAD], ids=str)
@pytest.mark.parametrize("name", ["1-D", "3x3 stride 2", "1x1", "3-D", "2-D above 2^31"])
def test_nor_does_it_on_other_architectures(name, which, arch):
    plan, found = compiled_as_chosen(CONTIGUOUS[name], which, channels_last=False, arch=arch)
    assert found.spills == 0 and found.stack_bytes == 0 and not found.trip.serialized, plan


@pytest.mark.slow
@pytest.mark.parametrize("which", [Pass.FPROP, Pass.DGRAD], ids=str)
def test_64_bit_offsets_of_channels_last_tensors_do_not_spill(which):
    for name in ("2-D above 2^31", "3-D above 2^31"):
        plan, found = compiled_as_chosen(CONTIGUOUS[name], which, channels_last=True)
        assert found.spills == 0 and not found.trip.serialized, plan
