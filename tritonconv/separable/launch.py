"""From the tensors of a depthwise and a pointwise convolution to one launch: plan, arguments, grid. Nothing is measured."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
import triton.language as tl

from costmodel import separable as model
from costmodel.algebra import product
from costmodel.device import Device
from costmodel.separable import Pair, PairCall, SeparablePlan
from costmodel.tiling import MAX_ALIGN, Plan
from tritonconv.host import INTERPRETED, index_of, turn
from tritonconv.kernels.epilogue import Fused
from tritonconv.kernels.index import Sizes, pack
from tritonconv.kernels.separable import separable_kernel
from tritonconv.launch import DTYPES, device_model, fp32_precision, on
from tritonconv.layout import depthwise_operand, filters_last_copy, filters_last_strides, operand, output_strides
from tritonconv.prepared import INT32_MAX, FusedKey, TensorKey, accumulator, key, packed_strides
from tritonconv.steps import Launch, Step

Maybe = torch.Tensor | None
#: The words of `plan` besides those of a plan: one kernel with the tile of least predicted time, or two kernels.
FUSED, APART = "fused", "apart"


def fits_int32(pair: Pair, plan: SeparablePlan, x: TensorKey, w1: TensorKey, w2: TensorKey, *results: TensorKey) -> bool:
    """Whether 32-bit offsets reach everything from a program's first image, masked elements included. A strip may begin before
    its image and end behind it by no more than its window; channels and filters are read in whole blocks."""
    (rows, columns), (p, q) = model.strip(plan), pair.depthwise.output_size
    strips = product(-(-n // size) for n, size in ((p, rows), (q, columns)))
    images = min(pair.depthwise.batch, plan.block_m // (rows * columns) // max(1, strips) + 2)
    if strips * rows * columns + plan.block_m > INT32_MAX:
        return False
    beyond = (
        0,
        plan.block_k,
        *(
            2 * n + max(map(abs, pads))
            for n, pads in zip(model.window(pair, (rows, columns)), pair.depthwise.padding, strict=True)
        ),
    )
    pixels = (0, plan.block_n, rows, columns)

    def reach(tensor: TensorKey, outer: int, extra: tuple[int, ...]) -> int:
        shape, strides = (outer, *tensor[0][1:]), tensor[1]
        return sum((n + beyond) * abs(stride) for n, beyond, stride in zip(shape, extra, strides, strict=True))

    reaches = [reach(x, images, beyond), reach(w1, w1[0][0] + plan.block_k, (0,) * 4)]
    reaches += [reach(w2, w2[0][0] + plan.block_n, (0, plan.block_k, 0, 0)), *(reach(y, images, pixels) for y in results)]
    return max(reaches) <= INT32_MAX


def described(
    pair: Pair,
    dtype: torch.dtype,
    precision: str,
    x: TensorKey,
    w1: TensorKey,
    w2: TensorKey,
    y: TensorKey,
    between: FusedKey,
    after: FusedKey,
) -> PairCall:
    """The call in the form of the cost model."""
    z = channels_of(pair, x, w1)
    operands = (operand(*x, 1, 1), depthwise_operand(*w1), operand(*z, 1, 1), operand(*w2, 1, 1), operand(*y, 1, 1))
    kinds = (
        follows.kind(laid) if follows.activation or follows.residual else "" for follows, laid in ((between, z), (after, y))
    )
    return PairCall(pair, DTYPES[dtype], precision, *operands, *kinds)


def channels_of(pair: Pair, x: TensorKey, w1: TensorKey) -> TensorKey:
    """The shape and strides that the depthwise result would have in memory."""
    shape = pair.depthwise.output_shape
    return shape, output_strides(shape, *(torch.empty_strided(*t, device="meta") for t in (x, w1)))


@functools.lru_cache(maxsize=1024)
def prepare_call(
    pair: Pair,
    dtype: torch.dtype,
    precision: str,
    device: int,
    x: TensorKey,
    w1: TensorKey,
    w2: TensorKey,
    y: TensorKey,
    b1: int | None,
    between: FusedKey,
    b2: int | None,
    after: FusedKey,
    forced: str,
) -> Launch | None:
    """The launch of a call; None where two kernels should run."""
    plan = chosen(described(pair, dtype, precision, x, w1, w2, y, between, after), device_model(device), forced)
    if plan is None:
        return None
    if plan.pack:
        w1 = (w1[0], filters_last_strides(w1[0]))
    call = described(pair, dtype, precision, x, w1, w2, y, between, after)
    return prepare(call, plan, x, w1, w2, y, b1, between, b2, after, device_model(device).capability)


def chosen(call: PairCall, device: Device, forced: str) -> SeparablePlan | None:
    """The plan of one kernel; None for two kernels. Raises ValueError for a forced plan that cannot run the call."""
    if forced == APART:
        return None
    if forced and forced != FUSED:
        plan = Plan.parse(forced)
        if reason := model.refusal(call, plan, device):
            raise ValueError(f"plan {plan} cannot run {call.pair}: {reason}")
        assert isinstance(plan, SeparablePlan)
        return plan
    return model.select(call, device, forced == FUSED)


def prepare(
    call: PairCall,
    plan: SeparablePlan,
    x: TensorKey,
    w1: TensorKey,
    w2: TensorKey,
    y: TensorKey,
    b1: int | None,
    between: FusedKey,
    b2: int | None,
    after: FusedKey,
    capability: int,
) -> Launch:
    """Scalars, constexprs and grid of a launch, for weights in the layout that the plan needs."""
    pair, (rows, columns), residual = call.pair, model.strip(plan), after.residual
    problem, channels, filters = pair.depthwise, pair.depthwise.in_channels, pair.filters
    c_align, k_align = math.gcd(channels, MAX_ALIGN), math.gcd(filters, MAX_ALIGN)
    full, results = problem.with_unit_axes(), (y, *(() if residual is None else (residual,)))
    small = fits_int32(pair, plan, x, w1, w2, *results)
    # a bias has as many elements as x or y has channels; masked reads reach up to a block further
    small = small and (channels + plan.block_k) * (b1 or 0) <= INT32_MAX and (filters + plan.block_n) * (b2 or 0) <= INT32_MAX
    sizes = (
        problem.batch,
        *full.input_size,
        *full.output_size,
        channels // c_align,
        filters // k_align,
        *(low for low, _ in full.padding),
        b2 or 0,
        0,
    )
    tiles_m, tiles_n = model.grid(pair, plan)
    programs = tiles_m * tiles_n
    if programs > INT32_MAX:
        raise RuntimeError(f"{pair} needs {programs} programs, more than a CUDA grid of {INT32_MAX} holds")
    constants: dict[str, Any] = {
        "KERNEL": problem.kernel_size,
        "STRIDE": problem.stride,
        "DILATION": problem.dilation,
        "C_ALIGN": c_align,
        "K_ALIGN": k_align,
        "EVEN_C": channels % plan.block_k == 0,
        "HAS_B1": b1 is not None,
        "HAS_B2": b2 is not None,
        "BETWEEN": between.activation,
        "ACTIVATION": after.activation,
        "SLOPE": after.slope,
        "ACC": accumulator(call.dtype),
        "PRECISION": call.precision if call.dtype == "float32" else "ieee",
        "INDEX": tl.int32 if small else tl.int64,
        "UPCAST": INTERPRETED and call.dtype == "bfloat16",
        "ROWS": rows,
        "COLUMNS": columns,
        "STRIPS": plan.block_m // (rows * columns),
        "BLOCK_N": plan.block_n,
        "BLOCK_C": plan.block_k,
        "num_warps": plan.num_warps,
        "num_stages": plan.num_stages,
    }
    strides = []
    for name, tensor, described_as in (("X", x, call.x), ("W1", w1, call.w1), ("W2", w2, call.w2), ("Y", y, call.y)):
        strides.append(packed_strides(tensor, described_as))
        constants |= {f"{name}_ALIGN": described_as.align, f"{name}_UNIT": described_as.unit}
    over = None
    if residual is not None:
        described_as = operand(*residual, 1, 1)
        over = packed_strides(residual, described_as)
        constants |= {"R_ALIGN": described_as.align, "R_UNIT": described_as.unit}
    if (registers := model.registers(call, plan, capability)) < model.ALL:
        constants["maxnreg"] = registers
    main = Step(separable_kernel, programs, constants, (*strides, Sizes(*map(pack, sizes)), pack(b1 or 0)))
    return Launch(plan, main, fused=(pack(0), pack(0), over))


class Arranged(NamedTuple):
    """What a call by one kernel needs besides its tensors."""

    launch: Launch
    y: TensorKey
    packs: bool  # whether the depthwise weights are copied first

    def run(self, x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, b1: Maybe, b2: Maybe, residual: Maybe) -> torch.Tensor:
        """y [N, K, P, Q]. Autograd records nothing."""
        y = torch.empty_strided(*self.y, dtype=x.dtype, device=x.device)
        main = self.launch.main
        with turn() if x.is_cpu else on(x):
            w1 = filters_last_copy(w1) if self.packs else w1
            main.start(x, w1, b1, w2, b2, y, *main.arguments, fused=Fused(None, None, residual, None, *self.launch.fused))
        return y


def arranged(
    pair: Pair,
    x: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    b1: Maybe,
    b2: Maybe,
    residual: Maybe,
    between: str,
    activation: str,
    slope: float,
    forced: str,
) -> Arranged | None:
    """What a call by one kernel on these tensors needs. None where two kernels should compute the result: because they are
    predicted to be faster, because `plan` says so, or because nothing is summed."""
    shape = pair.pointwise.output_shape
    if product(shape) == 0 or pair.depthwise.in_channels == 0:
        return None
    y = tuple(shape), output_strides(shape, x, w1, w2)
    launch = prepare_call(
        pair,
        x.dtype,
        fp32_precision(),
        index_of(x),
        key(x),
        key(w1),
        key(w2),
        y,
        None if b1 is None else b1.stride(0),
        FusedKey(None, None, None, between, slope, False),
        None if b2 is None else b2.stride(0),
        FusedKey(None, None, None if residual is None else key(residual), activation, slope, False),
        forced,
    )
    return None if launch is None else Arranged(launch, y, isinstance(launch.plan, SeparablePlan) and bool(launch.plan.pack))
