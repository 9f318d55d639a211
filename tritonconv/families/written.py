"""The kernels between x and x with its padding written out: the copy, and its transpose, the fold of a gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton.language as tl

from costmodel.algebra import ceil_div
from costmodel.problem import ConvProblem
from costmodel.tiling import MAX_ALIGN, Operand, itemsize
from tritonconv.families.gemm import REDUCE_BYTES, REDUCE_CHANNELS, REDUCE_PLANES
from tritonconv.kernels.index import pack
from tritonconv.kernels.padded_copy import padded_copy_kernel
from tritonconv.kernels.padded_fold import padded_fold_kernel
from tritonconv.kernels.reduce import Results
from tritonconv.layout import operand
from tritonconv.prepared import INT32_MAX, TensorKey, packed_strides, wide
from tritonconv.steps import Step

#: Registers of a thread of the fold. Left to itself ptxas takes 32 on sm_100, where it then spilled 14 times.
FOLD_REGISTERS = 128
#: Channels of a program that reads along pixels and writes along channels, or the other way, by bytes per element. They are
#: fewer than its pixels, because Triton gives a load and a store of one shape the same layout, whose vectors suit only one of
#: the two (9.2 times the fewest sectors, instead of 1.4).
TURNED_CHANNELS = {2: 16, 4: 16, 8: 8}


def modes(problem: ConvProblem) -> dict[str, str]:
    """The constants that say what stands in the padding of each of three axes."""
    return dict(zip(("MODE_D", "MODE_H", "MODE_W"), problem.with_unit_axes().modes, strict=True))


def written_ends(problem: ConvProblem) -> tuple[tuple[int, int], ...]:
    """(low, high) of the padding that is written out, of three axes: none where it holds zeros."""
    full = problem.with_unit_axes()
    return tuple((0, 0) if mode == "zeros" else pair for mode, pair in zip(full.modes, full.padding, strict=True))


def copy(x: TensorKey, padded: TensorKey, problem: ConvProblem, dtype: str) -> Step:
    """The kernel that writes x [N, C, *size] out with its padding."""
    read, written = operand(*x, 1, 1), operand(*padded, 1, 1)
    turned = (read.unit == 1) != (written.unit == 1)
    size = itemsize(dtype)
    programs, results, constants = _tiles(padded, x, problem, written, size, 0, TURNED_CHANNELS[size] if turned else 0)
    constants |= {"X_ALIGN": read.align, "X_UNIT": read.unit, "P_ALIGN": written.align, "P_UNIT": written.unit}
    low = tuple(pack(low) for low, _ in written_ends(problem))
    sizes = tuple(map(pack, problem.with_unit_axes().input_size))
    arguments = (packed_strides(x, read), packed_strides(padded, written), results, sizes, low)
    return Step(padded_copy_kernel, programs, constants, arguments, ("a", "out"))


def fold(padded: TensorKey, dx: TensorKey, problem: ConvProblem, dtype: str, bias_stride: int | None, upcast: bool) -> Step:
    """The kernel that adds up the images of each pixel of dx [N, C, *size]."""
    read, written = operand(*padded, 1, 1), operand(*dx, 1, 1)
    programs, results, constants = _tiles(dx, padded, problem, written, max(4, itemsize(dtype)), bias_stride or 0)
    constants |= {
        "P_ALIGN": read.align,
        "P_UNIT": read.unit,
        "DX_ALIGN": written.align,
        "DX_UNIT": written.unit,
        "HAS_BIAS": bias_stride is not None,
        "ACC": getattr(tl, str(wide(getattr(torch, dtype))).removeprefix("torch.")),
        "UPCAST": upcast,
        "maxnreg": FOLD_REGISTERS,
    }
    low, high = (tuple(map(pack, ends)) for ends in zip(*written_ends(problem), strict=True))
    arguments = (packed_strides(padded, read), packed_strides(dx, written), results, low, high)
    return Step(padded_fold_kernel, programs, constants, arguments, ("workspace", "bias", "out"))


def _tiles(
    written: TensorKey, other: TensorKey, problem: ConvProblem, described: Operand, size: int, bias_stride: int, widest: int = 0
) -> tuple[int, Results, dict[str, Any]]:
    """(programs, sizes, constants) of a kernel that writes `written` from `other`, `size` bytes per element."""
    images, channels, *spatial = written[0]
    align = math.gcd(channels, MAX_ALIGN)
    widest = widest or (REDUCE_CHANNELS if described.unit == 1 else REDUCE_PLANES[align % 8 == 0])
    block_n = min(widest, 1 << (channels - 1).bit_length())
    block_m = REDUCE_BYTES // size // block_n
    sizes = (images, channels // align, *(1,) * (3 - len(spatial)), *spatial, bias_stride, 1)
    pixels = max(math.prod(written[0][2:]), math.prod(other[0][2:]))
    constants = {
        "C_ALIGN": align,
        **modes(problem),
        "RANK": len(spatial),
        "INDEX": tl.int32 if pixels + block_m <= INT32_MAX else tl.int64,
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
    }
    programs = ceil_div(images * math.prod(spatial), block_m) * ceil_div(channels, block_n)
    return programs, Results(*map(pack, sizes)), constants
