"""From an image or its columns to one launch: plan, arguments, grid. Nothing is measured."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
import triton.language as tl

from costmodel import unfold as model
from costmodel.algebra import product
from costmodel.device import Device
from costmodel.problem import Pass
from costmodel.tiling import MAX_ALIGN
from costmodel.unfold import UnfoldCall, Unfolding, UnfoldPlan
from tritonconv.host import INTERPRETED, index_of, turn
from tritonconv.kernels.index import pack
from tritonconv.kernels.unfold import Unfolded, fold_kernel, unfold_kernel
from tritonconv.launch import DTYPES, device_model, on
from tritonconv.layout import dense_strides, depthwise_operand
from tritonconv.plans import plan_for
from tritonconv.prepared import INT32_MAX, TensorKey, accumulator, key, packed_strides
from tritonconv.steps import Launch, Step


def contiguous(shape: tuple[int, ...]) -> TensorKey:
    """Shape and strides of a contiguous tensor."""
    return shape, dense_strides(shape, range(len(shape) - 1, -1, -1))


def described(unfolding: Unfolding, which: Pass, dtype: torch.dtype, image: TensorKey, columns: TensorKey) -> UnfoldCall:
    """What the cost model wants to know of a call."""
    return UnfoldCall(unfolding, which, DTYPES[dtype], depthwise_operand(*image), depthwise_operand(*columns))


def chosen(call: UnfoldCall, device: Device, forced: str) -> UnfoldPlan:
    """The plan of a call. ValueError for a forced one that cannot run it."""
    plan = plan_for(call.which, forced)
    return model.select(call, device) if plan is None else model.checked(call, plan)


def reach(unfolding: Unfolding, plan: UnfoldPlan, image: TensorKey, columns: TensorKey) -> int:
    """The largest number that a program counts: an offset from its first channel, or a coordinate of a padded image."""
    problem, farthest = unfolding.problem, 0
    for channels, (shape, strides) in ((plan.block_n, image), (plan.block_n * problem.taps, columns)):
        rest = sum(n * abs(stride) for n, stride in zip(shape[2:], strides[2:], strict=True))
        farthest = max(farthest, channels * abs(strides[1]) + rest)
    places = max(product(problem.output_size), product(problem.input_size)) + plan.block_m
    window = max(problem.padded_size) + 2 * problem.farthest
    return max(farthest, places, window, max(problem.stride) ** 2)


@functools.lru_cache(maxsize=1024)
def prepare(
    unfolding: Unfolding, which: Pass, dtype: torch.dtype, device: int, image: TensorKey, columns: TensorKey, forced: str
) -> Launch:
    """Plan, arguments and constants of a launch. RuntimeError where a grid does not hold the programs."""
    call = described(unfolding, which, dtype, image, columns)
    plan = chosen(call, device_model(device), forced)
    if plan.pack:
        image, columns = (contiguous(image[0]), columns) if which == Pass.FPROP else (image, contiguous(columns[0]))
        call = described(unfolding, which, dtype, image, columns)
    whole = unfolding.problem.with_unit_axes()
    count, (tiles, _), shares = model.programs(call, plan), model.blocks(call, plan), model.shares(call, plan)
    if count > INT32_MAX:
        raise RuntimeError(f"{unfolding} needs {count} programs, more than a CUDA grid of {INT32_MAX} holds")
    lows = (low for low, _ in whole.padding)
    c_align, m_align = math.gcd(whole.in_channels, MAX_ALIGN), math.gcd(call.points, MAX_ALIGN)
    numbers = (
        whole.in_channels // c_align,
        call.points // m_align,
        *whole.input_size,
        *whole.output_size,
        *lows,
        *(tiles, shares, min(plan.block_k, whole.taps)),
    )
    sizes = Unfolded(*map(pack, numbers))
    constants: dict[str, Any] = {
        "KERNEL": whole.kernel_size,
        "STRIDE": whole.stride,
        "DILATION": whole.dilation,
        "RANK": unfolding.problem.rank,
        "INDEX": tl.int32 if reach(unfolding, plan, image, columns) <= INT32_MAX else tl.int64,
        "X_ALIGN": call.image.align,
        "X_UNIT": call.image.unit,
        "Y_ALIGN": call.columns.align,
        "Y_UNIT": call.columns.unit,
        "C_ALIGN": c_align,
        "M_ALIGN": m_align,
        "BLOCK_M": plan.block_m,
        "BLOCK_N": plan.block_n,
        "num_warps": plan.num_warps,
        "num_stages": plan.num_stages,
    }
    x, y = packed_strides(image, call.image), packed_strides(columns, call.columns)
    if which == Pass.FPROP:
        return Launch(plan, Step(unfold_kernel, count, constants | {"PADDED": unfolding.problem.needs_bounds}, (x, y, sizes)))
    constants |= {
        "PERIOD": model.periods(whole),
        "INVERSE": model.inverses(whole),
        "ACC": accumulator(call.dtype),
        "UPCAST": INTERPRETED and call.dtype == "bfloat16",
    }
    return Launch(plan, Step(fold_kernel, count, constants, (y, x, sizes)))


class Arranged(NamedTuple):
    """What a call takes, without its tensors; `shape` is that of the result, with or without a batch as the source has it."""

    main: Step
    packs: bool  # whether the source is copied first
    shape: tuple[int, ...]

    def run(self, source: torch.Tensor) -> torch.Tensor:
        """The result, which is contiguous. Autograd records nothing."""
        result = source.new_empty(self.shape)
        with turn() if source.is_cpu else on(source):
            self.main.start(source.contiguous() if self.packs else source, result, *self.main.arguments)
        return result


def arranged(unfolding: Unfolding, which: Pass, source: torch.Tensor, forced: str) -> Arranged:
    """What a call takes for this source, which has a batch."""
    shape = tuple(result_shape(unfolding, which))
    image, columns = (key(source), contiguous(shape)) if which == Pass.FPROP else (contiguous(shape), key(source))
    made = prepare(unfolding, which, source.dtype, index_of(source), image, columns, forced)
    assert isinstance(made.plan, UnfoldPlan)
    return Arranged(made.main, bool(made.plan.pack), shape)


def result_shape(unfolding: Unfolding, which: Pass) -> tuple[int, ...]:
    """The shape of the columns, or of the image."""
    return unfolding.columns_shape if which == Pass.FPROP else unfolding.problem.input_shape


def allocated(unfolding: Unfolding, which: Pass, source: torch.Tensor) -> torch.Tensor:
    """The result without values: contiguous, as torch's is."""
    return source.new_empty(result_shape(unfolding, which))


def _run(unfolding: Unfolding, which: Pass, source: torch.Tensor, forced: str) -> torch.Tensor:
    if 0 in result_shape(unfolding, which):
        return allocated(unfolding, which, source)
    return arranged(unfolding, which, source, forced).run(source)


def unfold(unfolding: Unfolding, x: torch.Tensor, forced: str = "") -> torch.Tensor:
    """The columns [N, C * taps, L] of x [N, C, *size]."""
    return _run(unfolding, Pass.FPROP, x, forced)


def fold(unfolding: Unfolding, y: torch.Tensor, forced: str = "") -> torch.Tensor:
    """The image [N, C, *size] of columns y [N, C * taps, L]."""
    return _run(unfolding, Pass.DGRAD, y, forced)
