"""A stand-in for a GPU: the cost model with hidden constants and noise. Its rows are like measured ones and claim nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

from bench.providers.cudnn import SETTINGS
from bench.providers.ours import call_of
from bench.rows import Measurement
from bench.work import Line, Work
from bench.workloads import Workload
from costmodel import families
from costmodel.calibration import Calibration
from costmodel.device import Device, find_device
from costmodel.fingerprints import family_hash
from costmodel.plan import candidates, predict, select
from costmodel.problem import Pass
from costmodel.tiling import Call, Plan

GPU = "NVIDIA H200"
H200 = replace(find_device("h200"), calibrations=(), fastest={})
HIDDEN = Calibration(dram=0.78, l2=0.8, issue=0.85, latency=850.0, launch=0.6, shares=(("half", 0.72),))
HIDDEN_DEPTHWISE = Calibration(dram=0.7, l2=1.3, issue=0.6, latency=900.0, launch=0.6)


def hidden_device(device: Device = H200) -> Device:
    """The device as it really is, which no test tells the code under test."""
    constants = tuple((family, HIDDEN_DEPTHWISE if family == "depthwise" else HIDDEN) for family in families.every())
    return replace(device, calibrations=constants)


def line_for(layer: Workload, which: Pass) -> Line:
    """Of channels-last tensors in bfloat16."""
    return Line(Work(layer.problem(), which, "bfloat16", transposed=layer.transposed), layer.suite, layer.layer)


def call_for(layer: Workload, which: Pass) -> Call:
    return call_of(line_for(layer, which).work)


class HiddenModel:
    """Measures by the model with hidden constants; `noise` is the standard deviation of the logarithm."""

    def __init__(self, device: Device | None = None, noise: float = 0.03, seed: int = 1) -> None:
        self.device, self.noise, self.random = device or hidden_device(), noise, random.Random(seed)

    def row(self, line: Line, plan: Plan | None = None, **fields) -> Measurement:
        """Of a plan of ours, the library's choice unless one is given."""
        work, call = line.work, call_of(line.work)
        plan = plan or select(call, H200)
        us = 1e6 * predict(call, plan, self.device).seconds * math.exp(self.random.gauss(0.0, self.noise))
        values = {
            "problem": work.problem,
            "which": work.which,
            "transposed": work.transposed,
            "dtype": work.dtype,
            "precision": work.precision,
            "layout": work.layout,
            "provider": "tritonconv",
            "plan": str(plan),
            "family": plan.family,
            "family_hash": family_hash(plan.family),
            "median_us": us,
            "p10_us": 0.99 * us,
            "p90_us": 1.02 * us,
            "repeats": 100,
            "error": 0.3,
            "ok": True,
            "roofline_us": 1e6 * work.roofline_seconds(H200),
            "predicted_us": 1e6 * predict(call, plan, H200).seconds,
            "suite": line.suite,
            "layer": line.layer,
            "gpu": GPU,
            "torch": "stand-in",
            "triton": "stand-in",
            "commit": "none",
            "when": "2026-01-01T00:00:00+00:00",
        }
        return Measurement(**{**values, **fields})


def rivals(row: Measurement, factors: Sequence[float]) -> list[Measurement]:
    """torch's four settings, at these multiples of a row of ours."""
    none = {"provider": "cudnn", "plan": "", "family": "", "family_hash": "", "predicted_us": None}
    times = [factor * row.median_us for factor in factors]
    return [
        replace(row, setting=setting, median_us=us, p10_us=us, p90_us=us, **none)
        for setting, us in zip(SETTINGS, times, strict=True)
    ]


def some_plans(call: Call, count: int, seed: int = 0) -> list[Plan]:
    """The chosen plan and others of the same family, with a fixed seed."""
    chosen = select(call, H200)
    others = [plan for plan in candidates(call, H200) if plan.family == chosen.family and plan != chosen]
    return [chosen, *random.Random(seed).sample(others, min(count, len(others)))]


def swept(stand_in: HiddenModel, layers: Iterable[Workload], passes: Sequence[Pass], count: int) -> list[Measurement]:
    """Rows of a few plans of each layer."""
    rows = []
    for layer in layers:
        for which in passes:
            call = call_for(layer, which)
            rows += [stand_in.row(line_for(layer, which), plan) for plan in some_plans(call, count)]
    return rows
