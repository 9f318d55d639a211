"""The public names of `costmodel`: they load when asked for, and `predict` is the arithmetic that chooses plans."""

import json
import subprocess
import sys

import pytest
import torch

import costmodel
from costmodel import ConvProblem, Pass
from costmodel.device import INTERPRETER, find_device
from costmodel.legality import refusal
from costmodel.plan import candidates, select
from costmodel.plan import predict as predict_call
from costmodel.tiling import Call, Operand, channels_last
from tritonconv import launch

LAYER = ConvProblem.conv((32, 64, 56, 56), (64, 64, 3, 3), (1, 1), (1, 1), (1, 1))


@pytest.mark.parametrize("which", list(Pass))
def test_without_a_plan_it_is_the_chosen_one(which):
    device = find_device("h200")
    call = Call(LAYER, which, "bfloat16")
    chosen = costmodel.predict(LAYER, which, device="h200")
    assert chosen == predict_call(call, select(call, device), device)
    assert chosen.seconds == min(costmodel.predict(LAYER, which, plan, device).seconds for plan in candidates(call, device))


def test_a_plan_may_be_words():
    words = "fprop:gather:128x128x64:w8:s3"
    assert costmodel.predict(LAYER, "fprop", words).tiles == 32 * 56 * 56 // 128
    with pytest.raises(ValueError, match=r"plan fprop.* is for fprop, the prediction asked for is of dgrad"):
        costmodel.predict(LAYER, "dgrad", words)
    with pytest.raises(ValueError, match="plan 'nonsense'"):
        costmodel.predict(LAYER, "fprop", "nonsense")


GROUPED = ConvProblem.conv((2, 12, 9, 9), (12, 2, 3, 3), (1, 1), (1, 1), (1, 1), 6)
STEM = ConvProblem.conv((2, 3, 9, 9), (8, 3, 3, 3), (2, 2), (1, 1), (1, 1))
IMPOSSIBLE = [
    (LAYER, "fprop:depthwise:4x32x1:w4:s3", "groups of 64 channels"),
    (LAYER, "fprop:patch:128x128x64:w8:s3", "windows do not tile the input"),
    (LAYER, "fprop:gather:128x128x24:w8:s3", "block_k must be a power of two of at least 16, got 24"),
    (LAYER, "fprop:gather:128x128x64:w3:s3", "warps must be a power of two of at most 32, got 3"),
    (LAYER, "fprop:gather:2048x1024x16:w8:s1", "each two blocks must span at most 1048576 values, got 2048x1024x16"),
    (LAYER, "fprop:gather:128x128x64:w8:s0", "stages must be positive"),
    (LAYER, "fprop:gather:128x128x64:w8:s3:group0", "group must be positive, got 0"),
    (LAYER, "fprop:gather:128x128x64:w8:s3:split7", "1 blocks of the reduction cannot be split 7 ways evenly"),
    (LAYER, "fprop:gather:128x128x64:w8:s3:split0", "split must be 1"),
    (LAYER, "fprop:gather:128x128x64:w8:s3:pack-c", "pack names operands a and b, got c"),
    (LAYER, "fprop:gather:128x128x64:w8:s3:fold", "fold is for fprop and wgrad of up to 8 channels"),
    (LAYER, "wgrad:gather:64x64x64:w4:s4:step1x1x8x4", "powers of two with product 64"),
    (STEM, "dgrad:gather:64x64x64:w4:s4:fold", "fold is for fprop and wgrad"),
    (LAYER, "fprop:tma:64x48x16:w4:s3", "block_n must be a power of two from 16 to 256, got 48"),
    (LAYER, "fprop:tma:64x64x16:w4:s3:split2", "split must be 1"),
    (GROUPED, "fprop:gather:16x16x16:w4:s3:merge7", "merge must divide the 6 groups, got 7"),
    (GROUPED, "dgrad:gather:16x16x16:w4:s3:merge0", "merge must divide the 6 groups, got 0"),
    (GROUPED, "fprop:depthwise:4x12x1:w1:s3", "block_n must be a power of two"),
]


@pytest.mark.parametrize("problem, words, reason", IMPOSSIBLE, ids=[words for _, words, _ in IMPOSSIBLE])
def test_a_plan_that_cannot_run_is_neither_predicted_nor_counted_nor_launched(problem, words, reason):
    which = Pass(words.split(":")[0])
    for refused in (
        lambda: costmodel.predict(problem, which, words),
        lambda: costmodel.cost(problem, which, words),
        lambda: launch.choose(which, problem, torch.bfloat16, "ieee", -1, Operand(), Operand(), Operand(), words),
    ):
        with pytest.raises(ValueError, match=f"plan {words}.* cannot run {which} of .*: .*{reason}"):
            refused()


def test_what_does_not_fit_a_device_is_not_predicted_for_it():
    words = "fprop:gather:256x256x64:w8:s3"
    with pytest.raises(ValueError, match="it needs about 196608 bytes of shared memory, the device has"):
        costmodel.predict(LAYER, "fprop", words, "l4")
    assert costmodel.predict(LAYER, "fprop", words, "h100").seconds > 0


@pytest.mark.parametrize("problem", [LAYER, GROUPED, STEM], ids=str)
@pytest.mark.parametrize("which", list(Pass))
def test_every_candidate_can_run(problem, which):
    for device in (find_device("h200"), INTERPRETER):
        call = channels_last(problem, which, "bfloat16")
        for plan in candidates(call, device):
            assert not refusal(call, plan, None if device.interpreted else device), plan


def test_unknown_passes_devices_and_dtypes_are_refused():
    with pytest.raises(ValueError, match="a pass is fprop, dgrad or wgrad, got 'forward'"):
        costmodel.predict(LAYER, "forward")
    with pytest.raises(ValueError, match="h101"):
        costmodel.predict(LAYER, device="h101")
    with pytest.raises(ValueError, match="bf16"):
        costmodel.predict(LAYER, device="v100-sxm2", dtype="bfloat16")


def test_every_public_name_is_there():
    for name in costmodel.__all__:
        assert name == "__version__" or getattr(costmodel, name).__module__.startswith("costmodel."), name
    with pytest.raises(AttributeError, match="no attribute 'convolve'"):
        costmodel.convolve  # noqa: B018


def test_results_are_rows_in_four_formats():
    costs = [costmodel.cost(LAYER, which) for which in Pass]
    assert json.loads(costmodel.to_json(costs))[0]["useful_macs"] == LAYER.useful_macs
    for write in (costmodel.to_csv, costmodel.to_markdown, costmodel.to_latex):
        assert write(costs).count(str(LAYER.macs)) == 3


def test_names_load_what_they_need_when_they_need_it():
    code = (
        "import sys, costmodel; costmodel.predict, costmodel.roofline, costmodel.solve, costmodel.detect; "
        "print([m for m in ('torch', 'triton', 'sympy', 'numpy', 'typer', 'rich', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
