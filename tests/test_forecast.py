"""The public names of `costmodel`: they load when asked for, and `predict` is the arithmetic that chooses plans."""

import json
import subprocess
import sys

import pytest

import costmodel
from costmodel import ConvProblem, Pass
from costmodel.device import find_device
from costmodel.plan import candidates, select
from costmodel.tiling import Call
from costmodel.timing import predict as predict_call

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


def test_unknown_passes_devices_and_dtypes_are_refused():
    with pytest.raises(ValueError, match="a pass is fprop, dgrad or wgrad, got 'forward'"):
        costmodel.predict(LAYER, "forward")
    with pytest.raises(ValueError, match="h101"):
        costmodel.predict(LAYER, device="h101")
    with pytest.raises(ValueError, match="bf16"):
        costmodel.predict(LAYER, device="v100-sxm2", dtype="bfloat16")


def test_every_public_name_is_there():
    for name in costmodel.__all__:
        assert getattr(costmodel, name).__module__.startswith("costmodel."), name
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
