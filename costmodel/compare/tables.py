"""Tables of measured times: layers (the columns of `schema`), rows of `bench run`, timm's benchmark. Standard library only."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costmodel.compare import schema
from costmodel.compare.measured import Measured, MeasuredLayer, MeasuredNetwork
from costmodel.device import Device, find_device
from costmodel.problem import ConvProblem, Pass

READ = (
    "a Kineto trace (.json, .json.gz), timm's benchmark CSV, rows of `bench run` (.jsonl), or a CSV of layers with the "
    "columns " + ", ".join(schema.NEEDED)
)
DTYPES = {"amp": "float16", "fp16": "float16", "float16": "float16", "half": "float16", "bf16": "bfloat16",
          "amp_bf16": "bfloat16", "bfloat16": "bfloat16", "fp32": "float32",
          "float32": "float32", "tf32": "float32"}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A GPU as a file names it, with the device that the name means or that the caller asked for."""

    device: Device | None
    reason: str = ""


def load(path: Path, forced: Device | None) -> list[Measured]:
    """One result per GPU. Raises ValueError for a table that is none of these, or whose GPU is not named anywhere."""
    text = _text(path)
    start = text.lstrip()[:1]
    if start == "{":
        return _rows_of_bench(path, text, forced)
    lines = list(csv.DictReader(text.splitlines()))
    columns = {name.strip() for name in (lines[0] if lines else {}) if name}
    if {"Instances", "Name"} <= columns and any("Time" in name for name in columns):
        raise ValueError(
            f"{path} is Nsight Systems' sum of kernels: it has no shapes, and kernels of several layers add up in a line, so "
            "nothing can be joined; a torch.profiler trace with record_shapes=True can"
        )
    if set(schema.NEEDED) <= columns:
        return _layers(path, lines, forced)
    if "model" in columns and (any("samples_per_sec" in name for name in columns) or "images_per_s" in columns):
        return _networks(path, lines, forced)
    raise ValueError(f"{path} has the columns {', '.join(sorted(columns)) or 'none'}; what is read is {READ}")


def _text(path: Path) -> str:
    try:
        packed = path.open("rb").read(2) == b"\x1f\x8b"
        with gzip.open(path, "rt", encoding="utf-8") if packed else path.open(encoding="utf-8") as file:
            return file.read()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def gpu(name: str, forced: Device | None) -> Source:
    """The device `forced` where it is given, else the one that the name means."""
    if forced is not None:
        return Source(forced)
    if not name:
        return Source(None, "no GPU is named: give it with --device")
    try:
        return Source(find_device(name))
    except ValueError as error:
        return Source(None, f"{error}; or name it with --device")


def _layers(path: Path, lines: Sequence[Mapping[str, str]], forced: Device | None) -> list[Measured]:
    by_gpu: dict[str, list[MeasuredLayer]] = defaultdict(list)
    for number, line in enumerate(lines, 2):
        try:
            problem, transposed = schema.problem_of(line)
            passes = schema.passes_of(line.get("pass") or "", transposed)
            dtype = DTYPES.get(line["dtype"])
            seconds = float(line["time_us"]) * 1e-6
            if dtype is None or not 0 < seconds < float("inf"):
                raise ValueError(f"dtype {line['dtype']!r} or time {line['time_us']!r} is none")
        except (ValueError, TypeError, ZeroDivisionError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        mode = "compiled" if "inductor" in (line.get("framework") or "") else "eager"
        by_gpu[(line.get("gpu") or "").strip()].append(MeasuredLayer(
            name=line.get("name") or _words(problem, transposed), problem=problem, passes=passes, transposed=transposed,
            dtype=dtype, precision=schema.precision_of(line), layout=schema.layout_of(line), seconds=seconds,
            indirect=schema.indirect(line), mode=mode, provider=line.get("framework") or "PyTorch",
        ))  # fmt: skip
    return _measured(path, by_gpu, forced)


def _measured(path: Path, by_gpu: Mapping[str, Sequence[MeasuredLayer]], forced: Device | None) -> list[Measured]:
    """The result of each known GPU; its notes name the unknown ones. Raises ValueError where none is known."""
    rows, missing = [], []
    for name, layers in by_gpu.items():
        source = gpu(name, forced)
        if source.device is None:
            missing.append(f"{len(layers)} rows of {name or 'a GPU without a name'} are left out: {source.reason}")
        else:
            rows.append(Measured(str(path), source.device, tuple(layers)))
    if not rows:
        raise ValueError(f"{path}: {'; '.join(missing) or 'it has no rows'}")
    first, *rest = rows
    return [Measured(first.source, first.device, first.layers, notes=tuple(missing)), *rest]


def _words(problem: ConvProblem, transposed: bool) -> str:
    from costmodel.reports.notation import Convolution

    return str(Convolution(problem, transposed))


# ---- rows of bench run ----------------------------------------------------------------------------------------------


def _rows_of_bench(path: Path, text: str, forced: Device | None) -> list[Measured]:
    by_gpu: dict[str, list[MeasuredLayer]] = defaultdict(list)
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            sizes = {name: _tuples(value) for name, value in row["problem"].items()}
            problem, which, median = ConvProblem(**sizes), Pass(row["which"]), row["median_us"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number} is no row of `bench run` ({error}); what is read is {READ}") from error
        if median is None:
            continue
        provider = " ".join(part for part in (row["provider"], row.get("setting", "")) if part)
        by_gpu[row["gpu"]].append(MeasuredLayer(
            name=row.get("layer") or _words(problem, row.get("transposed", False)), problem=problem, passes=(which,),
            transposed=row.get("transposed", False), dtype=row["dtype"], precision=row.get("precision", "ieee"),
            layout=row["layout"], seconds=median * 1e-6, provider=provider,
        ))  # fmt: skip
    return _measured(path, by_gpu, forced)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


# ---- timm -----------------------------------------------------------------------------------------------------------


def _networks(path: Path, lines: Sequence[Mapping[str, str]], forced: Device | None) -> list[Measured]:
    words = re.split(r"[-_.]", path.name.lower())
    by_gpu: dict[str, list[MeasuredNetwork]] = defaultdict(list)
    for line in lines:
        for network in _network(line, words):
            by_gpu[line.get("gpu") or ""].append(network)
    measured, reasons = [], []
    for name, networks in by_gpu.items():
        source = gpu(name, forced) if name or forced else _from_name(words)
        if source.device is None:
            reasons.append(source.reason)
        else:
            measured.append(Measured(str(path), source.device, networks=tuple(networks)))
    if not measured:
        raise ValueError(f"{path}: {'; '.join(dict.fromkeys(reasons)) or 'no line has a time'}")
    return measured


def _from_name(words: Sequence[str]) -> Source:
    """The GPU of a timm file, which is only in the file's name."""
    for word in words:
        try:
            return Source(find_device(word))
        except ValueError:
            continue
    return Source(None, "neither a column nor the file's name says which GPU it was: give it with --device")


def _network(line: Mapping[str, str], words: Sequence[str]) -> Iterator[MeasuredNetwork]:
    """A line has an `infer_` part, a `train_` part, both, or neither prefix."""
    if "images_per_s" in line:
        yield _one(line, line, "images_per_s", "img", "batch", line.get("layout", ""), line.get("dtype", ""),
                   line.get("compiled") == "1", line.get("pass") == "train")  # fmt: skip
        return
    layout = "nhwc" if "nhwc" in words or "channels" in words else "nchw"
    dtype = next((word for word in words if word in DTYPES), "fp32")
    compiled = any(word in words for word in ("dynamo", "compile", "inductor"))
    for prefix in ("infer_", "train_", ""):
        rate = f"{prefix}samples_per_sec"
        if line.get(rate):
            named = {key.removeprefix(prefix): value for key, value in line.items() if key and key.startswith(prefix)}
            training = prefix == "train_" or (not prefix and "train" in words)
            yield _one(line, named, "samples_per_sec", "img_size", "batch_size", layout, dtype, compiled, training)


def _one(
    line: Mapping[str, str], named: Mapping[str, str], rate: str, image: str, batch: str, layout: str, dtype: str,
    compiled: bool, training: bool,
) -> MeasuredNetwork:  # fmt: skip
    parameters = line.get("param_count") or line.get("params_m")
    gmacs = named.get("gmacs") or line.get("infer_gmacs") or line.get("gmacs")
    try:
        size = int(float(named[batch]))
        return MeasuredNetwork(
            model=line["model"], image=int(float(named[image])), batch=size, seconds=size / float(named[rate]),
            parameters=float(parameters) if parameters else None, gmacs=float(gmacs) if gmacs else None,
            layout="channels_last" if layout == "nhwc" else "contiguous", dtype=DTYPES.get(dtype, "float32"),
            mode="compiled" if compiled else "eager", training=training,
        )  # fmt: skip
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"the line of {line.get('model')!r} has no usable batch, size or rate: {error}") from error
