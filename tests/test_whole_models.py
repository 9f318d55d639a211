"""Small models whole: every convolution on the kernels, right forward and backward, compiled too, and given back."""

import pytest
import torch

from bench.models.__main__ import PAGE, page, rows
from bench.models.catalog import MODELS
from bench.models.check import _Sides, check
from tritonconv import convert

SMALL = [name for name in MODELS if name.startswith("small/")]
#: Convolutions that have a norm or an activation to take over.
FOLDED = {"small/unet"}


@pytest.mark.parametrize("name", SMALL)
def test_a_model(name):
    found = check(MODELS[name], fuse=name in FOLDED)
    assert found["replaced"] == found["convolutions"] == found["launches"] >= 4


def test_a_model_compiled(launches):
    torch._dynamo.reset()
    torch.manual_seed(0)
    entry = MODELS["small/vocoder"]
    model, x = entry.build().eval(), torch.randn(entry.input)
    with torch.no_grad():
        y = torch.compile(convert(model), backend="aot_eager", fullgraph=True)(x)
        torch.testing.assert_close(y, model(x), rtol=1e-4, atol=1e-4)
    assert launches()["fprop"] + launches()["dgrad"] == 8
    torch._dynamo.reset()


def test_on_which_side_of_a_kink_values_lie():
    with _Sides() as seen:
        torch.nn.functional.relu(torch.tensor([-1.0, 1.0]))
        torch.nn.ReLU6()(torch.tensor([7.0, 1.0]))
    assert [each.tolist() for each in seen.sides] == [[False, True], [True, True], [True, False]]


def test_the_page_is_what_the_rows_say():
    assert PAGE.read_text() == page(rows(), list(MODELS))
