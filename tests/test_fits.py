"""Whether a plan fits a device is one fact: what the choice takes, every check accepts, on every device that ships."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import costmodel
from bench.separable import LAYERS
from bench.workloads import load
from costmodel import causal, separable, video
from costmodel.device import DEVICES, INTERPRETER, Device, find_device
from costmodel.families import depthwise
from costmodel.families.matrix import resources_of
from costmodel.legality import checked, refusal
from costmodel.plan import candidates, predict, select
from costmodel.problem import ConvProblem, Pass
from costmodel.resources import estimated
from costmodel.tiling import Plan, channels_last

TURING = find_device("t4")  # it has the least shared memory, 64 KiB
EVERY = [*DEVICES.values(), INTERPRETER]
#: What the command line calls them, and the rate that a device must have.
ARITHMETIC = {
    "fp16": ("float16", "ieee"),
    "bf16": ("bfloat16", "ieee"),
    "tf32": ("float32", "tf32"),
    "fp32": ("float32", "ieee"),
}


def named(device: Device) -> str:
    return device.name


def multiplies(device: Device) -> list[tuple[str, str]]:
    """The (dtype, precision) that a device has a rate for; the interpreter has all."""
    return [kind for rate, kind in ARITHMETIC.items() if device.interpreted or getattr(device, rate) is not None]


@pytest.mark.parametrize("number", range(len(EVERY)), ids=map(named, EVERY))
def test_what_is_chosen_and_what_is_ranked_is_accepted(number):
    """Workloads go round the devices, so that each device meets its share and none meets all."""
    device = EVERY[number]
    layers = [layer for layer in load() if layer.op.startswith("conv")][::3]
    assert len(layers) > 300
    for turn, layer in enumerate(layers[number :: len(EVERY)]):
        for dtype, precision in multiplies(device):
            for which in Pass:
                call = channels_last(layer.problem(), which, dtype, precision)
                chosen = select(call, device)
                assert checked(call, chosen, device) == chosen
                assert predict(call, chosen, device).seconds > 0
                if turn % 4 == 0:
                    refused = [(str(p), reason) for p in candidates(call, device) if (reason := refusal(call, p, device))]
                    assert not refused, refused[0]


@pytest.mark.parametrize("device", EVERY, ids=named)
def test_the_other_functions_choose_what_they_accept(device):
    for dtype, precision in multiplies(device):
        for channels, cached, upsample in ((384, 2, 1), (3, 0, 1), (96, 0, 2)):
            shapes = (1, channels, 1, 60, 104), (channels, channels, 3, 3, 3)
            chunk = video.Chunk.of(*shapes, cached, padding=(1,) * 4, upsample=upsample)
            for plan in video.candidates(chunk, dtype, precision, device):
                assert not video.refusal(chunk, plan, dtype, precision, device)
            assert not video.refusal(chunk, video.select(chunk, dtype, precision, device), dtype, precision, device)
        for layer in LAYERS[::4]:
            call = replace(layer.call(getattr(torch, dtype)), precision=precision)
            for pair in separable.candidates(call, device), [separable.select(call, device, True)]:
                assert not any(separable.refusal(call, plan, device) for plan in pair)


class Small(torch.nn.Sequential):
    """A convolution of each kind."""

    def __init__(self) -> None:
        stem, narrow, depthwise = nn.Conv2d(3, 64, 7, 2, 3), nn.Conv2d(64, 64, 3, groups=16), nn.Conv2d(64, 64, 13, groups=64)
        super().__init__(stem, nn.BatchNorm2d(64), narrow, depthwise, nn.Conv2d(64, 512, 1), nn.ConvTranspose2d(512, 8, 2, 2))


@pytest.mark.parametrize("device", [d for d in EVERY if not d.interpreted], ids=named)
def test_every_gpu_predicts(device):
    """Networks, layers and the functions of several layers; without a dtype in what the device has."""
    network = costmodel.trace(Small(), (16, 3, 64, 64))
    sources = set()
    for dtype in (None, "float16"):
        timed = network.on(device, dtype, training=True)
        assert all(row.seconds > 0 and row.low < row.seconds < row.high for row in timed)
        sources |= {source for row in timed for source in row.sources}
    old = device.capability < 80
    assert any("tritonconv does not run on" in source for source in sources) == old
    problem = network.convolutions[0].problem
    assert problem is not None
    for found in (
        costmodel.predict(problem, device=device),
        causal.forecast(8, 2048, 2048, 4, device),
        video.forecast((1, 8, 1, 9, 9), (8, 8, 3, 3, 3), 2, device),
    ):
        assert ("float16 is taken, since" in found.source) == ("does not run on" in found.source) == old
    call = replace(LAYERS[2].call(torch.float16), precision="ieee")
    plan = separable.candidates(call, device)[0]
    assert ("does not run on" in separable.predict(call, plan, device).source) == old
    if device.bf16 is None:
        for refused in (
            lambda: costmodel.predict(problem, device=device, dtype="bfloat16"),
            lambda: costmodel.predict(problem, device=device, dtype="float32", precision="tf32"),
            lambda: causal.forecast(8, 2048, 2048, 4, device, dtype="bfloat16"),
            lambda: video.forecast((1, 8, 1, 9, 9), (8, 8, 3, 3, 3), 2, device, dtype="bfloat16"),
            lambda: network.on(device, "bfloat16"),
        ):
            with pytest.raises(ValueError, match=r"no (bf16|tf32) rate, which .* asks for; it has fp16, fp32, fp64$"):
                refused()


def test_the_compiled_figure_counts_where_there_is_one():
    """128 x 256 x 64 in three stages: 147456 bytes by the size of its operands, 98304 in the compiled kernel for sm_80."""
    problem = ConvProblem.conv((32, 64, 56, 56), (256, 64, 1, 1), (1, 1), (0, 0), (1, 1))
    call, ada = channels_last(problem, Pass.FPROP, "bfloat16"), find_device("rtx4090")
    plan = Plan.parse("fprop:patch:128x256x64:w8:s3")
    assert estimated(plan.tile, 2).shared == 147456 > ada.shared_per_block
    assert resources_of(call, plan, ada).shared == 98304 <= ada.shared_per_block
    assert checked(call, plan, ada) == plan and select(call, ada) == plan
    with pytest.raises(ValueError, match="needs about 98304 bytes of shared memory, the device has 65536"):
        checked(call, plan, TURING)
    with pytest.raises(ValueError, match="needs about 163840 bytes of shared memory, the device has 101376"):
        checked(call, Plan.parse("fprop:patch:128x128x64:w8:s5"), ada)  # in no table


def test_a_depthwise_plan_of_too_many_lanes_does_not_fit():
    problem = ConvProblem.conv((8, 1 << 15, 9, 9), (1 << 15, 1, 3, 3), (1, 1), (1, 1), (1, 1), 1 << 15)
    call = channels_last(problem, Pass.WGRAD, "float16")
    plan = Plan.parse("wgrad:depthwise:4x32768x1:w32:s3:rows9")
    assert depthwise.shared_bytes(call, plan) == 131072
    assert "131072 bytes of shared memory" in refusal(call, plan, TURING)
    assert all(depthwise.shared_bytes(call, p) <= 8192 for p in candidates(call, TURING) if p.family == "depthwise")
