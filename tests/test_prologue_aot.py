"""The kernel for chunks of video with a prologue, a residual and groups, compiled ahead of time: no spill, and the instructions
that the cost model counts. So do the kernels of statistics.

Run apart from the interpreter: `pytest -m aot`.
"""

import pytest
import torch

from bench import video as rows
from bench.aot import Pointer, compile_ahead
from bench.sass import audit
from bench.video import Row
from costmodel import prologue as model
from costmodel import video
from costmodel.device import find_device
from costmodel.families.gemm import MENU
from costmodel.prologue import Prologue
from costmodel.tiling import Plan
from tritonconv.kernels.prologue import Prologue as Pointers
from tritonconv.layout import channels_last_strides, dense_strides
from tritonconv.normalize import launch

pytestmark = pytest.mark.aot
SLOW = pytest.mark.slow
RMS, GROUP = Prologue("silu", True, False, True), Prologue("silu", True, True, False)
TILE = "fprop:video:128x128x64:w8:s3"
NAMES = {80: "a100", 90: "h200", 100: "b200"}


@pytest.mark.parametrize(
    "prologue", [GROUP, pytest.param(RMS, marks=SLOW), pytest.param(Prologue("gelu"), marks=SLOW)], ids=str
)
def test_a_trip_takes_the_instructions_that_the_model_counts(prologue):
    plain, found = rows.figures(Row(TILE)), rows.figures(Row(TILE, prologue=prologue))
    assert found.spills == found.stack_bytes == 0 and not found.trip.serialized
    counted = model.extra_instructions(prologue, Plan.parse(TILE).tile)
    assert found.trip.instructions - plain.trip.instructions == pytest.approx(counted, rel=0.1)


def tiles(arch, kind):
    """The tiles that the cost model takes with a prologue."""
    device = find_device(NAMES[arch])
    for tile in MENU[kind]:
        if model.fits(tile, 2 if kind == "half" else 4, device.capability):
            yield pytest.param(arch, tile, kind, marks=() if tile == (128, 64, 32, 4, 4) and arch == 80 else SLOW)


EVERY = [each for arch in NAMES for kind in ("half", "tf32") for each in tiles(arch, kind)]


@pytest.mark.parametrize(
    "arch, tile, kind", EVERY, ids=lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else None
)
def test_a_tile_that_is_taken_does_not_spill(arch, tile, kind):
    plan = f"fprop:video:{tile.m}x{tile.n}x{tile.k}:w{tile.warps}:s{tile.stages}"
    dtype, precision = (torch.bfloat16, "ieee") if kind == "half" else (torch.float32, "tf32")
    found = rows.figures(Row(plan, arch=arch, dtype=dtype, precision=precision, filters=512, prologue=RMS))
    assert found.spills == found.stack_bytes == 0


@pytest.mark.parametrize("mode", [pytest.param("replicate", marks=SLOW), "reflect", pytest.param("circular", marks=SLOW)])
@pytest.mark.parametrize("upsample", [1, pytest.param(2, marks=SLOW)])
def test_a_padding_mode_takes_the_instructions_that_the_model_counts(mode, upsample):
    plain, found = (rows.figures(Row(TILE, upsample=upsample), {"BOUNDS": bounds}) for bounds in ("bits", mode))
    assert found.spills == found.stack_bytes == 0 and not found.trip.serialized
    assert found.trip.instructions - plain.trip.instructions <= video.MODE_INSTRUCTIONS[mode]


@pytest.mark.parametrize("arch", [90, pytest.param(80, marks=SLOW), pytest.param(100, marks=SLOW)])
def test_a_shared_reduction_does_not_spill(arch):
    found = rows.figures(Row(f"{TILE}:split2", arch=arch, channels=1024, filters=512))
    assert found.spills == found.stack_bytes == 0 and not found.trip.serialized


def test_summed_taps_take_a_trip_of_the_magnified_frame():
    every, found = (rows.figures(Row(TILE, upsample=2, summed=summed)) for summed in (False, True))
    assert found.spills == found.stack_bytes == 0 and found.trip.instructions <= every.trip.instructions


@pytest.mark.parametrize("arch", [90, pytest.param(80, marks=SLOW), pytest.param(100, marks=SLOW)])
@pytest.mark.parametrize("last", [True, pytest.param(False, marks=SLOW)], ids=["channels-last", "contiguous"])
def test_a_residual_and_groups_do_not_spill(arch, last):
    found = rows.figures(Row(arch=arch, residual=True, groups=2, channels=384, filters=384, channels_last=last))
    assert found.spills == found.stack_bytes == 0 and not found.trip.serialized


SHAPE = (1, 384, 4, 60, 104)
LAYOUTS = {"channels_last": channels_last_strides(SHAPE), "contiguous": dense_strides(SHAPE, (4, 3, 2, 1, 0))}


def own_kernels(layout):
    """(step, pointers before its arguments, prologue) of the kernels of statistics and of a prologue apart."""
    x, half, wide = (SHAPE, LAYOUTS[layout]), Pointer(torch.bfloat16), Pointer(torch.float32)
    first, second, _ = launch.prepare_group(x, "bfloat16", 32, 1e-6, False)
    yield first, (half, wide), {}
    yield second, (wide, half, half, wide, wide), {}
    yield launch.prepare_rms(x, "bfloat16", 1e-6), (half, wide), {}
    values = Pointers(wide, wide, wide, *launch.packed((0,) * 4))
    yield launch.prepare_apply(x, "bfloat16", "silu", 0.01), (half, half), {"prologue": values}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("arch", [90, pytest.param(80, marks=SLOW), pytest.param(100, marks=SLOW)])
def test_kernels_of_statistics_do_not_spill(arch, layout):
    for step, pointers, more in own_kernels(layout):
        constants = dict(step.constants)
        warps = constants.pop("num_warps")
        given = dict(zip(step.kernel.arg_names, (*pointers, *step.arguments), strict=False)) | more | constants
        found = audit(compile_ahead(step.kernel, given, arch=arch, num_warps=warps, num_stages=3))
        assert found.spills == found.stack_bytes == 0, step.kernel.__name__
