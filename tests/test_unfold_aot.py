"""The kernels of `unfold` and `fold` compiled ahead of time: no spill under any plan of the menu, and about as many
instructions as their time is predicted from.

Run apart from the interpreter: `pytest -m aot`.
"""

from dataclasses import replace

import pytest
import torch

from bench.unfold import GPU, LAYERS, Layer, compiled
from costmodel import unfold as model
from costmodel.device import find_device
from costmodel.problem import Pass

pytestmark = pytest.mark.aot
SLOW = pytest.mark.slow
#: Windows that overlap, strides and three channels, patches, rank 1, and rank 3 with a dilation.
KINDS = {
    "even": replace(LAYERS[1], stride=1),
    "strided": LAYERS[0],
    "patches": LAYERS[4],
    "line": Layer("", 24, (999,), 5, 2, 2, batch=4),
    "volume": Layer("", 20, (9, 30, 31), 3, 2, 1, 2, batch=2),
}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


def each():
    for arch in GPU:
        for kind in KINDS:
            for name in DTYPES:
                if name != "float32" or kind == "even":
                    often = (arch, kind, name) == (90, "strided", "bfloat16")
                    yield pytest.param(arch, kind, name, marks=() if often else SLOW)


@pytest.mark.parametrize("arch, kind, name", list(each()))
def test_no_plan_that_is_chosen_spills(arch, kind, name):
    for which in (Pass.FPROP, Pass.DGRAD):
        for last in (False, True):
            found = compiled(KINDS[kind], which, arch, DTYPES[name], last)
            assert found.spills == found.stack_bytes == 0, (which, last)


@pytest.mark.parametrize("arch", [pytest.param(arch, marks=SLOW) for arch in GPU])
@pytest.mark.parametrize("last", [False, True])
def test_no_plan_of_the_menu_spills(arch, last):
    for which in (Pass.FPROP, Pass.DGRAD):
        plans = model.candidates(KINDS["volume"].call(which, "float64", last), find_device(GPU[arch]))
        tiles = {plan.tile._replace(k=1): plan for plan in plans if not plan.pack}
        assert len(tiles) > 5
        for plan in (
            plan for tile, plan in tiles.items() if tile.m * tile.n in (model.SIZES[which][0], model.SIZES[which][-1])
        ):
            found = compiled(KINDS["volume"], which, arch, torch.float64, last, str(plan))
            assert found.spills == found.stack_bytes == 0, plan


#: Plans whose loop the compiler does not unroll whole, so that a trip can be counted: kind, pass, whether channels come first,
#: tile, and the loads of a thread in a trip.
COUNTED = [
    ("even", Pass.FPROP, False, "256x1x9", 2),
    ("even", Pass.FPROP, False, "64x8x9", 4),
    ("even", Pass.FPROP, True, "32x32x9", 1),
    ("strided", Pass.FPROP, False, "256x1x49", 2),
    ("even", Pass.DGRAD, False, "512x1x1", 4),
    ("strided", Pass.DGRAD, False, "512x1x1", 4),
]


@pytest.mark.parametrize(
    "kind, which, last, tile, loads", [pytest.param(*row, marks=() if i % 3 else SLOW) for i, row in enumerate(COUNTED)]
)
def test_a_trip_takes_about_as_many_instructions_as_predicted(kind, which, last, tile, loads):
    """Two trips that the compiler has laid together (Triton 3.6) count as two."""
    plan = f"{which}:unfold:{tile}:w4:s1"
    call = KINDS[kind].call(which, "bfloat16", last)
    predicted = model.trip_of(call, model.checked(call, model.Plan.parse(plan))).instructions
    trip = compiled(KINDS[kind], which, 90, torch.bfloat16, last, plan).trip
    assert trip.instructions * loads / trip.classes["ldg"] == pytest.approx(predicted, rel=0.25)


def test_columns_are_stored_and_channels_are_loaded_in_vectors():
    """Two elements per thread as one store; 16 bytes of channels as one load."""
    found = compiled(KINDS["even"], Pass.FPROP, 90, torch.bfloat16, False, "fprop:unfold:256x1x9:w4:s1")
    assert found.trip.classes["ldg"] == 2 * found.trip.classes["stg"] == 2
    found = compiled(KINDS["even"], Pass.FPROP, 90, torch.bfloat16, True, "fprop:unfold:32x32x9:w4:s1")
    assert found.trip.widest_load == 16 and found.trip.classes["stg"] == 1
