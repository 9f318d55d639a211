"""One call to try on a GPU: its tensors, the call, and how far its results may be off."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from bench.launched import COUNTS
from bench.providers.contender import Unserved
from bench.work import float32_in
from costmodel.device import Device
from tritonconv import host, launch

#: The tensors of a call; None for a tensor that is not given.
Tensors = Sequence[torch.Tensor | None]
#: Number of calls whose median is the time of a warm call.
TIMED = 5


def no_plan() -> str:
    return ""


def unexplained(tensors: Tensors) -> str:
    return ""


@dataclass(frozen=True)
class Item:
    """A call to try. `inputs` makes the tensors on a device (torch's name), `call` computes the results from them and changes
    none of them, and `judge` returns the error of the results over what is allowed: 1 or less is right. `plan` returns the plan
    in words and raises `Unserved` where this GPU has none; where it needs the tensors, `explained` returns it. `precision` is
    that of float32: "ieee" or "tf32"."""

    name: str
    inputs: Callable[[str], Tensors]
    call: Callable[..., Sequence[torch.Tensor]]
    judge: Callable[[Tensors, Sequence[torch.Tensor]], float]
    plan: Callable[[], str] = no_plan
    precision: str = "ieee"
    explained: Callable[[Tensors], str] = unexplained


@dataclass(frozen=True)
class Result:
    """The outcome of an item. `status` is "ok", "failed" or "unserved", and `note` explains it. `error` is the error over what
    is allowed, or None where it is infinite; `us` is the microseconds of a warm call; `launched` says what was launched."""

    name: str
    status: str
    note: str = ""
    plan: str = ""
    launched: str = ""
    error: float | None = None
    us: float | None = None


def model_of_device() -> Device:
    """The cost model's description of the current GPU, or of what stands for one."""
    where = "cuda" if torch.cuda.is_available() and not host.INTERPRETED else "cpu"
    return launch.device_model(host.index_of(torch.empty(0, device=where)))


@contextmanager
def poisoned() -> Iterator[None]:
    """Inside the block new memory is NaN, so that an element that no kernel writes shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(call: Callable[[], Any], device: str) -> float:
    """The median seconds of some calls, by the GPU's clock where there is one."""
    took = []
    for _ in range(TIMED if device == "cuda" else 1):
        if device == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            end.synchronize()
            took.append(start.elapsed_time(end) / 1e3)
        else:
            began = time.perf_counter()
            call()
            took.append(time.perf_counter() - began)
    return statistics.median(took)


def launched_since(before: Counter[str]) -> str:
    return ", ".join(sorted(COUNTS - before))


def perform(item: Item, device: str) -> Result:
    """Tries an item. An exception is a failed result; a GPU that no longer answers shows at the next item."""
    plan = ""
    try:
        with float32_in(item.precision):
            plan = item.plan()
            tensors = item.inputs(device)
            plan = plan or item.explained(tensors)
            before = Counter(COUNTS)
            with poisoned():
                results = item.call(*tensors)
            synchronize(device)
            launched = launched_since(before)
            if not launched:
                return Result(item.name, "failed", "no kernel of tritonconv was launched", plan)
            error = item.judge(tensors, results)
            if not error <= 1:
                kept = error if error < float("inf") else None
                return Result(item.name, "failed", f"the error is {error:.3g} of what is allowed", plan, launched, kept)
            us = 1e6 * seconds_of(lambda: item.call(*tensors), device)
            return Result(item.name, "ok", "", plan, launched, error, us)
    except Unserved as reason:
        return Result(item.name, "unserved", str(reason))
    except Exception as raised:  # one call must not hide the others
        return Result(item.name, "failed", f"{type(raised).__name__}: {raised}".strip().splitlines()[0][:300], plan)


def launch_only(item: Item, device: str) -> None:
    """Makes the same call without reading results, so that it compiles what `perform` compiles. Raises `Unserved` as `plan`
    does."""
    with float32_in(item.precision):
        item.plan()
        item.call(*item.inputs(device))
