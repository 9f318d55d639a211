"""What was measured, whatever file it is from: layers with their times, and a step's time by kind of operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from costmodel.device import Device
from costmodel.problem import ConvProblem, Pass

#: Kinds of operators that a step's time is told by.
KINDS = (
    "convolution",
    "layout copies",
    "normalisation",
    "pointwise",
    "matrix products and attention",
    "reductions and pools",
    "copies",
    "optimizer",
    "communication",
    "other",
)


@dataclass(frozen=True)
class MeasuredLayer:
    """A convolution's time. `seconds` is of one call, all kernels of the operator but its layout copies, which are `copies`."""

    name: str
    problem: ConvProblem
    passes: tuple[Pass, ...]
    transposed: bool
    dtype: str
    precision: str
    layout: str  # "channels_last" or "contiguous"
    seconds: float
    copies: float = 0.0
    calls: float = 1.0  # a step
    kernels: float = 1.0  # a call
    indirect: bool = False  # Winograd or FFT, by the kernel's or the source's name
    mode: str = "eager"
    provider: str = "PyTorch"

    @property
    def words(self) -> str:
        """The passes as the layer's owner calls them."""
        own = Pass.DGRAD if self.transposed else Pass.FPROP
        names = {own: "forward", Pass.WGRAD: "dw", (Pass.FPROP if self.transposed else Pass.DGRAD): "dx"}
        return "+".join(names[which] for which in self.passes)


@dataclass(frozen=True)
class MeasuredNetwork:
    """A whole network's step, from a table."""

    model: str
    image: int
    batch: int
    seconds: float
    parameters: float | None  # millions
    gmacs: float | None
    layout: str
    dtype: str
    mode: str
    training: bool


@dataclass(frozen=True)
class Measured:
    """One file on one device. `kinds` is seconds of a step by `KINDS`; `wall` a step's time, `busy` the part of it in which the
    GPU ran a kernel; all 0 where the file has no steps."""

    source: str
    device: Device
    layers: tuple[MeasuredLayer, ...] = ()
    networks: tuple[MeasuredNetwork, ...] = ()
    kinds: Mapping[str, float] = field(default_factory=dict)
    wall: float = 0.0
    busy: float = 0.0
    steps: int = 0
    notes: tuple[str, ...] = ()
