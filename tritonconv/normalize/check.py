"""Arguments of prologues and of their statistics. Every message names the argument, what came and what was expected."""

from __future__ import annotations

from typing import Any

import torch

from tritonconv.check import as_int, cast_dtype, is_int
from tritonconv.epilogue import ACTIVATIONS
from tritonconv.launch import DTYPES

Maybe = torch.Tensor | None
AXES = {3: "[N, C, L]", 4: "[N, C, H, W]", 5: "[N, C, T, H, W]"}


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics, and of the arithmetic of a prologue, of tensors of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def unsqueezed(tensor: torch.Tensor, axis: int, axes: int) -> torch.Tensor:
    """The tensor with axes of size 1 put in before `axis`, so that it has `axes`."""
    for _ in range(axes - tensor.dim()):
        tensor = tensor.unsqueeze(axis)
    return tensor


def as_video(x: torch.Tensor) -> torch.Tensor:
    """x [N, C, *size] as [N, C, T, H, W], with axes of size 1."""
    return unsqueezed(x, 2, 5)


def _input(function: str, x: Any) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{function}(): argument 'x' must be a Tensor, got {type(x).__name__}")
    if x.dim() not in AXES:
        raise RuntimeError(f"{function}(): expected x of 3 to 5 axes, {' or '.join(AXES.values())}, got x {list(x.shape)}")
    if x.dtype not in DTYPES:
        raise RuntimeError(f"{function}(): x has dtype {x.dtype}; tritonconv takes float16, bfloat16, float32 and float64")
    if any(n == 0 for n in x.shape[1:]):
        raise RuntimeError(f"{function}(): only the batch may be empty, got x of shape {list(x.shape)}")


def _values(function: str, name: str, x: torch.Tensor, value: Any) -> None:
    """Checks that one of the tensors beside x is one, of a dtype that goes with x's, on the same device."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{function}(): argument {name!r} must be a Tensor or None, got {type(value).__name__}")
    dtype = cast_dtype(x)
    allowed = {dtype, x.dtype, statistics_dtype(dtype)}
    if value.dtype not in allowed:
        names = " or ".join(sorted(map(str, allowed)))
        raise RuntimeError(f"{function}(): expected {name} of dtype {names} beside x of {x.dtype}, got {name} {value.dtype}")
    if value.device != x.device:
        raise RuntimeError(f"{function}(): x and {name} must be on the same device, got x {x.device} and {name} {value.device}")


def _activation(function: str, activation: Any) -> None:
    if activation is not None and activation not in ACTIVATIONS:
        names = ", ".join(map(repr, ACTIVATIONS))
        raise ValueError(f"{function}(): activation must be None or one of {names}, got activation={activation!r}")


def _eps(function: str, eps: Any) -> float:
    if not isinstance(eps, (int, float)) or isinstance(eps, bool):
        raise TypeError(f"{function}(): argument 'eps' must be a number, got {eps!r} of type {type(eps).__name__}")
    if not 0 <= eps < float("inf"):
        raise ValueError(f"{function}(): eps must be at least 0 and finite, got eps={eps!r}")
    return float(eps)


def _per_channel(function: str, x: torch.Tensor, **given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            _values(function, name, x, value)
            if tuple(value.shape) != (x.shape[1],):
                raise RuntimeError(f"{function}(): expected {name} of shape [{x.shape[1]}] for x {list(x.shape)}, got {name} "
                                   f"{list(value.shape)}")  # fmt: skip


def group_norm(
    x: Any, num_groups: Any, weight: Any, bias: Any, eps: Any, activation: Any, per_frame: Any = False
) -> tuple[int, float]:
    """The checked number of groups and eps of `group_norm_prologue`."""
    name = "group_norm_prologue"
    _input(name, x)
    if per_frame and x.dim() != 5:
        raise RuntimeError(f"{name}(): per_frame=True is for x of 5 axes {AXES[5]}, got x {list(x.shape)}")
    if not is_int(num_groups):
        raise TypeError(f"{name}(): argument 'num_groups' must be int, got {num_groups!r} of type {type(num_groups).__name__}")
    groups = as_int(name, "num_groups", num_groups)
    if groups < 1 or x.shape[1] % groups:
        raise RuntimeError(f"{name}(): num_groups must divide the {x.shape[1]} channels of x {list(x.shape)}, got {groups}")
    _per_channel(name, x, weight=weight, bias=bias)
    _activation(name, activation)
    return groups, _eps(name, eps)


def rms_norm(x: Any, weight: Any, bias: Any, eps: Any, activation: Any) -> float:
    """The checked eps of `rms_norm_prologue`."""
    name = "rms_norm_prologue"
    _input(name, x)
    _per_channel(name, x, weight=weight, bias=bias)
    _activation(name, activation)
    return _eps(name, eps)


def per_frame(value: Maybe) -> Maybe:
    """scale or shift [C], [N, C] or [N, T, C] as [N or 1, T or 1, C]."""
    if value is None or value.dim() == 3:
        return value
    return value.view(1, 1, -1) if value.dim() == 1 else value.unsqueeze(1)


def prologue(function: str, x: Any, given: Any) -> tuple[Maybe, Maybe, Maybe]:
    """(scale [N or 1, T or 1, C], shift of such a shape, rstd [N, T, H, W]) of a `Prologue` for x of 3 to 5 axes, as the ops
    take them: T, and for x [N, C, L] H too, are 1 where x has no such axis."""
    from tritonconv.normalize import Prologue

    _input(function, x)
    if not isinstance(given, Prologue):
        raise TypeError(f"{function}(): argument 'prologue' must be a tritonconv.Prologue, got {type(given).__name__}")
    n, c, *size = x.shape
    frames = size[0] if len(size) == 3 else 1
    per_channel = []
    for name, value in (("scale", given.scale), ("shift", given.shift)):
        if value is not None:
            name = f"prologue.{name}"
            _values(function, name, x, value)
            shape = value.shape
            if (
                not 1 <= value.dim() <= (3 if len(size) == 3 else 2)
                or shape[-1] != c
                or (value.dim() > 1 and shape[0] not in (1, n))
            ):
                wrong = True
            else:
                wrong = value.dim() == 3 and shape[1] not in (1, frames)
            if wrong:
                forms = f"[{c}], [{n}, {c}] or [{n}, {frames}, {c}]" if len(size) == 3 else f"[{c}] or [{n}, {c}]"
                raise RuntimeError(
                    f"{function}(): expected {name} of shape {forms} for x {list(x.shape)}, got {name} {list(shape)}"
                )
        per_channel.append(per_frame(value))
    rstd = given.rstd
    if rstd is not None:
        _values(function, "prologue.rstd", x, rstd)
        if tuple(rstd.shape) != (n, *size):
            raise RuntimeError(
                f"{function}(): expected prologue.rstd of shape {[n, *size]} for x {list(x.shape)}, got prologue.rstd "
                f"{list(rstd.shape)}"
            )
        rstd = unsqueezed(rstd, 1, 4)
    _activation(function, given.activation)
    slope = given.negative_slope
    if not isinstance(slope, (int, float)) or isinstance(slope, bool):
        raise TypeError(
            f"{function}(): argument 'prologue.negative_slope' must be a number, got {slope!r} of type {type(slope).__name__}"
        )
    return per_channel[0], per_channel[1], rstd
