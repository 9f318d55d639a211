"""Repeats launches that were made before without Triton's binder, which costs more than the rest of a launch.

An ordinary launch binds its arguments and finds out what the compiler may assume about each: its type, whether a number is 1 or
a multiple of 16, whether a pointer is a multiple of 16. Then it looks up the kernel that was compiled for these assumptions,
and starts it. `key` finds out the same about the arguments of this package's kernels, but not about their numbers, which do not
change from call to call. `repeatable` keeps the compiled kernel of an ordinary launch and its other arguments. The ordinary
launch is taken wherever a hook, a debugging mode or an instrumenting mode has to see launches, and under Triton's interpreter,
which compiles nothing.

A compiled kernel is started as `triton.compiler.CompiledKernel.__getitem__` starts it (Triton 3.6 to 3.9), without the metadata
that only hooks read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.tools.tensor_descriptor import TensorDescriptor

from tritonconv import host

#: A function that starts a kernel. It takes the number of the current device and the values that differ from call to call.
Repeat = Callable[..., None]
_PLAIN = (torch.Tensor, torch.nn.Parameter)
#: Whether Triton asks a hook on the stages of a compilation for its part of a kernel's key. Versions 3.7 and newer do.
_ASKS_HOOK = host.TRITON >= (3, 7)
#: Arguments that live as long as the process, by their ids.
_LASTING: dict[int, Any] = {}


def lasting(value: Any) -> Any:
    """The argument itself, which is the same object at every launch and is known by its id from here on."""
    _LASTING[id(value)] = value
    return value


def _kind(value: Any) -> Hashable:
    """Everything that a launch needs to know about an argument besides its address."""
    kind = type(value)
    if kind in _PLAIN:
        return value.dtype, value.data_ptr() % 16 == 0
    if kind is TensorDescriptor:
        base = value.base
        rounds = getattr(value, "round_f32_to_tf32", None)  # Triton 3.6 does not have this attribute
        return base.dtype, base.data_ptr() % 16 == 0, tuple(value.block_shape), value.padding, rounds
    if kind is int:
        return value == 1, value % 16 == 0, -(2**31) <= value < 2**31, value < 2**63
    return kind, value


def key(kernel: Any, own: frozenset[int], values: Sequence[Any], named: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """The facts that decide which compiled kernel runs, the current device first; None if the ordinary launch is to be taken.

    `own` holds the ids of values that live as long as whoever keeps the result. The entries of a tuple, which may be tensors,
    are looked at, but not the entries of tuples within it.
    """
    runtime, compilation = knobs.runtime, knobs.compilation
    if host.INTERPRETED or runtime.debug or kernel.debug or kernel.pre_run_hooks or compilation.instrumentation_mode:
        return None
    for hook in (runtime.launch_enter_hook, runtime.launch_exit_hook):  # chains of functions, or what replaced one
        if hook is not None and getattr(hook, "calls", True):
            return None
    inspects = runtime.add_stages_inspection_hook
    parts: list[Hashable] = [
        driver.active.get_current_device(),
        getattr(compilation, "fpsan_homomorphic_casts", None),
        inspects() if inspects is not None and _ASKS_HOOK else inspects,
    ]
    tensor = torch.Tensor
    for value in (*values, *named.values()) if named else values:
        if type(value) is tensor:
            parts.append((value.dtype, value.data_ptr() % 16 == 0))
        elif value is None:
            parts.append(None)
        elif id(value) in own or id(value) in _LASTING:
            parts.append(id(value))
        elif isinstance(value, tuple):
            parts.append((type(value), *[None if v is None else _kind(v) for v in value]))
        else:
            parts.append(_kind(value))
    return tuple(parts)


def repeatable(
    kernel: Any, compiled: Any, programs: int, values: Sequence[Any], named: Mapping[str, Any], constants: Mapping[str, Any]
) -> Repeat | None:
    """A function that repeats the launch of `compiled`; None if Triton compiled nothing, or for a GPU that is not NVIDIA's."""
    if not isinstance(compiled, CompiledKernel) or compiled.metadata.target.backend != "cuda":
        return None
    parameters = list(kernel.signature.parameters.values())[len(values) :]
    given = {**constants, **dict.fromkeys(named)}  # the tensors of `named` are not kept alive
    rest = [given.get(p.name, None if p.default is inspect.Parameter.empty else p.default) for p in parameters]
    places = {p.name: i for i, p in enumerate(parameters) if p.name in named}
    first = min(places.values(), default=len(rest))
    before, behind = tuple(rest[:first]), rest[first:]
    run, function, packed = compiled.run, compiled.function, compiled.packed_metadata

    def repeat(device: int, *values: Any, **named: Any) -> None:
        stream = driver.active.get_current_stream(device)
        after = behind
        if named:
            after = behind.copy()
            for name, value in named.items():
                after[places[name] - first] = value
        run(programs, 1, 1, stream, function, packed, None, None, None, *values, *before, *after)

    setattr(repeat, "compiled", compiled)  # noqa: B010, kept alive: Triton 3.8 unloads the code of a kernel that nobody holds
    return repeat
