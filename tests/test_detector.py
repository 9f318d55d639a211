"""The GPU at hand: what the driver reports, beside what the table has of it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from costmodel.detector import detect, from_properties
from costmodel.device import (
    find_device,
    listed,
)

H200 = find_device("h200")


def driver(**changes):
    """What torch reports of an H200."""
    properties = {
        "name": "NVIDIA H200",
        "major": 9,
        "minor": 0,
        "multi_processor_count": 132,
        "clock_rate": 1_980_000,
        "memory_clock_rate": 3_201_000,
        "memory_bus_width": 6144,
        "L2_cache_size": 62914560,
    } | changes
    return SimpleNamespace(**{name: value for name, value in properties.items() if value is not None})


def test_a_gpu_as_the_table_has_it():
    assert from_properties(driver()) == (H200, [])


def test_a_torch_that_reports_less():
    assert from_properties(driver(clock_rate=None, memory_clock_rate=None, L2_cache_size=None)) == (H200, [])


def test_a_slower_memory_is_warned_of_and_taken():
    device, warnings = from_properties(driver(memory_clock_rate=2_619_000, memory_bus_width=5120))
    assert device.bandwidth == pytest.approx(3352.32) and device.fp16 == H200.fp16
    assert warnings == ["NVIDIA H200: the driver reports bandwidth 3,352.32, the table has 4,800"]
    assert device.source("bandwidth") == "driver"


@pytest.mark.parametrize("ratio, warned", [(1.029, False), (0.971, False), (1.031, True), (0.969, True)])
def test_three_percent(ratio, warned):
    _, warnings = from_properties(driver(L2_cache_size=round(62914560 * ratio)))
    assert bool(warnings) == warned


def test_fewer_multiprocessors_and_a_lower_clock():
    device, warnings = from_properties(driver(multi_processor_count=66, clock_rate=990_000))
    assert device.fp16 == pytest.approx(H200.fp16 / 4) and device.clock == H200.clock / 2
    assert device.bandwidth == pytest.approx(4917, rel=1e-3)  # the memory is whole
    assert [w.split(": ")[1].split(",")[0] for w in warnings] == [
        "the driver reports sm_count 66",
        "the driver reports max_clock 990",
        "multiprocessors and clock give 247.4 TFLOP/s in fp16",
    ]


def test_a_gpu_that_the_table_does_not_have():
    a40 = driver(name="NVIDIA A40", major=8, minor=6, multi_processor_count=84, clock_rate=1_740_000, L2_cache_size=6291456)
    a40.memory_clock_rate, a40.memory_bus_width = 7_251_000, 384
    device, (warning,) = from_properties(a40)
    assert device.fp16 == pytest.approx(149.7, rel=1e-3) and device.bandwidth == pytest.approx(696, rel=1e-3)
    assert device.l2_bytes == 6291456 and device.name == "NVIDIA A40" and device.clock == 1740
    assert warning == "NVIDIA A40 is not in the table: its peaks are derived from compute capability 8.6"
    a40.clock_rate = None
    assert from_properties(a40).warnings[0].endswith("8.6, and max_clock guessed")


def test_no_gpu(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device is at hand: name a device, such as 'h100'"):
        detect()


def test_the_index_of_a_gpu(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: driver())
    assert detect(0) == detect() == (H200, [])
    with pytest.raises(ValueError, match="index must be below 1, the devices at hand, got 1"):
        detect(1)


@pytest.mark.gpu
def test_the_gpu_at_hand():
    device, warnings = detect()
    assert device.rate("float16") > 0 and math.isfinite(device.bandwidth)
    assert listed(device.name) is None or not warnings, warnings
