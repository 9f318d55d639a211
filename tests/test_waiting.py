"""The host's time in predictions, from a made-up table: no figure here was measured."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from standin import StandIn
from torch import nn

import costmodel
from bench import calibrate, overhead
from costmodel import calibration
from costmodel.calibration import Host, Table, dumps, loads
from costmodel.device import find_device
from costmodel.networks.clock import Time
from costmodel.networks.waiting import Launched, idle_before, waiting

HOST = Host(forward=30e-6, backward=60e-6, operator=20e-6, operator_backward=15e-6, source="a test")
NAME = "NVIDIA H200"


@pytest.fixture
def h200(monkeypatch, anew):
    """The device with nothing measured, whatever the package ships."""
    monkeypatch.setenv("TRITONCONV_CALIBRATION", "none")
    anew()
    return find_device("h200")


@pytest.fixture
def measured(h200):
    return h200.calibrated(Table(NAME, host=HOST))


@pytest.fixture(scope="module")
def networks():
    """A network on one small image, and the same on so many large ones that a GPU takes longer than any host."""
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    return costmodel.trace(model, (1, 8, 8, 8)), costmodel.trace(model, (512, 8, 256, 256))


@pytest.mark.parametrize("busy, launch", [([1, 1, 1], [3, 3, 3]), ([9, 9, 9], [3, 3, 3]), ([9, 1, 1, 1], [1, 2, 9, 1])])
def test_the_last_operator_ends_when_both_are_done(busy, launch):
    """As of two machines in a row: the largest sum of launches up to an operator and of kernels from it on."""
    idle = idle_before(busy, launch)
    path = max(sum(launch[: i + 1]) + sum(busy[i:]) for i in range(len(busy)))
    assert sum(idle) + sum(busy) == path and min(idle) >= 0


def test_a_table_with_host_times_reads_back(h200, measured):
    table = Table(NAME, host=HOST)
    assert loads(dumps(table), "here") == table and measured.host == HOST and h200.host is None
    assert "host" not in json.loads(dumps(Table(NAME))) and measured == h200, "no choice of a plan depends on it"
    row = json.loads(dumps(table))
    for wrong in ({"forward": 1.0}, {"backward": -1e-6}, {"forwards": 1e-6}, {"operator": "3"}):
        with pytest.raises(ValueError, match="calibration here"):
            loads(json.dumps(row | {"host": row["host"] | wrong}), "here")


def test_a_small_network_waits_for_the_host(h200, measured, networks):
    small, _ = networks
    plain, waited = small.on(h200), small.on(measured)
    assert [row.bound for row in waited] == ["host"] * 4 and "host" not in {row.bound for row in plain}
    assert waited.seconds == pytest.approx(2 * HOST.forward + 2 * HOST.operator + plain[-1].seconds)
    assert waited.high - waited.low == pytest.approx(plain.high - plain.low)
    assert all("the GPU waits for the host: a test" in source for row in waited for source in row.sources)
    assert [row.plan for row in plain] == [row.plan for row in waited]


def test_so_does_a_training_step(h200, measured, networks):
    small, _ = networks
    plain, waited = small.on(h200, training=True), small.on(measured, training=True)
    host = 2 * (HOST.forward + HOST.backward + HOST.operator + HOST.operator_backward)
    assert host < waited.seconds < host + plain.seconds


def test_gradients_run_from_the_last_layer_to_the_first():
    """The first layer's gradient is so long that whatever came after it would not wait."""
    short, long = (Time(seconds, "DRAM", seconds, seconds, "a test") for seconds in (1e-6, 1.0))
    first, last = waiting([Launched((short, long), True), Launched((short, short), True)], HOST)
    assert last[1].bound == "host" and last[1].seconds == pytest.approx(HOST.backward) and first[1].bound == "DRAM"


def test_a_large_network_waits_for_its_first_launch_alone(h200, measured, networks):
    _, large = networks
    for training in (False, True):
        plain, waited = large.on(h200, training=training), large.on(measured, training=training)
        assert waited.seconds == pytest.approx(plain.seconds + HOST.forward, rel=1e-12)
        assert "host" not in {row.bound for row in waited}


# --- from `bench overhead` into a table -----------------------------------------------------------------------------------

LAYER = overhead.Overhead("3x3", 20.0, 10.0, 99.0, 50.0, 1.0, 1.0, operator_us=20.0, operator_step_us=32.0, recorded_us=25.0)
FACTS = {"gpu": NAME, "torch": "2.13", "triton": "3.7"}


def test_medians_of_the_layers():
    rows = [replace(LAYER, recorded_us=each, step_us=4 * each) for each in (25.0, 100.0, 10.0)]
    host = overhead.host_of(rows, FACTS)
    assert (host.forward, host.backward) == pytest.approx((25e-6, 75e-6))
    assert (host.operator, host.operator_backward) == pytest.approx((20e-6, 12e-6))
    assert NAME in host.source and "3 layers" in host.source


@pytest.mark.parametrize("package", [False, True])
def test_they_enter_by_data_alone(package, tmp_path, monkeypatch, anew, networks):
    """What the command writes is in the predictions of the next process, beside what the table held."""
    monkeypatch.setenv("TRITONCONV_CACHE", str(tmp_path))
    monkeypatch.setenv("TRITONCONV_CALIBRATION", "" if package else "user")
    monkeypatch.setattr(calibration, "package_path", lambda device: tmp_path / "package" / calibration.file_name(device))
    monkeypatch.setattr(overhead, "measure", lambda machine: [LAYER])
    path = (calibration.package_path if package else calibration.user_path)(NAME)
    calibration.write(Table(NAME, plans={"a call": ("fprop:gather:1x1x1", "0123")}), path)
    machine = StandIn()
    machine.facts = machine.facts | FACTS
    overhead.command(tmp_path, machine, "package" if package else "user")
    anew()
    assert find_device("h200").host.forward == pytest.approx(25e-6)
    assert [row.bound for row in networks[0].on("h200")] == ["host"] * 4
    assert "a call" in calibration.read(path).plans


def test_a_new_fit_keeps_the_host_times(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITONCONV_CACHE", str(tmp_path))
    calibration.write(Table(NAME, host=HOST), calibration.user_path(NAME))
    monkeypatch.setattr(calibrate, "calibrate", lambda rows, gpu: (Table(NAME), []))
    assert calibration.read(calibrate.run([], NAME, write=False)).host == HOST


def test_a_layer_has_every_figure(monkeypatch, launched):
    monkeypatch.setattr(overhead, "host_us", lambda call, machine: [call(), 7.0][1])
    row = overhead.overhead_of(overhead.LAYERS[1], StandIn())
    assert {row.forward_us, row.recorded_us, row.step_us, row.operator_us, row.operator_step_us} == {7.0}
    assert torch.is_grad_enabled()
