"""Published times as rows from which similar layers are predicted, and the folds on which predictions are judged."""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from bench.measured.layers import Published
from costmodel.library.alike import Guess, Row, guess
from costmodel.library.terms import Seen, base, seen

#: Seconds around the kernels of a single call that are part of times taken by events: eager, and compiled by Inductor.
CALL = {"eager": 20e-6, "compiled": 60e-6}
#: The least share of a time that remains after `CALL` is subtracted.
LEAST = 0.3


@dataclass(frozen=True)
class Sample:
    """A published time, the key by which it is looked up, and its base time."""

    row: Published
    seen: Seen
    base: float
    call: float

    @property
    def log_ratio(self) -> float:
        kernels = max(self.row.seconds - self.call, LEAST * self.row.seconds)
        return math.log(kernels / self.base)


def samples(rows: Iterable[Published]) -> list[Sample]:
    samples = []
    for row in rows:
        mode = "compiled" if row.mode.startswith("compiled inductor") else "eager"
        what = seen(row.problem, row.passes, row.dtype, row.precision, row.layout, mode)
        seconds = sum(base(row.problem, which, row.device, row.dtype, row.precision)[0] for which in row.passes)
        single = row.file == "kernelbench"
        samples.append(Sample(row, what, seconds, CALL[mode] if single else 0.0))
    return samples


def rows_of(given: Sequence[Sample]) -> list[Row]:
    """One row per layer: the median of each GPU's times, then the mean over the GPUs."""
    by_layer: dict[Seen, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for sample in given:
        by_layer[sample.seen][sample.row.gpu].append(sample.log_ratio)
    return [Row(what, fmean(map(median, gpus.values())), len(gpus)) for what, gpus in by_layer.items()]


def held_out(given: Sequence[Sample], fold_of: Callable[[Sample], object]) -> list[Guess]:
    """The guess of each sample from the samples of other folds."""
    guesses: dict[int, Guess] = {}
    for fold in sorted({str(fold_of(s)) for s in given}):
        rows = rows_of([s for s in given if str(fold_of(s)) != fold])
        known: dict[Seen, Guess] = {}
        for i, sample in enumerate(given):
            if str(fold_of(sample)) == fold:
                if sample.seen not in known:
                    known[sample.seen] = guess(sample.seen, rows)
                guesses[i] = known[sample.seen]
    return [guesses[i] for i in range(len(given))]


def by_layer(sample: Sample) -> int:
    """One of five folds. All rows of a problem are in the same fold."""
    return zlib.crc32(str(sample.row.problem).encode()) % 5


def by_gpu(sample: Sample) -> str:
    """The fold of a GPU's model."""
    return sample.row.device.name
