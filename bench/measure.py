"""Measures one piece of work on one machine: every contender is checked against the exact result and timed in turns."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import torch

from bench.launched import COUNTS
from bench.machine import REPLAY_SECONDS, Captured, Machine, quantiles
from bench.providers import PROVIDERS, Contender, Unserved
from bench.providers.ours import call_of
from bench.rows import Measurement
from bench.tolerance import Expected, share
from bench.work import Line, Work, float32_in
from costmodel.fingerprints import family_hash
from costmodel.plan import predict

MOST_REPETITIONS = 50


@dataclass
class Outcome:
    """The outcome of a line: the identities of its rows in order, the new rows, and the providers that did not take part."""

    line: Line
    identities: list[tuple[object, ...]] = field(default_factory=list)
    rows: list[Measurement] = field(default_factory=list)
    unserved: dict[str, str] = field(default_factory=dict)  # provider -> why
    skipped: str = ""  # why nothing was measured


def describe(line: Line, contender: Contender, machine: Machine) -> Measurement:
    """The row of a contender that has not been measured."""
    work, plan = line.work, contender.plan
    predicted = None if plan is None else 1e6 * predict(call_of(work), plan, machine.model).seconds
    return Measurement(
        problem=work.problem,
        which=work.which,
        transposed=work.transposed,
        dtype=work.dtype,
        precision=work.precision,
        layout=work.layout,
        provider=contender.provider,
        setting=contender.setting,
        plan="" if plan is None else str(plan),
        family="" if plan is None else plan.family,
        family_hash="" if plan is None else family_hash(plan.family),
        median_us=None,
        p10_us=None,
        p90_us=None,
        repeats=0,
        error=None,
        ok=False,
        roofline_us=1e6 * work.roofline_seconds(machine.model),
        predicted_us=predicted,
        suite=line.suite,
        layer=line.layer,
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        **machine.facts,
    )


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def measure(line: Line, providers: Sequence[str], machine: Machine, done: Collection[tuple[object, ...]]) -> Outcome:
    """Measures a line, except for rows whose identities are in `done`."""
    work, outcome = line.work, Outcome(line)
    with float32_in(work.precision):
        contenders: list[tuple[Contender, Measurement]] = []
        for name in providers:
            try:
                contender = PROVIDERS[name](work)
            except Unserved as reason:
                outcome.unserved[name] = str(reason)
                continue
            contenders += [(contender, describe(line, contender, machine)) for contender in contender]
        outcome.identities = [row.identity for _, row in contenders]
        todo = [pair for pair in contenders if pair[1].identity not in done]
        if not todo:
            return outcome
        needed = work.memory(machine.model.l2_bytes, len(todo))
        if needed > machine.memory:
            outcome.skipped = f"needs about {needed / 1e9:.1f} GB, the machine has {machine.memory / 1e9:.1f} GB"
            return outcome
        outcome.rows = race(work, todo, machine)
    machine.release()
    return outcome


def race(work: Work, todo: Sequence[tuple[Contender, Measurement]], machine: Machine) -> list[Measurement]:
    """The rows of all contenders, in their order."""
    sets = work.inputs(work.sets(machine.model.l2_bytes), machine.device)
    want = work.exact(*sets[0])
    calls = len(sets) * min(MOST_REPETITIONS, math.ceil(REPLAY_SECONDS / (len(sets) * work.roofline_seconds(machine.model))))
    rows = [row for _, row in todo]
    ready: dict[int, Captured] = {}
    for i, (contender, row) in enumerate(todo):
        try:
            captured = capture(contender, sets, calls, machine)
            error = checked(captured, want, work)
        except Exception as raised:  # whatever a provider raises, the others go on
            rows[i] = replace(row, note=one_line(raised))
            machine.release()
            continue
        if error <= 1:
            ready[i] = captured
            rows[i] = replace(row, error=error, ok=True)
        else:
            why = f"the error is {error:.3g} times the tolerance"
            rows[i] = replace(row, error=error if math.isfinite(error) else None, note=why)
    del want
    if not ready:
        return rows
    times = machine.replays(list(ready.values()))
    clock = machine.clock_mhz()
    for (i, captured), seconds in zip(ready.items(), times, strict=True):
        deciles = quantiles([1e6 * second / captured.calls for second in seconds])
        rows[i] = replace(
            rows[i],
            median_us=deciles.median,
            p10_us=deciles.p10,
            p90_us=deciles.p90,
            repeats=deciles.count * captured.calls,
            clock_mhz=clock,
        )
    return rows


def capture(contender: Contender, sets: Sequence[tuple[torch.Tensor, torch.Tensor]], calls: int, machine: Machine) -> Captured:
    """Captures `calls` calls in a row, which use the sets in turn."""
    prepared = [contender.prepare(a, b) for a, b in sets]
    before = COUNTS.total()
    with contender.active():
        captured = machine.capture(lambda i: contender.call(*prepared[i]), len(prepared), calls)
    if contender.plan is not None and COUNTS.total() == before:
        raise RuntimeError("no kernel of tritonconv was launched")
    return captured


def checked(captured: Captured, want: Expected, work: Work) -> float:
    """The error of a replay over the tolerance, on the first set; infinite where a result was left unwritten."""
    for result in captured.outputs:
        result.fill_(math.nan)
    captured.replay()
    first = captured.outputs[0]
    if first.shape != want.value.shape:
        raise RuntimeError(f"the result has shape {tuple(first.shape)}, not {tuple(want.value.shape)}")
    if not all(bool(result.isfinite().all()) for result in captured.outputs):
        return math.inf
    return share(first, want, work.tf32)
