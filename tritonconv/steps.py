"""A launch: kernels with their grids, arguments and constants, in order, and the copies around them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from costmodel.tiling import Plan
from tritonconv import direct
from tritonconv.kernels.epilogue import Fused
from tritonconv.kernels.prologue import Prologue

#: How often each kernel was started since the import, by name. It shows that the kernels computed a call and nothing else did.
COUNTS: Counter[str] = Counter()

Box = tuple[list[int], list[int], list[int]]  # shape, strides and block of a TMA descriptor


@dataclass(frozen=True)
class Step:
    """One kernel of a launch.

    tensors: its first arguments, by name: "a", "b", "bias", "out" (the result of the last kernel), "workspace" (memory between
    two kernels), "" for none. arguments and constants: its further arguments. boxes: for tensors that it takes as TMA
    descriptors, the descriptor without the address. fused: whether it runs the epilogue of the call. prologue: whether it
    runs the prologue.
    """

    kernel: Any
    programs: int
    constants: dict[str, Any]
    arguments: tuple[Any, ...] = ()
    tensors: tuple[str, ...] = ()
    boxes: Mapping[str, Box] = field(default_factory=dict)
    fused: bool = False
    prologue: bool = False
    #: Earlier launches by `direct.key`, so that an equal one can skip Triton's binder.
    repeats: dict[Any, direct.Repeat] = field(init=False, default_factory=dict, compare=False, repr=False)

    #: What descriptors say besides the tensor, by its name and dtype, once Triton has checked the first of them.
    checked: dict[Any, dict[str, Any]] = field(init=False, default_factory=dict, compare=False, repr=False)

    @cached_property
    def own(self) -> frozenset[int]:
        """The ids of the arguments, which are alive as long as this step."""
        return frozenset(map(id, self.arguments))

    def start(self, *values: Any, **named: Any) -> None:
        """Starts the kernel on all values that it takes. Every kernel of this package is started here."""
        kernel = self.kernel
        COUNTS[kernel.__name__] += 1
        key = direct.key(kernel, self.own, values, named)
        if key is not None and (repeat := self.repeats.get(key)) is not None:
            repeat(key[0], *values, **named)
            return
        compiled = kernel[(self.programs,)](*values, **named, **self.constants)
        if key is not None:
            repeat = direct.repeatable(kernel, compiled, self.programs, values, named, self.constants)
            if repeat is not None:
                self.repeats[key] = repeat

    def values(self, given: Mapping[str, Any]) -> list[Any]:
        """The tensors in the kernel's order, then its arguments. A descriptor is made at each call, because it holds an
        address."""
        if not self.boxes:
            return [*map(given.__getitem__, self.tensors), *self.arguments]
        boxes = self.boxes
        return [*(self.described(n, given[n]) if n in boxes else given[n] for n in self.tensors), *self.arguments]

    def described(self, name: str, tensor: torch.Tensor) -> TensorDescriptor:
        """The descriptor of a tensor. Triton's checks take ten times as long as making one, so they run only for the first."""
        fields = self.checked.get((name, tensor.dtype))
        if fields is None or tensor.data_ptr() % 16:
            descriptor = TensorDescriptor(tensor, *self.boxes[name])
            self.checked[name, tensor.dtype] = {key: value for key, value in vars(descriptor).items() if key != "base"}
            return descriptor
        descriptor = object.__new__(TensorDescriptor)
        vars(descriptor).update(fields, base=tensor)
        return descriptor


class Copies:
    """The copies around the kernels of a launch. This class copies nothing; families derive from it what their plans need."""

    #: Whether the kernels write the result to another buffer, which no other plan of the call has.
    elsewhere: bool = False

    def operands(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(a, b) in the layout that the kernels need."""
        return a, b

    def result(self, out: torch.Tensor) -> torch.Tensor:
        """The tensor into which the kernels write the result."""
        return out

    def beside(self, fused: Fused, result: torch.Tensor) -> Fused:
        """The epilogue with its residual and z in the layout of `result`."""
        return fused

    def finish(self, result: torch.Tensor, out: torch.Tensor, used: Fused | None, wanted: Fused | None) -> None:
        """Copies what the kernels wrote to where it was asked for."""


@dataclass(frozen=True)
class Launch:
    """What runs a plan, without tensors: `main` multiplies, and other kernels come before and after it.

    workspace: the shape of the memory between kernels; `between` is its dtype. fused: the last fields of `Fused`, which follow
    its pointers."""

    plan: Plan
    main: Step
    before: tuple[Step, ...] = ()
    after: tuple[Step, ...] = ()
    workspace: tuple[int, ...] = ()
    between: torch.dtype | None = None
    fused: tuple[Any, ...] = ()
    copies: Copies = field(default_factory=Copies, compare=False)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """All kernels, in order."""
        return (*self.before, self.main, *self.after)

    def run(
        self,
        a: torch.Tensor,
        b: torch.Tensor,
        bias: torch.Tensor | None,
        out: torch.Tensor,
        fused: Fused | None = None,
        prologue: Prologue | None = None,
    ) -> None:
        """Launches the kernels on operands in the layout that they need. Nothing here depends on anything but its arguments."""
        given = {"a": a, "b": b, "bias": bias, "out": out, "": None}
        if self.workspace:
            given["workspace"] = torch.empty(self.workspace, dtype=self.between, device=out.device)
        for step in self.steps:
            if step.prologue:
                after = {"fused": fused} if step.fused else {}
                step.start(*step.values(given), **after, prologue=prologue)
            elif step.fused:
                step.start(*step.values(given), fused=fused)
            else:
                step.start(*step.values(given))


def masks_inside(capability: int) -> bool:
    """Whether masked-off copies get addresses inside of their tensors: on compute capability 10.x, which may follow them."""
    return capability // 10 == 10


def clamped(launch: Launch, capability: int) -> Launch:
    """A launch whose masked-off copies have addresses inside (`kernels.index.load_inside`), where the capability needs that."""
    if not masks_inside(capability):
        return launch

    def inside(step: Step) -> Step:
        clamps = "CLAMP" in step.kernel.arg_names
        return replace(step, constants=step.constants | {"CLAMP": True}) if clamps else step

    before, after = (tuple(map(inside, steps)) for steps in (launch.before, launch.after))
    return replace(launch, main=inside(launch.main), before=before, after=after)
