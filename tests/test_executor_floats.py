"""Floating-point instructions of the executor and conversions against exact fractions."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from bench.executor import UnknownInstruction, decode
from tests.exact import BF16, F16, F32, F64, NAN, TF32, Format, floats, fused, rounded, samples, signed, value
from tests.ptx import check, kernel, on_lanes

FORMS = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64}


# --- floats
BINARY: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
}


def float_result(name: str, form: Format, a: int, b: int) -> int:
    x, y = value(a, form), value(b, form)
    if not isinstance(x, float) and not isinstance(y, float):
        total = x / y if name == "div" else BINARY[name](x, y)
        return rounded(total if total else 0.0, form)
    with np.errstate(all="ignore"):
        numbers = np.float64(float(x)), np.float64(float(y))
        exact = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[name](*numbers)
    if np.isfinite(exact) and exact != 0:  # one operand is a zero
        return rounded(Fraction(float(exact)), form) if form != F64 else int(np.float64(exact).view(np.uint64))
    return rounded(float(exact), form)


def same_float(got: int, want: int, form: Format) -> bool:
    nan = [isinstance(v := value(bits, form), float) and math.isnan(v) for bits in (got, want)]
    return all(nan) and (form == F64 or got == NAN[form]) if any(nan) else got == want


def check_floats(statement: str, kinds: list[str], out: str, expected: Callable[..., int]) -> None:
    inputs = [(FORMS[kind].bits, floats(FORMS[kind], seed)) for seed, kind in enumerate(kinds)]
    got = on_lanes(statement, inputs, FORMS[out].bits)
    for lane in range(32):
        operands = [int(values[lane]) for _, values in inputs]
        want = expected(*operands)
        assert same_float(int(got[lane]), want, FORMS[out]), (
            statement,
            [hex(x) for x in operands],
            hex(int(got[lane])),
            hex(want),
        )


@pytest.mark.parametrize("kind", FORMS)
def test_float_arithmetic(kind: str) -> None:
    form = FORMS[kind]
    suffix = ".rn" if kind not in ("f16", "bf16") else ""
    for name in ("add", "sub", "mul"):
        check_floats(
            f"{name}{suffix}.{kind} {{d}}, {{a}}, {{b}};", [kind] * 2, kind, lambda a, b, n=name: float_result(n, form, a, b)
        )
    check_floats(f"fma.rn.{kind} {{d}}, {{a}}, {{b}}, {{c}};", [kind] * 3, kind, lambda a, b, c: fused(a, b, c, form))
    if kind in ("f32", "f64"):
        check_floats(f"div.rn.{kind} {{d}}, {{a}}, {{b}};", [kind] * 2, kind, lambda a, b: float_result("div", form, a, b))
    top = 1 << (form.bits - 1)
    negated = [(form.bits, samples(form.bits, 3))]
    check(f"neg.{kind} {{d}}, {{a}};", negated, form.bits, lambda a: a ^ top)
    check(f"abs.{kind} {{d}}, {{a}};", negated, form.bits, lambda a: a & (top - 1))


def extreme(name: str, form: Format, propagate: bool, a: int, b: int) -> int:
    x, y = value(a, form), value(b, form)
    nans = [isinstance(v, float) and math.isnan(v) for v in (x, y)]
    if any(nans):
        return NAN[form] if propagate or all(nans) else b if nans[0] else a
    if x == y:
        return (a | b if name == "min" else a & b) if x == 0 else a
    return a if (x < y) == (name == "min") else b


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("name", ["min", "max"])
def test_extremes(name: str, kind: str) -> None:
    for propagate in (False, True) if kind != "f64" else (False,):
        text = f"{name}{'.NaN' if propagate else ''}.{kind} {{d}}, {{a}}, {{b}};"
        check_floats(text, [kind] * 2, kind, lambda a, b, p=propagate: extreme(name, FORMS[kind], p, a, b))


def test_a_fused_product_is_rounded_once() -> None:
    """1.5 * (1 + 2^-7) lies between two bfloat16 numbers: what is added, however small, decides."""
    small = np.array([rounded(Fraction(sign, 2**60), BF16) for sign in (1, -1)] * 16, np.uint64)
    a, b = (np.full(32, rounded(x, BF16), np.uint64) for x in (Fraction(3, 2), 1 + Fraction(1, 128)))
    got = on_lanes("fma.rn.bf16 {d}, {a}, {b}, {c};", [(16, a), (16, b), (16, small)], 16)
    tie = Fraction(3, 2) * (1 + Fraction(1, 128))
    above, below = (rounded(tie + Fraction(sign, 2**20), BF16) for sign in (1, -1))
    assert [int(x) for x in got] == [above, below] * 16 and above == below + 1


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_halves_into_single(kind: str) -> None:
    """sm_100 and up: a half and a float32, a product of halves and a float32, rounded once."""
    form = FORMS[kind]

    def as_single(bits: int) -> int:
        return rounded(value(bits, form), F32)

    for name in ("add", "sub"):
        expected = lambda a, c, n=name: float_result(n, F32, as_single(a), c)  # noqa: E731
        check_floats(f"{name}.rn.f32.{kind} {{d}}, {{a}}, {{b}};", [kind, "f32"], "f32", expected)
    expected = lambda a, b, c: fused(as_single(a), as_single(b), c, F32)  # noqa: E731
    check_floats(f"fma.rn.f32.{kind} {{d}}, {{a}}, {{b}}, {{c}};", [kind, kind, "f32"], "f32", expected)


@pytest.mark.parametrize("kind", ["f16x2", "bf16x2"])
def test_pairs_of_halves(kind: str) -> None:
    form = FORMS[kind[:-2]]
    pairs = [floats(form, seed) | floats(form, seed + 7) << np.uint64(16) for seed in range(3)]
    for name, count in (("add", 2), ("sub", 2), ("mul", 2), ("fma.rn", 3), ("min", 2), ("max", 2), ("neg", 1)):
        one = {
            "fma.rn": lambda a, b, c: fused(a, b, c, form),
            "neg": lambda a: a ^ 0x8000,
            "min": lambda a, b: extreme("min", form, False, a, b),
            "max": lambda a, b: extreme("max", form, False, a, b),
        }.get(name) or (lambda a, b, n=name: float_result(n, form, a, b))
        operands = ", ".join("{" + x + "}" for x in "dabc"[: count + 1])
        got = on_lanes(f"{name}.{kind} {operands};", [(32, pair) for pair in pairs[:count]], 32)
        for lane in range(32):
            for side in (0, 16):
                want = one(*(int(pair[lane]) >> side & 65535 for pair in pairs[:count]))
                found = int(got[lane]) >> side & 65535
                assert found == want if name == "neg" else same_float(found, want, form), (name, kind, lane)


APPROXIMATE = {
    "ex2.approx.f32": lambda x: 2.0**x,
    "lg2.approx.f32": lambda x: math.log2(x) if x > 0 else -math.inf if x == 0 else math.nan,
    "sqrt.rn.f32": lambda x: math.sqrt(x) if x >= 0 else math.nan,
    "sqrt.approx.f32": lambda x: math.sqrt(x) if x >= 0 else math.nan,
    "rsqrt.approx.f32": lambda x: 1 / math.sqrt(x) if x > 0 else math.copysign(math.inf, x) if x == 0 else math.nan,
    "rcp.approx.f32": lambda x: 1 / x if x else math.copysign(math.inf, x),
    "rcp.rn.f32": lambda x: 1 / x if x else math.copysign(math.inf, x),
    "tanh.approx.f32": math.tanh,
    "sin.approx.f32": lambda x: math.sin(x) if math.isfinite(x) else math.nan,
    "cos.approx.f32": lambda x: math.cos(x) if math.isfinite(x) else math.nan,
    "cvt.rni.f32.f32": lambda x: math.copysign(float(np.rint(x)), x),
    "cvt.rmi.f32.f32": lambda x: float(np.floor(x)),
    "cvt.rpi.f32.f32": lambda x: float(np.ceil(x)),
    "cvt.rzi.f32.f32": lambda x: float(np.trunc(x)),
}


@pytest.mark.parametrize("name", APPROXIMATE)
def test_functions(name: str) -> None:
    def expected(bits: int) -> int:
        x = struct.unpack("f", struct.pack("I", bits))[0]
        try:
            exact = APPROXIMATE[name](x) if not math.isnan(x) else math.nan
        except OverflowError:
            exact = math.inf
        with np.errstate(over="ignore"):
            near = np.float32(exact)
        return 0x7FFFFFFF if np.isnan(near) else int(near.view(np.uint32))

    check_floats(f"{name} {{d}}, {{a}};", ["f32"], "f32", expected)


def flushed(bits: int) -> int:
    return bits & 0x80000000 if bits & 0x7F800000 == 0 else bits


def test_flush_to_zero_and_saturation() -> None:
    check_floats(
        "add.ftz.f32 {d}, {a}, {b};", ["f32"] * 2, "f32", lambda a, b: flushed(float_result("add", F32, flushed(a), flushed(b)))
    )

    def clamped(a: int, b: int) -> int:
        x = value(float_result("mul", F32, a, b), F32)
        return 0 if isinstance(x, float) and math.isnan(x) else rounded(Fraction(min(max(x, 0), 1)) or 0.0, F32)

    check_floats("mul.sat.f32 {d}, {a}, {b};", ["f32"] * 2, "f32", clamped)


# --- conversions
@pytest.mark.parametrize("to", ["s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("source", ["s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"])
def test_between_integers(to: str, source: str) -> None:
    from_bits, to_bits = int(source[1:]), int(to[1:])
    held, width = max(from_bits, 16), max(to_bits, 16)

    def expected(a: int) -> int:
        a &= (1 << from_bits) - 1
        whole = signed(a, from_bits) if source[0] == "s" else a
        whole &= (1 << to_bits) - 1
        return signed(whole, to_bits) if to[0] == "s" else whole

    check(f"cvt.{to}.{source} {{d}}, {{a}};", [(held, samples(held, 1))], width, expected)


def test_low_bits_of_wider_registers() -> None:
    check("cvt.s64.s8 {d}, {a};", [(64, samples(64, 1))], 64, lambda a: signed(a, 8))
    check("cvt.u32.u16 {d}, {a};", [(32, samples(32, 1))], 32, lambda a: a & 65535)


@pytest.mark.parametrize("form", ["f16", "bf16", "f32", "f64"])
@pytest.mark.parametrize("source", ["s16", "s32", "u32", "s64", "u64"])
def test_from_integers(form: str, source: str) -> None:
    bits = int(source[1:])
    if form in ("f16", "bf16") and bits == 64:
        with pytest.raises(UnknownInstruction):
            decode(kernel(f"\tcvt.rn.{form}.{source} %rs1, %rd1;\n"))
        return
    expected = lambda a: rounded(Fraction(signed(a, bits) if source[0] == "s" else a) or 0.0, FORMS[form])  # noqa: E731
    check(f"cvt.rn.{form}.{source} {{d}}, {{a}};", [(bits, samples(bits, 2))], FORMS[form].bits, expected)


@pytest.mark.parametrize("mode", ["rzi", "rni", "rmi", "rpi"])
@pytest.mark.parametrize("to", ["s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("source", ["f16", "f32", "f64"])
def test_to_integers(to: str, mode: str, source: str) -> None:
    bits = int(to[1:])
    least, most = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if to[0] == "s" else (0, (1 << bits) - 1)

    def expected(a: int) -> int:
        x = value(a, FORMS[source])
        if isinstance(x, float):
            return 0 if math.isnan(x) else 0 if x == 0 else most if x > 0 else least
        whole = {"rzi": math.trunc, "rni": round, "rmi": math.floor, "rpi": math.ceil}[mode](x)
        return min(max(whole, least), most)

    form = FORMS[source]
    spread = floats(form, 1)
    spread[:4] = [rounded(Fraction(x), form) for x in (Fraction(5, 2), Fraction(-7, 2), 2**31 + 2**20, -(2**15) - 1)]
    width = max(bits, 16)
    sign = (lambda a: expected(a) & ((1 << bits) - 1)) if bits == 8 and to[0] == "u" else expected
    check(f"cvt.{mode}.{to}.{source} {{d}}, {{a}};", [(form.bits, spread)], width, sign)


@pytest.mark.parametrize(("to", "source"), [(a, b) for a in FORMS for b in FORMS if a != b and {a, b} != {"f16", "bf16"}])
def test_between_floats(to: str, source: str) -> None:
    narrower = FORMS[to].precision < FORMS[source].precision
    text = f"cvt{'.rn' if narrower else ''}.{to}.{source} {{d}}, {{a}};"
    form = FORMS[source]
    spread = floats(form, 1)
    if narrower:  # ties and neighbours of ties
        step = 1 << (form.precision - FORMS[to].precision - 1)
        near = [step, 3 * step, step + 1, step - 1, -step, 2 * step - 1]
        spread[:6] = [(rounded(Fraction(3, 2), form) + x) for x in near]
    got = on_lanes(text, [(form.bits, spread)], FORMS[to].bits)
    for lane in range(32):
        want = rounded(value(int(spread[lane]), form), FORMS[to])
        found, what = int(got[lane]), (text, hex(int(spread[lane])), hex(int(got[lane])), hex(want))
        if want == NAN[FORMS[to]] and not narrower:  # which one, PTX does not say
            found = want if math.isnan(value(found, FORMS[to])) else found
        assert same_float(found, want, FORMS[to]), what


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_halves_in_pairs(kind: str) -> None:
    form = FORMS[kind]
    numbers = [(32, floats(F32, seed)) for seed in (1, 2)]
    got = on_lanes(f"cvt.rn.{kind}x2.f32 {{d}}, {{a}}, {{b}};", numbers, 32)
    for lane in range(32):
        for side, (_, values) in zip((16, 0), numbers, strict=True):
            want = rounded(value(int(values[lane]), F32), form)
            assert same_float(int(got[lane]) >> side & 65535, want, form), (kind, lane)


def test_tf32() -> None:
    numbers = floats(F32, 1)
    numbers[:4] = [0x3F801000, 0x3F803000, 0x3F800FFF, 0xBF801000]
    for mode in ("rna", "rn"):
        got = on_lanes(f"cvt.{mode}.tf32.f32 {{d}}, {{a}};", [(32, numbers)], 32)
        for lane in range(32):
            x = value(int(numbers[lane]), F32)
            want = int(numbers[lane]) if isinstance(x, float) else rounded(x, TF32, mode) << 13
            assert int(got[lane]) == want, (mode, hex(int(numbers[lane])), hex(int(got[lane])), hex(want))


def test_brain_towards_zero() -> None:
    check_floats("cvt.rz.bf16.f32 {d}, {a};", ["f32"], "bf16", lambda a: rounded(value(a, F32), BF16, "rz"))
