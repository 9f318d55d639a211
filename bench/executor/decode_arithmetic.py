"""Decoding of arithmetic: integers, floats, halves, comparisons, moves of bits."""

from __future__ import annotations

from collections.abc import Callable

from bench.executor.builder import Builder, Unknown

INTEGERS = ("add", "sub", "mul", "min", "max", "div", "rem", "shl", "shr", "and", "or", "xor")
FLOAT_TYPES = ("f32", "f64", "f16", "bf16", "f16x2", "bf16x2", "f32x2")
COMPARISONS = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


def bits_of(kind: str) -> int:
    """The width of a type's name: "s32" is 32, "f16x2" 32."""
    digits = kind.lstrip("busf")
    if "x2" in digits:
        return 2 * int(digits.split("x")[0])
    return int(digits)


def extended(b: Builder, slot: int, kind: str) -> int:
    """A narrow integer as a 32-bit one, by its sign."""
    width = bits_of(kind)
    return b.into(f"{'s' if kind[0] == 's' else 'z'}ext{width}", slot) if width < 32 else slot


def narrowed(b: Builder, name: str, target: int, kind: str, *sources: int) -> None:
    """A 32-bit operation whose result is kept in the type's bits."""
    width = bits_of(kind)
    if width >= 32:
        b.emit(name, target, *sources)
    else:
        b.emit(f"zext{width}", target, b.into(name, *sources))


def integer(b: Builder, parts: list[str], operands: list[str]) -> None:
    base, kind = parts[0], parts[-1]
    width, sign = bits_of(kind), "s" if kind[0] == "s" else "u"
    clamped = kind == "s32" and base in ("min", "max") and parts[1:-1] == ["relu"]
    if len(parts) > 2 and parts[1:-1] not in (["lo"],) and not clamped:
        raise Unknown(".".join(parts))
    amount = base in ("shl", "shr")
    a = b.value(operands[1], width)
    other = b.value(operands[2], 32 if amount else width)
    size = 64 if width == 64 else 32
    if width < 32 and sign == "s" and base in ("min", "max", "div", "rem", "shr"):
        a = extended(b, a, kind)
        other = other if amount else extended(b, other, kind)
    name = {"shr": f"shr{sign}"}.get(base, base) if base in ("shl", "shr") else base
    name += sign if base in ("min", "max", "div", "rem") else ""
    if clamped:  # sm_90: a negative result becomes 0
        b.emit("maxs32", b.register(operands[0]), b.into(f"{name}32", a, other), b.constant(0, "i"))
        return
    narrowed(b, f"{name}{size}", b.register(operands[0]), kind, a, other)


def product(b: Builder, parts: list[str], operands: list[str]) -> None:
    """mul and mad: lo, hi, wide."""
    base, part, kind = parts[0], parts[1], parts[-1]
    width, sign = bits_of(kind), "s" if kind[0] == "s" else "u"
    target = b.register(operands[0])
    a, other = (b.value(operand, width) for operand in operands[1:3])
    size = 64 if width == 64 else 32
    if part == "wide":
        if width == 32:
            addend = [b.value(operands[3], 64)] if base == "mad" else []
            b.emit(f"{base}wide{sign}", target, a, other, *addend)
            return
        if width != 16:
            raise Unknown(".".join(parts))
        addend = [b.value(operands[3], 32)] if base == "mad" else []
        b.emit(f"{base}32", target, extended(b, a, kind), extended(b, other, kind), *addend)
        return
    if part == "lo":
        addend = [b.value(operands[3], width)] if base == "mad" else []
        narrowed(b, f"{base}{size}", target, kind, a, other, *addend)
        return
    if part != "hi" or len(parts) != 3:
        raise Unknown(".".join(parts))
    if width == 16:
        high = b.into("mul32", extended(b, a, kind), extended(b, other, kind))
        result = b.into("shru32", high, b.constant(16, "i"))
        if base == "mad":
            result = b.into("add32", result, b.value(operands[3], width))
        b.emit("zext16", target, result)
    elif base == "mad":
        b.emit(f"add{size}", target, b.into(f"mulhi{sign}{size}", a, other), b.value(operands[3], width))
    else:
        b.emit(f"mulhi{sign}{size}", target, a, other)


def unary(b: Builder, parts: list[str], operands: list[str]) -> None:
    """not, neg, abs, popc, clz, brev of integers."""
    base, kind = parts[0], parts[-1]
    if len(parts) != 2:
        raise Unknown(".".join(parts))
    width = bits_of(kind)
    source = b.value(operands[1], width)
    if width < 32 and base == "abs":
        source = extended(b, source, kind)
    narrowed(
        b, f"{base}{64 if width == 64 else 32}", b.register(operands[0]), "b32" if base in ("popc", "clz") else kind, source
    )


def packed_integer(b: Builder, parts: list[str], operands: list[str]) -> None:
    """add, sub, min, max of two 16-bit integers in a word."""
    base, kind = parts[0], parts[-1]
    if base not in ("add", "sub", "min", "max") or len(parts) != 2:
        raise Unknown(".".join(parts))
    a, other = (b.value(operand) for operand in operands[1:3])
    sign = kind[0]
    halves = []
    for high in (False, True):
        pair = []
        for slot in (a, other):
            part = b.into("shru32", slot, b.constant(16, "i")) if high else slot
            pair.append(b.into("sext16" if sign == "s" else "zext16", part))
        halves.append(b.into(f"{base}{sign if base in ('min', 'max') else ''}32", *pair))
    b.emit("pack32", b.register(operands[0]), *halves)


# --- floats
def as_float(b: Builder, slot: int, kind: str, high: bool = False) -> int:
    """A half as float32. `high`: it is the upper half of a word."""
    kind = kind.removesuffix("x2")
    if high:
        slot = b.into("shru32", slot, b.constant(16, "i"))
    return b.into(f"f32.{kind}", slot)


def floating(b: Builder, parts: list[str], operands: list[str]) -> None:
    """Arithmetic of floats, halves and pairs of them."""
    base, kind, modifiers = parts[0], parts[-1], set(parts[1:-1])
    if parts[-2] == "f32" and kind in ("f16", "bf16"):
        mixed(b, parts, operands)
        return
    if left := modifiers - {"rn", "ftz", "approx", "full", "NaN", "sat"}:
        raise Unknown(f"{'.'.join(parts)} ({', '.join(sorted(left))})")
    if base not in FLOAT_UNARY | FLOAT_MORE:
        raise Unknown(".".join(parts))
    name = base + ("nan" if "NaN" in modifiers else "")
    name = {"ex2": "exp2", "lg2": "log2"}.get(name, name)
    target = b.register(operands[0])
    sources = [b.value(operand, bits_of(kind)) for operand in operands[1:]]
    if kind in ("f32", "f64"):
        sources = [b.into("ftz", source) for source in sources] if "ftz" in modifiers else sources
        result = b.emit(f"{name}{kind}", target, *sources)
        if "ftz" in modifiers and base not in ("neg", "abs"):
            b.emit("ftz", target, result)
        if "sat" in modifiers:
            b.emit("saturate", target, target)
        return
    if "sat" in modifiers:
        raise Unknown(".".join(parts))
    if kind == "f32x2":
        pairs = [(b.into("low", source), b.into("high", source)) for source in sources]
        b.emit("pack64", target, *(b.into(f"{name}f32", *(pair[side] for pair in pairs)) for side in (0, 1)))
        return
    half = kind.removesuffix("x2")
    sides = (False, True) if kind.endswith("x2") else (False,)
    results = []
    for high in sides:
        if base in ("neg", "abs"):
            part = b.into("shru32", sources[0], b.constant(16, "i")) if high else sources[0]
            mask = b.constant(0x8000 if base == "neg" else 0x7FFF, "i")
            results.append(b.into("xor32" if base == "neg" else "and32", part, mask))
            continue
        values = [as_float(b, source, kind, high) for source in sources]
        done = b.into(f"fma{half}" if base == "fma" else f"{name}f32", *values)
        results.append(b.into(f"{half}.f32", done))
    if len(results) == 2:
        b.emit("pack32", target, *results)
    else:
        b.emit("mov32", target, results[0])


def mixed(b: Builder, parts: list[str], operands: list[str]) -> None:
    """add, sub and fma of halves into float32: all operands but the last are halves, one rounding."""
    base, kind = parts[0], parts[-1]
    if base not in ("add", "sub", "fma") or set(parts[1:-2]) - {"rn", "sat"}:
        raise Unknown(".".join(parts))
    values = [as_float(b, b.value(operand, 16), kind) for operand in operands[1:-1]]
    target = b.emit(f"{base}f32", b.register(operands[0]), *values, b.value(operands[-1]))
    if "sat" in parts:
        b.emit("saturate", target, target)


FLOAT_UNARY = {"neg", "abs", "sqrt", "rsqrt", "rcp", "ex2", "lg2", "tanh", "sin", "cos"}
FLOAT_MORE = {"add", "sub", "mul", "div", "fma", "min", "max"}


# --- comparisons and choices
def compare(b: Builder, parts: list[str], operands: list[str]) -> None:
    """setp. It may be combined with a predicate and have a second target, or compare two halves per word with a target for
    each."""
    comparison, kind = COMPARISONS.get(parts[1], parts[1]), parts[-1]
    first, _, second = operands[0].partition("|")
    combine = next((part for part in parts[2:-1] if part in ("and", "or", "xor")), None)
    if set(parts[2:-1]) - {"and", "or", "xor", "ftz"}:
        raise Unknown(".".join(parts))
    if kind in ("f16x2", "bf16x2"):
        if combine or not second:
            raise Unknown(".".join(parts))
        pairs = [b.value(operand) for operand in operands[1:3]]
        for high, target in ((False, first), (True, second)):
            halves = [as_float(b, pair, kind, high) for pair in pairs]
            b.emit(f"{comparison}.f32", b.predicate(target), *halves)
        return
    place = b.new_predicate() if combine or second else b.predicate(first)
    compared = comparison_of(b, comparison, kind, "ftz" in parts, operands[1:3], place)
    if second:
        opposite = b.into("notp", compared)
        b.emit(f"{combine}p", b.predicate(second), opposite, b.predicate(operands[3])) if combine else b.emit(
            "movp", b.predicate(second), opposite
        )
    if combine:
        b.emit(f"{combine}p", b.predicate(first), compared, b.predicate(operands[3]))
    elif second:
        b.emit("movp", b.predicate(first), compared)


def comparison_of(b: Builder, comparison: str, kind: str, flush: bool, operands: list[str], place: int) -> int:
    """Sets the predicate at a place to the result of a comparison of two operands, and returns it."""
    width = bits_of(kind)
    sources = [b.value(operand, width) for operand in operands]
    if kind in ("f16", "bf16"):
        return b.emit(f"{comparison}.f32", place, *(as_float(b, source, kind) for source in sources))
    if kind in ("f32", "f64"):
        sources = [b.into("ftz", source) for source in sources] if flush else sources
        return b.emit(f"{comparison}.{kind}", place, *sources)
    if kind[0] == "f" or "x2" in kind:
        raise Unknown(f"comparison of {kind}")
    sources = [extended(b, source, kind) for source in sources] if kind[0] == "s" else sources
    return b.emit(f"{comparison}.{'s' if kind[0] == 's' else 'u'}{64 if width == 64 else 32}", place, *sources)


def choose(b: Builder, parts: list[str], operands: list[str]) -> None:
    width = bits_of(parts[-1])
    sources = [b.value(operand, width) for operand in operands[1:3]]
    b.emit(f"select{64 if width == 64 else 32}", b.register(operands[0]), *sources, b.predicate(operands[3]))


PREDICATE_LOGIC = {"mov": "movp", "not": "notp", "and": "andp", "or": "orp", "xor": "xorp"}


def logic_of_predicates(b: Builder, parts: list[str], operands: list[str]) -> None:
    sources = [b.predicate(operand) for operand in operands[1:]]
    b.emit(PREDICATE_LOGIC[parts[0]], b.predicate(operands[0]), *sources)


# --- bits
def bits(b: Builder, parts: list[str], operands: list[str]) -> None:
    """bfe, bfi, lop3, prmt, shf."""
    base, kind = parts[0], parts[-1]
    target = b.register(operands[0])
    if base == "lop3":
        b.emit("lop3", target, *(b.value(operand) for operand in operands[1:4]), immediate=int(operands[4], 0))
    elif base == "prmt" and len(parts) == 2:
        b.emit("prmt", target, *(b.value(operand) for operand in operands[1:4]))
    elif base == "shf":
        b.emit(f"shf{parts[1]}.{parts[2]}", target, *(b.value(operand) for operand in operands[1:4]))
    elif base == "bfe":
        width = bits_of(kind)
        sign = "s" if kind[0] == "s" else "u"
        b.emit(f"bfe{sign}{width}", target, b.value(operands[1], width), *(b.value(operand) for operand in operands[2:4]))
    elif base == "bfi":
        width = bits_of(kind)
        first = [b.value(operand, width) for operand in operands[1:3]]
        b.emit(f"bfi{width}", target, *first, *(b.value(operand) for operand in operands[3:5]))
    else:
        raise Unknown(".".join(parts))


Decoder = Callable[[Builder, list[str], list[str]], None]


def arithmetic(b: Builder, parts: list[str], operands: list[str]) -> bool:
    """Decode an arithmetic instruction; False where it is none."""
    base, kind = parts[0], parts[-1]
    decoder: Decoder
    if base == "setp":
        decoder = compare
    elif kind == "pred" and base in PREDICATE_LOGIC:
        decoder = logic_of_predicates
    elif base == "selp":
        decoder = choose
    elif base in ("bfe", "bfi", "lop3", "prmt", "shf"):
        decoder = bits
    elif kind in FLOAT_TYPES and base in FLOAT_UNARY | FLOAT_MORE:
        decoder = floating
    elif kind in ("s16x2", "u16x2"):
        decoder = packed_integer
    elif base in ("mul", "mad"):
        decoder = product
    elif base in INTEGERS:
        decoder = integer
    elif base in ("not", "neg", "abs", "popc", "clz", "brev"):
        decoder = unary
    else:
        return False
    decoder(b, parts, operands)
    return True
