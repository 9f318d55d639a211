"""The library ops of the deformable convolution: schemas, fake tensors, autocast, FLOP formulas, gradients.

    deform(x [N, C, H, W], offset [N, 2 D R S, P, Q], w [K, C / G, R, S], b, mask [N, D R S, P, Q], stride, padding, dilation,
           plan) -> y [N, K, P, Q]
    deform_backward(dy, x, offset, w, mask, stride, padding, dilation, needs, plan) -> (dx, doffset, dw, dmask), those that
           `needs` asks for, the others of no elements

Both groups follow from the shapes. `padding` is one number an axis. Derivatives of both: `tritonconv.deform.derivatives`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from costmodel.deform import Deformation
from costmodel.deform_backward import flops as backward_flops
from costmodel.problem import ConvProblem
from tritonconv import operands, private
from tritonconv.again import recorded
from tritonconv.autograd import _below_autograd, _bias_gradient, _Primitive, as_parameter
from tritonconv.deform import backward as gradients
from tritonconv.deform import check, cpu, derivatives, launch
from tritonconv.deform.again import Recipe
from tritonconv.deform.derivatives import Tensors, Window
from tritonconv.host import either
from tritonconv.layout import allocate
from tritonconv.op import LIBRARY

Maybe = torch.Tensor | None
Ints = Sequence[Any]
Four = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
_OPS = torch.ops.tritonconv
_WINDOW = "SymInt[] stride, SymInt[] padding, SymInt[] dilation"
_SCHEMAS = (
    f"deform(Tensor x, Tensor offset, Tensor w, Tensor? b, Tensor? mask, {_WINDOW}, str plan='') -> Tensor",
    f"deform_backward(Tensor dy, Tensor x, Tensor offset, Tensor w, Tensor? mask, {_WINDOW}, bool[] needs, str plan='') "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)


def _checked(
    op: str, x: torch.Tensor, offset: torch.Tensor, w: torch.Tensor, mask: Maybe, window: tuple[Ints, ...], *others: Maybe
) -> Deformation:
    """The call that an op's arguments describe. Raises RuntimeError if they do not go together."""
    operands.alike(op, x, w, *others)
    for name, tensor in (("x", x), ("offset", offset), ("w", w), ("mask", mask)):
        if tensor is not None:
            operands.axes(op, name, tensor, 4)
    for name, tensor in (("offset", offset), ("mask", mask)):
        if tensor is not None and tensor.device != x.device:
            raise RuntimeError(
                f"tritonconv::{op}: all tensors must be on the same device, got x {x.device} and {name} {tensor.device}"
            )
        if tensor is not None and tensor.dtype not in (x.dtype, torch.float32):
            raise RuntimeError(
                f"tritonconv::{op}: {name} must have x's dtype or torch.float32, got x {x.dtype} and {name} {tensor.dtype}"
            )
    stride, padding, dilation = map(tuple, window)
    operands.window(op, 2, stride, (*padding, *padding), dilation)
    operands.sizes(op, "the weight's size", w.shape, 4, 1)
    operands.sizes(op, "the size of x, without its batch,", x.shape[1:], 3, 1)
    return check.described(x, offset, w, mask, stride, padding, dilation, f"tritonconv::{op}")


def _by(where: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def call(
        x: torch.Tensor,
        offset: torch.Tensor,
        w: torch.Tensor,
        b: Maybe,
        mask: Maybe,
        stride: Ints,
        padding: Ints,
        dilation: Ints,
        plan: str = "",
    ) -> torch.Tensor:
        deformation = _checked("deform", x, offset, w, mask, (stride, padding, dilation), b)
        operands.shaped("deform", "b", b, w.shape[0])
        return where(deformation, x, offset, w, b, mask, plan)

    return call


def _fake(deformation: Deformation, x: torch.Tensor, offset: Any, w: torch.Tensor, *_: Any) -> torch.Tensor:
    return allocate(deformation.problem.output_shape, x, w)


def _flops(x: Ints, offset: Ints, w: Ints, b: Any, mask: Any, *window: Any, out_shape: Any = None, **_: Any) -> int:
    """FLOP of the product and of the interpolation; weights of pixels and bias not counted."""
    stride, padding, dilation = window[:3]
    problem = ConvProblem.conv(x, w, stride, padding, dilation, x[1] // w[1])
    return Deformation(problem, offset[1] // (2 * problem.taps), mask is not None).flops


def _autocast(device: str) -> Callable[..., torch.Tensor]:
    """A convolution's tensors take the region's dtype; offset and mask, which say where and how much, keep theirs."""
    off = private.autocast_keys(device)

    def cast(value: Any) -> Any:
        eligible = value is not None and value.dtype != torch.float64 and value.device.type == device
        return value.to(torch.get_autocast_dtype(device)) if eligible else value

    def beside(value: Maybe, x: torch.Tensor) -> Maybe:
        return value if value is None or value.dtype == x.dtype else value.float()

    def call(x: Any, offset: Any, w: Any, b: Any, mask: Any, *rest: Any) -> torch.Tensor:
        x = cast(x)
        given = (x, beside(offset, x), cast(w), cast(b), beside(mask, x))
        with private.without(off):
            made: torch.Tensor = _OPS.deform(*given, *rest)
            return made

    return call


def _backward_by(where: Callable[..., Four]) -> Callable[..., Four]:
    def call(
        dy: torch.Tensor,
        x: torch.Tensor,
        offset: torch.Tensor,
        w: torch.Tensor,
        mask: Maybe,
        stride: Ints,
        padding: Ints,
        dilation: Ints,
        needs: Sequence[bool],
        plan: str = "",
    ) -> Four:
        deformation = _checked("deform_backward", x, offset, w, mask, (stride, padding, dilation), dy)
        operands.shaped("deform_backward", "dy", dy, *deformation.problem.output_shape)
        if len(needs) != 4:
            raise RuntimeError(f"tritonconv::deform_backward: needs must be 4 bools, got needs={list(needs)}")
        return where(deformation, dy, x, offset, w, mask, needs, plan)

    return call


def _fake_backward(
    deformation: Deformation, dy: Any, x: Any, offset: Any, w: Any, mask: Maybe, needs: Sequence[bool], plan: str
) -> Four:
    return gradients.allocated(x, offset, w, mask, needs)


def _backward_flops(
    dy: Ints, x: Ints, offset: Ints, w: Ints, mask: Any, stride: Ints, padding: Ints, dilation: Ints, needs: Any, **_: Any
) -> int:
    problem = ConvProblem.conv(x, w, stride, padding, dilation, x[1] // w[1])
    deformation = Deformation(problem, offset[1] // (2 * problem.taps), mask is not None)
    return backward_flops(deformation, needs[0], needs[1] or needs[3], needs[2])


class _Deform(_Primitive):
    @classmethod
    def tangents(cls, ctx: Any, saved: tuple[Any, ...], *given: Maybe) -> Maybe:
        tx, toffset, tw, tb, tmask, *_ = given
        return derivatives.tangent(Tensors(*saved), Tensors(tx, toffset, tw, tmask), tb, Window(ctx.window, ctx.plan))

    @staticmethod
    def forward(*args: Any) -> Any:
        return _below_autograd(_OPS.deform, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, offset, w, _, mask, *window = inputs
        *sizes, ctx.plan = window
        ctx.window, ctx.strides = tuple(sizes), w.stride()
        ctx.set_materialize_grads(False)
        ctx.save_for_forward(x, offset, w, mask)
        ctx.save_for_backward(x, offset, w, mask)

    @staticmethod
    def backward(ctx: Any, dy: Maybe) -> Any:
        return *_Deform.gradients(ctx, dy), *(None,) * 4

    @staticmethod
    def gradients(ctx: Any, dy: Maybe) -> tuple[Maybe, ...]:
        """The gradients of x, offset, w, b and mask."""
        if dy is None:
            return (None,) * 5
        needs_x, needs_offset, needs_w, needs_b, needs_mask, *_ = ctx.needs_input_grad
        needs, window = (needs_x, needs_offset, needs_w, needs_mask), Window(ctx.window, ctx.plan)
        dx, doffset, dw, dmask = derivatives.gradients(dy, Tensors(*ctx.saved_tensors), needs, window)
        dw = None if dw is None else as_parameter(dw, ctx.strides)
        return dx, doffset, dw, _bias_gradient(dy) if needs_b else None, dmask


class _DeformAgain(_Primitive):
    """`_Deform` of a call whose recipe is known."""

    @staticmethod
    def forward(ctx: Any, x: Any, offset: Any, w: Any, b: Any, mask: Any, recipe: Recipe) -> torch.Tensor:
        _Deform.setup_context(ctx, (x, offset, w, b, mask, *recipe.window), None)
        return recipe.run(x, offset, w, b, mask)

    @staticmethod
    def backward(ctx: Any, dy: Maybe) -> Any:
        return *_Deform.gradients(ctx, dy), None


_deform_again = recorded(_DeformAgain)


def repeated(recipe: Recipe, x: torch.Tensor, offset: torch.Tensor, w: torch.Tensor, b: Maybe, mask: Maybe) -> torch.Tensor:
    """The result of a call whose recipe is known."""
    if not recipe.records:
        return recipe.run(x, offset, w, b, mask)
    y: torch.Tensor = _deform_again(x, offset, w, b, mask, recipe)
    return y


class _Backward(_Primitive):
    """The gradients, whose derivatives are sums of both ops' results again."""

    @classmethod
    def tangents(cls, ctx: Any, saved: tuple[Any, ...], *given: Maybe) -> Any:
        dy, *rest = saved
        tdy, *moved = given[:5]
        tensors, window = Tensors(*rest), Window(tuple(ctx.window), ctx.plan)
        total = derivatives.Sum(tensors)
        total.add(derivatives.moved_gradients(dy, tensors, Tensors(*moved), ctx.needs, window))
        if tdy is not None:
            total.add(derivatives.gradients(tdy, tensors, ctx.needs, window))
        made = zip(total.rounded(), gradients.allocated(*tensors, ctx.needs), strict=True)
        return tuple(torch.zeros_like(like) if part is None else part for part, like in made)

    @staticmethod
    def forward(*args: Any) -> Any:
        return _below_autograd(_OPS.deform_backward, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        dy, x, offset, w, mask, *ctx.window = inputs
        *ctx.window, ctx.needs, ctx.plan = ctx.window
        ctx.set_materialize_grads(False)
        ctx.save_for_forward(dy, x, offset, w, mask)
        ctx.save_for_backward(dy, x, offset, w, mask)

    @staticmethod
    def backward(ctx: Any, *given: Maybe) -> Any:
        dy, *rest = ctx.saved_tensors
        tensors, window = Tensors(*rest), Window(tuple(ctx.window), ctx.plan)
        moved = Tensors(*(g if asked else None for g, asked in zip(given, ctx.needs, strict=True)))
        needs_dy, *needs = ctx.needs_input_grad[:5]
        ddy = derivatives.tangent(tensors, moved, None, window) if needs_dy else None
        return ddy, *derivatives.moved_gradients(dy, tensors, moved, needs, window), *(None,) * 5


def _autograd(*args: Any) -> Any:
    return _Deform.apply(*args, *("",)[len(args) - 8 :])


for _schema in _SCHEMAS:
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))
LIBRARY.impl("deform", _by(launch.forward), "CUDA")
LIBRARY.impl("deform", _by(either(launch.forward, cpu.forward)), "CPU")
LIBRARY.impl("deform", _autograd, "Autograd")
LIBRARY.impl("deform_backward", _backward_by(gradients.backward), "CUDA")
LIBRARY.impl("deform_backward", _backward_by(either(gradients.backward, cpu.backward)), "CPU")
LIBRARY.impl("deform_backward", lambda *args: _Backward.apply(*args, *("",)[len(args) - 9 :]), "Autograd")
torch.library.register_fake("tritonconv::deform", _by(_fake), lib=LIBRARY)
torch.library.register_fake("tritonconv::deform_backward", _backward_by(_fake_backward), lib=LIBRARY)
register_flop_formula(_OPS.deform)(_flops)
register_flop_formula(_OPS.deform_backward)(_backward_flops)
for _device in ("cuda", "cpu"):
    LIBRARY.impl("deform", _autocast(_device), f"Autocast{_device.upper()}")
