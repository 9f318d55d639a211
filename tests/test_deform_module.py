"""The module of the deformable convolution, and `convert` on torchvision's."""

import copy
import pickle
import sys
import types

import pytest
import torch
from torch import nn

import tritonconv
from costmodel.networks.models import imported
from tritonconv import convert, report, revert

X, OFFSET, MASK = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 2), torch.rand(1, 2, 3, 2)


def test_the_module_is_the_function_with_parameters(launched):
    torch.manual_seed(0)
    layer = tritonconv.nn.DeformConv2d(4, 6, (1, 2), groups=2)
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, (1, 2), groups=2)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert torch.equal(layer.weight, plain.weight) and torch.equal(layer.bias, plain.bias)
    assert repr(layer) == "DeformConv2d(4, 6, kernel_size=(1, 2), stride=(1, 1), groups=2)"
    got = layer(X, OFFSET, MASK)
    assert torch.equal(got, tritonconv.deform_conv2d(X, OFFSET, layer.weight, layer.bias, mask=MASK))
    torch.testing.assert_close(layer(X, torch.zeros_like(OFFSET)), plain(X))
    assert tritonconv.nn.DeformConv2d(2, 2, 1, bias=False, dtype=torch.float64).weight.dtype == torch.float64


@pytest.mark.parametrize("name", ["in_channels", "out_channels"])
def test_groups_divide_the_channels(name):
    with pytest.raises(ValueError, match=f"{name} must be divisible by groups, got {name}=3, groups=2"):
        tritonconv.nn.DeformConv2d(**{"in_channels": 4, "out_channels": 4, "kernel_size": 1, "groups": 2, name: 3})


def _init(self):
    nn.Module.__init__(self)
    self.stride = self.dilation = (1, 1)
    self.padding = (0, 0)
    self.weight, self.bias = nn.Parameter(torch.randn(6, 4, 1, 2)), None


def _forward(self, input, offset, mask=None):
    raise AssertionError("the layer's own forward ran")


def deformable(module):
    """A class of the name and structure of torchvision's, in a module, which computes nothing itself."""
    forward = types.FunctionType(_forward.__code__, {"__name__": module}, "forward", (None,))
    return type("DeformConv2d", (nn.Module,), {"__module__": module, "__init__": _init, "forward": forward})


@pytest.fixture
def stand_in(monkeypatch):
    """As torchvision's, where pickle finds it."""
    module = types.ModuleType("torchvision.ops.deform_conv")
    module.DeformConv2d = deformable(module.__name__)
    for name in ("torchvision", "torchvision.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.DeformConv2d


def test_convert_takes_over_what_is_torchvisions_by_its_structure(stand_in, launches):
    model = nn.Sequential(stand_in())
    (left,) = report(model).layers
    assert (left.kind, left.replaced, left.reason) == ("DeformConv2d", False, "not converted")
    ours = convert(model)
    (found,) = report(ours).layers
    assert found.replaced and found.reason == "as deform_conv2d"
    want = tritonconv.deform_conv2d(X, OFFSET, model[0].weight, mask=MASK)
    for again in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(again[0](X, OFFSET, MASK), want)
    assert launches()["deform"] == 4
    assert type(revert(ours)[0]) is stand_in and not report(ours).layers[0].replaced


class Around(nn.Module):
    """A convolution whose norm folds into it, then a deformable layer."""

    def __init__(self, layer):
        super().__init__()
        self.stem, self.norm, self.layer = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), layer

    def forward(self, x, offset, mask):
        return self.layer(self.norm(self.stem(x)), offset, mask)


@pytest.mark.parametrize("ours", [True, False], ids=["our module", "torchvision's"])
def test_convert_folds_around_it(ours, stand_in, launches):
    model = Around(tritonconv.nn.DeformConv2d(4, 6, (1, 2)) if ours else stand_in()).eval()
    fused = convert(model, fuse=True)
    assert "norm" in str(report(fused))
    want = tritonconv.deform_conv2d(model.norm(model.stem(X)), OFFSET, model.layer.weight, model.layer.bias, mask=MASK)
    before = launches()
    torch.testing.assert_close(fused(X, OFFSET, MASK), want)
    assert (launches() - before)["deform"] == 1


def test_other_layers_of_that_name_are_left_alone(stand_in):
    """mmcv's has another module, and takes no mask."""
    elsewhere = deformable("mmcv.ops.deform_conv")
    narrower = type("Extended", (stand_in,), {"forward": lambda self, input, offset: input, "__module__": __name__})
    for kind in (elsewhere, narrower):
        assert type(convert(nn.Sequential(kind()))[0]) is kind
    assert type(convert(tritonconv.nn.DeformConv2d(4, 6, 1))) is tritonconv.nn.DeformConv2d


def test_torchvisions_own_class():
    """Where the package is there at all; its operators need not load."""
    pytest.importorskip("importlib.metadata").version("torchvision")
    kind = imported("torchvision.ops").DeformConv2d
    torch.manual_seed(0)
    theirs = kind(4, 6, (1, 2), stride=2, bias=False)
    torch.manual_seed(0)
    mine = tritonconv.nn.DeformConv2d(4, 6, (1, 2), stride=2, bias=False)
    assert torch.equal(theirs.weight, mine.weight) and repr(theirs) == repr(mine)
    given = X, OFFSET[:, :, ::2, :1], MASK[:, :, ::2, :1]
    converted = convert(nn.Sequential(theirs))
    assert torch.equal(converted[0](*given), mine(*given))
    assert report(converted).layers[0].reason == "as deform_conv2d"
