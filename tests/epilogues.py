"""Fused calls and what they are held against: their chain in float64.

The tolerance is derived as in `oracle`. Forward, y = act(z) is rounded once:

    u_out * |y| + c * u_acc * (sqrt(k) * L * m + |y|),    c <= 4,

where m sums the absolute values of all that z adds up and L bounds act's slope. The gradients are held against those of the
same chain, with the activation's taken where the library takes it: at its own rounded y or z. Then a gradient is a sum of
products of which some were rounded to the output's type on the way, at most `ROUNDS` times, each by u_out of its size.
"""

import math

import cases
import torch
import torch.nn.functional as F
from cases import Case
from oracle import C_LIMIT, UNIT

import tritonconv
from tritonconv.epilogue import ACTIVATIONS

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


def kept_z(case: Case, tensors: dict[str, torch.Tensor], plan=None) -> torch.Tensor:
    """z as the kernel writes it."""
    leaves = {name: t.detach() for name, t in tensors.items()}
    return fused(case, leaves, plan=plan)


def within(name: str, got: torch.Tensor, value, magnitude, terms, rounds: int, say: str) -> None:
    out, acc = UNIT[got.dtype], UNIT[torch.float64 if got.dtype == torch.float64 else torch.float32]
    tiny = torch.finfo(got.dtype).smallest_normal * torch.finfo(got.dtype).eps / 2
    room = out * value.abs() + tiny + (C_LIMIT * acc * terms.sqrt() + rounds * out) * magnitude
    error = (got.detach().cpu().double() - value).abs()
    assert got.shape == value.shape
    worst = float((error / room).nan_to_num(math.inf).max()) if got.numel() else 0
    assert worst <= 1, f"{name}: error {worst:.3g} times what is allowed; {say}"


def assert_forward(case: Case, tensors: dict[str, torch.Tensor], y: torch.Tensor, activation: str | None) -> None:
    """Holds the result of a fused call against the chain in float64."""
    exact = {name: t.detach().cpu().double() for name, t in tensors.items()}

    def z(change) -> torch.Tensor:
        given = [change(exact[name]) if name in exact else None for name in ("input", "weight", "bias", *EXTRAS)]
        return chain(case.function, *given, **case.arguments)

    want = value_of(activation, z(torch.clone))
    within("output", y, want, STEEPEST * z(torch.abs) + want.abs(), z(torch.ones_like), 0, f"{activation}, {case!r}")


def check(
    case: Case, activation: str | None, extras=EXTRAS, device: str = "cpu", residual="contiguous", slope=0.01, plan=None
) -> None:
    """Holds a fused call and all its gradients against the chain in float64."""
    tensors = operands(case, extras, residual, device)
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    y = fused(case, leaves, activation=activation, negative_slope=slope, plan=plan)
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

    at = y.detach() if activation and ACTIVATIONS[activation].from_y and slope >= 0 else kept_z(case, tensors, plan)
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
