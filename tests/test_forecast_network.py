"""A network from Python: its summary, its times on a device, what is alive at once, two side by side, and every export."""

import csv
import io
import json
from dataclasses import fields

import pytest
import torch
from torch import nn

import costmodel
from costmodel.device import find_device


class Residual(nn.Module):
    """Two convolutions, and a sum of what lies before them."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace)

    def forward(self, x):
        return x + self.second(self.relu(self.first(x)))


X = (2, 4, 16, 16)
SIZE = 4 * 2 * 4 * 16 * 16  # bytes of x in float32; the layer between has twice the channels


@pytest.fixture(scope="module")
def net():
    return costmodel.trace(Residual(), X)


def test_memory_is_what_is_alive_at_once(net):
    """Forward: x stays for the sum; relu reads one tensor of 2 SIZE and writes another. Training keeps x, relu's result twice
    as large (its gradient asks for the result), and meets the gradients of both: at relu's gradient x, relu's result, the
    gradient of it and the gradient that is made, beside the gradient that goes round by the sum."""
    assert net.peak_activation_bytes() == (1 + 2 + 2) * SIZE
    assert net.peak_activation_bytes(training=True) == (1 + 2 + 2 + 2) * SIZE
    assert net.peak_activation_bytes(dtype="bf16") == 5 * SIZE // 2
    inplace = costmodel.trace(Residual(inplace=True), X)
    assert inplace.peak_activation_bytes() == (1 + 2 + 1) * SIZE  # relu needs no second tensor, the last layer's result counts


def test_memory_of_a_line_in_training_grows_with_its_length():
    """Each of n layers keeps its input until its gradient; forward alone two tensors are alive."""
    line = costmodel.trace(nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(5))), X)
    assert line.peak_activation_bytes() == 2 * SIZE
    assert line.peak_activation_bytes(training=True) == 6 * SIZE


def test_duplicates_and_hooks_are_counted_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Conv2d(4, 4, 3, padding=1)
            self.two = self.one
            self.tied = nn.Conv2d(4, 4, 3, padding=1, bias=False)
            self.tied.weight = nn.Parameter(self.one.weight.detach())  # another parameter of the same memory

        def forward(self, x):
            return self.tied(self.two(self.one(x)))

    model = Twice()
    calls = []
    for hook in (lambda module, args, out: calls.append(module) or 2 * out,):
        model.one.register_forward_hook(hook)
    kept = [*model.parameters()]
    found = costmodel.trace(model, X)
    assert all(now is before for now, before in zip(model.parameters(), kept, strict=True))
    weights = 4 * 4 * 9
    assert found.parameters == found.trainable == weights + 4 == sum(layer.parameters for layer in found.layers)
    assert [layer.op for layer in found.layers if layer.forward.bytes] == ["conv2d", "mul", "conv2d", "mul", "conv2d"]
    assert [layer.module for layer in found.layers if layer.op == "mul"] == ["one", "one"] and len(calls) == 2
    assert not any(len(module._forward_hooks) > (module is model.one) for module in model.modules())


def test_printed_it_is_a_summary(net):
    text = str(net)
    assert len(text) < 1700 and max(map(len, text.splitlines())) <= 80
    for words in ("Residual, input 2x4x16x16, bf16", "parameters", "MAC, forward pass", "MAC, training step", "time on h100"):
        assert words in text
    half = (net.peak_activation_bytes(training=step, dtype="bf16") for step in (False, True))
    assert "peak activations    {} forward, {} training".format(*(f"{size / 1e3:.1f} kB" for size in half)) in text
    assert "first" in text and "second" in text
    assert repr(net) == "<costmodel.Network Residual: 4 operators, 2 convolutions, 588 parameters, input 2x4x16x16>"


def test_the_default_is_one_everywhere(net):
    """bfloat16 for a model of float32, which nobody chose; what was asked for stays."""
    assert net.on("h100").arithmetic.dtype == "bfloat16" and net.on("v100").arithmetic.dtype == "float16"
    asked = costmodel.trace(Residual(), X, dtype="fp32")
    assert asked.on("h100").arithmetic.word == "fp32" and asked.on("h100", "tf32").arithmetic.word == "tf32"
    assert costmodel.trace(Residual().double(), X).on("h100").arithmetic.dtype == "float64"
    layer = costmodel.conv2d((2, 4, 16, 16), (8, 4, 3, 3), padding=1)
    problem = layer.problem
    for name in ("h100,bf16=100", "v100"):
        device = find_device(name)
        assert costmodel.roofline(problem, name) == costmodel.roofline(problem, device, device.default_dtype)
        assert costmodel.roofline(problem, device) == layer.roofline(name)
        assert costmodel.predict(problem, device=name) == layer.predict(device)
    assert costmodel.cost(problem) == layer.cost() == costmodel.cost(problem, dtype=torch.bfloat16)


@pytest.mark.parametrize("names", [("fp16", "float16", "half", torch.float16), ("fp32", "float32", "float", torch.float32)])
def test_one_set_of_dtype_names(net, names):
    problem = costmodel.conv2d((2, 4, 16, 16), (8, 4, 3, 3)).problem
    asked = [
        lambda dtype: costmodel.cost(problem, dtype=dtype),
        lambda dtype: costmodel.training_cost(problem, dtype=dtype),
        lambda dtype: costmodel.roofline(problem, "h100", dtype),
        lambda dtype: costmodel.crossing_batch(problem, "h100", dtype),
        lambda dtype: costmodel.predict(problem, device="h100", dtype=dtype),
        lambda dtype: costmodel.symbolic(2).subs(problem, dtype),
        lambda dtype: net.on("h100", dtype).seconds,
        lambda dtype: costmodel.trace(Residual(), X, dtype=dtype).inference,
        lambda dtype: net.peak_activation_bytes(dtype=dtype),
    ]
    for ask in asked:
        first, *rest = (ask(name) for name in names)
        assert all(found == first for found in rest)
        with pytest.raises(ValueError, match="dtype 'int3' is unknown: one of fp16, bf16"):
            ask("int3")


def test_tf32_is_a_dtype_or_a_precision():
    problem = costmodel.conv2d((2, 64, 16, 16), (64, 64, 3, 3)).problem
    for ask in (
        costmodel.roofline,
        lambda p, device, dtype, precision: costmodel.predict(p, device=device, dtype=dtype, precision=precision),
    ):
        assert ask(problem, "h100", "tf32", precision="ieee") == ask(problem, "h100", "fp32", precision="tf32")
        assert ask(problem, "h100", "tf32", precision="ieee") != ask(problem, "h100", "fp32", precision="ieee")


@pytest.mark.parametrize("form", ["csv", "json", "markdown", "latex"])
def test_every_export_takes_a_network_a_layer_a_report_and_two(net, form, tmp_path):
    """As a function, and as a method that also keeps the text in a file."""
    write = getattr(costmodel, f"to_{form}")
    layer, forecast = costmodel.conv2d((2, 4, 16, 16), (8, 4, 3, 3)), net.on("h100")
    both = forecast.compare(net.on("t4"))
    for value, word in ((net, "first"), (layer, "wgrad"), (forecast, "first"), (forecast.report(), "first"), (both, "first")):
        text = write(value)
        assert word in text
        assert text == getattr(value, f"to_{form}")(tmp_path / form) == (tmp_path / form).read_text()
    with pytest.raises(TypeError, match="must be a network, a layer, a forecast, a report or a sequence of rows, got int"):
        costmodel.to_csv(3)


def test_what_is_no_network_is_not_compared(net):
    with pytest.raises(TypeError, match=r"other must be a costmodel\.Network, got str"):
        net.compare("h100")
    with pytest.raises(TypeError, match=r"other must be a costmodel\.Forecast or Network, got Sequential"):
        net.on("h100").compare(nn.Sequential())


def test_one_of_something_is_no_plural():
    alone = costmodel.trace(nn.Conv2d(3, 4, 3), (1, 3, 8, 8))
    assert "1 operator, 1 convolution, " in repr(alone) and "1 operator, 1 convolution among them" in str(alone)


def test_a_layer_as_json_names_itself_and_its_passes():
    layer = costmodel.conv_transpose2d((2, 4, 16, 16), (4, 8, 3, 3), stride=2)
    found = json.loads(layer.to_json())
    assert costmodel.layer(found["layer"]) == layer
    assert [row["what"] for row in found["passes"]] == [row.what for row in layer.table_rows()]


def test_exports_hold_the_counts(net, tmp_path):
    rows = [*csv.DictReader(io.StringIO(costmodel.to_csv(net)))]
    assert [row["name"] for row in rows] == [layer.name for layer in net.layers]
    assert sum(int(row["dense_macs"]) for row in rows) == net.inference.dense_macs
    found = json.loads(costmodel.to_json(net))
    assert found["parameters"] == net.parameters and found["training_activation_bytes"] == 7 * SIZE
    assert net.on("h100").to_csv(tmp_path / "r.csv") == (tmp_path / "r.csv").read_text()
    with pytest.raises(ValueError, match="name a file in a folder that exists"):
        net.on("h100").to_csv(tmp_path / "none" / "r.csv")


def test_a_forecast_is_its_rows_and_their_totals(net):
    found = net.on("h100", training=True)
    assert len(found) == len(found.rows) and [*found] == [*found.rows] and found[0] is found.rows[0]
    assert found.seconds == sum(row.seconds for row in found) and found.low < found.seconds < found.high
    assert "training step" in repr(found) and "By predicted time of the training step" in str(found)
    assert found.report().totals[1].seconds == found.seconds and found.report(depth=1).rows[0].name == "first"
    assert found.report().totals[0].bytes == net.in_dtype("bfloat16").inference.bytes
    assert {field.name for field in fields(found)} >= {"network", "device", "arithmetic", "training"}


def test_two_devices_and_two_networks_stand_side_by_side(net):
    devices = net.on("h100").compare(net.on("a100"))
    assert [*devices.names] == [find_device(name).name for name in ("h100", "a100")]
    times = [row.seconds for row in net.on("a100")]
    assert [pair.last_seconds for pair in devices.pairs] == times and devices.pairs[0].ratio > 1
    wider = costmodel.trace(nn.Sequential(nn.Conv2d(4, 64, 3)), X)
    both = net.compare(wider, "a100")
    assert both.names == ("Residual", "Sequential") and [pair.name for pair in both.pairs][-1] == "0"
    assert both.pairs[0].last_seconds is None and both.pairs[-1].first_seconds is None
    text = str(both)
    assert "parameters" in text and f"{wider.parameters / net.parameters:.2f}" in text
    assert costmodel.to_csv(both).startswith("name,op,first_seconds")
