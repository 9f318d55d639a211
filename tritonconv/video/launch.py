"""From the tensors of a causal convolution of video to a launch: plan, copies, allocation, arguments, grid.

The kernel reads dense channels-last frames; other tensors are copied first (`is_readable`).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import triton.language as tl

from costmodel import video as model
from costmodel.algebra import product
from costmodel.device import Device
from costmodel.tiling import MAX_ALIGN, MAX_BIT_TAPS, Plan, itemsize
from costmodel.video import Chunk
from tritonconv.families.gemm import LARGEST
from tritonconv.host import INTERPRETED, index_of
from tritonconv.kernels.index import pack
from tritonconv.kernels.video import Frames, video_kernel
from tritonconv.launch import DTYPES, device_model, fp32_precision, on
from tritonconv.layout import allocate, allocate_channels_last, channels_last_copy, channels_last_strides, operand
from tritonconv.prepared import INT32_MAX, TensorKey, accumulator, key, packed_strides
from tritonconv.steps import Launch, Step, clamped

#: Most bytes of the unit in which the kernel counts offsets in x and the cache.
UNIT_BYTES = 32


def aligned_channels(channels: int, size: int) -> int:
    """The elements per unit in which the kernel counts offsets, a divisor of the channels. The more there are, the farther 32
    bits reach. Elements have `size` bytes."""
    return math.gcd(channels, UNIT_BYTES // size)


def is_readable(tensor: torch.Tensor, batch_dense: bool = False) -> bool:
    """Whether the kernel can read a tensor without a copy: each [C, T, H, W] is channels-last and dense, and images begin at
    whole units of the kernel. With `batch_dense` the images must be dense too."""
    shape, strides, size = tensor.shape, tensor.stride(), tensor.element_size()
    dense, unit = channels_last_strides(shape), aligned_channels(shape[1], size)
    for axis, (n, stride) in enumerate(zip(shape, strides, strict=True)):
        free = axis == 0 and not batch_dense and stride % unit == 0
        if n > 1 and stride != dense[axis] and not free:
            return False
    return batch_dense or tensor.data_ptr() % (unit * size) == 0


def copied(x: torch.Tensor, weight: torch.Tensor, cache: torch.Tensor | None) -> tuple[str, ...]:
    """The names of the tensors that are copied before the launch."""
    given = {"x": x, "cache": cache}
    found = [name for name, t in given.items() if t is not None and t.numel() and not is_readable(t)]
    return (*found, *(() if is_readable(weight, True) else ("weight",)))


def laid(tensor: torch.Tensor, batch_dense: bool = False) -> torch.Tensor:
    """The tensor, or a channels-last copy where the kernel cannot read it."""
    return tensor if is_readable(tensor, batch_dense) else channels_last_copy(tensor)


def is_near(chunk: Chunk, x: torch.Tensor, before: torch.Tensor) -> bool:
    """Whether every frame of cache and x is within 2^31 units of the cache's first frame."""
    size = x.element_size()
    unit = aligned_channels(x.shape[1], size)
    frame = x.shape[1] * product(x.shape[3:])
    apart = x.data_ptr() // size - before.data_ptr() // size - chunk.cached * frame
    last = apart + (x.shape[0] - 1) * (x.stride(0) - before.stride(0))
    rows, columns = (n - 1 for n in chunk.problem.effective_kernel[1:])
    window = (rows * x.shape[4] + columns) * x.shape[1]  # how far windows reach beyond a frame
    reached = (chunk.known + chunk.front + 2 * chunk.reach + 4) * frame + 2 * window
    return (max(abs(apart), abs(last)) + reached) // unit <= INT32_MAX


def fits_int32(chunk: Chunk, y: TensorKey) -> bool:
    """Whether 32-bit offsets reach a whole frame of x with the overhang of windows, all weights, and a whole frame of y."""
    problem = chunk.problem
    slack = max((*problem.effective_kernel, *problem.stride)) + max(abs(p) for pair in problem.padding[1:] for p in pair)
    rows, columns = (n + 2 * slack + LARGEST.m for n in problem.input_size[1:])
    depth = problem.in_channels * problem.taps + LARGEST.k
    shape, strides = y
    reached = sum(n * s for n, s in zip(shape[3:], strides[3:], strict=True)) + (shape[1] + LARGEST.n) * strides[1]
    return max(rows * columns * problem.in_channels, (shape[1] + LARGEST.n) * depth, reached) <= INT32_MAX


@functools.lru_cache(maxsize=1024)
def prepare(
    chunk: Chunk,
    dtype: str,
    precision: str,
    device: Device,
    y: TensorKey,
    images: tuple[int, int],  # strides from image to image, in x and in the cache
    bias_stride: int | None,
    keeps: bool,  # whether a next cache is asked for
    near: bool,  # `is_near` of x and the cache
    forced: str,
) -> Launch:
    """Plan, arguments and constants of a launch, for operands that the kernel can read."""
    problem, out = chunk.problem, operand(*y, 1, 1)
    small = fits_int32(chunk, y) and problem.out_channels * (bias_stride or 0) <= INT32_MAX
    if forced:
        plan = model.checked(chunk, Plan.parse(forced), dtype, precision, device)
    else:
        plan = model.select(chunk, dtype, precision, device, out.unit == 1, not small)
    m_tiles, n_tiles = model.tiles(chunk, plan)
    programs = m_tiles * n_tiles
    total = programs + (model.copies(chunk, plan, dtype) if keeps else 0)
    if total > INT32_MAX:
        raise RuntimeError(f"causal_conv3d of {chunk} needs {total} programs, more than a CUDA grid of {INT32_MAX} holds")
    align = aligned_channels(problem.in_channels, itemsize(dtype))
    k_align = math.gcd(problem.out_channels, MAX_ALIGN)
    (low_h, _), (low_w, _) = problem.padding[1:]
    sizes = Frames(
        *map(
            pack,
            (
                *chunk.frame,
                problem.in_channels // align,
                problem.out_channels // k_align,
                *chunk.output_shape[2:],
                chunk.cached,
                chunk.known,
                chunk.front,
                low_h,
                low_w,
                *(stride // align for stride in images),
                chunk.kept,
                bias_stride or 0,
                m_tiles,
                programs,
            ),
        )
    )
    spatial = any(p != 0 for pair in problem.padding[1:] for p in pair)
    constants: dict[str, Any] = {
        "KERNEL": problem.kernel_size,
        "STRIDE": problem.stride,
        "DILATION": problem.dilation,
        "UP": chunk.upsample,
        "REPLICATE": chunk.replicate,
        "BOUNDS": "none" if not spatial else "bits" if product(problem.kernel_size[1:]) <= MAX_BIT_TAPS else "range",
        "C_ALIGN": align,
        "K_ALIGN": k_align,
        "Y_ALIGN": out.align,
        "Y_UNIT": out.unit,
        "EVEN_K": problem.in_channels % plan.block_k == 0,
        "EVEN_N": problem.out_channels % plan.block_n == 0,
        "HAS_BIAS": bias_stride is not None,
        "ACC": accumulator(dtype),
        "PRECISION": precision if dtype == "float32" else "ieee",
        "INDEX": tl.int32 if small else tl.int64,
        "REACH": tl.int32 if near else tl.int64,
        "UPCAST": INTERPRETED and dtype == "bfloat16",
        "BLOCK_M": plan.block_m,
        "BLOCK_N": plan.block_n,
        "BLOCK_K": plan.block_k,
        "GROUP_M": plan.group_m,
        "COPY": model.copied_by_one(chunk, plan, dtype),
        "num_warps": plan.num_warps,
        "num_stages": plan.num_stages,
    }
    made = Launch(plan, Step(video_kernel, total, constants, (packed_strides(y, out), sizes)))
    return clamped(made, device.capability)


def forward(
    chunk: Chunk,
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None,
    cache: torch.Tensor | None,
    keeps: bool,
    forced: str = "",
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, the next cache) in one launch; the cache has no elements where it is not asked for."""
    y = allocate(chunk.output_shape, x, w)
    after = allocate_channels_last(chunk.next_shape, x) if keeps else x.new_empty(0)
    keeps = after.numel() > 0
    if y.numel() == 0 and not keeps:
        return y, after
    x, w = laid(x), laid(w, True)
    before = x if cache is None or not cache.numel() else laid(cache)
    main = prepare(
        chunk,
        DTYPES[x.dtype],
        fp32_precision(),
        device_model(index_of(x)),
        key(y),
        (x.stride(0), before.stride(0)) if x.shape[0] > 1 else (0, 0),
        None if b is None else b.stride(0),
        keeps,
        is_near(chunk, x, before),
        forced,
    ).main
    with on(x):
        main.start(x, before, w, b, y, after, *main.arguments)
    return y, after
