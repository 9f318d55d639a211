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
from tritonconv.layout import allocate_channels_last, operand
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
        """The same with what the kernels take: contiguous channels, a dense rstd."""
        scale, shift = (t if t is None or t.stride(2) == 1 or t.shape[2] == 1 else t.contiguous() for t in self[:2])
        return self._replace(scale=scale, shift=shift, rstd=None if self.rstd is None else self.rstd.contiguous())

    def strides(self) -> tuple[int, ...]:
        """Those of scale and shift from image to image and frame to frame, 0 where all have the same."""
        given = (self.scale, self.shift)
        return tuple(0 if t is None or t.shape[axis] == 1 else t.stride(axis) for t in given for axis in (0, 1))

    def is_empty(self) -> bool:
        return self.scale is None and self.shift is None and self.rstd is None and not self.activation

    def pointers(self, packed: tuple[int, ...]) -> Prologue:
        """As kernels take it; `packed` are the packed `strides`."""
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
    """(packed strides, constants) of x as kernels read it."""
    described = operand(*x, 1, 1)
    return packed_strides(x, described), {"X_ALIGN": described.align, "X_UNIT": described.unit, "ACC": accumulator(dtype)}


def is_linear(x: TensorKey, frames: int) -> bool:
    """Whether the pixels of so many frames are multiples of the width's stride apart."""
    (_, _, _, h, w), (_, _, x_t, x_h, x_w) = x
    return (h == 1 or x_h == w * x_w) and (frames == 1 or x_t == h * w * x_w)


def index_of_offsets(x: TensorKey, frames: int, block_m: int, block_c: int) -> Any:
    """The type that reaches across so many frames, and the blocks that end beyond them."""
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


def apply(x: torch.Tensor, values: Values) -> torch.Tensor:
    """act(x * rstd * scale + shift), dense and channels-last, in one launch."""
    y = allocate_channels_last(x.shape, x)
    if y.numel() == 0:
        return y
    values = values.readable()
    step = prepare_apply(key(x), DTYPES[x.dtype], values.activation, values.slope)
    with on(x):
        step.start(x, y, *step.arguments, prologue=values.pointers(packed(values.strides())))
    return y


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


def group_scale(
    x: torch.Tensor, w: Maybe, b: Maybe, groups: int, eps: float, per_frame: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, shift) [N, 1 or T, C] in two launches."""
    n, c, t, *_ = x.shape
    dtype = statistics_dtype(x.dtype)
    scale, shift = (torch.empty((n, t if per_frame else 1, c), dtype=dtype, device=x.device) for _ in range(2))
    if scale.numel() == 0:
        return scale, shift
    first, second, between = prepare_group(key(x), DTYPES[x.dtype], groups, eps, per_frame)
    w, b = (None if v is None else v.contiguous() for v in (w, b))
    with on(x):
        partial = torch.empty(between, dtype=dtype, device=x.device)
        first.start(x, partial, *first.arguments)
        second.start(partial, w, b, scale, shift, *second.arguments)
    return scale, shift


@functools.lru_cache(maxsize=1024)
def prepare_rms(x: TensorKey, dtype: str, eps: float) -> Step:
    n, c, t, h, w = x[0]
    strides, constants = _described(x, dtype)
    block_m, block_c = _blocks(c)
    constants |= {"C_ALIGN": math.gcd(c, MAX_ALIGN), "LINEAR": is_linear(x, 1)}
    constants |= {"INDEX": index_of_offsets(x, 1, block_m, block_c), "EPS": eps, "BLOCK_M": block_m, "BLOCK_C": block_c}
    return _step(square_kernel, n * t * math.ceil(h * w / block_m), constants, (strides, _extent(x, 1)[0]))


def rms_rstd(x: torch.Tensor, eps: float) -> torch.Tensor:
    """1 / sqrt(mean of x^2 over the channels + eps) [N, T, H, W] in one launch."""
    n, _, *size = x.shape
    rstd = torch.empty((n, *size), dtype=statistics_dtype(x.dtype), device=x.device)
    if rstd.numel() == 0:
        return rstd
    step = prepare_rms(key(x), DTYPES[x.dtype], eps)
    with on(x):
        step.start(x, rstd, *step.arguments)
    return rstd
