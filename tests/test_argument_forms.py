"""What torch takes for an integer, these functions take: NumPy's integers and tensors of one integer, alone and in tuples."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tritonconv

X, W, GROUPED = torch.randn(1, 4, 7, 7), torch.randn(4, 4, 3, 3), torch.randn(4, 2, 3, 3)
TWO = torch.tensor(2)
FORMS = {
    "int": 2,
    "int64": np.int64(2),
    "uint8": np.uint8(2),
    "tensor": TWO,
    "tensor of one": TWO.reshape(1),
    "tensor int8": TWO.to(torch.int8),
    "NumPy in a tuple": (np.int64(2), np.int32(2)),
    "NumPy in a list of one": [np.int64(2)],
    "tensors in a tuple": (TWO, TWO),
    "mixed": (2, np.int64(2)),
    "bool": True,
    "NumPy bool": np.bool_(True),
    "bool in a tuple": (True, 2),
    "float": 2.0,
    "NumPy float": np.float64(2),
    "tensor float": torch.tensor(2.0),
    "float in a tuple": (2.0, 2),
    "array of one": np.array([2]),
    "tensor of two": torch.tensor([2, 2]),
    "None": None,
}
ARGUMENTS = ("stride", "padding", "dilation", "groups", "output_padding")


def answer(library, argument, value):
    """The shape of the result, or the type of the error."""
    try:
        if argument == "output_padding":
            return library.conv_transpose2d(X, W, stride=3, output_padding=value).shape
        return library.conv2d(X, GROUPED if argument == "groups" else W, **{argument: value}).shape
    except (TypeError, RuntimeError, ValueError) as error:
        return type(error)


@pytest.fixture
def without_kernels(monkeypatch):
    """Shapes and errors alone are looked at."""
    from tritonconv import launch

    monkeypatch.setattr(launch, "execute", lambda which, problem, a, b, out, *rest: out.zero_())


@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_does_what_torch_does(form, argument, without_kernels):
    assert answer(tritonconv, argument, FORMS[form]) == answer(F, argument, FORMS[form])


@pytest.mark.parametrize("function", ["conv2d_fused", "depthwise_separable_conv2d", "causal_conv3d"])
def test_the_other_functions_take_them_too(function, without_kernels):
    two = np.int64(2)
    if function == "conv2d_fused":
        assert tritonconv.conv2d_fused(X, GROUPED, stride=two, groups=two, padding=(TWO, two)).shape == (1, 4, 5, 5)
    elif function == "causal_conv3d":
        video, weight = torch.randn(1, 2, 3, 4, 4), torch.randn(2, 2, 1, 1, 1)
        y = tritonconv.causal_conv3d(video, weight, stride=(1, two, TWO), padding=np.int32(1), return_cache=False)
        assert y.shape == (1, 2, 3, 3, 3)
        assert tritonconv.causal_conv3d(video, weight, upsample=two, return_cache=False).shape == (1, 2, 3, 8, 8)
    else:
        y = tritonconv.depthwise_separable_conv2d(X, W[:, :1], torch.randn(6, 4, 1, 1), stride=two, padding=(TWO, two))
        assert y.shape == (1, 6, 5, 5)


def test_layers_made_with_numpy_integers_run_converted(launched):
    two, three = np.int64(2), np.int64(3)
    for layer, x in (
        (nn.Conv2d(3, 4, three, stride=two), torch.randn(1, 3, 6, 6)),
        (nn.Conv2d(3, 6, 3, groups=three, dilation=two), torch.randn(1, 3, 6, 6)),
        (nn.ConvTranspose1d(3, 4, 4, stride=two, output_padding=np.int64(1)), torch.randn(1, 3, 5)),
    ):
        assert torch.allclose(tritonconv.convert(layer)(x), layer(x), atol=1e-5)


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_what_64_bits_do_not_hold_is_named(argument):
    call = tritonconv.conv_transpose2d if argument == "output_padding" else tritonconv.conv2d
    with pytest.raises(ValueError, match=f"{argument}.*64 bits, got {2**63}"):
        call(X, W, **{argument: 2**63})


@pytest.mark.parametrize(("function", "given"), [("conv2d", {"padding": 2**55}), ("conv_transpose2d", {"stride": 2**60})])
def test_a_result_that_64_bits_do_not_count_is_refused_by_name(function, given):
    (name, value), *_ = given.items()
    with pytest.raises(RuntimeError, match=rf"{function}\(\): the output would have shape .*{name}=\(?{value}"):
        getattr(tritonconv, function)(X, W, **given)
