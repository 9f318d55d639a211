"""Reports side by side: one network on two devices, or two networks on one, in words, as a page, or as rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costmodel.reports.needed import needed
from costmodel.reports.tables import Tables, kept
from costmodel.reports.units import duration, interval, middle, si

if TYPE_CHECKING:
    from costmodel.reports.report import Report


@dataclass(frozen=True)
class Line:
    """One quantity of every report. `ratio` is the last report's over the first's; None unless both are numbers above 0."""

    quantity: str
    values: tuple[float | None, ...]
    words: tuple[str, ...]
    ratio: float | None


@dataclass(frozen=True)
class Pair:
    """The times of one row by name in the first and the last report, in seconds; None where a report has no such row."""

    name: str
    op: str
    first_seconds: float | None
    last_seconds: float | None
    ratio: float | None


@dataclass(frozen=True)
class SideBySide(Tables):
    """Two reports. `print` shows their totals, and `lines` and `pairs` are rows with times in seconds. `to_html` makes one
    page of both; it raises ValueError for a path that cannot be written. Source: `docs/design/prediction.md` says how times are
    predicted.

    >>> import costmodel, torch
    >>> net = costmodel.trace(torch.nn.Conv2d(3, 8, 3), (1, 3, 32, 32))
    >>> both = net.on("h100").compare(net.on("t4"))
    >>> both.names
    ('NVIDIA H100 80GB HBM3, bfloat16', 'Tesla T4, float16')
    >>> both.pairs[0].ratio > 1
    True
    """

    reports: tuple[Report, Report]

    @property
    def names(self) -> tuple[str, str]:
        """Names that tell the two apart, by model, device and arithmetic."""
        first, last = self.reports
        parts: list[Callable[[Report], str]] = [
            lambda report: report.model,
            lambda report: report.device,
            lambda report: report.arithmetic,
        ]
        apart = [part for part in parts if part(first) != part(last)] or parts[:1]
        names = [", ".join(part(report) for part in apart) for report in self.reports]
        return names[0], names[1]

    @property
    def lines(self) -> tuple[Line, ...]:
        """The totals, one quantity per line."""

        def line(quantity: str, value: Callable[[Report], float | None], words: Callable[[float], str]) -> Line:
            values = tuple(value(report) for report in self.reports)
            first, last = values
            ratio = last / first if first and last else None
            return Line(quantity, values, tuple("–" if v is None else words(v) for v in values), ratio)

        lines = [
            line("operators", lambda report: report.operators, lambda v: f"{v:,}"),
            line("convolutions", lambda report: report.convolutions, lambda v: f"{v:,}"),
            line("parameters", lambda report: report.parameters, si),
            line("dense MAC, forward", lambda report: report.totals[0].dense_macs, si),
            line("useful MAC, forward", lambda report: report.totals[0].useful_macs, si),
            line("bytes, forward", lambda report: report.totals[0].bytes, lambda v: si(v, "B")),
            line("peak activations, forward", lambda report: report.forward_memory, lambda v: si(v, "B")),
            line("peak activations, training", lambda report: report.training_memory, lambda v: si(v, "B")),
            line("roofline, forward", lambda report: report.totals[0].roofline_seconds, duration),
            line("roofline, training step", lambda report: report.totals[1].roofline_seconds, duration),
        ]
        for timed in dict.fromkeys(report.timed for report in self.reports):
            lines.append(line(f"predicted {timed}", lambda report, timed=timed: report.seconds_of(timed), duration))  # type: ignore[misc]
        return tuple(lines)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Rows by name: those of the first report in their order, then those that only the last one has."""
        first, last = ({row.name: row for row in report.rows} for report in self.reports)
        pairs = []
        for name in dict.fromkeys([*first, *last]):
            times = [rows[name].seconds if name in rows else None for rows in (first, last)]
            ratio = times[1] / times[0] if times[0] and times[1] else None
            pairs.append(Pair(name, (first.get(name) or last[name]).op, times[0], times[1], ratio))
        return tuple(pairs)

    def table_rows(self) -> Sequence[Pair]:
        """What a table of both holds."""
        return self.pairs

    def document(self) -> dict[str, Any]:
        """What `to_json` writes: the totals of both, and their rows in pairs."""
        return {"names": self.names, "totals": self.lines, "rows": self.pairs}

    def to_html(self, path: str | Path | None = None) -> str:
        """One page with both reports. Raises ValueError where the file cannot be written."""
        with needed():
            from costmodel.reports.html import page
        return kept(page(*self.reports), path)

    def __str__(self) -> str:
        first, last = (middle(name, 24) for name in self.names)
        rows: list[Sequence[str]] = [("", first, last, "ratio")]
        rows += [(line.quantity, *line.words, "–" if line.ratio is None else f"{line.ratio:.2f}") for line in self.lines]
        widths = [max(len(row[place]) for row in rows) for place in range(4)]
        cells = [
            "  ".join([f"{row[0]:<{widths[0]}}", *(f"{cell:>{size}}" for cell, size in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        ]
        spread = [
            f"{name}: predicted {report.timed}, interval {interval(total.low, total.high)}"
            for name, report in zip(self.names, self.reports, strict=True)
            for total in report.totals
            if total.low is not None and total.high is not None
        ]
        return "\n".join([cells[0], "─" * (sum(widths) + 6), *cells[1:], *dict.fromkeys(spread)])

    def __repr__(self) -> str:
        return f"<costmodel.SideBySide of {' and '.join(self.names)}>"
