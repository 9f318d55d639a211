"""The second stage of a shared reduction: it adds partial sums in a fixed order, then ends as every kernel does."""

from typing import NamedTuple

import triton
import triton.language as tl

from tritonconv.kernels.epilogue import TRANSPOSED, add_bias, finish, rounded, store_transposed
from tritonconv.kernels.index import pixels_of, strides, unpack, wide


class Shared(NamedTuple):
    """How programs share a reduction over channels (fprop) or filters (dgrad). Packed."""

    groups: int
    depth: int  # blocks of channels or filters that one program sums
    pixels: int  # pixels of a stride phase over the batch, which are the rows of the workspace


class Results(NamedTuple):
    """What a reduction writes, counted over all groups. Packed."""

    n: int
    c: int  # divided by its alignment
    d: int
    h: int
    w: int
    b: int  # stride of the bias
    shares: int


@triton.jit
def share_of(
    part,
    shared,  # Shared
    a_base,
    b_base,
    length,  # of the reduced axis
    a_step,
    b_step,
    BLOCK_K: tl.constexpr,
):
    """(a, b, length) of share `part`: pointers to its first channel or filter, and the number of them that it sums."""
    depth = unpack(shared.depth) * BLOCK_K
    start = part * depth
    left = length - start
    a_base += start.to(tl.int64) * a_step
    b_base += start.to(tl.int64) * b_step
    return a_base, b_base, tl.where(left < depth, left, depth)


@triton.jit
def store_share(
    acc,  # [BLOCK_M, BLOCK_N]
    partial_ptr,  # workspace [shares, phases, pixels of a phase, C]
    plane,  # share * phases + phase
    phase,  # [BLOCK_N] added to `plane` per column, 0 where the tile lies in one phase
    pid_m,
    c,  # [BLOCK_N] channel, over all groups
    columns,  # [BLOCK_N]
    channels,  # of all groups
    shared,  # Shared
    BLOCK_M: tl.constexpr,
):
    """Stores a tile of partial sums. The workspace numbers the rows in order, since addresses per pixel would cost more
    registers than the sums."""
    pixels = unpack(shared.pixels).to(tl.int64)
    start = pid_m.to(tl.int64) * BLOCK_M
    base = partial_ptr + (plane.to(tl.int64) * pixels + start) * channels
    row = tl.arange(0, BLOCK_M)
    offset = (row * channels)[:, None] + (phase * (pixels * channels) + c)[None, :]
    tl.store(base + offset, acc, mask=(row < pixels - start)[:, None] & columns[None, :])


@triton.jit
def reduce_kernel(
    partial_ptr,  # workspace [shares, phases, N, D, H, W, C], D, H, W the pixels of a stride phase
    b_ptr,
    out_ptr,
    out_strides,  # Strides of out [N, C, D, H, W]; a weight gradient's [K, C / G, T, R, S]
    results,  # Results
    OUT_ALIGN: tl.constexpr,
    OUT_UNIT: tl.constexpr,
    C_ALIGN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    STRIDE: tl.constexpr,  # pixel i of phase j is pixel i * STRIDE + j of out
    RANK: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    fused=None,  # Fused
    FUSED: tl.constexpr = False,  # whether there is one: Triton 3.6 does not compare a tuple that holds a None
    ACTIVATION: tl.constexpr = "",
    SLOPE: tl.constexpr = 0.0,
    R_ALIGN: tl.constexpr = 1,
    R_UNIT: tl.constexpr = -1,
):
    """out[n, c, d, h, w] = act((b[c] + sum over i of partial[i, phase, n, .., c]) * scale[c] + shift[c] + residual[n, c, ..])

    The shares are added in the order of i, so every run gives the same bits. One program writes BLOCK_M pixels of
    BLOCK_N channels.
    """
    PHASES: tl.constexpr = STRIDE[0] * STRIDE[1] * STRIDE[2]
    channels = unpack(results.c) * C_ALIGN
    size_d, size_h, size_w = unpack(results.d), unpack(results.h), unpack(results.w)
    pixels = unpack(results.n).to(tl.int64) * tl.cdiv(size_w, STRIDE[2])
    if RANK >= 2:
        pixels *= tl.cdiv(size_h, STRIDE[1])
    if RANK >= 3:
        pixels *= tl.cdiv(size_d, STRIDE[0])
    tiles_n = tl.cdiv(channels, BLOCK_N)
    pid_m = tl.program_id(0) // tiles_n
    phase = pid_m % PHASES
    pid_m = pid_m // PHASES
    image, n, d, h, w = pixels_of(
        pid_m, tl.cdiv(size_d, STRIDE[0]), tl.cdiv(size_h, STRIDE[1]), tl.cdiv(size_w, STRIDE[2]), BLOCK_M, RANK, tl.int64
    )
    w = w * STRIDE[2] + phase % STRIDE[2]
    h = h * STRIDE[1] + (phase // STRIDE[2]) % STRIDE[1]
    d = d * STRIDE[0] + phase // (STRIDE[2] * STRIDE[1])
    c = (tl.program_id(0) % tiles_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = c < channels
    rows = (n < unpack(results.n) - image) & (w < size_w)
    if RANK >= 2:
        rows = rows & (h < size_h)
    if RANK >= 3:
        rows = rows & (d < size_d)
    mask = rows[:, None] & columns[None, :]

    pixel = phase * pixels + pid_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    partial = partial_ptr + (pixel[:, None] * channels + c[None, :])
    acc = tl.load(partial, mask=mask, other=0.0)
    for _ in range(1, unpack(results.shares)):
        partial += PHASES * pixels * channels
        acc += tl.load(partial, mask=mask, other=0.0)

    place = offsets_of(out_strides, OUT_ALIGN, OUT_UNIT, image, n, (d, h, w), c, RANK)
    if FUSED:
        r_ptrs = None
        z_ptrs = None
        if fused.residual is not None:
            r_ptrs = fused.residual + offsets_of(fused.residual_strides, R_ALIGN, R_UNIT, image, n, (d, h, w), c, RANK)
        if fused.z is not None:
            z_ptrs = fused.z + place
        acc = finish(
            acc,
            c[None, :],
            columns[None, :],
            b_ptr,
            results.b,
            r_ptrs,
            z_ptrs,
            mask,
            fused,
            HAS_BIAS,
            ACTIVATION,
            SLOPE,
            UPCAST,
            tl.int64,
            TRANSPOSED and R_UNIT != 1,
            TRANSPOSED and OUT_UNIT != 1,
        )
    else:
        acc = add_bias(acc, b_ptr, c * unpack(results.b).to(tl.int64), columns, HAS_BIAS)
    out = rounded(acc, out_ptr.dtype.element_ty, UPCAST)
    if OUT_UNIT == 1 or not TRANSPOSED:
        tl.store(out_ptr + place, out, mask=mask)
    else:
        store_transposed(out_ptr + place, out, mask)


@triton.jit
def offsets_of(packed, ALIGN: tl.constexpr, UNIT: tl.constexpr, image, n, pixel, c, RANK: tl.constexpr):
    """[BLOCK_M, BLOCK_N] offsets of pixels and channels in a tensor [N, C, D, H, W] of packed strides."""
    s_n, s_c, s_d, s_h, s_w = strides(packed, ALIGN, UNIT, tl.int64)
    row = image * wide(packed.outer, ALIGN, UNIT == 0) + n * s_n + pixel[2] * s_w
    if RANK >= 2:
        row += pixel[1] * s_h
    if RANK >= 3:
        row += pixel[0] * s_d
    return row[:, None] + (c * s_c)[None, :]
