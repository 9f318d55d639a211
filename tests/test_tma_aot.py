"""What the TMA kernels compile to: boxes by TMA alone, warpgroup MMAs that read both operands from shared memory, no spill."""

import json
from dataclasses import replace

import pytest
import torch
import triton

from bench.aot import since
from bench.audit import DTYPES, TABLE, Row, compile_plan, compile_row
from costmodel.families.tma import EPILOGUE_SUMS, MENU, SAMPLES, WGRAD_MENU, epilogue_fits
from costmodel.problem import ConvProblem, Pass
from costmodel.resources import resource_table
from costmodel.tiling import Plan, Tile, itemsize
from tritonconv.launch import DTYPES as NAMES

pytestmark = pytest.mark.aot

LARGEST = Tile(256, 128, 64, 8, 4)
OTHERS = (Tile(128, 256, 64, 8, 4), Tile(128, 128, 64, 8, 3), Tile(256, 64, 32, 4, 4), Tile(64, 64, 64, 4, 6))


def rows():
    for which in (Pass.FPROP, Pass.DGRAD):
        for access in ("wide", "scattered"):
            yield Row(which, "tma", "half", access, LARGEST, 90)
        for tile in OTHERS:
            yield pytest.param(Row(which, "tma", "half", "scattered", tile, 90), marks=pytest.mark.slow)
        for tile in (LARGEST, *OTHERS):
            yield pytest.param(Row(which, "tma", "half", "wide", tile, 100), marks=pytest.mark.slow)
    yield Row(Pass.FPROP, "tma", "tf32", "wide", MENU["tf32"][0], 90)


@pytest.mark.parametrize("row", list(rows()), ids=lambda row: row.key)
def test_boxes_meet_in_shared_memory(row):
    found = compile_row(row)
    trip, tile = found.trip, row.tile
    assert found.spills == 0 and found.stack_bytes == 0 and not trip.serialized
    assert not trip.copies, "a thread copies, not TMA"
    assert trip.classes["lds"] == trip.classes["sts"] == 0, "an operand passes through registers"
    assert trip.classes["tma"] == 2, "one box of each operand"
    assert all(form.operands == "SS" for form in trip.mma), "an MMA reads an operand from registers"
    if row.arch == 90:
        shapes = {tuple(map(int, form.shape.split("x"))): form.count for form in trip.mma}
        ((m, n, k),) = shapes  # a warpgroup of four warps issues each
        assert (m, n) == (64, min(256, tile.m)) and k * itemsize(NAMES[DTYPES[row.kind][0]]) == 32
        assert shapes[m, n, k] * (tile.warps // 4) * m * n * k == tile.m * tile.n * tile.k
        assert {form.transposed for form in trip.mma} == {"A" if row.which == Pass.DGRAD else ""}
    agrees_with_the_table(row, found)


def agrees_with_the_table(row, found):
    registers, shared, spills, _ = resource_table()[row.key]
    assert spills == 0 and found.shared_bytes <= shared
    if triton.__version__ in json.loads(TABLE.read_text())[row.key]:
        assert found.registers <= registers


def weight_gradients():
    for tile in WGRAD_MENU["half"]:
        for arch in (90, 100):
            row = Row(Pass.WGRAD, "tma", "half", "wide", tile, arch)
            quick = arch == 90 and tile in (Tile(128, 256, 64, 8, 4), Tile(128, 128, 64, 8, 3))
            yield row if quick else pytest.param(row, marks=pytest.mark.slow)


@pytest.mark.parametrize("row", list(weight_gradients()), ids=lambda row: row.key)
def test_a_weight_gradient_multiplies_a_box_as_it_lies(row):
    found = compile_row(row)
    trip, tile = found.trip, row.tile
    assert found.spills == 0 and found.stack_bytes == 0 and not trip.serialized
    assert trip.copies == {"LDGSTS": {16: tile.m * tile.k // (256 * tile.warps)}}, "threads load dy alone, 16 bytes each"
    assert trip.classes["tma"] == 1 and trip.classes["lds"] == trip.classes["sts"] == 0
    assert all(form.operands == "SS" for form in trip.mma), "an MMA reads an operand from registers"
    if row.arch == 90:
        (form,) = trip.mma
        assert form.shape == f"64x{tile.n}x16" and form.transposed == "AB"
        assert form.count * (tile.warps // 4) * 64 * 16 == tile.m * tile.k
    agrees_with_the_table(row, found)


#: Instructions of a trip and registers of a weight gradient from boxes, by the Triton that they were read off. 3.7 fences dy,
#: 3.8 has one more barrier of the program, 3.9 three more instructions of the uniform datapath.
WGRAD_TRIPS = {
    "128x256x64:w8:s4": {(3, 6): (130, 164), (3, 7): (140, 164), (3, 8): (141, 164), (3, 9): (141, 165)},
    "128x128x64:w8:s3": {(3, 6): (128, 102), (3, 7): (138, 99), (3, 8): (139, 99), (3, 9): (141, 99)},
}


@pytest.mark.parametrize("tile", WGRAD_TRIPS)
def test_a_weight_gradients_trip_is_as_short_as_it_was(tile):
    """Four HGMMA each; the gather's has 228 instructions and 220 registers."""
    found = compile_plan(SAMPLES["wide"], Plan.parse(f"wgrad:tma:{tile}:split4"), torch.bfloat16, "ieee", 90)
    instructions, registers = since(WGRAD_TRIPS[tile])
    assert found.trip.instructions <= instructions and found.registers <= registers


@pytest.mark.parametrize(
    "text, limit",
    [("fprop:tma:256x128x64:w8:s4", 102), ("dgrad:tma:256x128x64:w8:s4", 102), ("fprop:tma:256x64x64:w4:s4", 100)],
)
def test_a_trip_is_as_short_as_it_was(text, limit):
    """Measured: 101, 101 and 99 instructions for four HGMMA 64x256x16 on Triton 3.6, and 154 registers; the gather's is 107."""
    found = compile_plan(SAMPLES["wide"], Plan.parse(text), torch.bfloat16, "ieee", 90)
    assert found.trip.instructions <= limit and found.registers <= 162
    assert [(form.shape, form.count) for form in found.trip.mma] == [("64x256x16", 4)]


CASES = {
    "line": ConvProblem.conv((8, 64, 4096), (64, 64, 5), (2,), (2,), (1,)),
    "space": ConvProblem.conv((2, 64, 16, 32, 32), (64, 64, 3, 3, 3), (1, 1, 2), (1,) * 3, (1,) * 3),
    "stride_and_dilation": ConvProblem.conv((2, 64, 66, 66), (64, 64, 3, 3), (2, 3), (1, 1), (3, 2)),
    "stride_4": ConvProblem.conv((2, 64, 64, 64), (64, 64, 3, 3), (4, 4), (1, 1), (1, 1)),
    "groups": ConvProblem.conv((2, 128, 33, 33), (128, 32, 3, 3), (1, 1), (1, 1), (1, 1), 4),
    "24_channels": ConvProblem.conv((2, 24, 33, 33), (40, 24, 3, 3), (1, 1), (1, 1), (1, 1)),
    "phases_without_taps": ConvProblem.conv((2, 64, 32, 32), (64, 64, 1, 1), (2, 2), (0, 0), (1, 1)),
    "large_images": ConvProblem.conv((2, 64, 8192, 8192), (64, 64, 3, 3), (1, 1), (1, 1), (1, 1)),
}

SLOW = ("stride_4", "24_channels", "large_images")


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_weight_gradient_compiles_alike(name):
    plan = Plan.parse("wgrad:tma:64x256x64:w4:s4:split3")
    found = compile_plan(CASES[name], plan, torch.float16, "ieee", 90)
    assert found.spills == 0 and not found.trip.serialized
    assert found.trip.classes["tma"] == 1 and set(found.trip.copies) == {"LDGSTS"}
    assert [(form.shape, form.operands, form.transposed) for form in found.trip.mma] == [("64x256x16", "SS", "AB")]


@pytest.mark.parametrize("which", [Pass.FPROP, Pass.DGRAD], ids=str)
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES])
def test_every_kind_of_problem_compiles_alike(name, which):
    found = compile_plan(CASES[name], Plan(which, "tma", 256, 64, 32, 4, 4), torch.float16, "ieee", 90)
    assert found.spills == 0 and not found.trip.serialized and found.registers <= 200
    assert not found.trip.copies and found.trip.classes["tma"] == 2
    assert [(form.shape, form.operands) for form in found.trip.mma] == [("64x256x16", "SS")]


#: (kind, activation, residual, z): what asks for most registers of each kind of epilogue; and which asks for most of all.
EPILOGUES = [("channels", "relu6", False, False), ("tensors", "hardswish", True, True), ("heavy", "gelu", True, True)]


@pytest.mark.parametrize("kind, activation, residual, keep", EPILOGUES)
@pytest.mark.parametrize("which", ["fprop", "dgrad"])
@pytest.mark.parametrize("arch", [90, pytest.param(100, marks=pytest.mark.slow)])
def test_what_follows_a_tile_does_not_spill(arch, which, kind, activation, residual, keep):
    from test_fused_aot import compiled_ahead

    tile = next(tile for tile in MENU["half"] if epilogue_fits(kind, tile))
    assert tile.m * tile.n == 32 * tile.warps * EPILOGUE_SUMS[kind]
    plan = Plan(which, "tma", *tile)
    problem = SAMPLES["wide" if which == "fprop" else "scattered"]
    found = compiled_ahead(problem, plan, torch.bfloat16, "ieee", arch, activation, residual, keep)
    assert found.spills == 0 and found.stack_bytes == 0 and not found.trip.serialized
    assert all(form.operands == "SS" for form in found.trip.mma)


def test_descriptors_are_left_alone_below_hopper():
    """Triton would turn them into loads of two bytes there; the plan refuses them (`costmodel.families.tma.call_refusal`)."""
    assert not any(":tma:" in key and key.endswith("sm80") for key in resource_table())
    assert not Row(Pass.FPROP, "tma", "half", "wide", LARGEST, 80).exists
    assert replace(Row(Pass.FPROP, "tma", "half", "wide", LARGEST, 80), arch=90).exists
