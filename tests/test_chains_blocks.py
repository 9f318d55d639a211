"""The blocks of video and image decoders: both ways are right on a stand-in clock, and docs' table is what is printed."""

import os

import pytest
import torch
from standin import StandIn

from bench.chains import blocks, images
from bench.chains.blocks import BLOCKS, Block
from bench.chains.chain import OURS, TORCH
from bench.chains.run import COPY, measure
from costmodel.device import DEVICES

H100 = DEVICES["NVIDIA H100 80GB HBM3"]
SMALL = (
    Block("small rms", (1, 4, 1, 3, 4), 2, "rms"),
    Block("small images", (1, 32, 1, 3, 4), 0, "group", (1, 3, 3)),
    Block("small border", (1, 32, 2, 2, 3), 0, "group", (3, 3, 3), "replicate"),
)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in the interpreter")
@pytest.mark.parametrize(
    "block", [SMALL[0], *(pytest.param(b, marks=pytest.mark.slow) for b in SMALL[1:])], ids=lambda b: b.suite
)
def test_both_ways_are_right_and_timed(block, launched):
    rows = measure(blocks.chain_of(block, torch.float32, H100), False, StandIn((2e-5, 1e-5, 1e-5)))
    assert [row.way for row in rows] == [TORCH, OURS, COPY]
    assert all(row.ok for row in rows), [row.note for row in rows]
    assert rows[1].predicted_us is not None


def test_a_prologue_apart_costs_less_than_torchs_operators():
    """Of every block: one reading and one writing, and one reading for the statistics."""
    for block in BLOCKS:
        parts, plans = blocks.predicted(block, H100, torch.bfloat16)
        assert parts[OURS].around < parts[TORCH].around and plans


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in the interpreter")
@pytest.mark.parametrize("silu", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_every_way_of_a_layer_behind_a_norm_is_right(silu, launched, monkeypatch):
    monkeypatch.setattr(images, "LAYERS", (images.Layer("small", (1, 32, 3, 4), 3, 3 - 2 * (not silu), silu),))
    (chain,) = images.chains(torch.float32, H100)
    rows = measure(chain, False, StandIn((2e-5, 1e-5, 1e-5, 1e-5)))
    assert [row.way for row in rows] == [TORCH, images.TWO, OURS, COPY]
    assert all(row.ok for row in rows), [row.note for row in rows]
    assert rows[1].predicted_us >= rows[2].predicted_us


def test_one_call_is_predicted_to_take_no_longer_than_two_kernels():
    """Which it would launch itself; a pointwise layer takes one."""
    for layer in images.LAYERS:
        times, plan = images.predicted(layer, H100, torch.bfloat16)
        one, two = times[OURS], times[images.TWO]
        assert one < two if layer.kernel == 1 else one == pytest.approx(two)
        assert plan.endswith(":together") == (layer.kernel == 1)
