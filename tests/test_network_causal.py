"""The causal functions in a traced network: counted as torch's padded form is, and timed by their own plans."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from costmodel import causal, video
from costmodel.count import Cost
from costmodel.device import find_device
from costmodel.networks.crosscheck import crosscheck
from costmodel.networks.network import Network, trace
from costmodel.problem import Pass
from costmodel.tiling import channels_last
from tritonconv import causal_conv1d, causal_conv1d_update, causal_conv3d, conv2d_fused
from tritonconv.nn import DepthwiseSeparableConv2d

H200 = find_device("h200")
B, C, L, K = 2, 8, 16, 4


class Line(nn.Module):
    """causal_conv1d, or torch's operators on padded rows, behind a convolution so that x has a gradient."""

    def __init__(self, ours: bool, activation: str | None = None, state: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.ours, self.activation = ours, activation
        self.stem = nn.Conv1d(C, C, 1, bias=False)
        self.w = nn.Parameter(torch.empty(C, K))
        self.b = nn.Parameter(torch.empty(C)) if bias else None
        self.register_buffer("state", torch.zeros(B, C, K - 1) if state else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        if self.ours:
            y = causal_conv1d(x, self.w, self.b, self.activation, self.state)
            assert isinstance(y, torch.Tensor)
            return y
        x = F.pad(x, (K - 1, 0)) if self.state is None else torch.cat([self.state, x], 2)
        y = F.conv1d(x, self.w[:, None], self.b, groups=C)
        return F.silu(y) if self.activation else y


def counts(cost: Cost) -> tuple[int, ...]:
    return cost.useful_macs, cost.dense_macs, cost.bias_flops, cost.other_flops


def convolved(network: Network) -> tuple[Cost, Cost]:
    """Forward and backward of the last convolution."""
    layer = network.convolutions[-1]
    return layer.forward, layer.backward_cost


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("state", [False, True], ids=["zeros", "state"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_causal_conv1d_counts_as_its_padded_form(activation, state, bias):
    ours, theirs = (trace(Line(own, activation, state, bias), (B, C, L)) for own in (True, False))
    assert [layer.op for layer in ours.convolutions] == ["conv1d", "causal_conv1d"] and not ours.unknown
    assert counts(ours.inference) == counts(theirs.inference)
    assert counts(ours.training_step) == counts(theirs.training_step)
    forward, backward = convolved(ours)
    assert forward.dense_macs == B * C * L * K == 1024 and backward.dense_macs == 2 * 1024
    assert forward.useful_macs == (1024 if state else 1024 - B * C * (3 + 2 + 1))  # 928
    assert backward.useful_macs == 2 * forward.useful_macs
    tensors = 2 * B * C * L + C * K + C * bias + B * C * (K - 1) * state
    assert forward.bytes == 4 * tensors
    assert not [row for row in crosscheck(Line(True, activation, state, bias), (B, C, L), network=ours) if not row.explained]


class Packed(Line):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return causal_conv1d(self.stem(x), self.w, cu_seqlens=torch.tensor([0, 5, 12, L], dtype=torch.int32))


def test_each_packed_sequence_begins_anew():
    forward, backward = convolved(trace(Packed(True), (1, C, L)))
    assert forward.useful_macs == C * (L * K - 3 * (3 + 2 + 1)) and forward.dense_macs == C * L * K
    assert backward.useful_macs == 2 * forward.useful_macs


class Token(nn.Module):
    def __init__(self, columns: int = K - 1, ring: bool = False) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.empty(C, K), False), nn.Parameter(torch.empty(C), False)
        self.register_buffer("state", torch.zeros(5, C, columns))  # a pool of more rows than are used
        self.register_buffer("had", torch.zeros(B, dtype=torch.int32) if ring else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = torch.zeros(B, dtype=torch.int32)
        return causal_conv1d_update(x, self.state, self.w, self.b, "silu", self.had, rows)


@pytest.mark.parametrize("columns, ring, touched", [(3, False, 6), (6, False, 12), (6, True, 3 + 2)])
def test_an_update_meets_no_padding(columns, ring, touched):
    network = trace(Token(columns, ring), (B, C, 2))
    (layer,) = network.convolutions
    assert layer.op == "causal_conv1d_update" and layer.weight_shape == (C, K) and not network.unknown
    assert layer.forward.useful_macs == layer.forward.dense_macs == B * C * 2 * K
    assert layer.forward.bytes == 4 * (2 * B * C * 2 + C * K + C + B * C * touched) + 4 * B * (2 if ring else 1)
    row = network.on(H200, "fp32")[-1]
    assert row.layer is layer and row.bound == "launch" and row.seconds < 2 * H200.launch_overhead


class Chunked(nn.Module):
    """causal_conv3d, or torch's operators on the frames written out, behind a convolution so that x has a gradient."""

    def __init__(self, ours: bool, cached: int = 0, time_padding: str = "zeros", upsample: int = 1) -> None:
        super().__init__()
        self.ours, self.time_padding, self.upsample = ours, time_padding, upsample
        self.stem = nn.Conv3d(C, C, 1, bias=False)
        self.conv = nn.Conv3d(C, 6, 3)
        self.register_buffer("cache", torch.zeros(1, C, cached, 4, 5) if cached else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, (w, b) = self.stem(x), (self.conv.weight, self.conv.bias)
        if self.ours:
            padding = {"padding": 1, "time_padding": self.time_padding, "upsample": self.upsample}
            return causal_conv3d(x, w, b, cache=self.cache, **padding)[0]
        x = x if self.cache is None else torch.cat([self.cache, x], 2)
        front = 2 - (0 if self.cache is None else self.cache.shape[2])
        if self.upsample > 1:
            x = F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest")
        if self.time_padding == "replicate" and front:
            x, front = F.pad(x, (0, 0, 0, 0, front, 0), mode="replicate"), 0
        return F.conv3d(F.pad(x, (1, 1, 1, 1, front, 0)), w, b)


CHUNKS = {
    "a first chunk": {},
    "cached": {"cached": 2},
    "half a cache": {"cached": 1},
    "replicated": {"time_padding": "replicate"},
    "magnified": {"cached": 2, "upsample": 2},
}


@pytest.mark.parametrize("change", CHUNKS.values(), ids=CHUNKS)
def test_causal_conv3d_counts_as_its_padded_form(change):
    shape = (1, C, 3, 4, 5)
    ours, theirs = (trace(Chunked(own, **change), shape) for own in (True, False))
    layer, padded = ours.convolutions[-1], theirs.convolutions[-1]
    assert layer.op == "causal_conv3d" and not ours.unknown and len(ours.convolutions) == 2
    assert counts(layer.forward) == counts(padded.forward)
    for which in ("dgrad", "wgrad"):
        found, known = (next(s.cost for s in of.backward if s.which == which) for of in (layer, padded))
        assert (found.useful_macs, found.dense_macs) == (known.useful_macs, known.dense_macs) == counts(layer.forward)[:2]
    assert isinstance(layer.call, video.Chunk)
    assert layer.forward.bytes == video.compulsory(layer.call, 4) + 4 * 6  # and the bias
    assert layer.fields is not None and padded.fields is not None
    assert layer.fields[1:] == padded.fields[1:]  # the receptive field along rows and columns
    assert layer.fields[0].spans == ((-2, 0),)  # along frames torch's is lost in a cat
    assert layer.fields[0] == padded.fields[0] or "cached" in change


def test_their_time_is_that_of_their_own_plans():
    network = trace(Line(True, "silu"), (8, C, 4096), dtype=torch.bfloat16)
    own = network.on(H200, training=True)[-1]
    call = channels_last(causal.problem_of(8, C, 4096, K), Pass.FPROP, "bfloat16")
    kinds = causal.Kind(True), causal.Kind(True, True)
    whole = sum(causal.predict(call, causal.select(call, H200, kind), H200, kind).seconds for kind in kinds)
    assert own.layer.op == "causal_conv1d" and own.seconds == pytest.approx(whole)
    network = trace(Chunked(True, 2), (1, C, 3, 4, 5), dtype=torch.bfloat16)
    own, chunk = network.on(H200)[-1], network.convolutions[-1].call
    assert isinstance(chunk, video.Chunk)
    plan = video.select(chunk, "bfloat16", "ieee", H200)
    assert own.seconds == video.predict(chunk, plan, "bfloat16", "ieee", H200).seconds


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair = DepthwiseSeparableConv2d(C, 24, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pair(x)


def test_gradients_of_a_pair_are_of_their_own_convolutions():
    """Both convolutions share one node of autograd: each gradient is timed as the pass that it is."""
    network = trace(Pair(), (2, C, 9, 9))
    depthwise, pointwise = network.convolutions
    assert depthwise.forward.useful_macs == 2 * C * 25 * 25 and pointwise.forward.useful_macs == 2 * C * 24 * 81
    steps = [step for layer in network.convolutions for step in layer.backward if step.which]
    found = {(step.which, step.problem): step.cost.useful_macs for step in steps}
    assert found[("wgrad", pointwise.problem)] == pointwise.forward.useful_macs
    assert found[("wgrad", depthwise.problem)] == depthwise.forward.useful_macs
    assert all(step.problem is not None and step.cost.useful_macs == step.problem.useful_macs for step in steps)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, C, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return conv2d_fused(x, self.conv.weight, padding=1, residual=x, activation="relu")


def test_a_fused_layers_useful_count_leaves_padding_out():
    (layer,) = trace(Residual(), (1, C, 9, 9)).convolutions
    assert layer.forward.useful_macs == C * C * 25 * 25 < layer.forward.dense_macs == C * C * 9 * 81
