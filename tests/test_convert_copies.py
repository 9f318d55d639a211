"""Copies of models that share their memory and nothing else: nothing of a copy calls the original."""

import copy
import functools
import pickle
import threading
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import tritonconv
from tritonconv import convert

X = torch.randn(1, 3, 6, 6)


def test_a_parametrization_is_removed_from_the_copy_alone(launched):
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), parametrizations.weight_norm(nn.Conv2d(4, 2, 1)))
    want, other = model(X), convert(model)
    for part in other:
        nn.utils.parametrize.remove_parametrizations(part, "weight")
    assert [type(part) for part in other] == [tritonconv.nn.Conv2d] * 2
    torch.testing.assert_close(other(X), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(model(X), want) and nn.utils.parametrize.is_parametrized(model[0])
    by_hook = convert(nn.utils.weight_norm(nn.Conv2d(3, 4, 3)))
    nn.utils.remove_weight_norm(by_hook)
    assert list(by_hook.state_dict()) == ["bias", "weight"]


class Helper:
    def __init__(self, model):
        self.model = model


class Everything(nn.Module):
    """What models hold beside their layers, each of which can name a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)
        self.listed = [self.layer, {"it": (self.layer,)}]
        self.helper = Helper(self)
        self.bound = self.layer.forward
        self.partial = functools.partial(F.relu, inplace=False)
        self.called = lambda x: self.layer(x)
        self.weak = weakref.ref(self.layer)
        self.lock, self.seen, self.rnn = threading.Lock(), None, nn.LSTM(3, 2)
        self.layer.register_forward_hook(lambda module, given, made: self.mark(made))
        self.marks = []

    def mark(self, made):
        self.marks.append(1)
        return made

    def forward(self, x):
        parts = [self.listed[0], self.listed[1]["it"][0], self.helper.model.layer, self.called, self.weak(), self.bound]
        self.seen = [part(x) for part in parts]
        return sum(self.seen)


def test_nothing_of_a_copy_calls_the_original(launches):
    model = Everything()
    want, marks = model(X), len(model.marks)
    other = convert(model)
    torch.testing.assert_close(other(X), want, rtol=1e-5, atol=1e-5)
    assert launches()["fprop"] == 6
    assert len(model.marks) == marks and len(other.marks) == 2 * marks
    assert other.lock is model.lock and other.helper.model is other and other.rnn._flat_weights[0] is other.rnn.weight_ih_l0


def test_a_traced_graph(launches):
    model = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    want, other = model(X), convert(model)
    torch.testing.assert_close(other(X), want, rtol=1e-5, atol=1e-5)
    assert launches()["fprop"] == 1
    other.graph.erase_node(next(node for node in reversed(other.graph.nodes) if node.op == "output"))
    other.graph.output(None)
    other.recompile()
    assert other(X) is None and torch.equal(model(X), want)


def test_numpys_integers_reach_a_graph():
    model = convert(nn.Conv2d(3, 3, 1, stride=np.int64(2), groups=np.int64(3)))
    torch._dynamo.reset()
    assert torch.compile(model, fullgraph=True, backend="eager")(X).shape == (1, 3, 3, 3)
    torch._dynamo.reset()


def test_a_parametrization_is_removed_from_a_copy_that_stays_torchs():
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)))
    other = convert(model, only=lambda name, layer: False)
    nn.utils.parametrize.remove_parametrizations(other[0], "weight")
    assert model(X).shape == (1, 4, 4, 4) and model[0].parametrizations.weight.original0.requires_grad


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_parametrizations_come_and_go_on_a_converted_layer(launches):
    """In place, after the layer was converted, and after it was given back."""
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)))
    want = model(X)
    tritonconv.convert(model, inplace=True)
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    assert type(model[0]) is tritonconv.nn.Conv2d
    nn.utils.parametrize.register_parametrization(model[0], "weight", Twice())
    bias = model[0].bias[:, None, None]
    torch.testing.assert_close(model(X) - bias, 2 * (want - bias), rtol=1e-4, atol=1e-4)
    assert launches()["fprop"] == 1 and tritonconv.report(model).layers[0].replaced
    tritonconv.revert(model)
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    assert type(model[0]) is nn.Conv2d
    torch.testing.assert_close(model(X) - bias, 2 * (want - bias), rtol=1e-4, atol=1e-4)
    assert launches()["fprop"] == 1


def test_a_traced_graph_is_copied_and_filed_after_it_was_converted(launches):
    model = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    other = convert(model)
    for again in (copy.deepcopy(other), pickle.loads(pickle.dumps(other)), convert(other)):
        torch.testing.assert_close(again(X), model(X), rtol=1e-4, atol=1e-4)
        assert [node.op for node in again.graph.nodes] == [node.op for node in model.graph.nodes]
    assert launches()["fprop"] == 3


def test_a_layer_made_complex_after_it_was_converted_is_named_and_refused():
    other = convert(nn.Sequential(nn.Conv2d(3, 4, 3))).to(torch.complex64)
    assert tritonconv.report(other).left[0].reason == "its weights are complex64"
    with pytest.raises(RuntimeError, match=r"input has dtype torch\.complex64; tritonconv takes"):
        other(X.to(torch.complex64))
