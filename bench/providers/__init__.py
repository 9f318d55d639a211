"""The providers that compute a pass: tritonconv, and what it is compared with. Each module has a function
`contenders(work)`."""

from __future__ import annotations

from collections.abc import Callable

from bench.providers import causal_conv1d, cudnn, flaggems, inductor, matmul, ours
from bench.providers.contender import Contender, Unserved
from bench.work import Work

#: Name -> function that returns the ways in which a provider computes a piece of work. It raises `Unserved`, with the reason,
#: where there is none.
PROVIDERS: dict[str, Callable[[Work], list[Contender]]] = {
    "tritonconv": ours.contenders,
    "cudnn": cudnn.contenders,
    "matmul": matmul.contenders,
    "inductor": inductor.contenders,
    "flaggems": flaggems.contenders,
    "causal_conv1d": causal_conv1d.contenders,
}
#: The providers that run by default. The others take long to compile or are seldom installed.
DEFAULT = ("tritonconv", "cudnn", "matmul")

__all__ = ["DEFAULT", "PROVIDERS", "Contender", "Unserved"]
