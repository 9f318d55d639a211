"""Numbers for people: SI prefixes with units, and durations. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence

PREFIXES = {6: "E", 5: "P", 4: "T", 3: "G", 2: "M", 1: "k", 0: "", -1: "m", -2: "µ", -3: "n"}


def si(value: float, unit: str = "", digits: int = 3) -> str:
    """The value with `digits` significant digits and an SI prefix: si(4089184256, "MAC") is "4.09 GMAC"."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {unit}".rstrip()
    rounded = float(f"{value:.{digits - 1}e}")  # first, since 999.9 rounds up to the next prefix
    magnitude = math.floor(math.log10(abs(rounded)))
    power = min(max(magnitude // 3, min(PREFIXES)), max(PREFIXES))
    decimals = 0 if power == 0 and isinstance(value, int) else max(0, digits - 1 - magnitude + 3 * power)
    return f"{rounded / 1000.0**power:.{decimals}f} {PREFIXES[power]}{unit}".rstrip()


def exact(value: float, unit: str = "") -> str:
    """The value without a prefix, thousands apart: exact(52428800, "B") is "52,428,800 B"."""
    return (f"{value:,}" if isinstance(value, int) else f"{value:g}") + (f" {unit}" if unit else "")


def several(number: int, what: str) -> str:
    """How many of something: several(1, "operator") is "1 operator", several(1200, "operator") "1,200 operators"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def share(value: float) -> str:
    """A part of one as a percentage: "3.1 %"."""
    return f"{100 * value:.1f} %"


def duration(seconds: float) -> str:
    """Seconds as people say them: "14 min 13 s", "18 h 57 min", "3 d 2 h"; below a minute with an SI prefix."""
    if seconds < 60:
        return si(seconds, "s")
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60 // 1:.0f} s"
    if seconds < 72 * 3600:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
    return f"{seconds // 86400:,.0f} d {seconds % 86400 // 3600:.0f} h"


def interval(low: float, high: float) -> str:
    """Two durations, with one unit where both take the same: "27.2 to 54.4 µs"."""
    first, last = duration(low), duration(high)
    number, _, unit = first.partition(" ")
    return f"{number if unit == last.partition(' ')[2] else first} to {last}"


def middle(text: str, width: int) -> str:
    """The text, without its middle where it is wider than `width`, because names of modules differ at their ends.

    >>> middle("features.denseblock4.denselayer16.conv2", 20)
    'features.…er16.conv2'
    """
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return text[:head] + "…" + text[len(text) - (width - 1 - head) :]


def apart(names: Sequence[str], width: int) -> list[str]:
    """Names of at most `width` letters, shortened in their middles so that different names stay different.

    >>> apart(["layer1.0.conv1", "layer2.0.conv1", "fc"], 9)
    ['layer1…v1', 'layer2…v1', 'fc']
    >>> apart(["encoder.block.weight", "encoder.black.weight"], 9)
    ['enco…ig#1', 'enco…ig#2']
    """
    different = len(set(names))
    for tail in sorted(range(width), key=lambda size: abs(size - width // 2)):
        parts = [_cut(name, width, tail) for name in names]
        if len(set(parts)) == different:
            return parts
    # names that still look alike are numbered
    numbers: dict[str, dict[str, int]] = {}
    for name in names:
        alike = numbers.setdefault(_cut(name, width, width // 2), {})
        alike.setdefault(name, len(alike) + 1)
    parts = []
    for name in names:
        short = _cut(name, width, width // 2)
        mark = f"#{numbers[short][name]}" if len(numbers[short]) > 1 else ""
        parts.append(short[: width - len(mark)] + mark)
    return parts


def _cut(name: str, width: int, tail: int) -> str:
    """A name shortened to `width` letters; it keeps its last `tail` letters."""
    return name if len(name) <= width else name[: width - 1 - tail] + "…" + name[len(name) - tail :]
