"""A convolution as a library sees it: its kind of layer, its matrix product, and the time that its kind scales with.

`base` is a time in seconds from a device's figures only, so measured over base time carries over from one GPU to another. It
uses tensor cores and DRAM for dense layers. For depthwise layers it uses the FMA units, few of whose cycles are multiply-adds.
Layers that were measured on several GPUs showed which figures a kind follows. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.algebra import product
from costmodel.device import Device
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import itemsize

KINDS = ("dense", "1x1", "few channels", "grouped", "depthwise")
MODES = ("eager", "compiled")
LAYOUTS = ("channels_last", "contiguous")
#: Cycles of an FMA unit per multiply-add of a depthwise kernel. FEW is the work of tensor cores over that of FMA units, for a
#: layer with few channels.
DEPTHWISE_CYCLES, FEW = 30.0, 3.0
#: The factor that a stride puts on the arithmetic of a dense layer.
STRIDED = 3.0
#: Most input channels of a layer with few channels.
NARROW = 4


@dataclass(frozen=True)
class Seen:
    """The key by which a layer's time is looked up. `passes` names its primitives, such as "fprop" or "dgrad+wgrad";
    `arithmetic` is "half", "tf32" or "fp32". The sizes are logarithms to base 2 of the matrix product [m, k] x [k, n] of one
    group, and of the filter's taps and strides."""

    kind: str
    rank: int
    passes: str
    arithmetic: str
    layout: str
    mode: str
    dilated: bool
    m: float
    n: float
    k: float
    taps: float
    stride: float


def kind_of(problem: ConvProblem) -> str:
    """One of `KINDS`."""
    if problem.groups > 1:
        return "depthwise" if problem.in_channels == problem.groups else "grouped"
    if problem.in_channels <= NARROW:
        return "few channels"
    return "1x1" if problem.taps == 1 else "dense"


def arithmetic_of(dtype: str, precision: str) -> str:
    """ "half", "tf32" or "fp32". Raises ValueError for float64, of which nothing is known."""
    if dtype in ("float16", "bfloat16"):
        return "half"
    if dtype != "float32":
        raise ValueError(f"library: no published time of {dtype} is known, so nothing is predicted of it")
    return "tf32" if precision == "tf32" else "fp32"


def seen(problem: ConvProblem, passes: Sequence[Pass], dtype: str, precision: str, layout: str, mode: str) -> Seen:
    """The key of a layer. Where one time covers several passes, the matrix product is that of the first."""
    m, n, k = _gemm(problem, passes[0])
    return Seen(
        kind=kind_of(problem),
        rank=problem.rank,
        passes="+".join(passes),
        arithmetic=arithmetic_of(dtype, precision),
        layout=layout,
        mode=mode,
        dilated=max(problem.dilation) > 1,
        m=math.log2(max(m, 1)),
        n=math.log2(max(n, 1)),
        k=math.log2(max(k, 1)),
        taps=math.log2(max(problem.taps, 1)),
        stride=math.log2(math.prod(problem.stride)),
    )


def _gemm(problem: ConvProblem, which: Pass) -> tuple[float, float, float]:
    """(m, n, k) of one group. For dgrad k is the mean over its phases."""
    inner, outer = problem.in_channels // problem.groups, problem.out_channels // problem.groups
    pixels = problem.batch * product(problem.output_size)
    if which == Pass.FPROP:
        return pixels, outer, inner * problem.taps
    if which == Pass.DGRAD:
        return problem.batch * product(problem.input_size), inner, outer * problem.taps / math.prod(problem.stride)
    return outer, inner * problem.taps, pixels


def base(problem: ConvProblem, which: Pass, device: Device, dtype: str, precision: str) -> tuple[float, str]:
    """(seconds that a pass of this kind scales with, the larger part: "arithmetic" or "DRAM").

    Raises ValueError for a rate that the device lacks.
    """
    fma = 2 * problem.macs / device.rate("float32")
    tensor = 2 * problem.macs / device.rate(dtype, precision)
    kind = kind_of(problem)
    if kind == "depthwise":
        arithmetic = DEPTHWISE_CYCLES * fma
    elif kind == "few channels":
        arithmetic = FEW * math.sqrt(tensor * fma)
    elif kind == "grouped":
        arithmetic = problem.macs / (device.sm_count * device.clock * 1e6 * 128)
    else:
        arithmetic = tensor * (STRIDED if math.prod(problem.stride) > 1 else 1.0)
    memory = problem.bytes(itemsize(dtype), which) / (device.bandwidth * 1e9)
    return arithmetic + memory, "arithmetic" if arithmetic > memory else "DRAM"
