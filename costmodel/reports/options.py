"""What the words and files of the command line mean. Everything here raises ValueError in one line that says what is right."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from costmodel.device import Device, find_device

RATE = re.compile(r"([0-9.]+(?:e[+-]?[0-9]+)?) *([kMGTPE]?)(FLOP|MAC)(?:s|S|/s)?")
PREFIX = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}


def rate_named(text: str) -> tuple[float, str]:
    """Operations a second and their kind, "FLOP" or "MAC", from words such as 0.15TFLOPS, 12TFLOP/s or 6TMAC/s."""
    found = RATE.fullmatch(text.strip())
    try:
        rate = float(found[1]) * PREFIX[found[2]] if found else 0.0
    except ValueError:
        rate = 0.0
    if found is None or not 0 < rate < float("inf"):
        raise ValueError(f"rate {text!r} reads like 0.15TFLOPS or 6TMAC/s: a positive number, a prefix, FLOPS or MAC/s")
    return rate, found[3]


def form_named(**flags: bool) -> str:
    """The one flag that is set, "" where none is; ValueError for several."""
    chosen = [name for name, wanted in flags.items() if wanted]
    if len(chosen) > 1:
        raise ValueError(f"choose one of {' and '.join('--' + name for name in chosen)}")
    return chosen[0] if chosen else ""


def device_named(text: str) -> Device:
    """The device that `find_device` reads, or the GPU at hand for "here", whose warnings go to stderr."""
    if text != "here":
        return find_device(text)
    from costmodel.detector import detect

    device, warnings = detect()
    for warning in warnings:
        print(f"costmodel: {warning}", file=sys.stderr)
    return device


def padding_named(text: str) -> int | tuple[int, int] | str:
    """One number, low:high, "same" or "valid"."""
    if text in ("same", "valid"):
        return text
    try:
        numbers = [int(end) for end in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise ValueError(f"--padding reads 1, 1:2 (low:high), same or valid, got {text!r}")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def shape_named(text: str) -> tuple[int, ...]:
    """Sizes of at least 1 with x between them."""
    try:
        shape = tuple(int(size) for size in text.split("x"))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ValueError(f"--input reads like 32x3x224x224, batch first, all at least 1; got {text!r}")
    return shape


def measured_times(path: Path) -> dict[str, float]:
    """Seconds by the name of a row, from a JSON file."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"--measured {path}: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(value, (int, float)) and value > 0 for value in found.values()):
        raise ValueError(f'--measured {path} must hold an object of seconds by row, such as {{"conv1": 1.2e-4}}')
    return found
