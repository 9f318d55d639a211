"""The GPU at hand: what its driver reports, held against the table of `costmodel.device`. Imports torch when called."""

from __future__ import annotations

from typing import Any, NamedTuple

from costmodel.architectures import derived_rates
from costmodel.device import Device, changed, find, listed

#: How much table and driver may differ. Datasheets round, and memory clocks are rated a little lower than they run.
TOLERANCE = 0.03


class Detection(NamedTuple):
    """A device, and warnings for its user: where the driver and the table disagree, and what is a guess."""

    device: Device
    warnings: list[str]


def detect(index: int | None = None) -> Detection:
    """CUDA device `index`, by default the current one: the device, and warnings where its driver and the table disagree.

    Its figures are those that the driver reports through `torch.cuda`; the rest is from the table of devices, which names the
    source of each figure. Raises ValueError where no CUDA device is at hand.

    >>> import costmodel
    >>> costmodel.detect(index=99)  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    ValueError: no CUDA device is at hand: name a device, such as 'h100'
    """
    import torch

    if not torch.cuda.is_available():
        raise ValueError("no CUDA device is at hand: name a device, such as 'h100'")
    count = torch.cuda.device_count()
    if index is not None and not 0 <= index < count:
        raise ValueError(f"CUDA device index must be below {count}, the devices at hand, got {index}")
    return from_properties(torch.cuda.get_device_properties(index))


def reported(properties: Any) -> dict[str, float]:
    """The figures that torch's device properties have, by `Device`'s field names; torch versions differ in which they have.

    Clocks come in kHz. Memory of every kind moves two words per clock of the bus, as the driver counts clocks.
    """
    names = ("clock_rate", "memory_clock_rate", "memory_bus_width", "L2_cache_size")
    clock, memory_clock, bus, l2 = (getattr(properties, name, None) or 0 for name in names)
    figures = {
        "sm_count": properties.multi_processor_count,
        "max_clock": clock / 1e3,
        "bandwidth": 2 * memory_clock * (bus / 8) / 1e6,
        "l2_bytes": l2,
    }
    return {name: value for name, value in figures.items() if value}


def from_properties(properties: Any) -> Detection:
    """The device that `torch.cuda.get_device_properties` describes.

    A figure of the table stands where the driver agrees to 3 %; else the driver's is taken, peaks follow multiprocessors and
    clock, and a warning says so. The peaks of a device that is not in the table are those of its compute capability.
    """
    name, capability = properties.name, 10 * properties.major + properties.minor
    figures = reported(properties)
    device = find(name, capability, properties.multi_processor_count)
    known = listed(name)
    if known is None:
        rates = derived_rates(capability, device.half_rate, device.sm_count, figures.get("max_clock", device.max_clock))
        clock = {"clock": figures["max_clock"]} if "max_clock" in figures else {}
        guessed = [figure for figure in ("max_clock", "bandwidth", "l2_bytes") if figure not in figures]
        warning = f"{name} is not in the table: its peaks are derived from compute capability {capability / 10:.1f}"
        warning += f", and {', '.join(guessed)} guessed" if guessed else ""
        return Detection(changed(device, figures | clock | rates, "derived: the driver's figures"), [warning])

    warnings = [
        f"{name}: the driver reports {figure} {value:,.10g}, the table has {getattr(known, figure):,.10g}"
        for figure, value in figures.items()
        if differ(value, getattr(known, figure))
    ]
    # not compared with `known`, because every figure of a part with other multiprocessors was scaled
    driven = {figure: value for figure, value in figures.items() if differ(value, getattr(device, figure))}
    device = changed(device, driven, "driver") if driven else device
    peak = derived_rates(capability, known.half_rate, device.sm_count, device.clock)["fp16"]
    if known.fp16 is not None and differ(peak, known.fp16):
        warnings.append(f"{name}: multiprocessors and clock give {peak:,.4g} TFLOP/s in fp16, the table has {known.fp16:,.4g}")
    return Detection(device, warnings)


def differ(measured: float, table: float) -> bool:
    return abs(measured / table - 1) > TOLERANCE
