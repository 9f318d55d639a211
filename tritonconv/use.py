"""torch's own convolution functions computed by tritonconv: in a region of code (`with use():`), or in a process.

A region is a mode of torch's Python functions: it reaches modules, subclasses, functional calls and `torch.ops.aten`, under
`torch.compile(fullgraph=True)` too, in the thread that entered it. A process (`use.install`) is an override in torch's
dispatcher, for CUDA tensors: it reaches every thread and scripted modules as well.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from tritonconv import functional, installed
from tritonconv.check import DTYPES
from tritonconv.functional import Asked
from tritonconv.where import Record, closed, filed, opened, predicate

_ATEN = torch.ops.aten
_NAMES = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


def by_rank(
    input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: Any, output_padding: Any,
    groups: Any, *_: Any,
) -> tuple[Callable[..., torch.Tensor], tuple[Any, ...]]:  # fmt: skip
    """Which of the six functions a call of `torch.convolution` corresponds to, and the arguments of that function."""
    rank = weight.dim() - 2
    window: tuple[Any, ...]
    if transposed:
        window = (stride, padding, output_padding, groups, dilation)
    else:
        window = (stride, padding, dilation, groups)
    ours = getattr(functional, f"conv_transpose{rank}d" if transposed else f"conv{rank}d")
    return ours, (input, weight, bias, *map(_plain, window))


def _by_rank(*args: Any, plan: Any = None, **named: Any) -> torch.Tensor:
    """A call of `torch.convolution`, made as one of the six functions."""
    ours, given = by_rank(*args, **named)
    return ours(*given, plan=plan)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _served() -> dict[Any, Callable[..., torch.Tensor]]:
    """Our function for each of torch's."""
    table: dict[Any, Callable[..., torch.Tensor]] = {torch.convolution: _by_rank}
    for name in ("convolution", "_convolution"):
        packet = getattr(_ATEN, name)
        table |= {packet: _by_rank, packet.default: _by_rank}
    for name in _NAMES:
        table[getattr(torch, name)] = getattr(functional, name)
        packet = getattr(_ATEN, name)
        for overload in packet.overloads():
            table[getattr(packet, overload)] = getattr(functional, name)
        table[packet] = getattr(functional, name)
    return table


SERVED = _served()


def refusal(input: Any, weight: Any) -> str:
    """Why torch computes a call itself; "" for a call that the kernels take, or that they refuse with an error."""
    for tensor in (input, weight):
        if not isinstance(tensor, torch.Tensor):
            return "its arguments are no tensors"
        if tensor.dtype not in DTYPES:
            return f"its dtype is {str(tensor.dtype).removeprefix('torch.')}"
        if tensor.layout != torch.strided:
            return f"its layout is {str(tensor.layout).removeprefix('torch.')}"
        if tensor.device.type not in ("cuda", "cpu", "meta"):
            return f"its device is {tensor.device.type}"
    return ""


class Region(TorchFunctionMode):
    """A region in which our kernels compute torch's convolutions; `reached` says whether it met one."""

    def __init__(self, plan: Asked | None = None, record: Record | None = None) -> None:
        super().__init__()
        self.reached = False
        self.record = record
        self._plan = plan

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {} if kwargs is None else kwargs
        if func in SERVED:
            input = args[0] if args else kwargs.get("input")
            weight = args[1] if len(args) > 1 else kwargs.get("weight")
            reason = refusal(input, weight)
            if self.record is not None and not torch.compiler.is_compiling() and (self._plan is None or reason):
                self.record.add(_words(func, input, weight), reason)
            if reason:
                return func(*args, **kwargs)
            self.reached = True
            return SERVED[func](*args, **kwargs, plan=self._plan)
        if func is torch.Tensor.backward:
            return _backward(self, *args, **kwargs)
        if func is torch.autograd.backward or func is torch.autograd.grad:
            return _differentiated(self, func, *args, **kwargs)
        return func(*args, **kwargs)


class use(Region):
    """A region in which tritonconv's kernels compute torch's convolutions: `with tritonconv.use(): ...`.

    The region reaches `torch.nn.functional.conv*`, `torch.conv*`, `torch.convolution` and `torch.ops.aten.conv*` wherever they
    are called: in modules and their subclasses, in functions, in the recomputation of checkpointed parts inside `backward()`,
    and under `torch.compile(fullgraph=True)`. It does not reach scripted modules, other threads than the one that entered it,
    and convolutions that C++ code calls; `use.install()` reaches those on a GPU.

    where: the calls to take; torch computes the rest. It is a function of a `tritonconv.where.Call` (problem, which, dtype,
    device, layout), which is asked about each pass, forward or backward, when it runs. Or it is the rows that
    `python -m bench run` recorded (their path, or the rows), and then the calls are taken that were measured faster here.
    Raises TypeError for anything else.

    `record` says what came of the calls, and its `str` is a table. Without `where` it counts forward calls that were not
    compiled. torch computes calls of dtypes and layouts that the kernels do not take, and the table says so.

    >>> import torch, tritonconv
    >>> with tritonconv.use() as used:
    ...     y = torch.nn.Conv1d(2, 3, 3)(torch.ones(1, 2, 8))
    >>> print(used.record)
    1 of 1 calls ran on tritonconv's kernels
         1  conv1d input [1, 2, 8], weight [3, 2, 3]: tritonconv
    """

    def __init__(self, *, where: Any = None) -> None:
        super().__init__(None if where is None else Asked(filed(predicate(where))), Record())

    record: Record

    def __enter__(self) -> use:
        if self._plan is not None and not torch.compiler.is_compiling():
            opened(self.record, self._plan.word)
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        if self._plan is not None and not torch.compiler.is_compiling():
            closed(self.record)

    install = staticmethod(installed.install)
    uninstall = staticmethod(installed.uninstall)


def _words(func: Any, input: Any, weight: Any) -> str:
    shapes = (f"{name} {list(getattr(value, 'shape', ()))}" for name, value in (("input", input), ("weight", weight)))
    return f"{getattr(func, '__name__', str(func)).partition('.')[0]} {', '.join(shapes)}"


def _backward(
    mode: Region,
    tensor: torch.Tensor,
    gradient: Any = None,
    retain_graph: Any = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> None:
    """`Tensor.backward`, which is `torch.autograd.backward` under another name."""
    _differentiated(mode, torch.autograd.backward, tensor, gradient, retain_graph, create_graph, inputs=inputs)


def _differentiated(mode: Region, func: Any, *args: Any, **kwargs: Any) -> Any:
    """`torch.autograd.backward` or `grad`, with the mode on while the engine runs, so that recomputed parts are served too.

    torch takes a mode off the stack before it calls `__torch_function__`, and both functions hand themselves over to any mode
    that is on, so neither can be called with the mode on. Copies of them are called without it, and these copies see an engine
    that turns the mode on.
    """
    engine = func.__globals__["_engine_run_backward"]

    def run(*arguments: Any, **keywords: Any) -> Any:
        TorchFunctionMode.__enter__(mode)  # the region itself is open already
        try:
            return engine(*arguments, **keywords)
        finally:
            TorchFunctionMode.__exit__(mode, None, None, None)

    names = {**func.__globals__, "_engine_run_backward": run}
    again = types.FunctionType(func.__code__, names, func.__name__, func.__defaults__)
    again.__kwdefaults__ = func.__kwdefaults__
    return again(*args, **kwargs)
