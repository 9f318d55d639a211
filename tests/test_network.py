"""Whole networks: every convolution found and counted right, gradients only where they are needed, nothing lost in silence."""

import json
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from math import prod

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from costmodel.count import Cost
from costmodel.device import DEVICES
from costmodel.networks.crosscheck import UNEXPLAINED, counts_groups_of_weight_gradients, crosscheck
from costmodel.networks.models import load
from costmodel.networks.network import Layer, Network, trace
from costmodel.networks.operators import ELEMENTWISE, REDUCTIONS
from costmodel.networks.sweeps import read_again
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import channels_last
from tritonconv import conv2d, conv2d_fused, conv_transpose2d_fused
from tritonconv.epilogue import ACTIVATIONS
from tritonconv.layout import channels_last_strides, operand
from tritonconv.nn import DepthwiseSeparableConv2d

N, C, H, W = X = 2, 32, 20, 24
needs_torchvision = pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
H200 = DEVICES["NVIDIA H200"]


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(48, C, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.w, padding=1)


class Ours(Functional):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return conv2d(x, self.w, padding=1)


def normed(conv: nn.Module) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(conv)


def dense(x: tuple[int, ...], out: int, kernel: tuple[int, ...], size: tuple[int, ...], groups: int = 1) -> int:
    """batch * output channels * input channels of a group * taps * positions, all written out by hand."""
    return x[0] * out * (x[1] // groups) * prod(kernel) * prod(size)


#: The module, its input, and the dense multiply-adds (of the output's positions; of the input's where transposed).
CASES = {
    "conv 3x3 p1": (nn.Conv2d(C, 48, 3, padding=1), X, dense(X, 48, (3, 3), (20, 24))),
    "g=4": (nn.Conv2d(C, 48, 3, padding=1, groups=4), X, dense(X, 48, (3, 3), (20, 24), 4)),
    "depthwise": (nn.Conv2d(C, C, 3, padding=1, groups=C), X, dense(X, C, (3, 3), (20, 24), C)),
    "dilated": (nn.Conv2d(C, 48, 3, padding=2, dilation=2), X, dense(X, 48, (3, 3), (20, 24))),
    "stride 2": (nn.Conv2d(C, 48, 3, stride=2, padding=1), X, dense(X, 48, (3, 3), (10, 12))),
    "same k=4": (nn.Conv2d(C, 48, 4, padding="same"), X, dense(X, 48, (4, 4), (20, 24))),
    "conv1d": (nn.Conv1d(C, 48, 5, padding=2), (2, C, 50), dense((2, C), 48, (5,), (50,))),
    "conv3d": (nn.Conv3d(C, 16, 3), (2, C, 8, 9, 10), dense((2, C), 16, (3, 3, 3), (6, 7, 8))),
    "convT k3 s2": (nn.ConvTranspose2d(C, 48, 3, stride=2), X, dense(X, 48, (3, 3), (20, 24))),
    "convT k3 s2 output_padding": (
        nn.ConvTranspose2d(C, 48, 3, stride=2, padding=1, output_padding=1),
        X,
        dense(X, 48, (3, 3), (20, 24)),
    ),
    "convT g=4": (nn.ConvTranspose2d(C, 48, 3, stride=2, groups=4), X, dense(X, 48, (3, 3), (20, 24), 4)),
    "convT depthwise": (nn.ConvTranspose2d(C, C, 3, stride=2, groups=C), X, dense(X, C, (3, 3), (20, 24), C)),
    "unbatched": (nn.Conv2d(C, 48, 3, padding=1), X[1:], dense((1, C), 48, (3, 3), (20, 24))),
    "F.conv2d": (Functional(), X, dense(X, 48, (3, 3), (20, 24))),
    "tritonconv": (Ours(), X, dense(X, 48, (3, 3), (20, 24))),
    "weight_norm": (normed(nn.Conv2d(C, 48, 3, padding=1)), X, dense(X, 48, (3, 3), (20, 24))),
    "weight_norm convT": (normed(nn.ConvTranspose2d(C, 48, 3)), X, dense(X, 48, (3, 3), (20, 24))),
}


@pytest.mark.parametrize("case", CASES)
def test_every_convolution_is_found_and_counted_once(case: str) -> None:
    module, shape, expected = CASES[case]
    network = trace(module, shape)
    (layer,) = network.convolutions
    assert layer.forward.dense_macs / expected == 1
    assert network.inference.dense_macs / expected == 1
    # forward and the weight gradient; the network's own input needs none
    assert [step.which for step in layer.backward] == ["wgrad"]
    assert network.training_step.dense_macs / expected == 2
    assert not network.unknown and not network.notes
    assert network.parameters == sum(p.numel() for p in module.parameters()) == sum(row.parameters for row in network.layers)
    assert not [row for row in crosscheck(module, shape, network=network) if not row.explained]


class Fused(nn.Module):
    """A fused layer with every input, as one operator or as its chain."""

    def __init__(self, activation: str | None, transposed: bool = False, chained: bool = False) -> None:
        super().__init__()
        self.activation, self.transposed, self.chained = activation, transposed, chained
        self.w = nn.Parameter(torch.empty(C, C, 3, 3))
        self.b, self.scale, self.shift = (nn.Parameter(torch.empty(C)) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.chained:
            call = conv_transpose2d_fused if self.transposed else conv2d_fused
            after = {"scale": self.scale, "shift": self.shift, "residual": x, "activation": self.activation}
            return call(x, self.w, self.b, padding=1, **after)
        y = (F.conv_transpose2d if self.transposed else F.conv2d)(x, self.w, self.b, padding=1)
        y = y * self.scale[:, None, None] + self.shift[:, None, None] + x
        return ACTIVATIONS[self.activation].forward(y, 0.01) if self.activation else y


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_a_fused_layer_is_its_chain_with_less_traffic(activation: str | None, transposed: bool) -> None:
    fused, chain = (trace(Fused(activation, transposed, chained), X) for chained in (False, True))
    (layer,) = fused.convolutions
    assert layer.op == ("conv_transpose2d" if transposed else "conv2d") and fused.layers == (layer,)
    assert not fused.unknown and not fused.notes
    ours, theirs = fused.inference, chain.inference
    assert (ours.useful_macs, ours.dense_macs) == (theirs.useful_macs, theirs.dense_macs)
    assert (ours.bias_flops, ours.other_flops) == (theirs.bias_flops, theirs.other_flops)
    result = prod(X)  # as large as the input and the residual
    weights = fused.parameters
    assert ours.bytes == 4 * (3 * result + weights)
    # the backward pass of these asks for z, which inference does not write
    kept = [step.cost.bytes for step in layer.backward if step.op == layer.operator]
    assert kept == ([4 * result] if activation in ("gelu", "gelu_tanh", "silu", "hardswish") else [])
    assert layer.fields == chain.layers[-1].fields
    assert {"wgrad"} <= {step.which for step in layer.backward}


def test_fused_modules_are_traced_with_their_gradients() -> None:
    network = trace(DepthwiseSeparableConv2d(8, 16, 3, padding=1, activation="relu"), (2, 8, 14, 14))
    assert len(network.convolutions) == 2
    macs = 2 * 14 * 14 * 8 * (9 + 16)
    assert network.inference.dense_macs == macs and not network.unknown
    # the image needs no gradient, and the backward pass makes the depthwise result again
    assert network.training_step.dense_macs == 3 * macs
    assert len(trace(DepthwiseSeparableConv2d(8, 16, 3), (2, 8, 14, 14)).convolutions) == 2
    assert network.inference.other_flops == 2 * 14 * 14 * (8 + 16)


@pytest.mark.parametrize("groups", [1, 2, 32])
@pytest.mark.parametrize("conv", [nn.Conv2d, nn.ConvTranspose2d])
def test_backward_is_twice_forward_whatever_the_groups(conv: type[nn.Module], groups: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, C, 1), conv(C, 64, 3, padding=1, groups=groups))
    second = trace(model, (2, 3, 20, 24)).convolutions[1]
    assert {step.which for step in second.backward} == ({"dgrad", "wgrad"} if conv is nn.Conv2d else {"fprop", "wgrad"})
    assert second.backward_cost.dense_macs == 2 * second.forward.dense_macs
    assert second.backward_cost.useful_macs == 2 * second.forward.useful_macs
    row = next(row for row in crosscheck(model, (2, 3, 20, 24)) if row.op == "convolution_backward")
    if groups == 1 or not counts_groups_of_weight_gradients():
        assert row.ours == row.torch and row.explanation == ""
    else:
        assert row.torch > row.ours and "number of groups" in row.explanation


@pytest.mark.parametrize("conv", [nn.Conv1d, nn.Conv3d])
def test_same_padding_is_one_problem_and_its_copy_a_row(conv: type[nn.Module]) -> None:
    rank = 1 if conv is nn.Conv1d else 3
    network = trace(conv(4, 6, 4, padding="same", dilation=3, bias=False), (2, 4, *(9, 10, 11)[:rank]))
    (layer,) = network.convolutions
    assert layer.problem is not None
    assert layer.problem.padding == ((4, 5),) * rank
    assert layer.problem.input_size == (9, 10, 11)[:rank]
    assert layer.problem.output_shape == layer.output_shape
    assert layer.backward_cost.useful_macs == layer.forward.useful_macs < layer.forward.dense_macs
    (pad,) = (row for row in network.layers if row.op == "constant_pad_nd")
    padded = 2 * 4 * prod(n + 1 for n in (9, 10, 11)[:rank])
    assert pad.forward == Cost(bytes=4 * (padded + 8 * prod((9, 10, 11)[:rank])), im2col_bytes=pad.forward.bytes)


def test_explicit_padding_counts_as_padding_only_where_it_is_zero_and_untouched() -> None:
    class Padded(nn.Module):
        def __init__(self, how: str) -> None:
            super().__init__()
            self.conv, self.how = nn.Conv2d(4, 4, 3, padding=(0, 1)), how

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.pad(x, (1, 2, 3, 4), value=1.0 if self.how == "ones" else 0.0)
            return self.conv(x.add_(1) if self.how == "changed" else x)

    def padding(how: str) -> tuple[tuple[int, int], ...]:
        problem = trace(Padded(how), (1, 4, 8, 8)).convolutions[0].problem
        assert problem is not None
        return problem.padding

    assert padding("zeros") == ((3, 4), (2, 3))
    assert padding("ones") == padding("changed") == ((0, 0), (1, 1))


PUBLISHED = {
    # GMAC as torchvision's model pages print GFLOPS (a multiply-add counted once), and parameters
    "resnet50": ("4.09", 25_557_032),
    "vgg16": ("15.47", 138_357_544),
    "mobilenet_v2": ("0.30", 3_504_872),
    "efficientnet_b0": ("0.39", 5_288_548),
    "convnext_tiny": ("4.46", 28_589_128),
}


@needs_torchvision
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name: str) -> None:
    """Convolutions and linear layers, without biases, normalisation, activations and pooling: the published convention.

    The papers differ where they say so: 15.5 for VGG-16 and 0.3 for MobileNetV2 are these, rounded further; ResNet's paper
    has 3.8 for ResNet-50, with the stride in the 1x1 convolutions that torchvision moved to the 3x3 ones.
    """
    model = load(f"torchvision.models:{name}")
    network = trace(model, (1, 3, 224, 224))
    gmac, parameters = PUBLISHED[name]
    assert f"{network.inference.dense_macs / 1e9:.2f}" == gmac
    assert network.parameters == parameters == sum(layer.parameters for layer in network.layers)
    assert not network.unknown and not network.notes
    assert all(layer.problem.output_shape == layer.output_shape for layer in network.convolutions if layer.problem)
    assert all(row.explained for row in crosscheck(model, (1, 3, 224, 224), network=network))


@needs_torchvision
@pytest.mark.parametrize(("size", "share"), [(224, 0.966), (112, 0.928), (64, 0.888)])
def test_resnet_meets_padding(size: int, share: float) -> None:
    convolutions = trace(load("torchvision.models:resnet50").requires_grad_(False), (1, 3, size, size)).convolutions
    useful = sum(layer.forward.useful_macs for layer in convolutions)
    assert round(useful / sum(layer.forward.dense_macs for layer in convolutions), 3) == share


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.stem(x)).mean((2, 3)))


def rows(network: Network) -> dict[str, Layer]:
    return {layer.name: layer for layer in network.layers}


def test_rows_of_a_small_network() -> None:
    network = trace(Small(), (4, 3, 10, 10))
    found = rows(network)
    assert list(found) == ["stem.0", "stem.1", "stem.2", "pool", "mean", "head"]
    assert found["stem.1"].forward.other_flops == 2 * 4 * 8 * 64  # a scale and a shift
    assert found["stem.2"].forward == Cost(other_flops=2048, bytes=2 * 4 * 2048, im2col_bytes=2 * 4 * 2048)
    assert found["pool"].forward.other_flops == 4 * 4 * 8 * 16
    assert found["mean"].forward.other_flops == 4 * 8 * 16
    assert (found["head"].forward.dense_macs, found["head"].forward.bias_flops) == (4 * 8 * 5, 4 * 5)
    assert found["head"].forward.bytes == 4 * (4 * 8 + 8 * 5 + 5 + 4 * 5)
    assert [step.op for step in found["head"].backward] == ["mm", "mm", "sum"]
    assert [step.op for step in found["stem.2"].backward] == ["threshold_backward"]
    training = rows(trace(Small(), (4, 3, 10, 10), train=True))
    assert training["stem.1"].forward.other_flops == 8 * 4 * 8 * 64  # mean and variance too


def test_totals_groups_and_training_run() -> None:
    network = trace(Small(), (4, 3, 10, 10))
    assert network.inference + sum((layer.backward_cost for layer in network.layers), Cost()) == network.training_step
    groups = network.groups(1)
    assert [group.name for group in groups] == ["stem", "pool", "", "head"]
    assert sum((group.forward for group in groups), Cost()) == network.inference
    assert sum(group.parameters for group in groups) == network.parameters == 8 * 27 + 16 + 45
    assert network.training_run(samples=10, epochs=3) == network.training_step * 9
    with pytest.raises(ValueError, match="samples must not be negative, got -1"):
        network.training_run(-1)
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        network.groups(0)


def test_a_frozen_layer_has_no_weight_gradient_and_what_is_before_it_no_gradient_at_all() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 6, 1))
    model[1].requires_grad_(False)
    first, second, third = trace(model, (1, 3, 8, 8)).convolutions
    assert [step.which for step in first.backward] == ["wgrad"]
    assert [step.which for step in second.backward] == ["dgrad"]
    assert [step.which for step in third.backward] == ["dgrad", "wgrad"]
    model[0].requires_grad_(False)
    first, second, third = trace(model, (1, 3, 8, 8)).convolutions
    assert (first.backward, second.backward) == ((), ())
    assert [step.which for step in third.backward] == ["wgrad"]
    frozen = trace(model.requires_grad_(False), (1, 3, 8, 8))
    assert frozen.notes == ("no parameter requires a gradient",)
    assert frozen.training_step == frozen.inference


def test_a_transposed_convolution_with_bias() -> None:
    (layer,) = trace(nn.ConvTranspose2d(4, 6, 3, stride=2), (2, 4, 5, 5)).layers
    assert (layer.op, layer.which, layer.output_shape) == ("conv_transpose2d", Pass.DGRAD, (2, 6, 11, 11))
    assert layer.forward.bias_flops == layer.backward_cost.bias_flops == 2 * 6 * 11 * 11
    tensors = 2 * 4 * 25 + 4 * 6 * 9 + 2 * 6 * 121
    assert layer.forward.bytes == layer.backward_cost.bytes == 4 * (tensors + 6)


def test_an_in_place_operator_keeps_its_copy_for_the_gradient_out_of_inference() -> None:
    network = trace(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU6(inplace=True)), (1, 3, 8, 8))
    _, relu = network.layers
    assert relu.name == "1" and relu.forward.bytes == 2 * 4 * 4 * 64
    assert [step.op for step in relu.backward] == ["clone", "hardtanh_backward"]


def test_unknown_operators_are_listed_and_their_bytes_counted() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(torch.special.bessel_j0(x)) + torch.linalg.inv(x)

    network = trace(Odd(), (4, 4))
    assert network.unknown == {"special_bessel_j0": 2, "linalg_inv_ex": 1}
    unknown = [layer for layer in network.layers if not layer.known]
    assert len(unknown) == 3
    assert all(layer.forward.bytes > 0 and layer.forward.other_flops == 0 for layer in unknown)


def test_attention_recurrence_and_embedding() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    network = trace(layer, (3, 7, 16))
    tokens = 3 * 7
    assert network.inference.dense_macs == tokens * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 3 * 7 * 7 * 16
    assert not network.unknown
    assert {row.explanation for row in crosscheck(layer, (3, 7, 16))} <= {
        "",
        "torch has a formula for fused attention on a GPU, none for it on a CPU",
    }

    lstm = trace(nn.LSTM(5, 6, batch_first=True), (2, 4, 5))
    assert lstm.inference.dense_macs == 2 * 4 * 4 * 6 * (5 + 6)
    assert not lstm.unknown

    table = trace(nn.Embedding(1000, 8), torch.zeros(2, 3, dtype=torch.long))
    (row,) = table.layers
    assert row.forward.bytes == 2 * (2 * 3 * 8) * 4 + 2 * 3 * 8  # rows read and written, indices read


def test_weights_may_be_anywhere_and_are_left_alone() -> None:
    model = Small().eval()
    model.stem[1].train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    fused = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    real = trace(model, (4, 3, 10, 10), train=True)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled) == fused
    with torch.device("meta"):
        assert trace(Small(), (4, 3, 10, 10), train=True) == real
    assert trace(model, torch.empty(4, 3, 10, 10, device="meta"), train=True) == real


def test_a_trace_may_follow_torchs_own_test_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.library.opcheck` imports them, and they forbid setting flags of torch's backends but in a `with`."""
    monkeypatch.setitem(torch.backends.flags_frozen.__globals__, "__allow_nonbracketed_mutation_flag", False)
    assert len(trace(nn.Conv2d(3, 8, 3), (1, 3, 8, 8)).layers) == 1


def test_tensors_kept_outside_buffers_join_in() -> None:
    class Offset(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.offset = nn.Linear(4, 4), torch.ones(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) + self.offset + torch.ones(4)

    with torch.device("meta"):
        model = Offset()
    assert not trace(model, (2, 4)).unknown
    assert trace(Offset(), (2, 4)).inference.dense_macs == 32


def test_dtype_scales_bytes_and_nothing_else() -> None:
    network = trace(Small(), (4, 3, 10, 10))
    half = trace(Small(), (4, 3, 10, 10), dtype=torch.bfloat16)
    assert half.dtype == "bfloat16"
    layer, other = rows(network)["stem.0"], rows(half)["stem.0"]
    assert layer.in_dtype("bfloat16") == other
    assert other.forward.bytes * 2 == layer.forward.bytes
    assert replace(other.forward, bytes=0, im2col_bytes=0) == replace(layer.forward, bytes=0, im2col_bytes=0)
    with pytest.raises(ValueError, match="dtype 'int4' is unknown: one of fp16, bf16, tf32, fp32"):
        network.on(H200, "int4")


def test_time_on_a_device() -> None:
    network = trace(Small(), (64, 3, 64, 64))
    inference, training = network.on(H200, "bfloat16"), network.on(H200, "bfloat16", training=True)
    for timed in (inference, training):
        assert sum(row.share for row in timed) == pytest.approx(1)
        assert all(row.seconds >= H200.launch_overhead and row.bound for row in timed)
        assert [row.layer.name for row in timed] == [layer.name for layer in network.layers]
        for row in timed:  # nothing is faster than its bytes or its multiply-adds
            assert row.seconds > row.cost.bytes / (H200.bandwidth * 1e9)
            assert row.seconds > row.cost.useful_flops / H200.rate("bfloat16")
    assert all(b.seconds > a.seconds for a, b in zip(inference, training, strict=True))
    slow = replace(H200, bandwidth=H200.bandwidth / 1e6)
    assert {row.bound for row in network.on(slow, "bfloat16")} == {"DRAM"}
    (*_, head) = network.on(replace(H200, fp32=1e-6), "float32")
    assert (head.layer.op, head.bound) == ("addmm", "arithmetic")
    assert head.seconds == pytest.approx((2 * 64 * 8 * 5 + 64 * 5) / 1e6 + H200.launch_overhead)


@pytest.mark.parametrize("which", Pass)
@pytest.mark.parametrize("groups", [1, 4])
def test_channels_last_calls_are_those_of_dense_tensors(which: Pass, groups: int) -> None:
    problem = ConvProblem.conv((4, 24, 9, 9), (16, 24 // groups, 3, 3), (1, 1), (1, 1), (1, 1), groups)
    shapes = problem.input_shape, problem.weight_shape, problem.output_shape
    x, w, y = (operand(s, channels_last_strides(s), groups, int(i != 1)) for i, s in enumerate(shapes))
    expected = {Pass.FPROP: (x, w, y), Pass.DGRAD: (y, w, x), Pass.WGRAD: (y, x, w)}[which]
    call = channels_last(problem, which, "float16", "ieee")
    if groups == 1:
        assert (call.a, call.b, call.out) == expected
    else:  # a weight's group starts on whole filters, so it may be aligned better than said
        assert (call.a.unit, call.b.unit, call.out.unit) == (1, 1, 1)
        assert all(said.align <= true.align for said, true in zip((call.a, call.b, call.out), expected, strict=True))


def test_bad_input_says_which_module_refused_which_shape() -> None:
    model = Small()
    with pytest.raises(ValueError) as caught:
        trace(model, (4, 4, 10, 10))
    assert str(caught.value).startswith("stem.0 (Conv2d) does not take [4, 4, 10, 10]: ")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"^stem.1 \(BatchNorm2d\) does not take \[8, 8, 8\]: "):
        trace(model, (3, 10, 10))
    with pytest.raises(ValueError, match=r"^input 0 must be a shape of positive sizes, got \[4, 0, 3\]$"):
        trace(model, (4, 0, 3))
    with pytest.raises(ValueError, match=r"^the model \(Small\) does not take its arguments: "):
        trace(model)
    with pytest.raises(TypeError, match=r"^model must be a torch.nn.Module, got function$"):
        trace(lambda x: x, (1, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="parameters without a shape"):
        trace(nn.LazyConv2d(4, 3), (1, 3, 8, 8))
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_whose_shapes_depend_on_values_is_refused() -> None:
    class Picks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[x > 0]

    class Reads(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum().item() > 0 else -x

    for model in (Picks(), Reads()):
        with pytest.raises(
            ValueError, match=r"does not take \[2, 3\]: its result depends on values, and a trace has none \(aten"
        ):
            trace(model, (2, 3))


def test_a_model_without_a_backward_pass_says_so() -> None:
    class NoGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x + 1

        @staticmethod
        def backward(ctx: object, dy: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("not differentiable\nat all")

    class Model(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return NoGradient.apply(super().forward(x))

    assert trace(Model(2, 2), (1, 2)).notes == ("the backward pass could not be traced: not differentiable",)

    class Detached(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).detach()

    assert trace(Detached(2, 2), (1, 2)).notes == ("no output requires a gradient",)


def test_the_tables_do_not_contradict_each_other() -> None:
    assert not set(ELEMENTWISE) & set(REDUCTIONS)


def test_unexplained_differences_are_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(4, 5)
    network = trace(model, (2, 4))
    twice = replace(network, layers=(network.layers[0], *network.layers))
    row = next(row for row in crosscheck(model, (2, 4), network=twice) if row.op == "addmm")
    assert (row.ours, row.torch, row.explanation, row.explained) == (160, 80, UNEXPLAINED, False)


def test_rows_are_plain_data() -> None:
    layer = trace(Small(), (4, 3, 10, 10)).layers[0]
    assert json.loads(json.dumps({"input": layer.input_shape, "macs": layer.forward.dense_macs})) == {
        "input": [4, 3, 10, 10],
        "macs": 4 * 8 * 27 * 64,
    }


class Pattern(nn.Module):
    """A normalisation behind a convolution, so that x has a gradient."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 1), norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.stem(x))


#: The module, whether it trains, and how often each direction moves a tensor of x's size.
NORMS = {
    "batch norm": (nn.BatchNorm2d(8), True, 3, 5),
    "batch norm with stored statistics": (nn.BatchNorm2d(8), False, 2, 3),
    "batch norm without parameters": (nn.BatchNorm2d(8, affine=False), True, 3, 5),
    "instance norm": (nn.InstanceNorm2d(8), False, 3, 5),
    "group norm": (nn.GroupNorm(2, 8), False, 3, 5),
    "layer norm": (nn.LayerNorm([8, 64, 64]), False, 2, 5),
    "layer norm without parameters": (nn.LayerNorm([8, 64, 64], elementwise_affine=False), False, 2, 3),
}


@pytest.mark.parametrize("norm, train, forward, backward", NORMS.values(), ids=NORMS)
def test_what_a_normalisation_reads_twice(norm: nn.Module, train: bool, forward: int, backward: int) -> None:
    """Compulsory bytes are one transfer of each tensor; the prediction's are those that a statistic takes."""
    network = trace(Pattern(norm), (64, 3, 64, 64), train=train)
    layer = next(row for row in network.layers if "norm" in row.op)
    x = 4 * 64 * 8 * 64 * 64
    assert (layer.forward.bytes // x, layer.backward_cost.bytes // x) == (2, 3)
    again = layer.forward.read_again, layer.backward_cost.read_again
    assert again == ((forward - 2) * x, (backward - 3) * x)
    for training, moved in ((False, forward), (True, forward + backward)):
        row = next(row for row in network.on(H200, "float32", training=training) if row.layer is layer)
        launches = 1 + training * len(layer.backward)
        seconds = row.seconds - launches * H200.launch_overhead
        assert seconds == pytest.approx(moved * x / (H200.bandwidth * 1e9), rel=0.02)
        assert row.cost.bytes // x == (2 + 3 * training)
    half = layer.in_dtype("float16")
    assert (half.forward.read_again, half.backward_cost.read_again) == tuple(n // 2 for n in again)


def test_a_gradient_that_is_not_asked_for_reads_nothing_twice() -> None:
    x, w = torch.empty(4, 8), torch.empty(8)
    rms = partial(read_again, "_fused_rms_norm_backward")  # which torch takes apart on a CPU
    assert rms([x, x, [8], w, w, [True, True]]) == 2 * 4 * 32 and rms([x, x, [8], w, w, [True, False]]) == 0
    group = partial(read_again, "native_group_norm_backward")
    assert group([x, x, w, w, w, 4, 8, 1, 2, [True, True, True]]) == 2 * 4 * 32
    assert group([x, x, w, w, w, 4, 8, 1, 2, [False, True, True]]) == 0  # sums alone
    assert read_again("cudnn_batch_norm_backward", [x, x, w, w, w, w, w, 1e-5, x]) == 2 * 4 * 32
    assert read_again("_softmax", [x, 1, False]) == read_again("native_layer_norm", [x, [8], w, w, 1e-5]) == 0
