"""Derivatives of the three primitives. Each consists of the three again, so that it can be differentiated to any order.

| op | gradients |
|---|---|
| fprop(x, w) | dgrad(g, w), wgrad(g, x) |
| dgrad(dy, w) | fprop(g, w), wgrad(dy, g) |
| wgrad(dy, x) | fprop(x, g), dgrad(dy, g) |

Each op is linear in either of its tensors, so forward mode (`jvp`) calls the same op twice: fprop(tx, w) + fprop(x, tw).

They are registered at the ops' Autograd key, so that a direct call of `torch.ops` is differentiable too.
"""

from __future__ import annotations

from typing import Any

import torch

from costmodel.problem import Pass
from tritonconv import private, recipes
from tritonconv.epilogue import per_channel
from tritonconv.op import LIBRARY, known_problem

_OPS = torch.ops.tritonconv
Maybe = torch.Tensor | None


def _bias_gradient(g: torch.Tensor) -> torch.Tensor:
    return g.sum([axis for axis in range(g.dim()) if axis != 1])


def _below_autograd(op: Any, *args: Any) -> torch.Tensor:
    with private.below_autograd():
        if not private.transforms_are_active():
            return op(*args)
        # `Function.apply` turned both modes off, but an outer level of torch.func may record, forwards or backwards
        with torch.enable_grad(), private.forward_mode(True):
            return op(*args)


def has_tangent(*tensors: torch.Tensor | None) -> bool:
    """Whether forward mode differentiates by any of these tensors, at the current level of torch.func."""
    if not private.is_differentiated_forwards():
        return False
    return any(t is not None and private.tangent_parts(t)[1] is not None for t in tensors)


def added(*terms: torch.Tensor | None) -> torch.Tensor | None:
    """The sum of the tensors that are not None, or None if there is none."""
    total = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total


def or_zeros(tangent: Maybe, primal: Maybe) -> Maybe:
    """The tangent of a tensor, with zeros in the place of None. None if there is no tensor."""
    return torch.zeros_like(primal) if tangent is None and primal is not None else tangent


class _Primitive(torch.autograd.Function):
    @classmethod
    def apply(cls, *args: Any) -> Any:
        """`Function.apply` for a kernel of the Autograd key.

        At that key the dispatcher goes through the levels of torch.func, as it does for torch's own operators: this call
        records one level, and the call below Autograd goes on to the next. `apply` also leaves out `inspect.signature`, which
        costs more than the rest of `Function.apply`; and where nothing is recorded it leaves out all of it.
        """
        if not private.transforms_are_active():
            if not private.is_differentiated_forwards() and not recipes.records(*args):
                return cls.forward(*args)
            return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]
        with private.one_level():
            return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]

    @classmethod
    def jvp(cls, ctx: Any, *tangents: Maybe) -> Any:
        """The tangents of the results, from `cls.tangents`. The tangent of an argument is None if it is zero; the tangent of a
        result may be None only if the result is not differentiable.

        torch calls `jvp` with forward mode turned off, so that the outer levels of torch.func would see none of its
        arithmetic. Here the mode is on again, and this level's own tangents are taken from what was saved.
        """
        with private.forward_mode(True):
            saved = (None if t is None else private.tangent_parts(t)[0] for t in ctx.saved_tensors)
            return cls.tangents(ctx, tuple(saved), *tangents)

    @classmethod
    def tangents(cls, *args: Any, **kwargs: Any) -> Any:
        """The tangents of the results, from what `save_for_forward` kept in ctx and from the tangents of the arguments."""
        raise NotImplementedError(f"{cls.__name__} has no forward mode")


def as_parameter(dw: torch.Tensor, strides: tuple[Any, ...]) -> torch.Tensor:
    """A weight's gradient with the weight's own strides, if they differ along axes of one element only. DDP compares all
    strides."""
    if dw.stride() == strides or torch.compiler.is_compiling() or private.transforms_are_active():
        return dw
    same = all(n == 1 or s == t for n, s, t in zip(dw.shape, dw.stride(), strides, strict=True))
    return dw.as_strided(dw.shape, strides) if same and type(dw) is torch.Tensor else dw


def bilinear(
    op: Any, tensors: tuple[Any, Any], tangents: tuple[Maybe, Maybe], bias: Maybe, result: torch.Tensor, rest: tuple[Any, ...]
) -> Maybe:
    """The tangent of `result` = op(a, w, b, *rest), which is op(ta, w) + op(a, tw) + tb. A tangent that is zero is None."""
    (a, w), (ta, tw) = tensors, tangents
    if ta is None and tw is None:
        return None if bias is None else torch.zeros_like(result) + per_channel(bias, result.dim() - 2)
    return added(
        None if ta is None else op(ta, w, bias, *rest),
        None if tw is None else op(a, tw, bias if ta is None else None, *rest),
    )


def called(name: str, a: torch.Tensor, b: torch.Tensor, *place: Any) -> torch.Tensor:
    """The result of the op of this name without a bias, by the recipe of its last call if there is one; `place` holds its other
    arguments."""
    key = recipes.key((name, *place), None, a, b)
    recipe = recipes.known(key)
    if recipe is not None:
        try:
            return recipe.run(a, b, None)
        except torch.OutOfMemoryError:  # the ordinary call of the op takes another plan
            pass
    op = getattr(_OPS, name)
    result: torch.Tensor = op(a, b, *place) if name == "wgrad" else op(a, b, None, *place)
    if key is not None and not recipes.records(a, b):
        *window, plan = place if isinstance(place[-1], str) else (*place, "")  # torch leaves out defaults
        problem = known_problem(name, a, b, tuple(window))
        recipes.file(key, Pass(name), problem, a, b, None, tuple(window), plan)
    return result


Arguments = tuple[Any, ...]  # the arguments of `called`


def both(first: Arguments, second: Arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """The results of `called` for two passes that share a tensor, the gradients of a layer, with one look-up for both."""
    (one, a, b, *place), (other, c, d, *_) = first, second
    key = recipes.key((one, other, *place, *second[3:]), None, a, b, c if c is not a else d)
    pair = recipes.known(key)
    if pair is not None:
        try:
            return pair[0].run(a, b, None), pair[1].run(c, d, None)
        except torch.OutOfMemoryError:
            pass
    results = called(*first), called(*second)
    if key is not None:
        halves = [recipes.known(recipes.key((name, *rest), None, a, b)) for name, a, b, *rest in (first, second)]
        if None not in halves:
            recipes.keep(key, tuple(halves))
    return results


def gradients_of(needs_a: bool, needs_w: bool, first: Arguments, second: Arguments) -> tuple[Maybe, Maybe]:
    """The gradients of a layer's input and weights, as far as they are needed. `called` takes the arguments of each."""
    if needs_a and needs_w:
        return both(first, second)
    return called(*first) if needs_a else None, called(*second) if needs_w else None


class _Fprop(_Primitive):
    @staticmethod
    def forward(x: Any, w: Any, b: Any, stride: Any, padding: Any, dilation: Any, groups: Any, plan: str = "") -> torch.Tensor:
        return _below_autograd(_OPS.fprop, x, w, b, stride, padding, dilation, groups, plan)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, w, _, *ctx.window = inputs
        needs_x, needs_w, *_ = ctx.needs_input_grad
        ctx.sizes, ctx.strides = (tuple(x.shape[2:]), tuple(w.shape[2:])), w.stride()
        ctx.set_materialize_grads(False)
        ctx.save_for_forward(x, w, output)
        ctx.save_for_backward(x if needs_w else None, w if needs_x else None)

    @classmethod
    def tangents(cls, ctx: Any, saved: tuple[Any, ...], tx: Maybe, tw: Maybe, tb: Maybe, *_: Any) -> Maybe:
        x, w, y = saved
        return bilinear(_OPS.fprop, (x, w), (tx, tw), tb, y, ctx.window)

    @staticmethod
    def gradients(ctx: Any, g: Maybe) -> tuple[Maybe, Maybe, Maybe]:
        """The gradients of x, w and b."""
        if g is None:
            return None, None, None
        x, w = ctx.saved_tensors
        input_size, kernel_size = ctx.sizes
        needs = ctx.needs_input_grad
        first, second = ("dgrad", g, w, input_size, *ctx.window), ("wgrad", g, x, kernel_size, *ctx.window)
        dx, dw = gradients_of(needs[0], needs[1], first, second)
        return dx, None if dw is None else as_parameter(dw, ctx.strides), _bias_gradient(g) if needs[2] else None

    @staticmethod
    def backward(ctx: Any, g: Maybe) -> Any:
        return *_Fprop.gradients(ctx, g), *(None,) * len(ctx.window)


class _Dgrad(_Primitive):
    @staticmethod
    def forward(
        dy: Any, w: Any, b: Any, input_size: Any, stride: Any, padding: Any, dilation: Any, groups: Any, plan: str = ""
    ) -> torch.Tensor:
        return _below_autograd(_OPS.dgrad, dy, w, b, input_size, stride, padding, dilation, groups, plan)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        dy, w, _, _, *ctx.window = inputs
        needs_dy, needs_w, *_ = ctx.needs_input_grad
        ctx.kernel_size, ctx.strides = tuple(w.shape[2:]), w.stride()
        ctx.set_materialize_grads(False)
        ctx.save_for_forward(dy, w, output)
        ctx.save_for_backward(dy if needs_w else None, w if needs_dy else None)

    @classmethod
    def tangents(cls, ctx: Any, saved: tuple[Any, ...], tdy: Maybe, tw: Maybe, tb: Maybe, *_: Any) -> Maybe:
        dy, w, dx = saved
        return bilinear(_OPS.dgrad, (dy, w), (tdy, tw), tb, dx, (dx.shape[2:], *ctx.window))

    @staticmethod
    def gradients(ctx: Any, g: Maybe) -> tuple[Maybe, Maybe, Maybe]:
        """The gradients of dy, w and b."""
        if g is None:
            return None, None, None
        dy, w = ctx.saved_tensors
        needs = ctx.needs_input_grad
        first, second = ("fprop", g, w, *ctx.window), ("wgrad", dy, g, ctx.kernel_size, *ctx.window)
        ddy, dw = gradients_of(needs[0], needs[1], first, second)
        return ddy, None if dw is None else as_parameter(dw, ctx.strides), _bias_gradient(g) if needs[2] else None

    @staticmethod
    def backward(ctx: Any, g: Maybe) -> Any:
        return *_Dgrad.gradients(ctx, g), None, *(None,) * len(ctx.window)


class _Wgrad(_Primitive):
    @staticmethod
    def forward(
        dy: Any, x: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, groups: Any, plan: str = ""
    ) -> torch.Tensor:
        return _below_autograd(_OPS.wgrad, dy, x, kernel_size, stride, padding, dilation, groups, plan)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        dy, x, _, *ctx.window = inputs
        needs_dy, needs_x, *_ = ctx.needs_input_grad
        ctx.input_size = x.shape[2:]
        ctx.set_materialize_grads(False)
        ctx.save_for_forward(dy, x, output)
        ctx.save_for_backward(dy if needs_x else None, x if needs_dy else None)

    @classmethod
    def tangents(cls, ctx: Any, saved: tuple[Any, ...], tdy: Maybe, tx: Maybe, *_: Any) -> Maybe:
        dy, x, dw = saved
        window = (dw.shape[2:], *ctx.window)
        return added(
            None if tdy is None else _OPS.wgrad(tdy, x, *window),
            None if tx is None else _OPS.wgrad(dy, tx, *window),
        )

    @staticmethod
    def backward(ctx: Any, g: Maybe) -> Any:
        if g is None:
            return (None,) * (3 + len(ctx.window))
        dy, x = ctx.saved_tensors
        needs = ctx.needs_input_grad
        ddy = _OPS.fprop(x, g, None, *ctx.window) if needs[0] else None
        dx = _OPS.dgrad(dy, g, None, ctx.input_size, *ctx.window) if needs[1] else None
        return ddy, dx, None, *(None,) * len(ctx.window)


LIBRARY.impl("fprop", _Fprop.apply, "Autograd")
LIBRARY.impl("dgrad", _Dgrad.apply, "Autograd")
LIBRARY.impl("wgrad", _Wgrad.apply, "Autograd")
