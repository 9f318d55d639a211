"""Made-up Kineto traces, test fixtures in the form of the two dialects: no time in them was measured by anybody.

A layer is x and weight shapes with stride, padding, groups; its kernels are (name, microseconds).
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAIN = [("sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128x128x32", 40.5)]
COPIES = [("void cudnn::ops::nchwToNhwcKernel<__half, __half, float>", 12.25), ("cudnn::ops::nhwcToNchwKernel<__half>", 7.25)]


@dataclass
class Layer:
    x: list[int]
    w: list[int]
    stride: int = 1
    padding: int = 0
    groups: int = 1
    transposed: bool = False
    kernels: list[tuple[str, float]] = field(default_factory=lambda: [*COPIES, *MAIN])
    gradient_kernels: list[tuple[str, float]] = field(
        default_factory=lambda: [("sm80_xmma_dgrad_implicit_gemm", 50.5), ("sm80_xmma_wgrad_implicit_gemm", 61.5)]
    )


class Trace:
    """Writes events one behind the other; every kernel runs right behind the one before it."""

    def __init__(self, old: bool = False, kind: str = "c10::Half", shapes: bool = True) -> None:
        self.old, self.kind, self.shapes = old, kind, shapes
        self.events: list[dict[str, Any]] = []
        self.host, self.gpu, self.number = 1000.0, 2000.0, 0

    def operator(
        self, name: str, dims: list[Any], concrete: list[Any], kernels: list[tuple[str, float]], inner=(), **more: Any
    ):
        """One operator with its kernels, and `inner` ones around which it lies, each (name, dims, concrete, kernels)."""
        self.number += 1
        number, start = self.number, self.host
        self.host += 1
        event = {"ph": "X", "cat": "Operator" if self.old else "cpu_op", "name": name, "pid": 1, "tid": more.get("tid", 1)}
        arguments: dict[str, Any] = {"external id" if self.old else "External id": number}
        if self.shapes:
            arguments["Input dims" if self.old else "Input Dims"] = dims
        if not self.old:
            strides = [_contiguous(d) if isinstance(d, list) else [] for d in dims]
            arguments |= {"Input Strides": more.get("strides", strides), "Concrete Inputs": concrete}
            arguments["Input type"] = [self.kind if d else "" for d in dims]
        place = len(self.events)
        for one in inner:
            self.operator(*one, **more)
        for kernel, duration in kernels:
            self.kernel(kernel, duration, number)
        self.host += 1
        self.events.insert(place, event | {"ts": start, "dur": self.host - start, "args": arguments})
        self.host += 1

    def kernel(self, name: str, duration: float, number: int) -> None:
        duration = round(duration) if self.old else duration
        correlation = len(self.events) + 10_000
        runtime = {"ph": "X", "cat": "Runtime" if self.old else "cuda_runtime", "name": "cudaLaunchKernel", "pid": 1, "tid": 1}
        self.events.append(runtime | {"ts": self.host, "dur": 0.5, "args": {"correlation": correlation}})
        self.host += 1
        arguments = {"device": 0, "stream": 7, "correlation": correlation}
        if number:
            arguments["external id" if self.old else "External id"] = number
        kernel = {"ph": "X", "cat": "Kernel" if self.old else "kernel", "name": name, "pid": 0, "tid": 7, "ts": self.gpu}
        self.events.append(kernel | {"dur": duration, "args": arguments})
        self.gpu += duration

    def forward(self, of: Layer) -> None:
        s, p, zero, one = ([v] * (len(of.w) - 2) for v in (of.stride, of.padding, 0, 1))
        dims: list[Any] = [of.x, of.w, [], [], [], [], [], [], []]
        numbers = ["", "", "", str(s), str(p), str(one), str(of.transposed), str(zero), str(of.groups)]
        cudnn = ["", "", str(p), str(s), str(one), str(of.groups), "False"]
        name = "aten::cudnn_convolution_transpose" if of.transposed else "aten::cudnn_convolution"
        cudnn = ["", "", str(p), str(zero), str(s), str(one), str(of.groups)] if of.transposed else cudnn
        innermost = (name, [of.x, of.w, [], [], [], []], cudnn, of.kernels)
        inner = [("aten::convolution", dims, numbers, [], [innermost])]
        wrapper = "aten::conv_transpose2d" if of.transposed else "aten::conv2d"
        outer = ["", "", "", str(s), str(p), str(zero), str(of.groups), str(one)] if of.transposed else [
            "", "", "", str(s), str(p), str(one), str(of.groups)
        ]  # fmt: skip
        self.operator(wrapper, [of.x, of.w, [], [], [], [], []], outer, [], inner)

    def backward(self, of: Layer, first: bool = False) -> None:
        y = [of.x[0], of.w[0], *([(n + 2 * of.padding - k) // of.stride + 1 for n, k in zip(of.x[2:], of.w[2:], strict=True)])]
        if self.old:
            dgrad, wgrad = of.gradient_kernels
            inner = [("aten::cudnn_convolution_backward_weight", [[], y, of.x], [], [wgrad])]
            if not first:
                inner.insert(0, ("aten::cudnn_convolution_backward_input", [[], y, of.w], [], [dgrad]))
            self.operator("aten::cudnn_convolution_backward", [of.x, y, of.w], [], [], inner, tid=2)
            return
        s, p, zero, one = ([v] * (len(of.w) - 2) for v in (of.stride, of.padding, 0, 1))
        numbers = [
            "",
            "",
            "",
            "[0]",
            str(s),
            str(p),
            str(one),
            "False",
            str(zero),
            str(of.groups),
            f"[{not first}, True, False]",
        ]
        kernels = of.gradient_kernels[1:] if first else of.gradient_kernels
        self.operator("aten::convolution_backward", [y, of.x, of.w, *[[]] * 8], numbers, kernels, tid=2)

    def step(self, number: int, body: Any) -> None:
        """What `body()` adds, inside an annotation of the profiler."""
        start = self.host
        body()
        self.host += 100
        category = "Operator" if self.old else "user_annotation"
        event = {"ph": "X", "cat": category, "name": f"ProfilerStep#{number}", "pid": 1, "tid": 1, "args": {}}
        self.events.append(event | {"ts": start, "dur": self.host - start})
        self.host += 10

    def write(self, path: Path, gpu: str = "NVIDIA A100-SXM4-80GB") -> Path:
        devices = [{"id": 0, "name": gpu}] if gpu else []
        text = json.dumps(
            {"schemaVersion": 1, "deviceProperties": devices, "traceEvents": self.events, "displayTimeUnit": "ms"}
        )
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
        return path


def _contiguous(dims: list[int]) -> list[int]:
    strides, step = [], 1
    for size in reversed(dims):
        strides.append(step)
        step *= size
    return strides[::-1]
