"""Narrow groups: several of them as one, with weights that are block-diagonal, so that they fill a tensor-core tile."""

from dataclasses import replace

import pytest
import torch
from cases import Case
from oracle import check
from torch.utils._python_dispatch import TorchDispatchMode

import tritonconv
from costmodel.device import DEVICES, INTERPRETER
from costmodel.families.matrix import issued_macs, merged, vector_widths
from costmodel.families.matrix_choice import merges
from costmodel.families.matrix_time import extra_bytes, launches
from costmodel.plan import candidates, predict, select
from costmodel.problem import ConvProblem, Pass
from costmodel.recast import merge_groups
from costmodel.tiling import Call, Operand, Plan, channels_last
from tritonconv import launch
from tritonconv.layout import block_diagonal, channels_last_strides, diagonal_blocks, operand
from tritonconv.steps import Launch

H200 = DEVICES["NVIDIA H200"]
#: ResNeXt-50 32x4d's second stage, forward of 32 images.
RESNEXT = ConvProblem.conv((32, 128, 56, 56), (128, 4, 3, 3), (1, 1), (1, 1), (1, 1), 32)

CASES = [
    Case("conv2d", (2, 12, 6, 7), (16, 3, 3, 2), padding=1, groups=4),
    Case("conv2d", (2, 8, 6, 7), (8, 1, 3, 3), stride=2, padding=1, groups=8, dtype="bfloat16"),
    Case("conv2d", (2, 16, 5, 6), (8, 4, 1, 1), groups=4, dtype="float16"),
    Case("conv1d", (2, 8, 17), (16, 2, 3), dilation=2, groups=4),
    Case("conv3d", (1, 8, 4, 5, 5), (8, 2, 2, 2, 2), stride=2, groups=4),
    Case("conv_transpose2d", (2, 8, 5, 6), (8, 3, 3, 3), stride=2, padding=1, output_padding=1, groups=4),
    Case("conv_transpose1d", (2, 8, 9), (8, 2, 4), stride=3, groups=4),
]


def is_pointwise(case):
    return case.function == "conv2d" and case.weight[2:] == (1, 1)


PLANS = [
    "fprop:gather:32x16x16:w4:s3:merge{}",
    "dgrad:gather:32x16x16:w4:s3:merge{}",
    "wgrad:gather:16x16x32:w4:s3:split2:merge{}",
]


@pytest.mark.parametrize("merge", [2, 4])
@pytest.mark.parametrize(
    ("case", "family"),
    [*((case, "gather") for case in CASES), *((case, "patch") for case in CASES if is_pointwise(case))],
    ids=str,
)
def test_merged_groups_give_what_single_groups_give(case, family, merge, device, launched):
    plans = [Plan.parse(text.format(merge).replace("gather", family)) for text in PLANS]
    x, w, b = case.tensors("cpu")
    taken = tritonconv.explain(getattr(tritonconv, case.function), x, w, b, **case.arguments, plan=plans)
    assert {plan.merge for plan in taken.plans.values()} == {merge}
    assert f"{merge} groups laid together" in str(taken)
    check(case, device, plan=plans)
    assert set(launched()) >= {"fprop", "dgrad", "wgrad", "reduce"}


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("merge", [2, 3, 6])
def test_block_diagonal_weights_are_those_of_an_equal_dense_convolution(merge, channels_last):
    w = torch.randn(18, 2, 3, 4, dtype=torch.float64)
    w = w.to(memory_format=torch.channels_last) if channels_last else w
    x = torch.randn(1, 12, 5, 6, dtype=torch.float64)
    together = block_diagonal(w, 6, merge)
    assert together.shape == (18, 2 * merge, 3, 4) and together.stride() == channels_last_strides(together.shape)
    want, got = (
        torch.nn.functional.conv2d(x, *each) for each in ((w, None, 1, 0, 1, 6), (together, None, 1, 0, 1, 6 // merge))
    )
    torch.testing.assert_close(got, want)
    assert torch.equal(diagonal_blocks(together, 6, merge).flatten(0, 2), w)


class Copies(TorchDispatchMode):
    """The operators that write memory, besides kernels of this library: a launch each on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if not func.is_view and not name.startswith(("empty", "new_empty", "fill_")):  # memory of tests is filled
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("pack", [(), ("a",)])
@pytest.mark.parametrize("merge", [1, 2])
@pytest.mark.parametrize("which", list(Pass))
def test_every_launch_around_the_kernel_is_counted(which, merge, pack, monkeypatch):
    monkeypatch.setattr(Launch, "run", lambda *arguments: None)
    problem = ConvProblem.conv((2, 8, 6, 5), (12, 2, 3, 3), (1, 1), (1, 1), (1, 1), 4)
    x, w, dy = (torch.randn(shape) for shape in (problem.input_shape, problem.weight_shape, problem.output_shape))
    plan = Plan(which, "gather", 16, 16, 16, 4, 3, merge=merge, pack=pack)
    call = {Pass.FPROP: (launch.fprop, x, w, None), Pass.DGRAD: (launch.dgrad, dy, w, None), Pass.WGRAD: (launch.wgrad, dy, x)}
    function, *operands = call[which]
    with Copies() as copies:
        function(*operands, problem, str(plan))
    assert 1 + len(copies.names) == launches(which, pack, 1, merge), copies.names


def test_the_plan_of_a_resnext_layer_merges_its_groups():
    """From eight channels per group on; the depthwise kernels are candidates up to four (`test_depthwise_groups`)."""
    wider = replace(RESNEXT, in_channels=256, out_channels=256)
    for which in Pass:
        call = channels_last(wider, which, "bfloat16")
        chosen = select(call, H200)
        single = [plan for plan in candidates(call, H200) if plan.merge == 1]
        least = min(predict(call, plan, H200).seconds for plan in single)
        assert chosen.merge >= 4 and predict(call, chosen, H200).seconds < 0.7 * least
        assert predict(call, chosen, H200).seconds == min(predict(call, plan, H200).seconds for plan in candidates(call, H200))


def test_wide_groups_dense_layers_and_the_interpreter_do_not_merge():
    wide = ConvProblem.conv((8, 512, 14, 14), (512, 128, 3, 3), (1, 1), (1, 1), (1, 1), 4)
    for problem in (wide, replace(RESNEXT, groups=1)):
        assert merges(channels_last(problem, Pass.FPROP, "float16"), H200) == [1]
    assert merges(channels_last(RESNEXT, Pass.FPROP, "float16"), INTERPRETER) == [1]


def test_a_merged_call_is_that_of_the_merged_tensors():
    """Alignments: a group of four channels starts at any multiple of four, eight such groups at multiples of 32."""
    x, w, y = RESNEXT.input_shape, RESNEXT.weight_shape, RESNEXT.output_shape
    known = [operand(s, channels_last_strides(s), 32, axis) for s, axis in ((x, 1), (w, 0), (y, 1))]
    problem = merge_groups(RESNEXT, 8)
    wide = [operand(s, channels_last_strides(s), 4, a) for s, a in ((x, 1), (problem.weight_shape, 0), (y, 1))]
    call = Call(RESNEXT, Pass.FPROP, "float16", "ieee", *known)
    assert call == channels_last(RESNEXT, Pass.FPROP, "float16")
    seen = merged(call, 8)
    assert seen.problem == problem and [o.align for o in (seen.a, seen.b, seen.out)] == [o.align for o in wide] == [16] * 3
    plan = Plan.parse("fprop:gather:128x32x32:w4:s4")
    assert vector_widths(call, plan) == (4, 4) and vector_widths(call, replace(plan, merge=8)) == (8, 8)
    planes = Call(RESNEXT, Pass.FPROP, "float16", "ieee", Operand(4, 16, 16), known[1], known[2])
    assert merged(planes, 8).a == Operand(4, 16, 16)


def test_what_merging_adds_is_counted():
    call = channels_last(RESNEXT, Pass.FPROP, "float16")
    single, eight = Plan.parse("fprop:gather:128x32x32:w4:s4"), Plan.parse("fprop:gather:128x32x32:w4:s4:merge8")
    weights = 2 * 128 * 4 * 9
    # cleared and filled, 8 times as large; the kernel then reads 8 times the weights
    assert extra_bytes(call, eight) - extra_bytes(call, single) == (8 + 2) * weights + 7 * weights
    assert launches(Pass.FPROP, (), 1, 8) == 3 and launches(Pass.WGRAD, (), 2, 8) == 3
    assert issued_macs(RESNEXT, single) == 32 * 784 * 1 * 128 * 32 * 32 * 9
    assert issued_macs(RESNEXT, eight) == 4 * 784 * 1 * 128 * 32 * 32 * 9


def test_a_merge_that_does_not_divide_the_groups_is_refused(device):
    x, w = torch.randn(1, 6, 5, 5, device=device), torch.randn(6, 2, 3, 3, device=device)
    with pytest.raises(ValueError, match="merge must divide the 3 groups, got 2"):
        tritonconv.conv2d(x, w, groups=3, plan=Plan.parse("fprop:gather:16x16x16:w4:s3:merge2"))
