"""A whole network in eager or compiled PyTorch, on a device that may never have been measured. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from costmodel.count import Cost
from costmodel.device import Device
from costmodel.library.constants import Interval, Library, library
from costmodel.library.layers import STRANGE, checked
from costmodel.library.operators import FUSED, convolution, group_of, other
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import itemsize

if TYPE_CHECKING:
    from costmodel.networks.network import Layer


@dataclass(frozen=True)
class OperatorTime:
    """The time of one operator. `bound` is "arithmetic", "DRAM" or "launch"; `source` says where the interval comes from."""

    seconds: float
    bound: str
    low: float
    high: float
    source: str


class LibraryClock:
    """Predicts operators as cuDNN and PyTorch run them. Raises ValueError for an unknown layout or mode, and for a dtype
    without rows (float64)."""

    def __init__(
        self, device: Device, name: str, *, mode: str, layout: str, dtype: str, precision: str, training: bool,
        constants: Library | None = None,
    ) -> None:  # fmt: skip
        checked(name, layout, mode)
        if dtype == "float64":
            raise ValueError("library: no published time of float64 is known, so nothing is predicted of it")
        known = (constants or library()).networks
        self.device, self.precision, self.mode = device, precision, mode
        self.weights: Mapping[str, float] = known.weights[layout]
        fold = "network" if device.name in known.gpus else "gpu"
        self.interval: Interval = known.intervals[layout][fold]
        strange = []
        if fold == "gpu":
            strange.append(f"no network was timed on {device.name}")
        if mode == "compiled":
            strange.append("no compiled network was timed: pointwise operators and normalisation ride along with neighbours")
        if training:
            strange.append("no training step was timed")
        if dtype == "float32":
            strange.append("no network in float32 was timed")
        self.wider = STRANGE ** (len(strange) - (fold == "gpu"))  # fold "gpu" already has the interval of other GPUs
        self.source = "; ".join(["fitted to published times of eager PyTorch, networks in amp float16", *strange])

    def time(self, operator: str, which: str, problem: ConvProblem | None, spent: Cost, dtype: str) -> OperatorTime:
        """The time of one operator, forward or of a gradient, on tensors of `dtype`. `which` is a convolution's pass, else
        ""."""
        dtype = dtype if dtype.startswith(("float", "bfloat")) else "float32"
        if problem is not None and which:
            parts = convolution(problem, Pass(which), self.device, dtype, self.precision)
        else:
            parts = other(operator, spent, self.device, dtype, self.precision)
        return self._weighed(parts)

    def _weighed(self, parts: Mapping[str, float]) -> OperatorTime:
        seconds = {name: part * self.weights.get(name, 1.0) for name, part in parts.items()}
        total = sum(seconds.values())
        largest = max(seconds, key=lambda name: seconds[name], default="")
        words = {"bytes": "DRAM", "arithmetic": "arithmetic", "calls": "launch"}
        bound = words.get(largest.rpartition(" ")[2], "nothing")
        return OperatorTime(
            total, bound, total * self.interval.low / self.wider, total * self.interval.high * self.wider, self.source
        )


def riding(layers: Sequence[Layer]) -> list[Layer]:
    """The layers with the bytes that remain after a compiler has fused chains of the operators in `FUSED`: the first reads its
    input, the last writes its result, and each reads what else it needs (a residual, a weight).

    Operators that follow each other are assumed to feed each other, because the trace keeps no tensors. Gradients keep half of
    their bytes, as in a chain of two.
    """
    fused: list[Layer] = []
    for i, layer in enumerate(layers):
        if not _rides(layer):
            fused.append(layer)
            continue
        first = i == 0 or not _rides(layers[i - 1])
        last = i + 1 == len(layers) or not _rides(layers[i + 1])
        result = _elements(layer.output_shape) * _size(layer.dtype)
        read = max(0, layer.forward.bytes - result)
        fed = min(read, _elements(layer.input_shape) * _size(layer.dtype))
        moved = read - (0 if first else fed) + (result if last else 0)
        steps = tuple(replace(s, cost=replace(s.cost, bytes=s.cost.bytes // 2)) for s in layer.backward)
        fused.append(replace(layer, forward=replace(layer.forward, bytes=min(moved, layer.forward.bytes)), backward=steps))
    return fused


def _rides(layer: Layer) -> bool:
    return layer.problem is None and group_of(layer.operator) in FUSED


def _elements(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _size(dtype: str) -> int:
    return itemsize(dtype) if dtype in ("float16", "bfloat16", "float32", "float64") else 4
