"""A launch without its tensors, and what every launch is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import triton.language as tl

from costmodel.problem import Pass
from costmodel.tiling import Operand, Plan
from tritonconv.epilogue import ACTIVATIONS, Epilogue
from tritonconv.kernels.index import Strides, pack
from tritonconv.layout import five

TensorKey = tuple[tuple[int, ...], tuple[int, ...]]  # shape, strides
Box = tuple[list[int], list[int], list[int]]  # shape, strides and block of a TMA descriptor
INT32_MAX = 2**31 - 1


class FusedKey(NamedTuple):
    """An epilogue without its tensors: strides of scale and shift and the residual's place, None where there is none."""

    scale: int | None
    shift: int | None
    residual: TensorKey | None
    activation: str
    slope: float
    keep: bool  # z is written too

    @classmethod
    def of(cls, epilogue: Epilogue) -> FusedKey:
        scale, shift, residual, activation, slope, keep = epilogue
        return cls(
            None if scale is None else scale.stride(0),
            None if shift is None else shift.stride(0),
            None if residual is None else key(residual),
            activation,
            slope,
            keep,
        )

    def kind(self, out: TensorKey) -> str:
        """`costmodel.tiling.Call.epilogue` for a result that lies as `out`."""
        if self.activation and ACTIVATIONS[self.activation].exponential:
            return "heavy"
        if self.residual is not None:
            lies_as_out = all(n == 1 or s == t for n, s, t in zip(*out, self.residual[1], strict=True))
            return "tensors" if lies_as_out else "heavy"
        return "tensors" if self.keep else "channels"


@dataclass(frozen=True)
class Prepared:
    """A launch without its tensors. `workspace` is the shape of wgrad's partial sums, `reduce` the launch that adds them.
    `boxes` describes the tensors that a kernel takes as TMA descriptors, None for one that it takes as a pointer."""

    plan: Plan
    programs: int
    arguments: tuple[Any, ...]  # after the tensors
    constants: dict[str, Any]
    workspace: tuple[int, ...] = ()
    reduce: Prepared | None = None
    fused: tuple[Any, ...] = ()  # the last fields of `Fused`, after its pointers
    boxes: tuple[Box | None, ...] = ()  # of a, b and out
    result: tuple[int, ...] = ()  # the shape of what the kernel makes instead, whose first columns are copied to out


def clamp(capability: int) -> dict[str, Any]:
    """The constant of kernels whose masked-off copies get addresses inside of their tensors (`kernels.index.load_inside`): on
    compute capability 10.x, whose machine code may follow them."""
    return {"CLAMP": True} if capability // 10 == 10 else {}


def clamped(prepared: Prepared, capability: int) -> Prepared:
    """A convolution's launch with that constant, where its kernel copies by masks."""
    plan = prepared.plan
    copies = plan.family in ("gather", "patch", "band") or (plan.family == "tma" and plan.which == Pass.WGRAD)
    return replace(prepared, constants=prepared.constants | clamp(capability)) if copies else prepared


def key(tensor: torch.Tensor) -> TensorKey:
    return tuple(tensor.shape), tensor.stride()


def is_aligned(tensor: torch.Tensor) -> bool:
    """Whether the first element lies on a multiple of 16 bytes, as a TMA descriptor asks; a slice may not."""
    return tensor.data_ptr() % 16 == 0


def packed_strides(tensor: TensorKey, described: Operand) -> Strides:
    """Strides as the kernels take them: 5 axes, divided by the alignment (but the unit one), packed."""
    shape, strides = tensor
    real = five(strides, 0)
    sizes = five(shape, 1)
    return Strides(
        *(
            pack(0 if size == 1 or axis == described.unit else stride // described.align)
            for axis, (size, stride) in enumerate(zip(sizes, real, strict=True))
        )
    )


def channels_fit_int32(out: TensorKey, bias_stride: int | None, fused: FusedKey | None) -> bool:
    """Whether 32-bit offsets reach all values per channel: bias, scale and shift."""
    strides = (bias_stride, *(() if fused is None else (fused.scale, fused.shift)))
    return all(out[0][1] * (stride or 0) <= INT32_MAX for stride in strides)


def follow(
    fused: FusedKey | None, describe: Callable[[tuple[int, ...], tuple[int, ...]], Operand]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The last fields of `Fused` and the constexprs of an epilogue, whose residual lies as `describe` says of its key."""
    if fused is None:
        return (), {}
    constants: dict[str, Any] = {"ACTIVATION": fused.activation, "SLOPE": fused.slope}
    strides = None
    if fused.residual is not None:
        described = describe(*fused.residual)
        strides = packed_strides(fused.residual, described)
        constants |= {"R_ALIGN": described.align, "R_UNIT": described.unit}
    return (pack(fused.scale or 0), pack(fused.shift or 0), strides), constants


def accumulator(dtype: str) -> Any:
    """The type that kernels add up in, for elements of `dtype`."""
    return tl.float64 if dtype == "float64" else tl.float32


def wide(dtype: torch.dtype) -> torch.dtype:
    """The same as torch's type, for partial sums."""
    return torch.float64 if dtype == torch.float64 else torch.float32
