"""Exact arithmetic as the oracle of instructions: fractions, rounded once to a floating-point format."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np


def signed(x: int, bits: int) -> int:
    """A number whose top bit is its sign."""
    x &= (1 << bits) - 1
    return x - (1 << bits) if x >> (bits - 1) else x


class Format(NamedTuple):
    """A binary floating-point format: bits of the significand with the hidden one, exponent bits."""

    precision: int
    exponent: int

    @property
    def bits(self) -> int:
        return self.precision + self.exponent


F16, BF16, F32, F64, TF32 = Format(11, 5), Format(8, 8), Format(24, 8), Format(53, 11), Format(11, 8)
NAN = {F16: 0x7FFF, BF16: 0x7FFF, F32: 0x7FFFFFFF, F64: 0x7FF8000000000000}


def value(bits: int, form: Format) -> Fraction | float:
    """The number that bits stand for; infinities and "not a number" as floats, a negative zero as -0.0."""
    stored = form.precision - 1
    sign = -1 if bits >> (form.bits - 1) & 1 else 1
    exponent, fraction = bits >> stored & (1 << form.exponent) - 1, bits & (1 << stored) - 1
    bias = (1 << (form.exponent - 1)) - 1
    if exponent == (1 << form.exponent) - 1:
        return math.nan if fraction else sign * math.inf
    if exponent == 0:
        return sign * Fraction(fraction) * Fraction(2) ** (1 - bias - stored) if fraction else sign * 0.0
    return sign * Fraction((1 << stored) + fraction) * Fraction(2) ** (exponent - bias - stored)


def rounded(number: Fraction | float, form: Format, mode: str = "rn") -> int:
    """The bits of the nearest number of a format: "rn" ties to even, "rna" ties away from zero, "rz" towards zero."""
    stored, bias = form.precision - 1, (1 << (form.exponent - 1)) - 1
    if isinstance(number, float):
        if math.isnan(number):
            return NAN[form]
        top = (1 << form.exponent) - 1 if math.isinf(number) else 0
        return int(math.copysign(1, number) < 0) << (form.bits - 1) | top << stored
    sign, size = int(number < 0) << (form.bits - 1), abs(number)
    if size == 0:
        return 0
    exponent = math.floor(math.log2(size)) if size.numerator.bit_length() < 900 and size.denominator.bit_length() < 900 else 0
    while Fraction(2) ** exponent > size:
        exponent -= 1
    while Fraction(2) ** (exponent + 1) <= size:
        exponent += 1
    exponent = max(exponent, 1 - bias)
    scaled = size / Fraction(2) ** (exponent - stored)
    whole = scaled.numerator // scaled.denominator
    rest = scaled - whole
    up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and (mode == "rna" or whole & 1))
    whole += int(up and mode != "rz")
    encoded = whole if whole < 1 << stored else ((exponent + bias) << stored) + whole - (1 << stored)
    infinite = ((1 << form.exponent) - 1) << stored
    return sign | (min(encoded, infinite) if mode != "rz" else min(encoded, infinite - 1))


def fused(a: int, b: int, c: int, form: Format) -> int:
    """Bits of a * b + c, rounded once."""
    x, y, z = (value(bits, form) for bits in (a, b, c))
    if any(isinstance(number, float) for number in (x, y, z)):
        product = float(x) * float(y)
        if product == 0 and not isinstance(z, float):
            return rounded(z, form)
        if math.isfinite(product) and product != 0:
            return rounded(Fraction(x) * Fraction(y), form) if z == 0 else rounded(float(z), form)
        with np.errstate(all="ignore"):
            return rounded(float(np.float64(product) + np.float64(float(z))), form)
    total = x * y + z
    return rounded(total, form) if total else rounded(0.0, form)


def samples(bits: int, seed: int) -> np.ndarray:
    """32 patterns of bits: zeros, ones, extremes, halves of the range, and random ones of all magnitudes."""
    random = np.random.default_rng(seed)
    full = (1 << bits) - 1
    fixed = [0, 1, full, full >> 1, (full >> 1) + 1, 2, full - 1, 31, 32, 33, 7]
    drawn = [int(random.integers(0, 1 << 63)) * 3 & full for _ in range(8)]
    small = [int(random.integers(0, 1 << 63)) >> int(random.integers(64 - bits, 63)) & full for _ in range(32 - 19)]
    return np.array(random.permutation(np.array([*fixed, *drawn, *small], np.uint64)), np.uint64)


def floats(form: Format, seed: int) -> np.ndarray:
    """32 numbers as bits: zeros, infinities, "not a number", subnormal ones, ties, and random ones of moderate size."""
    random = np.random.default_rng(seed)
    stored, bias = form.precision - 1, (1 << (form.exponent - 1)) - 1
    one = bias << stored
    sign = 1 << (form.bits - 1)
    infinite = ((1 << form.exponent) - 1) << stored
    fixed = [0, sign, one, one | sign, infinite, infinite | sign, infinite | 1 << (stored - 1), 1, infinite - 1, one + 1]
    drawn = [
        int(random.integers(0, 2)) * sign
        | int(bias + random.integers(-6, 7)) << stored
        | int(random.integers(0, 1 << 62)) & ((1 << stored) - 1)
        for _ in range(22)
    ]
    return np.array(random.permutation(np.array([*fixed, *drawn], np.uint64)), np.uint64)
