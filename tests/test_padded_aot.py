"""The kernels of padding modes compiled ahead of time: no spill under any plan that is chosen, and copies that are pipelined.

Run apart from the interpreter: `pytest -m aot`.
"""

import math

import pytest
import torch
from test_fused_aot import KINDS, compiled_ahead

from bench.aot import Pointer, compile_ahead
from bench.audit import DTYPES, compile_prepared, kernel_arguments, operands, prepared_launch
from bench.sass import audit
from costmodel.device import find_device
from costmodel.families import families
from costmodel.families.gemm import epilogue_fits
from costmodel.families.padded import MENU
from costmodel.families.tma import menu
from costmodel.problem import ConvProblem, Pass
from costmodel.resources import resource_key, resource_table
from costmodel.tiling import Call, Plan, itemsize
from tritonconv import launch
from tritonconv.families import launcher, launchers, written
from tritonconv.families.written import FOLD_REGISTERS
from tritonconv.launch import DTYPES as NAMES
from tritonconv.layout import channels_last_strides, dense_strides

pytestmark = pytest.mark.aot
SLOW = pytest.mark.slow
GPU = {80: "a100", 90: "h200", 100: "b200"}
#: Layers of weather models and others: wide, contiguous with odd sizes, in space, in groups, one channel per group.
LAYERS = {
    "wide": ConvProblem.conv((4, 256, 181, 360), (256, 256, 3, 3), (1, 1), (1, 1), (1, 1), padding_mode=("zeros", "circular")),
    "odd": ConvProblem.conv((2, 37, 45, 51), (53, 37, 5, 3), (2, 1), (4, 2), (1, 2), padding_mode=("reflect", "replicate")),
    "space": ConvProblem.conv((1, 32, 9, 30, 40), (48, 32, 3, 3, 3), (1, 2, 2), (1, 1, 1), (1, 1, 1), padding_mode="replicate"),
    "groups": ConvProblem.conv((4, 128, 28, 28), (128, 32, 3, 3), (1, 1), (1, 1), (1, 1), 4, padding_mode="circular"),
    "depthwise": ConvProblem.conv((4, 96, 56, 56), (96, 1, 7, 7), (1, 1), (3, 3), (1, 1), 96, padding_mode="circular"),
}


def each():
    for arch in GPU:
        for name in LAYERS:
            for kind in DTYPES:
                for which in Pass:
                    often = (arch, kind) == (90, "half") and (name, which) in (("wide", Pass.FPROP), ("odd", Pass.WGRAD))
                    if kind == "half" or name in ("wide", "odd"):
                        yield pytest.param(arch, name, kind, which, marks=() if often else SLOW)


@pytest.mark.parametrize("arch, name, kind, which", list(each()))
def test_no_plan_that_is_chosen_spills(arch, name, kind, which):
    """Contiguous tensors, which take more addresses, but for the wide layer."""
    (dtype, precision), problem, last = DTYPES[kind], LAYERS[name], name == "wide"
    a, b, out = operands(problem, which, last)
    call = Call(problem, which, NAMES[dtype], precision, *launch.describe(problem, which, a, b, out))
    _, plan = families()["padded"].quickest(call, find_device(GPU[arch]), math.inf)
    laid = launchers()[plan.family].laid(plan, call, a, b, out)
    seen = Call(laid.problem, which, call.dtype, precision, *launch.describe(laid.problem, which, *laid[2:5]))
    found = compile_prepared(launch.prepare(laid.plan, seen, *laid[2:5], None if which == Pass.WGRAD else 1), dtype, arch)
    assert found.spills == found.stack_bytes == 0 and not found.trip.serialized, plan
    if name == "wide" and which != Pass.DGRAD and kind == "half":
        assert found.trip.widest_load == 16, plan


@pytest.mark.parametrize("kind, activation, residual, keep", KINDS)
@pytest.mark.parametrize("arch", [pytest.param(80, marks=SLOW), pytest.param(90, marks=SLOW), pytest.param(100, marks=SLOW)])
def test_the_largest_tile_with_an_epilogue_does_not_spill(arch, kind, activation, residual, keep):
    for arithmetic in ("half", "tf32"):
        dtype, precision = DTYPES[arithmetic]
        fitting = (tile for tile in MENU[arithmetic] if epilogue_fits(kind, "wide", tile, itemsize(NAMES[dtype]), arch))
        plans = (Plan(Pass.FPROP, "padded", *tile) for tile in fitting)
        plan = next(p for p in plans if resource_table()[resource_key(p, arithmetic, "wide", arch)].spills == 0)
        problem = families()["padded"].samples["wide"]
        found = compiled_ahead(problem, plan, dtype, precision, arch, activation, residual, keep)
        assert found.spills == found.stack_bytes == 0 and not found.trip.serialized, plan


LAYOUTS = {"rows": False, "channels last": True}


def compiled(step, dtype, arch, **given):
    """The audit of a step on tensors of `dtype`; `given` are those of other types."""
    tensors = {name: given.get(name, Pointer(dtype)) for name in step.tensors}
    arguments = dict(zip(step.kernel.arg_names, step.values(tensors), strict=False)) | step.constants
    return audit(compile_ahead(step.kernel, arguments, arch=arch, maxnreg=arguments.pop("maxnreg", None)))


@pytest.mark.parametrize("arch", [pytest.param(80, marks=SLOW), 90, pytest.param(100, marks=SLOW)])
@pytest.mark.parametrize("name, last", [("wide", True), ("odd", False), pytest.param("space", False, marks=SLOW)])
def test_the_fold_does_not_spill(arch, name, last):
    plan = Plan(Pass.DGRAD, "padded", 64, 64, 32, 4, 4)
    prepared = prepared_launch(LAYERS[name], plan, torch.bfloat16, "ieee", last)
    (step,) = prepared.after
    found = compiled(step, torch.bfloat16, arch, workspace=Pointer(prepared.between))
    assert found.spills == found.stack_bytes == 0 and found.registers <= FOLD_REGISTERS


@pytest.mark.parametrize("arch", [pytest.param(80, marks=SLOW), 90, pytest.param(100, marks=SLOW)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float32, marks=SLOW)])
@pytest.mark.parametrize(
    "name, x, made",
    [
        ("wide", True, True),
        ("depthwise", False, False),
        pytest.param("wide", False, True, marks=SLOW),
        pytest.param("odd", False, True, marks=SLOW),
        pytest.param("space", False, False, marks=SLOW),
        pytest.param("space", True, False, marks=SLOW),
    ],
)
def test_the_copy_and_its_fold_do_not_spill(name, x, made, dtype, arch):
    """Between tensors of any layouts; vectors of 16 bytes where both are channels-last."""
    problem = LAYERS[name]
    keys = []
    for shape, last in ((problem.input_shape, x), (problem.written_out.input_shape, made)):
        keys.append((shape, channels_last_strides(shape) if last else dense_strides(shape, range(len(shape) - 1, -1, -1))))
    copy = compiled(written.copy(*keys, problem, NAMES[dtype]), dtype, arch)
    fold = compiled(written.fold(*reversed(keys), problem, NAMES[dtype], None, False), dtype, arch)
    assert copy.spills == copy.stack_bytes == fold.spills == fold.stack_bytes == 0
    assert copy.registers <= 96 and fold.registers <= FOLD_REGISTERS


@pytest.mark.parametrize(
    "tile", [pytest.param(tile, marks=SLOW if i else ()) for i, tile in enumerate(menu(Pass.DGRAD, "half"))]
)
def test_boxes_whose_results_have_32_bits_do_not_spill(tile):
    """The input gradient behind a copy: results of 16 bits would leave as boxes, of 32 each thread stores its own."""
    problem = LAYERS["wide"]
    a, b, out = operands(problem, Pass.DGRAD, True)
    call = Call(problem, Pass.DGRAD, "bfloat16", "ieee", *launch.describe(problem, Pass.DGRAD, a, b, out))
    plan = Plan(Pass.DGRAD, "copied-tma", *tile)
    of = launcher(plan.family)
    laid = of.laid(plan, call, a, b, out)
    seen = Call(laid.problem, Pass.DGRAD, "bfloat16", "ieee", *launch.describe(laid.problem, Pass.DGRAD, *laid[2:5]))
    prepared = launch.prepare(laid.plan, seen, *laid[2:5], None)
    assert laid.copies.sums == torch.float32 and "out" not in prepared.main.boxes
    kernel, arguments = kernel_arguments(prepared, torch.bfloat16)
    options = {name: arguments.pop(name) for name in ("num_warps", "num_stages")}
    found = audit(compile_ahead(kernel, arguments | {"out": Pointer(torch.float32)}, arch=90, **options))
    assert found.spills == found.stack_bytes == 0 and not found.trip.serialized
