"""The machine that measures: its clock, its memory, and the facts about it that rows keep.

`Machine` is all that the rest of the harness knows about a GPU; tests use a stand-in. `Gpu` is the real one: it captures calls
in a CUDA graph, so that no host time is in between, and replays all contenders in turns.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from bench.provenance import provenance
from costmodel.detector import detect
from costmodel.device import Device

#: A call: computes the result for the set of inputs with a number.
Call = Callable[[int], torch.Tensor]

WARM_UPS = 3
#: Seconds of one replay of a graph, roughly, so long that the gap before its first kernel does not matter.
REPLAY_SECONDS = 500e-6
#: Seconds of all replays of one contender, roughly, and the limits of their number.
ROUNDS_SECONDS = 0.1
ROUNDS = (10, 100)


class Captured(Protocol):
    """Calls that can be repeated. `outputs` are the last result of each set, which `replay` writes again; `calls` is the number
    of calls."""

    outputs: list[torch.Tensor]
    calls: int

    def replay(self) -> None: ...


class Machine(Protocol):
    device: str  # torch's name of the device
    model: Device
    memory: int  # bytes that may be used
    facts: Mapping[str, Any]  # gpu, driver, cuda, cudnn, torch, triton, commit

    def capture(self, call: Call, sets: int, calls: int) -> Captured:
        """Warm `call` up, compilation included, and record `calls` calls in a row that take the sets in turn."""
        ...

    def replays(self, captured: Sequence[Captured]) -> list[list[float]]:
        """Seconds of many replays of each, taken in turns after a few that do not count."""
        ...

    def elapsed(self, call: Callable[[], object], repeats: int) -> list[float]:
        """Device seconds of single calls without a graph; they include host time where the host is slower."""
        ...

    def clock_mhz(self) -> int | None: ...

    def now(self) -> float:
        """Host seconds."""
        ...

    def synchronize(self) -> None: ...

    def release(self) -> None:
        """Give cached memory back."""
        ...

    def peak_bytes(self, call: Callable[[], object]) -> int:
        """The most memory that tensors take during a call."""
        ...


@dataclass(frozen=True)
class Quantiles:
    median: float
    p10: float
    p90: float
    count: int


def quantiles(samples: Sequence[float]) -> Quantiles:
    """The median and the first and last decile, interpolated. Raises ValueError without samples."""
    if not samples:
        raise ValueError("there are no samples")
    if len(samples) == 1:
        return Quantiles(samples[0], samples[0], samples[0], 1)
    deciles = statistics.quantiles(samples, n=10, method="inclusive")
    return Quantiles(statistics.median(samples), deciles[0], deciles[-1], len(samples))


def rounds(first: Sequence[float]) -> int:
    """The number of rounds in which to measure contenders whose first replays took these seconds."""
    least, most = ROUNDS
    return max(least, min(most, math.ceil(ROUNDS_SECONDS / max(*first, 1e-9))))


def nvidia_smi(field: str) -> str:
    """One field of nvidia-smi's report on the current GPU; "" where it has no answer."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits", f"--id={torch.cuda.current_device()}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def in_turns(call: Call, sets: int, calls: int) -> list[torch.Tensor]:
    """Calls with the sets one after another, over and over; returns each set's last result. A result stays alive until the
    set's next one, so that results take turns in memory too."""
    outputs: list[torch.Tensor] = []
    for i in range(calls):
        outputs[i % sets : i % sets + 1] = [call(i % sets)]
    return outputs


class Graph:
    """A CUDA graph of calls."""

    def __init__(self, call: Call, sets: int, calls: int) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                call(0)
        torch.cuda.current_stream().wait_stream(stream)
        self.calls = calls
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = in_turns(call, sets, calls)

    def replay(self) -> None:
        self.graph.replay()


class Gpu:
    """The current CUDA device. Raises SystemExit where there is none.

    `cudnn_plans` limits how many of cuDNN's plans torch keeps (`bench.providers.cudnn` says why one). torch reads the limit at
    its first convolution, so it applies to the whole process.
    """

    def __init__(self, cudnn_plans: int | None = None) -> None:
        if not torch.cuda.is_available():
            raise SystemExit("there is no CUDA device here, and times need one; 'python -m costmodel' predicts them without")
        if cudnn_plans is not None:
            os.environ["TORCH_CUDNN_V8_API_LRU_CACHE_LIMIT"] = str(cudnn_plans)
        self.device = "cuda"
        self.model = detect().device
        self.memory = int(0.9 * torch.cuda.mem_get_info()[0])
        versions = provenance()
        self.facts: Mapping[str, Any] = {
            "gpu": versions["device"],
            "driver": nvidia_smi("driver_version"),
            "cuda": str(torch.version.cuda),
            "cudnn": versions["cudnn"],
            "torch": versions["torch"],
            "triton": versions["triton"],
            "commit": versions["commit"],
        }

    def capture(self, call: Call, sets: int, calls: int) -> Graph:
        return Graph(call, sets, calls)

    def replays(self, captured: Sequence[Captured]) -> list[list[float]]:
        def one(graph: Captured) -> tuple[Any, Any]:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            return start, end

        def seconds(pair: tuple[Any, Any]) -> float:
            return pair[0].elapsed_time(pair[1]) / 1e3

        first = [one(graph) for _ in range(WARM_UPS) for graph in captured][-len(captured) :]
        torch.cuda.synchronize()
        turns = rounds([seconds(pair) for pair in first])
        pairs = [[one(graph) for graph in captured] for _ in range(turns)]
        torch.cuda.synchronize()
        return [[seconds(turn[i]) for turn in pairs] for i in range(len(captured))]

    def elapsed(self, call: Callable[[], object], repeats: int) -> list[float]:
        for _ in range(WARM_UPS):
            call()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        events[0].record()
        for event in events[1:]:
            call()
            event.record()
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1e3 for before, after in itertools.pairwise(events)]

    def clock_mhz(self) -> int | None:
        answer = nvidia_smi("clocks.sm")
        return int(answer) if answer.isdigit() else None

    def now(self) -> float:
        return time.perf_counter()

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def release(self) -> None:
        torch.cuda.empty_cache()

    def peak_bytes(self, call: Callable[[], object]) -> int:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
