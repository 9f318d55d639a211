"""`python -m bench validate --choice`: how far a chosen plan is from the best of its candidates, by counts of executed code.

The chooser estimates what a trip of a kernel's main loop costs. Here the code of a plan is executed on a small problem of the
same channels and taps, and its instructions, lines of global memory and wavefronts of shared memory are counted per program.
The chip's time with these counts in the place of the estimates is the counted time (`bench.compiled.counted_time`). Regret is
the counted time of the chosen plan over the least among the candidates; Origami (AMD's selection of matrix products by
arithmetic) is judged in this way.

Where a program's work depends on batch and image (weight gradients, depthwise kernels), counts are per trip of its loop.
Counted times are modelled, not measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import triton

from bench.compiled import store
from bench.compiled.chosen import Chosen, chosen
from bench.compiled.counted_time import Counts, Timed, timed, trips
from bench.compiled.plans import operands
from bench.compiled.source import is_shared
from bench.executor.driver import Executor, Launched, install, uninstall
from bench.providers.ours import call_of
from bench.report import markdown_table
from bench.work import Work
from bench.workloads import load
from bench.workloads.lists import line_of, spread
from costmodel.device import DEVICES, Device
from costmodel.families.depthwise import DepthwisePlan
from costmodel.families.matrix import MatrixPlan
from costmodel.plan import candidates, predict, select
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Plan
from tritonconv import host, launch

ROWS = store.DATA / "choice.jsonl"
PAGE = Path(__file__).parent.parent.parent / "docs" / "choice.md"
DEVICE = "NVIDIA H200"
DTYPE = "float16"
#: The plans whose code is counted, with what they are called in the page.
KINDS: dict[type[Plan], str] = {MatrixPlan: "matrix products", DepthwisePlan: "depthwise kernels"}
#: Layers per pass and kind, spread over the workloads; the most candidates of each, and how far above the least predicted time
#: they are.
LAYERS, CANDIDATES, WITHIN = 16, 8, 2.0
#: Trips of a weight gradient's program in the two launches whose difference is counted.
TRIPS = (1, 12)
#: Multiply-adds above which no problem is executed, by the kind of plan: depthwise kernels take an instruction for 32 of them.
MOST_MACS: dict[type[Plan], float] = {MatrixPlan: 2e9, DepthwisePlan: 3e8}


@dataclass(frozen=True)
class ChoiceRow:
    """What one plan of one call does. Counts are of one program of its main kernel, on average over a launch of `trips` trips;
    0 says that the program does the same on every batch and image."""

    layer: str
    device: str
    which: str
    problem: str
    plan: str
    instructions: float  # of warps
    lines: float  # of 128 bytes of global memory
    wavefronts: float  # of shared memory
    kernel: str
    triton: str
    source: str  # `store.source_of` the kernel
    trips: float = 0.0

    @property
    def counts(self) -> Counts:
        return Counts(self.instructions, self.lines, self.wavefronts, self.trips)

    @property
    def current(self) -> bool:
        return self.triton == store.pinned_triton() and self.source == store.source_of([(self.kernel, "")])


def lines() -> Iterator[tuple[str, Work]]:
    """(name, work) of every pass of every convolution among the workloads."""
    for which in Pass:
        for layer in load():
            if layer.op.startswith("conv"):
                work = line_of(layer, which, DTYPE).work
                yield f"{layer.suite}/{layer.layer or work.problem}", work


def works() -> list[tuple[str, Work]]:
    """The calls to count: lines spread over those that each kind serves on the device in each pass."""
    device = DEVICES[DEVICE]
    served: dict[tuple[Pass, type[Plan]], list[tuple[str, Work]]] = {(which, kind): [] for which in Pass for kind in KINDS}
    for name, work in lines():
        plan = select(call_of(work), device)
        for kind in KINDS:
            if isinstance(plan, kind):
                served[work.which, kind].append((name, work))
    return [line for group in served.values() for line in spread(group, LAYERS)]


def plans_of(work: Work, device: Device) -> list[Plan]:
    """The chosen plan, then other candidates that can be counted and are predicted not much slower, the quickest first."""
    call = call_of(work)
    best = select(call, device)
    others = sorted(
        (predict(call, plan, device).seconds, str(plan), plan)
        for plan in candidates(call, device)
        if isinstance(plan, tuple(KINDS)) and str(plan) != str(best)
    )
    least = predict(call, best, device).seconds
    return [best, *(plan for time, _, plan in others if time <= WITHIN * least)][:CANDIDATES]


def launched(code: Chosen, device: Device, executor: Executor) -> Launched:
    """The main kernel of a plan, executed."""
    heard: list[Launched] = []
    executor.listeners.append(heard.append)
    try:
        host.use(device)
        launch.execute(code.work.which, code.work.problem, *operands(code), str(code.plan))
    finally:
        executor.listeners.remove(heard.append)
    main = [one for one in heard if not is_shared(one.program.name)]
    return max(main, key=lambda one: one.execution.executed)


def counted(work: Work, plan: Plan, device: Device, executor: Executor) -> tuple[Counts, str]:
    """(counts, name of the main kernel) of a plan. Raises ValueError where that would take too long.

    Depthwise kernels see the layer's own image, and one of its images, or for weight gradients as many as give a program its
    trips. A matrix product sees the smallest image that the same code computes; for a weight gradient the difference of a long
    and a short launch is counted, which leaves out what happens before and after the loop."""
    code = chosen(work, False, device, str(plan))
    if isinstance(plan, DepthwisePlan):
        problem = replace(work.problem, batch=1)
        if plan.which == Pass.WGRAD:
            problem = _of_trips(problem, plan, min(4, trips(work.problem, plan)))
        one = launched(_on(code, problem), device, executor)
        return _per_program(one, trips(problem, plan)), one.program.name
    if plan.which != Pass.WGRAD:
        one = launched(_on(code, code.work.problem), device, executor)
        return _per_program(one, 0.0), one.program.name
    problems = [_of_trips(code.work.problem, plan, least) for least in TRIPS]
    short, long = (launched(_on(code, problem), device, executor) for problem in problems)
    first, last = (_per_program(one, trips(problem, plan)) for one, problem in zip((short, long), problems, strict=True))
    if last.trips == first.trips:
        raise ValueError(f"a longer loop than {last.trips:g} trips takes too many multiply-adds")
    return last.beyond(first), long.program.name


def most_macs(plan: Plan) -> float:
    """Multiply-adds above which a problem is not executed under a plan."""
    return next(limit for kind, limit in MOST_MACS.items() if isinstance(plan, kind))


def _on(code: Chosen, problem: ConvProblem) -> Chosen:
    """The same code on another problem."""
    if problem.macs > most_macs(code.plan):
        raise ValueError(f"{problem} takes {problem.macs:.3g} multiply-adds, too many to execute")
    return replace(code, work=replace(code.work, problem=problem))


def _of_trips(problem: ConvProblem, plan: Plan, least: float) -> ConvProblem:
    """The problem with the smallest batch, in powers of two, whose programs take at least so many trips."""
    while trips(problem, plan) < least and 2 * problem.macs <= most_macs(plan):
        problem = replace(problem, batch=2 * problem.batch)
    return problem


def _per_program(one: Launched, n_trips: float) -> Counts:
    done, programs = one.execution, math.prod(one.grid)
    lines, wavefronts = float(done.lines.sum()), float(done.wavefronts.sum())
    return Counts(done.executed / programs, lines / programs, wavefronts / programs, n_trips)


def row_of(layer: str, work: Work, plan: Plan, device: Device, counts: Counts, kernel: str) -> ChoiceRow:
    """The row of a plan."""
    return ChoiceRow(
        layer=layer,
        device=device.name,
        which=str(plan.which),
        problem=str(work.problem),
        plan=str(plan),
        instructions=round(counts.instructions, 1),
        lines=round(counts.lines, 1),
        wavefronts=round(counts.wavefronts, 1),
        kernel=kernel,
        triton=triton.__version__,
        source=store.source_of([(kernel, "")]),
        trips=counts.trips,
    )


def timed_row(row: ChoiceRow, work: Work) -> Timed:
    """The times of a row's plan."""
    return timed(call_of(work), Plan.parse(row.plan), row.counts, DEVICES[row.device])


def rows() -> list[ChoiceRow]:
    """The last row of each plan of each call."""
    return list({(row.problem, row.which, row.plan): row for row in store.load(ROWS, ChoiceRow)}.values())


def run(report: Callable[[str], None]) -> None:
    """Counts what has no current row; a run that is cut short goes on where it stopped."""
    device = DEVICES[DEVICE]
    have = {(row.problem, row.which, row.plan) for row in rows() if row.current}
    executor = install(device.capability)
    try:
        for layer, work in works():
            for plan in plans_of(work, device):
                if (str(work.problem), str(work.which), str(plan)) in have:
                    continue
                try:
                    row = row_of(layer, work, plan, device, *counted(work, plan, device, executor))
                except ValueError as error:
                    report(f"{layer} {plan}: left out, {error}")
                    continue
                store.append(ROWS, [row])
                times = timed_row(row, work)
                report(f"{layer} {plan}: predicted {1e6 * times.predicted:.1f} us, counted {1e6 * times.counted:.1f} us")
    finally:
        host.use(None)
        uninstall()


@dataclass(frozen=True)
class Regret:
    """How good one choice is by counted times. `plans` are all plans of the call that were counted."""

    layer: str
    which: str
    chosen: Timed
    plans: tuple[Timed, ...]

    @property
    def best(self) -> Timed:
        return min(self.plans, key=lambda plan: plan.counted)

    @property
    def ratio(self) -> float:
        """The chosen plan's counted time over the least."""
        return self.chosen.counted / self.best.counted


def regrets(given: Iterable[ChoiceRow]) -> list[Regret]:
    """The regret of every call of which the chosen plan and at least one other were counted, the largest first."""
    device, judged = DEVICES[DEVICE], []
    rows_of: dict[tuple[str, str, str], list[ChoiceRow]] = {}
    for row in given:
        rows_of.setdefault((row.layer, row.which, row.problem), []).append(row)
    for name, work in lines():
        counted = rows_of.pop((name, str(work.which), str(work.problem)), ())
        if not counted:
            continue
        best = str(select(call_of(work), device))
        plans = tuple(timed_row(row, work) for row in counted)
        first = next((plan for plan in plans if plan.plan == best), None)
        if first is not None and len(plans) > 1:
            judged.append(Regret(name, str(work.which), first, plans))
    return sorted(judged, key=lambda regret: -regret.ratio)


def summary(judged: Sequence[Regret]) -> str:
    """The table of regret by pass and kind of the chosen plan."""
    cells = []
    for kind, name in KINDS.items():
        for which in Pass:
            group = [one for one in judged if one.which == str(which) and isinstance(Plan.parse(one.chosen.plan), kind)]
            if group:
                cells.append((f"{which}, {name}", *figures(group)))
    header = (
        "pass and kind",
        "calls",
        "plans",
        "best chosen",
        "regret, median",
        "mean",
        "most",
        "counted / predicted, 5 to 95 %",
    )
    return markdown_table(header, [*cells, ("all", *figures(judged))])


def figures(judged: Sequence[Regret]) -> tuple[str, ...]:
    """The cells of a row of `summary`."""
    ratios = np.array([regret.ratio for regret in judged])
    off = np.array([plan.counted / plan.predicted for regret in judged for plan in regret.plans])
    spans = f"{np.quantile(off, 0.05):.2f} to {np.quantile(off, 0.95):.2f}"
    regret = (f"{value:.2f}" for value in (np.median(ratios), np.mean(ratios), ratios.max()))
    return str(len(judged)), str(len(off)), str(int((ratios <= 1).sum())), *regret, spans


def page(given: Sequence[ChoiceRow]) -> str:
    """docs/choice.md."""
    judged = regrets(given)
    plans = sum(len(regret.plans) for regret in judged)
    table = [
        (
            f"{regret.ratio:.2f}",
            regret.layer,
            regret.which,
            str(len(regret.plans)),
            f"`{regret.chosen.plan}`",
            f"{1e6 * regret.chosen.counted:.1f}",
            regret.chosen.bound,
            f"`{regret.best.plan}`",
            f"{1e6 * regret.best.counted:.1f}",
        )
        for regret in judged
    ]
    header = ("regret", "layer", "pass", "plans", "chosen", "counted us", "bound", "best", "counted us")
    paragraphs = [
        "# The choice of plans, by counted times",
        f"`python -m bench validate --choice` writes this page: {plans} plans of {len(judged)} calls in {DTYPE} on an "
        f"{DEVICE}, each executed on a CPU as Triton {store.pinned_triton()} compiled it. The counted time is the cost "
        "model's, with the instructions, lines and wavefronts of a program as they were counted in place of the estimates that "
        "the choice is made by. **It is modelled, not measured**: no GPU has run these kernels. Regret is the counted time of "
        "the chosen plan over the least among the candidates. The last column of the first table spans nine plans in ten.",
        summary(judged),
        f"Candidates are plans of matrix products and depthwise kernels that are predicted to take at most {WITHIN:g} times "
        f"the chosen plan's time, {CANDIDATES} at most. Calls for which the band of a large filter is chosen are left out. "
        "Where a program's work depends on batch and image, as it does in weight gradients and depthwise kernels, counts are "
        "taken per trip of its loop.",
        markdown_table(header, table),
    ]
    return "\n\n".join(paragraphs) + "\n"


def command(report: Callable[[str], None]) -> None:
    """Counts what is missing and writes the page."""
    run(report)
    PAGE.write_text(page(rows()), "utf-8")
    report(f"wrote {PAGE}")
