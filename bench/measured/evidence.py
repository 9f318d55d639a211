"""How well predictions agree with published times: errors, ranks and the roofline, as rows from which the page is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from bench.choice import spearman
from bench.measured.layers import Published, published, table
from bench.measured.library import FROM, held_out_gpu, held_out_half, in_layout
from bench.measured.networks import DTYPE, Run, Traced
from bench.measured.rows import Sample, by_gpu, by_layer, held_out, samples
from costmodel.bounds import roofline
from costmodel.count import Cost, cost
from costmodel.device import Device
from costmodel.forecast import predict
from costmodel.library.terms import kind_of

#: Number of networks for which this package's own prediction is made, because planning every convolution takes time.
SAMPLE = 64


@dataclass(frozen=True)
class Error:
    """Errors of predicted against measured times: median, mean and 90th percentile of the relative error, and the correlation
    of the ranks (NaN for fewer than 8 times)."""

    what: str
    rows: int
    median: float
    mean: float
    p90: float
    bias: float  # the median of predicted over measured
    rank: float

    @classmethod
    def of(cls, what: str, predicted: Sequence[float], measured: Sequence[float]) -> Error:
        """The errors of predicted and measured seconds, in the same order, in a row of the table that is named `what`."""
        ratio = np.array(predicted) / np.array(measured)
        off = np.abs(ratio - 1)
        rank = spearman(np.array(predicted), np.array(measured)) if len(off) >= 8 else math.nan
        quantile = float(np.quantile(off, 0.9))
        return cls(what, len(off), float(np.median(off)), float(off.mean()), quantile, float(np.median(ratio)), rank)


@dataclass(frozen=True)
class Below:
    """The rows of a GPU that are below the roofline. `named`: the source names Winograd or FFT. `fast`: cuDNN has such an
    algorithm for the filter. `cached`: the operands fit L2."""

    gpu: str
    unit: str
    rows: int
    below: int
    named: int
    fast: int
    cached: int
    least: float  # the least measured time over roofline


def least_seconds(row: Published) -> float:
    """The roofline of all passes in a row, on the FMA units where float32 is not TF32."""
    spent = [cost(row.problem, which, dtype=row.dtype) for which in row.passes]
    return sum(roofline(part, row.device, row.dtype, precision=row.precision).seconds for part in spent)


def under_the_roofline() -> list[Below]:
    layers: dict[tuple[str, str], list[Published]] = {}
    for row in published():
        layers.setdefault((row.gpu, "tensor cores" if row.tensor_cores else "FMA units"), []).append(row)
    rows = []
    for (gpu, unit), members in sorted(layers.items(), key=lambda item: (item[0][1] == "FMA units", item[0][0])):
        faster = [row for row in members if row.seconds < least_seconds(row)]
        named = [row for row in faster if row.indirect]
        rest = [row for row in faster if not row.indirect]
        fast = [row for row in rest if _has_fast_algorithm(row)]
        cached = [row for row in rest if not _has_fast_algorithm(row) and _cached(row)]
        ratio = min(row.seconds / least_seconds(row) for row in members)
        rows.append(Below(gpu, unit, len(members), len(faster), len(named), len(fast), len(cached), ratio))
    return rows


def _has_fast_algorithm(row: Published) -> bool:
    """Whether cuDNN's Winograd or FFT may have run: they serve filters wider than 1 at stride 1. Gradients do not name what
    ran."""
    p = row.problem
    return p.taps > 1 and max(p.stride) == 1 and p.groups == 1


def _cached(row: Published) -> bool:
    return sum(cost(row.problem, which, dtype=row.dtype).bytes for which in row.passes) < 2 * row.device.l2_bytes


# ---- layers ---------------------------------------------------------------------------------------------------------


@cache
def layer_samples() -> tuple[Sample, ...]:
    """The samples of at least `FROM` seconds, below which a single call is mostly its launch."""
    return tuple(samples(row for row in published() if row.seconds >= FROM))


@cache
def guesses(fold: str) -> tuple[float, ...]:
    """Seconds of each sample as the library term predicts them without the sample's fold, "layer" or "gpu"."""
    given = layer_samples()
    guesses = held_out(given, {"layer": by_layer, "gpu": by_gpu}[fold])
    return tuple(s.base * math.exp(g.log_ratio) + s.call for s, g in zip(given, guesses, strict=True))


@cache
def ours(row: Published) -> float:
    """Seconds that this package's plan is predicted to take on channels-last tensors, uncalibrated; NaN where none runs."""
    try:
        passes = [predict(row.problem, w, None, row.device, dtype=row.dtype, precision=row.precision) for w in row.passes]
    except ValueError:
        return math.nan
    return sum(prediction.seconds for prediction in passes)


def layer_errors(group: Callable[[Sample], str | None]) -> list[tuple[str, Error, Error, Error]]:
    """(group, errors of the roofline, of the library term with layers held out, and with the GPU held out)."""
    places: dict[str, list[int]] = {}
    for i, sample in enumerate(layer_samples()):
        if (name := group(sample)) is not None:
            places.setdefault(name, []).append(i)
    rows = []
    for name, members in places.items():
        measured = [layer_samples()[i].row.seconds for i in members]
        roof = [least_seconds(layer_samples()[i].row) for i in members]
        errors = [Error.of(name, predicted, measured) for predicted in (
            roof, [guesses("layer")[i] for i in members], [guesses("gpu")[i] for i in members]
        )]  # fmt: skip
        rows.append((name, errors[0], errors[1], errors[2]))
    return rows


def gpu_of(sample: Sample) -> str:
    unit = {"half": "16 bit", "tf32": "TF32", "fp32": "FMA units"}[sample.seen.arithmetic]
    return f"{sample.row.gpu}, {unit}"


def kind_on_tensor_cores(sample: Sample) -> str | None:
    if not sample.row.tensor_cores:
        return None
    p, kind = sample.row.problem, kind_of(sample.row.problem)
    words = [kind, "3-D"] if p.rank == 3 else [kind]
    words += ["strided"] if max(p.stride) > 1 else []
    words += ["transposed"] if sample.row.transposed else []
    return ", ".join(words)


def our_ratios() -> list[tuple[str, int, float, float]]:
    """(GPU, rows, median of this package's predicted time over the published one, correlation of the ranks), on tensor cores.
    The ratio is no error, because the published times are those of other kernels."""
    by_gpu: dict[str, list[tuple[float, float]]] = {}
    for sample in layer_samples():
        if sample.row.tensor_cores and not math.isnan(mine := ours(sample.row)):
            by_gpu.setdefault(gpu_of(sample), []).append((mine, sample.row.seconds))
    rows = []
    for gpu, pairs in sorted(by_gpu.items()):
        predicted, measured = (np.array(column) for column in zip(*pairs, strict=True))
        rows.append((gpu, len(pairs), float(np.median(predicted / measured)), spearman(predicted, measured)))
    return rows


# ---- networks -------------------------------------------------------------------------------------------------------


def network_errors() -> list[tuple[str, Error]]:
    """Errors by layout and GPU: of the roofline, then of the library term with half of the networks and with a GPU held out."""
    rows = []
    for layout in ("channels_last", "contiguous"):
        given = in_layout(layout)
        for name, pairs in (
            ("roofline of each operator", [(run, network_roofline(run)) for run in given]),
            ("library, other half of the networks", held_out_half(layout)),
            ("library, fitted to the RTX 3090", held_out_gpu(layout, "NVIDIA GeForce RTX 3090")),
            ("library, fitted to the RTX 4090", held_out_gpu(layout, "NVIDIA GeForce RTX 4090")),
        ):
            for gpu in sorted({run.gpu for run, _ in pairs}):
                mine = [(run, seconds) for run, seconds in pairs if run.gpu == gpu]
                words = f"{layout.replace('_', ' ')}, {gpu.removeprefix('NVIDIA GeForce ')}, {name}"
                rows.append((words, Error.of(words, [s for _, s in mine], [run.seconds for run, _ in mine])))
    return rows


def network_roofline(run: Run) -> float:
    """The sum over all operators of the longer of arithmetic and bytes, with nothing fused."""
    return operators_seconds(run.network, run.device, run.batch, lambda spent, device: roofline(spent, device, DTYPE).seconds)


def operators_seconds(network: Traced, device: Device, batch: int, time: Callable[[Cost, Device], float]) -> float:
    total = 0.0
    for problem, which, count in network.convolutions:
        total += count * time(cost(network.at(problem, batch), which, dtype=DTYPE), device)
    for calls, moved, macs in network.others.values():
        spent = Cost(useful_macs=macs * batch // network.batch // calls, bytes=moved * batch // network.batch // calls)
        total += calls * time(spent, device)
    return total


# ---- multiply-adds --------------------------------------------------------------------------------------------------

#: Why timm's published count differs, by the beginning of the network's name.
REASONS = {
    "weight standardisation, which fvcore counts as a batch normalisation of the weights": (
        "nf_", "nfnet", "dm_nfnet", "eca_nfnet", "resnetv2_50x1_bit", "resnetv2_101x1_bit", "resnetv2_152x2_bit", "resnetv2_",
    ),
    "fvcore does not count an LSTM's matrix products": ("sequencer2d",),
    "fvcore counts nothing of padding='same'": ("convmixer",),
    "the published count is of the network with its branches merged": ("ghostnetv3",),
    "the published count is of a network with other layers than its name has now": ("regnety_2560",),
}  # fmt: skip


def macs_beside_timm() -> tuple[int, list[tuple[str, str, float, float]]]:
    """(how many published counts ours agree with by fvcore's rules and to their rounding; for the others network, reason,
    published and ours in G). Raises ValueError for a difference without a reason."""
    agree, others = 0, []
    for line in table("timm_macs"):
        if not line["published_gmacs"] or not (line["bn_elements"] or line["ln_gn_elements"]):
            continue
        counted = {
            name: int(line[name] or 0) for name in ("dense_macs", "bn_elements", "ln_gn_elements", "adaptive_pool_elements")
        }
        ours = counted["dense_macs"] + 2 * counted["bn_elements"] + 5 * counted["ln_gn_elements"]
        giga = (ours + counted["adaptive_pool_elements"]) / 1e9
        published_ = [float(value) for value in line["published_gmacs"].split()]
        if any(abs(giga - value) <= max(0.0051, 0.001 * value) for value in published_):
            agree += 1
            continue
        reason = next((why for why, names in REASONS.items() if line["model"].startswith(names)), None)
        if reason is None:
            raise ValueError(
                f"{line['model']}: {giga:.2f} G multiply-adds here, {published_} published, and no reason is known"
            )
        others.append((f"{line['model']} at {line['img']}", reason, published_[0], giga))
    return agree, others
