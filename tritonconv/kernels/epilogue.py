"""The end of every kernel: the epilogue in the accumulator's precision, then one rounding to the output type.

A kernel of any algorithm ends with `add_bias`, or with `finish` where FUSED, then `rounded` and its store. The depthwise
kernels, whose lanes are channels, take scale and shift earlier and end with `conclude`.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from tritonconv.kernels.index import unpack

#: Whether a tile [pixels, channels] is stored transposed where pixels are contiguous. Where Triton knows of no contiguous run
#: along either axis (rows of 7 or 28 pixels), Triton 3.7 and later gives neighbouring threads the last axis, 3.6 the first.
TRANSPOSED = tl.constexpr(tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 7))


class Fused(NamedTuple):
    """What a kernel does after the bias besides the activation. Pointers are None where there is nothing to do."""

    scale: Any  # [C_out]
    shift: Any  # [C_out]
    residual: Any  # of the output's shape
    z: Any  # receives the value before the activation; of the output's shape and strides
    scale_stride: int  # packed
    shift_stride: int  # packed
    residual_strides: Any  # index.Strides, of alignment R_ALIGN and unit axis R_UNIT


@triton.jit
def add_bias(acc, b_ptr, offset, mask, HAS_BIAS: tl.constexpr):
    """acc[m, n] + b[n], at `offset` [n]"""
    if HAS_BIAS:
        acc += tl.load(b_ptr + offset, mask=mask, other=0.0).to(acc.dtype)[None, :]
    return acc


@triton.jit
def per_channel(ptr, stride, channel, exists, DTYPE: tl.constexpr, INDEX: tl.constexpr = tl.int64):
    """The values at `channel` of a tensor [C_out] with a packed stride."""
    return tl.load(ptr + channel * unpack(stride).to(INDEX), mask=exists, other=0.0).to(DTYPE)


@triton.jit
def finish(
    acc,  # sums, of any shape
    channel,  # output channel of each, of a shape that broadcasts against acc
    exists,  # whether that channel exists, of the same shape
    b_ptr,
    b_stride,  # packed
    residual_ptrs,  # pointers to the residual of each; None without one
    z_ptrs,  # pointers that receive the value before the activation; None where it is not needed
    mask,  # which elements of acc exist
    fused,  # Fused
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    EMULATE_BF16: tl.constexpr,
    INDEX: tl.constexpr = tl.int64,  # type of offsets into the values per channel
    R_TRANSPOSED: tl.constexpr = False,  # the residual is read transposed
    Z_TRANSPOSED: tl.constexpr = False,  # z is written transposed
):
    """act((acc + b[channel]) * scale[channel] + shift[channel] + residual)

    The terms of a channel are summed before they are added to the tile, which keeps fewer registers alive.
    """
    if HAS_BIAS:
        added = per_channel(b_ptr, b_stride, channel, exists, acc.dtype, INDEX)
    if fused.scale is not None:
        scale = per_channel(fused.scale, fused.scale_stride, channel, exists, acc.dtype, INDEX)
        acc *= scale
        if HAS_BIAS:
            added *= scale
    if fused.shift is not None:
        shift = per_channel(fused.shift, fused.shift_stride, channel, exists, acc.dtype, INDEX)
        if HAS_BIAS:
            added += shift
        else:
            added = shift
    if HAS_BIAS or fused.shift is not None:
        acc += added
    return conclude(acc, residual_ptrs, z_ptrs, mask, ACTIVATION, SLOPE, EMULATE_BF16, R_TRANSPOSED, Z_TRANSPOSED)


@triton.jit
def conclude(
    acc,
    residual_ptrs,
    z_ptrs,
    mask,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    EMULATE_BF16: tl.constexpr,
    R_TRANSPOSED: tl.constexpr = False,
    Z_TRANSPOSED: tl.constexpr = False,
):
    """act(acc + residual); acc + residual is stored at `z_ptrs` if given."""
    if residual_ptrs is not None:
        if R_TRANSPOSED:
            acc += load_transposed(residual_ptrs, mask).to(acc.dtype)
        else:
            acc += tl.load(residual_ptrs, mask=mask, other=0.0).to(acc.dtype)
    if z_ptrs is not None:
        if Z_TRANSPOSED:
            store_transposed(z_ptrs, rounded(acc, z_ptrs.dtype.element_ty, EMULATE_BF16), mask)
        else:
            tl.store(z_ptrs, rounded(acc, z_ptrs.dtype.element_ty, EMULATE_BF16), mask=mask)
    return activated(acc, ACTIVATION, SLOPE)


@triton.jit
def activated(z, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr):
    """The activation by its name in `tritonconv.epilogue.ACTIVATIONS`. A NaN stays one."""
    if ACTIVATION == "relu":
        z = tl.where(z < 0.0, 0.0, z)
    elif ACTIVATION == "relu6":
        z = clamped_to_6(z)
    elif ACTIVATION == "leaky_relu":
        z = tl.where(z > 0.0, z, z * SLOPE)
    elif ACTIVATION == "sigmoid":
        z = sigmoid(z)
    elif ACTIVATION == "tanh":
        z = tanh(z)
    elif ACTIVATION == "gelu":
        z = 0.5 * z * (1.0 + tl.math.erf(z * 0.7071067811865476))  # z / sqrt(2)
    elif ACTIVATION == "gelu_tanh":  # (1 + tanh(u)) / 2 = sigmoid(2 u), which loses nothing where it is small
        z = z * sigmoid(z * (1.0 + 0.044715 * z * z) * 1.5957691216057308)  # 2 sqrt(2 / pi)
    elif ACTIVATION == "silu":
        z = z * sigmoid(z)
    elif ACTIVATION == "hardswish":
        z = z * clamped_to_6(z + 3.0) * 0.16666666666666666
    else:
        tl.static_assert(ACTIVATION == "", "an activation without a kernel")
    return z


@triton.jit
def clamped_to_6(z):
    z = tl.where(z < 0.0, 0.0, z)
    return tl.where(z > 6.0, 6.0, z)


@triton.jit
def sigmoid(z):
    """1 / (1 + exp(-z)), from exp(-|z|), which never overflows."""
    e = tl.exp(-tl.abs(z))
    return tl.where(z >= 0.0, 1.0, e) / (1.0 + e)


@triton.jit
def tanh(z):
    """(1 - e) / (1 + e) with e = exp(-2 |z|); near 0, where 1 - e cancels, the sixth convergent of Lambert's fraction.

    Its relative error below 1/4 is 4e-17.
    """
    size = tl.abs(z)
    e = tl.exp(-2.0 * size)
    q = z * z
    near = size < 0.25
    top = tl.where(near, size * (10395.0 + q * (1260.0 + q * 21.0)), 1.0 - e)
    size = top / tl.where(near, 10395.0 + q * (4725.0 + q * (210.0 + q)), 1.0 + e)
    return tl.where(z < 0.0, -size, size)


@triton.jit
def rounded(acc, DTYPE: tl.constexpr, EMULATE_BF16: tl.constexpr):
    """acc in DTYPE, rounded to nearest even.

    Triton's interpreter truncates float32 to bfloat16, so there the rounding is done on the bits first.
    """
    if EMULATE_BF16 and DTYPE == tl.bfloat16:
        bits = acc.to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        acc = tl.where(acc == acc, (bits & -65536).to(tl.float32, bitcast=True), acc)
    return acc.to(DTYPE)


@triton.jit
def load_transposed(ptrs, mask):
    """The values at `ptrs` [BLOCK_M, BLOCK_N], 0 where masked, read in the order in which `store_transposed` writes."""
    return tl.trans(tl.load(tl.trans(ptrs), mask=tl.trans(mask), other=0.0))


@triton.jit
def store_transposed(ptrs, tile, mask):
    """Stores a tile [BLOCK_M, BLOCK_N] at `ptrs`, with neighbouring threads on neighbouring pixels.

    A warp then writes one contiguous run, and a thread holds few pixels, whose addresses would otherwise spill.
    """
    tl.store(tl.trans(ptrs), tl.trans(tile), mask=tl.trans(mask))
