"""The parts of every launch: shapes and strides as keys, packed strides, epilogues without tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton.language as tl

from costmodel.tiling import Operand
from tritonconv.epilogue import ACTIVATIONS, Epilogue
from tritonconv.kernels.index import Strides, pack
from tritonconv.layout import five

TensorKey = tuple[tuple[int, ...], tuple[int, ...]]  # shape, strides
INT32_MAX = 2**31 - 1


class FusedKey(NamedTuple):
    """An epilogue without its tensors: the strides of scale and shift, and the residual's shape and strides; None where there
    is none."""

    scale: int | None
    shift: int | None
    residual: TensorKey | None
    activation: str
    slope: float
    keep: bool  # z is written too

    @classmethod
    def of(cls, epilogue: Epilogue) -> FusedKey:
        """The key of an epilogue with its tensors."""
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
        """`costmodel.tiling.Call.epilogue` for a result with the shape and strides `out`."""
        if self.activation and ACTIVATIONS[self.activation].exponential:
            return "heavy"
        if self.residual is not None:
            lies_as_out = all(n == 1 or s == t for n, s, t in zip(*out, self.residual[1], strict=True))
            return "tensors" if lies_as_out else "heavy"
        return "tensors" if self.keep else "channels"


def key(tensor: torch.Tensor) -> TensorKey:
    return tuple(tensor.shape), tensor.stride()


def is_aligned(tensor: torch.Tensor) -> bool:
    """Whether the address of the first element is a multiple of 16 bytes, as TMA descriptors need. That of a slice may not
    be."""
    return tensor.data_ptr() % 16 == 0


def packed_strides(tensor: TensorKey, described: Operand) -> Strides:
    """Strides in the form of the kernels: of 5 axes, divided by the alignment (except the unit one), and packed."""
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
    """(the last fields of `Fused`, the constexprs) of an epilogue. `describe` turns the residual's shape and strides into an
    `Operand`."""
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
    """Triton's type of the sums, for elements of `dtype`."""
    return tl.float64 if dtype == "float64" else tl.float32


def wide(dtype: torch.dtype) -> torch.dtype:
    """torch's type of the partial sums, for elements of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32
