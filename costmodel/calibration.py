"""What measurements say about a GPU and its datasheet does not: constants of each kernel family, how far predictions were off,
and which plans were fastest. This module needs the standard library only.

A device has one table (JSON), which `python -m bench calibrate` writes. The package ships tables in `data/calibration/`. A
user's own table, in the cache directory, is used where the environment variable TRITONCONV_CALIBRATION asks for it:

    user      the table in the cache directory, where there is one
    none      no table at all, not even the package's
    PATH      the table in that file, for the device that it names

The cache directory is $TRITONCONV_CACHE, else $XDG_CACHE_HOME/tritonconv, else ~/.cache/tritonconv. Measurements of other
sources than the installed kernels', and constants fitted to other arithmetic, are ignored, and the prediction's source says so.
The environment is read once per process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from costmodel.fingerprints import is_current, model_hash

#: A prediction's interval before anything is measured: the spread that published models of unfitted kernels show.
PRIOR = (0.7, 1.4)
PRIOR_SOURCE = "an uncalibrated estimate, 0.7x to 1.4x: nothing has been measured for this device and kernel family"
#: The range in which each constant makes sense. A share of arithmetic, DRAM or issue above 1 would exceed the datasheet.
BOUNDS = {"dram": (0.2, 1.0), "l2": (0.2, 5.0), "issue": (0.2, 1.0), "latency": (60.0, 6000.0), "launch": (0.1, 10.0)}
SHARE_BOUNDS = (0.1, 1.0)
#: The range of seconds that makes sense for one call on the host.
HOST_BOUNDS = (1e-7, 1e-2)


@dataclass(frozen=True)
class Calibration:
    """Constants of one kernel family on one device. The defaults are not fitted to anything.

    `shares` are shares of the peak, by arithmetic ("half", "tf32", "fp32" of the FMA units, "fp64") or by arithmetic and tile
    ("half 128x256x64"). `low` and `high` are the interval of measured over predicted time; `source` says where it comes from.
    """

    dram: float = 0.9  # share of DRAM bandwidth that a copy reaches (NVIDIA H100: 3.0 of 3.35 TB/s)
    l2: float = 1.0  # share of the device's L2 bandwidth
    issue: float = 1.0  # share of one instruction per clock and scheduler
    latency: float = 600.0  # clocks until a load that is not pipelined (narrower than 4 bytes) arrives, and to fill a loop
    launch: float = 1.0  # share of the device's launch overhead
    shares: tuple[tuple[str, float], ...] = ()
    low: float = PRIOR[0]
    high: float = PRIOR[1]
    source: str = PRIOR_SOURCE

    def share(self, arithmetic: str, tile: str) -> float:
        """The share of the peak that a tile such as "128x256x64" reaches."""
        if not self.shares:
            return 1.0
        known = dict(self.shares)
        return known.get(f"{arithmetic} {tile}", known.get(arithmetic, 1.0))


DEFAULT = Calibration()


@dataclass(frozen=True)
class Measured:
    """A family's calibration, with the hashes of the kernels that were measured and of the arithmetic that was fitted."""

    family_hash: str
    model_hash: str
    calibration: Calibration

    def __post_init__(self) -> None:
        for name, (low, high) in BOUNDS.items():
            _within(name, getattr(self.calibration, name), low, high)
        for name, value in self.calibration.shares:
            _within(f"share of {name}", value, *SHARE_BOUNDS)
        if not 0 < self.calibration.low <= self.calibration.high:
            raise ValueError(f"the interval must be 0 < low <= high, got {self.calibration.low}, {self.calibration.high}")


@dataclass(frozen=True)
class Host:
    """Seconds that calls of eager mode take on the host of a machine with this device, from a call to its return, which
    `python -m bench overhead` measures. An idle GPU waits that long for its next kernel."""

    forward: float  # a convolution of this package that records gradients
    backward: float  # both gradients of one
    operator: float  # another operator of torch
    operator_backward: float
    source: str  # where and with what it was measured

    def __post_init__(self) -> None:
        for constant in fields(self):
            if constant.name != "source":
                _within(f"host time {constant.name}", getattr(self, constant.name), *HOST_BOUNDS)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low:g} to {high:g}, got {value!r}")


@dataclass(frozen=True)
class Table:
    """The measurements of a device that predictions and choices use.

    `plans` maps a call (`costmodel.plan.call_key`) to the plan that was measured fastest, as (plan, hash of its family). `host`
    is None where nobody measured what a call costs the host.
    """

    device: str
    families: Mapping[str, Measured] = field(default_factory=dict)
    plans: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    host: Host | None = None

    def current(self) -> tuple[tuple[str, Calibration], ...]:
        """The families' calibrations. A stale one (of other kernels or other arithmetic) becomes the default, and its source
        says so."""
        return tuple((family, self._current(family, measured)) for family, measured in sorted(self.families.items()))

    def _current(self, family: str, measured: Measured) -> Calibration:
        if not is_current(family, measured.family_hash):
            stale = f"was measured with other {family} kernels"
        elif measured.model_hash != model_hash():
            stale = "was fitted to other arithmetic"
        else:
            return measured.calibration
        return Calibration(source=f"{PRIOR_SOURCE}; the table of {self.device} {stale} and is ignored")

    def fastest(self) -> dict[str, str]:
        """`call_key` -> plan, for the kernels as they are now."""
        return {key: plan for key, (plan, sources) in self.plans.items() if is_current(plan.split(":")[1], sources)}


def for_another_device(calibrations: tuple[tuple[str, Calibration], ...], owner: str) -> tuple[tuple[str, Calibration], ...]:
    """The constants of device `owner`, for use by another device. Their error there is unknown, so the interval is the
    prior."""
    words = f"{PRIOR_SOURCE}; the model's constants are those measured on {owner}"
    return tuple(
        (family, replace(c, low=PRIOR[0], high=PRIOR[1], source=words))
        for family, c in calibrations
        if replace(c, source="") != replace(DEFAULT, source="")
    )


def inherited(constants: Calibration, family: str) -> Calibration:
    """The constants of `family`, for similar kernels. Their error there is unknown, so the interval is the prior."""
    if replace(constants, source="") == replace(DEFAULT, source=""):
        return replace(constants, low=PRIOR[0], high=PRIOR[1])
    words = f"{PRIOR_SOURCE}; the model's constants are those of {family} kernels"
    return replace(constants, low=PRIOR[0], high=PRIOR[1], source=words)


# ---- files ----------------------------------------------------------------------------------------------------------


def dumps(table: Table) -> str:
    """The table as JSON; `loads` reads it back."""
    families = {}
    for family, measured in table.families.items():
        constants = asdict(measured.calibration) | {"shares": dict(measured.calibration.shares)}
        hashes = {"family_hash": measured.family_hash, "model_hash": measured.model_hash}
        families[family] = hashes | constants
    row = {"device": table.device, "families": families, "plans": table.plans}
    row |= {} if table.host is None else {"host": asdict(table.host)}
    return json.dumps(row, indent=1, sort_keys=True) + "\n"


def loads(text: str, origin: str) -> Table:
    """The table that `dumps` wrote. Raises ValueError, naming `origin`, for anything else."""
    try:
        row = json.loads(text)
        families = {name: _family(values) for name, values in row["families"].items()}
        plans = {key: (str(plan), str(sources)) for key, (plan, sources) in row["plans"].items()}
        if broken := [plan for plan, _ in plans.values() if plan.count(":") < 2]:
            raise ValueError(f"{broken[0]!r} is no plan")
        host = Host(**row["host"]) if "host" in row else None
        return Table(str(row["device"]), families, plans, host)
    except KeyError as error:
        raise ValueError(f"calibration {origin} lacks {error.args[0]!r}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"calibration {origin} cannot be read: {error}") from error


def _family(row: Mapping[str, Any]) -> Measured:
    values = {f.name: row[f.name] for f in fields(Calibration)}
    if unknown := sorted(set(row) - set(values) - {"family_hash", "model_hash"}):
        raise ValueError(f"unknown constant {unknown[0]!r}; known are {', '.join(values)}")
    constants = Calibration(**values | {"shares": tuple(sorted(values["shares"].items()))})
    return Measured(row["family_hash"], row["model_hash"], constants)


def file_name(device: str) -> str:
    """The file name of a device's table; `device` is the driver's name."""
    return device.lower().replace(" ", "-") + ".json"


def package_path(device: str) -> Path:
    """The path of the package's table of a device, whether or not it exists."""
    return Path(str(resources.files("costmodel"))) / "data" / "calibration" / file_name(device)


def user_path(device: str) -> Path:
    """The path of the user's own table of a device, whether or not it exists."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TRITONCONV_CACHE") or Path(base) / "tritonconv") / "calibration" / file_name(device)


def read(path: Path) -> Table:
    """The table in a file. Raises ValueError where it cannot be read."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"calibration {str(path)!r} cannot be read: {error}") from error
    return loads(text, repr(str(path)))


def write(table: Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dumps(table), "utf-8")


def table_of(device: str) -> Table | None:
    """The table that the environment asks for on a device, or None."""
    setting = os.environ.get("TRITONCONV_CALIBRATION", "")
    if setting == "none":
        return None
    if setting == "user" and user_path(device).is_file():
        return read(user_path(device))
    if setting not in ("", "user") and (own := read(Path(setting))).device == device:
        return own
    return read(package_path(device)) if package_path(device).is_file() else None
