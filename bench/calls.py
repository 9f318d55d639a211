"""What a row measured, in the terms that plans are chosen in."""

from __future__ import annotations

from bench.audit import operands
from bench.rows import Measurement
from costmodel.device import Device, listed
from costmodel.families import is_current
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Call
from tritonconv.launch import describe


def call_of(problem: ConvProblem, which: Pass, dtype: str, precision: str, layout: str) -> Call:
    """The pass as the library sees it on dense tensors that all lie in `layout`, "channels_last" or "contiguous"."""
    keys = operands(problem, which, layout == "channels_last")
    return Call(problem, which, dtype, precision, *describe(problem, which, *keys))


def device_of(gpu: str) -> Device:
    """The cost model's description of a row's GPU. ValueError where it has none."""
    if (found := listed(gpu)) is None:
        raise ValueError(f"{gpu!r} is not in the table of devices: add it to costmodel/data/devices.toml")
    return found


def ours(row: Measurement) -> bool:
    """Whether a row is a good measurement of a plan of ours."""
    return row.provider == "tritonconv" and row.ok and bool(row.plan) and bool(row.median_us)


def fresh(row: Measurement) -> bool:
    """Whether a row is of the kernels in this tree; other providers' rows always are."""
    return not row.family or is_current(row.family, row.family_hash)
