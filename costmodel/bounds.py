"""The roofline: the time that no direct convolution beats, which roof binds, and the batch at which that changes.

Williams, Waterman and Patterson, "Roofline: an insightful visual performance model" (2009). Work is the useful FLOP
(2 * MAC, padding left out) and traffic the compulsory bytes, so the time is a lower bound for every kernel that multiplies
each pair once; Winograd and FFT algorithms multiply less and may pass below it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from costmodel.arithmetic import arithmetic_named
from costmodel.count import Cost, cost
from costmodel.device import Device, find_device
from costmodel.problem import ConvProblem, Pass


@dataclass(frozen=True)
class Roofline:
    """The least time of some work on a device in seconds, and the two roofs that set it. `roofline` makes it; the class raises
    nothing. Source: Williams, Waterman and Patterson 2009, "Roofline", https://doi.org/10.1145/1498765.1498785.

    >>> roof = roofline(Cost(useful_macs=10**9, bytes=10**6), "h100", "fp16")
    >>> roof.bound, roof.seconds == roof.compute_seconds
    ('compute', True)
    """

    seconds: float  # the larger of the next two
    compute_seconds: float  # useful FLOP at the peak
    memory_seconds: float  # compulsory bytes at the bandwidth
    bound: str  # "compute" where the intensity reaches the ridge, else "memory"
    intensity: float  # useful FLOP for each compulsory byte
    ridge: float  # FLOP for each byte where the roofs meet
    peak: float  # FLOP/s
    bandwidth: float  # B/s


@dataclass(frozen=True)
class IntensityLimits:
    """Useful FLOP for each compulsory byte as one size of a layer grows without bound and the others stay."""

    batch: float
    in_channels: float
    out_channels: float


def _roofs(device: Device | str, dtype: Any, precision: str, unit: str | None) -> tuple[str, float, float]:
    """The dtype that is meant, the peak in FLOP/s and the bandwidth in B/s."""
    device = find_device(device)
    kind = arithmetic_named(dtype, None if unit else device, precision)
    return kind.dtype, device.rate(kind.dtype, kind.precision, unit), float(round(device.bandwidth * 1e9))


def _computes(flops: int, moved: int, peak: float, bandwidth: float) -> bool:
    """Whether the peak binds: flops / peak >= moved / bandwidth, without rounding."""
    return flops * Fraction(bandwidth) >= moved * Fraction(peak)


def roofline(
    work: Cost | ConvProblem,
    device: Device | str,
    dtype: Any = None,
    *,
    precision: str = "ieee",
    which: Pass | str = Pass.FPROP,
    unit: str | None = None,
) -> Roofline:
    """The least time of `work`: max(useful FLOP / peak, compulsory bytes / bandwidth).

    `work` is a cost in `dtype`, or a problem, of which the pass `which` is taken. `device` is a `Device` or a text for
    `find_device`. `dtype` is a name such as "bf16", "float16" or "tf32", or a torch.dtype; None means bfloat16, or float16 on a
    device that lacks it. `precision` ("ieee" or "tf32") matters for float32. `unit` is "tensor" or "fma"; by default it is the
    tensor cores if they multiply `dtype`. It is fairer to hold depthwise layers against "fma". Bias and other FLOP that are no
    multiply-adds are left out. Times are in seconds. Raises ValueError for an unknown device or a rate that it lacks. Source:
    Williams, Waterman and Patterson 2009, https://doi.org/10.1145/1498765.1498785.

    >>> layer = ConvProblem.conv((32, 64, 56, 56), (64, 64, 3, 3), (1, 1), (1, 1), (1, 1))
    >>> roof = roofline(layer, "h100")
    >>> f"{roof.seconds * 1e6:.2f} us, {roof.bound}", roofline(layer, "h100", which="wgrad").seconds == roof.seconds
    ('7.69 us, memory', True)
    """
    dtype, peak, bandwidth = _roofs(device, dtype, precision, unit)
    spent = cost(work, which, dtype=dtype) if isinstance(work, ConvProblem) else work
    compute, memory = spent.useful_flops / peak, spent.bytes / bandwidth
    return Roofline(
        seconds=max(compute, memory),
        compute_seconds=compute,
        memory_seconds=memory,
        bound="compute" if _computes(spent.useful_flops, spent.bytes, peak, bandwidth) else "memory",
        intensity=spent.intensity if spent.bytes else math.inf,
        ridge=peak / bandwidth,
        peak=peak,
        bandwidth=bandwidth,
    )


def attainable(
    intensity: float,
    device: Device | str,
    dtype: Any = None,
    *,
    precision: str = "ieee",
    unit: str | None = None,
) -> float:
    """The roof in FLOP/s at an intensity in FLOP/B: the bandwidth's slope up to the ridge, the peak after it."""
    _, peak, bandwidth = _roofs(device, dtype, precision, unit)
    return min(peak, intensity * bandwidth)


def crossing_batch(
    problem: ConvProblem,
    device: Device | str,
    dtype: Any = None,
    which: Pass | str = Pass.FPROP,
    *,
    precision: str = "ieee",
    unit: str | None = None,
) -> int | None:
    """The least batch at which the peak binds and no longer the bandwidth, or None if no batch is large enough.

    FLOP are f * n and bytes b * n + w (w the weights) at batch n, so the ridge p / q is reached from n = w p / (f q - b p) on.
    Arguments, errors and the source are those of `roofline`.

    >>> layer = ConvProblem.conv((1, 512, 7, 7), (512, 512, 3, 3), (1, 1), (1, 1), (1, 1))
    >>> crossing_batch(layer, "a100"), crossing_batch(layer, "h100")
    (5, 9)
    """
    dtype, *roofs = _roofs(device, dtype, precision, unit)
    peak, bandwidth = (Fraction(roof) for roof in roofs)
    one, two = (cost(replace(problem, batch=batch), which, dtype=dtype) for batch in (1, 2))
    image = two.bytes - one.bytes
    gain = one.useful_flops * bandwidth - image * peak
    return math.ceil((one.bytes - image) * peak / gain) if gain > 0 else None


def limits(problem: ConvProblem, which: Pass | str = Pass.FPROP, dtype: Any = None) -> IntensityLimits:
    """What the intensity tends to as the batch, the input channels or the output channels grow, each alone.

    Where a limit is below a device's ridge, no such size makes the layer compute-bound there. FLOP and bytes are linear in
    each of the three, so a limit is the ratio of the two slopes.
    """
    here = cost(problem, which, dtype=dtype)

    def limit(size: str, step: int) -> float:
        larger = cost(replace(problem, **{size: getattr(problem, size) + step}), which, dtype=dtype)
        flops, moved = larger.useful_flops - here.useful_flops, larger.bytes - here.bytes
        return flops / moved if moved else 0.0

    return IntensityLimits(limit("batch", 1), limit("in_channels", problem.groups), limit("out_channels", problem.groups))
