"""Pairs of a depthwise and a pointwise convolution, as one kernel and as two: their predicted times, and what the kernel
compiles to. `bench.chains.separable` times them; this needs no GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table

from bench.aot import Pointer, compile_ahead
from bench.sass import KernelAudit, audit
from costmodel import separable as model
from costmodel.device import Device, find_device
from costmodel.problem import ConvProblem
from costmodel.separable import Pair, PairCall
from costmodel.tiling import Plan
from tritonconv.kernels.epilogue import Fused
from tritonconv.kernels.separable import separable_kernel
from tritonconv.layout import channels_last_strides, dense_strides, filters_last_strides
from tritonconv.prepared import FusedKey, TensorKey
from tritonconv.separable import launch
from tritonconv.steps import Launch

BATCH = 64


@dataclass(frozen=True)
class Layer:
    """A depthwise k x k convolution with "same" padding followed by a pointwise one, on images of `size` x `size`."""

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
        """Shapes and strides of x, w1, w2 and y. `packed`: the depthwise weights are in the kernel's layout."""
        first, second = self.pair.depthwise, self.pair.pointwise

        def dense(shape: tuple[int, ...], last: bool = channels_last) -> TensorKey:
            return shape, channels_last_strides(shape) if last else dense_strides(shape, range(len(shape) - 1, -1, -1))

        w1 = dense(first.weight_shape, False)
        w1 = (w1[0], filters_last_strides(w1[0])) if packed else w1
        return dense(first.input_shape), w1, dense(second.weight_shape, False), dense(second.output_shape)

    def call(
        self,
        dtype: torch.dtype = torch.bfloat16,
        channels_last: bool = True,
        packed: bool = False,
        precision: str = "tf32",
    ) -> PairCall:
        """The call that the cost model plans."""
        x, w1, w2, y = self.keys(channels_last, packed)
        between = FusedKey(None, None, None, self.activation, 0.0, False)
        nothing = FusedKey(None, None, None, "", 0.0, False)
        return launch.described(self.pair, dtype, precision, x, w1, w2, y, between, nothing)


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


def prepared(
    layer: Layer,
    plan: model.SeparablePlan,
    dtype: torch.dtype,
    arch: int,
    channels_last: bool,
    after: FusedKey | None,
    bias: int | None,
) -> Launch:
    """The launch of a layer under a plan."""
    packed = bool(plan.pack)
    between = FusedKey(None, None, None, layer.activation, 0.0, False)
    after = after or FusedKey(None, None, None, "", 0.0, False)
    call = layer.call(dtype, channels_last, packed)
    return launch.prepare(call, plan, *layer.keys(channels_last, packed), bias, between, bias, after, arch)


def compiled(
    layer: Layer,
    plan: model.SeparablePlan,
    dtype: torch.dtype = torch.bfloat16,
    arch: int = 90,
    channels_last: bool = True,
    after: FusedKey | None = None,
    bias: int | None = 1,
) -> KernelAudit:
    """The audit of the kernel of a layer under a plan."""
    ready, element = prepared(layer, plan, dtype, arch, channels_last, after, bias), Pointer(dtype)
    given, absent = element, None if bias is None else element
    residual = element if after is not None and after.residual is not None else None
    fused = Fused(None, None, residual, None, *ready.fused)
    pointers = (given, given, absent, given, absent, given)
    arguments = dict(zip(separable_kernel.arg_names, (*pointers, *ready.main.arguments), strict=False))
    arguments |= ready.main.constants | {"fused": fused}
    options = {name: arguments.pop(name) for name in ("num_warps", "num_stages", "maxnreg") if name in arguments}
    return audit(compile_ahead(separable_kernel, arguments, arch=arch, **options))


def outputs(plan: model.SeparablePlan) -> float:
    """Values of the depthwise result that a thread computes per trip."""
    return plan.block_m * plan.block_k / (32 * plan.num_warps)


def show_compiled() -> None:
    """Print the menu for the first layer of each filter and stride: registers, spills, instructions per depthwise output."""
    shown = Table(title=f"Triton {triton.__version__}, sm_90, bfloat16", box=HORIZONTALS, padding=(0, 1, 0, 0))
    for heading in ("filter", "plan", "regs", "spills", "trip", "predicted", "an output"):
        shown.add_column(heading, justify="left" if heading in ("filter", "plan") else "right", no_wrap=True)
    device = find_device("h100")
    for layer in {(shape.kernel, shape.stride): shape for shape in reversed(LAYERS)}.values():
        for plan in model.candidates(layer.call(), device):
            compiled_figures = compiled(layer, plan)
            trip = compiled_figures.trip.instructions
            counted = model.trip_instructions(layer.call(), plan, 90)
            words = f"{layer.kernel}x{layer.kernel} s{layer.stride}", str(plan).split(":", 2)[2]
            counts = compiled_figures.registers, compiled_figures.spills, trip, f"{counted:.0f}", f"{trip / outputs(plan):.1f}"
            shown.add_row(*words, *map(str, counts))
    console = Console()
    Console(width=None if console.is_terminal else 120).print(shown)


def predicted(
    layer: Layer, device: Device, dtype: torch.dtype = torch.bfloat16, precision: str = "tf32"
) -> tuple[float, float, Plan]:
    """(seconds of two kernels, seconds of one kernel, the plan of the one kernel)."""
    call = layer.call(dtype, precision=precision)
    plan = model.select(call, device, True)
    assert plan is not None
    return sum(one.seconds for one in model.apart(call, device)), model.predict(call, plan, device).seconds, plan


def table() -> str:
    """The table of docs/kernels.md, in Markdown."""
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
