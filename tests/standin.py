"""A machine without a GPU for the measuring harness: kernels run in the interpreter, the clock says what the test wants."""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
from collections.abc import Callable, Sequence

import torch
from rich.console import Console

from bench.machine import Call, Captured
from bench.run import lines_of, run
from bench.work import Line
from costmodel.device import DEVICES


class Repeated:
    def __init__(self, call: Call, sets: int, calls: int) -> None:
        self.call, self.calls = call, calls
        self.outputs = [call(i) for i in range(sets)]

    def replay(self) -> None:
        for i, output in enumerate(self.outputs):
            output.copy_(self.call(i))


class StandIn:
    """`seconds[i]` are those of a call of contender number i, the last one's for those behind it; each question for the time
    takes a second."""

    def __init__(self, seconds: Sequence[float] = (1e-5,), l2_bytes: int = 64, memory: int = 1 << 30) -> None:
        self.device = "cpu"
        self.model = dataclasses.replace(DEVICES["NVIDIA H200"], l2_bytes=l2_bytes)
        self.memory = memory
        self.facts = dict.fromkeys(("driver", "cuda", "cudnn"), "0") | {
            "gpu": "stand-in",
            "torch": torch.__version__,
            "triton": "0",
            "commit": "0",
        }
        self.seconds = seconds
        self.captured: list[int] = []  # sets of each capture
        self.clock = itertools.count()

    def capture(self, call: Call, sets: int, calls: int) -> Captured:
        self.captured.append(sets)
        return Repeated(call, sets, calls)

    def replays(self, captured: Sequence[Captured]) -> list[list[float]]:
        factors = [0.5, *[1.0] * 9, 3.0]
        return [
            [factor * run.calls * self.seconds[min(i, len(self.seconds) - 1)] for factor in factors]
            for i, run in enumerate(captured)
        ]

    def elapsed(self, call: Callable[[], object], repeats: int) -> list[float]:
        call()
        return [self.seconds[0]] * repeats

    def clock_mhz(self) -> int | None:
        return 1980

    def now(self) -> float:
        return float(next(self.clock))

    def synchronize(self) -> None:
        pass

    def release(self) -> None:
        pass

    def peak_bytes(self, call: Callable[[], object]) -> int:
        call()
        return 1 << 20


SMALL = "conv2d n1 c8 5x5 -> 8 k3 p1"


def lines(*problems: str, passes: tuple[str, ...] = ("fprop",), dtype: str = "fp16") -> list[Line]:
    return lines_of([], problems, [], passes, dtype, "")


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def go(todo, machine, path, providers=("tritonconv", "cudnn"), **settings):
    return run(todo, providers, machine, path, console=quiet(), **settings)


def unwritten(y: torch.Tensor) -> torch.Tensor:
    y[..., -1] = math.nan
    return y
