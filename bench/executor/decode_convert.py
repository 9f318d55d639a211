"""Decoding of cvt and mov: between types, and packs of narrow registers in wide ones."""

from __future__ import annotations

from bench.executor.builder import Builder, Unknown
from bench.executor.decode_arithmetic import bits_of, extended
from bench.executor.text import group

HALVES = ("f16", "bf16")
TO_INTEGRAL = {"rni": "rni", "rmi": "rmi", "rpi": "rpi", "rzi": "rzi"}


def convert(b: Builder, parts: list[str], operands: list[str]) -> None:
    to, source, modifiers = parts[-2], parts[-1], set(parts[1:-2])
    form = ".".join(parts)
    if left := modifiers - {"rn", "rz", "rna", "rni", "rmi", "rpi", "rzi", "ftz", "sat", "satfinite", "relu"}:
        raise Unknown(f"{form} ({', '.join(sorted(left))})")
    if to in ("f16x2", "bf16x2"):
        _pair(b, to, source, modifiers, operands, form)
        return
    target = b.register(operands[0])
    wide_target = operands[0] != "_" and b.width(operands[0])
    a = b.value(operands[1], bits_of(source))
    integers = [kind[0] in "su" for kind in (to, source)]
    if to == "tf32":
        if source != "f32" or not modifiers & {"rna", "rn"} or modifiers & {"rz", "relu", "satfinite"}:
            raise Unknown(form)
        b.emit("tf32rna" if "rna" in modifiers else "tf32rn", target, a)
    elif integers == [True, True]:
        if modifiers:
            raise Unknown(form)
        _integers(b, to, source, target, a, int(wide_target))
    elif integers == [False, True]:
        _from_integer(b, to, source, target, a, modifiers, form)
    elif integers == [True, False]:
        _to_integer(b, to, source, target, a, modifiers, form)
    else:
        _floats(b, to, source, target, a, modifiers, form)


def _pair(b: Builder, to: str, source: str, modifiers: set[str], operands: list[str], form: str) -> None:
    """Rounds two float32 to a pair of halves; the first operand becomes the upper one."""
    half = to.removesuffix("x2")
    if source != "f32" or "rn" not in modifiers or modifiers - {"rn", "relu", "ftz"} or len(operands) != 3:
        raise Unknown(form)
    halves = []
    for operand in operands[:0:-1]:
        value = b.value(operand)
        value = b.into("relu", value) if "relu" in modifiers else value
        halves.append(b.into(f"{half}.f32", value))
    b.emit("pack32", b.register(operands[0]), *halves)


def _integers(b: Builder, to: str, source: str, target: int, a: int, register: int) -> None:
    to_bits, from_bits = bits_of(to), bits_of(source)
    if from_bits == 64 and to_bits < 64:
        a = b.into("low", a)
        from_bits = 32
    elif from_bits < 32:
        a = extended(b, a, source)
    if to_bits == 64:
        b.emit("mov64" if from_bits == 64 else "sext64" if source[0] == "s" else "zext64", target, a)
        return
    if to_bits < 32:
        a = b.into(f"{'s' if to[0] == 's' else 'z'}ext{to_bits}", a)
    if register == 64:
        b.emit("sext64" if to[0] == "s" else "zext64", target, a)
    else:
        b.emit("zext16" if register == 16 else "mov32", target, a)


def _from_integer(b: Builder, to: str, source: str, target: int, a: int, modifiers: set[str], form: str) -> None:
    if modifiers - {"rn"}:
        raise Unknown(form)
    sign = source[0]
    if bits_of(source) < 32:
        a = extended(b, a, source)
    name = f"{sign}{64 if bits_of(source) == 64 else 32}"
    if to in HALVES:
        if name.endswith("64"):
            raise Unknown(form)
        exact = b.into(f"f64.{name}", a)
        b.emit(f"{to}.f32", target, b.into("f32odd.f64", exact))
    else:
        b.emit(f"{to}.{name}", target, a)


def _to_integer(b: Builder, to: str, source: str, target: int, a: int, modifiers: set[str], form: str) -> None:
    rounding = modifiers & set(TO_INTEGRAL)
    if len(rounding) != 1 or modifiers - rounding - {"ftz", "sat"}:
        raise Unknown(form)
    if source in HALVES:
        a, source = b.into(f"f32.{source}", a), "f32"
    if "ftz" in modifiers and source == "f32":
        a = b.into("ftz", a)
    if rounding != {"rzi"}:
        a = b.into(f"{rounding.pop()}{source}", a)
    width, sign = bits_of(to), to[0]
    if width >= 32:
        b.emit(f"{sign}{width}.{source}", target, a)
        return
    least, most = (-(1 << (width - 1)), (1 << (width - 1)) - 1) if sign == "s" else (0, (1 << width) - 1)
    whole = b.into(f"s32.{source}", a)
    whole = b.into("maxs32", b.into("mins32", whole, b.constant(most, "i")), b.constant(least, "i"))
    b.emit("zext16", target, whole)


def _floats(b: Builder, to: str, source: str, target: int, a: int, modifiers: set[str], form: str) -> None:
    known = {"f16", "bf16", "f32", "f64"}
    rounding = modifiers & set(TO_INTEGRAL)
    if to not in known or source not in known or "rna" in modifiers or "satfinite" in modifiers:
        raise Unknown(form)
    if source in HALVES:
        a, source = b.into(f"f32.{source}", a), "f32"
    if "ftz" in modifiers and source == "f32":
        a = b.into("ftz", a)
    if rounding:
        a = b.into(f"{rounding.pop()}{source}", a)
    if "relu" in modifiers:
        a = b.into("relu", a)
    if "sat" in modifiers:
        if source != "f32":
            raise Unknown(form)
        a = b.into("saturate", a)
    if "rz" in modifiers:
        if (to, source) != ("bf16", "f32"):
            raise Unknown(form)
        b.emit("bf16rz.f32", target, a)
    elif to == source:
        b.emit("mov64" if to == "f64" else "mov32", target, a)
    elif to in HALVES:
        b.emit(f"{to}.f32", target, b.into("f32odd.f64", a) if source == "f64" else a)
    else:
        b.emit(f"{to}.{source}", target, a)


def move(b: Builder, parts: list[str], operands: list[str]) -> None:
    """mov, of a register, a constant, or parts of one."""
    width = bits_of(parts[-1])
    if len(parts) != 2 or width not in (16, 32, 64):
        raise Unknown(".".join(parts))
    if operands[0].startswith("{"):
        _unpack(b, width, group(operands[0]), operands[1])
    elif operands[1].startswith("{"):
        _pack(b, width, operands[0], group(operands[1]))
    else:
        b.emit("mov64" if width == 64 else "mov32", b.register(operands[0]), b.value(operands[1], width))


def _unpack(b: Builder, width: int, names: list[str], source: str) -> None:
    whole = b.value(source, width)
    words = [b.into("low", whole), b.into("high", whole)] if width == 64 else [whole]
    if len(names) == 2 * len(words):
        words = [part for word in words for part in (b.into("zext16", word), b.into("shru32", word, b.constant(16, "i")))]
    if len(names) != len(words) or len(words) == 1:
        raise Unknown(f"mov of {width} bits to {len(names)} parts")
    for name, word in zip(names, words, strict=True):
        if name != "_":
            b.emit("mov32", b.register(name), word)


def _pack(b: Builder, width: int, target: str, names: list[str]) -> None:
    part = width // len(names)
    if part not in (16, 32) or part * len(names) != width:
        raise Unknown(f"mov of {len(names)} parts to {width} bits")
    words = [b.value(name, part) for name in names]
    if part == 16 and width == 64:
        words = [b.into("pack32", *words[:2]), b.into("pack32", *words[2:])]
    b.emit("pack64" if width == 64 else "pack32", b.register(target), *words)
