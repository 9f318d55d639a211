"""How far from the exact result a convolution may be. The tolerance is derived, not tuned.

An element that sums k products with rounding unit u_acc, and is rounded once to a dtype of unit u_out, may be off by

    u_out * |ref| + c * u_acc * sqrt(k) * (conv(|x|, |w|) + |b|),    c <= 4,

where k counts the products that are really added (taps in the padding are not); the same convolution over ones computes it.
tf32 rounds both factors before they are multiplied, which adds u_tf32 to u_acc * sqrt(k).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

C_LIMIT = 4.0
UNIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24, torch.float64: 2.0**-53}
TF32_INPUT_UNIT = 2.0**-11


@dataclass(frozen=True)
class Expected:
    """An exact result, the sum of the absolute products of each element, and the number of products. All are float64; the shape
    of `terms` broadcasts to that of the others."""

    value: torch.Tensor
    magnitude: torch.Tensor
    terms: torch.Tensor

    def rounding(self, dtype: torch.dtype) -> torch.Tensor:
        """The error that one rounding to `dtype` may make of each element, at least half a subnormal step."""
        limits = torch.finfo(dtype)
        return UNIT[dtype] * self.value.abs() + limits.smallest_normal * limits.eps / 2

    def accumulation(self, dtype: torch.dtype, tf32: bool = False) -> torch.Tensor:
        """The error that each element's sum may have for c = 1."""
        unit = UNIT[torch.float64 if dtype == torch.float64 else torch.float32]
        return (unit * self.terms.sqrt() + (TF32_INPUT_UNIT if tf32 else 0.0)) * self.magnitude

    def difference(self, got: torch.Tensor) -> torch.Tensor:
        return (got.detach().to(self.value.device).double() - self.value).abs()


def needed_c(got: torch.Tensor, want: Expected, tf32: bool = False) -> float:
    """The least c for which every element of `got` is within the tolerance; 0 where one rounding explains every error."""
    if got.numel() == 0:
        return 0.0
    excess = want.difference(got) - want.rounding(got.dtype)
    c = torch.where(excess <= 0, 0.0, excess / want.accumulation(got.dtype, tf32))  # no room for an excess: infinite
    return _largest(c)


def share(got: torch.Tensor, want: Expected, tf32: bool = False) -> float:
    """The largest error over the tolerance: 1 or less where every element is within it."""
    if got.numel() == 0:
        return 0.0
    return _parts(want.difference(got), want.rounding(got.dtype) + C_LIMIT * want.accumulation(got.dtype, tf32))


#: The largest slope of any activation (hardswish at 3).
STEEPEST = 1.5


def activated_share(
    got: torch.Tensor, z: Expected, activation: Callable[[torch.Tensor], torch.Tensor], tf32: bool = False
) -> float:
    """`share` of an activation of the sums `z`, which is applied before the rounding: it may be off by its slope times their
    error, plus some rounding units of its own value."""
    y = activation(z.value)
    want = Expected(y, STEEPEST * z.magnitude, z.terms)
    own = C_LIMIT * UNIT[torch.float64 if got.dtype == torch.float64 else torch.float32] * y.abs()
    room = want.rounding(got.dtype) + C_LIMIT * want.accumulation(got.dtype, tf32) + own
    return _parts(want.difference(got), room) if got.numel() else 0.0


def _parts(difference: torch.Tensor, room: torch.Tensor) -> float:
    """The largest difference over what is allowed. Where there is no difference the quotient is 0, even where nothing is
    allowed (half a step of float64 is 0)."""
    return _largest(torch.where(difference == 0, 0.0, difference / room))


def _largest(values: torch.Tensor) -> float:
    """The largest value; a NaN counts as infinite."""
    return float(torch.where(values.isnan(), torch.inf, values).max())
