"""Convolutions with an epilogue, against their chain in float64; what they keep, refuse, and compile to.

The tolerance is derived as in `oracle`. Forward, y = act(z) is rounded once:

    u_out * |y| + c * u_acc * (sqrt(k) * L * m + |y|),    c <= 4,

where m sums the absolute values of all that z adds up and L bounds act's slope. The gradients are held against those of the
same chain, with the activation's taken where the library takes it: at its own rounded y or z. Then a gradient is a sum of
products of which some were rounded to the output's type on the way, at most `ROUNDS` times, each by u_out of its size.
"""

import inspect
import itertools
import math

import cases
import pytest
import torch
import torch.nn.functional as F
from cases import Case
from oracle import C_LIMIT, UNIT
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import tritonconv
from tritonconv import op
from tritonconv.epilogue import ACTIVATIONS
from tritonconv.layout import output_strides

NAMES = (None, *ACTIVATIONS)
FUNCTIONS = tuple(f"{function}_fused" for function in cases.FUNCTIONS)
EXTRAS = ("scale", "shift", "residual")
STEEPEST = 1.5  # no activation is steeper (hardswish at 3)
#: Roundings on the way to each gradient: of dz (all), of w * scale (input), of dw before its scale (weight), of the sum
#: before its scale (bias); of dw, w * dw and b * dshift (scale). One more, to the result, is in every tolerance.
ROUNDS = {"input": 2, "weight": 2, "bias": 2, "scale": 4, "shift": 1, "residual": 0}

#: Formulas of torch's backward kernels lose more than a unit of the slope: 1 - s in silu's and 1 - tanh^2 in gelu_tanh's are
#: off by a unit of 1, and are multiplied by this.
AMPLIFIED = {
    "silu": lambda z: z.abs(),
    "gelu_tanh": lambda z: 0.8 * z.abs() * (1 + 0.135 * z.square()),
}
#: And its kernels for float16 on the CPU round each of their steps.
STEPS = 2

SMALL = {
    "conv2d": Case("conv2d", (2, 4, 5, 4), (6, 2, 3, 2), stride=(2, 1), padding=1, groups=2),
    "conv_transpose2d": Case("conv_transpose2d", (2, 4, 3, 2), (4, 3, 3, 2), stride=2, padding=1, groups=2),
}
OTHERS = {
    "1d": Case("conv1d", (2, 3, 9), (5, 3, 3), padding=1),
    "3d": Case("conv3d", (1, 2, 3, 4, 3), (3, 2, 2, 1, 2), stride=(1, 2, 1), padding=(1, 0, 0)),
    "1d transposed": Case("conv_transpose1d", (2, 3, 4), (3, 4, 3), stride=2, output_padding=1),
    "3d transposed": Case("conv_transpose3d", (1, 2, 2, 1, 2), (2, 3, 2, 1, 2), stride=(1, 2, 1)),
    "patches": Case("conv2d", (2, 3, 4, 6), (5, 3, 2, 3), stride=(2, 3)),
    "patches transposed": Case("conv_transpose2d", (2, 4, 2, 3), (4, 3, 2, 3), stride=(2, 3)),
    "pointwise": Case("conv2d", (2, 5, 4, 3), (7, 5, 1, 1)),
    "phases without taps": Case("conv_transpose2d", (1, 3, 2, 3), (3, 4, 1, 1), stride=2, output_padding=1),
    "depthwise": Case("conv2d", (2, 4, 4, 4), (8, 1, 3, 3), groups=4, padding=1),
    "more channels than a tile": Case("conv1d", (1, 2, 3), (300, 2, 1)),
    "more pixels than a tile": Case("conv_transpose1d", (1, 2, 700), (2, 3, 3), padding=1),
}
#: By the depthwise kernels: windows that slide, and taps in a loop.
DEPTHWISE = {
    "plain": Case("conv2d", (2, 5, 6, 7), (5, 1, 3, 3), groups=5, padding=1),
    "multiplier": Case("conv2d", (2, 4, 6, 9), (8, 1, 3, 3), groups=4, padding=1, stride=2, dtype="bfloat16"),
    "line": Case("conv1d", (2, 6, 70), (6, 1, 4), groups=6, padding=3),
    "space": Case("conv3d", (1, 3, 3, 4, 5), (3, 1, 2, 2, 3), groups=3, padding=1),
    "large": Case("conv2d", (1, 3, 9, 10), (3, 1, 9, 9), groups=3, padding=4),
    "large space": Case("conv3d", (1, 2, 8, 3, 4), (2, 1, 9, 2, 2), groups=2, padding=(4, 1, 1)),
    "transposed": Case("conv_transpose2d", (2, 5, 4, 5), (5, 1, 3, 3), groups=5, stride=2, padding=1, output_padding=1),
    "one filter": Case("conv2d", (2, 6, 4, 6), (3, 2, 3, 3), groups=3, padding=1, dtype="float16"),
    "multiplier transposed": Case("conv_transpose2d", (1, 2, 3, 5), (2, 3, 3, 3), groups=2, stride=2, output_padding=1),
    "large transposed": Case("conv_transpose2d", (1, 3, 5, 6), (3, 1, 9, 9), groups=3, padding=4),
}
named = {"ids": lambda value: str(value).replace(" ", "_")}


def chain(function, x, w, b, scale=None, shift=None, residual=None, **window):
    """z by torch, in the tensors' own type."""
    z = getattr(F, function)(x, w, b, **window)
    place = (-1, *(1,) * (w.dim() - 2))
    z = z if scale is None else z * scale.view(place)
    z = z if shift is None else z + shift.view(place)
    return z if residual is None else z + residual


def operands(case: Case, extras=EXTRAS, residual: str = "contiguous", device: str = "cpu") -> dict[str, torch.Tensor]:
    """The tensors of a fused call by argument name; `residual` is its layout."""
    x, w, b = case.tensors(device)
    found = {"input": x, "weight": w} | ({} if b is None else {"bias": b})
    shape = tuple(getattr(F, case.function)(x.cpu().float(), w.cpu().float(), **case.arguments).shape)
    for name in extras:
        values = case.values(name, shape if name == "residual" else (case.out_channels,)).to(device)
        found[name] = cases.laid_out(values, residual, case.rank) if name == "residual" else cases.guarded(values)
    return found


def fused(case: Case, tensors: dict[str, torch.Tensor], **settings) -> torch.Tensor:
    return getattr(tritonconv, f"{case.function}_fused")(**tensors, **case.arguments, **settings)


def value_of(name: str | None, z: torch.Tensor, slope: float = 0.01) -> torch.Tensor:
    return z if name is None else ACTIVATIONS[name].forward(z, slope)


def kept_z(case: Case, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """z as the kernel writes it."""
    leaves = {name: t.detach() for name, t in tensors.items()}
    return fused(case, leaves)


def within(name: str, got: torch.Tensor, value, magnitude, terms, rounds: int, say: str) -> None:
    out, acc = UNIT[got.dtype], UNIT[torch.float64 if got.dtype == torch.float64 else torch.float32]
    tiny = torch.finfo(got.dtype).smallest_normal * torch.finfo(got.dtype).eps / 2
    room = out * value.abs() + tiny + (C_LIMIT * acc * terms.sqrt() + rounds * out) * magnitude
    error = (got.detach().cpu().double() - value).abs()
    assert got.shape == value.shape
    worst = float((error / room).nan_to_num(math.inf).max()) if got.numel() else 0
    assert worst <= 1, f"{name}: error {worst:.3g} times what is allowed; {say}"


def check(case: Case, activation: str | None, extras=EXTRAS, device: str = "cpu", residual="contiguous", slope=0.01) -> None:
    """Holds a fused call and all its gradients against the chain in float64."""
    tensors = operands(case, extras, residual, device)
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    y = fused(case, leaves, activation=activation, negative_slope=slope)
    assert y.dtype == case.torch_dtype
    dy = case.gradient(y.detach())
    got = dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), dy), strict=True))

    exact = {name: t.detach().cpu().double().contiguous() for name, t in tensors.items()}
    ones = {name: torch.ones_like(t) for name, t in exact.items()}
    sizes = {name: t.abs() for name, t in exact.items()}
    for given in (exact, ones, sizes):
        given.setdefault("bias", None)

    def linear(given, g):
        given = {name: None if t is None else t.requires_grad_() for name, t in given.items()}
        x, w, b = given["input"], given["weight"], given["bias"]
        z = chain(case.function, x, w, b, *(given.get(name) for name in EXTRAS), **case.arguments)
        of = {name: t for name, t in given.items() if t is not None}
        return z.detach(), dict(zip(of, torch.autograd.grad(z, list(of.values()), g), strict=True))

    at = y.detach() if activation and ACTIVATIONS[activation].from_y and slope >= 0 else kept_z(case, tensors)
    g = dy.cpu().double()
    dz = ACTIVATIONS[activation].backward(g, at.cpu().double(), slope) if activation else g
    size = g.abs() * (STEEPEST + AMPLIFIED.get(activation, torch.zeros_like)(at.cpu().double()) if activation else 1.0)
    steps = STEPS if activation and case.dtype == "float16" else 0
    z, value = linear(exact, dz)
    m, magnitude = linear(sizes, size)
    k, terms = linear(ones, torch.ones_like(g))
    say = f"{activation}, {case!r}"
    want = value_of(activation, z, slope)
    # |y| belongs to the activation's own arithmetic
    within("output", y, want, STEEPEST * m + want.abs(), k, 0, say)
    for name, gradient in got.items():
        within(name, gradient, value[name], magnitude[name], terms[name], ROUNDS[name] + steps, say)


# --- values and gradients ---------------------------------------------------------------------------------------------


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
@pytest.mark.parametrize("case", DEPTHWISE.values(), ids=[name.replace(" ", "_") for name in DEPTHWISE])
def test_depthwise_kernels(case, x, device, launched) -> None:
    case = Case(**vars(case) | {"x": x})
    for activation, extras in (("gelu", EXTRAS), ("relu", ("scale", "shift")), ("silu", ("residual",))):
        check(case, activation, extras, device)
    assert launched()["depthwise dgrad" if case.transposed else "depthwise fprop"] >= 3


@pytest.mark.parametrize("name", ["plain", "large transposed"])
def test_depthwise_taps(name, device, launched) -> None:
    """The kernel that loops over its taps gives what the window that slides gives."""
    case = DEPTHWISE[name]
    tensors = operands(case, device=device)
    plan = f"{'dgrad' if case.transposed else 'fprop'}:depthwise:4x8x4:w4:s3:taps1x3"
    got = fused(case, tensors, plan=tritonconv.functional.Plan.parse(plan), activation="silu")
    torch.testing.assert_close(got, fused(case, tensors, activation="silu"), rtol=1e-4, atol=1e-4)


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


def test_the_fused_functions_take_the_plain_ones_arguments_and_five_more() -> None:
    for function in cases.FUNCTIONS:
        plain, more = (inspect.signature(getattr(tritonconv, name)).parameters for name in (function, f"{function}_fused"))
        added = [parameter for name, parameter in more.items() if name not in plain]
        assert [parameter for name, parameter in more.items() if name in plain] == list(plain.values())
        assert {parameter.name for parameter in added} == {"activation", "residual", "scale", "shift", "negative_slope"}
        assert {parameter.kind for parameter in added} == {inspect.Parameter.KEYWORD_ONLY}


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


# --- derivatives ------------------------------------------------------------------------------------------------------

TINY = {
    "conv1d": Case("conv1d", (1, 2, 4), (4, 1, 2), groups=2, stride=2, dtype="float64"),
    "conv_transpose1d": Case("conv_transpose1d", (1, 2, 2), (2, 2, 2), groups=2, stride=2, dtype="float64"),
}


@pytest.mark.parametrize("function", TINY)
@pytest.mark.parametrize("activation", NAMES)
def test_gradcheck(activation, function, device, launched) -> None:
    case = TINY[function]
    tensors = {name: t.requires_grad_() for name, t in operands(case, device=device).items()}

    def call(*values):
        return fused(case, dict(zip(tensors, values, strict=True)), activation=activation)

    assert gradcheck(call, tuple(tensors.values()), fast_mode=activation != "gelu")  # gelu: every entry of the Jacobian
    assert gradgradcheck(call, tuple(tensors.values()), fast_mode=True)


def test_second_derivative_by_create_graph(device, launched) -> None:
    """A gradient penalty, where z, kept for the first derivative, must carry the second."""
    case = Case(**vars(SMALL["conv2d"]) | {"dtype": "float64"})
    tensors = operands(case, device=device)
    results = []
    for library in (True, False):
        leaves = {name: t.detach().cpu().requires_grad_() for name, t in tensors.items()}
        if library:
            leaves = {name: t.detach().to(device).requires_grad_() for name, t in tensors.items()}
            y = fused(case, leaves, activation="silu")
        else:
            x, w, b = (leaves[name] for name in ("input", "weight", "bias"))
            y = F.silu(chain("conv2d", x, w, b, *(leaves[name] for name in EXTRAS), **case.arguments))
        first = torch.autograd.grad(y.sum(), list(leaves.values()), create_graph=True)
        sum(g.square().sum() for g in first).backward()
        results.append([leaf.grad.cpu() for leaf in leaves.values()])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_torch_func_grad(activation, device, launched) -> None:
    case = Case(**vars(SMALL["conv2d"]) | {"dtype": "float64"})
    tensors = operands(case, device=device)

    def loss(*values):
        return fused(case, dict(zip(tensors, values, strict=True)), activation=activation).square().sum()

    got = torch.func.grad(loss, argnums=tuple(range(len(tensors))))(*tensors.values())
    leaves = [t.detach().requires_grad_() for t in tensors.values()]
    want = torch.autograd.grad(loss(*leaves), leaves)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_only_the_gradients_asked_for_are_computed(device, launches) -> None:
    case = SMALL["conv2d"]
    passes = {"input": {"dgrad"}, "weight": {"wgrad"}, "scale": {"wgrad"}, "shift": set(), "residual": set(), "bias": set()}
    for name, wanted in passes.items():
        tensors = operands(case, device=device)
        tensors[name].requires_grad_()
        y = fused(case, tensors, activation="gelu")
        seen = launches()
        y.backward(case.gradient(y))
        assert set(launches() - seen) - {"reduce"} == wanted, name
        assert {key for key, t in tensors.items() if t.grad is not None} == {name}


#: Which value an activation's backward keeps.
KEPT = dict.fromkeys(("relu", "relu6", "leaky_relu", "sigmoid", "tanh"), "y") | dict.fromkeys(
    ("gelu", "gelu_tanh", "silu", "hardswish"), "z"
)


@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("leaf", ["input", "weight", "bias", "scale", "shift", "residual"])
def test_only_what_the_backward_needs_is_kept(leaf, activation, device, launched) -> None:
    case = SMALL["conv2d"]
    tensors = operands(case, device=device)
    tensors[leaf].requires_grad_()
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = fused(case, tensors, activation=activation)
    wanted = {
        "input": ("weight", "scale"),
        "weight": ("input", "scale"),
        "bias": ("scale",),
        "scale": ("input", "weight", "bias"),
        "shift": (),
        "residual": (),
    }[leaf]
    places = {t.data_ptr(): name for name, t in tensors.items()} | {y.data_ptr(): "y"}
    assert sorted(places.get(t.data_ptr(), "z") for t in saved) == sorted(
        (*wanted, *([KEPT[activation]] if activation else []))
    )


def test_nothing_is_kept_without_a_gradient(device, launched) -> None:
    case = SMALL["conv2d"]
    tensors = operands(case, device=device)
    window = ([2, 1], [1, 1, 1, 1], [1, 1], 2)
    op = torch.ops.tritonconv.fprop_fused
    x, w, b, *after = tensors.values()
    assert op(x, w, b, *window, *after, "gelu")[1].numel() == 0
    assert op(x, w, b, *window, *after, "gelu", keep=True)[1].numel() > 0
    w.requires_grad_()
    assert op(x, w, b, *window, *after, "relu")[1].numel() == 0
    assert op(x, w, b, *window, *after, "gelu")[1].numel() > 0
    with torch.no_grad():
        assert op(x, w, b, *window, *after, "gelu")[1].numel() == 0


# --- the op boundary --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("requires_grad", [False, True], ids=["plain", "differentiable"])
@pytest.mark.parametrize("activation", ["relu", "gelu", ""])
@pytest.mark.parametrize("function", SMALL)
def test_opcheck(function, activation, requires_grad, device, launched) -> None:
    case = SMALL[function]
    x, w, b, *after = (t.detach().clone().requires_grad_(requires_grad) for t in operands(case, device=device).values())
    if case.transposed:
        window = ([5, 2], [2, 2], [1, 1, 1, 1], [1, 1], 2)
        operator = torch.ops.tritonconv.dgrad_fused.default
    else:
        window = ([2, 1], [1, 1, 1, 1], [1, 1], 2)
        operator = torch.ops.tritonconv.fprop_fused.default
    torch.library.opcheck(operator, (x, w, b, *window, *after, activation))


@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "static"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("function", SMALL)
def test_compile(function, activation, dynamic, device, launched) -> None:
    torch._dynamo.reset()
    case = SMALL[function]
    tensors = operands(case, device=device)

    def layer(*values):
        return fused(case, dict(zip(tensors, values, strict=True)), activation=activation) * 2

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    results = []
    for call in (layer, compiled):
        leaves = [t.detach().requires_grad_() for t in tensors.values()]
        y = call(*leaves)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, case.gradient(y.detach()))])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)
        assert got.stride() == want.stride()


def test_autocast(device, launched) -> None:
    case = SMALL["conv2d"]
    leaves = {name: t.requires_grad_() for name, t in operands(case, device=device).items()}
    with torch.autocast(device, dtype=torch.bfloat16):
        y = fused(case, leaves, activation="gelu")
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(leaf.grad.dtype == torch.float32 for leaf in leaves.values())
    want = fused(case, {name: t.detach().bfloat16() for name, t in leaves.items()}, activation="gelu")
    assert torch.equal(y, want)


def test_flops_are_the_convolutions(device) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for case in SMALL.values():
        tensors = operands(case, device=device)
        totals = []
        for call in (
            lambda case=case, tensors=tensors: fused(case, tensors, activation="gelu"),
            lambda case=case: getattr(F, case.function)(*case.tensors(device), **case.arguments),
        ):
            with FlopCounterMode(display=False) as counter:
                call()
            totals.append(counter.get_total_flops())
        assert totals[0] == totals[1] > 0


def test_explain(device) -> None:
    case = SMALL["conv2d"]
    tensors = operands(case, device=device)
    said = str(tritonconv.explain(tritonconv.conv2d_fused, **tensors, **case.arguments, activation="gelu"))
    assert "scale, shift, residual, gelu" in said and "kept" not in said
    tensors["weight"].requires_grad_()
    said = str(tritonconv.explain(tritonconv.conv2d_fused, **tensors, **case.arguments, activation="gelu"))
    assert "before the activation is kept" in said
    case = SMALL["conv_transpose2d"]
    found = tritonconv.explain(tritonconv.conv_transpose2d_fused, *case.tensors(device), **case.arguments, activation="relu")
    assert set(found.plans) == {"fprop", "dgrad", "wgrad"} and "followed in the same kernel by relu" in str(found)


def test_a_forced_plan_is_taken(device, launched) -> None:
    case = SMALL["conv2d"]
    tensors = operands(case, device=device)
    plan = tritonconv.functional.Plan.parse("fprop:gather:32x32x64:w4:s4")
    explained = tritonconv.explain(tritonconv.conv2d_fused, **tensors, **case.arguments, plan=plan)
    assert str(explained.plans["fprop"]) == str(plan)
    torch.testing.assert_close(fused(case, tensors, plan=plan), fused(case, tensors), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", SMALL)
def test_small_tiles(function, device, launched) -> None:
    """Tiles that begin in a later image or channel, where one usually holds all of a test's."""
    case = Case(function, (3, 4, 6, 4), (20, 4, 3, 3) if function == "conv2d" else (4, 20, 3, 3), padding=1)
    tensors = operands(case, device=device)
    plan = f"{'dgrad' if case.transposed else 'fprop'}:gather:16x16x16:w4:s3"
    got = fused(case, tensors, plan=tritonconv.functional.Plan.parse(plan), activation="silu")
    torch.testing.assert_close(got, fused(case, tensors, activation="silu"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", SMALL)
@pytest.mark.parametrize("activation", [None, "silu"])
def test_a_shared_reduction(function, activation, device, launched) -> None:
    """The kernel that adds up the partial sums runs the epilogue."""
    case = Case(function, (2, 36, 5, 4), (6, 36, 3, 3) if function == "conv2d" else (36, 6, 3, 3), padding=1, x="channels_last")
    tensors = operands(case, device=device)
    plan = f"{'dgrad' if case.transposed else 'fprop'}:gather:64x16x16:w4:s3:split3"
    got = fused(case, tensors, plan=tritonconv.functional.Plan.parse(plan), activation=activation)
    torch.testing.assert_close(got, fused(case, tensors, activation=activation), rtol=1e-5, atol=1e-5)
    assert launched()["reduce"] == 1


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


# --- compiled ahead of time -------------------------------------------------------------------------------------------

#: (Call.epilogue, activation, residual, z) of an epilogue that fills its kind; all have a bias, a scale and a shift.
KINDS = [
    ("channels", "relu6", False, False),
    ("tensors", "relu", True, False),
    ("tensors", "hardswish", True, True),
    ("heavy", "gelu", True, True),
    ("heavy", "tanh", True, False),
]


#: 16 bits in full; wider arithmetic with what asks for most registers.
COMPILED = [("half", family, *kind) for family in ("gather", "patch") for kind in KINDS]
COMPILED += [(arithmetic, "gather", *KINDS[2]) for arithmetic in ("tf32", "fp32", "fp64")]


@pytest.mark.aot
@pytest.mark.parametrize("arithmetic, family, kind, activation, residual, keep", COMPILED)
@pytest.mark.parametrize("which", ["fprop", "dgrad"])
@pytest.mark.parametrize("arch", [pytest.param(80, marks=pytest.mark.slow), 90, pytest.param(100, marks=pytest.mark.slow)])
def test_the_largest_tile_compiles_without_a_spill(arch, which, arithmetic, family, kind, activation, residual, keep):
    from bench.audit import DTYPES, PROBLEMS
    from costmodel.plan import MENU, epilogue_fits
    from costmodel.resources import resource_key, resource_table
    from costmodel.tiling import Plan, itemsize
    from tritonconv.launch import DTYPES as NAMES_OF

    dtype, precision = DTYPES[arithmetic]
    size = itemsize(NAMES_OF[dtype])
    plans = [Plan(which, family, *tile) for tile in MENU[arithmetic] if epilogue_fits(kind, "wide", tile, size, arch)]
    plan = next(p for p in plans if resource_table()[resource_key(p, arithmetic, "wide", arch)].spills == 0)
    found = compiled_ahead(PROBLEMS[family, "wide"], plan, dtype, precision, arch, activation, residual, keep)
    assert found.spills == 0 and found.stack_bytes == 0 and not found.trip.serialized


@pytest.mark.aot
@pytest.mark.parametrize(
    "kind, activation, residual, keep", [("channels", "relu", False, False), ("tensors", "relu", True, False)]
)
@pytest.mark.parametrize("which, stride", [pytest.param("fprop", 1, marks=pytest.mark.slow), ("dgrad", 2)])
@pytest.mark.parametrize("arch", [pytest.param(80, marks=pytest.mark.slow), 90, pytest.param(100, marks=pytest.mark.slow)])
def test_the_largest_tile_of_a_contiguous_result_compiles_without_a_spill(
    arch, which, stride, kind, activation, residual, keep
):
    from costmodel.plan import MENU, epilogue_fits
    from costmodel.problem import ConvProblem
    from costmodel.tiling import Plan

    plan = next(Plan(which, "gather", *tile) for tile in MENU["half"] if epilogue_fits(kind, "folded", tile, 2, arch))
    problem = ConvProblem.conv((32, 256, 28, 28), (256, 256, 3, 3), (stride,) * 2, (1, 1), (1, 1))
    found = compiled_ahead(problem, plan, torch.bfloat16, "ieee", arch, activation, residual, keep, contiguous=True)
    assert found.spills == 0 and found.stack_bytes == 0 and not found.trip.serialized


def compiled_ahead(problem, plan, dtype, precision, arch, activation, residual, keep, contiguous=False):
    """The audit of a fused kernel for dense channels-last operands, with bias, scale and shift."""
    from bench.aot import Pointer, compile_ahead
    from bench.audit import kernel_arguments, operands
    from bench.sass import audit
    from costmodel.problem import Pass
    from costmodel.tiling import Call
    from tritonconv import launch
    from tritonconv.kernels.epilogue import Fused

    which = Pass(plan.which)
    a, b, _ = operands(problem, which, True)
    _, _, out = operands(problem, which, not contiguous)
    key = launch.FusedKey(1, 1, out if residual else None, activation, 0.01, keep)
    call = Call(problem, which, launch.DTYPES[dtype], precision, *launch.describe(problem, which, a, b, out), key.kind(out))
    prepared = launch.prepare(plan, call, a, b, out, 1, key)
    kernel, arguments = kernel_arguments(prepared, dtype)
    place = Pointer(dtype)
    arguments["fused"] = Fused(place, place, place if residual else None, place if keep else None, *prepared.fused)
    warps, stages = arguments.pop("num_warps"), arguments.pop("num_stages")
    return audit(compile_ahead(kernel, arguments, arch=arch, num_warps=warps, num_stages=stages))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_the_plan_takes_no_tile_that_spills(dtype) -> None:
    """Where the convolution alone would take a larger one."""
    from costmodel import tma
    from costmodel.device import DEVICES
    from costmodel.plan import EPILOGUE_LIMIT, epilogue_fits, select
    from costmodel.problem import ConvProblem, Pass
    from costmodel.tiling import Call, itemsize

    problem = ConvProblem.conv((32, 256, 56, 56), (256, 256, 3, 3), (1, 1), (1, 1), (1, 1))
    tiles = {}
    for kind in ("", *EPILOGUE_LIMIT):
        for which in (Pass.FPROP, Pass.DGRAD):
            for device in ("NVIDIA H200", "NVIDIA B200"):
                plan = select(Call(problem, which, dtype, "tf32", epilogue=kind), DEVICES[device])
                tile = plan.tile
                if plan.family == "tma":
                    assert tma.epilogue_fits(kind, tile)
                else:
                    assert epilogue_fits(kind, "wide", tile, itemsize(dtype), DEVICES[device].capability)
                tiles[kind, which, device] = tile.m * tile.n
    assert dtype == "float64" or tiles["", Pass.FPROP, "NVIDIA H200"] > tiles["heavy", Pass.FPROP, "NVIDIA H200"]


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
