"""The measuring of video layers against the chain of operators, on a stand-in for a GPU."""

import json

import pytest
import torch
from standin import StandIn

from bench import video_chain
from bench.video_chain import Layer, layers

SMALL = Layer("small", "conv", (1, 4, 1, 5, 6), (3, 4, 3, 3, 3), 2, (1, 1, 1), (1, 1))
UPSAMPLER = Layer("small", "up", (1, 4, 2, 3, 4), (3, 4, 1, 3, 3), 0, (1, 1, 1), (1, 1), 2)
DOWNSAMPLER = Layer("small", "down", (1, 4, 4, 3, 4), (3, 4, 3, 1, 1), 1, (2, 1, 1), (0, 0), 1, "valid")


def test_the_layers_are_those_that_were_traced():
    found = layers()
    assert {layer.suite for layer in found} == set(video_chain.SUITES) and len(found) > 50
    (down,) = [layer for layer in found if layer.name == "encoder.down_blocks.5.time_conv"]
    assert (down.x, down.cached, down.time_padding) == ((1, 192, 4, 120, 208), 1, "valid")
    assert down.chunk.output_shape == (1, 192, 2, 120, 208) and down.chunk.kept == 1
    middle = next(layer for layer in found if layer.name == "decoder.mid_block.resnets.0.conv1")
    assert middle.x == (1, 384, 1, 60, 104) and middle.chunk.output_shape == (1, 384, 1, 60, 104)
    up = next(layer for layer in found if layer.name == "decoder.up_blocks.0.upsamplers.0.resample.1")
    assert up.x == (1, 384, 1, 60, 104) and up.chunk.output_shape == (1, 192, 1, 120, 208)


@pytest.mark.parametrize("layer", [SMALL, UPSAMPLER, DOWNSAMPLER], ids=lambda layer: layer.name)
def test_every_contender_is_right_and_timed(layer):
    found = video_chain.measure(layer, StandIn((2e-5, 5e-5)), torch.float32)
    assert [row.provider for row in found] == ["tritonconv", *["chain"] * 4]
    assert all(row.error <= 1 and not row.note for row in found)
    assert [row.median_us for row in found] == pytest.approx([20, 50, 50, 50, 50])
    assert found[0].bytes < found[1].bytes and found[0].plan.startswith("fprop:video")


def test_what_is_wrong_has_no_time(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(video_chain, "layers", lambda suites: [SMALL])
    right = video_chain.ours
    monkeypatch.setattr(video_chain, "ours", lambda *arguments: right(*arguments) + 1)
    assert not video_chain.command(tmp_path, machine=StandIn())
    own, *others = json.loads((tmp_path / "video.json").read_text())
    assert own["median_us"] is None and "times the tolerance" in own["note"] and all(row["median_us"] for row in others)
    assert "failed" in capsys.readouterr().out
