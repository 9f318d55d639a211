"""The chains of video layers, on a stand-in clock."""

from __future__ import annotations

import os

import pytest
import torch
from standin import StandIn

from bench.chains import separable, video
from bench.chains.chain import OURS, TORCH
from bench.chains.run import COPY, measure
from bench.chains.video import Layer, layers
from bench.separable import LAYERS
from bench.work import float32_in
from costmodel.device import DEVICES

H100 = DEVICES["NVIDIA H100 80GB HBM3"]
SMALL = Layer("small", "conv", (1, 4, 1, 5, 6), (3, 4, 3, 3, 3), 2, (1, 1, 1), (1, 1))
UPSAMPLER = Layer("small", "up", (1, 4, 2, 3, 4), (3, 4, 1, 3, 3), 0, (1, 1, 1), (1, 1), 2)
DOWNSAMPLER = Layer("small", "down", (1, 4, 4, 3, 4), (3, 4, 3, 1, 1), 1, (2, 1, 1), (0, 0), 1, "valid")
TALL = Layer("small", "tall", (1, 2, 1, 90, 3), (2, 2, 3, 3, 3), 2, (1, 1, 1), (1, 1))


def test_the_layers_are_those_that_were_traced() -> None:
    found = layers()
    assert {layer.suite for layer in found} == set(video.SUITES) and len(found) > 50
    (down,) = [layer for layer in found if layer.name == "encoder.down_blocks.5.time_conv"]
    assert (down.x, down.cached, down.time_padding) == ((1, 192, 4, 120, 208), 1, "valid")
    assert down.chunk.output_shape == (1, 192, 2, 120, 208) and down.chunk.kept == 1
    middle = next(layer for layer in found if layer.name == "decoder.mid_block.resnets.0.conv1")
    assert middle.x == (1, 384, 1, 60, 104) and middle.chunk.output_shape == (1, 384, 1, 60, 104)
    up = next(layer for layer in found if layer.name == "decoder.up_blocks.0.upsamplers.0.resample.1")
    assert up.x == (1, 384, 1, 60, 104) and up.chunk.output_shape == (1, 192, 1, 120, 208)


def test_predictions_are_of_the_type_and_precision_that_run() -> None:
    layer = next(layer for layer in layers() if layer.name == "decoder.mid_block.resnets.0.conv1")
    pair = LAYERS[2]
    told = {}
    for name, dtype in (("float32", torch.float32), ("tf32", torch.float32), ("bfloat16", torch.bfloat16)):
        with float32_in("tf32" if name == "tf32" else "ieee"):
            told[name] = (
                video.chain_of(layer, dtype, H100).predicted[OURS],
                separable.chain_of(pair, dtype, H100).predicted[OURS],
            )
    for i in range(2):
        assert told["float32"][i] > told["tf32"][i] > told["bfloat16"][i]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in the interpreter")
@pytest.mark.parametrize("layer", [SMALL, UPSAMPLER, DOWNSAMPLER, TALL], ids=lambda layer: layer.name)
def test_every_way_is_right_and_timed(layer: Layer, launched) -> None:
    rows = measure(video.chain_of(layer, torch.float32, H100), False, StandIn((2e-5, 5e-5, 1e-5)))
    assert [row.way for row in rows] == [TORCH, f"{TORCH} contiguous", OURS, COPY]
    assert all(row.ok for row in rows), [row.note for row in rows]
    assert [row.median_us for row in rows[:3]] == pytest.approx([20, 50, 10])
    assert rows[2].predicted_us is not None and rows[0].predicted_us is None
