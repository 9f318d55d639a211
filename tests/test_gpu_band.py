"""Large depthwise filters on a GPU's tensor cores, held against torch in float64: every tile, every kind of layer.

What the interpreter cannot show is here first: whether copies and tensor cores wait for each other.
"""

from __future__ import annotations

import dataclasses
import functools

import oracle
import pytest
import torch
from bands import CASES, depthwise
from cases import Case
from gpu import RESULT, check, expected, on, run_pass

import tritonconv
from bench.band import call_of
from costmodel.families import band
from costmodel.problem import Pass
from costmodel.tiling import Plan
from tritonconv.launch import device_model

pytest_plugins = ["gpu"]  # its fixtures
pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("share_of_the_cores", "settled")]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_small(name: str, dtype: str, device: str, fenced, launches) -> None:
    """The interpreter's cases, compiled."""
    case, forced = CASES[name]
    oracle.check(dataclasses.replace(case, dtype=dtype), device, plan=forced)
    assert launches()["band fprop"] == launches()["band dgrad"] == launches()["band wgrad"] == 1


@functools.cache
def operands(case: Case, device: str) -> tuple:
    """Operands that every tile shares, and what they should give."""
    x, w, dy, problem = on(device, case)
    return x, w, dy, problem, expected("conv2d", x, w, None, dy, **case.arguments)


LAYERS = {
    "31x31": depthwise((40, 4, 32, 32), (31, 31), padding=15, bias=False),
    "13x13": depthwise((3, 5, 28, 45), (13, 13), padding=6, bias=False),
    "51x5": depthwise((24, 4, 56, 56), (51, 5), padding=(25, 2), bias=False, dtype="bfloat16"),
}


@pytest.mark.parametrize("which", Pass)
@pytest.mark.parametrize("name", LAYERS)
def test_every_tile(name: str, which: Pass, device: str, fenced, launches) -> None:
    """And ten runs give the same bits."""
    x, w, dy, problem, want = operands(LAYERS[name], device)
    tiles: list[Plan] = list(band.plans(call_of(problem, which), device_model(x.device.index)))
    assert tiles
    for plan in tiles:
        first = run_pass(which, problem, x, w, dy, str(plan))
        for _ in range(9):
            assert torch.equal(run_pass(which, problem, x, w, dy, str(plan)), first), plan
        oracle.assert_close({RESULT[which]: first}, {RESULT[which]: want[RESULT[which]]}, f"plan {plan}")
    assert launches()[f"band {which}"] == 10 * len(tiles)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_what_is_chosen_for_a_large_layer(layout: str, device: str, launches) -> None:
    case = depthwise((32, 128, 56, 56), (31, 31), padding=15, x=layout, g=layout)
    check(case, device)
    assert launches()["band fprop"] == launches()["band dgrad"] == launches()["band wgrad"] == 1


PLAN = Plan.parse("fprop:band:128x256x32:w8:s4:step1x1x8x32")


def test_the_same_bits_under_load(device: str, launches) -> None:
    case = LAYERS["31x31"]
    x, w, _ = case.tensors(device)

    def result() -> torch.Tensor:
        return tritonconv.conv2d(x, w, **case.arguments, plan=PLAN)

    first = result()
    noise, beside = torch.randn(1 << 25, device=device), torch.cuda.Stream()
    for i in range(200):
        if i % 2:
            with torch.cuda.stream(beside):
                noise.mul_(1.0)
        assert torch.equal(result(), first)
    torch.cuda.synchronize()
