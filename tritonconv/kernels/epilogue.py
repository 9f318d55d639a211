"""The end of every kernel: bias in the accumulator's precision, then one rounding to the output type."""

import triton
import triton.language as tl


@triton.jit
def add_bias(acc, b_ptr, offset, mask, HAS_BIAS: tl.constexpr):
    """acc[m, n] + b[n], at `offset` [n]"""
    if HAS_BIAS:
        acc += tl.load(b_ptr + offset, mask=mask, other=0.0).to(acc.dtype)[None, :]
    return acc


@triton.jit
def rounded(acc, DTYPE: tl.constexpr, EMULATE_BF16: tl.constexpr):
    """acc in DTYPE, rounded to nearest even.

    Triton's interpreter truncates float32 to bfloat16, so there the rounding is done on the bits first.
    """
    if EMULATE_BF16:
        bits = acc.to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        acc = tl.where(acc == acc, (bits & -65536).to(tl.float32, bitcast=True), acc)
    return acc.to(DTYPE)
