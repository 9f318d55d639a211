"""`costmodel.conv2d` and its siblings, and `costmodel.layer`: the same layer by torch's arguments and by words."""

import doctest
import inspect
import re

import numpy
import pytest
import torch
from torch.nn import functional as F

import costmodel
import costmodel.layers
from costmodel import Pass

CASES = {
    "conv1d": ((2, 4, 9), (6, 2, 3), {"stride": 2, "padding": 1, "groups": 2}),
    "conv2d": ((2, 4, 9, 8), (6, 4, 3, 5), {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 1)}),
    "conv3d": ((1, 4, 5, 6, 7), (4, 1, 2, 3, 3), {"padding": 1, "groups": 4, "dilation": (1, 2, 1)}),
    "conv_transpose1d": ((2, 4, 9), (4, 3, 4), {"stride": 3, "padding": 1, "output_padding": 2}),
    "conv_transpose2d": ((2, 4, 9, 8), (4, 3, 3, 3), {"stride": (2, 1), "padding": (1, 0), "groups": 2}),
    "conv_transpose3d": ((1, 4, 5, 6, 7), (4, 2, 2, 2, 2), {"stride": 2, "dilation": (1, 2, 1)}),
}


@pytest.mark.parametrize("name", CASES)
def test_shapes_are_torchs_and_words_are_read_back(name):
    shape, kernel, arguments = CASES[name]
    layer = getattr(costmodel, name)(shape, kernel, None, **arguments)
    assert layer.output_shape == tuple(getattr(F, name)(torch.empty(shape), torch.empty(kernel), **arguments).shape)
    assert costmodel.layer(layer.words) == layer == eval(repr(layer))
    assert layer == getattr(costmodel, name)(torch.empty(shape), torch.empty(kernel), **arguments)


@pytest.mark.parametrize("name", CASES)
def test_the_arguments_are_torchs(name):
    ours = [p.name for p in inspect.signature(getattr(costmodel, name)).parameters.values()]
    plain = ["input", "weight", "bias", "stride", "padding", "dilation", "groups", "padding_mode"]
    transposed = ["input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"]
    assert ours == (transposed if "transpose" in name else plain)
    assert getattr(costmodel, name).__name__ == name and f"functional.{name}" in getattr(costmodel, name).__doc__


def test_the_methods_ask_the_model():
    layer = costmodel.conv2d((32, 64, 56, 56), (64, 64, 3, 3), padding="same")
    for which in (None, *Pass):
        asked = which or "fprop"
        assert layer.cost(which, dtype="fp32") == costmodel.cost(layer.problem, asked, dtype="float32")
        assert (
            layer.roofline("h100", which).seconds == costmodel.roofline(layer.problem, "h100", "bfloat16", which=asked).seconds
        )
        found = layer.predict("h100", which, dtype=torch.float32 if which else "tf32")
        kind = {"dtype": "float32", "precision": "ieee" if which else "tf32"}
        assert found.seconds == costmodel.predict(layer.problem, asked, device="h100", **kind).seconds
    assert layer.training_cost() == costmodel.training_cost(layer.problem, dtype="bfloat16")


def test_a_device_without_bfloat16_takes_float16():
    layer = costmodel.layer("conv2d 64x56x56 k3 p1 n32")
    assert layer.predict("v100").seconds == layer.predict("v100", dtype="fp16").seconds
    assert "fp16 on Tesla V100" in layer.table("v100")


def test_a_transposed_layer_runs_forward_by_dgrad():
    layer = costmodel.conv_transpose2d((8, 64, 28, 28), (64, 32, 4, 4), stride=2, padding=1)
    assert layer.forward == Pass.DGRAD and layer.cost() == costmodel.cost(layer.problem, "dgrad", dtype="bfloat16")


def test_printed_it_is_the_table_of_the_command_line(monkeypatch):
    from typer.testing import CliRunner

    from costmodel.reports.commands import app

    layer = costmodel.layer("conv1d 8x32 k3 n2")
    printed = CliRunner().invoke(app, ["layer", "conv1d", "8x32", "k3", "n2"], env={"COLUMNS": "80"}).output
    assert str(layer) == "\n".join(line.rstrip() for line in printed.rstrip().splitlines())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: costmodel.conv2d((1, 3, 8), (4, 3, 3, 3)), r"conv2d\(\): input must have 4 sizes, got 3: input=\(1, 3, 8\)"),
        (lambda: costmodel.conv1d((1, 3, 8), (4, 3, 3), stride=(1, 2)), r"conv1d\(\): stride must be an int or 1 ints, got"),
        (lambda: costmodel.conv2d((1, 3, 8, 8), (4, 2, 3, 3)), "expected input to have 2 channels, got input"),
        (lambda: costmodel.conv2d((1, 3, 2, 2), (4, 3, 3, 3)), "kernel size can't be greater than the padded input"),
        (lambda: costmodel.layer("conv2d 3x8x8 k3").cost(dtype="int8"), "dtype 'int8' is unknown"),
        (lambda: costmodel.layer("conv2d 3x8x8 k3").predict("h999"), "device 'h999' is unknown"),
        (lambda: costmodel.layer("conv2d 3x8x8"), "conv2d has no kernel size"),
    ],
)
def test_what_cannot_be_is_refused_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"stride": "2"}, "conv2d(): stride must be an int or 2 ints, got stride='2'"),
        ({"dilation": (1, 1.5)}, "conv2d(): dilation must be an int or 2 ints, got dilation=(1, 1.5)"),
        ({"padding": None}, "conv2d(): padding must be an int or 2 ints, got padding=None"),
        ({"groups": 1.0}, "conv2d(): groups must be an int, got groups=1.0"),
        ({"input": 3}, "conv2d(): input must be a shape of 4 ints or a tensor, got input=3"),
        ({"weight": (4, 3, "3", 3)}, "conv2d(): weight must be a shape of 4 ints or a tensor, got weight=(4, 3, '3', 3)"),
    ],
)
def test_what_is_no_int_is_a_type_error_as_torchs_is(arguments, words):
    with pytest.raises(TypeError, match=re.escape(words)):
        costmodel.conv2d(**{"input": (1, 3, 8, 8), "weight": (4, 3, 3, 3)} | arguments)
    assert costmodel.conv2d(torch.Size((1, 3, 8, 8)), (4, 3, 3, 3), stride=numpy.int64(2)).output_shape == (1, 4, 3, 3)


def test_the_example_runs():
    assert doctest.testmod(costmodel.layers).attempted >= 4 and not doctest.testmod(costmodel.layers).failed
