"""Convolutions with an epilogue: values, errors, the module. `epilogues` says how far off they may be."""

import itertools
import math

import cases
import pytest
import torch
from cases import Case
from epilogues import (
    DEPTHWISE,
    EXTRAS,
    NAMES,
    OTHERS,
    SMALL,
    assert_forward,
    chain,
    check,
    fused,
    named,
    operands,
    value_of,
)
from oracle import UNIT
from torch import nn

import tritonconv
from costmodel.tiling import Plan
from tritonconv import op
from tritonconv.epilogue import ACTIVATIONS
from tritonconv.layout import output_strides


@pytest.mark.parametrize("extras", [(), EXTRAS], **named)
@pytest.mark.parametrize("function", SMALL)
@pytest.mark.parametrize("activation", NAMES)
def test_activation(activation, function, extras, device, launched) -> None:
    check(SMALL[function], activation, extras, device)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("activation", NAMES)
def test_activation_in_every_dtype(activation, dtype, device, launched) -> None:
    function = list(SMALL)[(NAMES.index(activation) + len(dtype)) % len(SMALL)]
    check(Case(**vars(SMALL[function]) | {"dtype": dtype}), activation, device=device)


@pytest.mark.parametrize("case", OTHERS.values(), ids=[name.replace(" ", "_") for name in OTHERS])
def test_every_path(case, device, launched) -> None:
    for activation, extras in (("gelu", EXTRAS), ("relu", ("scale", "shift"))):
        check(case, activation, extras, device)


@pytest.mark.parametrize("x", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name.replace(" ", "_"), marks=pytest.mark.slow if name == "large space" else ())
        for name, case in DEPTHWISE.items()
    ],
)
def test_depthwise_kernels(case, x, device, launched) -> None:
    case = Case(**vars(case) | {"x": x})
    which = "dgrad" if case.transposed else "fprop"
    for activation, extras in (("gelu", EXTRAS), ("relu", ("scale", "shift")), ("silu", ("residual",))):
        check(case, activation, extras, device, plan={which: "depthwise"})
    assert launched()[f"depthwise {which}"] >= 3


@pytest.mark.parametrize("name", ["plain", "large transposed"])
def test_depthwise_taps(name, device, launched) -> None:
    """The kernel that loops over its taps gives what the window that slides gives."""
    case = DEPTHWISE[name]
    tensors = operands(case, device=device)
    plan = f"{'dgrad' if case.transposed else 'fprop'}:depthwise:4x8x4:w4:s3:taps1x3"
    got = fused(case, tensors, plan=Plan.parse(plan), activation="silu")
    torch.testing.assert_close(got, fused(case, tensors, activation="silu"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [6, 8, 7])
def test_depthwise_columns_that_go_together(width, device, launched) -> None:
    """Of a tile of four: two where rows have six, all where they have eight, one where they have seven; residual and z too."""
    case = Case("conv2d", (2, 3, 4, width), (3, 1, 3, 3), groups=3, padding=1)
    tensors = operands(case, device=device)
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    y = fused(case, leaves, plan=Plan.parse("fprop:depthwise:4x4x2:w4:s3:rows2"), activation="gelu")
    assert_forward(case, tensors, y, "gelu")
    want = fused(case, leaves, plan=Plan.parse("fprop:depthwise:1x4x8:w4:s3:rows2"), activation="gelu")
    gradients = (torch.autograd.grad(out.sum(), [leaves["input"], leaves["shift"]]) for out in (y, want))
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("extras", [c for n in (1, 2) for c in itertools.combinations(EXTRAS, n)], **named)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
def test_each_part_alone(bias, extras, device, launched) -> None:
    for case in SMALL.values():
        check(Case(**vars(case) | {"bias": bias}), "silu", extras, device)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("function", SMALL)
def test_residual_layout(function, layout, device, launched) -> None:
    for x in ("contiguous", "channels_last"):
        check(Case(**vars(SMALL[function]) | {"x": x, "dtype": "float16"}), "hardswish", residual=layout, device=device)


def test_scale_and_shift_may_have_any_stride(device, launched) -> None:
    tensors = operands(SMALL["conv2d"], device=device)
    spread = {name: t.repeat_interleave(3)[::3] if name in ("scale", "shift") else t for name, t in tensors.items()}
    assert torch.equal(fused(SMALL["conv2d"], spread), fused(SMALL["conv2d"], tensors))


@pytest.mark.parametrize("slope", [0.0, 0.3, -0.5])
def test_slope(slope, device, launched) -> None:
    for case in SMALL.values():
        check(case, "leaky_relu", device=device, slope=slope)


def test_no_epilogue_is_the_convolution(device, launched) -> None:
    for case in SMALL.values():
        x, w, b = case.tensors(device)
        want = getattr(tritonconv, case.function)(x, w, b, **case.arguments)
        alone = {"input": x, "weight": w, "bias": b}
        assert torch.equal(fused(case, alone), want)
        said = tritonconv.explain(getattr(tritonconv, f"{case.function}_fused"), **alone, **case.arguments)
        assert "followed" not in str(said)


@pytest.mark.parametrize("function", SMALL)
def test_unbatched(function, device, launched) -> None:
    case = SMALL[function]
    tensors = operands(case, device=device)
    want = fused(case, tensors, activation="gelu")[1]
    one = {name: t[1] if name in ("input", "residual") else t for name, t in tensors.items()}
    torch.testing.assert_close(fused(case, one, activation="gelu"), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("function", SMALL)
def test_empty_batch(function, device) -> None:
    case = Case(**vars(SMALL[function]) | {"input": (0, *SMALL[function].input[1:])})
    leaves = {name: t.requires_grad_() for name, t in operands(case, device=device).items()}
    y = fused(case, leaves, activation="gelu")
    assert y.shape[0] == 0
    y.sum().backward()
    for name, leaf in leaves.items():
        assert leaf.grad is not None and not leaf.grad.any(), name


def test_results_have_the_memory_format_of_the_convolution(device, launched) -> None:
    for case in SMALL.values():
        case = Case(**vars(case) | {"x": "channels_last"})
        tensors = operands(case, device=device)
        want = getattr(tritonconv, case.function)(*case.tensors(device), **case.arguments)
        assert fused(case, tensors, activation="silu").stride() == want.stride()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, in the interpreter
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_not_a_number_and_infinity(activation, device, launched) -> None:
    """What torch answers for them, and for arguments whose exponential overflows."""
    z = torch.tensor([math.nan, math.inf, -math.inf, 200.0, -200.0, 0.0], device=device).view(1, 1, -1)
    got = tritonconv.conv1d_fused(z, torch.ones(1, 1, 1, device=device), activation=activation)
    want = value_of(activation, z)
    if activation == "gelu":
        want[..., 1] = math.inf  # torch's CPU kernel answers NaN
    torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_activations_are_accurate_where_they_are_small(dtype, device, launched) -> None:
    """In units of the last place of the value, not of 1: near 0, and in the tails of what tends to 0."""
    near = torch.logspace(-12, 0, 300, dtype=torch.float64)
    for activation, points in {"tanh": near, "sigmoid": -20 * near, "silu": -20 * near, "gelu_tanh": -3 * near}.items():
        z = torch.cat([points, -points] if activation == "tanh" else [points]).to(dtype).view(1, 1, -1)
        got = tritonconv.conv1d_fused(z.to(device), torch.ones(1, 1, 1, dtype=dtype, device=device), activation=activation)
        want = value_of(activation, z.double()) if dtype == torch.float32 else value_of(activation, z)
        error = ((got.cpu().double() - want) / want.double()).abs().max()
        assert error <= 64 * UNIT[dtype], f"{activation}: {error / UNIT[dtype]:.3g} units"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("function", SMALL)
@pytest.mark.parametrize("activation", NAMES)
def test_on_cpu_tensors_by_torch(activation, function, dtype) -> None:
    """The way CPU tensors go outside the interpreter: rounded once, and laid out as the kernels' results are."""
    case = Case(**vars(SMALL[function]) | {"dtype": dtype, "x": "channels_last"})
    tensors = operands(case)
    x, w, b, *after = tensors.values()
    if case.transposed:
        problem = tritonconv.check.conv_transpose(function, 2, x, w, b, **case.arguments)
    else:
        problem = tritonconv.check.conv(function, 2, x, w, b, **case.arguments)
    place = (problem.stride, op.flat(problem.padding), problem.dilation, problem.groups)
    window = (problem.input_size, *place) if case.transposed else place
    by_torch = op._fused_by_torch(op._PRIMITIVES["dgrad" if case.transposed else "fprop"])
    got = by_torch(x, w, b, *window, *after, activation or "", 0.01, True)
    exact = {name: t.double().contiguous() for name, t in tensors.items()}
    want = chain(case.function, *(exact.pop(name) for name in ("input", "weight", "bias")), **exact, **case.arguments)
    for result, value in zip(got, (value_of(activation, want), want), strict=True):
        assert result.dtype == case.torch_dtype and result.stride() == output_strides(result.shape, x, w)
        wide = torch.float64 if dtype == "float64" else torch.float32
        torch.testing.assert_close(result.double(), value, rtol=1.01 * UNIT[result.dtype], atol=64 * UNIT[wide])
    assert by_torch(x, w, b, *window, *after, activation or "")[1].numel() == 0


def test_a_forced_plan_is_taken(device, launched) -> None:
    case = SMALL["conv2d"]
    tensors = operands(case, device=device)
    plan = Plan.parse("fprop:gather:32x32x64:w4:s4")
    explained = tritonconv.explain(tritonconv.conv2d_fused, **tensors, **case.arguments, plan=plan)
    assert str(explained.plans["fprop"]) == str(plan)
    torch.testing.assert_close(fused(case, tensors, plan=plan), fused(case, tensors), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", SMALL)
def test_small_tiles(function, device, launched) -> None:
    """Tiles that begin in a later image or channel, where one usually holds all of a test's."""
    case = Case(function, (3, 4, 6, 4), (20, 4, 3, 3) if function == "conv2d" else (4, 20, 3, 3), padding=1)
    tensors = operands(case, device=device)
    plan = f"{'dgrad' if case.transposed else 'fprop'}:gather:16x16x16:w4:s3"
    got = fused(case, tensors, plan=Plan.parse(plan), activation="silu")
    torch.testing.assert_close(got, fused(case, tensors, activation="silu"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", SMALL)
@pytest.mark.parametrize("activation", [None, "silu"])
def test_a_shared_reduction(function, activation, device, launched) -> None:
    """The kernel that adds up the partial sums runs the epilogue."""
    case = Case(function, (2, 36, 5, 4), (6, 36, 3, 3) if function == "conv2d" else (36, 6, 3, 3), padding=1, x="channels_last")
    tensors = operands(case, device=device)
    plan = f"{'dgrad' if case.transposed else 'fprop'}:gather:64x16x16:w4:s3:split3"
    got = fused(case, tensors, plan=Plan.parse(plan), activation=activation)
    assert launched()["reduce"] == 1
    assert_forward(case, tensors, got, activation)


# --- errors -----------------------------------------------------------------------------------------------------------

BROKEN = {
    "activation": ({"activation": "swish"}, ValueError, ("activation", "'swish'", "'silu'", "'hardswish'")),
    "activation of a module": ({"activation": nn.ReLU()}, ValueError, ("activation", "ReLU")),
    "scale shape": ({"scale": torch.ones(5)}, RuntimeError, ("scale", r"\[5\]", r"\[6\]")),
    "scale rank": ({"scale": torch.ones(6, 1)}, RuntimeError, ("scale", r"\[6, 1\]", r"\[6\]")),
    "shift shape": ({"shift": torch.ones(1)}, RuntimeError, ("shift", r"\[1\]", r"\[6\]")),
    "shift dtype": ({"shift": torch.ones(6).half()}, RuntimeError, ("shift", "float16", "float32")),
    "scale type": ({"scale": 2.0}, TypeError, ("scale", "float")),
    "residual shape": ({"residual": torch.ones(2, 6, 1, 1)}, RuntimeError, ("residual", r"\[2, 6, 1, 1\]", r"\[2, 6, ")),
    "residual dtype": ({"residual": torch.ones(1).double()}, RuntimeError, ("residual", "float64", "float32")),
    "residual device": ({"residual": torch.ones(1, device="meta")}, RuntimeError, ("residual", "meta")),
    "slope": ({"negative_slope": "0.1"}, TypeError, ("negative_slope", "str")),
    "stride": ({"stride": 0}, RuntimeError, ("stride", "0")),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("function", SMALL)
def test_error(function, name, launches) -> None:
    change, kind, patterns = BROKEN[name]
    x, w, b = SMALL[function].tensors()
    arguments = SMALL[function].arguments | change
    for call in (
        getattr(tritonconv, f"{function}_fused"),
        lambda *a, **k: tritonconv.explain(getattr(tritonconv, f"{function}_fused"), *a, **k),
    ):
        with pytest.raises(kind) as raised:
            call(x, w, b, **arguments)
        for pattern in (f"{function}_fused", *patterns):
            assert raised.match(pattern)
    assert not launches()


# --- the module -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"stride": 2, "padding": 1, "activation": "relu6"}, {"bias": False, "dilation": 2}])
def test_depthwise_separable(settings, device, launched) -> None:
    """Two of torch's layers in a row, from the same state."""
    torch.manual_seed(0)
    ours = tritonconv.nn.DepthwiseSeparableConv2d(4, 6, 3, **settings, device=device)
    plain = {name: value for name, value in settings.items() if name != "activation"}
    activation = [nn.ReLU6()] if "activation" in settings else []
    depthwise = nn.Conv2d(4, 4, 3, groups=4, **plain)
    pointwise = nn.Conv2d(4, 6, 1, bias=plain.get("bias", True))
    depthwise.load_state_dict({k.removeprefix("depthwise."): v for k, v in ours.state_dict().items() if k[0] == "d"})
    pointwise.load_state_dict({k.removeprefix("pointwise."): v for k, v in ours.state_dict().items() if k[0] == "p"})
    theirs = nn.Sequential(depthwise, *activation, pointwise, *activation)
    x = torch.randn(2, 4, 7, 6)
    y, want = ours(x.to(device)), theirs(x)
    torch.testing.assert_close(y.cpu(), want, rtol=1e-5, atol=1e-5)
    y.square().sum().backward()
    want.square().sum().backward()
    for got, wanted in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(got.grad.cpu(), wanted.grad, rtol=1e-4, atol=1e-5)


def test_depthwise_separable_starts_as_torch_does(device) -> None:
    torch.manual_seed(3)
    ours = tritonconv.nn.DepthwiseSeparableConv2d(4, 6, (3, 2))
    torch.manual_seed(3)
    theirs = [nn.Conv2d(4, 4, (3, 2), groups=4), nn.Conv2d(4, 6, 1)]
    for got, want in zip(ours.parameters(), [p for layer in theirs for p in layer.parameters()], strict=True):
        assert torch.equal(got, want)


# --- on a GPU -----------------------------------------------------------------------------------------------------------

LAYERS = {
    "3x3": Case("conv2d", (4, 64, 28, 28), (96, 64, 3, 3), padding=1),
    "pointwise": Case("conv2d", (4, 96, 28, 28), (64, 96, 1, 1)),
    "depthwise": Case("conv2d", (4, 96, 28, 28), (96, 1, 7, 7), groups=96, padding=3),
    "narrow groups": Case("conv2d", (4, 64, 28, 28), (64, 4, 3, 3), groups=16, padding=1),
    "transposed": Case("conv_transpose2d", (4, 64, 14, 14), (64, 32, 4, 4), stride=2, padding=1),
}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("x", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_on_a_gpu(name, x, dtype, launched) -> None:
    case = Case(**vars(LAYERS[name]) | {"x": x, "dtype": dtype})
    for activation, extras in (("gelu", EXTRAS), ("relu", ("scale", "shift"))):
        check(case, activation, extras, "cuda")
