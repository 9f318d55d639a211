"""From three tensors and a problem to a kernel launch: plan, copies, allocation, arguments, grid.

Everything that does not depend on the data is prepared once per (problem, strides, dtype, device) and cached; the
steady-state path looks it up, allocates and launches. No autotuning, no device query, no sympy.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl

from costmodel.algebra import ceil_div, product
from costmodel.depthwise import is_depthwise, serves
from costmodel.device import INTERPRETER, Device, find
from costmodel.plan import select
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import (
    MAX_ALIGN,
    MAX_BIT_TAPS,
    Call,
    Operand,
    Plan,
    extent,
    grid,
    itemsize,
    merge_groups,
    reduction_step,
    trips,
)
from tritonconv import depthwise
from tritonconv.epilogue import Epilogue, by_torch
from tritonconv.kernels.dgrad import dgrad_kernel
from tritonconv.kernels.epilogue import Fused
from tritonconv.kernels.fprop import fprop_kernel
from tritonconv.kernels.index import Sizes, pack
from tritonconv.kernels.wgrad import wgrad_kernel, wgrad_reduce_kernel
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
from tritonconv.prepared import INT32_MAX, FusedKey, Prepared, TensorKey, key, packed_strides

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
_REDUCE_BLOCK = 1024


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
    plan = plan_for(which, forced)
    if plan is None:
        return select(Call(problem, which, DTYPES[dtype], precision, a, b, out, epilogue), device_model(device))
    if plan.family == "depthwise":
        if reason := serves(Call(problem, which, DTYPES[dtype], precision, a, b, out, epilogue), plan):
            raise ValueError(f"plan {plan} does not serve {problem}: {reason}")
        return plan
    if plan.family not in ("gather", "patch") or (plan.family == "patch" and not problem.is_patch):
        raise ValueError(f"plan {plan} forces family {plan.family!r}, which does not serve {problem}")
    for name, block in (("block_m", plan.block_m), ("block_n", plan.block_n), ("block_k", plan.block_k)):
        if block < 16 or block & (block - 1):
            raise ValueError(f"plan {plan}: {name} must be a power of two of at least 16, got {block}")
    limit = device_model(device).shared_per_block
    shared = plan.num_stages * (plan.block_m + plan.block_n) * plan.block_k * itemsize(DTYPES[dtype])
    if shared > limit:
        raise ValueError(f"plan {plan} needs about {shared} bytes of shared memory, the device has {limit}")
    if plan.merge < 1 or problem.groups % plan.merge:
        raise ValueError(f"plan {plan}: merge must divide the {problem.groups} groups, got {plan.merge}")
    if plan.split < 1 or (plan.split > 1 and which != Pass.WGRAD):
        raise ValueError(f"plan {plan}: split must be 1 for {which}, got {plan.split}")
    if which == Pass.WGRAD:
        step = plan.step or reduction_step(problem, plan.block_k)
        if product(step) != plan.block_k or any(size & (size - 1) for size in step):
            raise ValueError(f"plan {plan}: step {step} must be powers of two with product {plan.block_k}")
        plan = replace(plan, step=step)
    return plan


def describe(problem: ConvProblem, which: Pass, a: TensorKey, b: TensorKey, out: TensorKey) -> tuple[Operand, Operand, Operand]:
    """How the three tensors of a pass lie in memory. Weights [K, C / G, ...] share out axis 0, activations axis 1."""
    if is_depthwise(problem):
        return depthwise_operand(*a), depthwise_operand(*b), depthwise_operand(*out)
    weight = {Pass.FPROP: 1, Pass.DGRAD: 1, Pass.WGRAD: 2}[which]
    found = [operand(shape, strides, problem.groups, 0 if i == weight else 1) for i, (shape, strides) in enumerate((a, b, out))]
    return found[0], found[1], found[2]


def fits_int32(problem: ConvProblem, which: Pass, plan: Plan, *tensors: TensorKey) -> bool:
    """Whether 32-bit offsets reach everything a program touches from its 64-bit base pointer."""
    full = problem.with_unit_axes()
    pixels = (
        product(full.output_size)
        if which == Pass.FPROP
        else product(ceil_div(n, s) for n, s in zip(full.input_size, full.stride, strict=True))
    )
    images = problem.batch if which == Pass.WGRAD else min(problem.batch, plan.block_m // max(1, pixels) + 2)
    if max(pixels, product(full.output_size)) + plan.block_m > INT32_MAX:
        return False
    slack = max((*problem.effective_kernel, *problem.stride)) + max(abs(p) for pair in problem.padding for p in pair)
    for shape, strides in tensors:
        spatial = sum((n + 2 * slack) * stride for n, stride in zip(shape[2:], strides[2:], strict=True))
        if spatial + (shape[1] + plan.block_n + plan.block_k) * strides[1] + max(images, 1) * strides[0] > INT32_MAX:
            return False
    return True


def prepare(
    which: Pass,
    problem: ConvProblem,
    plan: Plan,
    dtype: torch.dtype,
    precision: str,
    a: TensorKey,
    b: TensorKey,
    out: TensorKey,
    bias_stride: int | None,
    fused: FusedKey | None = None,
) -> Prepared:
    """Scalars, constexprs and grid of a launch whose operands already lie as the plan wants them."""
    in_a, in_b, in_out = describe(problem, which, a, b, out)
    upcast = INTERPRETED and dtype == torch.bfloat16
    if plan.family == "depthwise":
        call = Call(problem, which, DTYPES[dtype], precision, in_a, in_b, in_out)
        wide = tl.float64 if dtype == torch.float64 else tl.float32
        return depthwise.prepare(problem, plan, call, wide, upcast, a, b, out, bias_stride, fused)
    full = problem.with_unit_axes()
    c, k = problem.channels_per_group, problem.filters_per_group
    c_align, k_align = math.gcd(c, MAX_ALIGN), math.gcd(k, MAX_ALIGN)
    residual = None if fused is None else fused.residual
    small = fits_int32(problem, which, plan, a, b, out, *(() if residual is None else (residual,)))
    m_tiles, n_tiles, repeats = grid(problem, plan)
    programs = m_tiles * n_tiles * repeats
    if programs > INT32_MAX:
        raise RuntimeError(f"{which} of {problem} needs {programs} programs, more than a CUDA grid of {INT32_MAX} holds")
    q_align = 1
    if which == Pass.FPROP and 4 in (in_a.unit, in_out.unit) and full.output_size[2] % 8 == 0:
        q_align = 8
    sizes = Sizes(
        *map(
            pack,
            (
                problem.batch,
                *full.input_size,
                *full.output_size[:2],
                full.output_size[2] // q_align,
                c // c_align,
                k // k_align,
                *(low for low, _ in full.padding),
                bias_stride or 0,
                int(trips(problem, plan)) if which == Pass.WGRAD else m_tiles,
            ),
        )
    )
    strides = tuple(packed_strides(t, d) for t, d in ((a, in_a), (b, in_b), (out, in_out)))
    n_columns = extent(problem, plan.which, plan.family).n
    patch = plan.family == "patch"
    constants: dict[str, Any] = {
        "KERNEL": full.kernel_size,
        "STRIDE": full.stride,
        "DILATION": full.dilation,
        "RANK": max(problem.rank, 1),
        "PATCH": patch,
        "C_ALIGN": c_align,
        "K_ALIGN": k_align,
        "EVEN_N": n_columns % plan.block_n == 0,
        "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
        "PRECISION": precision if dtype == torch.float32 else "ieee",
        "INDEX": tl.int32 if small else tl.int64,
        "UPCAST": upcast,
        "BLOCK_M": plan.block_m,
        "BLOCK_N": plan.block_n,
        "num_warps": plan.num_warps,
        "num_stages": plan.num_stages,
    }

    def name(prefix: str, described: Operand) -> None:
        constants[f"{prefix}_ALIGN"] = described.align
        constants[f"{prefix}_UNIT"] = described.unit

    fused_arguments: tuple[Any, ...] = ()
    if fused is not None:
        constants |= {"FUSED": True, "ACTIVATION": fused.activation, "SLOPE": fused.slope}
        fused_arguments = (pack(fused.scale or 0), pack(fused.shift or 0), None)
        if residual is not None:
            in_residual = operand(*residual, problem.groups, 1)
            name("R", in_residual)
            fused_arguments = (*fused_arguments[:2], packed_strides(residual, in_residual))
    if which == Pass.FPROP:
        for prefix, described in (("X", in_a), ("W", in_b), ("Y", in_out)):
            name(prefix, described)
        depth = c * problem.taps if patch else c
        bounds = "none" if patch or not problem.needs_bounds else "bits" if problem.taps <= MAX_BIT_TAPS else "range"
        constants |= {
            "BOUNDS": bounds,
            "Q_ALIGN": q_align,
            "EVEN_K": depth % plan.block_k == 0,
            "HAS_BIAS": bias_stride is not None,
            "BLOCK_K": plan.block_k,
            "GROUP_M": plan.group_m,
        }
        return Prepared(plan, programs, (*strides, sizes), constants, fused=fused_arguments)
    if which == Pass.DGRAD:
        for prefix, described in (("DY", in_a), ("W", in_b), ("DX", in_out)):
            name(prefix, described)
        axes = [full.axis_phases(i) for i in range(3)]
        counts = tuple(max(phase.taps for phase in axis) for axis in axes)
        empty = not patch and any(phase.taps == 0 for axis in axes for phase in axis)
        constants |= {
            "STEP": tuple(axis[0].step for axis in axes),
            "DELTA": tuple(axis[0].delta for axis in axes),
            "COUNTS": counts,
            "EMPTY": empty,
            "BOUNDS": "bits" if product(counts) <= MAX_BIT_TAPS else "range",
            "W_FOLD": in_b.unit == 1,
            "EVEN_K": k % plan.block_k == 0,
            "EVEN_N": constants["EVEN_N"] and not empty,
            "HAS_BIAS": bias_stride is not None,
            "BLOCK_K": plan.block_k,
            "GROUP_M": plan.group_m,
        }
        return Prepared(plan, programs, (*strides, sizes, pack(problem.groups)), constants, fused=fused_arguments)
    for prefix, described in (("DY", in_a), ("X", in_b), ("DW", in_out)):
        name(prefix, described)
    constants |= {
        "BOUNDS": "none" if patch or not problem.needs_bounds else "range",
        "X_FOLD": in_b.unit == 1,
        "EVEN_M": k % plan.block_m == 0,
        "SPLIT": plan.split > 1,
        "STEP": plan.step,
    }
    reduce = None
    if plan.split > 1:
        elements = product(problem.weight_shape)
        reduce = Prepared(
            plan,
            ceil_div(elements, _REDUCE_BLOCK),
            (strides[2], (pack(elements), pack(plan.split), pack(c))),
            {
                "KERNEL": full.kernel_size,
                "DW_ALIGN": in_out.align,
                "DW_UNIT": in_out.unit,
                "INDEX": constants["INDEX"] if elements + _REDUCE_BLOCK <= INT32_MAX else tl.int64,
                "UPCAST": constants["UPCAST"],
                "BLOCK": _REDUCE_BLOCK,
            },
        )
    workspace = (plan.split, *problem.weight_shape) if reduce else ()
    return Prepared(plan, programs, (*strides, sizes, pack(problem.groups)), constants, workspace, reduce)


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
    prepared = prepare(which, problem, replace(plan, merge=1), dtype, precision, a, b, out, bias_stride, fused)
    return replace(prepared, plan=plan)


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
            run(which, prepared, a, b, bias, out, follows)
    else:
        run(which, prepared, a, b, bias, out, follows)
    return out if out is asked else asked.copy_(diagonal_blocks(out, problem.groups, merge))


def run(
    which: Pass,
    prepared: Prepared,
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    fused: Fused | None,
) -> None:
    """The launch itself: nothing here depends on anything but its arguments."""
    grid_of = (prepared.programs,)
    COUNTS[str(which)] += 1
    if prepared.plan.family == "depthwise":
        COUNTS[f"depthwise {which}"] += 1
        depthwise.run(prepared, a, b, bias, out, fused)
    elif which == Pass.FPROP:
        fprop_kernel[grid_of](a, b, bias, out, *prepared.arguments, fused=fused, **prepared.constants)
    elif which == Pass.DGRAD:
        dgrad_kernel[grid_of](a, b, bias, out, *prepared.arguments, fused=fused, **prepared.constants)
    elif prepared.reduce is None:
        wgrad_kernel[grid_of](a, b, out, *prepared.arguments, **prepared.constants)
    else:
        wide = torch.float64 if out.dtype == torch.float64 else torch.float32
        partial = torch.empty(prepared.workspace, dtype=wide, device=out.device)
        wgrad_kernel[grid_of](a, b, partial, *prepared.arguments, **prepared.constants)
        COUNTS["reduce"] += 1
        reduce = prepared.reduce
        wgrad_reduce_kernel[(reduce.programs,)](partial, out, *reduce.arguments, **reduce.constants)


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
