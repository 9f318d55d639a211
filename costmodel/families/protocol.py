"""What a kernel family is to the cost model: what it serves, which of its plans a call takes, what that costs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

from costmodel.device import Device
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Call, Plan, Tile
from costmodel.timing import Prediction


class Counted(NamedTuple):
    """What a plan takes of a call, without a device."""

    issued_macs: int  # multiply-adds of its tiles, those on padding and tile edges included
    extra_bytes: int  # beyond the compulsory ones: copies, workspaces
    launches: int  # kernels, copies included


class Family(ABC):
    """A kernel family: the cost model's half. `tritonconv.families` has the other, which launches its plans.

    plan: the class of its plans. kernels: the modules of `tritonconv.kernels` that it launches; what they import counts too.
    executed: the architectures whose compiled code ran and was right, on a CPU (`bench/compiled` keeps the record). special: it
    rests on hardware that others do without, so it is chosen by default where its code has been executed only. narrow: it
    serves few calls, so it is asked before those that serve all; the interpreter takes the first that has a plan.
    """

    name: str
    plan: type[Plan]
    kernels: tuple[str, ...]
    executed: tuple[int, ...] = ()
    special: ClassVar[bool] = False
    narrow: ClassVar[bool] = False

    @abstractmethod
    def refusal(self, call: Call, plan: Any, device: Device | None) -> str:
        """Why a plan of this family cannot run a call; "" where it can. Without a device its limits are not asked for."""

    @abstractmethod
    def candidates(self, call: Call, device: Device) -> list[Plan]:
        """The plans worth predicting; none where a call is not for this family."""

    @abstractmethod
    def predict(self, call: Call, plan: Any, device: Device) -> Prediction:
        """The time of a plan that runs the call."""

    @abstractmethod
    def counted(self, call: Call, plan: Any) -> Counted:
        """What a plan that runs the call takes of it."""

    def completed(self, call: Call, plan: Any) -> Plan:
        """A plan with what it leaves open filled in."""
        return plan

    def quickest(self, call: Call, device: Device, below: float) -> tuple[float, Plan | None]:
        """(predicted seconds, plan) of the candidate of least time; (below, None) where none takes less than `below`."""
        best = None
        for plan in self.candidates(call, device):
            if (seconds := self.predict(call, plan, device).seconds) < below:
                below, best = seconds, plan
        return below, best

    #: What stands for each way to reach memory, "access" of the table of compiled kernels, when that table is made. "wide" is
    #: channels-last, with channels that divide by every tile; others are contiguous, "narrow" with all masks and bounds on.
    samples: Mapping[str, ConvProblem] = {}

    def compiled(self, which: Pass, kind: str) -> Iterable[tuple[str, Tile]]:
        """(access, tile) of the rows that the table of compiled kernels has of this family, of a pass in an arithmetic."""
        return ()

    def exists(self, call: Call, plan: Any, capability: int) -> bool:
        """Whether there is such a kernel for an architecture."""
        return True

    def shown(self, which: Pass, kind: str) -> tuple[Tile, ...]:
        """The tiles that docs/kernels.md shows, the largest."""
        return ()
