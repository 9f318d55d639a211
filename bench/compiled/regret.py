"""`python -m bench validate --choice`: how far a chosen plan is from the best of its candidates, by counts of executed code.

The chooser estimates what a trip of a kernel's main loop costs. Here the code of a plan is executed on a small problem of the
same channels and taps, and its instructions, lines of global memory and wavefronts of shared memory are counted per program.
The chip's time with these counts in the place of the estimates is the counted time. Regret is the counted time of the chosen
plan over the least among the candidates; Origami (AMD's selection of matrix products by arithmetic) is judged in this way.

Only plans of matrix products in fprop and dgrad are counted: there a program's work does not change with batch and image.
Counted times are modelled, not measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import triton

from bench.compiled import store
from bench.compiled.chosen import Chosen, chosen
from bench.compiled.plans import operands
from bench.executor.driver import Executor, Launched, install, uninstall
from bench.providers.ours import call_of
from bench.report import markdown_table
from bench.work import Work
from bench.workloads import load
from bench.workloads.lists import line_of, spread
from costmodel.device import DEVICES, Device
from costmodel.families.matrix import MatrixPlan, arithmetic_of
from costmodel.families.matrix_time import parts, seconds
from costmodel.plan import candidates, predict, select
from costmodel.problem import Pass
from costmodel.tiling import Plan
from costmodel.timing import multiply_clocks
from tritonconv import host, launch

ROWS = store.DATA / "choice.jsonl"
PAGE = Path(__file__).parent.parent.parent / "docs" / "choice.md"
DEVICE = "NVIDIA H200"
DTYPE = "float16"
PASSES = (Pass.FPROP, Pass.DGRAD)
#: Layers per pass, spread over the workloads; the most candidates of each, and how far above the least predicted time they are.
LAYERS, CANDIDATES, WITHIN = 16, 8, 2.0
#: Warp instructions that a multiprocessor issues per clock.
SCHEDULERS = 4


@dataclass(frozen=True)
class ChoiceRow:
    """What one plan of one call does. Counts are of one program of its main kernel, on average over the launch."""

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

    @property
    def current(self) -> bool:
        return self.triton == store.pinned_triton() and self.source == store.source_of([(self.kernel, "")])


@dataclass(frozen=True)
class Timed:
    """A plan with its time in seconds as the choice is made by, and as counted; `bound` takes most clocks of a program."""

    plan: str
    predicted: float
    counted: float
    bound: str


def works() -> list[tuple[str, Work]]:
    """The calls: layers spread over those that matrix products serve on the device."""
    device = DEVICES[DEVICE]
    found: list[tuple[str, Work]] = []
    for which in PASSES:
        served = []
        for layer in load():
            if layer.op.startswith("conv"):
                work = line_of(layer, which, DTYPE).work
                if isinstance(select(call_of(work), device), MatrixPlan):
                    served.append((f"{layer.suite}/{layer.layer or work.problem}", work))
        found += spread(served, LAYERS)
    return found


def plans_of(work: Work, device: Device) -> list[Plan]:
    """The chosen plan, then other candidates of matrix products that are predicted not much slower, the quickest first."""
    call = call_of(work)
    best = select(call, device)
    others = sorted(
        (predict(call, plan, device).seconds, str(plan), plan)
        for plan in candidates(call, device)
        if isinstance(plan, MatrixPlan) and str(plan) != str(best)
    )
    least = predict(call, best, device).seconds
    return [best, *(plan for time, _, plan in others if time <= WITHIN * least)][:CANDIDATES]


def counted(of: Chosen, device: Device, executor: Executor) -> Launched:
    """The main kernel of a plan, executed."""
    heard: list[Launched] = []
    executor.listeners.append(heard.append)
    try:
        host.use(device)
        launch.execute(of.work.which, of.work.problem, *operands(of), str(of.plan))
    finally:
        executor.listeners.remove(heard.append)
    return max(heard, key=lambda one: one.execution.executed)


def row_of(layer: str, work: Work, plan: Plan, device: Device, one: Launched) -> ChoiceRow:
    """What the main kernel did."""
    done, programs = one.execution, math.prod(one.grid)
    return ChoiceRow(
        layer=layer,
        device=device.name,
        which=str(plan.which),
        problem=str(work.problem),
        plan=str(plan),
        instructions=round(done.executed / programs, 1),
        lines=round(float(done.lines.sum()) / programs, 1),
        wavefronts=round(float(done.wavefronts.sum()) / programs, 1),
        kernel=one.program.name,
        triton=triton.__version__,
        source=store.source_of([(one.program.name, "")]),
    )


def timed(row: ChoiceRow, work: Work) -> Timed:
    """The counted time: that of the cost model with a program's clocks as they were counted."""
    call, device = call_of(work), DEVICES[row.device]
    plan = Plan.parse(row.plan)
    if not isinstance(plan, MatrixPlan):
        raise ValueError(f"{row.plan} is no plan of a matrix product")
    kernel, tiles, trips, moved, launches = parts(call, plan, device)
    clocks = {
        "arithmetic": trips * multiply_clocks(plan.tile, arithmetic_of(call, plan), kernel.constants, device),
        "instruction issue": row.instructions / (SCHEDULERS * kernel.constants.issue),
        "cache lines": row.lines,
        "shared memory": row.wavefronts,
    }
    bound = max(clocks, key=lambda name: clocks[name])
    seen = kernel._replace(clocks=clocks[bound] / max(trips, 1), epilogue=0.0)
    counted = seconds(seen, tiles, trips, moved, launches, device)
    return Timed(row.plan, predict(call, plan, device).seconds, counted, bound)


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
                if (str(work.problem), str(work.which), str(plan)) in have or not isinstance(plan, MatrixPlan):
                    continue
                row = row_of(layer, work, plan, device, counted(chosen(work, False, device, str(plan)), device, executor))
                store.append(ROWS, [row])
                times = timed(row, work)
                report(f"{layer} {plan}: predicted {1e6 * times.predicted:.1f} us, counted {1e6 * times.counted:.1f} us")
    finally:
        host.use(None)
        uninstall()


@dataclass(frozen=True)
class Regret:
    """How good one choice is by counted times; `plans` are all that were counted."""

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
    """Of every call whose chosen plan was counted and others too, the largest first."""
    device, found = DEVICES[DEVICE], []
    counted = list(given)
    for layer, work in works():
        best = str(select(call_of(work), device))
        plans = tuple(timed(row, work) for row in counted if (row.problem, row.which) == (str(work.problem), str(work.which)))
        first = next((plan for plan in plans if plan.plan == best), None)
        if first is not None and len(plans) > 1:
            found.append(Regret(layer, str(work.which), first, plans))
    return sorted(found, key=lambda regret: -regret.ratio)


def page(given: Sequence[ChoiceRow]) -> str:
    """docs/choice.md."""
    found = regrets(given)
    ratios = np.array([regret.ratio for regret in found])
    off = np.array([plan.counted / plan.predicted for regret in found for plan in regret.plans])
    table = [
        (
            f"{regret.ratio:.2f}",
            regret.layer,
            regret.which,
            str(len(regret.plans)),
            f"`{regret.chosen.plan}`",
            f"{1e6 * regret.chosen.counted:.1f}",
            f"`{regret.best.plan}`",
            f"{1e6 * regret.best.counted:.1f}",
        )
        for regret in found
    ]
    paragraphs = [
        "# The choice of plans, by counted times",
        f"`python -m bench validate --choice` writes this page: {len(off)} plans of {len(found)} calls in {DTYPE} on an "
        f"{DEVICE}, each executed on a CPU as Triton {store.pinned_triton()} compiled it. The counted time is the cost "
        "model's, with the instructions, lines and wavefronts of a program as they were counted in place of the estimates that "
        "the choice is made by. **It is modelled, not measured**: no GPU has run these kernels.",
        f"The chosen plan is the best of its candidates in {int((ratios <= 1).sum())} of {len(found)} calls. Its regret, "
        f"counted time over the least, is {np.median(ratios):.2f} in the median, {np.mean(ratios):.2f} in the mean and "
        f"{ratios.max():.2f} at most. Counted over predicted time is {np.median(off):.2f} in the median, "
        f"{np.quantile(off, 0.05):.2f} to {np.quantile(off, 0.95):.2f} for nine plans in ten.",
        f"Candidates are those of matrix products that are predicted to take at most {WITHIN:g} times the chosen plan's time, "
        f"{CANDIDATES} at most. Depthwise plans and weight gradients are left out: there the work of a program depends on the "
        "image.",
        markdown_table(("regret", "layer", "pass", "plans", "chosen", "counted us", "best", "counted us"), table),
    ]
    return "\n\n".join(paragraphs) + "\n"


def command(report: Callable[[str], None]) -> None:
    """Counts what is missing and writes the page."""
    run(report)
    PAGE.write_text(page(rows()), "utf-8")
    report(f"wrote {PAGE}")
