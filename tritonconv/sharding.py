"""How the ops of the six convolutions, of `deform_conv2d`, `causal_conv3d`, `unfold` and `fold`, and of prologues, act on
DTensors: which shards of operands make which shards of a result.

This module is imported with the first DTensor, because importing `torch.distributed.tensor` takes a second. The batch may be
sharded, and with one group the channels too. A tensor that is sharded along a spatial axis is redistributed before the call; no
halo is exchanged (`tritonconv.halo` does that, for local tensors).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

from tritonconv.private import schema_info

_OPS = torch.ops.tritonconv
Rows = list[tuple[list[Placement], list[Placement | None]]]
_KEPT, _BATCH, _CHANNELS, _ROWS = Replicate(), Shard(0), Shard(1), Shard(0)


def _groups(args: tuple[Any, ...], place: int) -> int:
    return int(args[place])


def _linear(place: int, out: Placement, inner: Placement) -> Callable[..., Any]:
    """The rule of fprop and dgrad. `out` shards the weight's output channels, `inner` the channels that are summed over."""

    def rows(*args: Any) -> Rows:
        _, _, b, *rest = args
        others: list[Placement | None] = [None] * len(rest)

        def row(result: Placement, first: Placement, second: Placement, bias: Placement) -> Any:
            return [result], [first, second, None if b is None else bias, *others]

        choices = [row(_KEPT, _KEPT, _KEPT, _KEPT), row(_BATCH, _BATCH, _KEPT, _KEPT)]
        if _groups(args, place) == 1:
            choices.append(row(_CHANNELS, _KEPT, out, _BATCH))
            if b is None:
                choices.append(row(Partial(), _CHANNELS, inner, _KEPT))
        return choices

    return rows


def _wgrad(*args: Any) -> Rows:
    _, _, *rest = args
    others: list[Placement | None] = [None] * len(rest)
    choices: Rows = [([_KEPT], [_KEPT, _KEPT, *others]), ([Partial()], [_BATCH, _BATCH, *others])]
    if _groups(args, 6) == 1:
        choices.append(([_ROWS], [_CHANNELS, _KEPT, *others]))
        choices.append(([_CHANNELS], [_KEPT, _CHANNELS, *others]))
    return choices


def _fused(place: int, out: Placement) -> Callable[..., Any]:
    """The rule of the fused ops: as for fprop and dgrad, except that an activation cannot follow a partial sum."""

    def rows(*args: Any) -> Rows:
        tensors = (*args[:3], *(None,) * (place - 2), *(*args[place + 1 :], *(None,) * 3)[:3])
        keep = bool(args[place + 6]) if len(args) > place + 6 else False

        def row(result: Placement, first: Placement, second: Placement, channel: Placement, residual: Placement) -> Any:
            wanted = (first, second, channel, *(None,) * (place - 2), channel, channel, residual)
            inputs = [None if t is None else p for p, t in zip(wanted, tensors, strict=True)]
            return [result, result if keep else _KEPT], [*inputs, *(None,) * len(args)][: len(args)]

        choices = [row(_KEPT, _KEPT, _KEPT, _KEPT, _KEPT), row(_BATCH, _BATCH, _KEPT, _KEPT, _BATCH)]
        if _groups(args, place) == 1:
            choices.append(row(_CHANNELS, _KEPT, out, _BATCH, _CHANNELS))
        return choices

    return rows


def _deform(x: Any, offset: Any, w: Any, b: Any, mask: Any, *rest: Any) -> Rows:
    """A batch with its offsets and masks, or with one group the filters."""
    others: list[Placement | None] = [None] * len(rest)

    def row(result: Placement, images: Placement, filters: Placement) -> Any:
        wanted = (images, images, filters, filters, images)
        return [result], [*(None if t is None else p for p, t in zip(wanted, (x, offset, w, b, mask), strict=True)), *others]

    choices = [row(_KEPT, _KEPT, _KEPT), row(_BATCH, _BATCH, _KEPT)]
    return [*choices, row(_CHANNELS, _KEPT, _ROWS)] if x.shape[1] == w.shape[1] else choices


def _deform_backward(dy: Any, x: Any, offset: Any, w: Any, mask: Any, *rest: Any) -> Rows:
    others: list[Placement | None] = [None] * len(rest)

    def row(result: Placement, images: Placement, filters: Placement, dimages: Placement, dfilters: Placement) -> Any:
        operands = [result, images, images, filters, None if mask is None else images, *others]
        return [dimages, dimages, dfilters, dimages], operands

    choices = [row(*(_KEPT,) * 5), row(_BATCH, _BATCH, _KEPT, _BATCH, Partial())]
    filters = row(_CHANNELS, _KEPT, _ROWS, Partial(), _ROWS)
    return [*choices, filters] if x.shape[1] == w.shape[1] else choices


def _by_image(tensor: Any, *rest: Any) -> Rows:
    """unfold and fold, which are linear and treat each image alone."""
    others: list[Placement | None] = [None] * len(rest)
    return [([place], [place, *others]) for place in (_KEPT, _BATCH, Partial())]


def _batch(*images: int, second: Callable[..., Placement] | None = None) -> Callable[..., Rows]:
    """The rule of an op that treats each image of x, its first operand, alone. The operands at these places have images too,
    unless theirs is one for all of them. `second` says where a second result has its images, from the op's arguments."""

    def rows(x: Any, *rest: Any) -> Rows:
        count = x.shape[0]

        def row(place: Placement) -> Any:
            results = [place] if second is None else [place, place if second(x, *rest) == _BATCH else _KEPT]
            operands: list[Placement | None] = [place]
            for i, operand in enumerate(rest, 1):
                if not hasattr(operand, "shape"):  # no tensor
                    operands.append(None)
                else:
                    operands.append(place if i in images and operand.shape[0] == count else _KEPT)
            return results, operands

        return [row(_KEPT), row(_BATCH)]

    return rows


def _next_cache(*args: Any) -> Placement:
    """Where the next cache of `video` has its images; it is empty where none is asked for."""
    return _BATCH if args[9] else _KEPT


def _register() -> None:
    """Registers the rules. Besides tensors they depend on every number and word from the window on."""
    propagator = DTensor._op_dispatcher.sharding_propagator
    for op, rule, first in (
        (_OPS.fprop.default, _linear(6, Shard(0), Shard(1)), 3),
        (_OPS.dgrad.default, _linear(7, Shard(1), Shard(0)), 3),
        (_OPS.wgrad.default, _wgrad, 2),
        (_OPS.fprop_fused.default, _fused(6, Shard(0)), 3),
        (_OPS.dgrad_fused.default, _fused(7, Shard(1)), 3),
        (_OPS.deform.default, _deform, 5),
        (_OPS.deform_backward.default, _deform_backward, 5),
        (_OPS.unfold.default, _by_image, 1),
        (_OPS.fold.default, _by_image, 1),
        (_OPS.normalize.default, _batch(1, 2, 3), 4),
        (_OPS.group_scale.default, _batch(second=lambda *_: _BATCH), 3),
        (_OPS.rms_rstd.default, _batch(), 1),
        (_OPS.fprop_normalized.default, _batch(7, 8, 9, 14), 3),
        (_OPS.video.default, _batch(3, 11, 12, 13, 16, second=_next_cache), 4),
    ):
        register_sharding(op)(rule)
        # torch's default would begin at the first int and leave the lists before it out of the cache's key
        propagator.register_op_strategy(op, propagator.op_strategy_funcs[op], schema_info(first))


_register()
