"""What the words and files of the command line mean. Everything here raises ValueError in one line that says what is right."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costmodel.arithmetic import NAMES
from costmodel.device import Device, find_device

if TYPE_CHECKING:
    from costmodel.reports.report import Arguments

PICTURES = ("png", "svg", "pdf")
#: The dtypes that an input may have besides the model's own floating dtype.
INPUT_DTYPES = (*NAMES, "int64", "int32", "int16", "int8", "uint8", "bool", "long", "int")
RATE = re.compile(r"([0-9.]+(?:e[+-]?[0-9]+)?) *([kMGTPE]?)(FLOP|MAC)(?:s|S|/s)?")
PREFIX = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}


def rate_named(text: str) -> tuple[float, str]:
    """Operations per second and their kind, "FLOP" or "MAC", from words such as 0.15TFLOPS, 12TFLOP/s or 6TMAC/s."""
    match = RATE.fullmatch(text.strip())
    try:
        rate = float(match[1]) * PREFIX[match[2]] if match else 0.0
    except ValueError:
        rate = 0.0
    if match is None or not 0 < rate < float("inf"):
        raise ValueError(f"rate {text!r} reads like 0.15TFLOPS or 6TMAC/s: a positive number, a prefix, FLOPS or MAC/s")
    return rate, match[3]


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
        raise ValueError(f"--input reads like 32x3x224x224 or ids:int64:1x16, batch first, all at least 1; got {text!r}")
    return shape


def inputs_named(texts: Sequence[str]) -> Arguments:
    """What a model is called with: shapes, "int64:1x16" with a dtype, "ids:int64:1x16" with the keyword too, and
    "batch.ids:int64:1x16" for an entry of a dictionary. ValueError for a word that is none of these."""
    import torch

    from costmodel.reports.report import Arguments

    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    for text in texts:
        *words, sizes = text.split(":")
        shape = shape_named(sizes)
        dtype = words.pop() if words and words[-1] in INPUT_DTYPES else ""
        name = words.pop() if words else ""
        if words or not all(part.isidentifier() for part in name.split(".") if name):
            raise ValueError(
                f"--input {text!r}: before the sizes come a keyword and one of {', '.join(INPUT_DTYPES)}, as in ids:int64:1x16"
            )
        kind = NAMES[dtype][0] if dtype in NAMES else dtype
        tensor = torch.empty(shape, dtype=getattr(torch, kind or "float32"), device="meta")
        if not name:
            positional.append(tensor if kind else shape)
            continue
        *path, last = name.split(".")
        holder = keywords
        for part in path:
            holder = holder.setdefault(part, {})
            if not isinstance(holder, dict):
                raise ValueError(f"--input {text!r}: {part} is a tensor already, and no dictionary")
        if last in holder:
            raise ValueError(f"--input names {name!r} twice")
        holder[last] = tensor
    return Arguments(positional, keywords)


def arguments_named(texts: Sequence[str]) -> dict[str, Any]:
    """Arguments of a model's factory, such as "weights=None". A value that is no Python literal is a string."""
    arguments: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--arg reads like weights=None or num_classes=10, got {text!r}")
        try:
            arguments[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[name] = value
    return arguments


def picture_form(path: Path, option: str) -> str:
    """What a picture's suffix says, "png", "svg" or "pdf"; without one, what the option is called."""
    form = path.suffix.removeprefix(".").lower() or option
    if form not in PICTURES:
        raise ValueError(f"--{option} {path}: a picture ends in .png, .svg or .pdf, got {path.suffix!r}")
    return form


def measured_times(path: Path) -> dict[str, float]:
    """Seconds by the name of a row, from a JSON file."""
    try:
        times = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"--measured {path} cannot be read: {reason}") from error
    if not isinstance(times, dict) or not all(isinstance(value, (int, float)) and value > 0 for value in times.values()):
        raise ValueError(f'--measured {path} must hold an object of seconds by row, such as {{"conv1": 1.2e-4}}')
    return times
