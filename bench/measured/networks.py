"""Whole networks that others timed, beside the counts of this project's traces of them."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from bench.measured.layers import HERE, device_of, table
from costmodel.count import Cost
from costmodel.device import Device
from costmodel.library.operators import convolution, other
from costmodel.problem import ConvProblem, Pass

LAYOUTS = {"nhwc": "channels_last", "nchw": "contiguous"}
#: How far a row may differ from a network: share of the parameters, share of the multiply-adds, and G of multiply-adds.
PARAMETERS, MACS, ROUNDED = 0.02, 0.06, 0.01
#: The traces have 16-bit elements, as the timed runs do.
DTYPE = "float16"


@dataclass(frozen=True)
class Traced:
    """A network of timm as `costmodel.trace` recorded it, at one batch size. `others`: operator -> (calls, bytes, useful
    MAC)."""

    model: str
    image: int
    batch: int
    parameters: int
    dense_macs: int  # per image
    convolutions: tuple[tuple[ConvProblem, Pass, int], ...]  # (problem, pass, how often it runs)
    others: Mapping[str, tuple[int, int, int]]

    def at(self, problem: ConvProblem, batch: int) -> ConvProblem:
        """A convolution of the trace at another batch size. Where images are folded into the groups it is unchanged."""
        return replace(problem, batch=batch) if problem.batch == self.batch else problem

    def parts(self, device: Device, batch: int) -> dict[str, float]:
        """The terms in seconds by the name of their weight, at another batch size. Other operators' bytes are assumed to grow
        with it."""
        times: dict[str, float] = defaultdict(float)
        for problem, which, count in self.convolutions:
            for name, seconds in convolution(self.at(problem, batch), which, device, DTYPE, "ieee").items():
                times[name] += count * seconds
        for operator, (calls, moved, macs) in self.others.items():
            spent = Cost(useful_macs=macs * batch // self.batch, bytes=moved * batch // self.batch)
            for name, seconds in other(operator, spent, device, DTYPE, "ieee").items():
                times[name] += calls * seconds if name == "calls" else seconds
        return times


@dataclass(frozen=True)
class Run:
    """A published time of a network's forward pass."""

    network: Traced
    gpu: str
    layout: str
    batch: int
    seconds: float

    @property
    def device(self) -> Device:
        return device_of(self.gpu)


@cache
def traced() -> Mapping[tuple[str, int], Traced]:
    """The traced networks by model and image size. Networks with an unknown operator are left out."""
    with gzip.open(HERE / "data" / "timm_networks.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return {(line["model"], line["img"]): _traced(line) for line in rows if not line["unknown"]}


def _traced(line: Mapping[str, Any]) -> Traced:
    convolutions = []
    for n, c, k, groups, size, kernel, stride, padding, dilation, which, count in line["convolutions"]:
        low_high = tuple((low, high) for low, high in padding)
        sizes = (tuple(size), tuple(kernel), tuple(stride), low_high, tuple(dilation))
        convolutions.append((ConvProblem(n, c, k, groups, *sizes), Pass(which), count))
    others = {name: (calls, moved, macs) for name, (calls, moved, macs) in line["others"].items()}
    return Traced(line["model"], line["img"], line["batch"], line["params"], line["dense_macs"], tuple(convolutions), others)


@cache
def runs() -> tuple[Run, ...]:
    """The published runs of networks that were traced, whose parameters and multiply-adds are those of the trace."""
    return tuple(_runs())


def _runs() -> Iterator[Run]:
    for line in table("timm_inference"):
        network = traced().get((line["model"], int(float(line["img"]))))
        if network is None or not same(network, line):
            continue
        batch = int(float(line["batch"]))
        seconds = batch / float(line["images_per_s"])
        yield Run(network, line["gpu"], LAYOUTS[line["layout"]], batch, seconds)


def same(network: Traced, line: Mapping[str, str]) -> bool:
    """Whether a line is of this network, by its parameters and, where it has them, its multiply-adds."""
    if abs(network.parameters / 1e6 / float(line["params_m"]) - 1) > PARAMETERS:
        return False
    if not line["gmacs"]:
        return True
    published = float(line["gmacs"])
    return abs(network.dense_macs / 1e9 - published) <= MACS * published + ROUNDED


def half(run: Run) -> int:
    """Which half of the networks a run belongs to. All sizes of a model are in the same half."""
    return zlib.crc32(run.network.model.encode()) % 2


# ---- the fit --------------------------------------------------------------------------------------------------------


def fit(given: Sequence[Run]) -> dict[str, float]:
    """The weights of all terms, at least 0, of least absolute relative error.

    They come from multiplicative updates of a reweighted least-squares problem, which keep weights from becoming negative.
    """
    parts = [run.network.parts(run.device, run.batch) for run in given]
    names = sorted({name for part in parts for name in part})
    shares = np.array([[part.get(name, 0.0) / run.seconds for name in names] for part, run in zip(parts, given, strict=True)])
    weights = np.full(len(names), 1.3)
    for _ in range(400):
        times = shares @ weights
        trust = 1 / np.maximum(np.abs(times - 1), 0.03) / np.maximum(times, 1.0)
        weights *= (shares * trust[:, None]).sum(0) / ((shares * (trust * times)[:, None]).sum(0) + 1e-12)
    return {name: float(weight) for name, weight in zip(names, weights, strict=True)}


def predicted(run: Run, weights: Mapping[str, float]) -> float:
    """The predicted seconds of a run, from the weights of its layout."""
    return math.fsum(weights.get(name, 1.0) * part for name, part in run.network.parts(run.device, run.batch).items())
