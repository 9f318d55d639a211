"""Models as people have them: subclasses, hooks, parametrizations, what cannot be copied; the table and the way back."""

import functools
import pickle
import re
import threading
import types

import pytest
import torch
from torch import nn
from torch.ao.nn import qat
from torch.ao.quantization import get_default_qat_qconfig
from torch.nn.functional import conv2d as renamed
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.parametrize import is_parametrized

import tritonconv
from tritonconv import convert, report, revert

X = torch.randn(1, 3, 6, 6)


class Plain(nn.Conv2d):
    """Nothing of its own, as torchvision's Conv3DSimple."""


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class DoubledTranspose(nn.ConvTranspose2d):
    def forward(self, x):
        return 2 * super().forward(x)


class FakeQuantized(nn.Conv2d):
    """As the layers of quantisation-aware training."""

    def forward(self, x):
        return self._conv_forward(x, self.weight.round(decimals=1), self.bias)


class Standardized(nn.Conv2d):
    """As timm's StdConv2d: torch's function with other weights."""

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight - self.weight.mean(), self.bias)


def hooked(kind):
    """As accelerate's hooks bind a forward to the instance."""
    layer = kind(3, 4, 3)
    layer._old_forward = layer.forward
    layer.forward = functools.partial(lambda module, *given: module._old_forward(*given), layer)
    return layer


class Rounded(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return nn.functional.conv2d(input, weight.round(decimals=1), bias)


def by_closure(kind):
    layer = kind(3, 4, 3)
    old = layer.forward
    layer.forward = lambda *given: old(*given)
    return layer


def by_method(kind):
    layer = kind(3, 4, 3)
    layer._old_forward = layer.forward
    layer.forward = types.MethodType(lambda self, *given: self._old_forward(*given), layer)
    return layer


def pruned():
    layer = nn.Conv2d(3, 4, 3)
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


def locked():
    layer = Plain(3, 4, 3)
    layer.lock = threading.Lock()
    layer.seen = layer(X)  # a tensor that autograd made
    return layer


def kinds_of(model):
    """The classes; of one that torch made for an instance, what it was made of."""
    return [type(part).__bases__ if is_parametrized(part) else type(part) for part in model.modules()]


LAYERS = {
    "a subclass": lambda: Plain(3, 4, 3),
    "a forward through super": lambda: Doubled(3, 4, 3),
    "a transposed subclass": lambda: type("Upsampling", (nn.ConvTranspose2d,), {})(3, 4, 3),
    "a transposed forward through super": lambda: DoubledTranspose(3, 4, 3),
    "a forward through _conv_forward": lambda: FakeQuantized(3, 4, 3),
    "weight_norm by hook": lambda: nn.utils.weight_norm(nn.Conv2d(3, 4, 3)),
    "weight_norm parametrized": lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
    "spectral_norm": lambda: nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)).eval(),
    "pruned": pruned,
    "hooked": lambda: hooked(nn.Conv2d),
    "hooked transposed": lambda: hooked(nn.ConvTranspose2d),
    "not to be copied": locked,
    "a forward that calls torch's functions": lambda: Standardized(3, 4, 3),
    "a _conv_forward that does": lambda: Rounded(3, 4, 3),
    "a parametrized subclass": lambda: parametrizations.weight_norm(Doubled(3, 4, 3)),
    "a closure for forward": lambda: by_closure(nn.Conv2d),
    "a method for forward": lambda: by_method(nn.ConvTranspose2d),
    "quantisation-aware": lambda: qat.Conv2d(3, 4, 3, qconfig=get_default_qat_qconfig()).eval(),
    "lazy, after a run": lambda: nn.LazyConv2d(4, 3),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "inplace"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_runs_on_a_kernel_and_back(name, inplace, launches):
    model = nn.Sequential(LAYERS[name]())
    model(X)  # lazy ones, and the norms that are taken at a call
    before, kinds = model(X), kinds_of(model)
    other = convert(model, inplace=inplace, strict=True)
    assert (other is model) == inplace
    assert not launches()
    torch.testing.assert_close(other(X), before, rtol=1e-4, atol=1e-5)
    assert sum(launches().values()) == 1
    assert report(other).layers[0].replaced
    if not inplace:
        assert kinds_of(model) == kinds
        model(X)
        assert sum(launches().values()) == 1  # the model that was given still runs torch's
    assert revert(other) is other and kinds_of(other) == kinds
    torch.testing.assert_close(other(X), before)
    assert sum(launches().values()) == 1


def test_what_is_done_to_the_copy_leaves_the_model_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    other = convert(model).to(torch.float64)
    assert {t.dtype for t in model.state_dict().values() if t.is_floating_point()} == {torch.float32}
    other(X.double()).sum().backward()
    assert all(p.grad is None for p in model.parameters()) and all(p.grad is not None for p in other.parameters())
    other[0].weight.requires_grad_(False)
    assert model[0].weight.requires_grad
    other[0].register_forward_hook(lambda *_: None)
    assert not model[0]._forward_hooks


def test_tied_weights_stay_tied():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    model[1].weight = model[0].weight
    other = convert(model)
    assert other[0].weight is other[1].weight and other[0].weight is not model[0].weight


def test_a_forward_of_its_own_is_served_wherever_it_calls_torch(launches):
    """Forward and backward, compiled, and named in the table."""
    model = nn.Sequential(Standardized(3, 3, 3), nn.Conv2d(3, 2, 1))
    other, x = convert(model), X.clone().requires_grad_()
    model(x).square().sum().backward()
    want, x.grad = x.grad, None
    for run in (other, torch.compile(other, backend="aot_eager", fullgraph=True)):
        before = launches()
        run(x).square().sum().backward()
        assert launches() - before == {"fprop": 2, "dgrad": 2, "wgrad": 2}
        torch.testing.assert_close(x.grad, want, rtol=1e-4, atol=1e-4)
        x.grad = None
    torch._dynamo.reset()
    assert str(report(other)).splitlines()[1:] == [
        "0  tritonconv.Standardized: tritonconv, in a forward of its own",
        "1  tritonconv.Conv2d: tritonconv",
    ]
    assert torch.fx.symbolic_trace(other)(X).shape == (1, 2, 4, 4)


class Hidden(nn.Conv2d):
    """A convolution that no region reaches."""

    def forward(self, x):
        return SCRIPTED(x, self.weight)


@torch.jit.script
def SCRIPTED(x: torch.Tensor, w: torch.Tensor):
    return torch.conv2d(x, w)


def test_a_forward_of_its_own_that_reached_nothing_is_named():
    other = convert(nn.Sequential(Hidden(3, 3, 1)))
    other(X)
    (layer,) = report(other).layers
    assert not layer.replaced and layer.reason == "its own forward called no convolution that is reached"


class Calls(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.conv1d = nn.Parameter(torch.randn(3, 3, 1, 1)), nn.Conv1d(3, 3, 1)

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight) + self.conv1d(x.flatten(2)).view_as(x)


def helper(x, weight):
    return sum(nn.functional.conv2d(x, w) for w in (weight,))


class ByHelper(nn.Module):
    """Through a function, as StyleGAN's modulated convolution."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, 1, 1))

    def forward(self, x):
        return helper(x, self.weight)


class ByMethod(ByHelper):
    """Through a method that a checkpoint calls, under another name of torch's function."""

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.part, x, use_reentrant=False)

    def part(self, x):
        return renamed(x, self.weight)


def traced():
    return torch.export.export(nn.Conv2d(3, 3, 1), (X,)).module()


LEFT = {
    "a function's": (ByHelper, "its forward calls conv2d itself: tritonconv.use() reaches that"),
    "a method's": (ByMethod, "its forward calls conv2d itself: tritonconv.use() reaches that"),
    "an exported graph": (traced, "its forward calls conv2d itself: tritonconv.use() reaches that"),
    "lazy": (lambda: nn.LazyConv2d(4, 3), "it is lazy: run the model once first"),
    "complex": (lambda: nn.Conv2d(3, 4, 3, dtype=torch.complex64), "its weights are complex64"),
    "a function": (Calls, "its forward calls conv2d itself: tritonconv.use() reaches that"),
    "scripted": (lambda: torch.jit.script(nn.Conv2d(3, 4, 3)), "it is scripted: convert the model before it is"),
    "quantised": (lambda: torch.ao.nn.quantized.Conv2d(3, 4, 3), "it is quantised, and multiplies integers"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LEFT)
def test_what_stays_torchs_is_named(name):
    make, words = LEFT[name]
    model = nn.Sequential(nn.Conv2d(3, 3, 1), make())
    with pytest.raises(ValueError, match=r"convert\(\): 1 cannot be replaced\n(.*\n)+1 .*: " + re.escape(words)):
        convert(model, inplace=True, strict=True)
    assert type(model[0]) is nn.Conv2d
    assert [layer.reason for layer in report(model).layers][:1] == ["not converted"]
    found = report(convert(model))
    assert [(layer.name, layer.reason) for layer in found.left] == [("1", words)]
    assert found.layers[0].replaced


def test_a_forward_bound_to_a_layer_that_calls_torch_itself_is_named():
    model = nn.Sequential(nn.Conv2d(3, 3, 1))
    model[0].forward = lambda x: nn.functional.conv2d(x, model[0].weight)
    (layer,) = report(convert(model)).layers
    assert not layer.replaced and layer.reason == "a forward that calls torch's functions itself was bound to it"


def test_only_some():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3), nn.LazyConv2d(3, 1))
    other = convert(model, only=lambda name, layer: name == "1", strict=True)
    assert [layer.replaced for layer in report(other).layers] == [False, True, False]
    with pytest.raises(TypeError, match="argument 'only' must be a function of"):
        convert(model, only="0")


def test_a_subclass_goes_through_a_file():
    other = convert(Doubled(3, 4, 3))
    again = pickle.loads(pickle.dumps(other))
    assert type(again) is type(other)
    torch.testing.assert_close(again(X), other(X))


@pytest.mark.parametrize("kind", [nn.Conv2d, Doubled, nn.ConvTranspose2d])
def test_a_traced_model_calls_layers_as_a_whole(kind):
    model = convert(nn.Sequential(kind(3, 4, 3), nn.ReLU()))
    graph = torch.fx.symbolic_trace(model)
    assert [node.op for node in graph.graph.nodes] == ["placeholder", "call_module", "call_module", "output"]
    torch.testing.assert_close(graph(X), model(X))


def test_scripting_is_refused_with_the_way_out():
    model = convert(nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(RuntimeError, match=r"torch.jit.script cannot compile tritonconv.Conv2d.*tritonconv.revert\(model\)"):
        torch.jit.script(model)
    torch.jit.script(revert(model))


def test_what_is_no_module():
    for function in (revert, report):
        with pytest.raises(TypeError, match=rf"{function.__name__}\(\) takes a torch.nn.Module, got int"):
            function(3)


def test_the_names_are_public():
    assert {"convert", "report", "revert"} <= {*tritonconv.__all__}
