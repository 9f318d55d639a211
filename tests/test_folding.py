"""Batch norm, residual and activation folded into the convolutions of a model: `convert(..., fuse=True)`."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tritonconv import convert, report, revert

X = torch.randn(2, 3, 5, 5)


def norm(channels, rank=2):
    part = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1](channels)
    with torch.no_grad():
        for tensor in (part.weight, part.bias, part.running_mean):
            tensor.normal_()
        part.running_var.uniform_(0.5, 2)
    return part


class Block(nn.Module):
    """As torchvision's BasicBlock, with one activation called twice."""

    def __init__(self, down=True):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), norm(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 3, 3, padding=1), norm(3)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Sequential(nn.Conv2d(3, 3, 1), norm(3)) if down else None

    def forward(self, x):
        identity = x if self.down is None else self.down(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += identity
        return self.relu(out)


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.last = nn.ConvTranspose2d(3, 3, 2), norm(3), nn.Conv2d(3, 2, 1)

    def forward(self, x):
        return torch.add(F.pad(x, (0, 1, 0, 1)), F.silu(self.bn(self.conv(x)))) + self.last(F.pad(x, (0, 1, 0, 1))).relu().sum()


#: A model, and what its layers take over, by their names.
FOLDED = {
    "norm": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), norm(4)), {"0": "1"}),
    "activation": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU()), {"0": "gelu"}),
    "norm without parameters": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.LeakyReLU(0.3)),
        {"0": "1, leaky_relu"},
    ),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 2), norm(4), nn.Hardswish()), {"0": "1, hardswish"}),
    "reflected": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), norm(4)),
        {"0": "1"},
    ),
    "residual": (lambda: Block(False), {"conv1": "bn1, relu", "conv2": "bn2, a residual, relu"}),
    "residual of a norm": (Block, {"conv1": "bn1, relu", "conv2": "bn2, a residual, relu", "down.0": "down.1"}),
    "functions": (Functional, {"conv": "bn, silu", "last": "relu"}),
}


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FOLDED)
def test_the_model_is_the_same_in_fewer_steps(name, launches):
    make, taken = FOLDED[name]
    model = make().eval()
    x = X.clone().requires_grad_()
    want = model(x)
    want.square().sum().backward()
    gradient, x.grad = x.grad, None
    other = convert(model, fuse=True, strict=True)
    assert {layer.name: layer.reason for layer in report(other).layers} == {k: "with " + v for k, v in taken.items()}
    assert list(other.state_dict()) == list(model.state_dict())
    norms = [part for part in other.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    called = []
    for part in norms:
        part.register_forward_hook(lambda *_: called.append(1))
    y = other(x)
    close(y, want)
    assert not called and launches()["fprop"] + launches()["dgrad"] == len(taken)
    y.square().sum().backward()
    close(x.grad, gradient)
    with torch.no_grad():  # what is folded is read at each call
        for part in norms:
            part.running_mean.zero_()
        close(other(X), model(X))
    before = launches()
    back = revert(other)
    assert type(back) is type(model) and list(back.state_dict()) == list(model.state_dict())
    close(back(X), model(X))
    assert launches() == before and not any(layer.replaced for layer in report(back).layers)
    assert revert(other) is back


class Twice(nn.Module):
    """A layer called twice, and one whose result is seen twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.bn = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), norm(3)

    def forward(self, x):
        y = self.b(self.bn(self.a(self.a(x))))
        return self.bn(y) + y


class Broadcast(nn.Module):
    """A sum that is no residual of the result's shape."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), norm(3)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)) + x.mean((2, 3), keepdim=True))


class Changed(nn.Module):
    """The layer's input changes before its result is used."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), norm(3)

    def forward(self, x):
        x = x + 0
        y = self.conv(x)
        x.mul_(2)
        return self.bn(y) + x


class Optional(nn.Module):
    """A forward that torch.fx would trace wrongly."""

    def __init__(self):
        super().__init__()
        self.inner, self.conv, self.bn = nn.Sequential(nn.Conv2d(3, 3, 1), norm(3)), nn.Conv2d(3, 3, 1), norm(3)

    def forward(self, x, mask=None):
        y = self.bn(self.conv(self.inner(x)))
        return y if mask is None else y * mask


def hooked():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), norm(3))
    model[1].register_forward_hook(lambda module, given, made: made + 1)
    return model


NOT_FOLDED = {
    "seen twice": (Twice, set()),
    "broadcast": (Broadcast, {"conv"}),
    "changed": (Changed, set()),
    "an optional argument": (Optional, {"inner.0"}),
    "a hook": (hooked, set()),
}


@pytest.mark.parametrize("name", NOT_FOLDED)
def test_what_is_not_proven_is_not_folded(name, launched):
    make, taken = NOT_FOLDED[name]
    model = make().eval()
    other = convert(model, fuse=True)
    assert {layer.name for layer in report(other).layers if "with" in layer.reason} == taken
    close(other(X), model(X))
    close(revert(other)(X), model(X))


def test_in_training_mode_the_parts_are_computed(launched):
    model = Block().eval()
    other = convert(model, fuse=True)
    want, got = model.train()(X), other.train()(X)
    close(got, want)
    close(other.bn1.running_mean, model.bn1.running_mean)


def test_compiled_and_copied(launches):
    torch._dynamo.reset()
    model = Block().eval()
    other = convert(model, fuse=True)
    close(torch.compile(other, backend="aot_eager", fullgraph=True)(X), model(X))
    torch._dynamo.reset()
    twice = copy.deepcopy(other)
    with pytest.raises(ValueError, match="a copy of a folded model, which has no way back"):
        revert(twice)
    layer = pickle.loads(pickle.dumps(other.conv2))
    close(layer(torch.ones(1, 4, 4, 4)), other.conv2(torch.ones(1, 4, 4, 4)))


class Annotated(Block):
    """With what `from __future__ import annotations` makes of annotations."""

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        return super().forward(x)


def test_a_folded_model_goes_through_a_file(tmp_path, launches):
    model = Annotated().eval()
    other = convert(model, fuse=True)
    torch.save(other, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    before = launches()
    close(again(X), model(X))
    assert (launches() - before)["fprop"] == 3
    assert {layer.reason for layer in report(again).layers} == {layer.reason for layer in report(other).layers}


def test_a_norm_of_float64_is_folded_in_float64(launched):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm(4)).double().eval()
    torch.testing.assert_close(convert(model, fuse=True)(X.double()), model(X.double()), rtol=1e-12, atol=1e-12)


def test_what_cannot_be_asked_for():
    with pytest.raises(ValueError, match="fuse=True makes another model of one in eval mode"):
        convert(Block(), fuse=True)
    with pytest.raises(ValueError, match="fuse=True makes another model of one in eval mode"):
        convert(Block().eval(), fuse=True, inplace=True)
