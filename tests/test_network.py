"""Whole networks: every convolution found and counted right, plain, fused, transposed, and in published models."""

from importlib.util import find_spec
from math import prod

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from costmodel.count import Cost
from costmodel.device import DEVICES
from costmodel.networks.crosscheck import counts_groups_of_weight_gradients, crosscheck
from costmodel.networks.models import load
from costmodel.networks.network import trace
from tritonconv import conv2d, conv2d_fused, conv_transpose2d_fused
from tritonconv.epilogue import ACTIVATIONS
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
