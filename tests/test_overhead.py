"""Host times and whole networks, on a stand-in clock."""

from __future__ import annotations

import io
import json
import os
from itertools import count

import pytest
import torch
import triton
from rich.console import Console
from standin import StandIn
from torch import nn

from bench import model as models
from bench import overhead
from bench.model import compare, distance, step_of, table

interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in the interpreter")


# --- overhead -----------------------------------------------------------------------------------------------------------


class Slow(StandIn):
    """Each synchronisation takes ten seconds, each question for the time one."""

    def __init__(self) -> None:
        super().__init__()
        self.ticks = count()
        self.seconds_waited = 0

    def now(self) -> float:
        return float(next(self.ticks) + self.seconds_waited)

    def synchronize(self) -> None:
        self.seconds_waited += 10


def test_the_wait_for_the_gpu_is_no_host_time(monkeypatch):
    monkeypatch.setattr(overhead, "BURST", 1)
    calls = []
    assert overhead.host_us(lambda: calls.append(0), Slow(), calls=50) == pytest.approx(1e6)
    assert len(calls) == 53


def test_a_first_call_is_timed_to_its_end(launched):
    layer = overhead.LAYERS[1]
    assert overhead.first(layer, 1, Slow()) == pytest.approx(11)


def test_the_cache_is_empty_inside_and_as_before_after():
    before = triton.knobs.cache.dir
    with overhead.empty_cache():
        inside = triton.knobs.cache.dir
        assert inside != before and os.listdir(inside) == []
    assert triton.knobs.cache.dir == before and not os.path.exists(inside)


@interpreted
def test_every_layer_has_a_row(tmp_path, monkeypatch, capsys, launched):
    monkeypatch.setattr(overhead, "CALLS", 1)
    monkeypatch.setattr(overhead, "host_us", lambda call, machine: [call(), 7.0][1])
    monkeypatch.setattr(overhead, "LAYERS", overhead.LAYERS[:2])
    overhead.command(tmp_path, StandIn())
    rows = json.loads((tmp_path / "overhead.json").read_text())
    assert [row["layer"] for row in rows] == ["3x3", "1x1"]
    assert all(row["forward_us"] == 7 and row["first_s"] == 1 and row["gpu"] == "stand-in" for row in rows)
    assert "3x3" in capsys.readouterr().out and launched()["wgrad"] == 2


# --- networks -----------------------------------------------------------------------------------------------------------


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(1))


@interpreted
@pytest.mark.parametrize("train", [False, True])
def test_a_network_both_ways(train, launched):
    model, x = net(), torch.randn(3, 3, 4, 4)
    found = compare(model, x, train, compiled=False, machine=StandIn([2e-3]))
    assert [v.name for v in found] == ["torch", "tritonconv"] and all(v.ok for v in found), found
    assert all(v.error < 1e-5 and v.milliseconds == pytest.approx(2) for v in found)
    assert bool(launched()["wgrad"]) == train and model.training == train
    console = Console(file=io.StringIO(), width=150)
    console.print(table(found, "a network"))
    assert console.file.getvalue().count("1.00x") == 2


@interpreted
def test_a_wrong_network_has_no_time(monkeypatch):
    def off(module):
        other = net()
        other[0].bias.data += 0.1
        return other

    monkeypatch.setattr(models.tritonconv, "convert", off)
    torchs, ours = compare(net(), torch.randn(3, 3, 4, 4), False, False, StandIn())
    assert torchs.ok and not ours.ok and ours.milliseconds is None and "allowed" in ours.note


def test_a_step_of_training_leaves_gradients():
    model, x = net(), torch.randn(2, 3, 4, 4)
    step_of(model, x, train=False)()
    assert all(p.grad is None for p in model.parameters())
    step_of(model, x, train=True)()
    assert all(p.grad is not None for p in model.parameters())


def test_no_number_is_far_off():
    assert distance(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")
    assert distance(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])) == pytest.approx(5 / 4)


def test_a_network_by_name():
    assert sum(p.numel() for p in models.build("squeezenet1_1").parameters()) > 1e6
    with pytest.raises(ValueError, match=r"no network 'nothing': torchvision.models: .*; timm: "):
        models.build("nothing")


@interpreted
def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(models, "build", lambda name: net())
    models.command("small", False, 2, 4, "fp32", False, tmp_path, StandIn())
    rows = json.loads((tmp_path / "model-small-inference-fp32.json").read_text())
    assert [row["name"] for row in rows] == ["torch", "tritonconv"] and rows[0]["batch"] == 2
    assert "inference, 2x3x4x4 fp32" in capsys.readouterr().out
    with pytest.raises(ValueError, match="dtype must be one of"):
        models.command("small", False, 2, 4, "int8", False, tmp_path, StandIn())
    monkeypatch.setattr(models, "distance", lambda got, want: float("inf"))
    with pytest.raises(SystemExit):
        models.command("small", False, 2, 4, "fp32", False, tmp_path, StandIn())
