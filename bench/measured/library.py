"""Makes `costmodel/data/library.json` from the published rows: similar layers, weights of networks, and intervals of both from
held-out rows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from bench.measured import networks
from bench.measured.layers import published
from bench.measured.networks import Run, half, runs
from bench.measured.rows import Sample, by_gpu, by_layer, held_out, rows_of, samples
from costmodel.library.alike import Guess
from costmodel.library.constants import Interval, Layers, Library, Networks

#: Classes of support that have intervals, the most support first, and the share of rows that an interval covers.
SUPPORTS = (2.0, 0.5, 0.0)
QUANTILES = (0.05, 0.95)
#: Intervals are made from calls of at least this many seconds, because the launch dominates shorter single calls.
FROM = 50e-6


def make() -> Library:
    """The constants that ship."""
    given = samples(published())
    return Library(layers(given), whole())


def layers(given: Sequence[Sample]) -> Layers:
    long = [sample for sample in given if sample.row.seconds >= FROM]
    folds: dict[str, dict[str, tuple[Interval, ...]]] = {"tensor": {}, "fma": {}}
    of_layer = dict(zip(map(id, given), held_out(given, by_layer), strict=True))
    of_gpu = dict(zip(map(id, given), held_out(given, by_gpu), strict=True))
    for unit in folds:
        members = [s for s in long if s.row.tensor_cores == (unit == "tensor")]
        near = intervals(members, [of_layer[id(s)] for s in members])
        far = intervals(members, [of_gpu[id(s)] for s in members])
        # the interval of a GPU without rows is never narrower than that of one with rows
        far = tuple(Interval(f.support, min(f.low, n.low), max(f.high, n.high), f.rows) for f, n in zip(far, near, strict=True))
        folds[unit] = {"layer": near, "gpu": far}
    gpus: dict[str, set[str]] = defaultdict(set)
    for sample in given:
        gpus[sample.seen.arithmetic].add(sample.row.device.name)
    return Layers(tuple(rows_of(given)), {name: tuple(sorted(models)) for name, models in sorted(gpus.items())}, folds)


def intervals(given: Sequence[Sample], guesses: Sequence[Guess]) -> tuple[Interval, ...]:
    """Intervals of measured over predicted time, by the support of the guess. A class with fewer than 20 rows joins the
    next."""
    off = np.array([math.exp(s.log_ratio - g.log_ratio) for s, g in zip(given, guesses, strict=True)])
    support = np.array([g.support for g in guesses])
    intervals: list[Interval] = []
    for least, most in zip(SUPPORTS, (math.inf, *SUPPORTS), strict=False):
        inside = off[(support >= least) & (support < most)]
        if len(inside) >= 20:
            low, high = np.quantile(inside, QUANTILES)
            intervals.append(Interval(least, round(float(low), 3), round(float(high), 3), len(inside)))
    last = intervals[-1]
    return (*intervals, *(Interval(s, last.low, last.high, last.rows) for s in SUPPORTS if s < last.support))


# ---- networks -------------------------------------------------------------------------------------------------------


def in_layout(layout: str) -> list[Run]:
    return [run for run in runs() if run.layout == layout]


def held_out_half(layout: str) -> list[tuple[Run, float]]:
    """Each run with the seconds that are predicted from the other half of the networks."""
    given = in_layout(layout)
    weights = [networks.fit([run for run in given if half(run) != side]) for side in (0, 1)]
    return [(run, networks.predicted(run, weights[half(run)])) for run in given]


def held_out_gpu(layout: str, source: str | None = None) -> list[tuple[Run, float]]:
    """Each run with the seconds that are predicted from the other GPU, or only from the GPU `source`."""
    given = in_layout(layout)
    predictions = []
    for gpu in sorted({run.gpu for run in given}):
        rest = [run for run in given if run.gpu != gpu and source in (None, run.gpu)]
        if rest:
            weights = networks.fit(rest)
            predictions += [(run, networks.predicted(run, weights)) for run in given if run.gpu == gpu]
    return predictions


def whole() -> Networks:
    weights, spread = {}, {}
    for layout in sorted({run.layout for run in runs()}):
        weights[layout] = networks.fit(in_layout(layout))
        spread[layout] = {"network": _interval(held_out_half, layout), "gpu": _interval(held_out_gpu, layout)}
    return Networks(weights, spread, tuple(sorted({run.device.name for run in runs()})))


def _interval(fold: Callable[[str], list[tuple[Run, float]]], layout: str) -> Interval:
    off = [run.seconds / seconds for run, seconds in fold(layout)]
    low, high = np.quantile(off, QUANTILES)
    return Interval(0.0, float(low), float(high), len(off))
