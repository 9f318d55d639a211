"""Arithmetic of one warp as LLVM vectors: every operation that maps lanes to lanes, one line each.

A signature "d=ab" gives the types of the target and of the operands: i and l are 32 lanes of 32 and 64 bits, f and d of
float32 and float64, p a predicate (a mask of 32 bits). Registers narrower than 32 bits lie in the low bits of an i, zero
above. Decoding composes what PTX has and this table has not.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir
from numba.core import cgutils

WORD, LONG, BIT = ir.IntType(32), ir.IntType(64), ir.IntType(1)
VECTORS = {
    "i": ir.VectorType(WORD, 32),
    "l": ir.VectorType(LONG, 32),
    "f": ir.VectorType(ir.FloatType(), 32),
    "d": ir.VectorType(ir.DoubleType(), 32),
}
BITS = ir.VectorType(BIT, 32)


class Lanes:
    """A builder of LLVM instructions, with the methods that the table below uses."""

    def __init__(self, builder: ir.IRBuilder, immediate: ir.Value) -> None:
        self.b, self.immediate = builder, immediate

    def const(self, kind: str, value: float) -> ir.Constant:
        """A value in all lanes."""
        return ir.Constant(VECTORS[kind], [value] * 32)

    def call(self, name: str, *values: ir.Value, result: ir.Type | None = None) -> ir.Value:
        """An LLVM intrinsic, overloaded on its operands' type."""
        kind = result or values[0].type
        function = ir.FunctionType(kind, [v.type for v in values])
        return self.b.call(cgutils.get_or_insert_function(self.b.module, function, name), values)

    def same(self, name: str, *values: ir.Value) -> ir.Value:
        """An intrinsic `llvm.name` of vectors of one type."""
        return self.call(f"llvm.{name}.{_suffix(values[0].type)}", *values)

    def with_flag(self, name: str, value: ir.Value) -> ir.Value:
        function = ir.FunctionType(value.type, [value.type, BIT])
        called = cgutils.get_or_insert_function(self.b.module, function, f"llvm.{name}.{_suffix(value.type)}")
        return self.b.call(called, [value, ir.Constant(BIT, 0)])

    def to_integer(self, name: str, value: ir.Value, kind: str) -> ir.Value:
        """A saturating conversion of floats, not a number gives 0."""
        target = VECTORS[kind]
        return self.call(f"llvm.{name}.sat.{_suffix(target)}.{_suffix(value.type)}", value, result=target)

    def choose(self, condition: ir.Value, yes: ir.Value, no: ir.Value) -> ir.Value:
        return self.b.select(self.bits(condition), yes, no)

    def bits(self, predicate: ir.Value) -> ir.Value:
        """A predicate as a vector of bits."""
        return predicate if predicate.type == BITS else self.b.bitcast(predicate, BITS)

    def cast(self, value: ir.Value, kind: str) -> ir.Value:
        return self.b.bitcast(value, VECTORS[kind])

    def wide(self, value: ir.Value, signed: bool) -> ir.Value:
        return self.b.sext(value, VECTORS["l"]) if signed else self.b.zext(value, VECTORS["l"])

    def low(self, value: ir.Value) -> ir.Value:
        return self.b.trunc(value, VECTORS["i"])

    def less(self, a: ir.Value, b: ir.Value, signed: bool = False) -> ir.Value:
        return self.b.icmp_signed("<", a, b) if signed else self.b.icmp_unsigned("<", a, b)

    def is_nan(self, value: ir.Value) -> ir.Value:
        return self.b.fcmp_unordered("uno", value, value)


def _suffix(kind: ir.Type) -> str:
    element = {ir.FloatType(): "f32", ir.DoubleType(): "f64"}.get(kind.element) or f"i{kind.element.width}"
    return f"v32{element}"


Emit = Callable[..., ir.Value]
TABLE: list[tuple[str, str, Emit]] = []


def define(name: str, signature: str, emit: Emit) -> None:
    TABLE.append((name, signature, emit))


# --- moves, packs, masks
define("mov32", "i=i", lambda v, a: a)
define("mov64", "l=l", lambda v, a: a)
define("pack64", "l=ii", lambda v, a, b: v.b.or_(v.wide(a, False), v.b.shl(v.wide(b, False), v.const("l", 32))))
define("pack32", "i=ii", lambda v, a, b: v.b.or_(v.b.and_(a, v.const("i", 0xFFFF)), v.b.shl(b, v.const("i", 16))))
define("low", "i=l", lambda v, a: v.low(a))
define("high", "i=l", lambda v, a: v.low(v.b.lshr(a, v.const("l", 32))))
define("zext64", "l=i", lambda v, a: v.wide(a, False))
define("sext64", "l=i", lambda v, a: v.wide(a, True))
for _width in (8, 16):
    define(f"zext{_width}", "i=i", lambda v, a, n=_width: v.b.and_(a, v.const("i", (1 << n) - 1)))
    define(f"sext{_width}", "i=i", lambda v, a, n=_width: _sign_extend(v, a, n))
define("movp", "p=p", lambda v, a: a)
define("notp", "p=p", lambda v, a: v.b.not_(a))
for _name in ("and", "or", "xor"):
    define(f"{_name}p", "p=pp", lambda v, a, b, n=_name: getattr(v.b, _method(n))(a, b))
define("select32", "i=iip", lambda v, a, b, p: v.choose(p, a, b))
define("select64", "l=llp", lambda v, a, b, p: v.choose(p, a, b))


def _method(name: str) -> str:
    return name + "_" if name in ("and", "or", "not") else name


def _sign_extend(v: Lanes, a: ir.Value, width: int) -> ir.Value:
    up = v.const("i", 32 - width)
    return v.b.ashr(v.b.shl(a, up), up)


# --- integers
def _shift(v: Lanes, a: ir.Value, by: ir.Value, name: str) -> ir.Value:
    """Shifts by a 32-bit amount that clamp at the width, as PTX's do."""
    kind, width = ("i", 32) if a.type == VECTORS["i"] else ("l", 64)
    inside = v.less(by, v.const("i", width))
    if kind == "l":
        by = v.wide(by, False)
    by = v.b.select(inside, by, v.const(kind, width - 1 if name == "ashr" else 0))
    shifted = getattr(v.b, name)(a, by)
    return shifted if name == "ashr" else v.b.select(inside, shifted, v.const(kind, 0))


def _divide(v: Lanes, a: ir.Value, b: ir.Value, name: str) -> ir.Value:
    """Quotient or rest. Division by 0 gives all ones and the dividend; that of the smallest number by -1 gives that number and
    0."""
    kind = "i" if a.type == VECTORS["i"] else "l"
    zero, one, ones = v.const(kind, 0), v.const(kind, 1), v.const(kind, -1)
    none = v.b.icmp_unsigned("==", b, zero)
    signed = name[0] == "s"
    negate = v.b.icmp_unsigned("==", b, ones) if signed else None
    safe = v.b.select(v.b.or_(none, negate) if signed else none, one, b)
    result = getattr(v.b, name)(a, safe)
    if signed:
        result = v.b.select(negate, v.b.sub(zero, a) if name == "sdiv" else zero, result)
    return v.b.select(none, ones if name.endswith("div") else a, result)


def _high_product(v: Lanes, a: ir.Value, b: ir.Value, signed: bool) -> ir.Value:
    width = a.type.element.width
    double = ir.VectorType(ir.IntType(2 * width), 32)
    extend = v.b.sext if signed else v.b.zext
    product = v.b.mul(extend(a, double), extend(b, double))
    return v.b.trunc(v.b.lshr(product, ir.Constant(double, [width] * 32)), a.type)


for _kind, _bits in (("i", 32), ("l", 64)):
    for _name in ("add", "sub", "mul", "and", "or", "xor"):
        define(f"{_name}{_bits}", f"{_kind}={_kind}{_kind}", lambda v, a, b, n=_name: getattr(v.b, _method(n))(a, b))
    define(f"not{_bits}", f"{_kind}={_kind}", lambda v, a: v.b.not_(a))
    define(f"neg{_bits}", f"{_kind}={_kind}", lambda v, a: v.b.neg(a))
    define(f"abs{_bits}", f"{_kind}={_kind}", lambda v, a: v.with_flag("abs", a))
    define(f"mad{_bits}", f"{_kind}={_kind * 3}", lambda v, a, b, c: v.b.add(v.b.mul(a, b), c))
    for _name, _op in (("shl", "shl"), ("shru", "lshr"), ("shrs", "ashr")):
        define(f"{_name}{_bits}", f"{_kind}={_kind}i", lambda v, a, b, n=_op: _shift(v, a, b, n))
    for _sign in "su":
        for _name in ("min", "max"):
            define(f"{_name}{_sign}{_bits}", f"{_kind}={_kind}{_kind}", lambda v, a, b, n=_sign + _name: v.same(n, a, b))
        for _name in ("div", "rem"):
            define(f"{_name}{_sign}{_bits}", f"{_kind}={_kind}{_kind}", lambda v, a, b, n=_sign + _name: _divide(v, a, b, n))
        define(f"mulhi{_sign}{_bits}", f"{_kind}={_kind}{_kind}", lambda v, a, b, s=_sign == "s": _high_product(v, a, b, s))
    define(f"popc{_bits}", f"i={_kind}", lambda v, a: _narrow(v, v.same("ctpop", a)))
    define(f"clz{_bits}", f"i={_kind}", lambda v, a: _narrow(v, v.with_flag("ctlz", a)))
    define(f"brev{_bits}", f"{_kind}={_kind}", lambda v, a: v.same("bitreverse", a))
    for _sign in "su":
        define(f"bfe{_sign}{_bits}", f"{_kind}={_kind}ii", lambda v, a, p, n, s=_sign == "s": _extract(v, a, p, n, s))
    define(f"bfi{_bits}", f"{_kind}={_kind}{_kind}ii", lambda v, a, b, p, n: _insert(v, a, b, p, n))
for _sign in "su":
    define(f"mulwide{_sign}", "l=ii", lambda v, a, b, s=_sign == "s": v.b.mul(v.wide(a, s), v.wide(b, s)))
    define(f"madwide{_sign}", "l=iil", lambda v, a, b, c, s=_sign == "s": v.b.add(v.b.mul(v.wide(a, s), v.wide(b, s)), c))


def _narrow(v: Lanes, a: ir.Value) -> ir.Value:
    return a if a.type == VECTORS["i"] else v.low(a)


def _extract(v: Lanes, a: ir.Value, position: ir.Value, length: ir.Value, signed: bool) -> ir.Value:
    """Bits position to position + length - 1, with the sign bit in front of them and in place of bits above the word."""
    kind, width = ("i", 32) if a.type == VECTORS["i"] else ("l", 64)
    position, length = v.b.and_(position, v.const("i", 255)), v.b.and_(length, v.const("i", 255))
    empty = v.b.icmp_unsigned("==", length, v.const("i", 0))
    shifted = _shift(v, a, position, "ashr" if signed else "lshr")
    rest = v.same("umin", v.b.sub(v.const("i", width), v.same("umin", length, v.const("i", width))), v.const("i", width - 1))
    up = _shift(v, shifted, rest, "shl")
    return v.b.select(empty, v.const(kind, 0), _shift(v, up, rest, "ashr" if signed else "lshr"))


def _insert(v: Lanes, a: ir.Value, b: ir.Value, position: ir.Value, length: ir.Value) -> ir.Value:
    """b with the low bits of a in it."""
    kind = "i" if a.type == VECTORS["i"] else "l"
    position, length = v.b.and_(position, v.const("i", 255)), v.b.and_(length, v.const("i", 255))
    ones = v.b.not_(_shift(v, v.const(kind, -1), length, "shl"))
    mask = _shift(v, ones, position, "shl")
    return v.b.or_(v.b.and_(b, v.b.not_(mask)), v.b.and_(_shift(v, a, position, "shl"), mask))


def _logic(v: Lanes, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """Any function of three bits, its truth table the immediate."""
    result = v.const("i", 0)
    for row in range(8):
        term = v.const("i", -1)
        for value, bit in ((a, 4), (b, 2), (c, 1)):
            term = v.b.and_(term, value if row & bit else v.b.not_(value))
        on = v.b.trunc(v.b.lshr(v.immediate, ir.Constant(LONG, row)), BIT)
        result = v.b.or_(result, v.b.select(on, term, v.const("i", 0)))
    return result


def _permute(v: Lanes, a: ir.Value, b: ir.Value, selector: ir.Value) -> ir.Value:
    """Four bytes of the eight of b:a, or their sign bits."""
    both = v.b.or_(v.wide(a, False), v.b.shl(v.wide(b, False), v.const("l", 32)))
    result = v.const("i", 0)
    for place in range(4):
        nibble = v.b.lshr(selector, v.const("i", 4 * place))
        by = v.b.shl(v.b.and_(nibble, v.const("i", 7)), v.const("i", 3))
        byte = v.b.and_(v.low(v.b.lshr(both, v.wide(by, False))), v.const("i", 255))
        sign = v.b.and_(_sign_extend(v, byte, 8), v.const("i", -256))
        filled = v.b.and_(v.b.ashr(sign, v.const("i", 8)), v.const("i", 255))
        copied = v.b.icmp_unsigned("==", v.b.and_(nibble, v.const("i", 8)), v.const("i", 0))
        result = v.b.or_(result, v.b.shl(v.b.select(copied, byte, filled), v.const("i", 8 * place)))
    return result


def _funnel(v: Lanes, a: ir.Value, b: ir.Value, by: ir.Value, left: bool) -> ir.Value:
    """The word that begins `by` bits into b:a, counted from above (left) or from below. `by` is at most 32."""
    both = v.b.or_(v.wide(a, False), v.b.shl(v.wide(b, False), v.const("l", 32)))
    by = v.wide(by, False)
    shifted = v.b.lshr(v.b.shl(both, by), v.const("l", 32)) if left else v.b.lshr(both, by)
    return v.low(shifted)


define("lop3", "i=iii", _logic)
define("prmt", "i=iii", _permute)
for _name, _left in (("shfl", True), ("shfr", False)):
    define(f"{_name}.wrap", "i=iii", lambda v, a, b, c, s=_left: _funnel(v, a, b, v.b.and_(c, v.const("i", 31)), s))
    define(f"{_name}.clamp", "i=iii", lambda v, a, b, c, s=_left: _funnel(v, a, b, v.same("umin", c, v.const("i", 32)), s))

# --- comparisons
for _kind, _bits in (("i", 32), ("l", 64)):
    for _name, _op in (("eq", "=="), ("ne", "!="), ("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">=")):
        define(f"{_name}.u{_bits}", f"p={_kind}{_kind}", lambda v, a, b, o=_op: v.b.icmp_unsigned(o, a, b))
        define(f"{_name}.s{_bits}", f"p={_kind}{_kind}", lambda v, a, b, o=_op: v.b.icmp_signed(o, a, b))
for _kind, _bits in (("f", 32), ("d", 64)):
    for _name, _op in (("eq", "=="), ("ne", "!="), ("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">="), ("num", "ord")):
        define(f"{_name}.f{_bits}", f"p={_kind}{_kind}", lambda v, a, b, o=_op: v.b.fcmp_ordered(o, a, b))
    for _name, _op in (("equ", "=="), ("neu", "!="), ("ltu", "<"), ("leu", "<="), ("gtu", ">"), ("geu", ">="), ("nan", "uno")):
        define(f"{_name}.f{_bits}", f"p={_kind}{_kind}", lambda v, a, b, o=_op: v.b.fcmp_unordered(o, a, b))
