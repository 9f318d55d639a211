"""Launches of the families "copied-...": another family's, around which a kernel writes x out with its padding, or adds up the
images of each pixel of the input gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from costmodel.algebra import product
from costmodel.families import family
from costmodel.families.copied import PLACE, PREFIX, Copied
from costmodel.problem import Pass
from costmodel.tiling import Call, Plan, itemsize
from tritonconv import host
from tritonconv.describe import describe
from tritonconv.families.protocol import Laid, Launcher
from tritonconv.families.tma import BY_BOXES, BY_THREADS
from tritonconv.families.written import copy, fold
from tritonconv.kernels.epilogue import Fused
from tritonconv.layout import channels_last_strides, dense_strides
from tritonconv.prepared import FusedKey, TensorKey, wide
from tritonconv.steps import Copies, Launch, Step


@dataclass(frozen=True)
class Written(Copies):
    """x with its padding in a buffer of `key`, which `step` writes, then the copies of the other family. For dgrad that buffer
    is the result, in the type `sums` if it has one, and `step` adds its images up."""

    which: Pass
    key: TensorKey
    step: Step
    inner: Copies
    sums: torch.dtype | None = None

    @property
    def elsewhere(self) -> bool:  # type: ignore[override]
        return self.which == Pass.DGRAD or self.inner.elsewhere

    def buffer(self, like: torch.Tensor) -> torch.Tensor:
        shape, strides = self.key
        return torch.empty_strided(shape, strides, dtype=self.sums or like.dtype, device=like.device)

    def operands(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.which == Pass.FPROP:
            a = self.written(a)
        elif self.which == Pass.WGRAD:
            b = self.written(b)
        return self.inner.operands(a, b)

    def written(self, x: torch.Tensor) -> torch.Tensor:
        """x with its padding."""
        padded = self.buffer(x)
        self.step.start(*self.step.values({"a": x, "out": padded}))
        return padded

    def result(self, out: torch.Tensor) -> torch.Tensor:
        return self.inner.result(self.buffer(out) if self.which == Pass.DGRAD else out)

    def beside(self, fused: Fused, result: torch.Tensor) -> Fused:
        return self.inner.beside(fused, result)

    def finish(self, result: torch.Tensor, out: torch.Tensor, used: Fused | None, wanted: Fused | None) -> None:
        if self.which != Pass.DGRAD:
            self.inner.finish(result, out, used, wanted)
            return
        padded = result
        if self.inner.elsewhere:
            padded = self.buffer(out)
            self.inner.finish(result, padded, used, wanted)
        self.step.start(*self.step.values({"workspace": padded, "bias": None, "out": out}))


class CopiedLauncher(Launcher):
    """The launcher of a family behind the copy."""

    def __init__(self, inner: Launcher) -> None:
        self.inner, self.name, self.title = inner, PREFIX + inner.name, inner.title

    def family_of(self, plan: Plan) -> Copied:
        copied = family(plan.family)
        assert isinstance(copied, Copied)
        return copied

    def widens(self, plan: Plan, call: Call) -> bool:
        """Whether the kernel fills a buffer of another type than x's."""
        return call.which == Pass.DGRAD and self.family_of(plan).sums(call.dtype) > itemsize(call.dtype)

    def laid(self, plan: Any, call: Call, a: TensorKey, b: TensorKey, out: TensorKey) -> Laid:
        outer, place, which = self.family_of(plan), PLACE[call.which], call.which
        inner, problem = outer.written(call), call.problem.written_out
        shape = problem.input_shape
        last = getattr(inner, place).unit == 1
        strides = channels_last_strides(shape) if last else dense_strides(shape, range(len(shape) - 1, -1, -1))
        written, keys = (shape, strides), {"a": a, "b": b, "out": out}
        a, b, out = (written if name == place else key for name, key in keys.items())
        aligned = call.a.aligned or place == "a", call.b.aligned or place == "b"
        operands = describe(problem, which, a, b, out, aligned)
        described = Call(problem, which, call.dtype, call.precision, *operands, call.epilogue)
        laid = self.inner.laid(outer.within(plan), described, a, b, out)
        copied = tuple(dict.fromkeys((*laid.copied, *(() if place == "out" else (place,)))))
        sums = wide(getattr(torch, call.dtype)) if self.widens(plan, call) else None
        if place == "out":
            upcast = host.INTERPRETED and call.dtype == "bfloat16"
            step = fold(written, keys[place], call.problem, call.dtype, None, upcast)
        else:
            step = copy(keys[place], written, call.problem, call.dtype)
        copies = Written(which, written, step, laid.copies, sums)
        return laid._replace(plan=outer.own(laid.plan), copied=copied, copies=copies)

    def launch(
        self,
        plan: Any,
        call: Call,
        a: TensorKey,
        b: TensorKey,
        out: TensorKey,
        bias_stride: int | None,
        fused: FusedKey | None,
        upcast: bool,
    ) -> Launch:
        if plan.which == Pass.DGRAD and bias_stride is not None:
            raise ValueError(f"plan {plan} sums images behind its kernel, which adds the bias: b must be None")
        launch = self.inner.launch(self.family_of(plan).within(plan), call, a, b, out, bias_stride, fused, upcast)
        if not self.widens(plan, call) or "out" not in launch.main.boxes:
            return launch
        main = launch.main  # a box has the type of x: threads store results of 32 bits themselves
        boxes = {name: box for name, box in main.boxes.items() if name != "out"}
        return replace(launch, main=replace(main, boxes=boxes, constants=main.constants | {"STORE": False}))

    def kernels_of(self, which: Pass) -> str:
        return self.inner.kernels_of(which)

    def fused_in(self, plan: Any) -> str:
        return self.inner.fused_in(self.family_of(plan).within(plan))

    def remark(self, call: Call, plan: Any) -> str:
        inner = self.inner.remark(self.family_of(plan).written(call), self.family_of(plan).within(plan))
        done = ", then a sum of each pixel's images" if call.which == Pass.DGRAD else ""
        return f"{inner}, of x with its {' x '.join(call.problem.modes)} padding written out{done}"

    def words(self, call: Call, plan: Any) -> list[str]:
        outer = self.family_of(plan)
        size = outer.sums(call.dtype) if call.which == Pass.DGRAD else itemsize(call.dtype)
        shown = f"{size * product(call.problem.written_out.input_shape) / 1e6:.3g} MB"
        name = f"{'the gradient of ' * (call.which == Pass.DGRAD)}x with its padding"
        lines = self.inner.words(outer.written(call), outer.within(plan))
        if self.widens(plan, call):
            lines = [line.replace(BY_BOXES, BY_THREADS) for line in lines]
        return [
            *lines,
            f"  {name}: {shown}, in a launch of its own",
        ]
