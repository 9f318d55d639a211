"""The device table against the identity of its figures, what a user may write, and the driver's figures held against it."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from costmodel.device import (
    DEVICES,
    FIGURES,
    INTERPRETER,
    derived_rates,
    find,
    find_device,
    listed,
    operations,
)
from costmodel.device_names import plain

KNOWN = list(DEVICES.values())
H100, H200, V100 = (find_device(name) for name in ("h100", "h200", "v100"))


def named(device):
    return device.name


def test_the_parts_of_the_table():
    aliases = (
        "v100 v100-pcie v100-dgxs t4 a100 a100-pcie a100-40gb h100 h100-pcie h100-nvl gh200 h200 b200 b300 l4 l40 l40s a10 a10g"
    )
    aliases += " h20 a6000 pro6000 pro6000-maxq rtx3090 rtx3090ti rtx4080 rtx4090 rtx4090d rtx5090"
    assert {find_device(alias).name for alias in aliases.split()} == set(DEVICES)
    words = [word for device in KNOWN for word in (*device.names, *device.aliases)]
    assert len(set(words)) == len(words)
    meant = [{plain(word) for word in (*device.names, *device.aliases)} for device in KNOWN]
    assert sum(map(len, meant)) == len(set().union(*meant)), "one name, two parts"
    assert all(device.name == device.names[0] and device.aliases for device in KNOWN)


@pytest.mark.parametrize("device", KNOWN, ids=named)
def test_every_figure_has_a_source(device):
    without = [name for name in FIGURES if getattr(device, name) is not None and not device.source(name)]
    assert not without
    assert {name for name, _ in device.sources} <= set(FIGURES)


#: Parts whose units are held below what their multiprocessors and clock would give, in TFLOP/s.
CAPPED = {"NVIDIA H20": {"fp16": 148, "bf16": 148, "tf32": 74, "fp64": 1, "fp64_tensor": 1}}


@pytest.mark.parametrize("device", KNOWN, ids=named)
def test_peaks_are_multiprocessors_times_clock(device):
    """Tensor peaks at `clock`, the FMA units' at the driver's; B200's float32 is listed at a clock that no driver reports."""
    sustained = derived_rates(device.capability, device.half_rate, device.sm_count, device.clock)
    fastest = derived_rates(device.capability, device.half_rate, device.sm_count, device.max_clock)
    if device.name in CAPPED:
        assert {name: getattr(device, name) for name in CAPPED[device.name]} == CAPPED[device.name]
        sustained, fastest = ({**rates, **CAPPED[device.name]} for rates in (sustained, fastest))
    for name in ("fp16", "bf16", "fp16_acc16", "tf32"):
        assert (getattr(device, name) is None) == (name not in sustained)
        if name in sustained:
            assert getattr(device, name) == pytest.approx(sustained[name], rel=0.012), name
    for name in ("fp32", "fp64", "fp64_tensor"):
        assert (getattr(device, name) is None) == (name not in fastest)
        if name in fastest:
            assert getattr(device, name) == pytest.approx(fastest[name], rel=0.02), name


def test_published_peaks_and_ridges():
    """Figures written here by hand, in TFLOP/s and FLOP/B."""
    peaks = {
        "h100": 989.4,
        "a100": 312,
        "v100": 125,
        "b200": 2250,
        "l4": 121,
        "l40s": 362.05,
        "rtx4090": 165.2,
        "rtx5090": 209.5,
    }
    ridges = {"h100": 295, "a100": 153, "v100": 139, "b200": 293, "l4": 403, "l40s": 419, "rtx4090": 164, "rtx5090": 117}
    ridges |= {"a100-40gb": 201, "a100-pcie": 161, "h100-pcie": 378, "h200": 206, "rtx3090": 76, "v100-pcie": 124}
    assert {alias: find_device(alias).rate("float16") / 1e12 for alias in peaks} == peaks
    for alias, ridge in ridges.items():
        device = find_device(alias)
        assert device.rate("float16") / device.bandwidth / 1e9 == pytest.approx(ridge, abs=0.51), alias


@pytest.mark.parametrize("alias", ["rtx3090", "rtx4090", "rtx5090"])
def test_geforce_halves_what_accumulates_in_float32(alias):
    device = find_device(alias)
    assert device.half_rate
    assert device.fp16_acc16 == pytest.approx(2 * device.fp16, rel=1e-3)
    full = operations(device.capability, half_rate=False)
    assert operations(device.capability, half_rate=True)["fp16"] == full["fp16"] / 2
    assert device.rate("bfloat16") == device.fp16 * 1e12  # not the rate that accumulates in float16


def test_only_geforce_has_a_faster_accumulation():
    assert [device.name for device in KNOWN if device.fp16_acc16] == [device.name for device in KNOWN if device.half_rate]


@pytest.mark.parametrize("device", KNOWN, ids=named)
def test_limits_of_a_multiprocessor(device):
    assert device.warps_per_sm == {75: 32, 86: 48, 89: 48, 120: 48}.get(device.capability, 64)
    kib = {70: 96, 75: 64, 80: 164, 86: 100, 89: 100, 90: 228, 100: 228, 103: 228, 120: 100}
    assert device.shared_per_sm == kib[device.capability] * 1024
    assert device.shared_per_sm - device.shared_per_block == (0 if device.capability < 80 else 1024)
    assert device.registers_per_sm == 65536


# ---- rates ----------------------------------------------------------------------------------------------------------


def test_a_rate_is_that_of_the_unit_that_multiplies():
    assert H100.rate("float16") == H100.rate("bfloat16", unit="tensor") == 989.4e12
    assert H100.rate("float32") == H100.rate("bfloat16", unit="fma") == 66.9e12
    assert H100.rate("float32", "tf32") == 494.7e12
    assert H100.rate("float64") == 66.9e12 and H100.rate("float64", unit="fma") == 33.5e12
    assert find_device("rtx4090").rate("float64") == pytest.approx(82.6e12 / 64, rel=1e-3)  # it has no float64 tensor cores


@pytest.mark.parametrize("dtype, precision, missing", [("bfloat16", "ieee", "bf16"), ("float32", "tf32", "tf32")])
def test_a_rate_that_the_part_lacks_is_refused(dtype, precision, missing):
    with pytest.raises(ValueError, match=f"Tesla V100-SXM2-16GB has no {missing} rate.* it has fp16, fp32, fp64$"):
        V100.rate(dtype, precision)


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (("float8",), "dtype 'float8' is unknown: one of fp16"),
        (("float32", "tf16"), "precision must be 'ieee' or 'tf32', got 'tf16'"),
        (("float32", "ieee", "cuda"), "unit must be 'tensor' or 'fma', got 'cuda'"),
        (("float32", "ieee", "tensor"), "tensor cores multiply float32 in precision 'tf32' only"),
    ],
)
def test_a_rate_that_nothing_has_is_refused(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        H100.rate(*arguments)


def test_the_interpreter_has_no_rate():
    with pytest.raises(ValueError, match="interpreter has no fp16 rate"):
        INTERPRETER.rate("float16")


# ---- finding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, table",
    [
        ("NVIDIA L4", "NVIDIA L4"),
        ("NVIDIA L40S", "NVIDIA L40S"),
        ("NVIDIA L40", "NVIDIA L40"),
        ("NVIDIA L40G", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA H100 80GB HBM3"),
        ("NVIDIA A100-SXM4-40GB MIG 1c.3g.20gb", "NVIDIA A100-SXM4-40GB"),
        ("NVIDIA A100-PCIE-40GB", "NVIDIA A100-SXM4-40GB"),
        ("NVIDIA A100-PG509-200", "NVIDIA A100-SXM4-40GB"),
        ("A100-SXM4-40GB", "NVIDIA A100-SXM4-40GB"),  # as drivers before 465 say it
        ("NVIDIA A100 80GB PCIe", "NVIDIA A100 80GB PCIe"),
        ("Tesla V100-SXM2-32GB", "Tesla V100-SXM2-16GB"),
        ("Tesla V100-DGXS-32GB", "Tesla V100-DGXS-32GB"),
        ("NVIDIA GeForce RTX 3090 Ti", "NVIDIA GeForce RTX 3090 Ti"),
        ("GeForce RTX 3090", "NVIDIA GeForce RTX 3090"),
        ("NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 D"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4080 SUPER", None),
        ("NVIDIA GH200 480GB", "NVIDIA GH200 480GB"),
        ("NVIDIA H100 NVL", "NVIDIA H100 NVL"),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA H20", "NVIDIA H20"),
        ("NVIDIA H20Z", None),
        ("NVIDIA A10", "NVIDIA A10"),
        ("NVIDIA A10G", "NVIDIA A10G"),
        ("NVIDIA A100", None),
        ("NVIDIA H1000", None),
    ],
)
def test_a_name_is_a_listed_one_or_none(name, table):
    """Exactly, but for the vendor's word and a slice's: a part whose name only begins like another's is not that part."""
    assert (listed(name).name if listed(name) else None) == table


@pytest.mark.parametrize(
    "text, offered",
    [
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "'NVIDIA GeForce RTX 4090'"),
        ("NVIDIA GeForce RTX 5090 D", "'NVIDIA GeForce RTX 5090'"),
        ("NVIDIA H200 NVL", "'h200'"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "'NVIDIA H100 80GB HBM3'"),
        ("rtx3090super", "'rtx3090'"),
    ],
)
def test_the_nearest_names_are_offered(text, offered):
    with pytest.raises(ValueError, match=f"device {text!r} is unknown, did you mean ") as raised:
        find_device(text)
    assert offered in str(raised.value)


@pytest.mark.parametrize("device", KNOWN, ids=named)
def test_what_the_driver_says_finds_the_part(device):
    for name in device.names:
        assert find(name, device.capability, device.sm_count) is device and find_device(name) is device


def test_a_listed_part_is_found_as_it_is_and_a_smaller_one_scaled():
    assert find("NVIDIA H200", 90, 132) is H200
    slice_ = find("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 90, 16)
    assert slice_.rate("float16") == pytest.approx(H100.rate("float16") * 16 / 132)
    assert slice_.bandwidth == pytest.approx(H100.bandwidth * 16 / 132)
    assert slice_.shared_per_sm == H100.shared_per_sm
    assert "scaled from NVIDIA H100 80GB HBM3" in slice_.source("fp16")


def test_an_unknown_part_has_the_arithmetic_of_its_own_capability():
    a40 = find("NVIDIA A40", 86, 84)  # GA102 as the RTX 3090 is, without its half rate: 149.7 TFLOP/s at 1740 MHz
    assert a40.fp16 == pytest.approx(149.7 * 1695 / 1740, rel=0.01) and a40.fp16_acc16 is None
    assert a40.warps_per_sm == 48
    laptop = find("NVIDIA GeForce RTX 3070", 86, 46)
    assert laptop.fp16 == pytest.approx(find_device("rtx3090").fp16 * 46 / 82)
    super_ = find("NVIDIA GeForce RTX 4080 SUPER", 89, 80)  # named after a GeForce part, not after the L4 before it
    assert super_.bandwidth == pytest.approx(find_device("rtx4090").bandwidth * 80 / 128)
    turing = find("NVIDIA GeForce RTX 2080 Ti", 75, 68)  # from the T4, without its full rate
    assert turing.bf16 is None and turing.warps_per_sm == 32 and turing.fp16 == pytest.approx(65.1 * 68 / 40 / 2)
    assert turing.half_rate and find_device("a10g").half_rate and not a40.half_rate
    assert find("NVIDIA B300", 103, 160).capability == 103
    assert find("Tesla P100", 60, 56).fp16 is not None  # whatever it is, it can be planned for


@pytest.mark.parametrize("text", ["h100", "H100", "h100-SXM", "NVIDIA H100 80GB HBM3", "nvidia h100 80gb hbm3"])
def test_what_a_user_may_call_it(text):
    assert find_device(text) is H100


def test_a_line_of_changes():
    device = find_device("h100, bandwidth=3000, sm_count=100")
    assert (device.bandwidth, device.sm_count) == (3000, 100)
    assert device.name == "NVIDIA H100 80GB HBM3 (bandwidth=3000, sm_count=100)"
    assert device.fp16 == pytest.approx(H100.fp16 * 100 / 132)  # peaks follow the multiprocessors
    assert device.l2_bandwidth == H100.l2_bandwidth and device.source("tf32").startswith("derived")
    assert device.source("bandwidth") == "device 'h100, bandwidth=3000, sm_count=100'"
    assert device.source("l2_bytes") == H100.source("l2_bytes")
    slower = find_device("h100,max_clock=990,fp16=500,name=half")
    assert (slower.name, slower.clock, slower.fp16) == ("half", 915, 500) and slower.tf32 == H100.tf32 / 2
    assert not slower.aliases and find_device("h100,capability=89").warps_per_sm == 48


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("h10", r"device 'h10' is unknown, did you mean 'h100', .* or .*\? Known are h200, h100, .*or a TOML file$"),
        ("", "device '' is unknown; known are"),
        ("h100,bandwith=3", r"unknown figure 'bandwith', did you mean 'bandwidth'\? Known are capability, sm_count"),
        ("h100,sm_count=1.5", "sm_count must be a positive whole number, got '1.5'"),
        ("h100,bandwidth=fast", "bandwidth must be a positive number, got 'fast'"),
        ("h100,bandwidth=-1", "bandwidth must be a positive number, got '-1'"),
        ("h100,bandwidth=inf", "bandwidth must be a positive number, got 'inf'"),
        ("h100,3000", "after the name come figure=number, got '3000'"),
        ("none.toml", "device file 'none.toml' cannot be read: No such file"),
    ],
)
def test_what_no_device_is_called(text, complaint):
    with pytest.raises(ValueError, match=complaint) as raised:
        find_device(text)
    assert "\n" not in str(raised.value)


# ---- the file itself --------------------------------------------------------------------------------------------------


def test_importing_reads_nothing():
    """The launch path imports the module; the table is read when a device is first asked for."""
    code = (
        "import sys, costmodel.device as d; "
        "assert d.table.cache_info().misses == 0 and d.INTERPRETER.interpreted; "
        "assert not {'torch', 'triton', 'sympy'} & set(sys.modules); d.find('NVIDIA H200', 90, 132); "
        "assert d.table.cache_info().misses == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_devices_can_be_kept():
    assert pickle.loads(pickle.dumps(H100)) == H100 and hash(H100) == hash(find_device("h100"))
    with pytest.raises(TypeError):
        DEVICES["mine"] = H100
    with pytest.raises(KeyError):
        H100.source("speed")
    import costmodel.device

    with pytest.raises(AttributeError, match="has no attribute 'GPUS'"):
        _ = costmodel.device.GPUS
