"""From three tensors and a problem to a kernel launch: plan, copies, allocation, arguments, grid.

Everything that does not depend on the data is prepared once per (problem, strides, dtype, device) and cached; the
steady-state path looks it up, allocates and launches. No autotuning, no device query, no sympy.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from costmodel.device import Device, find
from costmodel.families.copied import BY_INDEX
from costmodel.plan import select
from costmodel.problem import ConvProblem, Pass
from costmodel.prologue import Prologue
from costmodel.tiling import Call, Operand, Plan
from tritonconv import host, plans, private
from tritonconv.describe import describe
from tritonconv.epilogue import Epilogue, by_torch, widened
from tritonconv.families import launcher
from tritonconv.kernels.epilogue import Fused
from tritonconv.kernels.prologue import Prologue as Pointers
from tritonconv.layout import allocate
from tritonconv.prepared import FusedKey, TensorKey, is_aligned, key
from tritonconv.steps import COUNTS as COUNTS
from tritonconv.steps import Copies, Launch, clamped

DTYPES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}


def is_away(x: torch.Tensor) -> bool:
    """Whether the device of `x` is another than the current one."""
    return x.is_cuda and x.device.index != torch.cuda.current_device()


def on(x: torch.Tensor) -> AbstractContextManager[Any]:
    """A context in which the device of `x` is the current one."""
    return torch.cuda.device(x.device) if is_away(x) else nullcontext()


def fp32_precision() -> str:
    """ "tf32" or "ieee": what torch's convolutions do with float32 (`torch.backends.cudnn.conv.fp32_precision`)."""
    return "tf32" if private.fp32_precision() == "tf32" else "ieee"


@functools.cache
def device_model(index: int) -> Device:
    """The cost model's description of device `index` of `host.index_of`. Raises RuntimeError where a CUDA device is too old."""
    if index < 0:
        return host.model(index)
    properties = torch.cuda.get_device_properties(index)
    capability = properties.major * 10 + properties.minor
    host.is_new_enough(properties.name, capability)
    return find(properties.name, capability, properties.multi_processor_count)


def choose(
    which: Pass,
    problem: ConvProblem,
    dtype: torch.dtype,
    precision: str,
    device: int,
    a: Operand,
    b: Operand,
    out: Operand,
    forced: str,
    epilogue: str = "",
    prologue: Prologue | None = None,
) -> Plan:
    """The forced plan, checked, or the one with the least predicted time."""
    call, model = Call(problem, which, DTYPES[dtype], precision, a, b, out, epilogue, prologue), device_model(device)
    return plans.forced(call, forced, model) or select(call, model)


@functools.lru_cache(maxsize=4096)
def prepare_call(
    which: Pass,
    problem: ConvProblem,
    dtype: torch.dtype,
    precision: str,
    device: int,
    a: TensorKey,
    b: TensorKey,
    out: TensorKey,
    bias_stride: int | None,
    forced: str,
    fused: FusedKey | None = None,
    aligned: tuple[bool, bool] = (True, True),
    prologue: Prologue | None = None,
) -> Launch:
    """The launch of a call under its plan, with the copies that the plan needs. `aligned` is as in `describe`. `prologue` is
    what the kernel itself does to x."""
    kind, name = "" if fused is None else fused.kind(out), DTYPES[dtype]
    described = describe(problem, which, a, b, out, aligned)
    plan = choose(which, problem, dtype, precision, device, *described, forced, kind, prologue)
    call = Call(problem, which, name, precision, *described, kind, prologue)
    laid = launcher(plan.family).laid(plan, call, a, b, out)
    aligned = aligned[0] or "a" in laid.copied, aligned[1] or "b" in laid.copied
    call = Call(laid.problem, which, name, precision, *describe(laid.problem, which, *laid[2:5], aligned), kind, prologue)
    launch = clamped(prepare(laid.plan, call, *laid[2:5], bias_stride, fused), device_model(device).capability)
    return replace(launch, plan=plan, copies=laid.copies)


def prepare(
    plan: Plan, call: Call, a: TensorKey, b: TensorKey, out: TensorKey, bias_stride: int | None, fused: FusedKey | None = None
) -> Launch:
    """The kernels of a plan, for operands in the layout that it needs."""
    upcast = host.INTERPRETED and call.dtype == "bfloat16"
    return launcher(plan.family).launch(plan, call, a, b, out, bias_stride, fused, upcast)


def execute(
    which: Pass,
    problem: ConvProblem,
    a: torch.Tensor,
    b: torch.Tensor,
    out: torch.Tensor,
    bias: torch.Tensor | None = None,
    forced: str = "",
    epilogue: Epilogue | None = None,
    z: torch.Tensor | None = None,
) -> torch.Tensor:
    """Runs one pass into `out` and returns it. a, b: (x, w) for fprop, (dy, w) for dgrad, (dy, x) for wgrad.

    It also runs an epilogue, except where nothing is multiplied. `z` receives the values before the activation.
    """
    if out.numel() == 0:
        return out
    if problem.macs == 0:  # there are no products: the weight gradient of an empty batch, or no channels
        out.zero_()
        return out if bias is None else out.add_(bias.view(-1, *(1,) * problem.rank))
    perform(prepared_for(which, problem, a, b, key(out), bias, forced, epilogue), a, b, out, bias, epilogue, z)
    return out


def prepared_for(
    which: Pass,
    problem: ConvProblem,
    a: torch.Tensor,
    b: torch.Tensor,
    out: TensorKey,
    bias: torch.Tensor | None = None,
    forced: str = "",
    epilogue: Epilogue | None = None,
    aligned: bool | None = None,
) -> Launch:
    """`prepare_call` for these tensors. `aligned` says whether `a` is aligned; with None, `a`'s own address decides."""
    return prepare_call(
        which,
        problem,
        a.dtype,
        fp32_precision(),
        host.index_of(a),
        key(a),
        key(b),
        out,
        None if bias is None else bias.stride(0),
        forced,
        None if epilogue is None else FusedKey.of(epilogue),
        (is_aligned(a) if aligned is None else aligned, is_aligned(b)),
    )


def perform(
    prepared: Launch,
    a: torch.Tensor,
    b: torch.Tensor,
    out: torch.Tensor,
    bias: torch.Tensor | None,
    epilogue: Epilogue | None = None,
    z: torch.Tensor | None = None,
    prologue: Pointers | None = None,
) -> None:
    """Runs a prepared launch into `out`, with the copies around it."""
    copies = prepared.copies
    epilogue_out = None if epilogue is None else Fused(*epilogue[:3], z, *prepared.fused)
    if type(copies) is Copies and not is_away(a):  # the most frequent case skips everything that does nothing
        prepared.run(a, b, bias, out, epilogue_out, prologue)
        return
    with on(a):  # copies may be kernels too
        a, b = copies.operands(a, b)
        target = copies.result(out)
        used = None if epilogue_out is None else copies.beside(epilogue_out, target)
        prepared.run(a, b, bias, target, used, prologue)
        copies.finish(target, out, used, epilogue_out)


def fprop(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, problem: ConvProblem, plan: str = "") -> torch.Tensor:
    """y [N, K, *out] = conv(x [N, C, *in], w [K, C / G, *kernel]) + b [K]"""
    return execute(Pass.FPROP, problem, x, w, allocate(problem.output_shape, x, w), b, plan)


def dgrad(dy: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, problem: ConvProblem, plan: str = "") -> torch.Tensor:
    """dx [N, C, *in], the input gradient of `problem` for dy [N, K, *out], plus b [C] (a transposed convolution's bias)"""
    if b is not None and problem.padding_mode and not plan:  # only the op itself asks for this, and one family adds it
        plan = f"{Pass.DGRAD}:{BY_INDEX}"
    return execute(Pass.DGRAD, problem, dy, w, allocate(problem.input_shape, dy, w), b, plan)


def wgrad(dy: torch.Tensor, x: torch.Tensor, problem: ConvProblem, plan: str = "") -> torch.Tensor:
    """dw [K, C / G, *kernel], the weight gradient of `problem` for dy [N, K, *out] and x [N, C, *in]"""
    return execute(Pass.WGRAD, problem, dy, x, allocate(problem.weight_shape, x, dy), None, plan)


def followed(
    which: Pass,
    problem: ConvProblem,
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    epilogue: Epilogue,
    plan: str = "",
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, z) of fprop or dgrad with an epilogue: y = act(z), z = (sums + bias) * scale + shift + residual.

    z has y's shape and strides where `epilogue.keep` asks for it, otherwise no elements.
    """
    shape = problem.output_shape if which == Pass.FPROP else problem.input_shape
    y = allocate(shape, a, b)
    if problem.macs == 0:
        result, before = by_torch(widened(execute(which, problem, a, b, y, bias)), problem, epilogue, y.dtype)
        return y.copy_(result), allocate(shape, a, b).copy_(before) if epilogue.keep else before
    z = allocate(shape, a, b) if epilogue.keep else None
    execute(which, problem, a, b, y, bias, plan, epilogue, z)
    return y, y.new_empty(0) if z is None else z
