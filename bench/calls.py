"""What a row measured, as the call that plans are chosen for, and whether the row is still of use."""

from __future__ import annotations

from bench.providers.ours import call_of
from bench.rows import Measurement
from bench.work import Work
from costmodel.device import Device, listed
from costmodel.fingerprints import is_current
from costmodel.tiling import Call


def work_of(row: Measurement) -> Work:
    return Work(row.problem, row.which, row.dtype, row.precision, row.layout, row.transposed)


def call_of_row(row: Measurement) -> Call:
    """The pass as the library planned it."""
    return call_of(work_of(row))


def device_of(gpu: str) -> Device:
    """The cost model's description of a row's GPU. Raises ValueError where it has none."""
    if (device := listed(gpu)) is None:
        raise ValueError(f"{gpu!r} is not in the table of devices: add it to costmodel/data/devices.toml")
    return device


def ours(row: Measurement) -> bool:
    """Whether a row is a good measurement of a plan of ours."""
    return row.provider == "tritonconv" and row.ok and bool(row.plan) and bool(row.median_us)


def fresh(row: Measurement) -> bool:
    """Whether a row is of the kernels in this tree. Rows of other providers always are fresh."""
    return not row.family or is_current(row.family, row.family_hash)
