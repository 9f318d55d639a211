"""Pairs of a depthwise and a pointwise convolution: as one kernel and as two, compiled, predicted, and timed on a GPU.

`python -m bench separable` times them against torch; `--predicted` prints the README's table; `--compiled` what the compiler
makes of the menu. The last two need no GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table
from torch.nn import functional

import tritonconv
from bench.aot import Pointer, compile_ahead
from bench.machine import REPLAY_SECONDS, Gpu, Machine, quantiles
from bench.measure import MOST_REPETITIONS
from bench.provenance import results_dir
from bench.records import write
from bench.sass import KernelAudit, audit
from bench.tolerance import UNIT
from costmodel import separable as model
from costmodel.calibration import PRIOR_SOURCE
from costmodel.device import Device, find_device
from costmodel.problem import ConvProblem
from costmodel.separable import Pair, PairCall
from costmodel.tiling import Plan
from tritonconv import separable_launch as launch
from tritonconv.kernels.epilogue import Fused
from tritonconv.kernels.separable import separable_kernel
from tritonconv.layout import channels_last_strides, dense_strides, filters_last_strides
from tritonconv.prepared import FusedKey, Prepared, TensorKey

BATCH = 64


@dataclass(frozen=True)
class Layer:
    """A depthwise k x k convolution with "same" padding and the pointwise one behind it, images of `size` x `size`."""

    network: str
    channels: int
    size: int
    filters: int
    kernel: int = 3
    stride: int = 1
    activation: str = "relu6"
    batch: int = BATCH

    @property
    def name(self) -> str:
        return f"{self.channels} x {self.size}x{self.size}, k{self.kernel} s{self.stride} -> {self.filters}"

    @property
    def pair(self) -> Pair:
        c, k, s = self.channels, (self.kernel,) * 2, (self.stride,) * 2
        x = (self.batch, c, self.size, self.size)
        return Pair(ConvProblem.conv(x, (c, 1, *k), s, (self.kernel // 2,) * 2, (1, 1), c), self.filters)

    def keys(self, channels_last: bool = True, packed: bool = False) -> tuple[TensorKey, TensorKey, TensorKey, TensorKey]:
        """Shape and strides of x, w1, w2 and y; `packed`: the depthwise weights as the kernel wants them."""
        first, second = self.pair.depthwise, self.pair.pointwise

        def dense(shape: tuple[int, ...], last: bool = channels_last) -> TensorKey:
            return shape, channels_last_strides(shape) if last else dense_strides(shape, range(len(shape) - 1, -1, -1))

        w1 = dense(first.weight_shape, False)
        w1 = (w1[0], filters_last_strides(w1[0])) if packed else w1
        return dense(first.input_shape), w1, dense(second.weight_shape, False), dense(second.output_shape)

    def call(self, dtype: torch.dtype = torch.bfloat16, channels_last: bool = True, packed: bool = False) -> PairCall:
        """What the cost model is asked."""
        x, w1, w2, y = self.keys(channels_last, packed)
        between = FusedKey(None, None, None, self.activation, 0.0, False)
        nothing = FusedKey(None, None, None, "", 0.0, False)
        return launch.described(self.pair, dtype, "tf32", x, w1, w2, y, between, nothing)


#: Every pair of MobileNetV2 (Sandler et al. 2018, table 2; ReLU6 between), and of EfficientNet-Lite0, which leaves out the
#: squeeze-and-excitation that stands between a pair of EfficientNet-B0 and would need the whole image (3x3 pairs as above).
LAYERS = (
    Layer("MobileNetV2", 32, 112, 16),
    Layer("MobileNetV2", 96, 112, 24, stride=2),
    Layer("MobileNetV2", 144, 56, 24),
    Layer("MobileNetV2", 144, 56, 32, stride=2),
    Layer("MobileNetV2", 192, 28, 32),
    Layer("MobileNetV2", 192, 28, 64, stride=2),
    Layer("MobileNetV2", 384, 14, 64),
    Layer("MobileNetV2", 384, 14, 96),
    Layer("MobileNetV2", 576, 14, 96),
    Layer("MobileNetV2", 576, 14, 160, stride=2),
    Layer("MobileNetV2", 960, 7, 160),
    Layer("MobileNetV2", 960, 7, 320),
    Layer("EfficientNet-Lite0", 144, 56, 40, 5, 2),
    Layer("EfficientNet-Lite0", 240, 28, 40, 5),
    Layer("EfficientNet-Lite0", 240, 28, 80, 3, 2),
    Layer("EfficientNet-Lite0", 480, 14, 112, 5),
    Layer("EfficientNet-Lite0", 672, 14, 192, 5, 2),
    Layer("EfficientNet-Lite0", 1152, 7, 192, 5),
)


# ---- compiled ------------------------------------------------------------------------------------------------------------


def prepared(
    layer: Layer, plan: Plan, dtype: torch.dtype, arch: int, channels_last: bool, after: FusedKey | None, bias: int | None
) -> Prepared:
    """What a launch of a layer under a plan would be."""
    packed = bool(plan.pack)
    between = FusedKey(None, None, None, layer.activation, 0.0, False)
    after = after or FusedKey(None, None, None, "", 0.0, False)
    call = layer.call(dtype, channels_last, packed)
    return launch.prepare(call, plan, *layer.keys(channels_last, packed), bias, between, bias, after, arch)


def compiled(
    layer: Layer,
    plan: Plan,
    dtype: torch.dtype = torch.bfloat16,
    arch: int = 90,
    channels_last: bool = True,
    after: FusedKey | None = None,
    bias: int | None = 1,
) -> KernelAudit:
    """What the kernel of a layer under a plan compiles to."""
    ready, element = prepared(layer, plan, dtype, arch, channels_last, after, bias), Pointer(dtype)
    given, absent = element, None if bias is None else element
    residual = element if after is not None and after.residual is not None else None
    fused = Fused(None, None, residual, None, *ready.fused)
    pointers = (given, given, absent, given, absent, given)
    arguments = dict(zip(separable_kernel.arg_names, (*pointers, *ready.arguments), strict=False))
    arguments |= ready.constants | {"fused": fused}
    options = {name: arguments.pop(name) for name in ("num_warps", "num_stages", "maxnreg") if name in arguments}
    return audit(compile_ahead(separable_kernel, arguments, arch=arch, **options))


def outputs(plan: Plan) -> float:
    """Values between the convolutions that a thread makes in a trip."""
    return plan.block_m * plan.block_k / (32 * plan.num_warps)


def show_compiled(console: Console) -> None:
    """The menu, for the first layer of each kernel size and stride: registers, spills, instructions a depthwise output."""
    shown = Table(title=f"Triton {triton.__version__}, sm_90, bfloat16", box=HORIZONTALS, padding=(0, 1, 0, 0))
    for heading in ("filter", "plan", "regs", "spills", "trip", "predicted", "an output"):
        shown.add_column(heading, justify="left" if heading in ("filter", "plan") else "right", no_wrap=True)
    device = find_device("h100")
    for layer in {(each.kernel, each.stride): each for each in reversed(LAYERS)}.values():
        for plan in model.candidates(layer.call(), device):
            found = compiled(layer, plan)
            trip = found.trip.instructions
            told = model.trip_instructions(layer.call(), plan, 90)
            words = f"{layer.kernel}x{layer.kernel} s{layer.stride}", str(plan).split(":", 2)[2]
            counts = found.registers, found.spills, trip, f"{told:.0f}", f"{trip / outputs(plan):.1f}"
            shown.add_row(*words, *map(str, counts))
    console.print(shown)


# ---- predicted -----------------------------------------------------------------------------------------------------------


def predicted(layer: Layer, device: Device) -> tuple[float, float, Plan]:
    """(seconds of two kernels, of one, the one's plan)."""
    call = layer.call()
    plan = model.select(call, device, True)
    assert plan is not None
    return sum(one.seconds for one in model.apart(call, device)), model.predict(call, plan, device).seconds, plan


def table() -> str:
    """Markdown, for the README."""
    device = find_device("h100")
    lines = [
        f"| batch {BATCH}, bfloat16, H100 (predicted) | two kernels, µs | one kernel, µs | ratio | chosen |",
        "|---|---|---|---|---|",
    ]
    for layer in LAYERS:
        two, one, _ = predicted(layer, device)
        lines.append(
            f"| {layer.network} {layer.name} | {two * 1e6:.1f} | {one * 1e6:.1f} | {two / one:.2f} "
            f"| {'one' if one < two else 'two'} |"
        )
    return "\n".join(lines)


# ---- measured ------------------------------------------------------------------------------------------------------------

Set = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Timed:
    """A contender's time of a layer. `share`: its error in parts of the tolerance, above 1 a wrong result without a time."""

    network: str
    layer: str
    contender: str
    plan: str
    predicted_us: float | None
    share: float
    median_us: float | None
    p10_us: float | None
    p90_us: float | None


def inputs(layer: Layer, count: int, device: str, dtype: torch.dtype) -> list[Set]:
    """x and weights, scaled so that results have size about one."""
    random = torch.Generator(device).manual_seed(0)
    c, k = layer.channels, layer.kernel

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(shape, generator=random, device=device, dtype=torch.float32).mul_(scale).to(dtype)

    found = []
    for _ in range(count):
        x = normal(layer.batch, c, layer.size, layer.size).to(memory_format=torch.channels_last)
        found.append(
            (
                x,
                normal(c, 1, k, k, scale=1 / k),
                normal(layer.filters, c, 1, 1, scale=c**-0.5),
                normal(c),
                normal(layer.filters),
            )
        )
    return found


def exact(layer: Layer, given: Set, sizes: bool = False) -> torch.Tensor:
    """The result in float64 by torch; `sizes`: of absolute values, the bound of what rounding between may do."""
    x, w1, w2, b1, b2 = (t.double().abs() if sizes else t.double() for t in given)
    z = functional.conv2d(x, w1, b1, layer.stride, layer.kernel // 2, 1, layer.channels)
    return functional.conv2d(functional.relu6(z) if layer.activation else z, w2, b2)


def share(got: torch.Tensor, layer: Layer, given: Set) -> float:
    """The largest error in parts of the tolerance: one rounding of the result, and one of everything between."""
    want, unit = exact(layer, given), UNIT[got.dtype]
    allowed = unit * want.abs() + 2 * unit * exact(layer, given, True)
    return float(torch.where(got.isnan(), math.inf, (got.double() - want).abs() / allowed).max())


def contenders(layer: Layer, device: Device) -> Iterator[tuple[str, str, float | None, Callable[..., torch.Tensor]]]:
    """(name, plan, predicted µs, call of a set)."""
    stride, padding = layer.stride, layer.kernel // 2
    two, one, plan = predicted(layer, device)

    def ours(plan: Any) -> Callable[..., torch.Tensor]:
        def call(x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, b1: torch.Tensor, b2: torch.Tensor) -> torch.Tensor:
            return tritonconv.depthwise_separable_conv2d(
                x, w1, w2, b1, b2, stride, padding, activation=layer.activation, plan=plan
            )

        return call

    def theirs(x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, b1: torch.Tensor, b2: torch.Tensor) -> torch.Tensor:
        z = functional.conv2d(x, w1, b1, stride, padding, 1, layer.channels)
        return functional.conv2d(functional.relu6(z, inplace=True), w2, b2)

    yield "one kernel", str(plan), 1e6 * one, ours("fused")
    yield "two kernels", "apart", 1e6 * two, ours("apart")
    yield "torch", "", None, theirs


def timed(layer: Layer, machine: Machine, dtype: torch.dtype = torch.bfloat16) -> list[Timed]:
    """Every contender of a layer, checked, then timed in turns with the others on inputs that the L2 cache does not hold."""
    size = layer.pair.bytes(dtype.itemsize)
    sets = inputs(layer, 2 * machine.model.l2_bytes // size + 1, machine.device, dtype)
    seconds = size / (machine.model.bandwidth * 1e9)
    calls = len(sets) * min(MOST_REPETITIONS, math.ceil(REPLAY_SECONDS / (len(sets) * seconds)))
    rows, captured = [], []
    with torch.no_grad():
        for name, plan, told, call in contenders(layer, machine.model):
            graph = machine.capture(lambda i, call=call: call(*sets[i]), len(sets), calls)  # type: ignore[misc]
            graph.outputs[0].fill_(math.nan)
            graph.replay()
            rows.append(
                Timed(layer.network, layer.name, name, plan, told, share(graph.outputs[0], layer, sets[0]), *(None,) * 3)
            )
            captured.append(graph)
        found = []
        for row, graph, times in zip(rows, captured, machine.replays(captured), strict=True):
            got = quantiles([1e6 * second / graph.calls for second in times])
            right = {"median_us": got.median, "p10_us": got.p10, "p90_us": got.p90} if row.share <= 1 else {}
            found.append(Timed(**{**asdict(row), **right}))
    machine.release()
    return found


def command(out: Path | None, machine: Machine | None = None, layers: tuple[Layer, ...] = LAYERS) -> None:
    """Time all layers, print the table and write the records. torch looks for its fastest algorithm."""
    machine = machine or Gpu()
    torch.backends.cudnn.benchmark = True
    shown = Table(title=f"{machine.facts['gpu']}, batch {BATCH}, bfloat16, channels-last, µs", box=HORIZONTALS)
    for heading in ("layer", "one kernel", "predicted", "two kernels", "predicted", "torch", "two / one", "torch / one"):
        shown.add_column(heading, justify="left" if heading == "layer" else "right")
    records = []
    for layer in layers:
        rows = timed(layer, machine)
        records += [{**asdict(row), **machine.facts} for row in rows]
        one, two, torch_ = (row.median_us or math.nan for row in rows)
        told = (f"{row.predicted_us:.1f}" for row in rows[:2])
        words = f"{one:.1f}", next(told), f"{two:.1f}", next(told), f"{torch_:.1f}", f"{two / one:.2f}", f"{torch_ / one:.2f}"
        shown.add_row(f"{layer.network} {layer.name}", *words)
    path = (out or results_dir()) / "separable.json"
    write(path, records)
    console = Console()
    console.print(shown)
    wrong = [f"{r['layer']}, {r['contender']}" for r in records if r["share"] > 1]
    console.print(f"wrong results: {', '.join(wrong) or 'none'}. Predictions: {PRIOR_SOURCE}. Rows: {path}", soft_wrap=True)
    if wrong:
        raise SystemExit(1)
