"""Published times of single convolutions, read into problems and devices. `sources.toml` says where each row is from."""

from __future__ import annotations

import csv
import gzip
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from costmodel.compare import schema
from costmodel.device import Device, find_device, load
from costmodel.problem import ConvProblem, Pass

HERE = Path(__file__).resolve().parent
#: The files of single layers, without their suffix.
FILES = ("deepbench", "kernelbench", "conv3d_v100", "resnet50_training_v100", "traces_h100")
#: A source's name of a GPU -> the name that `find_device` reads, where they differ, or a file of `devices/`.
GPUS = {
    "NVIDIA V100 (DGX-1)": "v100",
    "Tesla V100-DGXS-32GB": "v100",
    "GTX 1080 Ti": "gtx1080ti.toml",
    "GTX Titan X (Maxwell)": "titanx-maxwell.toml",
    "Titan X (Pascal)": "titanx-pascal.toml",
    "Titan Xp": "titanxp.toml",
    "Tesla M40": "m40.toml",
}
TENSOR_MATH = ("fp16 tensor cores", "fp16 tensor cores allowed", "bf16 tensor cores", "tf32 (cudnn default)")


@dataclass(frozen=True)
class Published:
    """One time of one convolution. `passes` are the primitives that it covers; a transposed layer's forward is dgrad."""

    file: str
    source: str
    ref: str
    gpu: str
    framework: str
    op: str
    problem: ConvProblem
    passes: tuple[Pass, ...]
    transposed: bool
    dtype: str
    precision: str
    tensor_cores: bool
    layout: str  # "channels_last" or "contiguous"
    mode: str  # "eager", "cudnn" (called directly) or "compiled ..."
    seconds: float
    notes: str
    name: str

    @property
    def device(self) -> Device:
        return device_of(self.gpu)

    @property
    def indirect(self) -> bool:
        """Whether the source names an algorithm that multiplies less than a direct convolution."""
        return any(word in self.notes.lower() for word in ("winograd", "fft"))


@cache
def sources() -> dict[str, Any]:
    """The sources by file: repository, licence, what was timed and on what."""
    return tomllib.loads((HERE / "sources.toml").read_text("utf-8"))


@cache
def device_of(gpu: str) -> Device:
    """The device of a row. Raises ValueError for a GPU whose figures are not known."""
    known = GPUS.get(gpu, gpu)
    return load(HERE / "devices" / known) if known.endswith(".toml") else find_device(known)


def table(name: str) -> list[dict[str, str]]:
    """The lines of a file of `data/`, as text."""
    with gzip.open(HERE / "data" / f"{name}.csv.gz", "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@cache
def published() -> tuple[Published, ...]:
    """Every row of `FILES`."""
    return tuple(row for name in FILES for row in _file(name))


def _file(name: str) -> Iterator[Published]:
    for line in table(name):
        problem, transposed = schema.problem_of(line)
        yield Published(
            file=name,
            source=line["source"],
            ref=line["ref"],
            gpu=line["gpu"],
            framework=line["framework"],
            op=line["op"],
            problem=problem,
            passes=schema.passes_of(line["pass"], transposed),
            transposed=transposed,
            dtype=line["dtype"],
            precision=schema.precision_of(line),
            tensor_cores=line["math"] in TENSOR_MATH,
            layout=schema.layout_of(line),
            mode=_mode(line["framework"]),
            seconds=float(line["time_us"]) * 1e-6,
            notes=line["notes"],
            name=line["name"],
        )


def _mode(framework: str) -> str:
    if framework.startswith("cudnn"):
        return "cudnn"
    _, _, kind = framework.partition(", torch_compile")
    return f"compiled{kind.replace('_', ' ')}" if kind else "eager"
