"""`torch.vmap` of the ops. The mapped axis joins the batch where images have it, otherwise the channels.

| op | mapped over | call |
|---|---|---|
| fprop(x, w) | x | N * B images |
| | w | B times as many filters of each group, on the same images |
| | both | B times as many groups |
| dgrad(dy, w), wgrad(dy, x) | likewise | a gradient of a sample's weight is one of B times as many groups |

The fused ops go into the batch where no weight or per-channel tensor is mapped over, else into groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tritonconv.op import LIBRARY

_OPS = torch.ops.tritonconv


def _front(tensor: Any, dim: int | None) -> Any:
    """The tensor with its mapped axis first; the tensor itself where it has none."""
    return tensor if tensor is None or dim is None else tensor.movedim(dim, 0)


def _spread(tensor: Any, dim: int | None, size: int) -> Any:
    """The tensor with its mapped axis first. Where it has none, one is added."""
    return None if tensor is None else tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _into_batch(tensor: torch.Tensor) -> torch.Tensor:
    """[B, N, ...] -> [B * N, ...], of weights [B, K, ...] -> [B * K, ...]."""
    return tensor.flatten(0, 1)


def _into_channels(tensor: torch.Tensor) -> torch.Tensor:
    """[B, N, C, ...] -> [N, B * C, ...], so that each of the B is a range of groups."""
    return tensor.movedim(0, 1).flatten(1, 2)


def _from_channels(tensor: torch.Tensor, size: int) -> torch.Tensor:
    """[N, B * C, ...] -> [B, N, C, ...]"""
    return tensor.unflatten(1, (size, -1)).movedim(1, 0)


def _into_groups(tensor: torch.Tensor, axis: int, groups: int) -> torch.Tensor:
    """[B, ..., G * C, ...] -> [..., G * B * C, ...]: each group has B times as many channels at `axis` of the result."""
    return tensor.unflatten(axis + 1, (groups, -1)).movedim(0, axis + 1).flatten(axis, axis + 2)


def _from_groups(tensor: torch.Tensor, axis: int, groups: int, size: int) -> torch.Tensor:
    """The inverse of `_into_groups`."""
    return tensor.unflatten(axis, (groups, size, -1)).movedim(axis + 1, 0).flatten(axis + 1, axis + 2)


def _with_bias(result: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """[B, N, C, ...] plus a bias of [B, C]."""
    return result + bias.view(bias.shape[0], 1, -1, *(1,) * (result.dim() - 3))


def _fprop(
    info: Any, dims: Any, x: Any, w: Any, b: Any, stride: Any, padding: Any, dilation: Any, groups: int, plan: str = ""
) -> Any:
    window = (stride, padding, dilation)
    return _linear(_OPS.fprop, info.batch_size, dims, x, w, b, window, groups, plan, 0)


def _dgrad(
    info: Any,
    dims: Any,
    dy: Any,
    w: Any,
    b: Any,
    size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    plan: str = "",
) -> Any:
    window = (size, stride, padding, dilation)
    return _linear(_OPS.dgrad, info.batch_size, dims, dy, w, b, window, groups, plan, 1)


def _linear(
    op: Any, size: int, dims: Any, a: Any, w: Any, b: Any, window: Any, groups: int, plan: str, axis: int
) -> tuple[torch.Tensor, int]:
    """fprop or dgrad. The result's channels are the weight's axis 0 or, in each group, axis 1."""
    a_dim, w_dim, b_dim = dims[:3]
    a, w, bias = _front(a, a_dim), _front(w, w_dim), _front(b, b_dim)
    shared = bias if b_dim is None else None  # a mapped bias is added after the call, unless it fits into the call
    if w_dim is None:
        if a_dim is None:
            y = op(a, w, None, *window, groups, plan).expand(size, *(-1,) * a.dim())
        else:
            y = op(_into_batch(a), w, shared, *window, groups, plan).unflatten(0, (size, -1))
        return (y if b_dim is None else _with_bias(y, bias)), 0
    if a_dim is not None:
        spread = _spread(b, b_dim, size)
        filters = None if spread is None else spread.flatten()
        return _from_channels(op(_into_channels(a), _into_batch(w), filters, *window, size * groups, plan), size), 0
    many = _into_groups(w, 0, groups) if axis == 0 else w.movedim(0, 1).flatten(1, 2)
    y = _from_groups(op(a, many, None, *window, groups, plan), 1, groups, size)
    spread = _spread(b, b_dim, size)
    return (y if spread is None else _with_bias(y, spread)), 0


def _wgrad(
    info: Any, dims: Any, dy: Any, x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, groups: int, plan: str = ""
) -> Any:
    size, (dy_dim, x_dim) = info.batch_size, dims[:2]
    dy, x, window = _front(dy, dy_dim), _front(x, x_dim), (kernel, stride, padding, dilation)
    if dy_dim is not None and x_dim is not None:
        dw = _OPS.wgrad(_into_channels(dy), _into_channels(x), *window, size * groups, plan)
        return dw.unflatten(0, (size, -1)), 0
    if dy_dim is not None:
        return _from_groups(_OPS.wgrad(_into_groups(dy, 1, groups), x, *window, groups, plan), 0, groups, size), 0
    dw = _OPS.wgrad(dy, _into_groups(x, 1, groups), *window, groups, plan)
    return dw.unflatten(1, (size, -1)).movedim(1, 0), 0


def _fused(op: Any, place: int) -> Callable[..., Any]:
    """The batching rule of a fused op, which has `place` arguments of its window before its groups."""

    def call(info: Any, dims: Any, a: Any, w: Any, b: Any, *rest: Any) -> Any:
        window, groups, after = rest[:place], rest[place], rest[place + 1 :]
        tensors, words = (*after, *(None,) * (3 - len(after)))[:3], after[3:]
        first = 3 + place + 1
        mapped = (*dims[first : first + 3], *(None,) * 3)[:3]
        size, channels = info.batch_size, (dims[1], dims[2], *mapped[:2])
        keep = bool(words[2]) if len(words) > 2 else False
        spread = [_spread(t, d, size) for t, d in zip((a, w, b, *tensors), (*dims[:3], *mapped), strict=True)]
        x, weight, bias, scale, shift, residual = spread
        if all(dim is None for dim in channels):
            residual = None if residual is None else _into_batch(residual)
            y, z = op(_into_batch(x), w, b, *window, groups, *tensors[:2], residual, *words)
            y = y.unflatten(0, (size, -1))
            z = z.unflatten(0, (size, -1)) if keep else z.expand(size, 0)
        else:
            flat = [None if t is None else t.flatten() for t in (bias, scale, shift)]
            residual = None if residual is None else _into_channels(residual)
            many = (_into_channels(x), _into_batch(weight), flat[0], *window, size * groups, *flat[1:], residual, *words)
            y, z = op(*many)
            y = _from_channels(y, size)
            z = _from_channels(z, size) if keep else z.expand(size, 0)
        return (y, z), (0, 0)

    return call


for _name, _rule in (
    ("fprop", _fprop),
    ("dgrad", _dgrad),
    ("wgrad", _wgrad),
    ("fprop_fused", _fused(_OPS.fprop_fused, 3)),
    ("dgrad_fused", _fused(_OPS.dgrad_fused, 4)),
):
    torch.library.register_vmap(f"tritonconv::{_name}", _rule, lib=LIBRARY)
