"""`python -m bench chains`: every chain checked against float64, then timed in turns with torch's calls and with a copy.

A result may be twice as far from the chain in float64 as torch's own in the same dtype. The copy reads half and writes half of
the bytes that the chain must move, which shows what memory allows. A step is forward and backward, with all inputs' gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table

from bench.chains import blocks, causal, deform, images, padded, predicted, separable, video, windows
from bench.chains.chain import TORCH, Chain, Way, whole
from bench.machine import REPLAY_SECONDS, Captured, Gpu, Machine, quantiles
from bench.measure import MOST_REPETITIONS, one_line
from bench.model import FLOOR, distance
from bench.provenance import results_dir
from bench.providers.cudnn import benchmark
from bench.records import write
from bench.run import DTYPES
from bench.work import float32_in
from costmodel.device import Device

#: The lists whose predicted times docs show.
PREDICTED = (deform.chains, padded.chains, windows.chains)
#: The lists of chains.
LISTS: tuple[Callable[[torch.dtype, Device], Iterator[Chain]], ...] = (
    causal.chains,
    video.chains,
    separable.chains,
    blocks.chains,
    images.chains,
    *PREDICTED,
)
COPY = "copy"


@dataclass(frozen=True)
class Timing:
    """One way's time per call in device microseconds with a cold L2 cache. Where `ok` is False there are no times; `note` says
    why."""

    suite: str
    layer: str
    step: bool  # True: forward and backward; False: forward only
    way: str
    compulsory: int  # bytes that the forward pass moves at least
    ok: bool = False
    error: float | None = None  # distance from the float64 result, relative to its norm
    median_us: float | None = None
    p10_us: float | None = None
    p90_us: float | None = None
    predicted_us: float | None = None  # predicted time of the forward pass
    note: str = ""


def step_of(way: Way, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The gradients of all inputs as one vector, with the output's own value as the output's gradient."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    y = way(*leaves)
    return torch.cat([g.flatten() for g in torch.autograd.grad(y, leaves, y.detach())])


def forward_of(way: Way, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    with torch.no_grad():
        return way(*tensors)


def measure(chain: Chain, step: bool, machine: Machine) -> list[Timing]:
    """The timings of all ways of a chain, then of the copy."""
    run = step_of if step else forward_of
    count = 2 * machine.model.l2_bytes // chain.input_bytes + 1
    sets = chain.sets(count, machine.device)
    roof = chain.compulsory / (1e9 * machine.model.bandwidth)
    calls = count * min(MOST_REPETITIONS, math.ceil(REPLAY_SECONDS / (count * roof)))
    exact = chain.ways[TORCH] if step or chain.exact is None else chain.exact
    seen = whole if step else chain.seen
    blank = Timing(chain.suite, chain.layer, step, "", chain.compulsory)
    try:
        want = run(exact, tuple(t.double() for t in sets[0]))
    except Exception as raised:  # most likely too large in float64; the other chains go on
        machine.release()
        return [replace(blank, way=name, note=f"no exact result: {one_line(raised)}") for name in chain.ways]
    rows: list[Timing] = []
    ready: list[tuple[int, Captured]] = []
    allowed = FLOOR
    for name, way in chain.ways.items():
        row = replace(
            blank, way=name, predicted_us=1e6 * chain.predicted[name] if name in chain.predicted and not step else None
        )
        try:
            captured = machine.capture(lambda i, way=way: run(way, sets[i]), count, calls)  # type: ignore[misc]
            for output in captured.outputs:
                output.fill_(math.nan)
            captured.replay()
            error = distance(seen(captured.outputs[0]).double(), want)
            if name == TORCH and error < math.inf:
                allowed = max(FLOOR, 2 * error)
            if error > allowed:
                row = replace(row, note=f"{error:.2e} off, {allowed:.2e} allowed")
            elif not all(bool(output.isfinite().all()) for output in captured.outputs):
                row = replace(row, note="a result was left unwritten")
            else:
                row = replace(row, ok=True, error=error)
                ready.append((len(rows), captured))
        except Exception as raised:  # a way that fails must not hide the others
            row = replace(row, note=one_line(raised))
            machine.release()
        rows.append(row)
    ready.append((len(rows), copy(chain, machine, calls)))
    rows.append(replace(blank, way=COPY, ok=True))
    times = machine.replays([captured for _, captured in ready])
    for (i, captured), seconds in zip(ready, times, strict=True):
        spread = quantiles([1e6 * second / captured.calls for second in seconds])
        rows[i] = replace(rows[i], median_us=spread.median, p10_us=spread.p10, p90_us=spread.p90)
    machine.release()
    return rows


def copy(chain: Chain, machine: Machine, calls: int) -> Captured:
    """A copy that reads half and writes half of the compulsory bytes. Its sources, used in turn, exceed the L2 cache twice."""
    half = max(1, chain.compulsory // 2)
    count = 2 * machine.model.l2_bytes // half + 1
    sources = [torch.zeros(half, dtype=torch.uint8, device=machine.device) for _ in range(count)]
    return machine.capture(lambda i: sources[i].clone(), count, max(calls, count))


def table(rows: list[Timing], title: str) -> Table:
    """The table. A ratio is the time of torch's fastest setting over the way's; a share is the copy's time over the way's."""
    shown = Table(title=title, box=HORIZONTALS, padding=(0, 1, 0, 0))
    for heading in ("", "way", "µs", "p10", "p90", "predicted", "over torch", "of a copy", "error"):
        shown.add_column(heading, justify="left" if heading in ("", "way") else "right")
    least: dict[tuple[str, str, str], float] = {}  # least time of torch's settings, and of the copy
    for row in rows:
        word = row.way.split()[0]
        if row.median_us is not None and word in (TORCH, COPY):
            place = row.suite, row.layer, word
            least[place] = min(row.median_us, least.get(place, math.inf))
    for row in rows:
        name = f"{row.suite} {row.layer}" if row.way == TORCH else ""
        if row.median_us is None or row.p10_us is None or row.p90_us is None:
            shown.add_row(name, row.way, "failed")
            continue
        theirs, floor = (least.get((row.suite, row.layer, word)) for word in (TORCH, COPY))
        ratio = "" if theirs is None else f"{theirs / row.median_us:.2f}x"
        part = "" if floor is None else f"{floor / row.median_us:.0%}"
        error = "" if row.error is None else f"{row.error:.1e}"
        took = (f"{us:.1f}" for us in (row.median_us, row.p10_us, row.p90_us))
        prediction = "" if row.predicted_us is None else f"{row.predicted_us:.1f}"
        shown.add_row(name, row.way, *took, prediction, ratio, part, error)
    return shown


def selected(suite: str, dtype: torch.dtype, device: Device) -> list[Chain]:
    """The chains whose suite matches a shell pattern. Raises ValueError where none does."""
    every = [chain for chains in LISTS for chain in chains(dtype, device)]
    matching = [chain for chain in every if fnmatchcase(chain.suite, suite)]
    if not matching:
        suites = ", ".join(sorted({chain.suite for chain in every}))
        raise ValueError(f"no chain matches suite {suite!r}; the suites are {suites}")
    return matching


def summary() -> str:
    """docs' table of predicted times."""
    return predicted.summary(PREDICTED)


def command(
    suite: str, step: bool, dtype: str, minutes: float | None, out: Path | None, machine: Machine | None = None
) -> None:
    """What `python -m bench chains` does. Raises ValueError for an unknown suite or dtype, SystemExit(1) where a way failed."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    machine, console = machine or Gpu(), Console()
    words = "step" if step else "forward"
    path = (out or results_dir()) / f"chains-{words}-{dtype}.json"
    began, rows, done = machine.now(), [], 0
    with float32_in("tf32" if dtype == "tf32" else "ieee"), benchmark(True):
        chosen = selected(suite, getattr(torch, DTYPES[dtype]), machine.model)  # predicts for the precision that is set here
        for chain in chosen:
            if minutes is not None and machine.now() - began > 60 * minutes:
                break
            rows += measure(chain, step, machine)
            done += 1
            write(path, [{**asdict(row), "dtype": dtype, **machine.facts} for row in rows])
    console.print(table(rows, f"{words}, {dtype}, {machine.facts['gpu']}"))
    failed = [row for row in rows if not row.ok]
    for row in failed:
        console.print(f"{row.suite} {row.layer}, {row.way}: {row.note}", style="red", soft_wrap=True)
    console.print(f"{done} of {len(chosen)} chains. Rows: {path}", soft_wrap=True)
    if failed:
        raise SystemExit(1)
