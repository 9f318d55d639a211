"""The time of one pass of a convolution in cuDNN or eager PyTorch, also on a GPU without published times.

Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence

from costmodel.bounds import roofline
from costmodel.count import cost
from costmodel.device import Device
from costmodel.library.alike import Row, guess
from costmodel.library.constants import Interval, Library, library
from costmodel.library.operators import convolution
from costmodel.library.terms import LAYOUTS, MODES, Seen, base, seen
from costmodel.problem import ConvProblem, Pass
from costmodel.timing import Prediction

LIBRARIES = ("cudnn",)
#: The factor by which an interval is widened at both ends, for each property that no row has.
STRANGE = 1.5


def checked(name: str, layout: str, mode: str) -> None:
    """Raises ValueError for an unknown library, layout or mode."""
    for what, value, known in (("library", name, LIBRARIES), ("layout", layout, LAYOUTS), ("mode", mode, MODES)):
        if value not in known:
            raise ValueError(f"{what} must be {' or '.join(map(repr, known))}, got {value!r}")


def predict(
    problem: ConvProblem,
    which: Pass,
    device: Device,
    dtype: str,
    precision: str,
    *,
    layout: str = "channels_last",
    mode: str = "eager",
    constants: Library | None = None,
) -> Prediction:
    """Seconds that cuDNN's kernels of one pass take, layout copies included, without the host's time around them.

    `source` says how many published layers are near, and which properties none of them has. Raises ValueError for a device that
    lacks the rate, and for float64.
    """
    fitted = constants or library()
    known = fitted.layers
    query = seen(problem, [which], dtype, precision, layout, mode)
    scale, bound = base(problem, which, device, dtype, precision)
    guessed = guess(query, known.rows)
    seconds = scale * math.exp(guessed.log_ratio)
    fold = "layer" if device.name in known.gpus.get(query.arithmetic, ()) else "gpu"
    spread = interval(known.intervals["fma" if query.arithmetic == "fp32" else "tensor"][fold], guessed.support)
    strange = _strange(query, known.rows)
    words = [f"fitted to published times of cuDNN; the interval holds nine in ten of {spread.rows} that were held out"]
    if fold == "gpu":
        words.append(f"no row is of {device.name} in {query.arithmetic}, so it is scaled from other GPUs")
    if query.arithmetic == "half" and not any(
        row.seen.kind == query.kind and row.seen.arithmetic == "half" for row in known.rows
    ):
        # networks in float16 tell more about such a layer than layers in TF32 do
        networks = fitted.networks
        parts = convolution(problem, which, device, dtype, precision)
        seconds = sum(networks.weights[layout][name] * part for name, part in parts.items() if name != "calls")
        spread = networks.intervals[layout]["gpu"]
        strange = [
            f"no row in half is of a {query.kind} layer, so it is what networks' times leave for one, the interval wider"
        ] * 2
        words = ["fitted to published times of networks in eager PyTorch"]
    wider = STRANGE ** len(strange)
    words += dict.fromkeys(strange)
    least = 0.0 if query.arithmetic == "fp32" else roofline(problem, device, dtype, precision=precision, which=which).seconds
    seconds = max(seconds, least)  # only Winograd and FFT can be faster, and they run on FMA units
    return Prediction(
        seconds=seconds,
        tiles=0,
        waves=0.0,
        tile_use=0.0,
        bytes=cost(problem, which, dtype=dtype).bytes,
        bound=bound,
        low=max(seconds * spread.low / wider, least),
        high=seconds * spread.high * wider,
        source="; ".join(words),
    )


def interval(given: tuple[Interval, ...], support: float) -> Interval:
    """The interval of the class with the most support that `support` reaches. The last class has no lower limit."""
    return next((spread for spread in given if support >= spread.support), given[-1])


def _strange(query: Seen, rows: Sequence[Row]) -> list[str]:
    """The properties, in words, that no row in the same arithmetic has. Each of them widens the interval."""
    alike = [row.seen for row in rows if row.seen.arithmetic == query.arithmetic]
    reasons = []
    if query.layout not in {known_row.layout for known_row in alike if known_row.rank == query.rank}:
        reasons.append(
            f"no row of {query.rank}-D layers in {query.arithmetic} is of {query.layout} tensors, so the interval is wider"
        )
    if query.mode not in {known_row.mode for known_row in alike}:
        reasons.append(f"no row in {query.arithmetic} is of the mode {query.mode}, so the interval is wider")
    return reasons
