"""Rows of measurements, one JSON object per line, which are kept for good.

Each provider's time of one pass of one problem is a `Measurement`. Files are appended to and flushed row by row, so that a
run that is cut off loses nothing. `Measurement.identity` tells a later run what it need not measure again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from costmodel.problem import ConvProblem, Pass


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One provider's time of one pass. Times are device microseconds per call with a cold L2 cache.

    `which` is the primitive. `transposed` says that the layer is a transposed one, whose forward is the dgrad of its problem.
    `layout` is that of the caller's tensors ("channels_last" or "contiguous"); the time includes copies to other layouts.
    `error` is the largest error over the derived tolerance. Where it is above 1, or the call failed, `ok` is False, there are
    no times, and `note` says why.
    """

    problem: ConvProblem
    which: Pass
    transposed: bool = False
    dtype: str  # float16, bfloat16, float32 or float64
    precision: str = "ieee"  # how float32 is multiplied: ieee or tf32
    layout: str
    provider: str  # tritonconv, cudnn, inductor, matmul, flaggems or causal_conv1d
    setting: str = ""  # the provider's setting, such as "channels_last benchmark"
    plan: str = ""  # tritonconv's plan in words
    family: str = ""  # that plan's family
    family_hash: str = ""  # hash of the sources of that family's kernels
    median_us: float | None
    p10_us: float | None
    p90_us: float | None
    repeats: int  # number of calls that the quantiles are of
    error: float | None
    ok: bool
    note: str = ""
    roofline_us: float
    predicted_us: float | None = None  # predicted time of the plan by the cost model of that day
    suite: str = ""
    layer: str = ""
    gpu: str
    driver: str = ""
    cuda: str = ""
    cudnn: str = ""
    torch: str
    triton: str
    commit: str
    clock_mhz: int | None = None  # clock of the multiprocessors right after the timing
    when: str  # UTC, ISO 8601

    @property
    def identity(self) -> tuple[Any, ...]:
        """The key that is equal for repetitions of the same measurement."""
        return tuple(getattr(self, name) for name in IDENTITY)

    @property
    def job(self) -> tuple[Any, ...]:
        """The key that is equal for rows of providers that are compared with each other."""
        return tuple(getattr(self, name) for name in JOB)

    def to_json(self) -> str:
        """One line, without its end."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Measurement:
        """The row that `to_json` wrote. Raises ValueError for fields that are missing or unknown."""
        values = json.loads(line)
        names = {f.name for f in fields(cls)}
        required = {f.name for f in fields(cls) if f.default is MISSING}
        if unknown := set(values) - names:
            raise ValueError(f"a row has the unknown fields {', '.join(sorted(unknown))}")
        if missing := required - set(values):
            raise ValueError(f"a row lacks the fields {', '.join(sorted(missing))}")
        sizes = {name: _tuples(value) for name, value in values["problem"].items()}
        return cls(**{**values, "problem": ConvProblem(**sizes), "which": Pass(values["which"])})


JOB = ("problem", "which", "transposed", "dtype", "precision", "layout", "gpu", "torch", "triton")
IDENTITY = (*JOB, "provider", "setting", "plan", "family_hash")


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def append(path: Path, rows: Iterable[Measurement]) -> None:
    """Adds rows to a file, which is created where it is missing. The rows are on the disk when this returns.

    A last line without its end, which a run that was cut off left, is removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
        for row in rows:
            file.write(row.to_json().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def load(*paths: Path) -> Iterator[Measurement]:
    """The rows of files and of the *.jsonl files in directories, in order. A path that does not exist has no rows.

    Raises ValueError, with file and line, for a line that is no row. A last line without its end is left out.
    """
    for path in paths:
        for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path] * path.is_file():
            text = file.read_text()
            for number, line in enumerate(text.splitlines(keepends=True), 1):
                if not line.endswith("\n"):
                    continue
                try:
                    yield Measurement.from_json(line)
                except (ValueError, TypeError, KeyError) as error:
                    raise ValueError(f"{file}:{number}: {error}") from error


def latest(rows: Iterable[Measurement]) -> dict[tuple[Any, ...], Measurement]:
    """The rows by identity, the last one where there are several."""
    return {row.identity: row for row in rows}


def geometric_mean(ratios: Iterable[float]) -> float:
    """The geometric mean; NaN without ratios."""
    logs = [math.log(ratio) for ratio in ratios]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan
