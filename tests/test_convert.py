"""Modules under torch's names, and models whose convolutions are replaced."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import tritonconv
from tritonconv import convert
from tritonconv.swap import REPLACEMENTS

SIZES = {1: (2, 4, 9), 2: (2, 4, 6, 5), 3: (1, 4, 4, 5, 4)}


def rank(kind: type[nn.Module]) -> int:
    return int(kind.__name__[-2])


def close(model: nn.Module, x: torch.Tensor, *arguments: object) -> None:
    """The converted model's output and gradients are the model's."""
    other = convert(model)
    results = []
    for each in (model, other):
        each.zero_grad()
        leaf = x.clone().requires_grad_()
        y = each(leaf, *arguments)
        y.square().sum().backward()
        results.append([y, leaf.grad, *(p.grad.clone() for p in each.parameters())])
    for got, want in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", REPLACEMENTS)
def test_a_layer_computes_the_same(kind, launched):
    close(kind(4, 6, 3, stride=2, padding=1, dilation=1, groups=2), torch.randn(SIZES[rank(kind)]))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular", "zeros"])
def test_padding_modes(mode, launched):
    close(nn.Conv2d(4, 3, 3, padding=(1, 2), padding_mode=mode), torch.randn(SIZES[2]))


def test_same_padding(launched):
    close(nn.Conv1d(4, 3, 4, padding="same"), torch.randn(SIZES[1]))


def test_a_transposed_layer_takes_the_size_wanted(launched):
    model = nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1)
    close(model, torch.randn(SIZES[2]), [12, 10])
    assert convert(model)(torch.randn(SIZES[2]), output_size=[12, 10]).shape[2:] == (12, 10)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 2, 2, stride=2))


def test_parameters_are_shared_and_the_model_stays_as_it_was():
    model = net()
    other = convert(model)
    assert [type(part) for part in model] == [nn.Conv2d, nn.BatchNorm2d, nn.ConvTranspose2d]
    assert [type(part) for part in other] == [tritonconv.nn.Conv2d, nn.BatchNorm2d, tritonconv.nn.ConvTranspose2d]
    for a, b in zip((*model.parameters(), *model.buffers()), (*other.parameters(), *other.buffers()), strict=True):
        assert a is not b and a.data_ptr() == b.data_ptr() and type(a) is type(b)
    assert list(model.state_dict()) == list(other.state_dict())
    assert repr(other) == repr(model).replace("Conv", "tritonconv.Conv")
    with torch.no_grad():
        model[0].weight.zero_()
    assert not other[0].weight.any()
    other.load_state_dict(net().state_dict())
    assert model[0].weight.any()


def test_copies_and_files():
    other = convert(net().eval())
    x = torch.randn(SIZES[2])
    for again in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        assert [type(part) for part in again] == [type(part) for part in other] and again[0].weight is not other[0].weight
        torch.testing.assert_close(again(x), other(x))


def test_a_layer_alone_twice_and_none():
    layer = nn.Conv3d(2, 2, 1)
    assert type(convert(layer)) is tritonconv.nn.Conv3d and type(convert(convert(layer))) is tritonconv.nn.Conv3d
    twice = convert(nn.Sequential(layer, layer))
    assert twice[0] is twice[1]
    with pytest.raises(TypeError, match=r"convert\(\) takes a torch.nn.Module, got int"):
        convert(3)


def test_modules_are_made_as_torchs():
    torch.manual_seed(0)
    want = nn.ConvTranspose1d(4, 6, 3, groups=2)
    torch.manual_seed(0)
    got = tritonconv.nn.ConvTranspose1d(4, 6, 3, groups=2)
    assert torch.equal(got.weight, want.weight) and torch.equal(got.bias, want.bias)


def test_compiled():
    """One graph, with our ops in it."""
    seen = []

    def backend(graph, inputs):
        seen.append({str(node.target) for node in graph.graph.nodes})
        return graph.forward

    torch._dynamo.reset()
    model, x = convert(net().eval()), torch.randn(SIZES[2])
    torch.testing.assert_close(torch.compile(model, backend=backend, fullgraph=True)(x), model(x))
    assert len(seen) == 1 and any("tritonconv.fprop" in name for name in seen[0])
    torch._dynamo.reset()
