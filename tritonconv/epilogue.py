"""What may follow a convolution in the same kernel: y = act((conv + bias) * scale[c] + shift[c] + residual).

z is the value before the activation. An activation's derivative is computed from y where y determines it, so that only y is
kept for the backward pass. Otherwise it is computed from z, which the kernel then stores beside y if a gradient is wanted:

| activation | derivative from | kept |
|---|---|---|
| None | | nothing |
| relu, relu6, leaky_relu (slope >= 0), sigmoid, tanh | y | y |
| gelu, gelu_tanh, silu, hardswish, leaky_relu (slope < 0) | z | z |

The Triton side is `tritonconv.kernels.epilogue.activated`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from costmodel.problem import ConvProblem, Pass
from tritonconv import private

_ATEN = torch.ops.aten


class Activation(NamedTuple):
    """One activation by torch's operators. Its functions take a tensor and a negative slope."""

    forward: Callable[[torch.Tensor, float], torch.Tensor]
    backward: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]  # takes the gradient, y or z, and the slope
    from_y: bool
    exponential: bool = False


def _silu_backward(g: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """The gradient of SiLU by torch's kernel. That kernel has no derivative, so where one may be asked for, a formula with the
    same value is used."""
    if not torch.is_grad_enabled() and not private.is_differentiated_forwards():
        return _ATEN.silu_backward(g, z)
    s = z.sigmoid()
    return g * (s * (1 + z * (1 - s)))


ACTIVATIONS = {
    "relu": Activation(
        lambda z, slope: z.relu(),
        lambda g, y, slope: _ATEN.threshold_backward(g, y, 0),
        from_y=True,
    ),
    "relu6": Activation(
        lambda z, slope: F.relu6(z),
        lambda g, y, slope: _ATEN.hardtanh_backward(g, y, 0, 6),
        from_y=True,
    ),
    "leaky_relu": Activation(
        lambda z, slope: F.leaky_relu(z, slope),
        lambda g, y_or_z, slope: _ATEN.leaky_relu_backward(g, y_or_z, slope, slope >= 0),
        from_y=True,  # y has the sign of z unless the slope is negative
    ),
    "sigmoid": Activation(
        lambda z, slope: z.sigmoid(),
        lambda g, y, slope: _ATEN.sigmoid_backward(g, y),
        from_y=True,
        exponential=True,
    ),
    "tanh": Activation(
        lambda z, slope: z.tanh(),
        lambda g, y, slope: _ATEN.tanh_backward(g, y),
        from_y=True,
        exponential=True,
    ),
    "gelu": Activation(
        lambda z, slope: F.gelu(z),
        lambda g, z, slope: _ATEN.gelu_backward(g, z),
        from_y=False,
        exponential=True,
    ),
    "gelu_tanh": Activation(
        lambda z, slope: F.gelu(z, approximate="tanh"),
        lambda g, z, slope: _ATEN.gelu_backward(g, z, approximate="tanh"),
        from_y=False,
        exponential=True,
    ),
    "silu": Activation(
        lambda z, slope: F.silu(z),
        lambda g, z, slope: _silu_backward(g, z),
        from_y=False,
        exponential=True,
    ),
    "hardswish": Activation(
        lambda z, slope: F.hardswish(z),
        lambda g, z, slope: _ATEN.hardswish_backward(g, z),
        from_y=False,
    ),
}


class Epilogue(NamedTuple):
    """An epilogue with its tensors. `activation` is "" for none; `keep` says whether z is returned."""

    scale: torch.Tensor | None = None  # [C_out]
    shift: torch.Tensor | None = None  # [C_out]
    residual: torch.Tensor | None = None  # of the output's shape
    activation: str = ""
    slope: float = 0.01
    keep: bool = False


def needs_z(activation: str, slope: float) -> bool:
    """Whether the derivative is computed from z, so that the forward pass must keep z."""
    if not activation:
        return False
    return not ACTIVATIONS[activation].from_y or (activation == "leaky_relu" and slope < 0)


def per_channel(values: torch.Tensor, rank: int) -> torch.Tensor:
    """values [C] as [C, 1, ...], which broadcasts against a result [N, C, *spatial]."""
    return values.view(-1, *(1,) * rank)


def over_weight(values: torch.Tensor, which: Pass, weight: torch.Tensor, groups: int) -> torch.Tensor:
    """values [C_out] of the output of a pass over a weight [K, C / G, *kernel], broadcastable against that weight.

    fprop's output channel is the weight's axis 0. dgrad's is the group (a range of axis 0) and axis 1 together.
    """
    rank = weight.dim() - 2
    if which == Pass.FPROP:
        return values.view(-1, *(1,) * (rank + 1))
    spread = values.view(groups, 1, -1).expand(groups, weight.shape[0] // groups, -1)
    return spread.reshape(weight.shape[0], weight.shape[1], *(1,) * rank)


def weight_sums(products: torch.Tensor, which: Pass, groups: int) -> torch.Tensor:
    """The sums [C_out] of a tensor of the weight's shape, each over the elements of one output channel."""
    if which == Pass.FPROP:
        return products.flatten(1).sum(1)
    return products.flatten(2).sum(2).view(groups, -1, products.shape[1]).sum(1).flatten()


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in the precision of sums: float32, or float64 for float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def by_torch(
    sums: torch.Tensor, problem: ConvProblem, epilogue: Epilogue, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, z) from a convolution's sums with its bias, by torch's operators. z is empty where it is not asked for.

    As in the kernels, everything is computed in the precision of `widened` sums and rounded once, to `dtype`.
    """
    *tensors, activation, slope, keep = epilogue
    scale, shift, residual = (None if t is None else widened(t) for t in tensors)
    z = sums if scale is None else sums * per_channel(scale, problem.rank)
    z = z if shift is None else z + per_channel(shift, problem.rank)
    z = z if residual is None else z + residual
    y = ACTIVATIONS[activation].forward(z, slope) if activation else z.clone() if keep else z
    return y.to(dtype), z.to(dtype) if keep else z.new_empty(0, dtype=dtype)
