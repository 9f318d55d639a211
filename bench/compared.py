"""Committed rows side by side: our time of a pass beside torch's, and whether the row shows what the library does today."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench.calls import call_of_row, device_of, fresh, ours, work_of
from bench.provenance import ROOT
from bench.rows import Measurement, geometric_mean, latest, load
from bench.table import FLOOR_FROM_US, Verdict, microseconds
from bench.work import Line, Work
from bench.workloads.lists import goals
from costmodel.device import Device
from costmodel.plan import select
from costmodel.problem import ConvProblem

RESULTS = ROOT / "bench" / "results"
#: Fewest channels at either end of a dense layer that do not leave most of a tile's depth or width empty.
FEW_CHANNELS = 16
KINDS = ("dense", "pointwise", "patches", "few channels", "grouped", "depthwise", "dilated", "transposed")


def kind_of(problem: ConvProblem, transposed: bool) -> str:
    """The kind of a layer, one of `KINDS`."""
    if problem.groups > 1:
        return "depthwise" if problem.groups == problem.in_channels else "grouped"
    if transposed:
        return "transposed"
    if problem.is_patch:
        return "pointwise" if problem.taps == 1 else "patches"
    if any(d > 1 for d in problem.dilation):
        return "dilated"
    if min(problem.in_channels, problem.out_channels) < FEW_CHANNELS:
        return "few channels"
    return "pointwise" if problem.taps == 1 else "dense"


@dataclass(frozen=True)
class Compared:
    """One pass of a layer. `verdict` has the rows; `stale` says why our row does not show what the library does now ("" if it
    does)."""

    verdict: Verdict
    kind: str
    stale: str

    @property
    def name(self) -> str:
        line = self.verdict.line
        layer = f"{line.suite}/{line.layer}" if line.layer else str(line.work.problem)
        dtype = {"bfloat16": "", "float32": f" {line.work.precision} float32"}.get(line.work.dtype, f" {line.work.dtype}")
        return f"{layer} {line.work.which}{dtype}"

    @property
    def ratio(self) -> float | None:
        return self.verdict.ratio

    @property
    def counts(self) -> bool:
        """Whether torch takes long enough that the floor applies."""
        torch = self.verdict.torch
        return torch is not None and microseconds(torch) > FLOOR_FROM_US

    @property
    def share(self) -> float | None:
        """Our share of the roofline."""
        row = self.verdict.ours
        return None if row is None else row.roofline_us / microseconds(row)


def committed(results: Path = RESULTS) -> list[Measurement]:
    """Every row under `bench/results/`."""
    return list(load(*sorted(path for path in results.glob("*") if path.is_dir())))


def by_gpu(rows: Iterable[Measurement]) -> dict[str, list[Measurement]]:
    by_line: dict[str, list[Measurement]] = defaultdict(list)
    for row in rows:
        by_line[row.gpu].append(row)
    return dict(sorted(by_line.items()))


@cache
def goal_lines() -> dict[Work, Line]:
    """The works that belong to a goal. A work of two goals counts for the first."""
    lines: dict[Work, Line] = {}
    for line in goals():
        lines.setdefault(line.work, line)
    return lines


def compared(rows: Sequence[Measurement]) -> list[Compared]:
    """Each pass that was measured for us and for torch. Passes without a ratio come first, then the lowest ratios.

    `rows` are those of one GPU. Rows of a sweep do not measure the library's choice and are left out.
    """
    device = device_of(rows[0].gpu)
    jobs: dict[tuple[object, ...], list[Measurement]] = defaultdict(list)
    for row in latest(rows).values():
        if row.provider != "tritonconv" or not row.setting:
            jobs[row.job].append(row)
    newest: dict[Work, list[Measurement]] = {}  # rows of the versions of torch and Triton that were measured last
    for members in sorted(jobs.values(), key=lambda members: max(row.when for row in members)):
        if any(row.provider == "tritonconv" for row in members):
            newest[work_of(members[0])] = members
    entries = [_compared(members, device) for members in newest.values()]
    return sorted(entries, key=lambda entry: -1.0 if entry.ratio is None else entry.ratio)


def _compared(members: Sequence[Measurement], device: Device) -> Compared:
    own = [row for row in members if ours(row)]
    torch = [row for row in members if row.provider == "cudnn" and row.ok]
    work = work_of(members[0])
    named = next((row for row in members if row.layer), members[0])
    line = goal_lines().get(work) or Line(work, named.suite, named.layer)
    row, stale = _ours_today(own, device)
    others = tuple(r for r in members if r.ok and r.provider not in ("tritonconv", "cudnn"))
    failed = tuple(r for r in members if not r.ok and (r.provider != "tritonconv" or row is None))
    verdict = Verdict(
        line=line,
        ours=row,
        torch=min(torch, key=microseconds, default=None),
        default=next((r for r in torch if r.setting == r.layout), None),
        others=others,
        failed=failed,
    )
    return Compared(verdict, kind_of(work.problem, work.transposed), stale)


def _ours_today(own: Sequence[Measurement], device: Device) -> tuple[Measurement | None, str]:
    """(row, why it is stale). The row is that of the plan and the kernels that the library uses today, else the last one."""
    if not own:
        return None, ""
    plan = str(select(call_of_row(own[0]), device))
    last = max(own, key=lambda row: (fresh(row) and row.plan == plan, fresh(row), row.when))
    return last, "" if fresh(last) and last.plan == plan else "plan" if fresh(last) else "kernels"


@dataclass(frozen=True)
class Group:
    """Several passes: geometric means over those with a ratio."""

    name: str
    members: tuple[Compared, ...]

    @property
    def ratios(self) -> list[float]:
        return [m.ratio for m in self.members if m.ratio is not None]

    @property
    def ratio(self) -> float:
        return geometric_mean(self.ratios)

    @property
    def default(self) -> float:
        """The geometric mean of torch's time in its default setting over ours."""
        ratios = [m.verdict.against(m.verdict.default) for m in self.members]
        return geometric_mean(ratio for ratio in ratios if ratio is not None)

    @property
    def lowest(self) -> float | None:
        """The lowest ratio among passes for which torch takes long enough that the floor applies."""
        return min((m.ratio for m in self.members if m.ratio is not None and m.counts), default=None)

    @property
    def share(self) -> float:
        return geometric_mean(m.share for m in self.members if m.share is not None)

    @property
    def line(self) -> Line:
        """The line whose goal and floor are those of the group, where the group has a goal."""
        return self.members[0].verdict.line

    @property
    def stale(self) -> int:
        return sum(bool(m.stale) for m in self.members)


def grouped(entries: Iterable[Compared], key: str) -> list[Group]:
    """The entries grouped by "goal" (in the order of the goals) or by "suite" (by name). Entries without one are left out."""
    by_group: dict[str, list[Compared]] = {}
    if key == "goal":
        by_group = {line.group: [] for line in goal_lines().values()}
    for entry in entries:
        line = entry.verdict.line
        if name := line.group if key == "goal" else line.suite:
            by_group.setdefault(name, []).append(entry)
    names = by_group if key == "goal" else sorted(by_group)
    return [Group(name, tuple(by_group[name])) for name in names if by_group[name]]
