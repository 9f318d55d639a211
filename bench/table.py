"""The results of a run as a table: time, ratio to torch, share of the roofline, and the goals that were reached."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.box import HORIZONTALS
from rich.table import Table

from bench.measure import Outcome
from bench.rows import Measurement, geometric_mean
from bench.work import Line

#: Least time of torch for which a floor applies. Below it a row says more about launches than about kernels.
FLOOR_FROM_US = 20.0


@dataclass(frozen=True)
class Verdict:
    """The rows of one line side by side. A ratio is another time divided by ours. It is above 1 where ours is faster, and None
    where either time is missing."""

    line: Line
    ours: Measurement | None
    torch: Measurement | None  # torch in its fastest setting
    default: Measurement | None  # torch without cudnn.benchmark, on tensors in the layout of the line
    others: tuple[Measurement, ...]
    failed: tuple[Measurement, ...]

    @classmethod
    def of(cls, outcome: Outcome, rows: Mapping[tuple[object, ...], Measurement]) -> Verdict:
        """The verdict on a line whose contenders are `outcome.identities`, from the rows of a file by their identity."""
        measured = [rows[identity] for identity in outcome.identities if identity in rows]
        timed = [row for row in measured if row.ok]
        torch = [row for row in timed if row.provider == "cudnn"]
        return cls(
            line=outcome.line,
            ours=next((row for row in timed if row.provider == "tritonconv"), None),
            torch=min(torch, key=microseconds, default=None),
            default=next((row for row in torch if row.setting == row.layout), None),
            others=tuple(row for row in timed if row.provider not in ("tritonconv", "cudnn")),
            failed=tuple(row for row in measured if not row.ok),
        )

    @property
    def ratio(self) -> float | None:
        return self.against(self.torch)

    def against(self, other: Measurement | None) -> float | None:
        return None if self.ours is None or other is None else microseconds(other) / microseconds(self.ours)


def microseconds(row: Measurement) -> float:
    if row.median_us is None:
        raise ValueError(f"the row of {row.provider} for {row.problem} has no time")
    return row.median_us


def name_of(line: Line) -> str:
    name = "/".join(filter(None, (line.suite, line.layer)))
    return f"{name} {line.work.which}" if line.layer else f"{name} {line.work.problem} {line.work.which}".strip()


def table(verdicts: Sequence[Verdict], title: str) -> Table:
    """One row per line, in the order in which they were measured."""
    shown = Table(title=title, box=HORIZONTALS, padding=(0, 1, 0, 0))
    shown.add_column("layer", overflow="fold")
    for heading in ("µs", "torch's best", "ratio", "default", "roofline", "error"):
        shown.add_column(heading, justify="right")
    others = list(dict.fromkeys(row.provider for verdict in verdicts for row in verdict.others))
    for name in others:
        shown.add_column(name, justify="right")
    for verdict in verdicts:
        ours, torch = verdict.ours, verdict.torch
        by_name = {row.provider: row for row in verdict.others}
        shown.add_row(
            name_of(verdict.line),
            "failed" if ours is None else f"{microseconds(ours):.1f}",
            "-" if torch is None else f"{microseconds(torch):.1f} {torch.setting}",
            times(verdict.ratio),
            times(verdict.against(verdict.default)),
            "-" if ours is None else f"{ours.roofline_us / microseconds(ours):.0%}",
            "-" if ours is None or ours.error is None else f"{ours.error:.2f}",
            *(times(verdict.against(by_name.get(name))) for name in others),
        )
    return shown


def times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def summary(verdicts: Iterable[Verdict]) -> Table:
    """Geometric means by goal group, or by suite where there is no goal, and each group's slowest row."""
    groups: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault(verdict.line.group or verdict.line.suite or "problems", []).append(verdict)
    shown = Table(title="torch's fastest setting over tritonconv, geometric means", box=HORIZONTALS, padding=(0, 1, 0, 0))
    for heading in ("group", "rows", "ratio", "goal", "lowest", "floor"):
        shown.add_column(heading, justify="left" if heading == "group" else "right")
    for group, members in groups.items():
        line = members[0].line
        ratios = [v.ratio for v in members if v.ratio is not None]
        above = [v.ratio for v in members if v.ratio is not None and v.torch and microseconds(v.torch) > FLOOR_FROM_US]
        shown.add_row(
            group,
            f"{len(ratios)} of {len(members)}",
            times(geometric_mean(ratios) if ratios else None),
            "-" if line.goal is None else f"{line.goal:.1f}x",
            times(min(above, default=None)),
            "-" if line.floor is None else f"{line.floor:.2f}x",
        )
    return shown
