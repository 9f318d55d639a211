"""Small Triton kernels, each of which asks a GPU one question. They are not part of the library."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def box_kernel(descriptor, out, BLOCK: tl.constexpr):
    """Every box of a three-dimensional tensor map, copied one after another to `out`."""
    i, j, k = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    box = descriptor.load([i * BLOCK[0], j * BLOCK[1], k * BLOCK[2]])
    size: tl.constexpr = BLOCK[0] * BLOCK[1] * BLOCK[2]
    at = ((i * tl.num_programs(1) + j) * tl.num_programs(2) + k) * size
    tl.store(out + at + tl.arange(0, size), tl.reshape(box, (size,)))


@triton.jit
def read_kernel(source, out, blocks, trips, BLOCK: tl.constexpr):
    """out[program] = the sum of `trips` blocks of `source`. Each program begins at another block."""
    program = tl.program_id(0)
    acc = tl.zeros((BLOCK,), tl.float32)
    for trip in range(trips):
        at = ((program + trip * tl.num_programs(0)) % blocks).to(tl.int64) * BLOCK
        acc += tl.load(source + at + tl.arange(0, BLOCK))
    tl.store(out + program, tl.sum(acc, 0))


@triton.jit
def empty_kernel(out):
    """Writes one element, which shows what a launch costs."""
    tl.store(out, 1.0)


@triton.jit
def descriptors_kernel(a, b, c, out):
    """Does what `empty_kernel` does, and takes three tensor maps."""
    tl.store(out, 1.0)
