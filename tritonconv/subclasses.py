"""Subclasses of tensors whose rules are registered when the first one comes: those of DTensor, whose import takes a second."""

from __future__ import annotations

import functools
import importlib

import torch


def know_subclass(tensor: torch.Tensor) -> None:
    """Registers the ops' rules for DTensors when the first one comes. A tensor beside a DTensor is one."""
    if type(tensor) not in (torch.nn.Parameter, torch.Tensor) and not torch.compiler.is_compiling():
        _know_subclass(type(tensor))


@functools.cache
def _know_subclass(kind: type) -> None:
    if kind.__module__.startswith("torch.distributed.tensor"):
        importlib.import_module("tritonconv.sharding")
