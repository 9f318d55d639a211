"""`plan=` in all its forms: a plan, its words, a family's name, a dictionary by pass, what `explain` found and printed."""

import re

import pytest
import torch
import torch.nn.functional as F

import costmodel
import tritonconv
from costmodel.device import find_device
from costmodel.forecast import choose
from costmodel.problem import Pass
from costmodel.tiling import Plan
from tritonconv import explain, plans

X, W = torch.randn(1, 16, 6, 6), torch.randn(16, 16, 3, 3)
WORDS = "fprop:gather:32x32x16:w4:s3"


def leaves():
    return X.clone().requires_grad_(), W.clone().requires_grad_()


FORMS = {
    "a plan": Plan.parse(WORDS),
    "words": WORDS,
    "words with blanks": "fprop gather 32x32x16 w4 s3",
    "a column of costmodel layer": "plan    fprop gather\n        32x32x16\n        w4 s3",
    "without the pass": "gather 32x32x16",
    "several": [WORDS, "wgrad:gather:16x16x32"],
    "several in words": f"{WORDS};wgrad:gather:16x16x32",
    "by pass": {"fprop": "gather:32x32x16", "dgrad": Plan.parse("dgrad:gather:32x16x16:w4:s3")},
    "by direction": {"forward": WORDS},
    "explained": explain(tritonconv.conv2d, X, W, plan=WORDS),
    "printed": str(explain(tritonconv.conv2d, X, W, plan=WORDS)),
    "explained, one pass": explain(tritonconv.conv2d, X, W, plan=WORDS).plans["fprop"],
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_the_same_plan_and_runs(name, launches):
    x, w = leaves()
    y = tritonconv.conv2d(x, w, plan=FORMS[name])
    torch.testing.assert_close(y, F.conv2d(X, W), rtol=1e-4, atol=1e-4)
    y.sum().backward()
    found = explain(tritonconv.conv2d, X, W, plan=FORMS[name])
    assert str(found.plans["fprop"]) == WORDS and "forced by plan=" in str(found)
    if "several" in name:
        assert found.plans["wgrad"].tile[:3] == (16, 16, 32)
    assert launches() == {"fprop": 1, "dgrad": 1, "wgrad": 1}


def test_what_explain_prints_names_every_pass():
    found = explain(tritonconv.conv_transpose2d, X, W, device="h100")
    read = plans.text(str(found), "conv_transpose2d")
    assert sorted(read.split(";")) == sorted(map(str, found.plans.values())) and len(found.plans) == 3


def test_what_costmodel_prints_is_read():
    """The plans of `costmodel layer`, whose words go on below where the terminal is narrow, and those of a `Forecast`."""
    pytest.importorskip("rich")
    from typer.testing import CliRunner

    from costmodel.reports.commands import app

    words = ["layer", "conv2d", "256x56x56", "k3", "p1", "n32", "--device", "h100"]
    printed = CliRunner().invoke(app, words, env={"COLUMNS": "40"}).output
    shown = re.findall(r"^plan .*\n(?: +(?!fprop|dgrad|wgrad)\S.*\n)*", printed, re.MULTILINE)
    read = [plans.text(each, "conv2d") for each in shown]
    layer = costmodel.layer("conv2d 256x56x56 k3 p1 n32")
    want = [str(choose(layer.problem, which, find_device("h100"), dtype="bfloat16", precision="ieee")) for which in Pass]
    assert read == want and any("\n" in each.strip() for each in shown)
    (row,) = costmodel.trace(torch.nn.Conv2d(16, 16, 3), (1, 16, 6, 6)).on("h100")
    assert plans.text(row.plan, "conv2d") == row.plan


@pytest.mark.parametrize("name", ["gather", {"fprop": "gather"}, "fprop gather", "fprop:gather;dgrad:gather"], ids=str)
def test_a_family_takes_its_tile_of_least_time(name):
    found = explain(tritonconv.conv2d, X, W, plan=name, device="h100")
    assert found.plans["fprop"].family == "gather" and "forced by plan=" in str(found)
    narrow = torch.randn(1, 16, 30, 30), torch.randn(16, 1, 3, 3)
    assert explain(tritonconv.conv2d, *narrow, groups=16, device="h100").plans["fprop"].family == "depthwise"
    assert explain(tritonconv.conv2d, *narrow, groups=16, device="h100", plan=name).plans["fprop"].family == "gather"
    assert (
        explain(tritonconv.conv2d, *narrow, groups=16, device="h100", plan={"wgrad": "gather"}).plans["fprop"].family
        == "depthwise"
    )


REFUSED = [
    ("nope", ValueError, r"conv2d\(\): plan 'nope' names no family .* families are gather, patch, tma, depthwise, band"),
    ("", ValueError, "has no words: None leaves the choice"),
    ("gather 3", ValueError, "plan 'fprop:gather:3' is not of the form"),
    ("winograd 64x64x64", ValueError, "there is no family 'winograd'"),
    ("tma", ValueError, "plan names the family 'tma', which has no plan of its own choice for fprop of conv2d .* interpreter"),
    ("fprop:video:32x16x32", ValueError, "video"),
    ("wgrad:gather:16x16x32", ValueError, "is for wgrad, which does not run: weight requires no gradient"),
    ("dgrad gather", ValueError, "'dgrad:gather' is for dgrad, which does not run: input requires no gradient"),
    (["wgrad gather", "dgrad gather"], ValueError, "is for wgrad, which does not run"),
    ({"wgrad": "gather"}, ValueError, "is for wgrad, which does not run"),
    ([WORDS, "gather 16x16x16"], ValueError, "plan has 2 plans of fprop: '.*' and '.*'"),
    ({"backward": "gather"}, ValueError, "plan names the pass 'backward', passes are forward, fprop, dgrad, wgrad"),
    ({"dgrad": WORDS}, ValueError, "plan of dgrad must be one plan of dgrad"),
    ({"fprop": [WORDS]}, ValueError, "plan of fprop must be one plan of fprop"),
    (3, TypeError, r"argument 'plan' must be a costmodel.tiling.Plan, its words, .* got plan=3"),
]


@pytest.mark.parametrize("plan, kind, words", REFUSED, ids=lambda value: str(value)[:30])
def test_what_is_no_plan_of_the_call_is_refused_in_words(plan, kind, words, launches):
    with pytest.raises(kind, match=words):
        tritonconv.conv2d(X, W, plan=plan)
    assert not launches()


def test_an_op_called_by_itself_refuses_other_words(launches):
    for words in ("nonsense", "nonsense:gather", "fprop:nonsense", "fprop:gather:3"):
        with pytest.raises(ValueError, match=r"nonsense|not of the form"):
            torch.ops.tritonconv.fprop(X, W, None, [1, 1], [0] * 4, [1, 1], 1, words)
    assert not launches()


def test_a_plan_of_a_pass_that_does_run():
    """Gradients of either operand, and none; a table of a whole step may be used in all of them."""
    step = explain(tritonconv.conv2d, X, W)
    for needs in ((), (0,), (1,), (0, 1)):
        x, w = (t.clone().requires_grad_(i in needs) for i, t in enumerate((X, W)))
        tritonconv.conv2d(x, w, plan=step)
        for i, which in enumerate(("dgrad", "wgrad")):
            if i in needs:
                tritonconv.conv2d(x, w, plan=f"{which} gather")
            else:
                with pytest.raises(ValueError, match="does not run"):
                    tritonconv.conv2d(x, w, plan=f"{which} gather")
    per_sample = torch.func.grad(lambda w: tritonconv.conv2d(X, w, plan="wgrad:gather:16x16x32").sum())
    torch.testing.assert_close(per_sample(W), torch.func.grad(lambda w: F.conv2d(X, w).sum())(W), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="'fprop:gather:16x16x16:w4:s3' is for fprop, which does not run: input requires"):
        tritonconv.conv_transpose2d(X, W, plan="fprop:gather:16x16x16:w4:s3")


@pytest.mark.parametrize("plan", [WORDS, "gather", Plan.parse(WORDS)], ids=["words", "family", "plan"])
def test_under_torch_compile(plan, launches):
    torch._dynamo.reset()
    run = torch.compile(lambda x: tritonconv.conv2d(x, W, plan=plan), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(run(X), F.conv2d(X, W), rtol=1e-4, atol=1e-4)
    assert launches() == {"fprop": 1}
    torch._dynamo.reset()


def test_the_functions_with_kernels_of_their_own():
    x, w = torch.randn(1, 4, 2, 5, 5), torch.randn(4, 4, 2, 3, 3)
    found = explain(tritonconv.causal_conv3d, x, w, plan="video 32x16x32")
    assert str(found.plans["forward"]) == "fprop:video:32x16x32:w4:s3" and "forced by plan=" in str(found)
    for plan in (found, str(found), "video", "fprop:video:32x16x32", {"forward": found.plans["forward"]}):
        y = tritonconv.causal_conv3d(x, w, plan=plan, return_cache=False)
        torch.testing.assert_close(y, tritonconv.causal_conv3d(x, w, return_cache=False))
    for plan, words in (("wgrad:gather:16x16x16", "gradients take the plans of conv3d"), ("gather", "families are video")):
        with pytest.raises(ValueError, match=rf"causal_conv3d\(\): .*{words}"):
            tritonconv.causal_conv3d(x, w, plan=plan)
    pair = torch.randn(1, 8, 6, 6), torch.randn(8, 1, 3, 3), torch.randn(4, 8, 1, 1)
    separable = tritonconv.depthwise_separable_conv2d
    for way in ("fused", "apart"):
        found = explain(separable, *pair, plan=way)
        again = explain(separable, *pair, plan=found)
        assert again.plans == found.plans and "forced by plan=" in str(again)
        torch.testing.assert_close(separable(*pair, plan=found), separable(*pair), rtol=1e-4, atol=1e-4)
    assert "separable" in explain(separable, *pair, plan="separable").plans
    with pytest.raises(ValueError, match=r"depthwise_separable_conv2d\(\): plan 'both' names no family"):
        separable(*pair, plan="both")
