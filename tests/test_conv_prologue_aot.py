"""The kernel that gathers pixels with a prologue, compiled ahead of time: no spill in any tile that the model takes, and the
instructions that it counts.

Run apart from the interpreter: `pytest -m aot`.
"""

import itertools
from dataclasses import replace

import pytest
import torch

from bench.aot import Pointer, compile_ahead
from bench.audit import DTYPES, operands
from bench.sass import audit
from costmodel import prologue as model
from costmodel.ahead import Ways, quickest
from costmodel.device import find_device
from costmodel.families.padded import MENU, prologue_fits
from costmodel.problem import ConvProblem, Pass
from costmodel.prologue import Prologue
from costmodel.resources import resource_key, resource_table
from costmodel.tiling import Call, Plan
from tritonconv import launch
from tritonconv.families import launchers
from tritonconv.kernels.epilogue import Fused
from tritonconv.kernels.prologue import Prologue as Pointers
from tritonconv.launch import DTYPES as NAMES
from tritonconv.normalize.launch import packed
from tritonconv.prepared import FusedKey
from tritonconv.steps import clamped

pytestmark = pytest.mark.aot
SLOW = pytest.mark.slow
GPU = {80: "a100", 90: "h200", 100: "b200"}
#: One image for all rows of a tile, one of their own, and values per pixel, with the activation of most instructions.
ONE, OWN, RMS = Prologue("silu"), Prologue("silu", each_image=True), Prologue("gelu", True, True, True, each_image=True)
WIDE = ConvProblem.conv((32, 256, 28, 28), (256, 256, 3, 3), (1, 1), (1, 1), (1, 1))
NARROW = ConvProblem.conv((32, 35, 57, 57), (37, 35, 7, 7), (2, 2), (3, 3), (1, 1), padding_mode=("zeros", "circular"))


def call_of(problem, kind, last, prologue, epilogue=""):
    dtype, precision = DTYPES[kind]
    a, b, out = operands(problem, Pass.FPROP, last)
    described = launch.describe(problem, Pass.FPROP, a, b, out)
    return Call(problem, Pass.FPROP, NAMES[dtype], precision, *described, epilogue, prologue), (a, b, out)


def figures(problem, plan, kind, arch, last=True, prologue=None, residual=False):
    """The audit of a plan's kernel, whose prologue has the tensors that it asks for."""
    call, keys = call_of(problem, kind, last, prologue)
    fused = FusedKey(None, None, keys[2], "relu", 0.01, False) if residual else None
    laid = launchers()["padded"].laid(replace(plan, together=prologue is not None), call, *keys)
    a, b, out = launch.describe(laid.problem, Pass.FPROP, *laid[2:5])
    prepared = clamped(launch.prepare(laid.plan, replace(call, a=a, b=b, out=out), *laid[2:5], 1, fused), arch)
    main, element = prepared.main, Pointer(DTYPES[kind][0])
    given = {"a": element, "b": element, "bias": element, "out": element, "": None, "workspace": Pointer(torch.float32)}
    arguments = dict(zip(main.kernel.arg_names, main.values(given), strict=False)) | main.constants
    if prologue is not None:
        wide = Pointer(torch.float64 if kind == "fp64" else torch.float32)
        named = (wide if there else None for there in (prologue.scale, prologue.shift, prologue.rstd))
        arguments["prologue"] = Pointers(*named, *packed((256,) * 4))
    if residual:
        arguments["fused"] = Fused(None, None, element, None, *prepared.fused)
    warps, stages = arguments.pop("num_warps"), arguments.pop("num_stages")
    return audit(compile_ahead(main.kernel, arguments, arch=arch, num_warps=warps, num_stages=stages))


@pytest.mark.parametrize("prologue", [ONE, pytest.param(OWN, marks=SLOW), pytest.param(RMS, marks=SLOW)], ids=str)
def test_a_trip_takes_the_instructions_that_the_model_counts(prologue):
    plan = Plan.parse("fprop:padded:128x128x64:w8:s3")
    plain, found = (figures(WIDE, plan, "half", 90, prologue=each) for each in (None, prologue))
    assert found.spills == found.stack_bytes == 0 and not found.trip.serialized
    counted = model.extra_instructions(prologue, plan.tile, prologue.each_image)
    assert found.trip.instructions - plain.trip.instructions == pytest.approx(counted, rel=0.12)


def taken():
    """Each tile that the model may take, with each way that a prologue may be."""
    for arch, kind, last, prologue in itertools.product(GPU, DTYPES, (True, False), (ONE, OWN, RMS)):
        for tile in MENU[kind]:
            often = (arch, kind, last, prologue, *tile[:3]) == (80, "half", True, RMS, 64, 64, 32)
            yield pytest.param(arch, kind, last, tile, prologue, marks=() if often else SLOW)


def named(value):
    return "x".join(map(str, value)) if isinstance(value, tuple) else None


@pytest.mark.parametrize("arch, kind, last, tile, prologue", [*taken()], ids=named)
def test_a_tile_that_is_taken_does_not_spill(arch, kind, last, tile, prologue):
    problem, reach = (WIDE, "wide") if last else (NARROW, "narrow")
    plan = Plan(Pass.FPROP, "padded", *tile)
    plain = resource_table()[resource_key(plan, kind, reach, arch)]
    call, _ = call_of(problem, kind, last, prologue)
    if plain.spills or not prologue_fits(call, tile, reach, arch):
        pytest.skip("the model does not take it")
    found = figures(problem, plan, kind, arch, last, prologue)
    assert found.spills == found.stack_bytes == 0


@pytest.mark.parametrize("arch", [pytest.param(80, marks=SLOW), 90, pytest.param(100, marks=SLOW)])
@pytest.mark.parametrize("last", [True, pytest.param(False, marks=SLOW)], ids=["channels-last", "contiguous"])
@pytest.mark.parametrize("prologue", [ONE, pytest.param(RMS, marks=SLOW)], ids=str)
def test_a_plan_that_is_chosen_with_a_residual_does_not_spill(arch, last, prologue):
    """A pointwise layer, where the prologue pays together."""
    problem = ConvProblem.conv((4, 256, 28, 28), (64, 256, 1, 1), (1, 1), (0, 0), (1, 1))
    call, _ = call_of(problem, "half", last, prologue, "tensors")
    plans = [p for p in quickest(Ways(call, replace(call, prologue=None)), find_device(GPU[arch])) if p.family == "padded"]
    for plan in plans:
        found = figures(problem, plan, "half", arch, last, prologue, True)
        assert found.spills == found.stack_bytes == 0 and not found.trip.serialized, plan
    assert plans
