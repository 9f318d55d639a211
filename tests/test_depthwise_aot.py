"""Depthwise kernels compiled ahead of time for sm_80, sm_90 and sm_100: no spill, and as few instructions as promised.

Run apart from the interpreter: `pytest -m aot`.
"""

from dataclasses import replace

import pytest
import torch

from bench import depthwise as rows
from bench.aot import Pointer, compile_ahead, signature_of
from bench.audit import compile_prepared, kernel_arguments, operands
from bench.sass import audit
from costmodel.device import DEVICES
from costmodel.families.depthwise import max_registers, registers
from costmodel.families.depthwise_choice import quickest
from costmodel.plan import select
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Call
from tritonconv.kernels.depthwise_wgrad import strip_reduce_kernel
from tritonconv.kernels.epilogue import Fused
from tritonconv.launch import describe, prepare_call
from tritonconv.prepared import FusedKey

pytestmark = pytest.mark.aot

DEVICE = {80: "NVIDIA A100-SXM4-80GB", 90: "NVIDIA H100 80GB HBM3", 100: "NVIDIA B200"}


@pytest.mark.parametrize("row", rows.ROWS, ids=lambda row: f"{row.name}:{row.plan}".replace(" ", "-"))
def test_an_output_takes_no_more_instructions_than_promised(row):
    got = rows.figures(row)
    assert got.audited.spills == 0 and got.audited.stack_bytes == 0
    assert got.per_output <= row.limit


def problem(shape, kernel, stride, padding, dilation=1, multiplier=1):
    rank = len(kernel)
    spread = [value if isinstance(value, tuple) else (value,) * rank for value in (stride, padding, dilation)]
    return ConvProblem.conv(shape, (shape[1] * multiplier, 1, *kernel), *spread, shape[1])


#: Layers of networks: MobileNet, EfficientNet, ConvNeXt, RepLKNet, X3D, Mamba, Conformer; and odd ones.
LAYERS = {
    "3x3": problem((64, 144, 56, 56), (3, 3), 1, 1),
    "3x3 on 7x7": problem((64, 960, 7, 7), (3, 3), 1, 1),
    "3x3 stride 2": problem((64, 144, 56, 56), (3, 3), 2, 1),
    "5x5 stride 2": problem((64, 240, 28, 28), (5, 5), 2, 2),
    "5x5": problem((64, 672, 14, 14), (5, 5), 1, 2),
    "7x7": problem((64, 96, 56, 56), (7, 7), 1, 3),
    "13x13": problem((64, 256, 32, 32), (13, 13), 1, 6),
    "31x31": problem((64, 128, 56, 56), (31, 31), 1, 15),
    "63x63": problem((4, 64, 64, 64), (63, 63), 1, 31),
    "3x3x3": problem((16, 54, 16, 56, 56), (3, 3, 3), (1, 2, 2), 1),
    "line 4": problem((8, 2048, 2048), (4,), 1, 3),
    "line 31": problem((16, 512, 1024), (31,), 1, 15),
    "dilated": problem((16, 37, 65, 65), (3, 3), 1, 2, 2),
    "multiplier": problem((16, 24, 33, 33), (3, 3), 2, 1, 1, 2),
    "groups of 2": rows.grouped(2, 2, (32, 512, 56, 56), (3, 3)),
    "groups of 3, stride 2": rows.grouped(3, 3, (16, 96, 57, 57), (3, 3), 2),
    "groups of 4": rows.grouped(4, 4, (64, 128, 56, 56), (3, 3)),
    "groups of 2, 5x5": rows.grouped(2, 2, (32, 64, 56, 56), (5, 5)),
    "groups of 2 and 4, 3x3x3": rows.grouped(2, 4, (1, 64, 8, 28, 28), (3, 3, 3)),
    "transposed multiplier": rows.grouped(3, 1, (32, 384, 56, 56), (3, 3)),
    "transposed multiplier, stride 2": rows.grouped(2, 1, (32, 512, 56, 56), (4, 4), 2),
}


#: Left to `make aot-slow`: others of their kind are compiled in `make test`.
SLOW = ("groups of 3, stride 2", "groups of 2, 5x5", "groups of 2 and 4, 3x3x3", "transposed multiplier, stride 2")


def launch(layer: ConvProblem, which: Pass, channels_last: bool, dtype: str, device: str):
    a, b, out = operands(layer, which, channels_last)
    call = Call(layer, which, dtype, "ieee", *describe(layer, which, a, b, out))
    _, plan = quickest(call, DEVICES[device])  # of this family; large filters may take another
    assert plan is not None and registers(call, plan) <= max_registers(call, DEVICES[device])
    bias = None if which == Pass.WGRAD else 1
    return prepare_call(which, layer, getattr(torch, dtype), "ieee", -1, a, b, out, bias, str(plan))


@pytest.mark.parametrize("channels_last", [True, False], ids=["channels-last", "contiguous"])
@pytest.mark.parametrize(
    "name, arch",
    [pytest.param(name, 90, marks=pytest.mark.slow if name in SLOW else ()) for name in LAYERS]
    + [
        pytest.param(name, arch, marks=pytest.mark.slow)
        for arch in (80, 100)
        for name in ("3x3", "5x5 stride 2", "7x7", "31x31", "line 31", "groups of 2", "groups of 4", "transposed multiplier")
    ],
)
def test_the_plan_chosen_does_not_spill(name, arch, channels_last):
    for which in Pass:
        prepared = launch(LAYERS[name], which, channels_last, "bfloat16", DEVICE[arch])
        found = compile_prepared(prepared, torch.bfloat16, arch)
        assert found.spills == 0 and found.stack_bytes == 0, prepared.plan


@pytest.mark.parametrize("channels_last", [True, False], ids=["channels-last", "contiguous"])
@pytest.mark.parametrize(
    "name, arch",
    [("3x3", 90), ("7x7", 90)]
    + [pytest.param(name, 90, marks=pytest.mark.slow) for name in ("31x31", "3x3x3", "line 4", "groups of 2")]
    + [pytest.param(*each, marks=pytest.mark.slow) for each in (("3x3", 80), ("3x3", 100), ("7x7", 100), ("groups of 4", 100))],
)
def test_an_epilogue_does_not_spill(name, arch, channels_last):
    """Everything: scale, shift, a residual, GELU and the value before it; and next to nothing. By the plan chosen."""
    layer, place = LAYERS[name], Pointer(torch.bfloat16)
    for which in (Pass.FPROP, Pass.DGRAD):
        a, b, out = operands(layer, which, channels_last)
        for key in (FusedKey(1, 1, out, "gelu", 0.0, True), FusedKey(None, None, None, "relu", 0.0, False)):
            call = Call(layer, which, "bfloat16", "ieee", *describe(layer, which, a, b, out), key.kind(out))
            plan = select(call, DEVICES[DEVICE[arch]])
            assert plan.family == "depthwise"
            bias = 1 if key.scale else None
            prepared = prepare_call(which, layer, torch.bfloat16, "ieee", -1, a, b, out, bias, str(plan), key)
            kernel, arguments = kernel_arguments(prepared, torch.bfloat16)
            tensors = (place, place, place, place) if key.scale else (None, None, None, None)
            arguments["fused"] = Fused(*tensors, *prepared.fused)
            warps, stages = arguments.pop("num_warps"), arguments.pop("num_stages")
            found = audit(compile_ahead(kernel, arguments, arch=arch, num_warps=warps, num_stages=stages))
            assert found.spills == 0 and found.stack_bytes == 0, plan


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", ["3x3", "7x7", "31x31", "3x3x3", "groups of 2", "groups of 4", "transposed multiplier"])
def test_other_types_do_not_spill(name, dtype):
    for channels_last in (True, False):
        for which in Pass:
            prepared = launch(LAYERS[name], which, channels_last, dtype, DEVICE[90])
            found = compile_prepared(prepared, getattr(torch, dtype), 90)
            assert found.spills == 0 and not found.trip.mma, prepared.plan


@pytest.mark.parametrize("which", list(Pass), ids=str)
def test_one_kernel_serves_all_image_sizes(which):
    """A plan compiles once: sizes that are even or odd, 1 or a multiple of 16, change no constant and no type."""
    plan = {
        Pass.FPROP: "fprop:depthwise:4x64x1:w1:s3:rows8",
        Pass.DGRAD: "dgrad:depthwise:4x64x1:w1:s3:taps1x3",
        Pass.WGRAD: "wgrad:depthwise:4x64x1:w1:s3:split2:rows8",
    }[which]
    found = set()
    for batch, height, width in ((1, 9, 16), (16, 32, 57), (17, 33, 112)):
        layer = problem((batch, 64, height, width), (3, 3), 1, 1)
        a, b, out = operands(layer, which, True)
        prepared = prepare_call(which, layer, torch.float16, "ieee", -1, a, b, out, None, plan)
        kernel, arguments = kernel_arguments(prepared, torch.float16)
        constants = tuple(sorted((k, str(v)) for k, v in prepared.main.constants.items()))
        for option in ("num_warps", "num_stages"):
            del arguments[option]
        found.add((constants, str(signature_of(kernel, arguments).types), str(signature_of(kernel, arguments).attrs)))
    assert len(found) == 1


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_sum_of_strips_compiles(dtype, arch):
    prepared = launch(LAYERS["7x7"], Pass.WGRAD, True, str(dtype).removeprefix("torch."), DEVICE[90])
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    pointers = [Pointer(accumulator), Pointer(dtype)]
    arguments = dict(zip(strip_reduce_kernel.arg_names, [*pointers, *prepared.after[0].arguments], strict=False))
    found = audit(compile_ahead(strip_reduce_kernel, arguments | prepared.after[0].constants, arch=arch))
    assert found.spills == 0 and found.trip.classes["ldg"] > 0


#: An axis of 2^30 elements travels as 64 bits, though 32 hold its offsets; one of 2^31 takes 64 throughout.
LONG = {
    "half_of_it_1d": ConvProblem.conv((1, 1, 2**30 + 38), (1, 1, 3), (1,), (1,), (1,)),
    "pixels_1d": ConvProblem.conv((2, 1, 2**31 + 77), (1, 1, 3), (1,), (1,), (1,)),
    "half_of_it_2d": ConvProblem.conv((1, 1, 1, 2**30 + 40), (1, 1, 3, 3), (1, 1), (1, 1), (1, 1)),
    "strided": ConvProblem.conv((1, 1, 2**31 + 77), (1, 1, 3), (3,), (1,), (1,)),  # the result's axis travels as 32
}


@pytest.mark.parametrize("which", list(Pass), ids=str)
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n == "strided" else ()) for n in LONG])
def test_an_axis_of_2_30_elements_compiles(name, which):
    """In all passes by the plans chosen, and by taps in a loop."""
    layer = LONG[name]
    a, b, out = operands(layer, which, False)
    looped = {Pass.FPROP: "fprop:depthwise:8x1x32:w1:s3:taps1x3", Pass.DGRAD: "dgrad:depthwise:12x1x32:w1:s3:taps1x3"}
    for plan in ("", looped[which]) if which in looped else ("",):
        call = Call(layer, which, "float16", "ieee", *describe(layer, which, a, b, out))
        plan = plan or str(select(call, DEVICES[DEVICE[90]]))
        prepared = prepare_call(which, layer, torch.float16, "ieee", -1, a, b, out, None, plan)
        assert prepared.main.constants["INDEX"].name == ("int32" if "half" in name else "int64")
        found = compile_prepared(prepared, torch.float16, 90)
        assert prepared.plan.family == "depthwise" and found.spills == 0


def test_an_expanded_axis_of_2_31_elements_has_64_bit_coordinates():
    layer = LONG["pixels_1d"]
    a, b, out = operands(layer, Pass.WGRAD, False)
    expanded = [(shape, (0, 0, 0)) for shape, _ in (a, b)]
    prepared = prepare_call(Pass.WGRAD, layer, torch.float16, "ieee", -1, *expanded, out, None, "")
    assert prepared.main.constants["INDEX"].name == "int64"


def test_an_image_above_2_31_elements_gets_64_bit_offsets():
    large = problem((1, 64, 8192, 8192), (3, 3), 1, 1)
    a, b, out = operands(large, Pass.FPROP, True)
    plan = "fprop:depthwise:4x64x1:w1:s3:rows8"
    prepared = prepare_call(Pass.FPROP, large, torch.float16, "ieee", -1, a, b, out, 1, plan)
    assert prepared.main.constants["INDEX"].name == "int64"
    assert compile_prepared(prepared, torch.float16, 90).spills == 0
    small = replace(large, input_size=(512, 512))
    a, b, out = operands(small, Pass.FPROP, True)
    assert (
        prepare_call(Pass.FPROP, small, torch.float16, "ieee", -1, a, b, out, 1, plan).main.constants["INDEX"].name == "int32"
    )
