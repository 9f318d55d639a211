"""Floating-point arithmetic and conversions of one warp; the second half of `bench.executor.lanes`' table.

Results are those of IEEE 754 with PTX's bits for "not a number": 0x7fffffff, 0x7fff. Approximate instructions (ex2, lg2,
rsqrt, tanh, sin, cos, division) give the correctly rounded value: hardware is within the bound that PTX states, not equal.
"""

from __future__ import annotations

from llvmlite import ir

from bench.executor.lanes import TABLE, VECTORS, Lanes, define


def _canonical(v: Lanes, value: ir.Value) -> ir.Value:
    """The result of arithmetic on float32, with PTX's bits for "not a number". They are set in integers, because LLVM may
    return any such value."""
    bits = v.cast(value, "i")
    nan = v.b.icmp_unsigned(">", v.b.and_(bits, v.const("i", 0x7FFFFFFF)), v.const("i", 0x7F800000))
    return v.cast(v.b.select(nan, v.const("i", 0x7FFFFFFF), bits), "f")


def _through_double(v: Lanes, name: str, *values: ir.Value) -> ir.Value:
    """A function of float32 in float64, rounded once more."""
    exact = v.same(name, *(v.b.fpext(value, VECTORS["d"]) for value in values))
    return v.b.fptrunc(exact, VECTORS["f"])


def _flush(v: Lanes, a: ir.Value) -> ir.Value:
    """float32 with every subnormal number replaced by a zero of its sign."""
    bits = v.cast(a, "i")
    small = v.b.icmp_unsigned("==", v.b.and_(bits, v.const("i", 0x7F800000)), v.const("i", 0))
    return v.cast(v.b.select(small, v.b.and_(bits, v.const("i", 0x80000000)), bits), "f")


def _extreme(v: Lanes, a: ir.Value, b: ir.Value, name: str, propagate: bool) -> ir.Value:
    """min and max. Of two zeros the one with a sign is smaller. A number is preferred to "not a number", unless that
    propagates."""
    kind = "f" if a.type == VECTORS["f"] else "d"
    whole = "i" if kind == "f" else "l"
    sign = v.const(whole, 1 << (31 if kind == "f" else 63))
    first = v.b.fcmp_ordered("<" if name == "min" else ">", a, b)
    equal = v.b.fcmp_ordered("==", a, b)
    bits_a, bits_b = v.cast(a, whole), v.cast(b, whole)
    signs = v.b.and_(v.b.or_(bits_a, bits_b) if name == "min" else v.b.and_(bits_a, bits_b), sign)
    tied = v.cast(v.b.or_(v.b.and_(bits_a, v.b.not_(sign)), signs), kind)
    result = v.b.select(equal, tied, v.b.select(first, a, b))
    nan_a, nan_b = v.is_nan(a), v.is_nan(b)
    if propagate:
        either = v.b.fadd(a, b)
        return v.b.select(v.b.or_(nan_a, nan_b), _canonical(v, either) if kind == "f" else either, result)
    result = v.b.select(nan_a, b, v.b.select(nan_b, a, result))
    return _canonical(v, result) if kind == "f" else result


def _f(v: Lanes, value: ir.Value) -> ir.Value:
    return _canonical(v, value) if value.type == VECTORS["f"] else value


for _kind, _bits in (("f", 32), ("d", 64)):
    for _name in ("add", "sub", "mul", "div"):
        define(f"{_name}f{_bits}", f"{_kind}={_kind}{_kind}", lambda v, a, b, n=_name: _f(v, getattr(v.b, f"f{n}")(a, b)))
    define(f"fmaf{_bits}", f"{_kind}={_kind * 3}", lambda v, a, b, c: _f(v, v.same("fma", a, b, c)))
    for _name in ("min", "max"):
        define(f"{_name}f{_bits}", f"{_kind}={_kind}{_kind}", lambda v, a, b, n=_name: _extreme(v, a, b, n, False))
        define(f"{_name}nanf{_bits}", f"{_kind}={_kind}{_kind}", lambda v, a, b, n=_name: _extreme(v, a, b, n, True))
    define(f"sqrtf{_bits}", f"{_kind}={_kind}", lambda v, a: _f(v, v.same("sqrt", a)))
    define(f"rcpf{_bits}", f"{_kind}={_kind}", lambda v, a, k=_kind: _f(v, v.b.fdiv(v.const(k, 1.0), a)))
    for _name, _call in (("rni", "roundeven"), ("rmi", "floor"), ("rpi", "ceil"), ("rzi", "trunc")):
        define(f"{_name}f{_bits}", f"{_kind}={_kind}", lambda v, a, n=_call: _f(v, v.same(n, a)))
    _whole = {"f": "i", "d": "l"}[_kind]
    _sign = 1 << (31 if _kind == "f" else 63)
    define(f"negf{_bits}", f"{_whole}={_whole}", lambda v, a, k=_whole, s=_sign: v.b.xor(a, v.const(k, s)))
    define(f"absf{_bits}", f"{_whole}={_whole}", lambda v, a, k=_whole, s=_sign: v.b.and_(a, v.const(k, s - 1)))
    for _to, _width in (("i", 32), ("l", 64)):
        for _name, _call in (("s", "fptosi"), ("u", "fptoui")):
            define(f"{_name}{_width}.f{_bits}", f"{_to}={_kind}", lambda v, a, n=_call, t=_to: v.to_integer(n, a, t))
        define(f"f{_bits}.s{_width}", f"{_kind}={_to}", lambda v, a, k=_kind: v.b.sitofp(a, VECTORS[k]))
        define(f"f{_bits}.u{_width}", f"{_kind}={_to}", lambda v, a, k=_kind: v.b.uitofp(a, VECTORS[k]))
for _name in ("exp2", "log2", "tanh", "sin", "cos"):
    define(f"{_name}f32", "f=f", lambda v, a, n=_name: _f(v, _through_double(v, n, a)))


def _inverse_root(v: Lanes, a: ir.Value) -> ir.Value:
    root = v.same("sqrt", v.b.fpext(a, VECTORS["d"]))
    return _f(v, v.b.fptrunc(v.b.fdiv(v.const("d", 1.0), root), VECTORS["f"]))


define("rsqrtf32", "f=f", _inverse_root)
define("ftz", "f=f", _flush)
define(
    "saturate",
    "f=f",
    lambda v, a: _extreme(v, _extreme(v, a, v.const("f", 0.0), "max", False), v.const("f", 1.0), "min", False),
)


# --- halves, in the low bits of a word
def half_value(v: Lanes, a: ir.Value) -> ir.Value:
    """float16 as float32."""
    magnitude = v.b.shl(v.b.and_(a, v.const("i", 0x7FFF)), v.const("i", 13))
    scaled = v.cast(v.b.fmul(v.cast(magnitude, "f"), v.const("f", 2.0**112)), "i")
    special = v.b.icmp_unsigned(">=", magnitude, v.const("i", 0x0F800000))
    value = v.b.select(special, v.b.or_(magnitude, v.const("i", 0x7F800000)), scaled)
    return v.cast(v.b.or_(value, v.b.shl(v.b.and_(a, v.const("i", 0x8000)), v.const("i", 16))), "f")


def half_bits(v: Lanes, value: ir.Value) -> ir.Value:
    """float32 rounded to the nearest float16, ties to even."""
    bits = v.cast(value, "i")
    magnitude = v.b.and_(bits, v.const("i", 0x7FFFFFFF))
    odd = v.b.and_(v.b.lshr(magnitude, v.const("i", 13)), v.const("i", 1))
    normal = v.b.lshr(v.b.add(v.b.add(magnitude, v.const("i", 0xC8000FFF)), odd), v.const("i", 13))
    shifted = v.cast(v.b.fadd(v.cast(magnitude, "f"), v.const("f", 0.5)), "i")
    small = v.b.sub(shifted, v.const("i", 0x3F000000))
    result = v.b.select(v.less(magnitude, v.const("i", 0x38800000)), small, normal)
    infinite = v.b.icmp_unsigned(">=", magnitude, v.const("i", 0x47800000))
    result = v.b.select(infinite, v.const("i", 0x7C00), result)
    result = v.b.or_(result, v.b.lshr(v.b.and_(bits, v.const("i", 0x80000000)), v.const("i", 16)))
    return v.b.select(v.b.icmp_unsigned(">", magnitude, v.const("i", 0x7F800000)), v.const("i", 0x7FFF), result)


def brain_bits(v: Lanes, value: ir.Value) -> ir.Value:
    """float32 rounded to the nearest bfloat16, ties to even."""
    bits = v.cast(value, "i")
    odd = v.b.and_(v.b.lshr(bits, v.const("i", 16)), v.const("i", 1))
    rounded = v.b.lshr(v.b.add(v.b.add(bits, v.const("i", 0x7FFF)), odd), v.const("i", 16))
    magnitude = v.b.and_(bits, v.const("i", 0x7FFFFFFF))
    return v.b.select(v.b.icmp_unsigned(">", magnitude, v.const("i", 0x7F800000)), v.const("i", 0x7FFF), rounded)


def odd_value(v: Lanes, a: ir.Value) -> ir.Value:
    """float64 as float32, rounded to odd: a second rounding to fewer bits is then as if there had been one."""
    near = v.b.fptrunc(a, VECTORS["f"])
    back = v.b.fpext(near, VECTORS["d"])
    bits = v.cast(near, "i")
    even = v.b.icmp_unsigned("==", v.b.and_(bits, v.const("i", 1)), v.const("i", 0))
    inexact = v.b.and_(v.b.fcmp_ordered("!=", a, back), even)
    grown = v.b.fcmp_ordered(">", v.same("fabs", back), v.same("fabs", a))
    infinite = v.b.icmp_unsigned("==", v.b.and_(bits, v.const("i", 0x7FFFFFFF)), v.const("i", 0x7F800000))
    step = v.b.select(grown, v.const("i", -1), v.const("i", 1))
    finite = v.b.and_(inexact, v.b.not_(infinite))
    return v.cast(v.b.select(finite, v.b.add(bits, step), bits), "f")


def _fused_brain(v: Lanes, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """a * b + c of bfloat16 (as float32), rounded once: the exact sum to odd in float64 first."""
    wide = VECTORS["d"]
    product, c = v.b.fmul(v.b.fpext(a, wide), v.b.fpext(b, wide)), v.b.fpext(c, wide)
    total = v.b.fadd(product, c)
    virtual = v.b.fsub(total, product)
    error = v.b.fadd(v.b.fsub(product, v.b.fsub(total, virtual)), v.b.fsub(c, virtual))
    bits = v.cast(total, "l")
    even = v.b.icmp_unsigned("==", v.b.and_(bits, v.const("l", 1)), v.const("l", 0))
    inexact = v.b.and_(v.b.fcmp_ordered("!=", error, v.const("d", 0.0)), even)
    away = v.b.xor(v.b.fcmp_ordered(">", error, v.const("d", 0.0)), v.b.fcmp_ordered("<", total, v.const("d", 0.0)))
    bits = v.b.select(inexact, v.b.add(bits, v.b.select(away, v.const("l", 1), v.const("l", -1))), bits)
    return odd_value(v, v.cast(bits, "d"))


def _fused_half(v: Lanes, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """a * b + c of float16 (as float32): exact in float64, then to odd, so that rounding to float16 is the only one."""
    wide = VECTORS["d"]
    product = v.b.fmul(v.b.fpext(a, wide), v.b.fpext(b, wide))
    return odd_value(v, v.b.fadd(product, v.b.fpext(c, wide)))


def _tf32(v: Lanes, a: ir.Value, even: bool) -> ir.Value:
    """float32's bits rounded to tf32: ties away from zero, or to even."""
    special = v.b.icmp_unsigned(">=", v.b.and_(a, v.const("i", 0x7FFFFFFF)), v.const("i", 0x7F800000))
    half = v.const("i", 0x1000)
    if even:
        half = v.b.add(v.const("i", 0xFFF), v.b.and_(v.b.lshr(a, v.const("i", 13)), v.const("i", 1)))
    return v.b.select(special, a, v.b.and_(v.b.add(a, half), v.const("i", 0xFFFFE000)))


define("f32.f16", "f=i", half_value)
define("f16.f32", "i=f", half_bits)
define("f32.bf16", "f=i", lambda v, a: v.cast(v.b.shl(a, v.const("i", 16)), "f"))
define("bf16.f32", "i=f", brain_bits)
define(
    "bf16rz.f32", "i=f", lambda v, a: v.b.select(v.is_nan(a), v.const("i", 0x7FFF), v.b.lshr(v.cast(a, "i"), v.const("i", 16)))
)
define("relu", "f=f", lambda v, a: _extreme(v, a, v.const("f", 0.0), "max", True))
define("fmaf16", "f=fff", _fused_half)
define("fmabf16", "f=fff", _fused_brain)
define("tf32rna", "i=i", lambda v, a: _tf32(v, a, False))
define("tf32rn", "i=i", lambda v, a: _tf32(v, a, True))
define("f64.f32", "d=f", lambda v, a: v.b.fpext(a, VECTORS["d"]))
define("f32.f64", "f=d", lambda v, a: _f(v, v.b.fptrunc(a, VECTORS["f"])))
define("f32odd.f64", "f=d", odd_value)

#: The number of each operation by its name; `TABLE[number]` is its signature and how it is made.
NUMBERS = {name: number for number, (name, _, _) in enumerate(TABLE)}
