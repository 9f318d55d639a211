"""From files to comparisons: picks the reader that a file needs, and builds models that a trace or a table of networks
needs."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from costmodel.compare import analysis, join, tables, trace
from costmodel.compare.analysis import Comparison, NetworkRow
from costmodel.compare.measured import Measured, MeasuredNetwork
from costmodel.device import Device, find_device

#: Most networks of a table that are traced by default, because a trace takes a second or more.
MOST = 20


def study(
    path: Path,
    device: Device | None = None,
    model: str = "",
    shapes: Sequence[tuple[int, ...]] = (),
    most: int = MOST,
) -> list[Comparison]:
    """One comparison per GPU of the file at `path`.

    `device` overrides the GPU that the file names. `model` ("package.module:callable") supplies the sizes of a trace that has
    no strides, on inputs of `shapes` or of the traced first convolution, and the network of a table of networks (timm's by
    default). `most` rows of such a table, spread over it, are traced; 0 traces all. Raises ValueError, in words, for a file
    that cannot be compared.
    """
    if _is_trace(path):
        return [_of_trace(path, device, model, shapes)]
    comparisons = []
    for measured in tables.load(path, device):
        rows, notes = _networks(measured, model, most) if measured.networks else ([], [])
        done = analysis.compare(measured, rows)
        comparisons.append(_noted(done, notes))
    return comparisons


def _noted(comparison: Comparison, notes: Sequence[str]) -> Comparison:
    from dataclasses import replace

    return replace(comparison, notes=(*comparison.notes, *notes))


def _is_trace(path: Path) -> bool:
    """Whether a file is JSON, but not one object per line."""
    if path.name.removesuffix(".gz").endswith((".jsonl", ".csv")):
        return False
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            start = file.read(4096).lstrip()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    return start[:1] == b"[" or (start[:1] == b"{" and not start.startswith(b'{"problem"'))


def _of_trace(path: Path, forced: Device | None, model: str, shapes: Sequence[tuple[int, ...]]) -> Comparison:
    read = trace.load(path)
    device = forced
    if device is None:
        if not read.device:
            raise ValueError(f"{path} does not say which GPU it is of (no deviceProperties): name it with --device")
        try:
            device = find_device(read.device)
        except ValueError as error:
            raise ValueError(f"{path} is of {read.device}: {error}") from error
    convolutions = None
    if model and any(instance.call.problem is None for instance in read.convolutions):
        first = next((instance.call.x for instance in read.convolutions if not instance.call.backward), None)
        given = list(shapes) or ([first] if first else [])
        training = any(instance.call.backward for instance in read.convolutions)
        convolutions = _traced(model, given, training).convolutions
    return analysis.compare(join.measured(read, device, convolutions))


def _traced(model: str, shapes: Sequence[tuple[int, ...]], training: bool, dtype: Any = None) -> Any:
    from costmodel.networks.models import load
    from costmodel.networks.network import trace as network

    return network(load(model), *shapes, train=training, dtype=dtype)


# ---- tables of networks ---------------------------------------------------------------------------------------------


def _networks(measured: Measured, model: str, most: int) -> tuple[list[NetworkRow], list[str]]:
    import torch

    given = list(measured.networks)
    notes = []
    if most and len(given) > most:
        step = len(given) / most
        notes.append(f"{most} of {len(given)} networks are traced, spread over the file; --most 0 traces all")
        given = [given[int(i * step)] for i in range(most)]
    build = _builder(model)
    rows = []
    for row in given:
        try:
            module = build(row)
            network = _on_meta(module, row, torch)
            dense = sum(layer.forward.dense_macs for layer in network.layers) // row.batch
            reason = analysis.check(row, network.parameters, dense)
        except ValueError as error:
            network, reason = None, str(error)
        rows.append(analysis.network_row(row, measured.device, None if reason else network, reason))
    return rows, notes


def _on_meta(module: Any, measured: MeasuredNetwork, torch: Any) -> Any:
    from costmodel.networks.network import trace as network

    module = module.train() if measured.training else module.eval().requires_grad_(False)
    return network(
        module,
        (measured.batch, 3, measured.image, measured.image),
        train=measured.training,
        dtype=getattr(torch, measured.dtype),
    )


def _builder(model: str) -> Callable[[MeasuredNetwork], Any]:
    """A function that builds the network of a measured line: `model` where it is given, otherwise timm's model of that name."""
    from costmodel.networks.models import imported, load

    if model:
        module = load(model)
        return lambda measured: module
    try:
        imported("torchvision")  # timm imports it
        timm = imported("timm")
    except ValueError as error:
        raise ValueError(
            f"the table is of timm's networks, and timm cannot be imported ({error}): pip install timm, or name a network of "
            "it with --model package.module:callable"
        ) from error

    def build(measured: MeasuredNetwork) -> Any:
        import torch

        try:
            with torch.device("meta"):
                try:
                    return timm.create_model(measured.model, pretrained=False, img_size=measured.image)
                except TypeError:  # networks that take any size have no such argument
                    return timm.create_model(measured.model, pretrained=False)
        except Exception as error:  # whatever a builder raises
            raise ValueError(f"timm does not make {measured.model!r}: {str(error).splitlines()[0]}") from error

    return build
