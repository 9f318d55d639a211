"""Decides which calls `tritonconv.use` serves. A predicate is asked when a call runs, so a compiled graph asks it too.

An op whose `plan` is "where=3" asks the predicate that was filed under number 3, and runs torch's convolution where it says no.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from costmodel.problem import ConvProblem, Pass
from tritonconv import host
from tritonconv.layout import looks_channels_last

_PREFIX = "where="
_lock = threading.Lock()


@dataclass(frozen=True)
class Call:
    """One pass of one convolution, about which a predicate is asked.

    `problem` has the sizes (`costmodel.problem.ConvProblem`), `which` is "fprop", "dgrad" or "wgrad" (a transposed layer's
    forward is the dgrad of its problem), `dtype` and `device` are the tensors', `layout` is "channels_last" or "contiguous".
    """

    problem: ConvProblem
    which: Pass
    dtype: torch.dtype
    device: torch.device
    layout: str


Predicate = Callable[[Call], bool]


class Entry(NamedTuple):
    """What a record counts: a call in words, by whom it was computed and, if that was torch, why."""

    what: str
    by: str
    reason: str = ""


class Record:
    """Counts the calls of a region; its `str` is a table. Threads may share it."""

    def __init__(self) -> None:
        self.counts: Counter[Entry] = Counter()

    def add(self, what: str, reason: str = "") -> None:
        """Counts a call. A reason says why torch computed it."""
        with _lock:
            self.counts[Entry(what, "torch" if reason else "tritonconv", reason)] += 1

    def by(self, name: str) -> int:
        """How many calls "tritonconv" or "torch" computed."""
        with _lock:
            return sum(count for call, count in self.counts.items() if call.by == name)

    def __str__(self) -> str:
        with _lock:
            rows = sorted(self.counts.items())
        ours = sum(count for call, count in rows if call.by == "tritonconv")
        lines = [f"{ours} of {sum(count for _, count in rows)} calls ran on tritonconv's kernels"]
        for call, count in rows:
            lines.append(f"{count:>6}  {call.what}: {call.by}" + (f", {call.reason}" if call.reason else ""))
        return "\n".join(lines)


#: The filed predicates by number. They are kept because compiled graphs refer to them.
_PREDICATES: list[Predicate] = []


class Open(NamedTuple):
    """A region that is open now: the record that counts every answer, its word for `plan`, and the thread that opened it."""

    record: Record
    word: str
    thread: int


_OPEN: list[Open] = []


def filed(predicate: Predicate) -> str:
    """The word for `plan` that names a predicate. It is the same for the same predicate, so that nothing is compiled twice."""
    with _lock:
        if predicate not in _PREDICATES:
            _PREDICATES.append(predicate)
        return f"{_PREFIX}{_PREDICATES.index(predicate)}"


def opened(record: Record, word: str) -> None:
    """Lets the record count answers from here on."""
    with _lock:
        _OPEN.append(Open(record, word, threading.get_ident()))


def closed(record: Record) -> None:
    """Ends what `opened` began: the record counts no more answers."""
    with _lock:
        _OPEN.remove(next(region for region in reversed(_OPEN) if region.record is record))


def leaves(problem: ConvProblem, which: Pass, tensor: torch.Tensor) -> bool:
    """Whether the region that this thread is in leaves a pass to torch. Nothing is recorded."""
    words = [region.word for region in _OPEN if region.thread == threading.get_ident()]
    if not words:
        return False
    return not _PREDICATES[int(words[-1].removeprefix(_PREFIX))](call_of(problem, which, tensor))


def resolved(plan: str, problem: ConvProblem, which: Pass, tensor: torch.Tensor) -> tuple[bool, str]:
    """The pair (whether torch computes a call of an op, the rest of `plan` for our kernels)."""
    if not plan.startswith(_PREFIX):
        return False, plan
    ours = bool(_PREDICATES[int(plan.removeprefix(_PREFIX))](call_of(problem, which, tensor)))
    for region in tuple(_OPEN):
        region.record.add(f"{which} {problem}", "" if ours else "where= says so")
    return not ours, ""


def call_of(problem: ConvProblem, which: Pass, tensor: torch.Tensor) -> Call:
    """The call as a predicate sees it; `tensor` is its first operand."""
    layout = "channels_last" if looks_channels_last(tensor.shape, tensor.stride()) else "contiguous"
    return Call(problem, which, tensor.dtype, tensor.device, layout)


# ---- recorded rows ------------------------------------------------------------------------------------------------------


def predicate(where: Any) -> Predicate:
    """The predicate that `where` means. `where` is a predicate, or the rows that `bench run` recorded (a path of *.jsonl, or
    the rows).

    Raises TypeError for anything else, and ValueError for rows that lack a field.
    """
    if callable(where):
        return where
    if isinstance(where, (str, Path)):
        return Faster(_lines(Path(where)))
    if isinstance(where, Iterable):
        return Faster(where)
    raise TypeError(f"use(): argument 'where' must be a predicate, rows or a path of rows, got {type(where).__name__}")


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    return [json.loads(line) for file in files for line in file.read_text().splitlines() if line.strip()]


class Faster:
    """The predicate that takes a call if, on the GPU at hand, tritonconv's fastest row of it is faster than cuDNN's.

    A call is torch's where there is no row of its pass, dtype and layout.
    """

    def __init__(self, rows: Iterable[Any]) -> None:
        times: dict[tuple[Any, ...], dict[str, float]] = {}
        for row in rows:
            values = row if isinstance(row, dict) else vars(row)
            try:
                if not values["ok"] or values["median_us"] is None:
                    continue
                problem = values["problem"]
                if isinstance(problem, dict):
                    problem = ConvProblem(**{name: _tuples(value) for name, value in problem.items()})
                key = (problem, str(values["which"]), values["dtype"], values["layout"], values["gpu"])
                fastest = times.setdefault(key, {})
                fastest[values["provider"]] = min(values["median_us"], fastest.get(values["provider"], float("inf")))
            except KeyError as missing:
                raise ValueError(f"use(): a row of 'where' lacks the field {missing}") from None
        self._faster = {
            key
            for key, fastest in times.items()
            if fastest.get("tritonconv", float("inf")) < fastest.get("cudnn", float("-inf"))
        }

    def __call__(self, call: Call) -> bool:
        name = str(call.dtype).removeprefix("torch.")
        return (call.problem, str(call.which), name, call.layout, _gpu(call.device)) in self._faster


def _gpu(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else host.model(host.index_of(torch.empty(0))).name


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
