"""What the causal convolution compiles to, read back from machine code. Needs no GPU. `bench.depthwise` prints it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from bench.aot import Pointer, compile_ahead
from bench.depthwise import Figures
from bench.sass import audit
from costmodel import causal as model
from costmodel.device import DEVICES, Device
from costmodel.families.depthwise import is_planes
from costmodel.problem import ConvProblem
from costmodel.tiling import Plan
from tritonconv.causal import launch as causal_launch
from tritonconv.kernels.causal import Sequences, causal_kernel
from tritonconv.kernels.causal_backward import causal_backward_kernel
from tritonconv.prepared import TensorKey, wide

#: A GPU of each architecture.
NAMED = {80: "NVIDIA A100-SXM4-80GB", 90: "NVIDIA H100 80GB HBM3", 100: "NVIDIA B200"}
NOTHING, STATE, IDS, PACKED = (False, False, False), (True, False, False), (False, True, False), (True, True, True)


@dataclass(frozen=True)
class Row:
    """One kernel to compile, for x [8, 2048, 2048]. `plan` "" is the plan that the library takes. `limit`: most instructions
    per output."""

    name: str
    taps: int
    channels_last: bool
    plan: str = ""
    limit: float = float("inf")
    activation: str = ""
    backward: bool = False
    features: tuple[bool, bool, bool] = NOTHING
    arch: int = 90
    dtype: torch.dtype = torch.bfloat16

    @property
    def shape(self) -> tuple[int, int, int]:
        return 8, 2048, 2048

    @property
    def x(self) -> TensorKey:
        _, channels, length = self.shape
        strides = (length * channels, 1, channels) if self.channels_last else (channels * length, length, 1)
        return self.shape, strides

    @property
    def kind(self) -> model.Kind:
        return model.Kind(bool(self.activation), self.backward, *self.features[:2])

    def chosen(self) -> Plan:
        """The plan to compile."""
        if self.plan:
            return Plan.parse(self.plan)
        call = causal_launch.call_of(self.problem, self.dtype, self.x, self.w, self.x, self.activation)
        assert is_planes(call) != self.channels_last
        return model.select(call, self.device, self.kind)

    @property
    def problem(self) -> ConvProblem:
        return model.problem_of(*self.shape, self.taps)

    @property
    def w(self) -> TensorKey:
        return (2048, 1, self.taps), (self.taps, 1, 1)

    @property
    def device(self) -> Device:
        return DEVICES[NAMED[self.arch]]


ROWS = (
    Row("causal, 4 taps", 4, True, "fprop:depthwise:16x256x1:w1:s3:rows8", 8.9),
    Row("causal, 4 taps", 4, False, "fprop:depthwise:8x1x32:w1:s3:rows8", 12.6),
    Row("causal, 4 taps, silu", 4, True, "fprop:depthwise:16x256x1:w1:s3:rows8", 25, "silu"),
    Row("causal, 4 taps, silu", 4, False, "fprop:depthwise:8x1x32:w1:s3:rows8", 31, "silu"),
    Row("gradients, 4 taps, silu", 4, True, "fprop:depthwise:8x64x1:w1:s3:rows16", 65, "silu", True),
    Row("gradients, 4 taps, silu", 4, False, "fprop:depthwise:8x2x32:w1:s3:rows4", 54, "silu", True),
)


def launch_of(row: Row) -> tuple[Any, dict[str, Any]]:
    """(the kernel of a row, its arguments with pointers in place of tensors)."""
    element, number = Pointer(row.dtype), Pointer(torch.int32)
    dy = row.x if row.backward else None
    plan = str(row.chosen())
    prepared = causal_launch.prepare(
        row.problem, row.dtype, row.device, row.x, row.w, row.x, dy, 1, row.activation, row.features, plan
    )
    state, ids, packed = row.features
    sequences = Sequences(element if state else None, number if ids else None, number if packed else None, (5, 5, 5), 5)
    if row.backward:
        *strides, lengths = prepared.main.arguments
        tensors = (element, element, element, element, element if state else None, element, Pointer(wide(row.dtype)))
        kernel, arguments = causal_backward_kernel, (*tensors, sequences, *strides, (5, 5, 5), lengths)
    else:
        kernel, arguments = causal_kernel, (element, element, element, element, sequences, *prepared.main.arguments)
    return kernel, dict(zip(kernel.arg_names, arguments, strict=False)) | prepared.main.constants


def figures(row: Row) -> Figures:
    """Compiles a row and counts its instructions."""
    kernel, arguments = launch_of(row)
    plan = row.chosen()
    warps, stages = arguments.pop("num_warps"), arguments.pop("num_stages")
    audited = audit(compile_ahead(kernel, arguments, arch=row.arch, num_warps=warps, num_stages=stages))
    outputs = plan.block_m * plan.block_n * plan.block_k / (32 * plan.num_warps)
    return Figures(audited, outputs, audited.trip.instructions / outputs)
