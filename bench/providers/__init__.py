"""Who computes a pass: tritonconv, and what it is measured against. Each module has one function, `contenders(work)`."""

from __future__ import annotations

from collections.abc import Callable

from bench.providers import causal_conv1d, cudnn, flaggems, inductor, matmul, ours
from bench.providers.contender import Contender, Unserved
from bench.work import Work

#: Name -> the ways in which it computes a piece of work. They raise `Unserved`, with the reason, where there is none.
PROVIDERS: dict[str, Callable[[Work], list[Contender]]] = {
    "tritonconv": ours.contenders,
    "cudnn": cudnn.contenders,
    "matmul": matmul.contenders,
    "inductor": inductor.contenders,
    "flaggems": flaggems.contenders,
    "causal_conv1d": causal_conv1d.contenders,
}
#: What runs unless providers are named: the others compile for long or are seldom installed.
DEFAULT = ("tritonconv", "cudnn", "matmul")

__all__ = ["DEFAULT", "PROVIDERS", "Contender", "Unserved"]
