"""`torch.vmap` of the ops: one launch for all entries, whichever tensors are mapped over."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

import tritonconv
from tritonconv import convert

B = 3
CONV = {"x": (2, 4, 5), "w": (6, 2, 3), "b": (6,)}
TRANSPOSED = {"x": (2, 4, 4), "w": (4, 3, 3), "b": (6,)}
WINDOW = {"stride": 2, "padding": 1, "groups": 2}
MAPPED = ["x", "w", "b", "xb", "xw", "wb"]


@pytest.fixture(autouse=True)
def no_slow_loop():
    """torch warns where it calls an op once an entry for want of a rule."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def tensors(shapes, mapped):
    return [torch.randn(*(B,) * (name in mapped), *shape) for name, shape in shapes.items()]


@pytest.mark.parametrize(
    "mapped",
    MAPPED,
)
@pytest.mark.parametrize("name", ["conv1d", "conv_transpose1d"])
def test_forward_and_gradients(name, mapped, launches):
    """One launch a pass: of the sums over the batch, by each tensor."""
    shapes = CONV if name == "conv1d" else TRANSPOSED
    given = tensors(shapes, mapped)
    dims = tuple(0 if key in mapped else None for key in shapes)

    def both(module):
        def step(x, w, b):
            return getattr(module, name)(x, w, b, **WINDOW).square().sum()

        def y(x, w, b):
            return getattr(module, name)(x, w, b, **WINDOW)

        return vmap(y, dims)(*given), vmap(grad(step, (0, 1, 2)), dims)(*given)

    (want, gradients), (got, ours) = both(F), both(tritonconv)
    close(got, want)
    for a, b in zip(ours, gradients, strict=True):
        close(a, b)
    assert sum(launches()[which] for which in ("fprop", "dgrad", "wgrad")) == 4  # forward twice, and two gradients


@pytest.mark.parametrize("mapped", ["x", "s", "xr", "wbst"])
@pytest.mark.parametrize("transposed", [False, True])
def test_fused(transposed, mapped, launched):
    shapes = {**(TRANSPOSED if transposed else CONV), "s": (6,), "t": (6,)}
    shapes["r"] = (2, 6, 7) if transposed else (2, 6, 3)
    given = tensors(shapes, mapped)
    dims = tuple(0 if key in mapped else None for key in shapes)

    def ours(x, w, b, s, t, r):
        function = tritonconv.conv_transpose1d_fused if transposed else tritonconv.conv1d_fused
        return function(x, w, b, **WINDOW, scale=s, shift=t, residual=r, activation="silu")

    def torchs(x, w, b, s, t, r):
        z = (F.conv_transpose1d if transposed else F.conv1d)(x, w, b, **WINDOW)
        return F.silu(z * s.view(-1, 1) + t.view(-1, 1) + r)

    close(vmap(ours, dims)(*given), vmap(torchs, dims)(*given))
    got, want = (vmap(grad(lambda *g, f=f: f(*g).square().sum(), (0, 3)), dims)(*given) for f in (ours, torchs))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_other_axes_and_levels(launches):
    """An axis in the middle, and a map over images around one over weights: still one launch."""
    x, w = torch.randn(2, 4, 3, 6), torch.randn(5, 4, 2, 3)
    got, want = (vmap(vmap(f, (None, 3)), (2, None))(x, w) for f in (tritonconv.conv1d, F.conv1d))
    assert launches() == {"fprop": 1}
    close(got, want)


def test_gradients_of_each_sample(launches):
    model = convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 2)))
    parameters = dict(model.named_parameters())

    def loss(parameters, x):
        return functional_call(model, parameters, (x[None],)).square().sum()

    x = torch.randn(4, 3, 4, 4)
    got = vmap(grad(loss), (None, 0))(parameters, x)
    assert [launches()[which] for which in ("fprop", "dgrad", "wgrad")] == [2, 1, 2]
    for i in range(0, 4, 3):
        for name, each in grad(loss)(parameters, x[i]).items():
            close(got[name][i], each)


def test_an_ensemble_over_weights(launches):
    models = [convert(nn.Conv2d(3, 4, 3, groups=1)) for _ in range(3)]
    parameters, buffers = stack_module_state(models)
    x = torch.randn(2, 3, 4, 4)
    y = vmap(lambda p, b: functional_call(models[0], (p, b), (x,)))(parameters, buffers)
    assert launches() == {"fprop": 1}
    for i, model in enumerate(models):
        close(y[i], model(x))
