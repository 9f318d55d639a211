"""Checks one model: converts it, compares forward and backward with float64, counts its launches, and gives it back."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

import tritonconv
from bench.launched import COUNTS
from bench.models.catalog import Entry
from tritonconv.use import SERVED

#: How far a result or a gradient may be from float64, in multiples of torch's own float32 error.
FACTOR, FLOOR = 8.0, 1e-5


class _Calls(TorchFunctionMode):
    """Counts the convolutions that a model calls."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in SERVED
        return func(*args, **(kwargs or {}))


def check(entry: Entry, fuse: bool = False) -> dict[str, Any]:
    """The row of a model: how many convolutions it has and which are left, calls, launches, and errors over torch's own.

    Raises AssertionError where a result is wrong, a launch is missing, or the model is not given back.
    """
    torch.manual_seed(0)
    model = entry.build().eval()
    x = torch.randn(entry.input)
    with _Calls() as calls, torch.no_grad():
        entry.call(model, x)
    converted = tritonconv.convert(model, fuse=fuse)
    found = tritonconv.report(converted)
    exact = _run(copy.deepcopy(model).double(), entry, x.double())
    torchs = _run(model, entry, x)
    begun, before = time.perf_counter(), COUNTS.copy()
    with torch.no_grad():
        entry.call(converted, x)
    forward = _launches(before)
    before = COUNTS.copy()
    ours = _run(converted, entry, x)
    both = COUNTS - before
    seconds = time.perf_counter() - begun
    own = sum(not layer.replaced for layer in found.layers)
    assert forward == calls.count or own, f"{forward} launches for {calls.count} convolutions"
    assert both["wgrad"] > 0 and forward > 0, "no kernel ran"
    worst = 0.0
    for got, want, usual in zip(ours, exact, torchs, strict=True):
        scale = float(want.abs().max()) or 1.0
        allowed = max(float((usual.double() - want).abs().max()) / scale, FLOOR)
        worst = max(worst, float((got.double() - want).abs().max()) / scale / allowed)
    assert worst <= FACTOR, f"an error of {worst:.1f} times torch's own"
    back = tritonconv.revert(converted)
    before = COUNTS.copy()
    with torch.no_grad():
        for got, want in zip(_tensors(entry.call(back, x)), _tensors(entry.call(model, x)), strict=True):
            assert torch.equal(got, want), "revert gives other values"
    assert not COUNTS - before, "revert leaves a kernel"
    return {
        "convolutions": len(found.layers),
        "replaced": len(found.layers) - own,
        "left": sorted({layer.reason for layer in found.left}),
        "calls": calls.count,
        "launches": forward,
        "gradients": int(both["wgrad"]),
        "error": round(worst, 2),
        "seconds": round(seconds, 1),
    }


def _launches(before: Any) -> int:
    new = COUNTS - before
    return int(new["fprop"] + new["dgrad"] + new["video"])


def _run(model: nn.Module, entry: Entry, x: torch.Tensor) -> list[torch.Tensor]:
    """The results, and the gradients of their mean square with respect to the input and every parameter."""
    leaf = x.clone().requires_grad_()
    parameters = [p for p in model.parameters() if p.requires_grad]
    results = list(_tensors(entry.call(model, leaf)))
    loss = torch.stack([y.square().mean() for y in results]).sum()
    gradients = torch.autograd.grad(loss, [leaf, *parameters], allow_unused=True)
    return [*(y.detach() for y in results), *(g for g in gradients if g is not None)]


def _tensors(made: Any) -> Iterator[torch.Tensor]:
    for leaf in pytree.tree_leaves(made):
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
            yield leaf
