"""Receptive fields against the support of the gradient of small random networks with positive weights."""

import random
from fractions import Fraction
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from costmodel.networks.models import load
from costmodel.networks.network import Network, trace
from costmodel.networks.receptive import Field, merged, transposed, windowed

LENGTH = 240


def conv(rng: random.Random, stride: int | None = None) -> nn.Module:
    kernel, dilation = rng.randint(1, 4), rng.randint(1, 3)
    return nn.Conv1d(1, 1, kernel, stride or rng.randint(1, 3), rng.randint(0, 3), dilation, bias=False)


def transposed_conv(rng: random.Random) -> nn.Module:
    kernel, stride, dilation = rng.randint(1, 4), rng.randint(1, 3), rng.randint(1, 3)
    extra = rng.randint(0, max(stride, dilation) - 1)
    return nn.ConvTranspose1d(1, 1, kernel, stride, rng.randint(0, 2), extra, dilation=dilation, bias=False)


class Branches(nn.Module):
    """Two paths of one stride, cut to the shorter length and added, or stacked and mixed."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        stride = rng.randint(1, 2)
        self.paths = nn.ModuleList(conv(rng, stride) for _ in range(2))
        self.cut = rng.randint(0, 3)
        self.mix = nn.Conv1d(2, 1, 1, bias=False) if rng.random() < 0.5 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = (path(x) for path in self.paths)
        length = min(a.shape[-1], b.shape[-1]) - self.cut
        a, b = a[..., self.cut : self.cut + length], b[..., :length]
        return a + b if self.mix is None else self.mix(torch.cat([a, b], 1))


class Pad(nn.Module):
    def __init__(self, low: int, high: int) -> None:
        super().__init__()
        self.amounts = (low, high)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x, self.amounts)


LAYERS = {
    "conv": conv,
    "transposed": transposed_conv,
    "branches": Branches,
    "average": lambda rng: nn.AvgPool1d(rng.randint(1, 3), rng.randint(1, 3)),
    "nearest": lambda rng: nn.Upsample(scale_factor=rng.randint(2, 3)),
    "nearest-exact": lambda rng: nn.Upsample(scale_factor=rng.randint(2, 3), mode="nearest-exact"),
    "linear": lambda rng: nn.Upsample(scale_factor=rng.randint(2, 3), mode="linear"),
    "pad": lambda rng: Pad(rng.randint(-2, 3), rng.randint(-2, 3)),
}


def network(rng: random.Random, names: list[str]) -> nn.Module:
    model = nn.Sequential(*(LAYERS[name](rng) for name in names)).double()
    for p in model.parameters():
        nn.init.uniform_(p, 0.5, 1.0)
    return model


def support(y: torch.Tensor, x: torch.Tensor) -> tuple[int, int] | None:
    (gradient,) = torch.autograd.grad(y, x, retain_graph=True)
    places = gradient.flatten().nonzero().flatten().tolist()
    return (places[0], places[-1]) if places else None


@pytest.mark.parametrize("seed", range(40))
def test_the_field_is_the_hull_of_the_gradients_support(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    every = list(LAYERS)
    names = [every[seed % len(every)], *rng.choices(every, k=rng.randint(1, 3))]
    rng.shuffle(names)
    model = network(rng, names)
    x = torch.rand(1, 1, LENGTH, dtype=torch.double, requires_grad=True)
    y = model(x)
    (field,) = last_fields(trace(model, (1, 1, LENGTH)))
    assert field.exact and not field.whole
    # coordinates whose field lies inside, as the unbounded grid knows no borders
    margin = field.size + 12
    centres = range(len(y[0, 0]))
    inside = [i for i in centres if margin < i * field.jump + field.centre < LENGTH - 1 - margin]
    assert len(inside) >= len(field.spans), f"{names}: {field} leaves no room"
    for i in inside[: max(20, 2 * len(field.spans))]:
        assert field.span(i) == support(y[0, 0, i], x), (names, i)


def last_fields(network: Network) -> tuple[Field, ...]:
    fields = next(layer.fields for layer in reversed(network.layers) if layer.fields is not None)
    assert fields is not None
    return fields


def test_axes_are_followed_one_by_one() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, (1, 3), stride=(1, 2)), nn.Conv2d(2, 2, (5, 1), dilation=(2, 1)))
    rows, columns = last_fields(trace(model, (1, 1, 40, 40)))
    assert (rows.size, rows.jump, rows.centre) == (9, 1, 4)
    assert (columns.size, columns.jump, columns.centre) == (3, 2, 1)


def test_axes_survive_channels_last_layers() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.linear = nn.Conv2d(3, 8, 7, padding=3), nn.LayerNorm(8), nn.Linear(8, 4)
            self.last = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.linear(self.norm(self.conv(x).permute(0, 2, 3, 1)))
            return self.last(F.gelu(x).permute(0, 3, 1, 2))

    for field in last_fields(trace(Mixed(), (2, 3, 20, 30))):
        assert (field.size, field.jump, field.centre) == (9, 1, 0)


def test_random_numbers_are_no_input() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout2d(), nn.Dropout(), nn.Conv2d(4, 4, 3))
    for field in last_fields(trace(model, (2, 3, 20, 30), train=True)):
        assert (field.size, field.exact) == (5, True)


def test_shuffled_pixels() -> None:
    up, down = nn.PixelShuffle(2), nn.PixelUnshuffle(2)
    rows, _ = last_fields(trace(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), up, nn.Conv2d(1, 1, 3)), (1, 4, 16, 16)))
    assert (rows.size, rows.jump) == (4, Fraction(1, 2))
    assert [rows.span(i) for i in range(3)] == [(-1, 2), (-1, 2), (0, 3)]
    rows, _ = last_fields(trace(nn.Sequential(down, nn.Conv2d(4, 4, 3)), (1, 1, 16, 16)))
    assert (rows.size, rows.jump, rows.span(1)) == (6, 2, (2, 7))


def test_global_operators_see_everything() -> None:
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    linear = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 10 * 12, 2))
    for model in (pooled, linear):
        rows, columns = last_fields(trace(model, (2, 3, 12, 14)))
        assert (rows.whole, rows.exact, rows.size, columns.size) == (True, True, 12, 14)

    class Squeeze(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x.mean((2, 3), keepdim=True).sigmoid()

    rows, columns = last_fields(trace(Squeeze(), (2, 3, 12, 14)))
    assert (rows.whole, rows.exact, columns.size) == (True, True, 14)


def test_adaptive_pooling_to_several_elements() -> None:
    (field,) = last_fields(trace(nn.AdaptiveAvgPool1d(4), (1, 2, 10)))
    assert [field.span(i) for i in range(4)] == [(0, 2), (2, 4), (5, 7), (7, 9)]
    assert field.jump == Fraction(5, 2)


def test_an_axis_that_is_lost_gives_an_upper_bound() -> None:
    class Windows(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(1, 2, 4, 3, 12).softmax(3)

    rows, columns = last_fields(trace(Windows(), (1, 2, 12, 12)))
    assert (rows.whole, rows.exact, str(rows)) == (True, False, "<= 12")
    assert (columns.size, columns.exact) == (1, True)


def test_branches_that_do_not_align_are_reported() -> None:
    class Residual(nn.Module):
        def __init__(self, kernel: int) -> None:
            super().__init__()
            self.path = nn.Conv2d(3, 3, kernel, stride=2, padding=kernel // 2)
            self.shortcut = nn.AvgPool2d(2) if kernel == 2 else nn.Conv2d(3, 3, 1, stride=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.path(x)[..., :8, :8] + self.shortcut(x)

    assert trace(Residual(3), (1, 3, 16, 16)).notes == ()
    network = trace(nn.Sequential(Residual(2), nn.ReLU()), (1, 3, 16, 16))
    assert network.notes == ("branches with different receptive centres meet at 0.add",)
    assert [layer.name for layer in network.layers if layer.misaligned] == ["0.add"]


def test_fields_by_hand() -> None:
    field = windowed(windowed(Field(100), 7, 2, 3), 3, 2, 1)
    assert (field.size, field.jump, field.centre, str(field)) == (11, 4, 0, "11 jump 4 centre 0")
    gaps = transposed(Field(100), 1, 3)
    assert gaps.spans == ((0, 0), None, None) and gaps.jump == Fraction(1, 3)
    assert [gaps.span(i) for i in (-3, 5, 6)] == [(-1, -1), None, (2, 2)]
    assert merged([field, field]) is field
    assert merged([Field(9), windowed(Field(9), 1, 2)]).aligned is False


PUBLISHED = {
    # size of the last convolution or pooling, by Araujo, Norris and Sim (Distill 2019); ResNet-50 is 483 there, with the stride
    # in the last layer of a block, and 427 with torchvision's, in the middle of the first
    ("alexnet", "features.12"): 195,
    ("vgg16", "features.30"): 212,
    ("mobilenet_v2", "features.18.0"): 491,
    ("resnet50", "layer4.2.conv2"): 427,
}


@pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
@pytest.mark.parametrize(("model", "layer"), PUBLISHED)
def test_published_receptive_fields(model: str, layer: str) -> None:
    network = trace(load(f"torchvision.models:{model}").requires_grad_(False), (1, 3, 224, 224))
    (row,) = (row for row in network.layers if row.name == layer)
    assert row.fields is not None
    assert {field.size for field in row.fields} == {PUBLISHED[model, layer]}
