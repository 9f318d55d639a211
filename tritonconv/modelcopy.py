"""A copy of a model whose parameters and buffers lie in the model's memory, of models too that `copy.deepcopy` refuses."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def sharing_copy(model: Model) -> Model:
    """A copy of the tree of modules. Parameters and buffers are new objects over the same memory, so that an in-place change
    of their values shows in both models, and `.to(...)`, a new gradient or a new buffer in one of them alone.

    What else a module holds (settings, hooks, bound methods of its modules) is copied as `copy.deepcopy` does it; an attribute
    that cannot be copied (a lock, a tensor that autograd made) is the model's own in the copy. A scripted module has no Python
    parts to copy and is shared whole.
    """
    memo: dict[int, Any] = {}
    parts = list(model.modules())
    for part in parts:
        scripted = isinstance(part, torch.jit.ScriptModule)
        memo[id(part)] = part if scripted else type(part).__new__(type(part))
    for tensor in (*model.parameters(), *model.buffers()):
        memo[id(tensor)] = _alias(tensor)
    for part in parts:
        twin = memo[id(part)]
        if twin is not part:
            twin.__dict__.update({name: _copied(value, memo) for name, value in part.__dict__.items()})
    found: Model = memo[id(model)]
    return found


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    """Another object over the same memory. A lazy parameter that has no memory yet stays what it is."""
    if nn.parameter.is_lazy(tensor):
        return tensor
    if not isinstance(tensor, nn.Parameter):
        return tensor.detach()
    twin = nn.Parameter(tensor.detach(), requires_grad=tensor.requires_grad)
    twin.__dict__.update(tensor.__dict__)
    return twin


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """A deep copy, or `value` itself where there is none. What a failed attempt left in `memo` is forgotten."""
    known = set(memo)
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # every class has its own reasons to refuse, and raises what it likes
        for key in memo.keys() - known:
            del memo[key]
        if isinstance(value, dict):  # one entry that cannot be copied does not keep the others from it
            return type(value)((key, _copied(entry, memo)) for key, entry in value.items())
        return value
