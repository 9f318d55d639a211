"""What the cost model asks of a kernel family: which calls it serves, which plan a call takes, and what that costs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

from costmodel.device import Device
from costmodel.problem import ConvProblem, Pass
from costmodel.shapes import mode_words
from costmodel.tiling import Call, Plan, Tile
from costmodel.timing import Prediction


class Counted(NamedTuple):
    """What running a call under a plan takes, on any device."""

    issued_macs: int  # multiply-adds of the tiles, including those on padding and tile edges
    extra_bytes: int  # bytes beyond the compulsory ones: copies, workspaces
    launches: int  # kernels, including copies


class Family(ABC):
    """The cost model's half of a kernel family. `tritonconv.families` has the other half, which launches its plans.

    plan: the class of its plans. kernels: the modules of `tritonconv.kernels` that it launches (their imports belong to it
    too). executed: the architectures whose compiled code has run correctly on a CPU (`bench/compiled` keeps the record).
    special: the family needs hardware that others do not, so it is chosen by default only where its code has been executed.
    narrow: it serves few calls, so it is asked before families that serve all; the interpreter takes the first family that has
    a plan. modes: it serves padding that holds other values than zeros on some axis, and no other padding. prologues: it can
    apply a prologue to the pixels that it gathers, and then serves any padding.
    """

    name: str
    plan: type[Plan]
    kernels: tuple[str, ...]
    executed: tuple[int, ...] = ()
    special: ClassVar[bool] = False
    narrow: bool = False
    modes: ClassVar[bool] = False
    prologues: ClassVar[bool] = False

    def padding_refusal(self, problem: ConvProblem, prologue: bool = False) -> str:
        """Why the family does not serve a problem's padding, or a prologue with it; "" where it does."""
        if prologue:
            return "" if self.prologues else "it applies no prologue to the pixels that it gathers"
        if self.modes == bool(problem.padding_mode):
            return ""
        if self.modes:
            return "it is for padding that holds pixels, and the padding of this call holds zeros on every axis"
        return f"it pads with zeros, and the call asks for {mode_words(problem.padding_mode)} padding"

    @abstractmethod
    def refusal(self, call: Call, plan: Any, device: Device | None) -> str:
        """Why a plan of this family cannot run a call; "" where it can. Without a device no limit of a device is checked."""

    @abstractmethod
    def candidates(self, call: Call, device: Device) -> list[Plan]:
        """The plans worth predicting; none where this family does not serve the call."""

    @abstractmethod
    def predict(self, call: Call, plan: Any, device: Device) -> Prediction:
        """The predicted time of the call under a plan that can run it."""

    @abstractmethod
    def counted(self, call: Call, plan: Any) -> Counted:
        """What the call takes under a plan that can run it, without a device."""

    def completed(self, call: Call, plan: Any) -> Plan:
        """The plan with every option that it leaves open filled in."""
        return plan

    def quickest(self, call: Call, device: Device, below: float) -> tuple[float, Plan | None]:
        """(predicted seconds, plan) of the candidate of least time; (below, None) where none takes less than `below`."""
        best = None
        for plan in self.candidates(call, device):
            if (seconds := self.predict(call, plan, device).seconds) < below:
                below, best = seconds, plan
        return below, best

    #: A problem for each way to reach memory ("access" in the table of compiled kernels), from which that table is made. "wide"
    #: is channels-last, with channels that every tile divides. Others are contiguous; "narrow" needs all masks and bounds.
    samples: Mapping[str, ConvProblem] = {}

    def compiled(self, which: Pass, kind: str) -> Iterable[tuple[str, Tile]]:
        """(access, tile) of this family's rows in the table of compiled kernels, for a pass in an arithmetic."""
        return ()

    def exists(self, call: Call, plan: Any, capability: int) -> bool:
        """Whether the plan's kernel exists for an architecture."""
        return True

    def shown(self, which: Pass, kind: str) -> tuple[Tile, ...]:
        """The tiles that docs/kernels.md shows: the largest."""
        return ()
