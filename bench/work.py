"""One pass of one problem as it is measured: its input tensors and the exact result.

The input tensors of a pass are a and b: (x, w) for fprop, (dy, w) for dgrad, (dy, x) for wgrad. There are several sets of them,
used in turn. Together they are more than twice as large as the L2 cache, so the cache holds none of a call's inputs when the
call begins, as in a network.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from bench.tolerance import Expected
from costmodel.algebra import ceil_div
from costmodel.bounds import roofline
from costmodel.device import Device
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import arithmetic, itemsize
from tritonconv.layout import channels_last_strides, dense_strides

LAYOUTS = ("channels_last", "contiguous")
#: Most float64 copies of a, b and the result that are alive while the exact result is computed.
ORACLE_COPIES = 4

#: The sets begin at multiples of this number of elements, because torch's allocator returns multiples of 512 bytes.
ALIGNED = 512


@dataclass(frozen=True)
class Work:
    """A pass of a problem in a dtype. Its tensors, the result included, have the layout `layout`.

    `transposed` says that the layer is a transposed convolution, whose forward is the dgrad of `problem`.
    """

    problem: ConvProblem
    which: Pass
    dtype: str
    precision: str = "ieee"
    layout: str = "channels_last"
    transposed: bool = False

    def __str__(self) -> str:
        text = f"{self.problem} {self.which} {self.dtype} {self.layout}"
        return text + (" tf32" if self.tf32 else "") + (" (of a transposed layer)" if self.transposed else "")

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def tf32(self) -> bool:
        return arithmetic(self.dtype, self.precision) == "tf32"

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The shapes of a, b and the result."""
        p = self.problem
        x, w, y = p.input_shape, p.weight_shape, p.output_shape
        return {Pass.FPROP: (x, w, y), Pass.DGRAD: (y, w, x), Pass.WGRAD: (y, x, w)}[self.which]

    @property
    def input_bytes(self) -> int:
        """Bytes of one set of a and b."""
        return itemsize(self.dtype) * sum(math.prod(shape) for shape in self.shapes[:2])

    def sets(self, l2_bytes: int) -> int:
        """How many sets of inputs are needed to exceed an L2 cache twice."""
        return 2 * l2_bytes // self.input_bytes + 1

    def memory(self, l2_bytes: int, contenders: int) -> int:
        """Most bytes of device memory that measuring takes: the sets and the exact result; and per contender its results, its
        own copy of every b, and copies of one set's inputs and result."""
        size, sets = itemsize(self.dtype), self.sets(l2_bytes)
        a, b, out = (math.prod(shape) for shape in self.shapes)
        per_set = size * ((sets + 1) * out + sets * b + a + b + out)
        return size * sets * (a + b) + contenders * per_set + 8 * ORACLE_COPIES * (a + b + out)

    def roofline_seconds(self, device: Device) -> float:
        return roofline(self.problem, device, self.dtype, precision=self.precision, which=self.which).seconds

    def strides(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The strides of a dense tensor in this layout."""
        if self.layout == "channels_last":
            return channels_last_strides(shape)
        return dense_strides(shape, range(len(shape) - 1, -1, -1))

    def meta(self) -> tuple[torch.Tensor, torch.Tensor]:
        """a and b on the meta device, without memory."""
        a, b = (torch.empty_strided(s, self.strides(s), dtype=self.torch_dtype, device="meta") for s in self.shapes[:2])
        return a, b

    def inputs(self, count: int, device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """`count` sets of standard normal a and b, the same in every run. b is scaled so that results have size about one.

        Each tensor is aligned as if it were allocated alone, so that all sets use the kernel that the first one compiles.
        """
        generator = torch.Generator(device).manual_seed(0)

        def fill(shape: tuple[int, ...], scale: float) -> list[torch.Tensor]:
            span = ceil_div(math.prod(shape), ALIGNED) * ALIGNED
            memory = torch.empty(count * span, dtype=self.torch_dtype, device=device).normal_(generator=generator).mul_(scale)
            return [memory.as_strided(shape, self.strides(shape), i * span) for i in range(count)]

        a, b = self.shapes[:2]
        scale = float(max(1, self.problem.gemm(self.which).k)) ** -0.5
        return list(zip(fill(a, 1.0), fill(b, scale), strict=True))

    def exact(self, a: torch.Tensor, b: torch.Tensor) -> Expected:
        """The exact result, by torch's convolution in float64 on the tensors' device.

        The products per element are counted on one image, because they are as many for all. A weight gradient sums over the
        images, so there the count is multiplied by their number.
        """
        one = dataclasses.replace(self, problem=dataclasses.replace(self.problem, batch=1))
        ones = [torch.ones(shape, dtype=torch.float64, device=a.device) for shape in one.shapes[:2]]
        terms = float64_pass(one, *ones) * (self.problem.batch if self.which == Pass.WGRAD else 1)
        a, b = (t.to(torch.float64, copy=True).contiguous() for t in (a, b))  # copies, because they are changed in place below
        value = float64_pass(self, a, b)
        return Expected(value, float64_pass(self, a.abs_(), b.abs_()), terms)


@dataclass(frozen=True)
class Line:
    """A pass to measure, and the layer that it comes from.

    `goal` is the mean ratio that `group` has to reach, and no row of the group may have a ratio below `floor`.
    """

    work: Work
    suite: str = ""
    layer: str = ""
    group: str = ""
    goal: float | None = None
    floor: float | None = None


def written_out(x: torch.Tensor, padding: Sequence[Sequence[int]], modes: Sequence[str]) -> torch.Tensor:
    """x [N, C, *size] with its padding written out, one axis after the other, because `pad` takes one mode per call."""
    for axis, (ends, mode) in enumerate(zip(padding, modes, strict=True), 2):
        moved = x.movedim(axis, -1)
        rows = moved.reshape(1, -1, moved.shape[-1])
        if any(ends):
            rows = torch.nn.functional.pad(rows, list(ends), "constant" if mode == "zeros" else mode)
        x = rows.reshape(*moved.shape[:-1], -1).movedim(-1, axis)
    return x


def float64_pass(work: Work, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The pass by plain torch, with padding written around the input by `pad`; no provider's code is used."""
    p = work.problem
    pads = [n for pair in reversed(p.padding) for n in pair]
    none = [0] * p.rank
    window: Sequence[Any] = (p.stride, none, p.dilation, False, none, p.groups)
    backward = torch.ops.aten.convolution_backward
    if work.which == Pass.FPROP:
        return torch.convolution(written_out(a, p.padding, p.modes), b, None, *window)
    if work.which == Pass.DGRAD and p.padding_mode:
        x = a.new_zeros(p.input_shape, requires_grad=True)
        with torch.enable_grad():
            y = torch.convolution(written_out(x, p.padding, p.modes), b, None, *window)
        return torch.autograd.grad(y, x, a)[0]
    if work.which == Pass.DGRAD:
        x = a.new_empty((p.batch, p.in_channels, *p.padded_size))
        padded = backward(a, x, b, None, *window, [True, False, False])[0]
        return torch.nn.functional.pad(padded, [-n for n in pads])
    w = a.new_empty(p.weight_shape)
    return backward(a, written_out(b, p.padding, p.modes), w, None, *window, [False, True, False])[1]


@contextmanager
def float32_in(precision: str) -> Iterator[None]:
    """Inside the block torch computes float32 convolutions and matrix products in "ieee" or "tf32"."""
    cudnn: Any = torch.backends.cudnn  # Any, because torch makes its `conv` at run time
    matmul: Any = torch.backends.cuda.matmul
    saved = cudnn.conv.fp32_precision, matmul.fp32_precision
    cudnn.conv.fp32_precision = matmul.fp32_precision = precision
    try:
        yield
    finally:
        cudnn.conv.fp32_precision, matmul.fp32_precision = saved


def pass_of_layer(which: Pass, transposed: bool) -> Pass:
    """The primitive that a layer's forward (fprop), input gradient or weight gradient is."""
    swapped = {Pass.FPROP: Pass.DGRAD, Pass.DGRAD: Pass.FPROP}
    return swapped.get(which, which) if transposed else which
