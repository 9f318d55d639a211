"""The workloads: 1,057 convolution layers of 48 networks and bug reports, one JSON object per line in `shapes.jsonl`.

A row has sizes only; a layer's FLOPs and bytes come from its `problem()`. `source` names the model or thread that a row is
from, and `verified` says how it was read off.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from costmodel.problem import ConvProblem

PATH = Path(__file__).with_name("shapes.jsonl")


@dataclass(frozen=True)
class Workload:
    """One layer as a network calls it. `size`, `kernel` and so on have one entry per spatial axis."""

    suite: str
    layer: str
    op: str  # torch.nn.functional's name, or a deformable operator's
    batch: int
    in_channels: int
    out_channels: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    bias: bool
    count: int  # occurrences in one forward pass of the network
    kind: str  # dense, pointwise, depthwise, grouped, dilated, transposed, patchify, few_channels or deformable
    source: str
    verified: str

    @property
    def transposed(self) -> bool:
        return self.op.startswith("conv_transpose")

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.batch, self.in_channels, *self.size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The weight's shape in torch: (out, in / groups, ...), for a transposed convolution (in, out / groups, ...)."""
        if self.transposed:
            return (self.in_channels, self.out_channels // self.groups, *self.kernel)
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of the call, besides input, weight and bias."""
        call: dict[str, Any] = {name: getattr(self, name) for name in ("stride", "padding", "dilation", "groups")}
        return call | {"output_padding": self.output_padding} if self.transposed else call

    def problem(self) -> ConvProblem:
        """The convolution that this layer is. Raises ValueError for a deformable operator, which is none."""
        if self.transposed:
            return ConvProblem.conv_transpose(self.input_shape, self.weight_shape, **self.arguments())
        if not self.op.startswith("conv"):
            raise ValueError(f"{self.suite}/{self.layer} is a {self.op}, which is not a convolution")
        return ConvProblem.conv(self.input_shape, self.weight_shape, **self.arguments())


# The columns of the file whose names differ from those of the fields.
COLUMNS = {"batch": "N", "in_channels": "C_in", "out_channels": "C_out", "size": "spatial", "kind": "class"}


def parse(row: dict[str, Any]) -> Workload:
    """A row of the file as a `Workload`, without its derived columns (FLOPs, bytes, roofline)."""
    values: dict[str, Any] = {f.name: row[COLUMNS.get(f.name, f.name)] for f in fields(Workload)}
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = tuple(value)
    return Workload(**values)


@cache
def rows() -> tuple[dict[str, Any], ...]:
    """Every line of the file, as written."""
    return tuple(json.loads(line) for line in PATH.read_text().splitlines())


def load(suite: str = "*", layer: str = "*") -> list[Workload]:
    """The layers whose suite and name match the shell patterns, in the file's order. Raises ValueError if none does."""
    matching = [w for w in map(parse, rows()) if fnmatchcase(w.suite, suite) and fnmatchcase(w.layer, layer)]
    if not matching:
        suites = ", ".join(sorted({row["suite"] for row in rows()}))
        raise ValueError(f"no layer matches suite {suite!r} and layer {layer!r}; the suites are {suites}")
    return matching
