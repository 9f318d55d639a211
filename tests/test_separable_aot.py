"""The kernel of a depthwise and a pointwise convolution compiled ahead of time: no spill for any plan of the menu, and about as
many instructions as its time is predicted from.

Run apart from the interpreter: `pytest -m aot`.
"""

from dataclasses import replace

import pytest
import torch

from bench.separable import LAYERS, Layer, compiled
from costmodel import separable as model
from costmodel.device import find_device
from costmodel.resources import compiled_for
from costmodel.tiling import Plan
from tritonconv.prepared import FusedKey

pytestmark = pytest.mark.aot
SLOW = pytest.mark.slow
DEVICES = {80: find_device("a100"), 90: find_device("h100"), 100: find_device("b200")}
FILTERS = {"3x3": Layer("", 192, 56, 24), "3x3 stride 2": Layer("", 192, 56, 24, 3, 2)}
FILTERS |= {"5x5": Layer("", 192, 56, 24, 5), "5x5 stride 2": Layer("", 192, 56, 24, 5, 2)}


def menu():
    """(filter, plan, arch, dtype) of every row of the menu; what is not slow is what MobileNets take on an H100."""
    for arch, device in DEVICES.items():
        for name, layer in FILTERS.items():
            for plan in model.candidates(layer.call(), device):
                often = arch == 90 and name == "3x3" and plan.step == (1, 1, 4, 2) and plan.pack
                yield pytest.param(name, str(plan), arch, torch.bfloat16, marks=() if often else SLOW)
        for dtype in (torch.float32, torch.float64):
            (plan,) = model.candidates(FILTERS["3x3"].call(dtype), device)
            yield pytest.param("3x3", str(plan), arch, dtype, marks=SLOW)


@pytest.mark.parametrize("name, plan, arch, dtype", list(menu()))
def test_no_plan_of_the_menu_spills(name, plan, arch, dtype):
    layer, plan = FILTERS[name], Plan.parse(plan)
    found = compiled(layer, plan, dtype, arch)
    assert found.spills == 0 and found.stack_bytes == 0
    assert found.registers <= model.registers(layer.call(dtype), plan, arch)
    assert not found.trip.serialized and not any(form.operands == "RS" for form in found.trip.mma)
    if arch == 90 and dtype == torch.bfloat16:
        assert found.trip.widest_load >= 4
        assert found.trip.instructions == pytest.approx(model.trip_instructions(layer.call(), plan, arch), rel=0.15)
        outside = found.instructions - found.trip.instructions
        assert outside == pytest.approx(model.program_instructions(layer.call(), plan), rel=0.2)


@pytest.mark.parametrize(
    "change, after, arch",
    [
        pytest.param({"channels": 144}, "residual", 90, marks=SLOW),
        pytest.param({"activation": "gelu"}, "gelu", 90, marks=SLOW),
        pytest.param({"activation": "silu"}, "residual", 80, marks=SLOW),
        pytest.param({"activation": "silu"}, "residual", 100, marks=SLOW),
        pytest.param({"channels": 100, "filters": 50, "size": 29}, "relu", 90, marks=SLOW),
        pytest.param({"channels": 240, "kernel": 5}, "residual", 90, marks=SLOW),
    ],
)
def test_no_plan_spills_whatever_the_channels_and_what_follows(change, after, arch):
    layer = replace(FILTERS["3x3"], **change)
    y = layer.keys()[3]
    follows = FusedKey(None, None, y, "", 0.0, False) if after == "residual" else FusedKey(None, None, None, after, 0.0, False)
    found = model.candidates(layer.call(), DEVICES[arch])
    assert found
    for plan in found:
        got = compiled(layer, plan, torch.bfloat16, arch, after=follows)
        assert got.spills == 0 and got.stack_bytes == 0, plan


@pytest.mark.parametrize("channels_last, bias", [(True, None), pytest.param(False, 1, marks=SLOW)])
def test_a_kernel_without_biases_and_of_contiguous_tensors_compiles(channels_last, bias):
    """Contiguous tensors run so where a plan asks for it: more addresses than registers, which costs time alone."""
    plan = Plan.parse("fprop:separable:64x64x32:w4:s1:step1x1x1x4:pack-b")
    found = compiled(FILTERS["3x3"], plan, channels_last=channels_last, bias=bias)
    assert found.registers <= model.ALL and (found.spills == 0 or not channels_last)


def test_every_layer_of_the_list_has_a_kernel():
    for layer in LAYERS:
        for device in DEVICES.values():
            assert model.candidates(layer.call(), device), (layer, compiled_for(device.capability))
