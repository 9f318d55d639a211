"""Overrides torch's convolution and its gradients in the dispatcher, for CUDA tensors and the whole process.

Calls of every thread, of scripted modules, checkpointing, `torch.func` and C++ code arrive here. CPU tensors keep torch's
convolution, because outside Triton's interpreter `aten::convolution` itself computes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from costmodel.problem import ConvProblem, Pass
from tritonconv.check import DTYPES
from tritonconv.op import flat
from tritonconv.where import Predicate, Record, call_of, predicate

_OPS = torch.ops.tritonconv
Ints = Sequence[int]


class Installed:
    """The installed override. `record` counts the calls (its `str` is a table); `where` says which of them are ours."""

    def __init__(self, where: Any, key: str) -> None:
        self.record = Record()
        self._where: Predicate | None = None if where is None else predicate(where)
        # torch's kernels, as they are before they are overridden
        self._forward, self._backward = (
            torch.library.get_kernel(f"aten::{name}", key) for name in ("convolution", "convolution_backward")
        )
        self._library = torch.library.Library("aten", "IMPL", key)
        self._library.impl("convolution", self.convolution, key, with_keyset=True, allow_override=True)
        self._library.impl("convolution_backward", self.gradients, key, with_keyset=True, allow_override=True)

    def remove(self) -> None:
        self._library._destroy()

    def _left(self, problem: ConvProblem, which: Pass, first: torch.Tensor) -> str:
        """Why torch computes a pass; "" where ours does. The record counts the pass."""
        reason = "" if first.dtype in DTYPES else f"its dtype is {str(first.dtype).removeprefix('torch.')}"
        if not reason and self._where is not None and not self._where(call_of(problem, which, first)):
            reason = "where= says so"
        self.record.add(f"{which} {problem}", reason)
        return reason

    def convolution(
        self, keys: Any, x: torch.Tensor, w: torch.Tensor, bias: Any, stride: Ints, padding: Ints, dilation: Ints,
        transposed: bool, output_padding: Ints, groups: int,
    ) -> torch.Tensor:  # fmt: skip
        problem = _problem(x.shape, w.shape, stride, padding, dilation, transposed, output_padding, groups)
        if self._left(problem, Pass.DGRAD if transposed else Pass.FPROP, x):
            given = (x, w, bias, stride, padding, dilation, transposed, output_padding, groups)
            result: torch.Tensor = self._forward.call_boxed(keys, *given)
            return result
        op: Callable[..., torch.Tensor] = _OPS.dgrad if transposed else _OPS.fprop
        return op(x, w, bias, *(problem.input_size,) * transposed, *_place(problem))

    def gradients(
        self, keys: Any, dy: torch.Tensor, x: torch.Tensor, w: torch.Tensor, bias_sizes: Any, stride: Ints, padding: Ints,
        dilation: Ints, transposed: bool, output_padding: Ints, groups: int, wanted: Sequence[bool],
    ) -> tuple[torch.Tensor | None, ...]:  # fmt: skip
        problem = _problem(x.shape, w.shape, stride, padding, dilation, transposed, output_padding, groups)
        place = _place(problem)

        def by_torch(mask: list[bool]) -> Any:
            window = (stride, padding, dilation, transposed, output_padding, groups)
            return self._backward.call_boxed(keys, dy, x, w, bias_sizes, *window, mask)

        dx = dw = None
        if wanted[0]:
            if self._left(problem, Pass.FPROP if transposed else Pass.DGRAD, dy):
                dx = by_torch([True, False, False])[0]
            else:
                dx = _OPS.fprop(dy, w, None, *place) if transposed else _OPS.dgrad(dy, w, None, problem.input_size, *place)
        if wanted[1]:
            first, second = (x, dy) if transposed else (dy, x)
            if self._left(problem, Pass.WGRAD, first):
                dw = by_torch([False, True, False])[1]
            else:
                dw = _OPS.wgrad(first, second, problem.kernel_size, *place)
        return dx, dw, dy.sum([0, *range(2, dy.dim())]) if wanted[2] else None


def _problem(
    x: Ints, w: Ints, stride: Ints, padding: Ints, dilation: Ints, transposed: bool, output_padding: Ints, groups: int
) -> ConvProblem:
    """The problem of a call. Its numbers may be given once for all axes."""
    rank = len(w) - 2
    stride, padding, dilation, extra = (
        tuple(v) * (rank if len(v) == 1 else 1) for v in (stride, padding, dilation, output_padding)
    )
    if transposed:
        return ConvProblem.conv_transpose(x, w, stride, padding, extra, groups, dilation)
    return ConvProblem.conv(x, w, stride, tuple(zip(padding, padding, strict=True)), dilation, groups)


def _place(problem: ConvProblem) -> tuple[Any, ...]:
    return problem.stride, flat(problem.padding), problem.dilation, problem.groups


_now: Installed | None = None


def install(*, where: Any = None) -> Installed:
    """From here on torch's convolutions of CUDA tensors are tritonconv's in this process, in every thread; `uninstall` ends it.

    It overrides `aten::convolution` and `aten::convolution_backward`, so that every call of these is reached: scripted
    modules, other threads, checkpointing, `torch.func`, C++ code. Not reached are direct calls of `aten::cudnn_convolution`
    and its kin, and convolutions that Inductor turns into templates of its own. `where` is that of `tritonconv.use`.

    Returns what is installed, whose `record` counts the calls. Raises RuntimeError where it is installed already.
    """
    return _installed(where, "CUDA")


def _installed(where: Any, key: str) -> Installed:
    global _now
    if _now is not None:
        raise RuntimeError("use.install(): it is installed already; tritonconv.use.uninstall() ends that")
    _now = Installed(where, key)
    return _now


def uninstall() -> None:
    """Ends `install`: torch's convolutions are torch's again. Raises RuntimeError where nothing is installed."""
    global _now
    if _now is None:
        raise RuntimeError("use.uninstall(): nothing is installed")
    _now.remove()
    _now = None
