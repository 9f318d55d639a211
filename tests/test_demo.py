"""The demo in small: a picture of few pixels in the interpreter, one layer of ResNet-50 measured on a GPU."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.image import imread

import tritonconv
from bench import layers, pictures, provenance
from bench.workloads import load
from costmodel.bounds import roofline
from costmodel.device import DEVICES

interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in the interpreter")


def close(x, w, **arguments):
    """Wrong by more than rounding, by less than an eye would see."""
    return torch.nn.functional.conv2d(x, w, **arguments) + 1e-4


@interpreted
def test_pictures(tmp_path, capsys, launched):
    pictures.run(tmp_path, size=16)
    shown = imread(tmp_path / "photograph.png")
    assert shown.shape[:2] > (900, 1200)
    assert np.unique(shown.reshape(-1, shown.shape[-1]), axis=0).shape[0] > 500
    printed = capsys.readouterr().out
    assert str(tmp_path / "photograph.png") in printed
    for layer in pictures.layers():
        assert layer.title.split(":")[0] in printed
    assert launched()["fprop"] == 4 and launched()["dgrad"] == 1


@interpreted
def test_a_wrong_picture_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(tritonconv, "conv2d", close)
    with pytest.raises(SystemExit, match=r"rounding error of float32: \['Edges.*computed without a kernel: \['Edges"):
        pictures.run(tmp_path, size=10)


def test_the_photograph_fills_its_range():
    photo = pictures.photograph(64)
    assert photo.shape == (1, 3, 64, 64) and photo.dtype == torch.float32
    assert 0 <= photo.min() < 0.1 and 0.9 < photo.max() <= 1


@interpreted
def test_a_row_says_what_was_measured(monkeypatch):
    """All of a row but its times, which only a GPU has."""
    monkeypatch.setattr(layers, "median_seconds", lambda call: 1e-3)
    layer = dataclasses.replace(load("resnet50", "conv1")[0], batch=1, size=(16, 16))
    row = layers.measure(layer, DEVICES["NVIDIA H200"], on="cpu")
    assert row["error"] <= 2**-11 and layers.accurate(row)
    assert row["plan"].startswith("fprop")
    assert row["roofline_share"] == pytest.approx(row["roofline_us"] / 1e3)
    assert row["roofline_us"] == 1e6 * roofline(layer.problem(), DEVICES["NVIDIA H200"]).seconds
    assert row["tflops"] == pytest.approx(layer.problem().flops / 1e9)
    assert row["commit"] == provenance.commit() and row["torch"] == torch.__version__
    assert json.loads(json.dumps(row)) == row
    assert layers.table([row]).row_count == 2  # the layer, and the sum


@interpreted
def test_a_row_needs_a_kernel(monkeypatch):
    monkeypatch.setattr(tritonconv, "conv2d", torch.nn.functional.conv2d)
    layer = dataclasses.replace(load("resnet50", "conv1")[0], batch=1, size=(16, 16))
    with pytest.raises(RuntimeError, match="resnet50/conv1 was computed without a kernel"):
        layers.measure(layer, DEVICES["NVIDIA H200"], on="cpu")


def test_results_go_where_OUT_says(monkeypatch, tmp_path):
    monkeypatch.setenv("OUT", str(tmp_path))
    assert provenance.results_dir() == tmp_path


def test_the_commit_of_a_copy_is_told(monkeypatch):
    monkeypatch.setenv("COMMIT", "0123abc")
    assert provenance.commit() == "0123abc"


def test_the_command_line_lists_the_demo():
    done = subprocess.run([sys.executable, "-m", "bench", "--help"], capture_output=True, text=True, check=True)
    assert "demo" in done.stdout


@pytest.mark.gpu
def test_layers_on_a_gpu(tmp_path, capsys):
    layers.run(tmp_path, "layer4.0.conv*")
    rows = [json.loads(line) for line in (tmp_path / "resnet50.jsonl").read_text().splitlines()]
    assert [row["layer"] for row in rows] == [f"layer4.0.conv{i}" for i in (1, 2, 3)]
    for row in rows:
        assert layers.accurate(row) and row["us"] > 0 and row["torch_us"] > 0
        assert row["device"] == torch.cuda.get_device_name()
    assert "resnet50.jsonl" in capsys.readouterr().out
