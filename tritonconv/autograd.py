"""Derivatives of the three primitives, each made of the three again, so that they can be differentiated to any order.

| op | gradients |
|---|---|
| fprop(x, w) | dgrad(g, w), wgrad(g, x) |
| dgrad(dy, w) | fprop(g, w), wgrad(dy, g) |
| wgrad(dy, x) | fprop(x, g), dgrad(dy, g) |

| fprop_fused(x, w) | with dz = the activation's gradient: dgrad(dz, scale * w), scale * wgrad(dz, x), ... |
| dgrad_fused(dy, w) | fprop(dz, scale * w), scale * wgrad(dy, dz), ... |

Each op is linear in either of its tensors, so forward mode (`jvp`) is the same op twice: fprop(tx, w) + fprop(x, tw). That of
a fused op is two fused calls, the first one's result the residual of the second, and the activation's derivative.

Registered at the ops' Autograd key, so that a direct `torch.ops` call is differentiable too.
"""

from __future__ import annotations

from typing import Any

import torch

from costmodel.problem import Pass
from tritonconv import operands, private, recipes
from tritonconv.epilogue import ACTIVATIONS, needs_z, over_weight, per_channel, weight_sums
from tritonconv.op import LIBRARY, known_problem
from tritonconv.recipes import Recipe

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
    """Whether forward mode differentiates by any of these tensors, at the level of torch.func that is being run."""
    if not private.is_differentiated_forwards():
        return False
    return any(t is not None and private.tangent_parts(t)[1] is not None for t in tensors)


def added(*terms: torch.Tensor | None) -> torch.Tensor | None:
    """The sum of those that are not None; None where all are."""
    found = None
    for term in terms:
        if term is not None:
            found = term if found is None else found + term
    return found


def or_zeros(tangent: Maybe, of: Maybe) -> Maybe:
    """The tangent of a tensor, written out where it is None; None where there is no tensor."""
    return torch.zeros_like(of) if tangent is None and of is not None else tangent


class _Primitive(torch.autograd.Function):
    @classmethod
    def apply(cls, *args: Any) -> Any:
        """`Function.apply` for a kernel of the Autograd key.

        There the levels of torch.func are the dispatcher's affair, as for torch's own operators: one level is recorded here,
        and the call below Autograd goes on to the next. It also spares a call of `inspect.signature`, which costs more than
        the rest of `Function.apply` together.
        """
        if not private.transforms_are_active():
            return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]
        with private.one_level():
            return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]

    @classmethod
    def jvp(cls, ctx: Any, *tangents: Maybe) -> Any:
        """The tangents of the results, from `cls.tangents`. Those of arguments are None where they are zero; those of results
        may not be, but for results that are not differentiable.

        torch calls it with forward mode turned off, and then the outer levels of torch.func see none of its arithmetic. With
        the mode on again, this level's own tangents are taken from what was saved.
        """
        with private.forward_mode(True):
            saved = (None if t is None else private.tangent_parts(t)[0] for t in ctx.saved_tensors)
            return cls.tangents(ctx, tuple(saved), *tangents)

    @classmethod
    def tangents(cls, *args: Any, **kwargs: Any) -> Any:
        """Of ctx, what `save_for_forward` was given, and the tangents of the arguments."""
        raise NotImplementedError(f"{cls.__name__} has no forward mode")


def as_parameter(dw: torch.Tensor, strides: tuple[Any, ...]) -> torch.Tensor:
    """A weight's gradient under the weight's strides where it lies so but for axes of one element: DDP compares all of them."""
    if dw.stride() == strides or torch.compiler.is_compiling() or private.transforms_are_active():
        return dw
    same = all(n == 1 or s == t for n, s, t in zip(dw.shape, dw.stride(), strides, strict=True))
    return dw.as_strided(dw.shape, strides) if same and type(dw) is torch.Tensor else dw


def bilinear(
    op: Any, tensors: tuple[Any, Any], tangents: tuple[Maybe, Maybe], bias: Maybe, result: torch.Tensor, rest: tuple[Any, ...]
) -> Maybe:
    """The tangent of `result` = op(a, w, b, *rest): op(ta, w) + op(a, tw) + tb, whose tangents are None where they are zero."""
    (a, w), (ta, tw) = tensors, tangents
    if ta is None and tw is None:
        return None if bias is None else torch.zeros_like(result) + per_channel(bias, result.dim() - 2)
    return added(
        None if ta is None else op(ta, w, bias, *rest),
        None if tw is None else op(a, tw, bias if ta is None else None, *rest),
    )


def called(which: Pass, a: torch.Tensor, b: torch.Tensor, *place: Any) -> torch.Tensor:
    """The op of a pass, without a bias, which looks up what it took the last time; `place` are its other arguments."""
    if not isinstance(place[-1], str):  # a default that did not come
        place = (*place, "")
    key = recipes.key((which.value, *place), None, a, b)
    recipe = None if key is None else recipes.known(key)
    if recipe is not None and not recipe.records:
        try:
            return recipe.run(a, b, None)
        except torch.OutOfMemoryError:  # the op knows of another plan
            pass
    op = getattr(_OPS, which.value)
    made: torch.Tensor = op(a, b, *place) if which == Pass.WGRAD else op(a, b, None, *place)
    if key is not None:
        *window, plan = place
        recipes.file(key, which, known_problem(which, a, b, tuple(window)), a, b, None, tuple(window), plan)
    return made


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
        """Those of x, w and b."""
        if g is None:
            return None, None, None
        x, w = ctx.saved_tensors
        input_size, kernel_size = ctx.sizes
        needs = ctx.needs_input_grad
        dx = called(Pass.DGRAD, g, w, input_size, *ctx.window) if needs[0] else None
        dw = as_parameter(called(Pass.WGRAD, g, x, kernel_size, *ctx.window), ctx.strides) if needs[1] else None
        return dx, dw, _bias_gradient(g) if needs[2] else None

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
        """Those of dy, w and b."""
        if g is None:
            return None, None, None
        dy, w = ctx.saved_tensors
        needs = ctx.needs_input_grad
        ddy = called(Pass.FPROP, g, w, *ctx.window) if needs[0] else None
        dw = as_parameter(called(Pass.WGRAD, dy, g, ctx.kernel_size, *ctx.window), ctx.strides) if needs[1] else None
        return ddy, dw, _bias_gradient(g) if needs[2] else None

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


class _Fused(_Primitive):
    """A pass with an epilogue: y = act(z), z = (sums + b) * scale + shift + residual, where sums is linear in a and in w.

    With dz = dy * act', the residual's gradient is dz, shift's is dz summed over all but the channels, and b's is scale times
    that. The gradient of the sums is scale * dz. Its scale is moved to where it is small: into the weight for a's gradient,
    out of dw, the weight gradient for dz, for w's. And scale's own gradient, the sum of dz * (sums + b), is the sum of w * dw,
    plus b times shift's. So nothing of the output's size is kept or made for scale.
    z is an output of its own, so that second derivatives can flow through it where first ones were taken from it.
    """

    which = Pass.FPROP

    @classmethod
    def recorded(
        cls,
        a: Any,
        w: Any,
        b: Any,
        window: tuple[Any, ...],
        scale: Any = None,
        shift: Any = None,
        residual: Any = None,
        activation: str = "",
        slope: float = 0.01,
        keep: bool = False,
        plan: str = "",
    ) -> Any:
        """`apply`, with z kept where a gradient will want it."""
        operands.word(f"{cls.which}_fused", "activation", activation, ACTIVATIONS)
        tensors = (a, w, b, scale, shift, residual)
        wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        keep = keep or (needs_z(activation, slope) and (wanted or has_tangent(*tensors)))
        return cls.apply(*tensors, window, activation, slope, keep, plan)

    @classmethod
    def forward(
        cls, a: Any, w: Any, b: Any, scale: Any, shift: Any, residual: Any, window: Any, activation: str, *rest: Any
    ) -> Any:
        return _below_autograd(cls.op(), a, w, b, *window, scale, shift, residual, activation, *rest)

    @classmethod
    def op(cls) -> Any:
        return _OPS.fprop_fused if cls.which == Pass.FPROP else _OPS.dgrad_fused

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        a, w, b, scale, _, _, ctx.window, ctx.activation, ctx.slope, _, ctx.plan = inputs
        y, z = output
        at = _Fused.kept(ctx, a, w, b, scale, y, z)
        ctx.save_for_forward(a, w, b, scale, at, y)

    @staticmethod
    def kept(ctx: Any, a: Any, w: Any, b: Any, scale: Any, y: Any, z: Any) -> Maybe:
        """Saves what `gradients` takes, and answers y or z, whichever the activation's derivative is taken from."""
        needs_a, needs_w, needs_b, needs_scale, *_ = ctx.needs_input_grad
        ctx.set_materialize_grads(False)
        ctx.has_z = z.numel() > 0
        if not ctx.has_z:
            ctx.mark_non_differentiable(z)
        ctx.sizes = tuple(a.shape[2:]), tuple(w.shape[2:])
        at = None
        if ctx.activation:
            at = z if needs_z(ctx.activation, ctx.slope) else y
        ctx.save_for_backward(
            a if needs_w or needs_scale else None,
            w if needs_a or needs_scale else None,
            b if needs_scale else None,
            scale if needs_a or needs_w or needs_b else None,
            at,
        )
        return at

    @classmethod
    def tangents(
        cls,
        ctx: Any,
        saved: tuple[Any, ...],
        ta: Maybe,
        tw: Maybe,
        tb: Maybe,
        tscale: Maybe,
        tshift: Maybe,
        tz: Maybe,
        *_: Any,
    ) -> Any:
        """Where a, w and b have tangents and scale has one: scale * (S(ta, w) + S(a, tw) + tb) + tscale * (S(a, w) + b) + ...,
        S linear in both, so what goes with a is one call, of the weight scale * tw + tscale * w. `tz` comes as residual's."""
        a, w, b, scale, at, y = saved
        groups = ctx.window[-1]
        weight, shift = tw, tb
        if scale is not None:
            weight = None if tw is None else tw * over_weight(scale, cls.which, w, groups)
            shift = None if tb is None else tb * scale
        if tscale is not None:
            weight = added(weight, w * over_weight(tscale, cls.which, w, groups))
            shift = added(shift, None if b is None else b * tscale)
        shift = added(shift, tshift)

        def followed(*tensors: Any) -> torch.Tensor:
            first, second, factor, summand, over = tensors
            made: torch.Tensor = cls.op()(first, second, None, *ctx.window, factor, summand, over, "", 0.01, False, ctx.plan)[0]
            return made

        if ta is not None:
            tz, shift = followed(ta, w, scale, shift, tz), None
        if weight is not None:
            tz, shift = followed(a, weight, None, shift, tz), None
        if shift is not None:
            tz = added(per_channel(shift, y.dim() - 2).expand(y.shape), tz)
        assert tz is not None  # else nothing had a tangent
        ty = ACTIVATIONS[ctx.activation].backward(tz, at, ctx.slope) if ctx.activation else tz
        return ty, tz if ctx.has_z else None

    @classmethod
    def backward(cls, ctx: Any, dy: torch.Tensor | None, dz: torch.Tensor | None) -> Any:
        return *cls.gradients(ctx, dy, dz), *(None,) * 5

    @classmethod
    def gradients(cls, ctx: Any, dy: torch.Tensor | None, dz: torch.Tensor | None) -> tuple[Maybe, ...]:
        """Those of a, w, b, scale, shift and residual."""
        a, w, b, scale, at = ctx.saved_tensors
        needs_a, needs_w, needs_b, needs_scale, needs_shift, needs_residual, *_ = ctx.needs_input_grad
        if dy is not None:
            through = ACTIVATIONS[ctx.activation].backward(dy, at, ctx.slope) if ctx.activation else dy
            dz = through if dz is None else dz + through
        if dz is None:
            return (None,) * 6
        stride, padding, dilation, groups = ctx.window[-4:]
        window = (stride, padding, dilation, groups, ctx.plan)
        input_size, kernel_size = ctx.sizes
        forward = cls.which == Pass.FPROP
        dw: Any = None
        da = db = dscale = dshift = None
        if needs_a:
            scaled = w if scale is None else w * over_weight(scale, cls.which, w, groups)
            place = (input_size, *window) if forward else window
            da = called(Pass.DGRAD if forward else Pass.FPROP, dz, scaled, *place)
        if needs_w or needs_scale:
            dw = called(Pass.WGRAD, *((dz, a) if forward else (a, dz)), kernel_size, *window)
        if needs_b or needs_scale or needs_shift:
            dshift = _bias_gradient(dz)
        if needs_scale:
            dscale = weight_sums(w * dw, cls.which, groups)
            dscale = dscale if b is None else dscale + b * dshift
        if needs_b:
            db = dshift if scale is None else scale * dshift
        if needs_w and scale is not None:
            dw = dw * over_weight(scale, cls.which, dw, groups)
        return (
            da,
            dw if needs_w else None,
            db,
            dscale,
            dshift if needs_shift else None,
            dz if needs_residual else None,
        )


class _FusedFprop(_Fused):
    @classmethod
    def call(cls, x: Any, w: Any, b: Any, stride: Any, padding: Any, dilation: Any, groups: Any, *after: Any) -> Any:
        return cls.recorded(x, w, b, (stride, padding, dilation, groups), *after)


class _FusedDgrad(_Fused):
    which = Pass.DGRAD

    @classmethod
    def call(
        cls, dy: Any, w: Any, b: Any, input_size: Any, stride: Any, padding: Any, dilation: Any, groups: Any, *after: Any
    ) -> Any:
        return cls.recorded(dy, w, b, (input_size, stride, padding, dilation, groups), *after)


# ---- calls whose recipe is known, which no function of torch.func and no forward mode differentiates ---------------------


class _FpropAgain(_Primitive):
    @staticmethod
    def forward(ctx: Any, x: Any, w: Any, b: Any, recipe: Recipe) -> torch.Tensor:
        needs_x, needs_w, *_ = ctx.needs_input_grad
        ctx.sizes, ctx.strides, ctx.window = (tuple(x.shape[2:]), tuple(w.shape[2:])), w.stride(), recipe.window
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x if needs_w else None, w if needs_x else None)
        return recipe.run(x, w, b)

    @staticmethod
    def backward(ctx: Any, g: Maybe) -> Any:
        return *_Fprop.gradients(ctx, g), None


class _DgradAgain(_Primitive):
    @staticmethod
    def forward(ctx: Any, dy: Any, w: Any, b: Any, recipe: Recipe) -> torch.Tensor:
        needs_dy, needs_w, *_ = ctx.needs_input_grad
        ctx.kernel_size, ctx.strides, ctx.window = tuple(w.shape[2:]), w.stride(), recipe.window[1:]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dy if needs_w else None, w if needs_dy else None)
        return recipe.run(dy, w, b)

    @staticmethod
    def backward(ctx: Any, g: Maybe) -> Any:
        return *_Dgrad.gradients(ctx, g), None


class _FusedAgain(_Primitive):
    @staticmethod
    def forward(ctx: Any, a: Any, w: Any, b: Any, scale: Any, shift: Any, residual: Any, recipe: Recipe) -> Any:
        *ctx.window, ctx.plan = recipe.window
        ctx.which, ctx.activation, ctx.slope = recipe.which, recipe.activation, recipe.slope
        y, z = recipe.run_fused(a, w, b, scale, shift, residual)
        _Fused.kept(ctx, a, w, b, scale, y, z)
        return y, z

    @staticmethod
    def backward(ctx: Any, dy: Maybe, dz: Maybe) -> Any:
        of = _FusedFprop if ctx.which == Pass.FPROP else _FusedDgrad
        return *of.gradients(ctx, dy, dz), None


def _recorded(function: type[torch.autograd.Function]) -> Any:
    """`Function.apply` where no function of torch.func runs, and none is asked for by name."""
    return super(torch.autograd.Function, function).apply  # type: ignore[misc]


_fprop_again, _dgrad_again, _fused_again = map(_recorded, (_FpropAgain, _DgradAgain, _FusedAgain))


def repeated(recipe: Recipe, a: torch.Tensor, w: torch.Tensor, b: Maybe, *after: Maybe) -> torch.Tensor:
    """The result of a call whose recipe is known; `after` are scale, shift and residual."""
    if recipe.fused:
        made = _fused_again(a, w, b, *after, recipe) if recipe.records else recipe.run_fused(a, w, b, *after)
        return made[0]
    if not recipe.records:
        return recipe.run(a, w, b)
    return (_fprop_again if recipe.which is Pass.FPROP else _dgrad_again)(a, w, b, recipe)


LIBRARY.impl("fprop", _Fprop.apply, "Autograd")
LIBRARY.impl("dgrad", _Dgrad.apply, "Autograd")
LIBRARY.impl("wgrad", _Wgrad.apply, "Autograd")
LIBRARY.impl("fprop_fused", _FusedFprop.call, "Autograd")
LIBRARY.impl("dgrad_fused", _FusedDgrad.call, "Autograd")
