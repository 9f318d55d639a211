"""The roofline against figures by hand, and the crossing batch against a search through all batches."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from bench.workloads import load
from costmodel.bounds import attainable, crossing_batch, limits, roofline
from costmodel.count import Cost, cost
from costmodel.device import DEVICES, find_device
from costmodel.problem import ConvProblem, Pass

H200, H100 = find_device("h200"), find_device("h100")


def conv(n=32, c=64, size=56, k=64, kernel=3, stride=1, padding=1, groups=1):
    return ConvProblem.conv((n, c, size, size), (k, c // groups, kernel, kernel), (stride,) * 2, (padding,) * 2, (1, 1), groups)


def problems(count, seed=0):
    """Small layers of one to three axes, groups and strides, made by chance."""
    pick = random.Random(seed)
    for _ in range(count):
        rank, groups = pick.randint(1, 3), pick.choice([1, 1, 2, 4])
        kernel = [pick.choice([1, 3, 5]) for _ in range(rank)]
        channels = pick.randint(1, 128)  # of a group
        yield ConvProblem.conv(
            (pick.randint(1, 8), groups * channels, *(pick.randint(5, 40) for _ in range(rank))),
            (groups * pick.randint(1, 128), channels, *kernel),
            [pick.randint(1, 2) for _ in range(rank)],
            [pick.randint(0, size // 2) for size in kernel],
            [1] * rank,
            groups,
        )


def test_two_sides_by_hand():
    pointwise = load("resnet50", "layer1.0.conv1")[0].problem()  # 64 x 64 x 56 x 56, twice, and 64 x 64
    bound = roofline(pointwise, H200)
    assert bound.bound == "memory" and bound.seconds == bound.memory_seconds == pytest.approx(51.388e6 / 4.8e12, rel=1e-4)
    dense = load("resnet50", "layer1.0.conv2")[0].problem()  # 3 * 56 - 2 of the 168 pairs of an axis meet the input
    bound = roofline(dense, H200)
    flop = 14.7975e9 * (166 / 168) ** 2
    assert bound.bound == "compute" and bound.seconds == bound.compute_seconds == pytest.approx(flop / 989.4e12, rel=1e-4)
    assert (bound.peak, bound.bandwidth) == (989.4e12, 4.8e12)
    assert bound.ridge == pytest.approx(206.125)
    assert bound.intensity == pytest.approx(flop / (2 * (2 * 64 * 64 * 56 * 56 + 64 * 64 * 9)), rel=1e-4)


@pytest.mark.parametrize("which", list(Pass))
def test_a_problem_stands_for_its_cost(which):
    problem = conv(stride=2)
    assert roofline(problem, H100, "bfloat16", which=which) == roofline(cost(problem, which), "h100", "bfloat16")
    assert roofline(problem, H100, which=str(which)) == roofline(problem, H100, which=which)


def test_costs_that_were_added():
    layers = [conv(kernel=1, padding=0), conv(c=512, k=512, size=14)]
    total = roofline(cost(layers[0]) + cost(layers[1]), H100)
    apart = sum(roofline(layer, H100).seconds for layer in layers)
    assert max(roofline(layer, H100).seconds for layer in layers) < total.seconds < apart  # overlapped, so still a bound
    assert roofline(Cost(), H100).seconds == 0
    moved = roofline(Cost(bytes=3350), H100)
    assert (moved.seconds, moved.bound, moved.intensity) == (pytest.approx(1e-9), "memory", 0)


def test_the_unit_and_the_precision():
    depthwise = conv(groups=64)
    tensor, fma = roofline(depthwise, H100), roofline(depthwise, H100, unit="fma")
    assert (tensor.peak, fma.peak) == (989.4e12, 66.9e12)
    assert fma.compute_seconds > tensor.compute_seconds and fma.memory_seconds == tensor.memory_seconds
    assert roofline(depthwise, H100, "float32").peak == 66.9e12
    assert roofline(depthwise, H100, "float32", precision="tf32").peak == 494.7e12
    with pytest.raises(ValueError, match="has no bf16 rate"):
        roofline(depthwise, "v100", "bfloat16")
    with pytest.raises(ValueError, match="device 'h101' is unknown"):
        roofline(depthwise, "h101")


@pytest.mark.parametrize("device", DEVICES.values(), ids=lambda device: device.name)
def test_the_roof_bends_at_the_ridge(device):
    ridge = roofline(conv(), device).ridge
    peak, slope = device.rate("float16"), device.bandwidth * 1e9
    assert attainable(ridge, device) == pytest.approx(peak)
    assert attainable(2 * ridge, device) == attainable(1e9, device) == peak
    assert attainable(ridge / 4, device) == pytest.approx(peak / 4) and attainable(1, device) == slope
    heights = [attainable(2.0**power, device) for power in range(-4, 16)]
    assert heights == sorted(heights)
    assert attainable(1e9, device, unit="fma") == device.rate("float32")


def test_the_time_is_the_attainable_rate_at_its_intensity():
    for problem in problems(100):
        for which in Pass:
            bound = roofline(problem, H100, which=which)
            reached = attainable(bound.intensity, H100)
            assert bound.seconds == pytest.approx(cost(problem, which).useful_flops / reached)
            assert (bound.bound == "compute") == (bound.compute_seconds >= bound.memory_seconds)
            assert roofline(replace(problem, batch=2 * problem.batch), H100, which=which).seconds > bound.seconds


@pytest.mark.parametrize("device", ["l4", "a100", "v100,bandwidth=3600"])
def test_the_crossing_batch_is_the_first_that_a_search_finds(device):
    device, most, found = find_device(device), 200, 0
    for problem in problems(60, seed=1):
        for which in Pass:
            batch = crossing_batch(problem, device, which=which)
            search = (n for n in range(1, most) if roofline(replace(problem, batch=n), device, which=which).bound == "compute")
            first = next(search, None)
            assert first == (batch if batch is not None and batch < most else None), (str(problem), which)
            found += first is not None and first > 1
            if batch is None:
                assert limits(problem, which).batch <= device.rate("float16") / device.bandwidth / 1e9
    assert found > 10


def test_the_bound_flips_at_the_crossing_however_large():
    """Where the search above would take too long: near its limit a layer crosses at batches of millions."""
    checked = 0
    for channels in range(200, 260):
        problem = conv(n=1, c=channels, k=channels, kernel=1, padding=0, size=7)
        device = find_device(f"h100,bandwidth={989400 / (limits(problem).batch * 0.9999):.6f}")
        batch = crossing_batch(problem, device)
        before, at = (roofline(replace(problem, batch=n), device).bound for n in (batch - 1, batch))
        assert (before, at) == ("memory", "compute")
        checked += batch > 1000
    assert checked == 60


@pytest.mark.parametrize("bandwidth", [1000, 128.7])  # 128.7 * 1e9 rounds below itself
def test_the_crossing_is_exact_where_the_roofs_meet(bandwidth):
    """1x1 with c = k = 8 on 1 pixel: 128 n FLOP and 2 (16 n + 64) bytes at batch n, so 2 FLOP/B at n = 4 exactly."""
    problem = conv(n=1, c=8, k=8, size=1, kernel=1, padding=0)
    device = find_device(f"h100,fp16={2 * bandwidth / 1000},bandwidth={bandwidth}")
    assert crossing_batch(problem, device, "float16") == 4
    assert [roofline(replace(problem, batch=n), device, "float16").bound for n in (3, 4)] == ["memory", "compute"]
    assert limits(problem).batch == 4  # 128 / 32
    assert crossing_batch(problem, find_device("h100,fp16=4,bandwidth=1000")) is None


def test_what_never_crosses():
    assert crossing_batch(conv(groups=64), H100) is None  # depthwise on tensor cores
    assert crossing_batch(conv(c=512, k=512, size=28, groups=512), H100, unit="fma") is None  # 9 FLOP for 4 bytes
    assert crossing_batch(conv(), H100, "float32") == 1  # the FMA units are slow enough


def test_limits_are_where_growth_leads():
    for problem in problems(60, seed=2):
        for which in Pass:
            ends = limits(problem, which)
            for size, end in (("batch", ends.batch), ("in_channels", ends.in_channels), ("out_channels", ends.out_channels)):
                grown = [replace(problem, **{size: getattr(problem, size) * times}) for times in (1, 10, 10**9)]
                now, later, last = (cost(p, which).intensity for p in grown)
                assert now < later < end
                assert last == pytest.approx(end, rel=1e-5)
