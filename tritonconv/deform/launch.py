"""Makes one launch from the tensors of a deformable convolution: plan, copies, arguments, grid. Nothing is measured."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch

from costmodel import deform as model
from costmodel.algebra import product
from costmodel.deform import Deformation, DeformCall, DeformPlan
from costmodel.problem import Pass
from costmodel.tiling import MAX_ALIGN, Operand
from tritonconv.host import INTERPRETED, index_of, turn
from tritonconv.kernels.deform import Deformed, deform_kernel
from tritonconv.kernels.index import pack
from tritonconv.launch import DTYPES, device_model, fp32_precision, on
from tritonconv.layout import allocate, channels_last_copy, channels_last_strides, operand, output_strides
from tritonconv.plans import plan_for
from tritonconv.prepared import INT32_MAX, TensorKey, accumulator, key, packed_strides
from tritonconv.steps import Launch, Step, clamped


def described(
    deformation: Deformation, dtype: torch.dtype, precision: str, x: TensorKey, w: TensorKey, y: TensorKey
) -> DeformCall:
    """The description of a call for the cost model."""
    problem = deformation.problem
    layouts = (operand(*x, problem.groups, 1), operand(*w, problem.groups, 0), operand(*y, problem.groups, 1))
    return DeformCall(deformation, DTYPES[dtype], precision, *layouts)


def chosen(call: DeformCall, device: Any, forced: str) -> DeformPlan:
    """The plan of a forward pass. Raises ValueError for a forced plan that cannot run it."""
    plan = plan_for(Pass.FPROP, forced)
    return model.select(call, device) if plan is None else model.checked(call, plan, device)


def refuse_far(deformation: Deformation, images: int, block: int, **tensors: TensorKey | None) -> None:
    """RuntimeError unless 32-bit offsets reach everything from a program's first image: `images` of each tensor that has
    images, all of the weight, and a block of channels or filters more."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        shape, strides = tensor
        outer = shape[0] + block if name == "weight" else min(shape[0], images)
        sizes = (outer, shape[1] + block, *shape[2:])
        if (reach := sum(n * abs(stride) for n, stride in zip(sizes, strides, strict=True))) > INT32_MAX:
            raise RuntimeError(
                f"deform_conv2d(): {name} of shape {list(shape)} and strides {list(strides)} reaches {reach} elements from an "
                f"image's first, and the kernels count {INT32_MAX}; pass fewer channels or smaller images at a time"
            )
    pixels = max(product(deformation.problem.output_size), product(deformation.problem.input_size))
    if pixels * deformation.offset_groups * deformation.problem.taps + block > INT32_MAX:
        raise RuntimeError(f"deform_conv2d(): an image of {pixels} pixels has more places than 32 bits count: {deformation}")


def images_of(pixels: int, block: int) -> int:
    """The most images that a block of pixels may touch."""
    return block // max(1, pixels) + 2


def sizes_of(deformation: Deformation, aligns: tuple[int, int], bias_stride: int, tiles: int) -> Deformed:
    """The sizes of a call as the kernels take them."""
    problem, (c_align, k_align) = deformation.problem, aligns
    (low_h, _), (low_w, _) = problem.padding
    channels = (problem.channels_per_group // c_align, problem.filters_per_group // k_align)
    sizes = (
        *channels,
        deformation.run // c_align,
        deformation.shared // c_align,
        deformation.offset_groups,
        low_h,
        low_w,
        bias_stride,
        tiles,
    )
    return Deformed(*map(pack, (problem.batch, *problem.input_size, *problem.output_size, *sizes)))


def aligns_of(deformation: Deformation) -> tuple[int, int]:
    """The powers of two that divide the channels of a run and the filters of a group."""
    return math.gcd(deformation.run, MAX_ALIGN), math.gcd(deformation.problem.filters_per_group, MAX_ALIGN)


def laid(**tensors: tuple[TensorKey, Operand] | None) -> tuple[list[Any], dict[str, Any]]:
    """(packed strides in order, the constants that describe the layout of each); None in the place of a missing tensor."""
    strides: list[Any] = []
    constants: dict[str, Any] = {}
    for name, layout in tensors.items():
        strides.append(None if layout is None else packed_strides(*layout))
        constants |= {
            f"{name}_ALIGN": 1 if layout is None else layout[1].align,
            f"{name}_UNIT": -1 if layout is None else layout[1].unit,
        }
    return strides, constants


def arithmetic_constants(call: DeformCall) -> dict[str, Any]:
    return {
        "KERNEL": call.deformation.problem.kernel_size,
        "STRIDE": call.deformation.problem.stride,
        "DILATION": call.deformation.problem.dilation,
        "ACC": accumulator(call.dtype),
        "PRECISION": call.precision if call.dtype == "float32" else "ieee",
        "UPCAST": INTERPRETED and call.dtype == "bfloat16",
        **({"maxnreg": model.REGISTERS} if model.takes_all_registers(call) else {}),
    }


@functools.lru_cache(maxsize=1024)
def prepare(
    deformation: Deformation,
    dtype: torch.dtype,
    precision: str,
    device: int,
    x: TensorKey,
    offset: TensorKey,
    w: TensorKey,
    y: TensorKey,
    mask: TensorKey | None,
    bias_stride: int | None,
    forced: str,
) -> Launch:
    """Plan, arguments and constants of a forward launch, whose plan says what is copied before. RuntimeError where 32 bits do
    not reach."""
    plan = chosen(described(deformation, dtype, precision, x, w, y), device_model(device), forced)
    x = (x[0], channels_last_strides(x[0])) if "a" in plan.pack else x
    w = (w[0], channels_last_strides(w[0])) if "b" in plan.pack else w
    call = described(deformation, dtype, precision, x, w, y)
    problem, block = deformation.problem, max(plan.block_m, plan.block_n, plan.block_k)
    images = images_of(product(problem.output_size), plan.block_m)
    refuse_far(deformation, images, block, input=x, offset=offset, weight=w, mask=mask, output=y)
    if (problem.out_channels + block) * (bias_stride or 0) > INT32_MAX:
        raise RuntimeError(f"deform_conv2d(): bias of stride {bias_stride} reaches farther than 32 bits count")
    tiles_m, tiles_n = model.tiles(deformation, plan)
    if tiles_m * tiles_n > INT32_MAX:
        raise RuntimeError(f"{deformation} needs {tiles_m * tiles_n} programs, more than a CUDA grid of {INT32_MAX} holds")
    optional = {name: None if t is None else (t, operand(*t, 1, 1)) for name, t in (("OFFSET", offset), ("MASK", mask))}
    strides, constants = laid(X=(x, call.x), **optional, W=(w, call.w), Y=(y, call.y))
    c_align, k_align = aligns = aligns_of(deformation)
    constants |= arithmetic_constants(call) | {
        "C_ALIGN": c_align,
        "K_ALIGN": k_align,
        "EVEN_K": deformation.run % plan.block_k == 0,
        "EVEN_N": problem.filters_per_group % plan.block_n == 0,
        "HAS_MASK": mask is not None,
        "HAS_BIAS": bias_stride is not None,
        "BLOCK_M": plan.block_m,
        "BLOCK_N": plan.block_n,
        "BLOCK_K": plan.block_k,
        "GROUP_M": plan.group_m,
        "num_warps": plan.num_warps,
        "num_stages": plan.num_stages,
    }
    arguments = (*strides, sizes_of(deformation, aligns, bias_stride or 0, tiles_m))
    return clamped(Launch(plan, Step(deform_kernel, tiles_m * tiles_n, constants, arguments)), device_model(device).capability)


class Arranged(NamedTuple):
    """What a call takes, without its tensors."""

    main: Step
    packs: tuple[str, ...]  # "a" where the input is copied first, "b" where the weight is
    y: TensorKey

    def run(
        self, x: torch.Tensor, offset: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """y [N, K, P, Q]. Autograd records nothing."""
        y = torch.empty_strided(*self.y, dtype=x.dtype, device=x.device)
        with turn() if x.is_cpu else on(x):
            x = channels_last_copy(x) if "a" in self.packs else x
            w = channels_last_copy(w) if "b" in self.packs else w
            self.main.start(x, offset, mask, w, b, y, *self.main.arguments)
        return y


def arranged(
    deformation: Deformation,
    x: torch.Tensor,
    offset: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None,
    mask: torch.Tensor | None,
    forced: str,
) -> Arranged:
    """What a call on these tensors takes."""
    shape = tuple(deformation.problem.output_shape)
    y = shape, output_strides(shape, x, w)
    prepared = prepare(
        deformation,
        x.dtype,
        fp32_precision(),
        index_of(x),
        key(x),
        key(offset),
        key(w),
        y,
        None if mask is None else key(mask),
        None if b is None else b.stride(0),
        forced,
    )
    assert isinstance(prepared.plan, DeformPlan)
    return Arranged(prepared.main, prepared.plan.pack, y)


def forward(
    deformation: Deformation,
    x: torch.Tensor,
    offset: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None,
    mask: torch.Tensor | None,
    forced: str = "",
) -> torch.Tensor:
    """y [N, K, P, Q] by one kernel."""
    if 0 in deformation.problem.output_shape:
        return allocate(deformation.problem.output_shape, x, w)
    return arranged(deformation, x, offset, w, b, mask, forced).run(x, offset, w, b, mask)
