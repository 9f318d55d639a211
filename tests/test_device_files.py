"""Devices that a user describes in a file of their own."""

from __future__ import annotations

import pytest

from costmodel.device import (
    FIGURES,
    changed,
    find_device,
    load,
)

OWN = """
name = "NVIDIA A40"
capability = 86
sm_count = 84
clock = 1740
bandwidth = 696
l2_bytes = 6291456
l2_bandwidth = 2300
"""


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return str(path)

    return write


def test_a_file_of_a_new_device(written):
    path = written(OWN + '[sources]\n"bandwidth l2_bytes" = "NVIDIA A40 datasheet"\n')
    device = find_device(path)
    assert device == load(path)
    assert device.rate("bfloat16") == pytest.approx(149.7e12, rel=1e-3)  # the datasheet's, derived
    assert device.fp16_acc16 is None and device.max_clock == 1740 and device.shared_per_sm == 102400
    assert device.source("bandwidth") == "NVIDIA A40 datasheet" and device.source("fp16").startswith("derived")
    assert device.source("clock") == f"device file {path!r}"
    assert all(device.source(name) for name in FIGURES if getattr(device, name) is not None)
    assert find_device(f"{path},bandwidth=700").bandwidth == 700


def test_a_file_of_changes(written):
    device = find_device(written('base = "a100"\nbandwidth = 1800\n'))
    assert device == changed(find_device("a100"), {"bandwidth": 1800, "name": "mine"}, "")


@pytest.mark.parametrize(
    "text, complaint",
    [
        (OWN + "bandwith = 3\n", "unknown figure 'bandwith', did you mean 'bandwidth'"),
        ('base = "h999"\n', "device 'h999' is unknown"),
        ("base = 5\n", "base must be the name of a device, got 5"),
        ("bandwidth = 5\n", "lacks name, capability, sm_count, clock, l2_bytes, l2_bandwidth: give them, or a base"),
        ('base = "h100"\nsm_count = "many"\n', "sm_count must be a positive whole number, got 'many'"),
        ('base = "h100"\nsm_count = true\n', "sm_count must be a positive whole number, got True"),
        ('base = "h100"\nhalf_rate = 1\n', "half_rate must be true or false, got 1"),
        ('base = "h100"\nname = 3\n', "name must be a string, got 3"),
        ('base = "h100"\naliases = "x"\n', "aliases must be a list of strings, got 'x'"),
        ('base = "h100"\nsources = "me"\n', "sources must be a table"),
        ('base = "h100"\n[sources]\nfp16 = "me"\n', "a source is given for 'fp16', which is no figure of it"),
        ("= 3", "cannot be read: Invalid"),
    ],
)
def test_a_file_that_is_no_device(written, text, complaint):
    path = written(text)
    with pytest.raises(ValueError, match=complaint) as raised:
        load(path)
    assert "\n" not in str(raised.value)
