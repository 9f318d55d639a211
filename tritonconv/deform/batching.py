"""`torch.vmap` of the ops of deform_conv2d: the mapped axis joins the batch, or the groups where each sample has a weight, a
bias or a gradient of a weight of its own."""

from __future__ import annotations

from typing import Any

import torch

from tritonconv.batching import _from_channels, _into_batch, _into_channels, _spread
from tritonconv.deform import op  # noqa: F401  registers the ops
from tritonconv.op import LIBRARY

_OPS = torch.ops.tritonconv


def _deform(info: Any, dims: Any, x: Any, offset: Any, w: Any, b: Any, mask: Any, *rest: Any) -> tuple[torch.Tensor, int]:
    size = info.batch_size
    images = [_spread(t, dim, size) for t, dim in zip((x, offset, mask), (*dims[:2], dims[4]), strict=True)]
    if dims[2] is None and dims[3] is None:
        many, moved, factors = (None if t is None else _into_batch(t) for t in images)
        return _OPS.deform(many, moved, w, b, factors, *rest).unflatten(0, (size, -1)), 0
    many, moved, factors = (None if t is None else _into_channels(t) for t in images)
    weight, bias = (_spread(t, dim, size) for t, dim in ((w, dims[2]), (b, dims[3])))
    bias = None if bias is None else bias.flatten()
    return _from_channels(_OPS.deform(many, moved, _into_batch(weight), bias, factors, *rest), size), 0


def _deform_backward(info: Any, dims: Any, dy: Any, x: Any, offset: Any, w: Any, mask: Any, *rest: Any) -> Any:
    size, needs = info.batch_size, rest[3]
    given = [_spread(t, dim, size) for t, dim in zip((dy, x, offset, mask), (*dims[:3], dims[4]), strict=True)]
    alone = dims[3] is None and not needs[2]
    g, many, moved, factors = (None if t is None else (_into_batch if alone else _into_channels)(t) for t in given)
    weight = w if alone else _into_batch(_spread(w, dims[3], size))
    parts = _OPS.deform_backward(g, many, moved, weight, factors, *rest)

    def apart(part: torch.Tensor, is_weight: bool) -> torch.Tensor:
        return part.unflatten(0, (size, -1)) if alone or is_weight else _from_channels(part, size)

    shared = (*needs[:3], needs[3] and mask is not None)
    results = (apart(part, i == 2) if need else part for i, (part, need) in enumerate(zip(parts, shared, strict=True)))
    return tuple(results), tuple(0 if need else None for need in shared)


for _name, _rule in (("deform", _deform), ("deform_backward", _deform_backward)):
    torch.library.register_vmap(f"tritonconv::{_name}", _rule, lib=LIBRARY)
