"""From tensors to the launches of statistics and of a prologue's own kernel."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from costmodel.tiling import MAX_ALIGN
from tritonconv.host import INTERPRETED
from tritonconv.kernels.index import pack
from tritonconv.kernels.prologue import Prologue, Region, apply_kernel
from tritonconv.kernels.statistics import Extent, group_kernel, moments_kernel, square_kernel
from tritonconv.launch import DTYPES, on
from tritonconv.layout import allocate_channels_last, channels_last_strides, operand
from tritonconv.normalize.check import statistics_dtype
from tritonconv.prepared import INT32_MAX, TensorKey, accumulator, key, packed_strides
from tritonconv.steps import Step

Maybe = torch.Tensor | None
#: Pixels of a tile, and most channels of one. A thread of 128 then holds 32 elements.
TILE, CHANNELS = 4096, 128
#: Least pixels of a share of the statistics of a group, and most shares, so that the sums' order depends on the shape alone.
LEAST_SHARE, SHARES = 1024, 512
WARPS = 4


class Values(NamedTuple):
    """A prologue with its tensors, as the ops have it: scale and shift [N or 1, T or 1, C], rstd [N, T, H, W]."""

    scale: Maybe = None
    shift: Maybe = None
    rstd: Maybe = None
    activation: str = ""
    slope: float = 0.01

    def readable(self) -> Values:
        """The same prologue with tensors that the kernels read: channels are contiguous, rstd is dense."""
        scale, shift = (t if t is None or t.stride(2) == 1 or t.shape[2] == 1 else t.contiguous() for t in self[:2])
        return self._replace(scale=scale, shift=shift, rstd=None if self.rstd is None else self.rstd.contiguous())

    def strides(self) -> tuple[int, ...]:
        """The strides of scale and shift from image to image and from frame to frame, 0 where all share one value."""
        given = (self.scale, self.shift)
        return tuple(0 if t is None or t.shape[axis] == 1 else t.stride(axis) for t in given for axis in (0, 1))

    def is_empty(self) -> bool:
        return self.scale is None and self.shift is None and self.rstd is None and not self.activation

    def pointers(self, packed: tuple[int, ...]) -> Prologue:
        """The prologue as kernels take it; `packed` are the packed `strides`."""
        return Prologue(self.scale, self.shift, self.rstd, *packed)


def _blocks(channels: int) -> tuple[int, int]:
    """(pixels, channels) of a tile."""
    block = min(CHANNELS, triton.next_power_of_2(max(channels, 8)))
    if INTERPRETED:
        block = triton.next_power_of_2(channels)
    return (1 << 18 if INTERPRETED else TILE) // block, block


def _step(kernel: Any, programs: int, constants: dict[str, Any], arguments: tuple[Any, ...]) -> Step:
    if programs > INT32_MAX:
        raise RuntimeError(f"{kernel.__name__} needs {programs} programs, more than a CUDA grid of {INT32_MAX} holds")
    return Step(kernel, programs, constants | {"num_warps": WARPS}, arguments)


def _described(x: TensorKey, dtype: str) -> tuple[Any, dict[str, Any]]:
    """(packed strides, constants) with which kernels read x."""
    described = operand(*x, 1, 1)
    return packed_strides(x, described), {"X_ALIGN": described.align, "X_UNIT": described.unit, "ACC": accumulator(dtype)}


def is_linear(x: TensorKey, frames: int) -> bool:
    """Whether the pixels of this many frames are multiples of the width's stride apart."""
    (_, _, _, h, w), (_, _, x_t, x_h, x_w) = x
    return (h == 1 or x_h == w * x_w) and (frames == 1 or x_t == h * w * x_w)


def index_of_offsets(x: TensorKey, frames: int, block_m: int, block_c: int) -> Any:
    """The integer type that counts across this many frames, and the blocks that end beyond them."""
    (_, c, _, h, w), (_, x_c, x_t, x_h, x_w) = x
    reached = frames * x_t + h * x_h + (w + block_m) * x_w + (c + block_c) * x_c + frames * h * w
    return tl.int32 if reached <= INT32_MAX else tl.int64


@functools.lru_cache(maxsize=1024)
def prepare_apply(x: TensorKey, dtype: str, activation: str, slope: float) -> Step:
    n, c, t, h, w = x[0]
    strides, constants = _described(x, dtype)
    block_m, block_c = _blocks(c)
    align = math.gcd(c, MAX_ALIGN)
    near = (h * w + block_m) * c <= INT32_MAX and index_of_offsets(x, 1, block_m, block_c) == tl.int32
    constants |= {
        "C_ALIGN": align,
        "LINEAR": is_linear(x, 1),
        "ACTIVATION": activation,
        "SLOPE": slope,
        "UPCAST": INTERPRETED and dtype == "bfloat16",
    }
    constants |= {"INDEX": tl.int32 if near else tl.int64, "BLOCK_M": block_m, "BLOCK_C": block_c}
    programs = n * t * math.ceil(h * w / block_m) * math.ceil(c / block_c)
    return _step(apply_kernel, programs, constants, (strides, Region(*map(pack, (t, h, w, c // align)))))


@functools.lru_cache(maxsize=1024)
def packed(strides: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(pack, strides))


class Applied(NamedTuple):
    """The arguments of a prologue's own kernel but for its tensors."""

    step: Step
    y: TensorKey
    strides: tuple[int, ...] | None  # the packed strides of a prologue that the kernel reads as it is given

    def run(self, x: torch.Tensor, values: Values) -> torch.Tensor:
        """act(x * rstd * scale + shift), dense and channels-last, in one launch."""
        y = torch.empty_strided(*self.y, dtype=x.dtype, device=x.device)
        if self.strides is None:
            values = values.readable()
        with on(x):
            prologue = values.pointers(self.strides or packed(values.strides()))
            self.step.start(x, y, *self.step.arguments, prologue=prologue)
        return y


def applied(x: torch.Tensor, values: Values) -> Applied:
    """The prepared launch of a prologue of x, which has elements."""
    step = prepare_apply(key(x), DTYPES[x.dtype], values.activation, values.slope)
    read = values.readable()
    as_given = all(t is other for t, other in zip(read[:3], values[:3], strict=True))
    y = tuple(x.shape), channels_last_strides(x.shape)
    return Applied(step, y, packed(values.strides()) if as_given else None)


def apply(x: torch.Tensor, values: Values) -> torch.Tensor:
    """act(x * rstd * scale + shift), dense and channels-last, in one launch."""
    return applied(x, values).run(x, values) if x.numel() else allocate_channels_last(x.shape, x)


def _extent(x: TensorKey, frames: int) -> tuple[Extent, int]:
    """(sizes, shares of a set) of statistics over `frames` frames."""
    _, c, t, h, w = x[0]
    pixels = frames * h * w
    share = max(LEAST_SHARE, math.ceil(pixels / SHARES))
    shares = math.ceil(pixels / share)
    return Extent(*map(pack, (t, h, w, c // math.gcd(c, MAX_ALIGN), frames, shares, share))), shares


@functools.lru_cache(maxsize=1024)
def prepare_group(x: TensorKey, dtype: str, groups: int, eps: float, per_frame: bool) -> tuple[Step, Step, tuple[int, ...]]:
    """(step of the shares, step of the groups, shape of what lies between)."""
    n, c, t, *_ = x[0]
    strides, constants = _described(x, dtype)
    sets = n * t if per_frame else n
    sizes, shares = _extent(x, 1 if per_frame else t)
    block_m, block_c = _blocks(c)
    tiles = math.ceil(c / block_c)
    frames, align = 1 if per_frame else t, {"C_ALIGN": math.gcd(c, MAX_ALIGN)}
    constants |= align | {"LINEAR": is_linear(x, frames), "INDEX": index_of_offsets(x, frames, block_m, block_c)}
    first = _step(moments_kernel, sets * shares * tiles, constants | {"BLOCK_M": block_m, "BLOCK_C": block_c}, (strides, sizes))
    of_group = align | {"GROUP": c // groups, "EPS": eps, "ACC": constants["ACC"]}
    of_group |= {"BLOCK": min(2048, triton.next_power_of_2(shares * c // groups))}
    of_group |= {"BLOCK_C": triton.next_power_of_2(c // groups)}
    second = _step(group_kernel, sets * groups, of_group, (sizes,))
    return first, second, (sets, shares, 2, c)


class Grouped(NamedTuple):
    """The arguments of the kernels of group statistics but for their tensors."""

    first: Step
    second: Step
    between: tuple[int, ...]
    shape: tuple[int, ...]  # of scale and of shift
    dtype: torch.dtype

    def run(self, x: torch.Tensor, w: Maybe, b: Maybe) -> tuple[torch.Tensor, torch.Tensor]:
        """(scale, shift) in two launches."""
        scale = torch.empty(self.shape, dtype=self.dtype, device=x.device)
        shift = torch.empty_like(scale)
        w, b = None if w is None else w.contiguous(), None if b is None else b.contiguous()
        with on(x):
            partial = torch.empty(self.between, dtype=self.dtype, device=x.device)
            self.first.start(x, partial, *self.first.arguments)
            self.second.start(partial, w, b, scale, shift, *self.second.arguments)
        return scale, shift


def grouped(x: torch.Tensor, groups: int, eps: float, per_frame: bool) -> Grouped:
    """The prepared launches of the statistics of the groups of x, which has elements."""
    n, c, t, *_ = x.shape
    steps = prepare_group(key(x), DTYPES[x.dtype], groups, eps, per_frame)
    return Grouped(*steps, (n, t if per_frame else 1, c), statistics_dtype(x.dtype))


def group_scale(
    x: torch.Tensor, w: Maybe, b: Maybe, groups: int, eps: float, per_frame: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, shift) [N, 1 or T, C] in two launches."""
    if x.numel():
        return grouped(x, groups, eps, per_frame).run(x, w, b)
    n, c, t, *_ = x.shape
    shape, dtype = (n, t if per_frame else 1, c), statistics_dtype(x.dtype)
    return x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=dtype)


@functools.lru_cache(maxsize=1024)
def prepare_rms(x: TensorKey, dtype: str, eps: float) -> Step:
    n, c, t, h, w = x[0]
    strides, constants = _described(x, dtype)
    block_m, block_c = _blocks(c)
    constants |= {"C_ALIGN": math.gcd(c, MAX_ALIGN), "LINEAR": is_linear(x, 1)}
    constants |= {"INDEX": index_of_offsets(x, 1, block_m, block_c), "EPS": eps, "BLOCK_M": block_m, "BLOCK_C": block_c}
    return _step(square_kernel, n * t * math.ceil(h * w / block_m), constants, (strides, _extent(x, 1)[0]))


class Squared(NamedTuple):
    """The arguments of the kernel of pixel statistics but for its tensors."""

    step: Step
    shape: tuple[int, ...]
    dtype: torch.dtype

    def run(self, x: torch.Tensor) -> torch.Tensor:
        """1 / sqrt(mean of x^2 over the channels + eps) in one launch."""
        rstd = torch.empty(self.shape, dtype=self.dtype, device=x.device)
        with on(x):
            self.step.start(x, rstd, *self.step.arguments)
        return rstd


def squared(x: torch.Tensor, eps: float) -> Squared:
    """The prepared launch of the statistics of the pixels of x, which has elements."""
    n, _, *size = x.shape
    return Squared(prepare_rms(key(x), DTYPES[x.dtype], eps), (n, *size), statistics_dtype(x.dtype))


def rms_rstd(x: torch.Tensor, eps: float) -> torch.Tensor:
    """1 / sqrt(mean of x^2 over the channels + eps) [N, T, H, W] in one launch."""
    if x.numel():
        return squared(x, eps).run(x)
    n, _, *size = x.shape
    return x.new_empty((n, *size), dtype=statistics_dtype(x.dtype))
