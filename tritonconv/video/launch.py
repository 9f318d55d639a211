"""From the tensors of a causal convolution of video to a launch: plan, copies, allocation, arguments, grid.

The kernel reads dense channels-last frames; other tensors are copied first (`is_readable`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton.language as tl

from costmodel import video as model
from costmodel.algebra import product
from costmodel.device import Device
from costmodel.problem import Pass
from costmodel.prologue import Prologue
from costmodel.tiling import MAX_ALIGN, MAX_BIT_TAPS, Plan, itemsize
from costmodel.video import Chunk
from tritonconv.families.gemm import LARGEST, reduction
from tritonconv.host import INTERPRETED, index_of
from tritonconv.kernels.epilogue import Fused
from tritonconv.kernels.frames import Frames
from tritonconv.kernels.index import pack
from tritonconv.kernels.video import video_kernel
from tritonconv.launch import DTYPES, device_model, fp32_precision, on
from tritonconv.layout import (
    allocate,
    allocate_channels_last,
    channels_last_copy,
    channels_last_strides,
    operand,
    output_strides,
)
from tritonconv.normalize.launch import Values, apply, packed
from tritonconv.prepared import INT32_MAX, FusedKey, TensorKey, accumulator, key, packed_strides, wide
from tritonconv.steps import Launch, Step, clamped
from tritonconv.video import weights

Maybe = torch.Tensor | None
NOTHING = Values()
#: Most bytes of the unit in which the kernel counts offsets in x and the cache.
UNIT_BYTES = 32


def aligned_channels(channels: int, size: int) -> int:
    """The elements per unit in which the kernel counts offsets, a divisor of a group's channels. The more there are, the
    farther 32 bits reach. Elements have `size` bytes."""
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


def copied(x: torch.Tensor, cache: torch.Tensor | None) -> tuple[str, ...]:
    """The names of the tensors that are copied before every launch."""
    given = {"x": x, "cache": cache}
    return tuple(name for name, t in given.items() if t is not None and t.numel() and not is_readable(t))


def near_range(chunk: Chunk, shape: tuple[int, ...], images: tuple[int, int], size: int) -> tuple[int, int]:
    """The least and the greatest distance from the cache's address to the address of x, in elements of `size` bytes, at which
    every frame of both is within 2^31 units of the cache's first frame. `images`: the strides from image to image of each."""
    unit = aligned_channels(chunk.depth, size)
    frame = shape[1] * product(shape[3:])
    rows, columns = (n - 1 for n in chunk.problem.effective_kernel[1:])
    window = (rows * shape[4] + columns) * shape[1]  # how far windows reach beyond a frame
    reached = (chunk.known + chunk.front + 2 * chunk.reach + 4) * frame + 2 * window
    limit = (INT32_MAX + 1) * unit - 1 - reached  # how far x may be from the place behind the cache, in every image
    apart = (shape[0] - 1) * (images[0] - images[1])
    first = chunk.cached * frame
    return first + max(-limit, -limit - apart), first + min(limit, limit - apart)


def fits_int32(chunk: Chunk, y: TensorKey, residual: TensorKey | None = None) -> bool:
    """Whether 32-bit offsets reach a whole frame of x with the overhang of windows, all weights, and a whole frame of y and of
    a residual."""
    problem = chunk.problem
    slack = max((*problem.effective_kernel, *problem.stride)) + max(abs(p) for pair in problem.padding[1:] for p in pair)
    rows, columns = (n + 2 * slack + LARGEST.m for n in problem.input_size[1:])
    depth = chunk.depth * problem.taps + LARGEST.k
    reached = [rows * columns * problem.in_channels, (problem.out_channels + LARGEST.n) * depth]
    for shape, strides in (y, *([] if residual is None else [residual])):
        frame = sum(n * s for n, s in zip(shape[3:], strides[3:], strict=True))
        reached.append(frame + (shape[1] + LARGEST.n) * strides[1])
    return max(reached) <= INT32_MAX


def with_values(chunk: Chunk, values: Values, residual: torch.Tensor | None) -> Chunk:
    """The call with a description of its prologue and whether it has a residual, without their tensors."""
    prologue = None if values.is_empty() else Prologue.of(values.activation, *values[:3])
    return dataclasses.replace(chunk, prologue=prologue, residual=residual is not None)


def last_and_far(chunk: Chunk, y: TensorKey, residual: TensorKey | None) -> tuple[bool, bool]:
    """(whether result and residual are channels-last, whether offsets take 64 bits), which decide which tiles fit."""
    last = all(operand(*key, 1, 1).unit == 1 for key in (y, residual) if key is not None)
    return last, not fits_int32(chunk, y, residual)


def chosen(chunk: Chunk, forced: str, dtype: str, precision: str, device: Device, last: bool, far: bool) -> model.VideoPlan:
    """The plan of a call, forced or of least predicted time."""
    if forced:
        return model.checked(chunk, Plan.parse(forced), dtype, precision, device)
    return model.select(chunk, dtype, precision, device, last, far)


def bounds(chunk: Chunk) -> str:
    """The kernel's constant BOUNDS: how it finds out which taps are outside of a frame."""
    if not any(p != 0 for pair in chunk.problem.padding[1:] for p in pair):
        return "none"
    if chunk.mode != "zeros":
        return chunk.mode
    return "bits" if product(chunk.window[1:]) <= MAX_BIT_TAPS else "range"


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
    near: bool,  # whether the cache and x are within `near_range`
    forced: str,
    activation: tuple[str, float] = ("", 0.01),  # of the prologue
    residual: TensorKey | None = None,
) -> Launch:
    """Plan, arguments and constants of a launch, for operands that the kernel can read."""
    problem, out = chunk.problem, operand(*y, 1, 1)
    last, far = last_and_far(chunk, y, residual)
    small = not far and problem.out_channels * (bias_stride or 0) <= INT32_MAX
    plan = chosen(chunk, forced, dtype, precision, device, last, not small)
    m_tiles, n_tiles = model.tiles(chunk, plan)
    programs = m_tiles * n_tiles * plan.split
    target = y if plan.split == 1 else (y[0], channels_last_strides(y[0]))  # y, or partial sums
    out = operand(*target, 1, 1)
    total = programs + (model.copies(chunk, plan, dtype) if keeps else 0)
    if total > INT32_MAX:
        raise RuntimeError(f"causal_conv3d of {chunk} needs {total} programs, more than a CUDA grid of {INT32_MAX} holds")
    align = aligned_channels(chunk.depth, itemsize(dtype))
    filters = problem.out_channels // problem.groups
    k_align = math.gcd(filters, MAX_ALIGN)
    (low_h, _), (low_w, _) = problem.padding[1:]
    sizes = Frames(
        *map(
            pack,
            (
                *chunk.frame,
                chunk.depth // align,
                filters // k_align,
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
                model.shares(chunk, plan)[0],
                product(y[0]),
            ),
        )
    )
    constants: dict[str, Any] = {
        "KERNEL": chunk.window,
        "STRIDE": problem.stride,
        "DILATION": (problem.dilation[0], 2, 2) if chunk.summed else problem.dilation,
        "UP": chunk.upsample,
        "REPLICATE": chunk.replicate,
        "BOUNDS": bounds(chunk),
        "C_ALIGN": align,
        "K_ALIGN": k_align,
        "Y_ALIGN": out.align,
        "Y_UNIT": out.unit,
        "EVEN_K": chunk.depth % plan.block_k == 0,
        "EVEN_N": filters % plan.block_n == 0,
        "HAS_BIAS": bias_stride is not None and plan.split == 1,
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
    if chunk.summed:
        constants["SUMMED"] = True
    if problem.groups > 1:
        constants["GROUPS"] = problem.groups
    if chunk.prologue is not None:
        constants |= {"PROLOGUE": True, "ACTIVATION": activation[0], "SLOPE": activation[1]}
    after: tuple[Step, ...] = ()
    workspace: tuple[int, ...] = ()
    if plan.split > 1:
        constants["SHARED"] = True
        beside = None if residual is None else FusedKey(None, None, residual, "", 0.01, False)
        size = max(4, itemsize(dtype))
        follows, step = reduction(Pass.FPROP, plan.split, y, size, (1, 1, 1), bias_stride, beside, constants["UPCAST"])
        after, workspace = (step,), (plan.split, product(y[0]))
    else:
        follows, described = follow(residual)
        constants |= described
    main = Step(video_kernel, total, constants, (packed_strides(target, out), sizes))
    return clamped(Launch(plan, main, after=after, workspace=workspace, fused=follows), device.capability)


def follow(residual: TensorKey | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(the last fields of `Fused`, constants) of a residual."""
    if residual is None:
        return (), {}
    described = operand(*residual, 1, 1)
    return (pack(0), pack(0), packed_strides(residual, described)), {
        "FUSED": True,
        "R_ALIGN": described.align,
        "R_UNIT": described.unit,
    }


class Arranged(NamedTuple):
    """What a call needs besides its tensors. It serves tensors of the shapes and strides for which it was made."""

    chunk: Chunk
    y: TensorKey
    after: TensorKey | None  # the next cache, None where it is not asked for
    apart: bool  # whether a kernel of its own applies the prologue first
    copies: tuple[bool, bool]  # whether x and the cache are copied first
    reads_weight: bool  # whether the kernel reads the weight as it is given
    distances: tuple[int, int]  # `near_range`
    near: Launch
    make: Callable[..., Launch]  # makes the launch at other distances
    strides: tuple[int, ...] | None  # the packed strides of a prologue that the kernel reads as it is given

    def run(
        self, x: torch.Tensor, w: torch.Tensor, b: Maybe, cache: Maybe, values: Values, residual: Maybe
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(y, the next cache, which has no elements where it is not asked for)."""
        dtype, device = x.dtype, x.device
        y = torch.empty_strided(*self.y, dtype=dtype, device=device)
        after = x.new_empty(0) if self.after is None else torch.empty_strided(*self.after, dtype=dtype, device=device)
        if self.apart:
            x, values = apply(x, values), NOTHING
        if self.copies[0]:
            x = channels_last_copy(x)
        w = weights.read(self.chunk, w, self.reads_weight)
        before = x if cache is None or not cache.numel() else channels_last_copy(cache) if self.copies[1] else cache
        low, high = self.distances
        size = x.element_size()
        launch = self.near if low <= x.data_ptr() // size - before.data_ptr() // size <= high else self.make(near=False)
        main = launch.main
        named: dict[str, Any] = {}
        if self.chunk.prologue is not None:
            if self.strides is None:
                values = values.readable()
            named["prologue"] = values.pointers(self.strides or packed(values.strides()))
        follows: dict[str, Any] = {} if residual is None else {"fused": Fused(None, None, residual, None, *launch.fused)}
        with on(x):
            if not launch.after:
                main.start(x, before, w, b, y, after, *main.arguments, **named, **follows)
                return y, after
            partial = torch.empty(launch.workspace, dtype=wide(dtype), device=device)
            main.start(x, before, w, None, partial, after, *main.arguments, **named)
            (last,) = launch.after
            last.start(partial, b, y, *last.arguments, **follows)
        return y, after


def arranged(
    chunk: Chunk,
    x: torch.Tensor,
    w: torch.Tensor,
    b: Maybe,
    cache: Maybe,
    keeps: bool,
    forced: str,
    values: Values,
    residual: Maybe,
) -> Arranged:
    """What a call on these tensors needs besides them."""
    dtype, precision, device = DTYPES[x.dtype], fp32_precision(), device_model(index_of(x))
    y = tuple(chunk.output_shape), output_strides(chunk.output_shape, x, w)
    after = (tuple(chunk.next_shape), channels_last_strides(chunk.next_shape)) if keeps else None
    beside = None if residual is None else key(residual)
    chunk, apart = with_values(chunk, values, residual), False
    if chunk.prologue is not None:
        plan = chosen(chunk, forced, dtype, precision, device, *last_and_far(chunk, y, beside))
        if plan.apart:
            forced, values, apart = str(dataclasses.replace(plan, apart=False)), NOTHING, True
            chunk = dataclasses.replace(chunk, prologue=None)
    copied = (not apart and not is_readable(x), cache is not None and cache.numel() > 0 and not is_readable(cache))
    x_stride = channels_last_strides(x.shape)[0] if apart or copied[0] else x.stride(0)
    cache_stride = x_stride
    if cache is not None and cache.numel():
        cache_stride = channels_last_strides(cache.shape)[0] if copied[1] else cache.stride(0)
    images = (x_stride, cache_stride) if x.shape[0] > 1 else (0, 0)

    keeps = after is not None and product(after[0]) > 0
    stride, activation = None if b is None else b.stride(0), (values.activation, values.slope)
    # no closure, which would keep tensors alive
    rest = {"forced": forced, "activation": activation, "residual": beside}
    make = functools.partial(prepare, chunk, dtype, precision, device, y, images, stride, keeps, **rest)
    distances = near_range(chunk, x.shape, images, x.element_size())
    read = values.readable()
    as_given = chunk.prologue is not None and all(t is other for t, other in zip(read[:3], values[:3], strict=True))
    strides = packed(values.strides()) if as_given else None
    return Arranged(chunk, y, after, apart, copied, is_readable(w, True), distances, make(near=True), make, strides)


def forward(
    chunk: Chunk,
    x: torch.Tensor,
    w: torch.Tensor,
    b: Maybe,
    cache: Maybe,
    keeps: bool,
    forced: str = "",
    values: Values = NOTHING,
    residual: Maybe = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, the next cache) in one launch, or two where the plan has the prologue apart; the cache has no elements where it is
    not asked for."""
    if 0 in chunk.output_shape and not (keeps and product(chunk.next_shape)):
        after = allocate_channels_last(chunk.next_shape, x) if keeps else x.new_empty(0)
        return allocate(chunk.output_shape, x, w), after
    return arranged(chunk, x, w, b, cache, keeps, forced, values, residual).run(x, w, b, cache, values, residual)
