"""Checks one model: converts it, compares forward and backward with float64, counts its launches, and gives it back."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

import tritonconv
from bench.launched import COUNTS
from bench.models.catalog import Entry
from tritonconv import host
from tritonconv.use import SERVED

#: How far a result or a gradient may be from float64, in multiples of torch's own float32 error.
FACTOR, FLOOR = 8.0, 1e-5
#: Most inputs that are drawn until none has a rectified value on another side of a kink than in float64.
DRAWS = 5
#: Functions whose derivative jumps, and where.
KINKS = {F.relu: (0.0,), torch.relu: (0.0,), torch.relu_: (0.0,), F.relu6: (0.0, 6.0), F.hardtanh: (-1.0, 1.0)}
#: Seconds of an eager run in the interpreter beyond which the compiled model is not differentiated as well.
QUICK = 60.0


class _Calls(TorchFunctionMode):
    """Counts the convolutions that a model calls."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in SERVED
        return func(*args, **(kwargs or {}))


class _Sides(TorchFunctionMode):
    """Records on which side of a kink each rectified value lies. At a kink itself a gradient jumps, so one value that rounding
    moves to the other side changes gradients by whole percents, and says nothing about a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.sides: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in KINKS:
            self.sides += [args[0].detach() > kink for kink in KINKS[func]]
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
    report = tritonconv.report(converted)
    for draw in range(DRAWS):
        x = torch.randn(entry.input) if draw else x
        with _Sides() as want:
            exact = _run(copy.deepcopy(model).double(), entry, x.double())[0]
        begun = time.perf_counter()
        with _Sides() as got:
            ours, forward, backward = _run(converted, entry, x)
        seconds = time.perf_counter() - begun
        if fuse or all(torch.equal(a, b) for a, b in zip(got.sides, want.sides, strict=True)):  # kernels rectify what is fused
            break
    torchs = _run(model, entry, x)[0]
    own = sum(not layer.replaced for layer in report.layers)
    assert _calls(forward) == calls.count or own, f"{_calls(forward)} launches for {calls.count} convolutions"
    assert backward["wgrad"] > 0 and _calls(forward) > 0, "no kernel ran"
    worst = _worst(ours, exact, torchs)
    assert worst <= FACTOR, f"an error of {worst:.1f} times torch's own"
    compiled = _compiled(
        converted, entry, x, (ours, forward, backward), (exact, torchs), seconds < QUICK or not host.INTERPRETED
    )
    back = tritonconv.revert(converted)
    before = COUNTS.copy()
    with torch.no_grad():
        for got, want in zip(_tensors(entry.call(back, x)), _tensors(entry.call(model, x)), strict=True):
            assert torch.equal(got, want), "revert gives other values"
    assert not COUNTS - before, "revert leaves a kernel"
    return {
        "convolutions": len(report.layers),
        "replaced": len(report.layers) - own,
        "left": sorted({layer.reason for layer in report.left}),
        "calls": calls.count,
        "launches": _calls(forward),
        "gradients": int(backward["wgrad"]),
        "error": round(worst, 2),
        "compiled": compiled,
        "seconds": round(seconds, 1),
    }


def _calls(counts: Counter[str]) -> int:
    """Convolutions among kernels that were launched."""
    return int(counts["fprop"] + counts["dgrad"] + counts["video"])


def _run(model: Any, entry: Entry, x: torch.Tensor) -> tuple[list[torch.Tensor], Counter[str], Counter[str]]:
    """(the results with the gradients of their mean square for the input and every parameter, the kernels of the forward pass,
    those of the backward pass)."""
    leaf = x.clone().requires_grad_()
    parameters = [p for p in model.parameters() if p.requires_grad]
    begun = COUNTS.copy()
    results = list(_tensors(entry.call(model, leaf)))
    between = COUNTS.copy()
    loss = torch.stack([y.square().mean() for y in results]).sum()
    gradients = torch.autograd.grad(loss, [leaf, *parameters], allow_unused=True)
    tensors = [*(y.detach() for y in results), *(g for g in gradients if g is not None)]
    return tensors, between - begun, COUNTS - between


def _worst(ours: list[torch.Tensor], exact: list[torch.Tensor], torchs: list[torch.Tensor]) -> float:
    """The largest error in parts of torch's own."""
    worst = 0.0
    for got, want, usual in zip(ours, exact, torchs, strict=True):
        scale = float(want.abs().max()) or 1.0
        allowed = max(float((usual.double() - want).abs().max()) / scale, FLOOR)
        worst = max(worst, float((got.double() - want).abs().max()) / scale / allowed)
    return worst


def _compiled(model: nn.Module, entry: Entry, x: torch.Tensor, eager: Any, wanted: Any, backward: bool) -> str:
    """Checks that the compiled model is right and launches as many kernels as the eager one. Returns the passes that ran."""
    torch._dynamo.reset()
    # with Inductor's decompositions: without them torch's own group norm refuses some strides of a traced model on a CPU
    compiled: Any = torch.compile(model, backend="aot_eager_decomp_partition")
    if backward:
        tensors, forward, gradients = _run(compiled, entry, x)
        assert (forward, gradients["wgrad"]) == (eager[1], eager[2]["wgrad"]), f"compiled, {forward} and {gradients} launches"
    else:
        before = COUNTS.copy()
        with torch.no_grad():
            tensors = list(_tensors(entry.call(compiled, x)))
        assert _calls(COUNTS - before) == _calls(eager[1]), f"compiled, {COUNTS - before} launches"
    worst = _worst(tensors, *(reference[: len(tensors)] for reference in wanted))
    assert worst <= FACTOR, f"compiled, an error of {worst:.1f} times torch's own"
    torch._dynamo.reset()
    return "forward, backward" if backward else "forward"


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
            yield leaf
