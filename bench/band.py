"""The table of large depthwise filters: what the cost model says about the FMA kernels and those on tensor cores.

`python -m bench band` prints it. Needs no GPU.
"""

from __future__ import annotations

from costmodel.device import Device, find_device
from costmodel.plan import candidates, predict, select
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Call
from tritonconv import launch
from tritonconv.layout import dense_strides

KERNELS, SIZES = (13, 21, 31), (32, 64)


def layer(kernel: int, size: int) -> ConvProblem:
    """The setting of RepLKNet's sweep over filters: 384 channels, a batch of 64."""
    return ConvProblem.conv((64, 384, size, size), (384, 1, kernel, kernel), (1, 1), (kernel // 2,) * 2, (1, 1), 384)


def call_of(problem: ConvProblem, which: Pass, dtype: str = "float16") -> Call:
    """A pass on contiguous tensors."""
    x, w, y = (
        (shape, dense_strides(shape, range(len(shape) - 1, -1, -1)))
        for shape in (problem.input_shape, problem.weight_shape, problem.output_shape)
    )
    a, b, out = {Pass.FPROP: (x, w, y), Pass.DGRAD: (y, w, x), Pass.WGRAD: (y, x, w)}[which]
    return Call(problem, which, dtype, "ieee", *launch.describe(problem, which, a, b, out))


def fma_seconds(call: Call, device: Device) -> float:
    """The predicted time of the best plan of the FMA kernels."""
    return min(predict(call, plan, device).seconds for plan in candidates(call, device) if plan.family == "depthwise")


def summary() -> str:
    """Markdown: predicted times of each pass, multiply-adds at the peak of the FMA units and bytes at DRAM's bandwidth."""
    device = find_device("h100")
    headings = ("64 x 384 channels, float16", "pass", "FMA peak", "DRAM", "`depthwise`", "chosen", "plan")
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for size in SIZES:
        for kernel in KERNELS:
            problem = layer(kernel, size)
            peak, dram = 2e6 * problem.macs / device.rate("float32", "ieee"), problem.bytes(2) / (device.bandwidth * 1e3)
            for which in Pass:
                call = call_of(problem, which)
                plan = select(call, device)
                name = f"{kernel}x{kernel} on {size}x{size}" if which == Pass.FPROP else ""
                lines.append(
                    f"| {name} | {which} | {peak:.0f} us | {dram:.0f} us | {fma_seconds(call, device) * 1e6:.0f} us "
                    f"| {predict(call, plan, device).seconds * 1e6:.0f} us | `{str(plan).split(':', 1)[1]}` |"
                )
    return "\n".join(lines)
