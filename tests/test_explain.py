"""`explain` on a machine without the GPU: named devices, torch's own functions, layers and whole models."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tritonconv
from bench.models.small import UNet, Vocoder
from costmodel.device import find_device
from costmodel.plan import predict, select
from costmodel.tiling import channels_last
from tritonconv import convert, explain
from tritonconv.explain_model import ModelExplanation

X, W = torch.randn(2, 64, 28, 28), torch.randn(64, 64, 3, 3)


@pytest.mark.parametrize("name", ["a100", "h100", "b200"])
def test_a_device_that_is_not_here(name, launches):
    device = find_device(name)
    x, w = (t.to(torch.bfloat16, memory_format=torch.channels_last) for t in (X, W))
    found = explain(tritonconv.conv2d, x, w, padding=1, device=name)
    for which, plan in found.plans.items():
        call = channels_last(found.problem, which, "bfloat16", "tf32")
        assert plan == select(call, device) and found.predictions[which] == predict(call, plan, device)
    assert f"({device.name})" in str(found) and "interpreter" not in str(found) and not launches()
    assert str(explain(tritonconv.conv2d, x, w, padding=1, device=device)) == str(found)
    assert str(explain(tritonconv.conv2d, x.to("meta"), w.to("meta"), padding=1, device=name)) == str(found)
    assert "interpreter" in str(explain(tritonconv.conv2d, x, w, padding=1))  # nothing is kept


def test_every_function_takes_a_device():
    video = torch.randn(1, 8, 3, 9, 9), torch.randn(8, 8, 3, 3, 3)
    pair = torch.randn(1, 8, 9, 9), torch.randn(8, 1, 3, 3), torch.randn(4, 8, 1, 1)
    calls = [
        (tritonconv.conv2d_fused, (X, W)),
        (tritonconv.conv_transpose2d, (X, W)),
        (tritonconv.causal_conv1d, (torch.randn(1, 8, 9), torch.randn(8, 4))),
        (tritonconv.causal_conv3d, video),
        (tritonconv.depthwise_separable_conv2d, pair),
    ]
    for function, given in calls:
        assert "NVIDIA H100" in str(explain(function, *given, device="h100"))


def test_devices_that_cannot_be():
    with pytest.raises(ValueError, match="device 'h101' is unknown"):
        explain(tritonconv.conv2d, X, W, device="h101")
    with pytest.raises(RuntimeError, match=r"needs a GPU of compute capability 8.0 or newer.* Tesla V100.* has 7.0"):
        explain(tritonconv.conv2d, X, W, device="v100")


TORCHS = {
    "F.conv2d": (F.conv2d, (X, W, None, 2, 1)),
    "torch.conv2d": (torch.conv2d, (X, W, None, 2, 1)),
    "aten": (torch.ops.aten.conv2d.default, (X, W, None, [2, 2], [1, 1])),
}


@pytest.mark.parametrize("name", TORCHS)
def test_torchs_own_functions(name):
    function, given = TORCHS[name]
    assert str(explain(function, *given)) == str(explain(tritonconv.conv2d, X, W, None, 2, 1))


def test_torch_convolution():
    for transposed, ours in ((False, tritonconv.conv2d), (True, tritonconv.conv_transpose2d)):
        found = explain(torch.convolution, X, W, None, [2, 2], [1, 1], [1, 1], transposed, [0, 0], 1)
        assert str(found) == str(explain(ours, X, W, stride=2, padding=1))


def test_a_layer_is_its_call():
    for layer in (nn.Conv2d(64, 8, 3, padding=1), tritonconv.nn.Conv2d(64, 8, 3, padding=1)):
        want = explain(tritonconv.conv2d, X, layer.weight, layer.bias, padding=1, device="h100")
        assert str(explain(layer, X, device="h100")) == str(want) == str(explain(layer, (2, 64, 28, 28), device="h100"))


@pytest.mark.parametrize("how", ["torch's", "converted", "folded"])
def test_a_model_is_a_table(how, launches):
    model = UNet().eval()
    if how != "torch's":
        model = convert(model, fuse=how == "folded")
    found = explain(model, (2, 3, 16, 16), device="h100")
    assert isinstance(found, ModelExplanation) and found.device == find_device("h100").name and not launches()
    names = "a.0 a.3 b.0 b.3 c.0 c.3 up_b d.0 d.3 up_a e.0 e.3 last".split()
    assert [call.layer for call in found.calls] == names
    lines = str(found).splitlines()
    assert len(lines) == 2 + len(names) and all(
        line.startswith(call.layer) for line, call in zip(lines[2:], found.calls, strict=True)
    )
    x = torch.empty(2, 3, 16, 16)
    first = explain(tritonconv.conv2d, x, model.get_submodule("a.0").weight, padding=1, device="h100")
    if how != "folded":
        assert found.calls[0].explanation == first and str(first.plans["fprop"]) in lines[2]
    else:
        assert "followed in the same kernel by scale, shift, relu" in str(found.calls[0].explanation)
    total = sum(call.explanation.predictions[next(iter(call.explanation.plans))].seconds for call in found.calls)
    assert f"{1e6 * total:.4g} us predicted" in lines[0]
    model(torch.randn(1, 3, 8, 8))  # it is as it was


class Mixed(nn.Module):
    """One of each function of its own, and what no kernel takes."""

    def __init__(self):
        super().__init__()
        self.causal = tritonconv.nn.CausalConv1d(8, 4, activation="silu")
        self.video = tritonconv.nn.CausalConv3d(8, 8, 3, padding="same")
        self.pair = tritonconv.nn.DepthwiseSeparableConv2d(8, 8, 3, padding=1, activation="relu")
        self.wave = nn.Conv1d(8, 8, 3, dtype=torch.complex64)

    def forward(self, x):
        x = self.video(self.causal(x)[:, :, None, None])
        x = F.conv2d(self.pair(x[:, :, 0]), torch.ones(8, 8, 1, 1))
        return self.wave(x[:, :, 0].to(torch.complex64)).real


@pytest.mark.parametrize("device", [None, "h100"])
def test_every_kind_of_call_is_named(device, launches):
    found = explain(Mixed(), torch.randn(1, 8, 8), device=device)
    assert [call.layer for call in found.calls] == ["causal", "video", "pair", "", "wave"]
    assert [call.reason for call in found.calls] == ["", "", "", "", "torch's, its dtype is complex64"]
    kinds = [next(iter(call.explanation.plans)) for call in found.calls[:4]]
    assert kinds[:2] == ["forward", "forward"] and kinds[3] == "fprop" and kinds[2] in ("separable", "depthwise")
    assert "(the model)  conv2d n1 c8 1x8 -> 8 k1x1" in str(found) and not launches()
    assert all(line in str(found) for line in ("causal_conv1d conv1d n1", "causal_conv3d conv3d n1", "wave"))


def test_a_model_in_its_own_place():
    found = explain(Vocoder(), torch.randn(1, 8, 6))
    assert found.device == "interpreter" and len(found.calls) == 8
    transposed = [call for call in found.calls if "ups" in call.layer]
    assert all(list(call.explanation.plans) == ["dgrad", "fprop", "wgrad"] for call in transposed)
    with pytest.raises(ValueError, match=r"first \(ParametrizedConv1d\) does not take \[1, 9, 6\]"):
        explain(Vocoder(), torch.randn(1, 9, 6))
    with pytest.raises(ValueError, match="parameters without a shape"):
        explain(nn.LazyConv2d(3, 3), torch.randn(1, 9, 6, 6))


def test_what_where_leaves_to_torch_is_said():
    """Of torch's own calls, in the thread of the region; ours are ours."""
    model = nn.Sequential(nn.Conv2d(64, 8, 3), nn.Conv2d(8, 4, 1))
    with tritonconv.use(where=lambda call: call.problem.kernel_size == (3, 3) and call.which != "wgrad") as used:
        found = explain(F.conv2d, X, W)
        assert found.left == ("wgrad",) and str(found).splitlines()[-1] == "  left to torch: where= says so"
        assert explain(tritonconv.conv2d, X, W).left == ()
        table = explain(model, X)
        assert [call.explanation.left for call in table.calls] == [("wgrad",), ("fprop", "dgrad", "wgrad")]
        assert "torch's, where= says so" not in str(table).splitlines()[2]
        assert "torch's, where= says so" in str(table).splitlines()[3]
        assert [call.explanation.left for call in explain(convert(model), X).calls] == [(), ()]
        assert not used.record.counts
    assert explain(F.conv2d, X, W).left == ()
