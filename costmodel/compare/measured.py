"""What was measured, for any kind of file: layers with their times, and a step's time by kind of operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from costmodel.device import Device
from costmodel.problem import ConvProblem, Pass

#: The kinds of operators among which a step's time is divided.
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
    """A convolution's time. `seconds` is the time per call of all kernels of the operator except layout copies (`copies`)."""

    name: str
    problem: ConvProblem
    passes: tuple[Pass, ...]
    transposed: bool
    dtype: str
    precision: str
    layout: str  # "channels_last" or "contiguous"
    seconds: float
    copies: float = 0.0
    calls: float = 1.0  # calls per step
    kernels: float = 1.0  # kernels per call
    indirect: bool = False  # Winograd or FFT, as the kernel's or the source's name says
    mode: str = "eager"
    provider: str = "PyTorch"

    @property
    def words(self) -> str:
        """The passes from the layer's point of view: "forward", "dx", "dw"."""
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
    """One file on one device. `kinds` has seconds per step by `KINDS`, `wall` is a step's time, and `busy` the part of it in
    which the GPU ran a kernel. All are 0 where the file has no steps."""

    source: str
    device: Device
    layers: tuple[MeasuredLayer, ...] = ()
    networks: tuple[MeasuredNetwork, ...] = ()
    kinds: Mapping[str, float] = field(default_factory=dict)
    wall: float = 0.0
    busy: float = 0.0
    steps: int = 0
    notes: tuple[str, ...] = ()
