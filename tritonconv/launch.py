"""From three tensors and a problem to a kernel launch: plan, copies, allocation, arguments, grid.

Everything that does not depend on the data is prepared once per (problem, strides, dtype, device) and cached; the
steady-state path looks it up, allocates and launches. No autotuning, no device query, no sympy.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
import triton

from costmodel.depthwise import is_depthwise
from costmodel.device import INTERPRETER, Device, find
from costmodel.plan import MENU, select
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Call, Operand, Plan, Tile, merge_groups
from tritonconv import depthwise, gemm
from tritonconv.epilogue import Epilogue, by_torch
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
    operand,
)
from tritonconv.prepared import FusedKey, Prepared, TensorKey, key

#: What launches a plan's family: each checks a forced plan (`checked`), prepares a launch (`prepare`) and runs it (`run`).
FAMILIES: dict[str, Any] = {"gather": gemm, "patch": gemm, "depthwise": depthwise}

#: A tile as large as any of the menu along every axis.
LARGEST = Tile(*map(max, zip(*itertools.chain(*MENU.values()), strict=True)))

#: Kernel launches so far, by name. Tests read it to see that a kernel really ran.
COUNTS: Counter[str] = Counter()

#: Whether Triton's interpreter runs the kernels (TRITON_INTERPRET=1 when triton was imported).
INTERPRETED = bool(triton.knobs.runtime.interpret)

DTYPES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}


def fp32_precision() -> str:
    """ "tf32" or "ieee": what torch's convolutions do with float32 (`torch.backends.cudnn.conv.fp32_precision`)."""
    cudnn: Any = torch.backends.cudnn  # its `conv` is made at run time
    return "tf32" if cudnn.conv.fp32_precision == "tf32" else "ieee"


@functools.cache
def device_model(index: int) -> Device:
    """The cost model's description of CUDA device `index`; -1 is the interpreter."""
    if index < 0:
        return INTERPRETER
    found = torch.cuda.get_device_properties(index)
    return find(found.name, found.major * 10 + found.minor, found.multi_processor_count)


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
    if plan.family not in FAMILIES:
        raise ValueError(f"plan {plan} forces family {plan.family!r}; there are {', '.join(FAMILIES)}")
    checked: Plan = FAMILIES[plan.family].checked(call, plan, device_model(device))
    return checked


def describe(problem: ConvProblem, which: Pass, a: TensorKey, b: TensorKey, out: TensorKey) -> tuple[Operand, Operand, Operand]:
    """How the three tensors of a pass lie in memory. Weights [K, C / G, ...] share out axis 0, activations axis 1."""
    if is_depthwise(problem):
        return depthwise_operand(*a), depthwise_operand(*b), depthwise_operand(*out)
    weight = {Pass.FPROP: 1, Pass.DGRAD: 1, Pass.WGRAD: 2}[which]

    def described(i: int, tensor: TensorKey) -> Operand:
        found = operand(*tensor, problem.groups, 0 if i == weight else 1)
        return found if gemm.fits_int32(problem, Plan(which, "gather", *LARGEST), tensor) else replace(found, far=True)

    return described(0, a), described(1, b), described(2, out)


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
) -> Prepared:
    """The launch of a call: its plan, for operands as that plan wants them."""
    kind = "" if fused is None else fused.kind(out)
    plan = choose(which, problem, dtype, precision, device, *describe(problem, which, a, b, out), forced, kind)
    if plan.merge > 1:
        problem = merge_groups(problem, plan.merge)
        weight = (problem.weight_shape, channels_last_strides(problem.weight_shape))
        b, out = (b, weight) if which == Pass.WGRAD else (weight, out)
    a = (a[0], channels_last_strides(a[0])) if "a" in plan.pack else a
    if "b" in plan.pack:
        b = (b[0], (filters_last_strides if plan.family == "depthwise" else channels_last_strides)(b[0]))
    call = Call(problem, which, DTYPES[dtype], precision, *describe(problem, which, a, b, out), kind)
    prepared = prepare(replace(plan, merge=1), call, a, b, out, bias_stride, fused)
    return replace(prepared, plan=plan)


def prepare(
    plan: Plan, call: Call, a: TensorKey, b: TensorKey, out: TensorKey, bias_stride: int | None, fused: FusedKey | None = None
) -> Prepared:
    """Scalars, constexprs and grid of a launch whose operands already lie as the plan wants them."""
    upcast = INTERPRETED and call.dtype == "bfloat16"
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
    device = a.device.index if a.is_cuda else -1
    bias_stride = None if bias is None else bias.stride(0)
    fused = None if epilogue is None else FusedKey.of(epilogue)
    prepared = prepare_call(
        which, problem, a.dtype, fp32_precision(), device, key(a), key(b), key(out), bias_stride, forced, fused
    )
    merge, asked = prepared.plan.merge, out
    if merge > 1 and which == Pass.WGRAD:
        out = allocate_channels_last(merge_groups(problem, merge).weight_shape, out)
    elif merge > 1:
        b = block_diagonal(b, problem.groups, merge)
    follows = None if epilogue is None else Fused(*epilogue[:3], z, *prepared.fused)
    if prepared.plan.pack:
        a = channels_last_copy(a) if "a" in prepared.plan.pack else a
        if "b" in prepared.plan.pack:
            b = (filters_last_copy if prepared.plan.family == "depthwise" else channels_last_copy)(b)
    if device >= 0 and device != torch.cuda.current_device():
        with torch.cuda.device(device):
            run(prepared, a, b, bias, out, follows)
    else:
        run(prepared, a, b, bias, out, follows)
    return out if out is asked else asked.copy_(diagonal_blocks(out, problem.groups, merge))


def run(
    prepared: Prepared, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, fused: Fused | None
) -> None:
    """Launches what was prepared: nothing here depends on anything but its arguments."""
    which, family = prepared.plan.which, prepared.plan.family
    COUNTS[str(which)] += 1
    if FAMILIES[family] is not gemm:
        COUNTS[f"{family} {which}"] += 1
    elif prepared.reduce is not None:
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
        return by_torch(execute(which, problem, a, b, y, bias), problem, epilogue)
    z = allocate(shape, a, b) if epilogue.keep else None
    execute(which, problem, a, b, y, bias, plan, epilogue, z)
    return y, y.new_empty(0) if z is None else z
