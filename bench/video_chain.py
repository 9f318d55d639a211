"""Layers of video VAEs measured: `causal_conv3d` against the operators that models write today, each result checked.

The layers are those of shapes.jsonl, one chunk behind the cached frames of the chunk before; what was padded and joined there
is taken apart again. Tensors take turns that the L2 cache does not hold, calls are captured in CUDA graphs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table

import tritonconv
from bench.machine import REPLAY_SECONDS, Captured, Gpu, Machine, quantiles
from bench.measure import MOST_REPETITIONS, one_line
from bench.provenance import results_dir
from bench.providers.cudnn import benchmark, in_layout
from bench.records import write
from bench.tolerance import Expected, share
from bench.workloads import Workload, parse, rows
from costmodel import video as model
from costmodel.families import family_hash

SUITES = ("wan21_vae_decode", "wan21_vae_encode", "cogvideox_vae_decode")
#: Rows of the result that are held against the exact one: a whole frame of it in float64 may be larger than the GPU.
CHECKED = 64
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]  # x, weight, bias, cache


@dataclass(frozen=True)
class Layer:
    """One call of `causal_conv3d`."""

    suite: str
    name: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    cached: int
    stride: tuple[int, int, int]
    padding: tuple[int, int]
    upsample: int = 1
    time_padding: str = "zeros"

    @property
    def chunk(self) -> model.Chunk:
        (h, w), one = self.padding, (1, 1, 1)
        pads = (h, h, w, w)
        return model.Chunk.of(self.x, self.weight, self.cached, self.stride, pads, one, self.upsample, self.time_padding)

    def tensors(self, count: int, dtype: torch.dtype, device: str) -> list[Tensors]:
        """`count` sets, always the same: channels-last, results of size about one."""
        generator = torch.Generator(device).manual_seed(0)

        def values(shape: Sequence[int], scale: float = 1.0) -> torch.Tensor:
            drawn = torch.empty(tuple(shape), dtype=dtype, device=device).normal_(generator=generator).mul_(scale)
            return in_layout(drawn, "channels_last") if len(shape) == 5 else drawn

        scale = math.prod(self.weight[1:]) ** -0.5
        before = (*self.x[:2], self.cached, *self.x[3:])
        return [
            (values(self.x), values(self.weight, scale), values(self.weight[:1]), values(before) if self.cached else None)
            for _ in range(count)
        ]


def layer_of(row: Workload) -> Layer | None:
    """The call behind a layer as it was traced: joined frames, and padded where the row says no padding of its own; None for
    what is no causal convolution."""
    if row.op == "conv2d" and "upsamplers" in row.layer:  # frames as a batch
        x = (1, row.in_channels, row.batch, *(n // 2 for n in row.size))
        pads = (row.padding[0], row.padding[1])
        return Layer(row.suite, row.layer, x, (row.out_channels, row.in_channels, 1, *row.kernel), 0, (1, 1, 1), pads, 2)
    if row.op != "conv3d" or row.kernel[0] == 1:
        return None
    reach, (t, r, s) = row.kernel[0] - 1, row.kernel
    cached = reach + 1 - row.stride[0]
    inside = [n - (k - 1 if p == 0 else 0) for n, k, p in zip(row.size[1:], (r, s), row.padding[1:], strict=True)]
    x = (row.batch, row.in_channels, row.size[0] - cached, *inside)
    padding = "valid" if row.stride[0] > 1 else "zeros"
    stride = (row.stride[0], row.stride[1], row.stride[2])
    weight = (row.out_channels, row.in_channels, t, r, s)
    return Layer(row.suite, row.layer, x, weight, cached, stride, (r // 2, s // 2), 1, padding)


def layers(suites: Sequence[str] = SUITES) -> list[Layer]:
    """The layers of these suites, each call once."""
    found: dict[tuple[Any, ...], Layer] = {}
    for row in rows():
        if row["suite"] in suites and (layer := layer_of(parse(row))) is not None:
            found.setdefault((layer.suite, str(layer.chunk)), layer)
    return list(found.values())


def ours(layer: Layer, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, cache: torch.Tensor | None) -> torch.Tensor:
    y, _ = tritonconv.causal_conv3d(
        x, w, b, layer.stride, layer.padding, cache, upsample=layer.upsample, time_padding=layer.time_padding
    )
    return y


def chain(
    layer: Layer, layout: str, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, cache: torch.Tensor | None
) -> torch.Tensor:
    """As diffusers writes it: the clone for the next chunk, cat, F.interpolate or F.pad, conv3d with its bias."""
    chunk = layer.chunk
    line = x if cache is None else torch.cat([cache, x], 2)
    line[:, :, line.shape[2] - chunk.kept :].clone()
    h, s = layer.padding
    if layer.upsample == 2:
        line, pads = F.interpolate(line, scale_factor=(1.0, 2.0, 2.0), mode="nearest"), (0, h, s)
    else:
        line, pads = F.pad(line, (s, s, h, h, chunk.front, 0)), (0, 0, 0)
    return F.conv3d(in_layout(line, layout), in_layout(w, layout), b, layer.stride, pads)


def exact(layer: Layer, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, cache: torch.Tensor | None) -> Expected:
    """The first rows of the result, in float64."""
    h, s = layer.padding
    enough = ((CHECKED - 1) * layer.stride[1] + layer.weight[3]) // layer.upsample + 1
    line = (x if cache is None else torch.cat([cache, x], 2))[:, :, :, :enough].double()
    line = line.repeat_interleave(layer.upsample, 3).repeat_interleave(layer.upsample, 4)
    below = h if enough >= layer.x[3] else 0
    line = F.pad(line, (s, s, h, below, layer.chunk.front, 0))

    def sums(line: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.conv3d(line, w.double().contiguous(), b.double(), layer.stride)[:, :, :, :CHECKED]

    return Expected(sums(line, w, b), sums(line.abs(), w.abs(), b.abs()), torch.tensor(float(math.prod(layer.weight[1:]))))


@dataclass(frozen=True)
class Row:
    """A contender's time for a layer, None where it failed or answered wrong (`note`); bytes are those it must move."""

    suite: str
    layer: str
    call: str
    provider: str
    setting: str
    plan: str
    family_hash: str
    predicted_us: float | None
    bytes: int
    flops: int
    median_us: float | None = None
    p10_us: float | None = None
    p90_us: float | None = None
    error: float | None = None
    note: str = ""


def contenders(layer: Layer) -> Iterator[tuple[str, str, Callable[..., torch.Tensor], bool]]:
    """(provider, setting, call, cudnn.benchmark): ours, and the chain as a careful user runs it."""
    yield "tritonconv", "", partial(ours, layer), False
    for layout, search in itertools.product(("channels_last", "contiguous"), (False, True)):
        yield "chain", layout + " benchmark" * search, partial(chain, layer, layout), search


def measure(layer: Layer, machine: Machine, dtype: torch.dtype = torch.bfloat16) -> list[Row]:
    """Rows of all contenders of a layer, whose replays take turns."""
    name, chunk, size = str(dtype).removeprefix("torch."), layer.chunk, dtype.itemsize
    plan = model.select(chunk, name, "ieee", machine.model)
    predicted = model.predict(chunk, plan, name, "ieee", machine.model)
    sets = layer.tensors(2 * machine.model.l2_bytes // model.compulsory(chunk, size) + 1, dtype, machine.device)
    want = exact(layer, *sets[0])
    calls = len(sets) * min(MOST_REPETITIONS, math.ceil(REPLAY_SECONDS / (len(sets) * predicted.seconds)))
    found: list[Row] = []
    ready: list[tuple[int, Captured]] = []
    moved = {"tritonconv": model.compulsory(chunk, size), "chain": sum(model.chain(chunk, size).values())}
    for provider, setting, call, search in contenders(layer):
        own = provider == "tritonconv"
        row = partial(
            Row,
            layer.suite,
            layer.name,
            str(chunk),
            provider,
            setting,
            str(plan) if own else "",
            family_hash(model.FAMILY) if own else "",
            predicted_us=1e6 * predicted.seconds if own else None,
            bytes=moved[provider],
            flops=chunk.flops,
        )
        try:
            with benchmark(search):
                captured = machine.capture(lambda i, call=call: call(*sets[i]), len(sets), calls)  # type: ignore[misc]
            for result in captured.outputs:
                result.fill_(math.nan)
            captured.replay()
            error = share(captured.outputs[0][:, :, :, :CHECKED], want)
            if not all(bool(result.isfinite().all()) for result in captured.outputs):
                error = math.inf
        except Exception as raised:  # whatever torch raises, the others go on
            found.append(row(note=one_line(raised)))
            continue
        if error <= 1:
            ready.append((len(found), captured))
        note = "" if error <= 1 else f"the error is {error:.3g} times the tolerance"
        found.append(row(error=error if math.isfinite(error) else None, note=note))
    times = machine.replays([captured for _, captured in ready])
    for (i, captured), seconds in zip(ready, times, strict=True):
        took = quantiles([1e6 * second / captured.calls for second in seconds])
        found[i] = Row(**asdict(found[i]) | {"median_us": took.median, "p10_us": took.p10, "p90_us": took.p90})
    machine.release()
    return found


def table(found: Sequence[Row], title: str) -> Table:
    shown = Table(title=title, box=HORIZONTALS, padding=(0, 1, 0, 0))
    for heading in ("layer", "call", "ours µs", "fastest chain µs", "ratio", "predicted µs"):
        shown.add_column(heading, justify="left" if heading in ("layer", "call") else "right")
    for (suite, name, call), group in itertools.groupby(found, key=lambda row: (row.suite, row.layer, row.call)):
        members = list(group)
        own = next(row for row in members if row.provider == "tritonconv")
        chains = [row.median_us for row in members if row.provider == "chain" and row.median_us is not None]
        least = min(chains, default=None)
        ratio = "" if least is None or own.median_us is None else f"{least / own.median_us:.2f}"
        took, theirs = ("failed" if us is None else f"{us:.1f}" for us in (own.median_us, least))
        shown.add_row(f"{suite} {name}", call, took, theirs, ratio, f"{own.predicted_us:.1f}")
    return shown


def command(out: Path | None, suites: Sequence[str] = SUITES, machine: Machine | None = None) -> bool:
    """What `python -m bench video` does; whether all of our results were right. Rows are written after each layer."""
    machine, console = machine or Gpu(cudnn_plans=1), Console()
    path, found = (out or results_dir()) / "video.json", []
    for layer in layers(suites):
        found += measure(layer, machine)
        write(path, [{**asdict(row), **machine.facts} for row in found])
    console.print(table(found, f"{machine.facts['gpu']}, torch {machine.facts['torch']}, bfloat16, channels-last"))
    wrong = [row for row in found if row.provider == "tritonconv" and row.median_us is None]
    for row in wrong:
        console.print(f"{row.suite} {row.layer}: {row.note}", soft_wrap=True)
    console.print(f"Rows: {path}", soft_wrap=True)
    return not wrong
