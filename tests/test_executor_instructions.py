"""Integer instructions of the executor, comparisons, moves and predicates against Python's integers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest

from bench.executor import UnknownInstruction, decode
from tests.exact import BF16, F16, F32, F64, floats, samples, signed, value
from tests.ptx import check, kernel, on_lanes, run

FORMS = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64}


def trunc_div(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def integer(name: str, kind: str) -> Callable[..., int]:
    """What an integer instruction gives, on unsigned bits."""
    bits = int(kind[1:])
    sign = (lambda x: signed(x, bits)) if kind[0] == "s" else (lambda x: x)

    def divided(a: int, b: int) -> int:
        return trunc_div(sign(a), sign(b)) if sign(b) else -1

    def rest(a: int, b: int) -> int:
        return sign(a) - sign(b) * trunc_div(sign(a), sign(b)) if sign(b) else a

    table: dict[str, Callable[..., int]] = {
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "mul.lo": lambda a, b: a * b,
        "mul.hi": lambda a, b: sign(a) * sign(b) >> bits,
        "mul.wide": lambda a, b: sign(a) * sign(b),
        "mad.lo": lambda a, b, c: a * b + c,
        "mad.hi": lambda a, b, c: (sign(a) * sign(b) >> bits) + c,
        "mad.wide": lambda a, b, c: sign(a) * sign(b) + c,
        "min": lambda a, b: min(sign(a), sign(b)),
        "max": lambda a, b: max(sign(a), sign(b)),
        "min.relu": lambda a, b: max(0, min(sign(a), sign(b))),
        "max.relu": lambda a, b: max(0, sign(a), sign(b)),
        "div": divided,
        "rem": rest,
        "and": lambda a, b: a & b,
        "or": lambda a, b: a | b,
        "xor": lambda a, b: a ^ b,
        "not": lambda a: ~a,
        "neg": lambda a: -a,
        "abs": lambda a: abs(sign(a)),
        "popc": lambda a: a.bit_count(),
        "clz": lambda a: bits - a.bit_length(),
        "brev": lambda a: int(f"{a:0{bits}b}"[::-1], 2),
        "shl": lambda a, n: a << n if n < bits else 0,
        "shr": lambda a, n: sign(a) >> min(n, bits),
    }
    return table[name]


INTEGER = [
    *[
        (name, f"{sign}{bits}")
        for bits in (16, 32, 64)
        for sign in "su"
        for name in ("add", "sub", "mul.lo", "mul.hi", "mad.lo")
    ],
    *[(name, f"{sign}{bits}") for bits in (16, 32, 64) for sign in "su" for name in ("min", "max", "div", "rem", "shr")],
    *[(name, f"b{bits}") for bits in (16, 32, 64) for name in ("and", "or", "xor", "not", "shl")],
    *[(name, f"s{bits}") for bits in (16, 32, 64) for name in ("neg", "abs")],
    *[(name, f"b{bits}") for bits in (32, 64) for name in ("popc", "clz", "brev")],
    *[(name, f"{sign}{bits}") for bits in (16, 32) for sign in "su" for name in ("mul.wide", "mad.wide")],
    ("min.relu", "s32"),
    ("max.relu", "s32"),
    ("mad.hi", "s32"),
    ("mad.hi", "u32"),
]


@pytest.mark.parametrize(("name", "kind"), INTEGER, ids=lambda x: str(x))
def test_integers(name: str, kind: str) -> None:
    bits = int(kind[1:])
    expected = integer(name, kind)
    count = expected.__code__.co_argcount
    inputs = [(bits, samples(bits, seed)) for seed in range(count)]
    width = 32 if name in ("popc", "clz") else 2 * bits if "wide" in name else bits
    if name in ("shl", "shr"):
        inputs[1] = (32, samples(32, 1) % np.uint64(80))
    if name == "mad.wide":
        inputs[2] = (2 * bits, samples(2 * bits, 2))
    operands = ", ".join("{" + x + "}" for x in "dabc"[: count + 1])
    check(f"{name}.{kind} {operands};", inputs, width, expected)


def field(a: int, position: int, length: int, kind: str) -> int:
    bits = int(kind[1:])
    position, length = position & 255, length & 255
    whole = signed(a, bits) if kind[0] == "s" else a
    if length == 0:
        return 0
    part = whole >> position
    return part & ((1 << length) - 1) if kind[0] == "u" else signed(part, length) if length < bits else part


def insert(a: int, b: int, position: int, length: int, bits: int) -> int:
    mask = ((1 << (length & 255)) - 1) << (position & 255) & ((1 << bits) - 1)
    return (b & ~mask) | (a << (position & 255) & mask)


def lookup(table: int) -> Callable[[int, int, int], int]:
    return lambda a, b, c: sum((table >> ((a >> k & 1) * 4 + (b >> k & 1) * 2 + (c >> k & 1)) & 1) << k for k in range(32))


def permuted(a: int, b: int, selector: int) -> int:
    result = 0
    for k in range(4):
        nibble = selector >> 4 * k & 15
        byte = (b << 32 | a) >> 8 * (nibble & 7) & 255
        result |= (255 * (byte >> 7) if nibble & 8 else byte) << 8 * k
    return result


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_bit_fields(kind: str) -> None:
    bits = int(kind[1:])
    places = [(32, samples(32, 5) % np.uint64(70)), (32, samples(32, 6) % np.uint64(70))]
    first = (bits, samples(bits, 3))
    check(f"bfe.{kind} {{d}}, {{a}}, {{b}}, {{c}};", [first, *places], bits, lambda a, p, n: field(a, p, n, kind))
    both = [first, (bits, samples(bits, 4)), *places]
    expected = lambda a, b, p, n: insert(a, b, p, n, bits)  # noqa: E731
    check(f"bfi.b{bits} {{d}}, {{a}}, {{b}}, {{c}}, {{e}};", both, bits, expected)


def test_words_of_bits() -> None:
    three = [(32, samples(32, seed)) for seed in (1, 2, 3)]
    for table in (0x96, 0xE8, 0x3A, 0x01, 0xFE):
        check(f"lop3.b32 {{d}}, {{a}}, {{b}}, {{c}}, {table:#x};", three, 32, lookup(table))
    check("prmt.b32 {d}, {a}, {b}, {c};", three, 32, permuted)
    check("prmt.b32 {d}, {a}, {b}, 0x5410;", three[:2], 32, lambda a, b: permuted(a, b, 0x5410))
    by = [three[0], three[1], (32, samples(32, 4) % np.uint64(64))]
    for mode, count in (("wrap", lambda n: n & 31), ("clamp", lambda n: min(n, 32))):
        check(f"shf.l.{mode}.b32 {{d}}, {{a}}, {{b}}, {{c}};", by, 32, lambda a, b, n, c=count: (b << 32 | a) << c(n) >> 32)
        check(f"shf.r.{mode}.b32 {{d}}, {{a}}, {{b}}, {{c}};", by, 32, lambda a, b, n, c=count: (b << 32 | a) >> c(n))


@pytest.mark.parametrize("name", ["add", "sub", "min", "max"])
@pytest.mark.parametrize("kind", ["s16x2", "u16x2"])
def test_pairs_of_integers(name: str, kind: str) -> None:
    one = integer(name, kind[:3])
    pair = lambda a, b: one(a & 65535, b & 65535) & 65535 | (one(a >> 16, b >> 16) & 65535) << 16  # noqa: E731
    check(f"{name}.{kind} {{d}}, {{a}}, {{b}};", [(32, samples(32, 1)), (32, samples(32, 2))], 32, pair)


# --- comparisons
ORDER: dict[str, Callable[[float, float], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


@pytest.mark.parametrize("kind", ["s16", "u16", "b16", "s32", "u32", "b32", "s64", "u64", "b64", "f32", "f64", "f16", "bf16"])
def test_comparisons(kind: str) -> None:
    bits = int(re.sub("[a-z]", "", kind))
    is_float = kind in FORMS
    first = floats(FORMS[kind], 1) if is_float else samples(bits, 1)
    second = np.where(np.arange(32) % 3 == 0, first, floats(FORMS[kind], 2) if is_float else samples(bits, 2))
    names = ["eq", "ne"] if kind[0] == "b" and not is_float else list(ORDER)
    names += [name + "u" for name in ORDER] + ["num", "nan"] if is_float else []

    def holds(name: str, a: int, b: int) -> bool:
        if is_float:
            x, y = value(a, FORMS[kind]), value(b, FORMS[kind])
            unordered = any(isinstance(v, float) and math.isnan(v) for v in (x, y))
            if name in ("num", "nan"):
                return unordered == (name == "nan")
            return name.endswith("u") and len(name) == 3 if unordered else ORDER[name[:2]](x, y)
        x, y = (signed(v, bits) if kind[0] == "s" else v for v in (a, b))
        return ORDER[name](x, y)

    two = [(bits, first), (bits, second)]
    for name in names:
        text = f"setp.{name}.{kind} %p3, {{a}}, {{b}}; selp.b32 {{d}}, 17, -3, %p3;"
        check(text, two, 32, lambda a, b, n=name: 17 if holds(n, a, b) else -3)
    odd = "\tand.b32 %r101, %r199, 1;\n\tsetp.eq.b32 %p1, %r101, 1;\n"
    for combine, both in (("and", lambda p, q: p and q), ("or", lambda p, q: p or q), ("xor", lambda p, q: p != q)):
        text = f"setp.{names[1]}.{combine}.{kind} %p3|%p4, {{a}}, {{b}}, !%p1;"
        text += " selp.b32 {d}, 1, 0, %p3; selp.b32 %r102, 2, 0, %p4; or.b32 {d}, {d}, %r102;"
        got = on_lanes(text, two, 32, odd)
        for lane in range(32):
            found, even = holds(names[1], int(first[lane]), int(second[lane])), lane % 2 == 0
            assert got[lane] == both(found, even) + 2 * both(not found, even), (text, lane)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_comparisons_of_pairs(kind: str) -> None:
    """Of two halves a word each, a predicate for the lower one and one for the upper."""
    low, high = floats(FORMS[kind], 1), floats(FORMS[kind], 2)
    same = np.where(np.arange(32) % 3 == 0, low, high)
    words = [
        first.astype(np.uint64) | second.astype(np.uint64) << np.uint64(16) for first, second in ((low, high), (same, low))
    ]

    def holds(name: str, a: int, b: int) -> bool:
        x, y = value(a, FORMS[kind]), value(b, FORMS[kind])
        unordered = any(isinstance(v, float) and math.isnan(v) for v in (x, y))
        return unordered == (name == "nan") if name in ("num", "nan") else not unordered and ORDER[name](x, y)

    for name in ("num", "nan", "eq", "lt"):
        text = f"setp.{name}.{kind}x2 %p3|%p4, {{a}}, {{b}};"
        text += " selp.b32 {d}, 1, 0, %p3; selp.b32 %r102, 2, 0, %p4; or.b32 {d}, {d}, %r102;"
        check(
            text,
            [(32, word) for word in words],
            32,
            lambda a, b, n=name: holds(n, a & 65535, b & 65535) + 2 * holds(n, a >> 16, b >> 16),
        )


def test_moves_of_parts() -> None:
    check("mov.b32 {{%rs5, %rs6}}, {a}; mov.b32 {d}, {{%rs6, %rs5}};", [(32, samples(32, 1))], 32, lambda a: a >> 16 | a << 16)
    check("mov.b64 {{%r5, %r6}}, {a}; mov.b64 {d}, {{%r6, %r5}};", [(64, samples(64, 1))], 64, lambda a: a >> 32 | a << 32)
    four = "mov.b64 {{%rs5, %rs6, %rs7, %rs8}}, {a}; mov.b64 {d}, {{%rs8, %rs7, %rs6, %rs5}};"
    check(four, [(64, samples(64, 1))], 64, lambda a: sum((a >> 16 * k & 65535) << 16 * (3 - k) for k in range(4)))
    check("mov.b32 {{_, %rs5}}, {a}; cvt.u32.u16 {d}, %rs5;", [(32, samples(32, 1))], 32, lambda a: a >> 16)
    check("{{ .reg .b32 t; mov.b32 t, {a}; add.s32 {d}, t, -1; }}", [(32, samples(32, 1))], 32, lambda a: a - 1)


def test_predicates() -> None:
    setup = "\tand.b32 %r101, %r199, 1;\n\tsetp.eq.b32 %p1, %r101, 1;\n\tsetp.lt.u32 %p2, %r199, 16;\n"
    table = {"and": lambda p, q: p and q, "or": lambda p, q: p or q, "xor": lambda p, q: p != q}
    lanes = np.arange(32, dtype=np.uint64)
    for name, both in table.items():
        text = f"{name}.pred %p3, %p1, %p2; selp.b64 {{d}}, {{a}}, 5, %p3;"
        got = on_lanes(text, [(64, lanes)], 64, setup)
        assert [int(x) for x in got] == [k if both(k % 2 == 1, k < 16) else 5 for k in range(32)]
    got = on_lanes("not.pred %p3, %p1; mov.pred %p4, %p3; selp.b16 {d}, 1, 2, %p4;", [(16, lanes)], 16, setup)
    assert [int(x) for x in got] == [1 if k % 2 == 0 else 2 for k in range(32)]
    got = on_lanes("mov.b32 {d}, {a}; @!%p1 add.s32 {d}, {a}, 100;", [(32, lanes)], 32, setup)
    assert [int(x) for x in got] == [k + 100 * (k % 2 == 0) for k in range(32)]


def test_an_unknown_instruction_raises() -> None:
    unknown = [
        "atom.global.add.f32 %r1, [%rd70], %r2;",
        "frobnicate.b32 %r1, %r2;",
        "cvt.rn.satfinite.e4m3x2.f32 %rs1, %r1, %r2;",
    ]
    text = kernel("\n".join(["\tadd.s32 %r3, %r1, %r2;", *unknown]) + "\n")
    with pytest.raises(UnknownInstruction) as raised:
        decode(text)
    for statement in unknown:
        line = next(k for k, written in enumerate(text.split("\n"), 1) if written == statement)
        assert f"line {line}: {statement[:-1]}" in str(raised.value)
    assert "add.s32" not in str(raised.value)


@pytest.mark.parametrize(
    "text", ["ld.global.v8.b32 {%r1,%r2,%r3,%r4,%r5,%r6,%r7,%r8}, [%rd70];", "add.rm.f32 %r1, %r2, %r3;", "bar.arrive 0, 64;"]
)
def test_a_form_is_not_guessed(text: str) -> None:
    with pytest.raises(UnknownInstruction):
        decode(kernel("\t" + text + "\n"))


def test_an_empty_kernel() -> None:
    done = run(kernel(""), [np.zeros(1, np.uint64), np.zeros(1, np.uint64)])
    assert not done.faults and done.executed == 4
