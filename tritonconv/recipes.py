"""Recipes: the checks, the problem, the strides of the result and the plan of a call are kept for the next call like it.

`key` consists of everything that these depend on, and of nothing else: the function and its raw arguments; shapes, strides,
dtypes, devices and alignment of the tensors; the precision of float32; the batch-invariant region; the device model with its
calibration; and what torch's dispatcher goes by, in this thread and for each tensor. So a call whose key is known was checked
and planned when the recipe was kept. A call that someone else has to see (a mode, a transform, a subclass of Tensor, autocast,
a tracer, a profiler, torch.compile) has no key, or a key that no recipe is kept under, and takes the ordinary way. No key holds
a tensor.

Deterministic mode changes no result: the kernels have no atomics, and nobody reads memory that they do not write.
"""

from __future__ import annotations

import functools
import marshal
import threading
from collections.abc import Hashable
from typing import Any, NamedTuple

import torch

from costmodel.device import Device
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Plan
from tritonconv import host, invariant, launch, private
from tritonconv.epilogue import Epilogue
from tritonconv.layout import output_strides
from tritonconv.steps import Launch

Maybe = torch.Tensor | None
_PLAIN = (torch.Tensor, torch.nn.Parameter)
#: Most calls that are remembered. Beyond that the oldest is dropped.
MOST = 4096


def key(words: tuple[Any, ...], plan: Any, *tensors: Any) -> tuple[Hashable, ...] | None:
    """Everything that decides what a call does; None for a call that has to take the ordinary way."""
    if torch.compiler.is_compiling() or private.is_observed():
        return None
    try:
        if plan is not None:
            plans = plan if type(plan) in (list, tuple) else (plan,)  # no iterator, which can be read once
            words = (*words, tuple(map(_written, plans)))
        first = tensors[0]
        device = host.computes(first)
        if device is None:
            return None
        parts: list[Hashable] = [
            marshal.dumps(words, 2),  # tells 1, True and 1.0 apart; ValueError for types not Python's own
            private.thread_keys(),
            torch.is_grad_enabled(),
            invariant.is_on(),
            id(launch.device_model(device)),  # its calibration chooses plans; `_MODELS` keeps it alive
            private.fp32_precision() if first.dtype is torch.float32 else None,
        ]
        for t in tensors:
            if t is None:
                parts.append(None)
                continue
            if type(t) not in _PLAIN:
                return None
            parts += (
                t.shape,
                t.stride(),
                t.dtype,
                t.device,
                t.requires_grad,
                t.data_ptr() % 32,  # the kernels of video count offsets in units of up to 32 bytes
                private.dispatch_keys(t).raw_repr(),
            )
    except (
        AttributeError,
        RuntimeError,
        TypeError,
        ValueError,
    ):  # no tensor, no memory, no plain argument
        return None
    return tuple(parts)


@functools.lru_cache(maxsize=4096)
def _written(plan: Any) -> str:
    """A forced plan in words. Raises TypeError for anything else, such as a dictionary."""
    if not isinstance(plan, (Plan, str)):
        raise TypeError
    return str(plan)


def _are_plain(words: Any) -> bool:
    """Whether arguments that `marshal` wrote out are of Python's own types. It writes other buffers as bytes and does not say
    so."""
    if isinstance(words, (tuple, list)):
        return all(map(_are_plain, words))
    return not isinstance(words, bytes)


class Recipe(NamedTuple):
    """A call of an op, without its tensors."""

    which: Pass
    launch: Launch
    shape: tuple[int, ...]  # shape of the result
    strides: tuple[int, ...]
    records: bool  # whether autograd records the call
    window: tuple[Any, ...]  # the op's arguments after its tensors, forced plans last
    on_cpu: bool
    fused: bool
    activation: str = ""
    slope: float = 0.01
    keep: bool = False  # whether z is returned too

    def allocate(self, a: torch.Tensor) -> torch.Tensor:
        return torch.empty_strided(self.shape, self.strides, dtype=a.dtype, device=a.device)

    def run(self, a: torch.Tensor, b: torch.Tensor, bias: Maybe) -> torch.Tensor:
        """Runs the call and returns the result. Autograd records nothing."""
        out = self.allocate(a)
        if self.on_cpu:
            with host.turn():
                launch.perform(self.launch, a, b, out, bias)
        else:
            launch.perform(self.launch, a, b, out, bias)
        return out

    def run_fused(
        self, a: torch.Tensor, b: torch.Tensor, bias: Maybe, scale: Maybe, shift: Maybe, residual: Maybe
    ) -> tuple[torch.Tensor, Maybe]:
        """Runs a call with an epilogue and returns (y, z). z is None if it is not kept."""
        epilogue = Epilogue(scale, shift, residual, self.activation, self.slope, self.keep)
        out = self.allocate(a)
        z = self.allocate(a) if self.keep else None
        if self.on_cpu:
            with host.turn():
                launch.perform(self.launch, a, b, out, bias, epilogue, z)
        else:
            launch.perform(self.launch, a, b, out, bias, epilogue, z)
        return out, z


_KNOWN: dict[tuple[Hashable, ...], Any] = {}
#: The cost model's devices that recipes were kept for, by their ids.
_MODELS: dict[int, Device] = {}
_lock = threading.Lock()


def known(key: tuple[Hashable, ...] | None) -> Any:
    """The recipe that was kept under a key, or None."""
    return None if key is None else _KNOWN.get(key)


def forget() -> None:
    """Drops all recipes. Whoever changes how launches are made calls it."""
    _KNOWN.clear()


def may_keep(key: tuple[Hashable, ...], *tensors: Maybe) -> bool:
    """Whether a call with this key, on these tensors, goes to a kernel of this package and nobody else sees it."""
    given = [t for t in tensors if t is not None]
    if not _are_plain(marshal.loads(key[0])):  # type: ignore[arg-type]
        return False
    model = launch.device_model(host.index_of(given[0]))
    _MODELS[id(model)] = model
    return private.is_dispatched_plainly(records(*given), *given)


def records(*arguments: Any) -> bool:
    """Whether autograd records a call with these arguments."""
    return torch.is_grad_enabled() and any(isinstance(t, torch.Tensor) and t.requires_grad for t in arguments)


def keep(key: tuple[Hashable, ...], recipe: Any) -> None:
    """Keeps a recipe. The caller has asked `may_keep`."""
    with _lock:
        while len(_KNOWN) >= MOST:
            del _KNOWN[next(iter(_KNOWN))]
        _KNOWN[key] = recipe


def recipe_of(
    which: Pass,
    problem: ConvProblem,
    a: torch.Tensor,
    b: torch.Tensor,
    bias: Maybe,
    window: tuple[Any, ...],
    plan: str,
    epilogue: Epilogue | None = None,
) -> Recipe | None:
    """The recipe of a call of an op on tensors; None where such a call has to take the ordinary way."""
    shape = {Pass.FPROP: problem.output_shape, Pass.DGRAD: problem.input_shape, Pass.WGRAD: problem.weight_shape}[which]
    alone, forced = invariant.unmarked(plan)
    # a predicate of `tritonconv.use` has to be asked at each call
    if not problem.macs or 0 in shape or forced.startswith("where="):
        return None
    if alone and which != Pass.WGRAD and problem.batch > 1:
        fixed = invariant.fixed(which, problem, a, b, bias, forced, epilogue)
        if fixed is None:
            return None
        forced = fixed
    strides = output_strides(shape, a, b)
    prepared = launch.prepared_for(which, problem, a, b, (tuple(shape), strides), bias, forced, epilogue)
    after = (False,) if epilogue is None else (True, *epilogue[3:])
    are_recorded = records(a, b, bias, *(() if epilogue is None else epilogue[:3]))
    return Recipe(which, prepared, tuple(shape), strides, are_recorded, (*window, plan), a.is_cpu, *after)


def file(
    key: tuple[Hashable, ...],
    which: Pass,
    problem: ConvProblem,
    a: torch.Tensor,
    b: torch.Tensor,
    bias: Maybe,
    window: tuple[Any, ...],
    plan: str,
    epilogue: Epilogue | None = None,
) -> None:
    """Keeps the recipe of a call that has just been made the ordinary way, unless such a call has to take that way again."""
    if may_keep(key, a, b, bias, *(() if epilogue is None else epilogue[:3])):
        recipe = recipe_of(which, problem, a, b, bias, window, plan, epilogue)
        if recipe is not None:
            keep(key, recipe)
