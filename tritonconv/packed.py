"""Weights in another form, made once for each version of a weight.

A packed form is valid while the weight lives, keeps its memory, and keeps the value of torch's version counter. Every operator
that changes a tensor in place increments that counter, also through a view or a detached tensor. A new tensor assigned to
`weight.data` has other memory, so it is noticed, but a change in place of `weight.data` does not increment the counter: call
`forget_packed` after one. Nothing is kept for tensors of inference mode, which have no counter, nor while a CUDA graph is
captured, so that its replays pack anew. Each stream has packed forms of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch

from tritonconv import private


class _Kept(NamedTuple):
    """A packed form, and the state of the weight that it was made from."""

    storage: Any  # a weak reference: memory that was freed and given out again is another
    state: tuple[Hashable, ...]
    packed: torch.Tensor


_lock = threading.Lock()
_KEPT = private.WeakTensorKeyDictionary()


def _state(weight: torch.Tensor) -> tuple[Hashable, ...]:
    stream = torch.cuda.current_stream(weight.device).cuda_stream if weight.is_cuda else 0
    return (weight._version, weight.data_ptr(), weight.shape, weight.stride(), weight.dtype, weight.device, stream)


def packed(weight: torch.Tensor, kind: Hashable, make: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The result of make(weight), kept for each version of the weight. `kind` tells one `make` from another."""
    if weight.is_inference() or (weight.is_cuda and torch.cuda.is_current_stream_capturing()):
        return make(weight)
    state = _state(weight)
    with _lock:
        kept = _KEPT.get(weight, {}).get(kind)
    if kept is not None and kept.state == state and not kept.storage.expired():
        packed_form: torch.Tensor = kept.packed
        return packed_form
    with torch.no_grad():
        result = make(weight)
    with _lock:
        _KEPT.setdefault(weight, {})[kind] = _Kept(private.StorageWeakRef(weight.untyped_storage()), state, result)
    return result


def forget_packed(weight: torch.Tensor | None = None) -> None:
    """Drops the packed forms of a weight, or of all weights with None, so that the next call makes them anew.

    It is needed only after a change of `weight.data` in place (`weight.data.copy_(...)`), which torch's version counter does
    not see; assigning to `weight.data`, optimizers, `load_state_dict` and every operator in place are noticed. It also frees
    the memory: a packed form is as large as the weight (16/9 of it for a 3x3 filter of `causal_conv3d(upsample=2)`).

    Raises TypeError where weight is neither a tensor nor None. `docs/design/video.md` says which weights are packed.

    >>> import torch, tritonconv
    >>> tritonconv.forget_packed(torch.ones(2))  # nothing is kept of this one
    """
    if weight is not None and not isinstance(weight, torch.Tensor):
        raise TypeError(f"forget_packed(): argument 'weight' must be a Tensor or None, got {type(weight).__name__}")
    with _lock:
        if weight is None:
            _KEPT.clear()
        elif weight in _KEPT:
            del _KEPT[weight]
