"""What a GPU can do: peaks, memory, limits of a multiprocessor, each figure with its source. Standard library only.

The figures are in `data/devices.toml`, read when first asked for. Peaks are dense (no sparsity), with float32 accumulation
unless named otherwise; multiprocessors * clock * FLOP per clock reproduces the tensor peaks to 1.2 %.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from costmodel.architectures import derived_rates, is_geforce, limits_of, operations, table
from costmodel.arithmetic import arithmetic_named
from costmodel.calibration import DEFAULT, Calibration, Host, Table, for_another_device, inherited, table_of
from costmodel.device_names import plain, unknown, whole
from costmodel.families import FUNCTIONS

#: The table by driver name: `devices()` as a constant, which is read on first use.
DEVICES: Mapping[str, Device]


@dataclass(frozen=True, kw_only=True)
class Device:
    """One GPU model. Rates are in TFLOP/s and GB/s, sizes in bytes, clocks in MHz. A rate is None if the part has no such unit.
    `source` names the document that a figure comes from. The class raises nothing; `rate` raises ValueError for a dtype that
    the part does not multiply.

    >>> find_device("h100").sm_count, find_device("h100").rate("bf16") / 1e12
    (132, 989.4)
    """

    name: str
    capability: int  # compute capability, 90 for 9.0
    sm_count: int
    clock: float  # the clock at which the tensor peaks hold
    max_clock: float = 0  # the clock that the driver reports; `clock` where not given
    fp16: float | None = None  # tensor cores, float32 accumulation
    bf16: float | None = None
    fp16_acc16: float | None = None  # tensor cores, float16 accumulation, where that is faster (GeForce)
    tf32: float | None = None
    fp32: float | None = None  # of the FMA units
    fp64: float | None = None
    fp64_tensor: float | None = None
    bandwidth: float  # of the memory
    l2_bandwidth: float
    l2_bytes: int
    shared_per_block: int
    shared_per_sm: int
    registers_per_sm: int
    warps_per_sm: int
    blocks_per_sm: int
    launch_overhead: float  # seconds a kernel costs beyond its work
    matrix_share: float | None = None  # of the tensor peak that good matrix products reach, where measured
    memory_share: float | None = None  # of the bandwidth that good copies reach, where measured
    half_rate: bool = False  # tensor cores run at half rate where they accumulate in float32: GeForce, and a few others
    names: tuple[str, ...] = field(default=(), compare=False, repr=False)  # the driver's
    aliases: tuple[str, ...] = field(default=(), compare=False, repr=False)
    sources: tuple[tuple[str, str], ...] = field(default=(), compare=False, repr=False)  # (figure, where it is from)
    interpreted: bool = False
    calibrations: tuple[tuple[str, Calibration], ...] = field(default=(), repr=False)  # by kernel family
    fastest: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)  # `costmodel.plan.call_key` -> plan
    host: Host | None = field(default=None, compare=False, repr=False)  # None: nobody measured what calls cost the host

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_clock", self.max_clock or self.clock)

    @property
    def default_dtype(self) -> str:
        """The dtype of a prediction that names none: bfloat16, or float16 where tensor cores do not multiply bfloat16."""
        return "bfloat16" if self.bf16 is not None or self.interpreted else "float16"

    def calibration(self, family: str) -> Calibration:
        """The constants of a kernel family, or of the family that it is like. They are the defaults if neither was measured."""
        known = dict(self.calibrations)
        if family not in known and family in FUNCTIONS:
            kin = FUNCTIONS[family].kin
            return inherited(known.get(kin, DEFAULT), kin)
        return known.get(family, DEFAULT)

    def calibrated(self, table: Table | None) -> Device:
        """This device with the constants, the fastest plans and the host times of a table, or unchanged if there is no
        table."""
        if table is None:
            return self
        return replace(self, calibrations=table.current(), fastest=table.fastest(), host=table.host)

    def source(self, figure: str) -> str:
        """The source of a figure, by its field's name; "" if the device lacks the figure. Raises KeyError for an unknown
        name."""
        if figure not in FIGURES:
            raise KeyError(figure)
        return dict(self.sources).get(figure, "")

    def rate(self, dtype: str, precision: str = "ieee", unit: str | None = None) -> float:
        """Peak FLOP/s (2 * MAC/s) for `dtype` ("bf16", "float16", "tf32", ...), accumulated in at least float32.

        `precision` is "ieee" or "tf32" and matters for float32 only. `unit` is "tensor", "fma", or None for tensor cores
        where they multiply that dtype. Raises ValueError for a rate that the part lacks.
        """
        if dtype not in _UNITS:
            known = arithmetic_named(dtype, None, precision)
            dtype, precision = known.dtype, known.precision
        if precision not in ("ieee", "tf32"):
            raise ValueError(f"precision must be 'ieee' or 'tf32', got {precision!r}")
        if unit not in (None, "tensor", "fma"):
            raise ValueError(f"unit must be 'tensor' or 'fma', got {unit!r}")
        tensor, fma = _UNITS[dtype]
        if tensor == "tf32" and precision != "tf32":
            if unit == "tensor":
                raise ValueError("tensor cores multiply float32 in precision 'tf32' only, got 'ieee'")
            tensor = fma
        if unit == "fma" or (unit is None and tensor == "fp64_tensor" and self.fp64_tensor is None):
            tensor = fma
        value: float | None = getattr(self, tensor)
        if value is None:
            has = ", ".join(name for name in NAMED_RATES if getattr(self, name) is not None)
            raise ValueError(f"{self.name} has no {tensor} rate, which {dtype} asks for; it has {has or 'none'}")
        return float(round(value * 1e12))  # 66.9 * 1e12 is not whole, and ridges are compared exactly


#: dtype -> the rates of the tensor cores and of the FMA units. 16-bit operands are widened for the FMA units.
_UNITS = {
    "float16": ("fp16", "fp32"),
    "bfloat16": ("bf16", "fp32"),
    "float32": ("tf32", "fp32"),
    "float64": ("fp64_tensor", "fp64"),
}
#: The peaks, which follow the multiprocessors and the clock.
RATES = ("fp16", "bf16", "fp16_acc16", "tf32", "fp32", "fp64", "fp64_tensor")
#: The peaks that a user asks for by a dtype.
NAMED_RATES = ("fp16", "bf16", "tf32", "fp32", "fp64")
#: Every field that is a number with a source.
_OTHER = ("name", "half_rate", "names", "aliases", "sources", "interpreted", "calibrations", "fastest", "host")
FIGURES = tuple(f.name for f in fields(Device) if f.name not in _OTHER)
_WHOLE = tuple(f.name for f in fields(Device) if f.type == "int")

#: Triton's interpreter on a CPU. Only the time of a trip counts there (`costmodel.timing`); no limit of a GPU applies.
INTERPRETER = Device(
    name="interpreter",
    capability=90,
    sm_count=1,
    clock=1,
    bandwidth=1,
    l2_bandwidth=1,
    l2_bytes=1,
    shared_per_block=232448,  # a plan forced here must fit a GPU too
    shared_per_sm=1,
    registers_per_sm=1,
    warps_per_sm=1,
    blocks_per_sm=1,
    launch_overhead=0,
    interpreted=True,
)


def __getattr__(name: str) -> Any:
    if name == "DEVICES":
        return devices()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# ---- the table ------------------------------------------------------------------------------------------------------


@cache
def devices() -> Mapping[str, Device]:
    """Every part of the table, with its measurements, by the first of its driver names."""
    models = [_new({"name": row["names"][0], **row}, f"device {key}") for key, row in table()["device"].items()]
    return MappingProxyType({device.name: device.calibrated(table_of(device.name)) for device in models})


def listed(name: str) -> Device | None:
    """The table's entry for the driver's name `name`, or for the part that it is a slice of; None if there is none."""
    sought = plain(whole(name))
    return next((d for d in devices().values() if any(plain(known) == sought for known in d.names)), None)


def find(name: str, capability: int, sm_count: int) -> Device:
    """The table's entry for a driver's device name. A part with other multiprocessors and an unknown part are scaled.

    A part is scaled from the entry of its name. If there is none, it is scaled from the first entry of the newest compute
    capability up to its own, and a GeForce part from a GeForce part. This never fails, so that every GPU has a model to plan
    with.
    """
    base = listed(name)
    if base is not None and base.sm_count == sm_count:
        return base
    half_rate = base.half_rate if base is not None else is_geforce(name)
    if base is None:
        older = [d for d in devices().values() if d.capability <= capability]
        base = max(older, key=lambda d: (d.capability, is_geforce(d.name) == is_geforce(name)), default=None)
        base = base or min(devices().values(), key=lambda d: d.capability)
    size = sm_count / base.sm_count
    ours, theirs = operations(capability, half_rate), operations(base.capability, base.half_rate)
    changes: dict[str, Any] = {"bandwidth": base.bandwidth * size, "l2_bandwidth": base.l2_bandwidth * size}
    for rate in RATES:
        peak = getattr(base, rate)
        changes[rate] = peak * size * ours[rate] / theirs[rate] if peak and rate in ours and rate in theirs else None
    origins = dict.fromkeys(changes, f"estimate: scaled from {base.name} by multiprocessors")
    limits, limit_origins = limits_of(capability)
    scaled = replace(
        base,
        **changes | limits,
        name=name,
        capability=capability,
        sm_count=sm_count,
        half_rate=half_rate,
        matrix_share=None,
        memory_share=None,
        names=(),
        aliases=(),
        sources=_merged(base, origins | limit_origins | dict.fromkeys(("capability", "sm_count"), "driver")),
        **_constants_of(base),
    )
    return scaled.calibrated(table_of(name))


def _constants_of(base: Device) -> dict[str, Any]:
    """The measurements that a device made from `base` keeps: the constants, without their interval."""
    return {"calibrations": for_another_device(base.calibrations, base.name), "fastest": {}}


def _merged(base: Device | None, origins: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The sources of `base`, replaced by those of the changed figures."""
    return tuple(((dict(base.sources) if base else {}) | dict(origins)).items())


# ---- devices of the user --------------------------------------------------------------------------------------------


def find_device(text: str | Device) -> Device:
    """The device that a user means by an alias ("h100"), a driver's name, or the path of a TOML file (`load`).

    A name that only resembles one of the table is unknown, and the error offers the nearest. A `Device` is returned as it is.
    Changed figures may follow the name, as in "h100,bandwidth=3000,sm_count=100" (see `changed`). `Device` says in which units
    the figures are, and `Device.source` where each is from. Raises ValueError for anything else.

    >>> find_device("a100").name, find_device("h100,bandwidth=3000").bandwidth
    ('NVIDIA A100-SXM4-80GB', 3000.0)
    """
    if isinstance(text, Device):
        return text
    first, *changes = (part.strip() for part in text.split(","))
    device = load(first) if first.lower().endswith(".toml") else _named(first)
    if not changes:
        return device
    values: dict[str, Any] = {}
    for change in changes:
        name, equals, value = (part.strip() for part in change.partition("="))
        if not equals:
            raise ValueError(f"device {text!r}: after the name come figure=number, got {change!r}")
        values[name] = value if name == "name" else _number(name, value, f"device {text!r}")
    return changed(device, {"name": f"{device.name} ({', '.join(changes)})", **values}, f"device {text!r}")


def _named(text: str) -> Device:
    parts = devices().values()
    words = {word: device for device in parts for word in (*device.names, *device.aliases)}
    device = {plain(word): device for word, device in words.items()}.get(plain(text))
    if device is None:
        shown = [device.aliases[0] for device in parts]
        raise ValueError(f"device {text!r} is unknown{unknown(text, words, shown)}, or a TOML file")
    return device


def load(path: str | Path) -> Device:
    """The device that a TOML file describes: a table as in `data/devices.toml`, or `base = "h100"` and changes.

    Without a base it needs name, capability, sm_count, clock, bandwidth, l2_bytes and l2_bandwidth; peaks that it leaves out
    are derived from the compute capability. Raises ValueError for a file that is no such description.
    """
    try:
        row = tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"device file {str(path)!r} cannot be read: {reason}") from error
    origin = f"device file {str(path)!r}"
    if "base" not in row:
        return _new(row, origin)
    base = row.pop("base")
    if not isinstance(base, str):
        raise ValueError(f"{origin}: base must be the name of a device, got {base!r}")
    return changed(_named(base), {"name": Path(path).stem, **row}, origin)


def changed(device: Device, changes: Mapping[str, Any], origin: str) -> Device:
    """`device` with some figures changed, whose source becomes `origin` unless `changes` has "sources".

    Peaks that are not given follow `sm_count` and `clock`; a new `max_clock` scales `clock` with it. Limits follow
    `capability`. Raises ValueError for an unknown figure or a value that makes no sense.
    """
    values, origins = _checked(changes, origin)
    derived: dict[str, Any] = {}
    if "clock" in values or "max_clock" in values:
        faster = values["clock"] / device.clock if "clock" in values else values["max_clock"] / device.max_clock
        derived = {"clock": device.clock * faster, "max_clock": device.max_clock * faster}
    sm_count, clock = values.get("sm_count", device.sm_count), (derived | values).get("clock", device.clock)
    if (speed := sm_count * clock / (device.sm_count * device.clock)) != 1:
        derived |= {rate: peak * speed for rate in RATES if (peak := getattr(device, rate)) is not None}
    derived_origins = dict.fromkeys(derived, f"derived: {device.name}, by multiprocessors and clock")
    if "capability" in values:
        limits, limit_origins = limits_of(values["capability"])
        derived, derived_origins = derived | limits, derived_origins | limit_origins
    own: dict[str, Any] = {}
    if values.get("name", device.name) != device.name:
        own = {"names": (), "aliases": (), **_constants_of(device)}
    return replace(device, **own | derived | values, sources=_merged(device, derived_origins | origins))


def _new(row: Mapping[str, Any], origin: str) -> Device:
    """A device that is made from its own description alone."""
    values, origins = _checked(row, origin)
    needed = ("name", "capability", "sm_count", "clock", "bandwidth", "l2_bytes", "l2_bandwidth")
    missing = [name for name in needed if name not in values]
    if missing:
        raise ValueError(f"{origin} lacks {', '.join(missing)}: give them, or a base")
    limits, limit_origins = limits_of(values["capability"])
    values = {"half_rate": is_geforce(values["name"]), **values}
    rates = derived_rates(values["capability"], values["half_rate"], values["sm_count"], values["clock"])
    derived = {name: "derived: multiprocessors * clock * FLOP per clock and multiprocessor" for name in rates}
    derived["max_clock"] = origins["clock"]
    return Device(**limits | rates | values, sources=_merged(None, derived | limit_origins | origins))


def _checked(row: Mapping[str, Any], origin: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The fields of a description and the source of each figure. Raises ValueError, which names what is wrong."""
    values: dict[str, Any] = {}
    for name, value in row.items():
        if name in ("names", "aliases"):
            if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
                raise ValueError(f"{origin}: {name} must be a list of strings, got {value!r}")
            values[name] = tuple(value)
        elif name == "name":
            if not isinstance(value, str):
                raise ValueError(f"{origin}: name must be a string, got {value!r}")
            values[name] = value
        elif name == "half_rate":
            if not isinstance(value, bool):
                raise ValueError(f"{origin}: half_rate must be true or false, got {value!r}")
            values[name] = value
        elif name != "sources":
            values[name] = _number(name, value, origin)
    origins = dict.fromkeys((name for name in values if name in FIGURES), origin)
    sources = row.get("sources", {})
    if not isinstance(sources, Mapping):
        raise ValueError(f"{origin}: sources must be a table from figures to where they are from, got {sources!r}")
    for names, source in sources.items():
        for name in names.split():
            if name not in origins:
                raise ValueError(f"{origin}: a source is given for {name!r}, which is no figure of it")
            origins[name] = str(source)
    return values, origins


def _number(name: str, value: Any, origin: str) -> int | float:
    """A figure's value as its field's type. Raises ValueError if it is no number or not positive."""
    if name not in FIGURES:
        raise ValueError(f"{origin}: unknown figure {name!r}{unknown(name, FIGURES, FIGURES, 1)}")
    whole = name in _WHOLE
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not 0 < number < math.inf or (whole and number != int(number)):
        raise ValueError(f"{origin}: {name} must be a positive {'whole number' if whole else 'number'}, got {value!r}")
    return int(number) if whole else number
