"""`data/library.json`: constants fitted to published times of cuDNN and PyTorch, read on first use. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from costmodel.library.alike import Row
from costmodel.library.terms import Seen

#: The held-out rows that give an interval: other layers of a GPU that has rows, or all rows of a GPU without any.
FOLDS = ("layer", "gpu")


@dataclass(frozen=True)
class Interval:
    """The 5th and 95th percentile of measured over predicted time, for guesses with at least `support`."""

    support: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True)
class Layers:
    """`gpus`: the devices that have rows, by arithmetic. `intervals`: how far guesses were off, by unit ("tensor", "fma") and
    fold, from most support to least."""

    rows: tuple[Row, ...]
    gpus: Mapping[str, tuple[str, ...]]
    intervals: Mapping[str, Mapping[str, tuple[Interval, ...]]]


@dataclass(frozen=True)
class Networks:
    """Constants of whole networks, by layout: the factor on the predicted time of each kind of operator, and the interval of a
    network's time by fold ("network": on a GPU that has rows; "gpu": on a GPU without rows)."""

    weights: Mapping[str, Mapping[str, float]]
    intervals: Mapping[str, Mapping[str, Interval]]
    gpus: tuple[str, ...]


@dataclass(frozen=True)
class Library:
    layers: Layers
    networks: Networks


def path() -> Path:
    return Path(str(resources.files("costmodel"))) / "data" / "library.json"


@cache
def library() -> Library:
    """The package's constants."""
    return loads(path().read_text("utf-8"))


def dumps(library: Library) -> str:
    """The constants as JSON with one row per line, which `loads` reads back."""
    layers, networks = library.layers, library.networks
    rows = [[*astuple(row.seen)[:6], int(row.seen.dilated), *_rounded(astuple(row.seen)[7:])] for row in layers.rows]
    lines = [json.dumps([*seen, round(row.log_ratio, 4), row.weight]) for seen, row in zip(rows, layers.rows, strict=True)]
    intervals = {unit: {fold: _plain(given) for fold, given in folds.items()} for unit, folds in layers.intervals.items()}
    parts = {
        "layers gpus": layers.gpus,
        "layers intervals": intervals,
        "networks weights": {k: {n: round(v, 4) for n, v in w.items()} for k, w in networks.weights.items()},
        "networks intervals": {k: {fold: _plain([v])[0] for fold, v in w.items()} for k, w in networks.intervals.items()},
        "networks gpus": networks.gpus,
    }
    head = "".join(f"{json.dumps(name)}: {json.dumps(value)},\n" for name, value in parts.items())
    return "{\n" + head + '"layers rows": [\n' + ",\n".join(sorted(lines)) + "\n]}\n"


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 3) for value in values]


def _plain(intervals: Sequence[Interval]) -> list[list[float]]:
    return [[interval.support, round(interval.low, 3), round(interval.high, 3), interval.rows] for interval in intervals]


def loads(text: str) -> Library:
    tables: dict[str, Any] = json.loads(text)
    rows = [Row(_seen(row[:12]), row[12], row[13]) for row in tables["layers rows"]]
    intervals = {
        unit: {fold: tuple(Interval(*interval) for interval in given) for fold, given in folds.items()}
        for unit, folds in tables["layers intervals"].items()
    }
    layers = Layers(tuple(rows), {k: tuple(v) for k, v in tables["layers gpus"].items()}, intervals)
    spread = {
        layout: {fold: Interval(*interval) for fold, interval in w.items()}
        for layout, w in tables["networks intervals"].items()
    }
    return Library(layers, Networks(tables["networks weights"], spread, tuple(tables["networks gpus"])))


def _seen(values: Sequence[Any]) -> Seen:
    kind, rank, passes, arithmetic, layout, mode, dilated, *sizes = values
    m, n, k, taps, stride = map(float, sizes)
    return Seen(kind, rank, passes, arithmetic, layout, mode, bool(dilated), m, n, k, taps, stride)
