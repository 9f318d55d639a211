"""The ops decomposed into torch's own: `aten.convolution`, its backward, padding, and the operators of the epilogue.

They are registered with torch's decompositions, so that `torch.onnx.export(dynamo=True)` writes Conv and ConvTranspose.
`torch.compile` and `torch.export` leave the ops as they are; `decompositions()` is for a program that is to run without this
package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from costmodel.problem import Pass
from tritonconv import cpu
from tritonconv.ahead import op as _registered  # noqa: F401  fprop_normalized
from tritonconv.epilogue import ACTIVATIONS, Epilogue, by_torch, widened
from tritonconv.normalize import op as prologues
from tritonconv.normalize.check import as_video
from tritonconv.normalize.launch import Values
from tritonconv.op import _PRIMITIVES, _problem, _split
from tritonconv.padding import folded
from tritonconv.private import register_decomposition

_OPS = torch.ops.tritonconv
Maybe = torch.Tensor | None


def decompositions() -> dict[Any, Callable[..., Any]]:
    """A table for `torch.export.ExportedProgram.run_decompositions`: the ops of the six convolutions, plain and fused, and of
    prologues.

    The ops become `torch.convolution` and operators of `torch.nn.functional`; shapes and dtypes stay those of the ops. Raises
    nothing.

    >>> import torch, tritonconv
    >>> net = tritonconv.convert(torch.nn.Conv1d(2, 3, 3))
    >>> program = torch.export.export(net, (torch.ones(1, 2, 8),)).run_decompositions(tritonconv.decompositions())
    >>> any("aten.convolution" in str(node.target) for node in program.graph.nodes)
    True
    """
    return dict(_TABLE)


def _fprop(x: torch.Tensor, w: torch.Tensor, b: Maybe, *rest: Any) -> torch.Tensor:
    return cpu.fprop(x, w, b, _problem(_PRIMITIVES["fprop"], x, w, (b, *rest)))


def _dgrad(dy: torch.Tensor, w: torch.Tensor, b: Maybe, *rest: Any) -> torch.Tensor:
    return _transposed(dy, w, b, _problem(_PRIMITIVES["dgrad"], dy, w, (b, *rest)))


def _transposed(dy: torch.Tensor, w: torch.Tensor, b: Maybe, problem: Any) -> torch.Tensor:
    """dgrad as torch's transposed convolution, cropped or padded where padding and output padding cannot express it."""
    if problem.padding_mode:
        dx = folded(_transposed(dy, w, None, problem.written_out), problem)
        return dx if b is None else dx + b.view(-1, *(1,) * problem.rank)
    low = [lo for lo, _ in problem.padding]
    full = [(o - 1) * s + e for o, s, e in zip(dy.shape[2:], problem.stride, problem.effective_kernel, strict=True)]
    extra = [n - (m - 2 * lo) for n, m, lo in zip(problem.input_size, full, low, strict=True)]
    limits = [max(s, d) for s, d in zip(problem.stride, problem.dilation, strict=True)]
    allowed = all(lo >= 0 and 0 <= e < limit for lo, e, limit in zip(low, extra, limits, strict=True))
    padding, output_padding = (low, extra) if allowed else ([0] * problem.rank, [0] * problem.rank)
    window = (problem.stride, padding, problem.dilation, True, output_padding, problem.groups)
    if allowed:
        return torch.convolution(dy, w, b, *window)
    dx = torch.convolution(dy, w, None, *window)
    places = reversed([*zip(problem.input_size, full, low, strict=True)])
    dx = F.pad(dx, [end for n, m, lo in places for end in (-lo, n + lo - m)])
    return dx if b is None else dx + b.view(-1, *(1,) * problem.rank)


def _wgrad(dy: torch.Tensor, x: torch.Tensor, *rest: Any) -> torch.Tensor:
    return cpu.wgrad(dy, x, _problem(_PRIMITIVES["wgrad"], dy, x, rest))


def _fused(which: Pass) -> Callable[..., Any]:
    primitive = _PRIMITIVES[str(which)]
    plain = cpu.fprop if which == Pass.FPROP else _transposed

    def call(a: torch.Tensor, b: torch.Tensor, bias: Maybe = None, *rest: Any, **named: Any) -> Any:
        problem, epilogue, _ = _split(primitive, a, b, (bias, *rest))
        epilogue = Epilogue(*epilogue)
        sums = plain(widened(a), widened(b), None if bias is None else widened(bias), problem)
        return by_torch(sums, problem, epilogue, a.dtype)

    return call


def _normalize(
    x: torch.Tensor, scale: Maybe, shift: Maybe, rstd: Maybe, activation: str = "", slope: float = 0.01
) -> torch.Tensor:
    z = prologues._sums(x, Values(scale, shift, rstd))
    return (ACTIVATIONS[activation].forward(z, slope) if activation else z).to(x.dtype)


def _normalized(x: torch.Tensor, w: torch.Tensor, b: Maybe, *rest: Any) -> torch.Tensor:
    rest = (*rest, *("", 0.01, None, None, None, "", 0.01, "")[len(rest) - 7 :])  # without trailing defaults
    place, before, after = rest[:4], rest[4:9], rest[9:]
    y: torch.Tensor = _fused(Pass.FPROP)(
        _normalize(as_video(x), *before).view(x.shape), w, b, *place, *after[:5], False, after[5]
    )[0]
    return y


_TABLE: dict[Any, Callable[..., Any]] = {
    _OPS.fprop.default: _fprop,
    _OPS.dgrad.default: _dgrad,
    _OPS.wgrad.default: _wgrad,
    _OPS.fprop_fused.default: _fused(Pass.FPROP),
    _OPS.dgrad_fused.default: _fused(Pass.DGRAD),
    _OPS.normalize.default: _normalize,
    _OPS.group_scale.default: prologues._scale,
    _OPS.rms_rstd.default: prologues._rstd,
    _OPS.fprop_normalized.default: _normalized,
}
for _op, _function in _TABLE.items():
    register_decomposition(_op)(_function)
