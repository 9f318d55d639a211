"""How good the predicted choice of a plan is, from measured rows of many plans per call (`bench.sweep`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table

from bench.calls import call_of_row, fresh, ours
from bench.rows import Measurement, latest
from costmodel.device import Device
from costmodel.plan import candidates, predict, select
from costmodel.tiling import Plan

#: Fewest measured plans of a call; fewer say nothing about their order.
LEAST_PLANS = 5
#: The model's goals: the first choice's share of the fastest plan's speed, in the median and at the fifth percentile, and the
#: median and mean of |predicted / measured - 1|.
GOALS = {"median share": 0.95, "p5 share": 0.80, "median error": 0.08, "mean error": 0.12}


@dataclass(frozen=True)
class Quality:
    """How well predicted times order the plans of one call. Times are microseconds, errors |predicted / measured - 1|."""

    name: str
    plans: int  # measured plans
    candidates: int  # candidate plans of the call
    first: Measurement | None  # the row of the plan of least predicted time, where it was measured
    best: Measurement
    correlation: float  # correlation of the ranks by predicted and by measured time
    errors: tuple[float, ...]

    @property
    def share(self) -> float | None:
        """The first choice's speed over the fastest plan's."""
        return None if self.first is None else (self.best.median_us or 0) / (self.first.median_us or 1)


def qualities(rows: Iterable[Measurement], device: Device) -> list[Quality]:
    """The quality for every call with enough measured plans, by the model as it is now. Stale rows are left out."""
    device = replace(device, fastest={})
    by_job: dict[tuple[object, ...], dict[str, Measurement]] = defaultdict(dict)
    for row in latest(rows).values():
        if ours(row) and fresh(row):
            by_job[row.job][row.plan] = row
    qualities = []
    for members in by_job.values():
        if len(members) < LEAST_PLANS:
            continue
        some = next(iter(members.values()))
        call = call_of_row(some)
        measured = np.array([row.median_us for row in members.values()])
        predicted = np.array([1e6 * predict(call, Plan.parse(plan), device).seconds for plan in members])
        qualities.append(
            Quality(
                name=f"{some.suite}/{some.layer} {some.which}" if some.layer else f"{some.problem} {some.which}",
                plans=len(members),
                candidates=len(candidates(call, device)),
                first=members.get(str(select(call, device))),
                best=min(members.values(), key=lambda row: row.median_us or np.inf),
                correlation=spearman(predicted, measured),
                errors=tuple(np.abs(predicted / measured - 1)),
            )
        )
    return qualities


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks in ascending order. Equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation of the ranks; NaN where all values of one side are equal."""
    a, b = ranks(a), ranks(b)
    spread = float(np.std(a) * np.std(b))
    return float(np.mean((a - a.mean()) * (b - b.mean())) / spread) if spread else float("nan")


@dataclass(frozen=True)
class Summary:
    """Summaries over calls (the first choice's share of the fastest plan's speed, the ranks' correlation) and over rows
    (errors)."""

    calls: int
    plans: int
    median_share: float
    p5_share: float
    correlation: float
    median_error: float
    mean_error: float

    @classmethod
    def of(cls, qualities: Sequence[Quality]) -> Summary:
        """The summary of the qualities of several calls."""
        shares = [q.share for q in qualities if q.share is not None] or [np.nan]
        errors = [error for q in qualities for error in q.errors]
        return cls(
            len(qualities),
            len(errors),
            float(np.median(shares)),
            float(np.quantile(shares, 0.05)),
            float(np.nanmedian([q.correlation for q in qualities])),
            float(np.median(errors)),
            float(np.mean(errors)),
        )

    @property
    def lines(self) -> list[tuple[str, float, float | None, bool]]:
        """(name, value, goal, whether more is better) of each figure."""
        return [
            ("first choice, share of the fastest plan's speed, median", self.median_share, GOALS["median share"], True),
            ("first choice, share of the fastest plan's speed, p5", self.p5_share, GOALS["p5 share"], True),
            ("rank correlation of predicted and measured times, median", self.correlation, None, True),
            ("error of the predicted time, median", self.median_error, GOALS["median error"], False),
            ("error of the predicted time, mean", self.mean_error, GOALS["mean error"], False),
        ]


def show(qualities: Sequence[Quality], console: Console) -> None:
    """Prints one row per call, the worst choice first, and the summary beside its goals."""
    if not qualities:
        console.print(f"no call has {LEAST_PLANS} plans measured")
        return
    shown = Table(title="the plan of least predicted time against the fastest", box=HORIZONTALS, padding=(0, 1, 0, 0))
    shown.add_column("layer", overflow="fold")
    for heading in ("plans", "first µs", "best µs", "share", "rank corr.", "error"):
        shown.add_column(heading, justify="right")
    shown.add_column("fastest plan", overflow="fold")
    for q in sorted(qualities, key=lambda q: -1.0 if q.share is None else q.share):
        first = "not measured" if q.first is None else f"{q.first.median_us:.1f}"
        share = "-" if q.share is None else f"{q.share:.0%}"
        error = f"{np.median(q.errors):.0%}"
        best = f"{q.best.median_us:.1f}"
        shown.add_row(q.name, f"{q.plans} of {q.candidates}", first, best, share, f"{q.correlation:.2f}", error, q.best.plan)
    console.print(shown)
    summary = Summary.of(qualities)
    console.print(f"{summary.calls} calls, {summary.plans} plans")
    for what, value, goal, direction in summary.lines:
        text = f"{value:.2f}" if goal is None else f"{value:.1%}, goal {goal:.0%} or {'more' if direction else 'less'}"
        met = goal is None or (value >= goal if direction else value <= goal)
        console.print(f"  {what}: {text}", style="" if met else "yellow")
