"""The demo in small: a picture of few pixels in the interpreter, layers of ResNet-50 on a stand-in clock."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from standin import StandIn

import tritonconv
from bench import pictures, provenance, rows, run
from bench.workloads import load

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


def test_results_go_where_OUT_says(monkeypatch, tmp_path):
    monkeypatch.setenv("OUT", str(tmp_path))
    assert provenance.results_dir() == tmp_path


def test_the_commit_of_a_copy_is_told(monkeypatch):
    monkeypatch.setenv("COMMIT", "0123abc")
    assert provenance.commit() == "0123abc"


def test_the_command_line_lists_the_demo():
    done = subprocess.run([sys.executable, "-m", "bench", "--help"], capture_output=True, text=True, check=True)
    assert "demo" in done.stdout


@interpreted
def test_the_gpus_demo_is_the_harness(tmp_path, capsys, monkeypatch):
    """ResNet-50's layers in small, on a stand-in clock."""
    small = [
        dataclasses.replace(w, batch=1, in_channels=min(w.in_channels, 8), out_channels=8, size=(8, 8))
        for w in load("resnet50")
    ]
    monkeypatch.setattr(run, "Gpu", lambda cudnn_plans: StandIn())
    monkeypatch.setattr(run, "load_workloads", lambda suite: small[:2])
    run.demo(tmp_path)
    assert len(list(rows.load(tmp_path / "resnet50.jsonl"))) == 2 * 5 + 1  # 1x1 is a matrix product too
    assert "resnet50/conv1" in capsys.readouterr().out
