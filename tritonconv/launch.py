"""From three tensors and a problem to a kernel launch: plan, copies, allocation, arguments, grid.

Everything that does not depend on the data is prepared once per (problem, strides, dtype, device) and cached; the
steady-state path looks it up, allocates and launches. No autotuning, no device query, no sympy.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from costmodel.depthwise import is_narrow
from costmodel.device import Device, find
from costmodel.legality import checked
from costmodel.plan import MENU, select
from costmodel.problem import ConvProblem, Pass
from costmodel.resources import LEAST_CAPABILITY
from costmodel.tiling import Call, Operand, Plan, Tile, seen_problem
from tritonconv import band, depthwise, gemm, host, tma
from tritonconv.epilogue import Epilogue, by_torch, widened
from tritonconv.kernels.epilogue import Fused
from tritonconv.layout import (
    allocate,
    allocate_channels_last,
    block_diagonal,
    channels_last_copy,
    channels_last_strides,
    depthwise_operand,
    diagonal_blocks,
    filters_last_copy,
    filters_last_strides,
    folded_key,
    folded_weights,
    operand,
    padded_columns,
    unfolded_weights,
    vectored_copy,
    vectored_strides,
)
from tritonconv.prepared import FusedKey, Prepared, TensorKey, clamped, is_aligned, key

#: What launches a plan's family: each prepares a launch (`prepare`) and runs it (`run`).
FAMILIES: dict[str, Any] = {"gather": gemm, "patch": gemm, "depthwise": depthwise, "tma": tma, "band": band}

#: How a copy of operands a and b lies, by family: its strides, and what makes it.
CHANNELS_LAST = ((channels_last_strides, channels_last_copy),) * 2
COPIES = {
    "depthwise": (CHANNELS_LAST[0], (filters_last_strides, filters_last_copy)),
    "band": ((vectored_strides, vectored_copy),) * 2,
}

#: A tile as large as any of the menu along every axis.
LARGEST = Tile(*map(max, zip(*itertools.chain(*MENU.values()), strict=True)))

#: Kernel launches so far, by name. Tests read it to see that a kernel really ran.
COUNTS: Counter[str] = Counter()


DTYPES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}


def on(x: torch.Tensor) -> AbstractContextManager[Any]:
    """The device of `x` made current, where it is not."""
    away = x.is_cuda and x.device.index != torch.cuda.current_device()
    return torch.cuda.device(x.device) if away else nullcontext()


def fp32_precision() -> str:
    """ "tf32" or "ieee": what torch's convolutions do with float32 (`torch.backends.cudnn.conv.fp32_precision`)."""
    cudnn: Any = torch.backends.cudnn  # its `conv` is made at run time
    return "tf32" if cudnn.conv.fp32_precision == "tf32" else "ieee"


@functools.cache
def device_model(index: int) -> Device:
    """The cost model's description of device `index` of `host.index_of`. RuntimeError where a CUDA device is too old."""
    if index < 0:
        return host.model(index)
    found = torch.cuda.get_device_properties(index)
    capability = found.major * 10 + found.minor
    if capability < LEAST_CAPABILITY:
        needed = ".".join(str(LEAST_CAPABILITY))
        raise RuntimeError(
            f"tritonconv needs a GPU of compute capability {needed} or newer, as Triton does; {found.name} has "
            f"{found.major}.{found.minor}"
        )
    return find(found.name, capability, found.multi_processor_count)


def plan_for(which: Pass, text: str) -> Plan | None:
    """The plan of this pass among forced plans ("" where none is forced), written as `str(plan)` joined by ";"."""
    for word in filter(None, text.split(";")):
        plan = Plan.parse(word)
        if plan.which == which:
            return plan
    return None


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
) -> Plan:
    """The forced plan, checked, or the one with the least predicted time."""
    plan, call = plan_for(which, forced), Call(problem, which, DTYPES[dtype], precision, a, b, out, epilogue)
    if plan is None:
        return select(call, device_model(device))
    return checked(call, plan, device_model(device))


def describe(
    problem: ConvProblem,
    which: Pass,
    a: TensorKey,
    b: TensorKey,
    out: TensorKey,
    aligned: tuple[bool, bool] = (True, True),
) -> tuple[Operand, Operand, Operand]:
    """How the three tensors of a pass lie in memory. Weights [K, C / G, ...] share out axis 0, activations axis 1. `aligned`
    says of a and b whether they begin on a multiple of 16 bytes; a result that is allocated here does."""
    weight = {Pass.FPROP: 1, Pass.DGRAD: 1, Pass.WGRAD: 2}[which]
    described = depthwise_operand if is_narrow(problem) else operand
    far = not gemm.fits_int32(problem, Plan(which, "gather", *LARGEST), a, b, out)
    found = [
        replace(described(*tensor, problem.groups, 0 if i == weight else 1, begins), far=far, aligned=begins)
        for i, (tensor, begins) in enumerate(zip((a, b, out), (*aligned, True), strict=True))
    ]
    return found[0], found[1], found[2]


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
) -> Prepared:
    """The launch of a call: its plan, for operands as that plan wants them. `aligned` as in `describe`."""
    kind = "" if fused is None else fused.kind(out)
    plan = choose(which, problem, dtype, precision, device, *describe(problem, which, a, b, out, aligned), forced, kind)
    if plan.fold:
        a, b = (a, folded_key(problem)) if which == Pass.WGRAD else (folded_key(problem), b)
    if recasts_weights(plan):
        problem = seen_problem(problem, plan)
        weight = (problem.weight_shape, channels_last_strides(problem.weight_shape))
        b, out = (b, weight) if which == Pass.WGRAD else (weight, out)
    (lie, _), (lie_b, _) = COPIES.get(plan.family, CHANNELS_LAST)
    a = (a[0], lie(a[0])) if "a" in plan.pack else a
    b = (b[0], lie_b(b[0])) if "b" in plan.pack else b
    copied = recasts_weights(plan) and which != Pass.WGRAD
    aligned = aligned[0] or "a" in plan.pack, aligned[1] or "b" in plan.pack or copied
    call = Call(problem, which, DTYPES[dtype], precision, *describe(problem, which, a, b, out, aligned), kind)
    prepared = prepare(replace(plan, merge=1, fold=False), call, a, b, out, bias_stride, fused)
    prepared = clamped(prepared, device_model(device).capability)
    return replace(prepared, plan=plan)


def prepare(
    plan: Plan, call: Call, a: TensorKey, b: TensorKey, out: TensorKey, bias_stride: int | None, fused: FusedKey | None = None
) -> Prepared:
    """Scalars, constexprs and grid of a launch whose operands already lie as the plan wants them."""
    upcast = host.INTERPRETED and call.dtype == "bfloat16"
    prepared: Prepared = FAMILIES[plan.family].prepare(plan, call, a, b, out, bias_stride, fused, upcast)
    return prepared


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

    An epilogue is run too, except where nothing is multiplied; `z` takes the values before its activation.
    """
    if out.numel() == 0:
        return out
    if problem.macs == 0:  # nothing to add up: an empty batch's weight gradient, or no channels
        out.zero_()
        return out if bias is None else out.add_(bias.view(-1, *(1,) * problem.rank))
    device = host.index_of(a)
    bias_stride = None if bias is None else bias.stride(0)
    fused = None if epilogue is None else FusedKey.of(epilogue)
    aligned = is_aligned(a), is_aligned(b)
    prepared = prepare_call(
        which, problem, a.dtype, fp32_precision(), device, key(a), key(b), key(out), bias_stride, forced, fused, aligned
    )
    plan, asked = prepared.plan, out
    if recasts_weights(plan) and which == Pass.WGRAD:
        out = allocate_channels_last(seen_problem(problem, plan).weight_shape, out)
    elif recasts_weights(plan):
        b = folded_weights(b, problem) if plan.fold else block_diagonal(b, problem.groups, plan.merge)
    if plan.fold:
        a, b = (a, padded_columns(b, problem)) if which == Pass.WGRAD else (padded_columns(a, problem), b)
    follows = None if epilogue is None else Fused(*epilogue[:3], z, *prepared.fused)
    if plan.pack:
        (_, copy), (_, copy_b) = COPIES.get(plan.family, CHANNELS_LAST)
        a = copy(a) if "a" in plan.pack else a
        b = copy_b(b) if "b" in plan.pack else b
    with on(a):
        run(prepared, a, b, bias, out, follows)
    if out is asked:
        return out
    if plan.fold:
        return asked.copy_(unfolded_weights(out, problem))
    blocks = diagonal_blocks(out, problem.groups, plan.merge)
    asked.unflatten(0, blocks.shape[:3]).copy_(blocks)
    return asked


def recasts_weights(plan: Plan) -> bool:
    """Whether the kernel's weights are not the call's: block-diagonal or folded."""
    return plan.merge > 1 or plan.fold


def run(
    prepared: Prepared, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, fused: Fused | None
) -> None:
    """Launches what was prepared: nothing here depends on anything but its arguments."""
    which, family = prepared.plan.which, prepared.plan.family
    COUNTS[str(which)] += 1
    if FAMILIES[family] is not gemm:
        COUNTS[f"{family} {which}"] += 1
    if prepared.reduce is not None and FAMILIES[family] not in (depthwise, band):
        COUNTS["reduce"] += 1
    FAMILIES[family].run(prepared, a, b, bias, out, fused)


def fprop(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, problem: ConvProblem, plan: str = "") -> torch.Tensor:
    """y [N, K, *out] = conv(x [N, C, *in], w [K, C / G, *kernel]) + b [K]"""
    return execute(Pass.FPROP, problem, x, w, allocate(problem.output_shape, x, w), b, plan)


def dgrad(dy: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, problem: ConvProblem, plan: str = "") -> torch.Tensor:
    """dx [N, C, *in], the input gradient of `problem` for dy [N, K, *out], plus b [C] (a transposed convolution's bias)"""
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

    z has y's shape and strides where `epilogue.keep` asks for it, and no elements elsewhere.
    """
    shape = problem.output_shape if which == Pass.FPROP else problem.input_shape
    y = allocate(shape, a, b)
    if problem.macs == 0:
        made, before = by_torch(widened(execute(which, problem, a, b, y, bias)), problem, epilogue, y.dtype)
        return y.copy_(made), allocate(shape, a, b).copy_(before) if epilogue.keep else before
    z = allocate(shape, a, b) if epilogue.keep else None
    execute(which, problem, a, b, y, bias, plan, epilogue, z)
    return y, y.new_empty(0) if z is None else z
