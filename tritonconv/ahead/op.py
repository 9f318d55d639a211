"""The library op tritonconv::fprop_normalized: fprop with an epilogue and, before it, a prologue of x.

    fprop_normalized(x, w, b, window, x_scale, x_shift, x_rstd, x_activation, x_slope, epilogue, plan) -> y

x is [N, C, *size]; x_scale, x_shift [N or 1, T or 1, C] and x_rstd [N, T, H, W] are as of `tritonconv::normalize`, with T, or T
and H, 1 where x has no such axis. CUDA tensors run Triton kernels. CPU tensors run them where Triton's interpreter is on,
otherwise torch. Where a call has gradients, or a level of torch.func is open, the op `normalize` comes first and an ordinary
convolution behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import register_flop_formula

from costmodel.problem import ConvProblem
from tritonconv import batching, cpu, host, operands, private, recipes
from tritonconv.ahead import launch
from tritonconv.autograd import _below_autograd
from tritonconv.epilogue import ACTIVATIONS, Epilogue, by_torch, widened
from tritonconv.layout import allocate
from tritonconv.normalize import normalized
from tritonconv.normalize import op as normalize
from tritonconv.normalize.check import as_video
from tritonconv.normalize.launch import Values
from tritonconv.op import _EPILOGUE, _PLACE, _PRIMITIVES, LIBRARY, _autocast, _problem

NAME = "fprop_normalized"
Maybe = torch.Tensor | None
_AFTER = _EPILOGUE.replace(", bool keep=False", "")
_SCHEMA = (
    f"{NAME}(Tensor x, Tensor w, Tensor? b, {_PLACE}, Tensor? x_scale, Tensor? x_shift, Tensor? x_rstd, "
    f"str x_activation='', float x_slope=0.01, {_AFTER}, str plan='') -> Tensor"
)
_OPS = torch.ops.tritonconv
_FPROP = _PRIMITIVES["fprop"]
_FUSED = batching._fused(_OPS.fprop_fused, 3)


def checked(
    x: torch.Tensor, w: torch.Tensor, b: Maybe, place: tuple[Any, ...], values: Values, epilogue: Epilogue
) -> ConvProblem:
    """The problem of a call. Raises RuntimeError or ValueError where its tensors do not fit together."""
    problem = _problem(_FPROP, x, w, (b, *place))
    operands.alike(NAME, x, *epilogue[:3])
    normalize.checked(NAME, as_video(x), values)
    for name, value in (("scale", epilogue.scale), ("shift", epilogue.shift)):
        operands.shaped(NAME, name, value, w.shape[0])
    operands.shaped(NAME, "residual", epilogue.residual, *problem.output_shape)
    operands.word(NAME, "activation", epilogue.activation, ACTIVATIONS)
    return problem


class Arguments(NamedTuple):
    """What the op takes, in groups."""

    x: Any
    w: Any
    b: Any
    place: tuple[Any, ...]
    values: Values
    epilogue: Epilogue
    plan: str


def _arguments(
    x: Any,
    w: Any,
    b: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    x_scale: Any,
    x_shift: Any,
    x_rstd: Any,
    x_activation: str = "",
    x_slope: float = 0.01,
    scale: Any = None,
    shift: Any = None,
    residual: Any = None,
    activation: str = "",
    slope: float = 0.01,
    plan: str = "",
) -> Arguments:
    values = Values(x_scale, x_shift, x_rstd, x_activation, x_slope)
    epilogue = Epilogue(scale, shift, residual, activation, slope)
    return Arguments(x, w, b, (stride, padding, dilation, groups), values, epilogue, plan)


def _by(where: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def call(*given: Any) -> torch.Tensor:
        x, w, b, place, values, epilogue, plan = _arguments(*given)
        problem = checked(x, w, b, place, values, epilogue)
        return where(problem, x, w, b, values, epilogue, plan)

    return call


def _by_torch(
    problem: ConvProblem, x: torch.Tensor, w: torch.Tensor, b: Maybe, values: Values, epilogue: Epilogue, plan: str
) -> torch.Tensor:
    normalized_x = normalize.by_torch(as_video(x), values).view(x.shape)
    if launch.is_empty(epilogue):
        return cpu.laid_out(cpu.fprop(normalized_x, w, b, problem), x, w)
    sums = cpu.fprop(widened(normalized_x), widened(w), b if b is None else widened(b), problem)
    return cpu.laid_out(by_torch(sums, problem, epilogue, x.dtype)[0], x, w)


def _fake(problem: ConvProblem, x: torch.Tensor, w: torch.Tensor, *_: Any) -> torch.Tensor:
    return allocate(problem.output_shape, x, w)


def _flops(x: Any, w: Any, b: Any, *rest: Any, out_shape: Any = None, **_: Any) -> int:
    """Dense FLOP (2 * MAC); what comes before and after the products is not counted."""
    return _FPROP.problem(x, w, b, *rest[:4]).flops


def _apart(x: Any, values: tuple[Any, ...]) -> Any:
    """x with its prologue, recorded."""
    return normalized(x, *values)


def without_together(plan: str) -> str:
    """The words of `plan` without those that force fprop and its prologue in one kernel."""
    words = (word for word in plan.split(";") if not (word.startswith("fprop:") and word.endswith(":together")))
    return ";".join(words)


def _recorded(*given: Any) -> Any:
    x, w, b, place, values, epilogue, plan = _arguments(*given)
    after = epilogue[:5]  # the last field is whether to keep what precedes the activation
    tensors = x, w, b, *values[:3], *epilogue[:3]
    if not private.transforms_are_active() and not private.is_differentiated_forwards() and not recipes.records(*tensors):
        return _below_autograd(_OPS.fprop_normalized, x, w, b, *place, *values, *after, plan)
    x, plan = _apart(x, values), without_together(plan)
    if launch.is_empty(epilogue):
        return _OPS.fprop(x, w, b, *place, plan)
    return _OPS.fprop_fused(x, w, b, *place, *after, False, plan)[0]


def _batched(info: Any, dims: Any, *given: Any) -> Any:
    """`torch.vmap`: the prologue in a kernel of its own over all images, then the rule of the fused op."""
    x, w, b, place, values, epilogue, plan = _arguments(*given)
    size = info.batch_size
    x = batching._spread(x, dims[0], size)
    spread = [batching._spread(t, d, size) for t, d in zip(values[:3], dims[7:10], strict=True)]
    scale, shift, rstd = (t if t is None else t.expand(size, x.shape[1], *t.shape[2:]).flatten(0, 1) for t in spread)
    prepared = normalized(x.flatten(0, 1), scale, shift, rstd, *values[3:]).unflatten(0, (size, -1))
    axes = (0, *dims[1:3], *(None,) * 4, *(*dims[12:15], *(None,) * 3)[:3])
    (y, _), (out, _) = _FUSED(info, axes, prepared, w, b, *place, *epilogue[:5], False, without_together(plan))
    return y, out


def _cast(op: Any, device: str) -> Callable[..., Any]:
    """Autocast of the tensors but for those of the prologue, which are not rounded to 16 bits."""

    def call(*args: Any) -> Any:
        values = tuple(widened(t) if isinstance(t, torch.Tensor) else t for t in args[7:10])
        return _autocast(lambda *others: op(*others[:7], *values, *others[7:]), device)(*args[:7], *args[10:])

    return call


LIBRARY.define(_SCHEMA, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))
LIBRARY.impl(NAME, _by(launch.forward), "CUDA")
LIBRARY.impl(NAME, host.either(_by(launch.forward), _by(_by_torch)), "CPU")
LIBRARY.impl(NAME, _recorded, "Autograd")
torch.library.register_fake(f"tritonconv::{NAME}", _by(_fake), lib=LIBRARY)
torch.library.register_vmap(f"tritonconv::{NAME}", _batched, lib=LIBRARY)
register_flop_formula(_OPS.fprop_normalized)(_flops)
for _device in ("cuda", "cpu"):
    LIBRARY.impl(NAME, _cast(_OPS.fprop_normalized.default, _device), f"Autocast{_device.upper()}")
