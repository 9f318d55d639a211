"""The kernels of the deformable convolution compiled ahead of time: no spill under any plan that is chosen, and about as many
instructions as their time is predicted from.

Run apart from the interpreter: `pytest -m aot`.
"""

from dataclasses import replace

import pytest
import torch

from bench.deform import GPU, LAYERS, compiled
from costmodel import deform as model
from costmodel import deform_backward
from costmodel.device import find_device
from costmodel.problem import Pass

pytestmark = pytest.mark.aot
SLOW = pytest.mark.slow
EVEN = LAYERS[1]
#: Channels and filters that end inside a block; groups of both kinds; three channels; offset groups of 8 channels.
KINDS = {
    "even": EVEN,
    "odd": replace(EVEN, channels=100, filters=50, stride=2),
    "grouped": replace(EVEN, groups=4, offset_groups=2),
    "three": replace(EVEN, channels=3, filters=16),
    "narrow offset groups": LAYERS[3],
}
ARITHMETIC = {
    "bfloat16": (torch.bfloat16, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "float32": (torch.float32, "ieee"),
    "float64": (torch.float64, "ieee"),
}


def each():
    for arch in GPU:
        for kind in KINDS:
            for name in ARITHMETIC:
                if name == "bfloat16" or kind in ("even", "odd"):
                    often = (arch, kind, name) == (90, "even", "bfloat16")
                    yield pytest.param(arch, kind, name, marks=() if often else SLOW)


@pytest.mark.parametrize("arch, kind, name", list(each()))
def test_no_plan_that_is_chosen_spills(arch, kind, name):
    for kernel in ("forward", "columns", "weights", "scatter"):
        found = compiled(KINDS[kind], kernel, arch, *ARITHMETIC[name])
        assert found.spills == found.stack_bytes == 0, kernel


@pytest.mark.parametrize("arch", [pytest.param(arch, marks=SLOW) for arch in GPU])
def test_no_plan_of_the_menu_spills(arch):
    call, device = EVEN.call(), find_device(GPU[arch])
    for kernel, plans in (
        ("forward", model.candidates(call, device)),
        ("columns", deform_backward.candidates(call, Pass.DGRAD, device)),
        ("weights", deform_backward.candidates(call, Pass.WGRAD, device)),
    ):
        assert plans
        for plan in plans:
            found = compiled(EVEN, kernel, arch, plans=str(plan))
            assert found.spills == found.stack_bytes == 0, plan


@pytest.mark.parametrize("arch", [pytest.param(arch, marks=SLOW) for arch in GPU])
def test_contiguous_tensors_are_copied_and_do_not_spill(arch):
    call, device = EVEN.call(channels_last=False), find_device(GPU[arch])
    assert model.select(call, device).pack == deform_backward.select(call, Pass.DGRAD, device).pack == ("a", "b")
    for kernel in ("forward", "columns", "weights", "scatter"):
        found = compiled(EVEN, kernel, arch, channels_last=False)
        assert found.spills == found.stack_bytes == 0, kernel


@pytest.mark.parametrize("kernel", ["forward", "columns", "weights"])
def test_a_trip_takes_about_as_many_instructions_as_predicted(kernel):
    """The inner trip of the columns kernel is without the pixels that its outer loop reads, which the model shares out."""
    call, device = EVEN.call(), find_device(GPU[90])
    which = {"columns": Pass.DGRAD, "weights": Pass.WGRAD}.get(kernel)
    plan = deform_backward.select(call, which, device) if which else model.select(call, device)
    found = compiled(EVEN, kernel)
    predicted = model.trip_instructions(call, plan)
    if kernel == "columns":
        assert found.trip.instructions <= predicted <= found.trip.instructions + 120
    else:
        assert found.trip.instructions == pytest.approx(predicted, rel=0.15)
    assert found.trip.widest_load == 16


def test_the_scatter_reads_whole_lines_of_columns():
    found = compiled(EVEN, "scatter")
    assert found.trip.widest_load == 16 and found.registers <= 64
