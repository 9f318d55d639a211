"""`python -m bench calibrate`: a device's table of constants, intervals and fastest plans, from rows.

A third of the problems, drawn with a seed, is held out. A family's constants are fitted to the rows of the others (`bench.fit`)
and kept where the held-out rows' median and mean error is no larger than with the defaults. Its interval is the 5th and 95th
percentile of measured over predicted time of the held-out rows.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table as RichTable

from bench.calls import call_of_row, device_of, fresh, ours
from bench.compared import by_gpu, committed
from bench.fit import Sample, absolute_errors, fit, log_ratios, with_constants
from bench.rows import Measurement, latest, load
from costmodel import calibration
from costmodel.calibration import Calibration, Measured, Table
from costmodel.device import Device
from costmodel.fingerprints import family_hash, model_hash
from costmodel.plan import call_key, candidates, select
from costmodel.tiling import Call, Plan

SEED = 0
HELD_OUT = 1 / 3
#: Fewest rows to fit and to hold out. With fewer, a family keeps its default constants and the prior interval.
LEAST_FITTED, LEAST_HELD_OUT = 30, 20


@dataclass(frozen=True)
class Errors:
    """The median and mean of |predicted / measured - 1| over held-out rows."""

    median: float
    mean: float

    @classmethod
    def of(cls, samples: Sequence[Sample], device: Device) -> Errors:
        """The errors of the predictions for `samples` by the constants that `device` has."""
        errors = absolute_errors(samples, device)
        return cls(float(np.median(errors)), float(np.mean(errors)))


@dataclass(frozen=True)
class Fit:
    """One family: how many rows it has, its constants, and the errors of held-out rows with the defaults and with these."""

    family: str
    fitted: int
    held_out: int
    constants: Calibration
    before: Errors | None
    after: Errors | None


def split(rows: Sequence[Measurement], seed: int = SEED) -> tuple[list[Measurement], list[Measurement]]:
    """(rows to fit, rows held out). All rows of a problem are on the same side."""
    problems = sorted({str(row.problem) for row in rows})
    random.Random(seed).shuffle(problems)
    kept_back = set(problems[: round(len(problems) * HELD_OUT)])
    return [r for r in rows if str(r.problem) not in kept_back], [r for r in rows if str(r.problem) in kept_back]


def samples_of(rows: Iterable[Measurement]) -> list[Sample]:
    """Plans, calls and seconds of good rows."""
    return [Sample(call_of_row(row), Plan.parse(row.plan), row.median_us / 1e6) for row in rows if row.median_us]


def fit_family(family: str, rows: Sequence[Measurement], device: Device, seed: int = SEED) -> Fit:
    """Constants of a family on a device from its rows there."""
    train, test = map(samples_of, split(rows, seed))
    default = with_constants(device, family, Calibration())
    if len(train) < LEAST_FITTED or len(test) < LEAST_HELD_OUT:
        return Fit(family, len(train), len(test), Calibration(), None, None)
    constants = fit(train, device, family)
    before, after = Errors.of(test, default), Errors.of(test, with_constants(device, family, constants))
    if after.median > before.median or after.mean > before.mean:
        constants, after = Calibration(), before
    ratios = np.exp(log_ratios(test, with_constants(device, family, constants)))
    low, high = (float(q) for q in np.quantile(ratios, (0.05, 0.95)))
    source = f"where 90 % of {len(test)} held-out rows lay, x{low:.2f} to x{high:.2f}: {where(rows)}"
    return Fit(family, len(train), len(test), replace(constants, low=low, high=high, source=source), before, after)


def where(rows: Sequence[Measurement]) -> str:
    """Words on the GPU, the versions and the kernels of rows."""

    def several(name: str) -> str:
        return ", ".join(sorted({str(getattr(row, name)) for row in rows}))

    return f"{several('gpu')}, torch {several('torch')}, Triton {several('triton')}, kernels {rows[0].family_hash[:7]}"


def fastest_plans(rows: Iterable[Measurement], device: Device) -> dict[str, tuple[str, str]]:
    """`call_key` -> (plan, hash of its family), for calls where a plan was clearly faster than the predicted choice."""
    by_call: dict[Call, dict[str, Measurement]] = defaultdict(dict)
    for row in rows:
        by_call[call_of_row(row)][row.plan] = row
    plans = {}
    for call, measured in by_call.items():
        best = min(measured.values(), key=lambda row: row.median_us or np.inf)
        chosen = measured.get(str(select(call, device)))
        if chosen is None or best is chosen or best.p90_us is None or chosen.p10_us is None:
            continue
        if best.p90_us < chosen.p10_us and Plan.parse(best.plan) in candidates(call, device):
            plans[call_key(call)] = (best.plan, best.family_hash)
    return plans


def calibrate(rows: Iterable[Measurement], gpu: str, seed: int = SEED) -> tuple[Table, list[Fit]]:
    """The table of a GPU, and what went into it. Rows of other GPUs and of kernels that have changed are left out.

    Raises ValueError where no row is left, or for a GPU that is not in the table of devices.
    """
    used = [row for row in latest(rows).values() if row.gpu == gpu and ours(row) and fresh(row)]
    if not used:
        raise ValueError(f"no row of {gpu!r} is a good measurement of the kernels in this tree")
    device = replace(device_of(gpu), calibrations=(), fastest={})
    by_family: dict[str, list[Measurement]] = defaultdict(list)
    for row in used:
        by_family[row.family].append(row)
    fits = [fit_family(family, members, device, seed) for family, members in sorted(by_family.items())]
    families = {f.family: Measured(family_hash(f.family), model_hash(), f.constants) for f in fits if f.before is not None}
    table = Table(device.name, families)
    return replace(table, plans=fastest_plans(used, device.calibrated(table))), fits


def shown(fits: Sequence[Fit], table: Table) -> RichTable:
    """Errors before and after, and the constants that are not the defaults."""
    out = RichTable(title=f"{table.device}: held-out error of the predicted time", box=HORIZONTALS, padding=(0, 1, 0, 0))
    out.add_column("family")
    for heading in ("fitted", "held out", "median", "", "mean", "", "interval"):
        out.add_column(heading, justify="right", no_wrap=True)
    out.add_column("constants")
    for f in fits:
        if f.before is None or f.after is None:
            out.add_row(f.family, str(f.fitted), str(f.held_out), *[""] * 5, "too few rows: the defaults")
            continue
        errors = (f.before.median, f.after.median, f.before.mean, f.after.mean)
        interval = f"x{f.constants.low:.2f} to x{f.constants.high:.2f}"
        shown_errors = (f"{e:.1%}" if i % 2 == 0 else f"-> {e:.1%}" for i, e in enumerate(errors))
        out.add_row(f.family, str(f.fitted), str(f.held_out), *shown_errors, interval, words(f.constants))
    return out


def words(constants: Calibration) -> str:
    """The constants that differ from the defaults."""
    changed = [
        f"{name} {getattr(constants, name):.3g}"
        for name in calibration.BOUNDS
        if getattr(constants, name) != getattr(calibration.DEFAULT, name)
    ]
    return ", ".join([*changed, *(f"{name} {value:.3g}" for name, value in constants.shares)]) or "the defaults"


def run(rows: Sequence[Measurement], gpu: str, write: bool, console: Console | None = None) -> Path:
    """Fit, print, and write the table: the package's, or by default the user's own."""
    console = console or Console()
    table, fits = calibrate(rows, gpu)
    console.print(shown(fits, table))
    path = (calibration.package_path if write else calibration.user_path)(table.device)
    if path.is_file():  # host times are measured by themselves
        table = replace(table, host=calibration.read(path).host)
    calibration.write(table, path)
    console.print(f"{len(table.plans)} calls have a plan measured faster than the one of least predicted time")
    console.print(f"table: {path}", soft_wrap=True)
    if not write:
        console.print("TRITONCONV_CALIBRATION=user makes the library take it")
    return path


def command(paths: Sequence[Path], gpu: str, write: bool) -> None:
    """What `python -m bench calibrate` does. Raises ValueError where no GPU, or more than one, of the rows matches `gpu`."""
    rows = list(load(*paths)) if paths else committed()
    if not rows:
        raise ValueError("there are no rows: measure some first, with 'python -m bench sweep'")
    names = [name for name in by_gpu(rows) if gpu.lower() in name.lower()]
    if len(names) != 1:
        raise ValueError(f"gpu {gpu!r} fits {len(names)} of the rows' GPUs, {', '.join(by_gpu(rows))}: name one of them")
    run(rows, names[0], write)
