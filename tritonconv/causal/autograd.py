"""Derivatives of the causal convolution, to any order and in both directions, made of its own two ops.

Without an activation both ops are linear in each of their tensors. With C the convolution, of x and the state before it,
B(dz, x, w) its gradients (dx, dw, dstate), and <.,.> the sum of products:

    <dz, C(x, w, state)> = <B's dx, x> + <B's dstate, state> = <B's dw, w>

so in any gradient of B the factor of dz is C again, and the factor of x or w is B. SiLU comes between: y = act(z) with z = C,
and dz = dy * act'(z). `causal_backward` computes z again inside its kernel; its own derivatives compute z by the op.
"""

from __future__ import annotations

from typing import Any

import torch

from tritonconv.again import recorded
from tritonconv.autograd import Maybe, _below_autograd, _Primitive, added, or_zeros
from tritonconv.causal.again import Recipe, called_backward
from tritonconv.causal.launch import Given

_OPS = torch.ops.tritonconv
Place = tuple[Maybe, Maybe]  # (the sequence of each column, the starts of packed sequences)


def _slope(z: torch.Tensor) -> torch.Tensor:
    """The derivative of SiLU."""
    s = z.sigmoid()
    return s * (1 + z * (1 - s))


def _bend(z: torch.Tensor) -> torch.Tensor:
    """The second derivative of SiLU."""
    s = z.sigmoid()
    return s * (1 - s) * (2 + z * (1 - 2 * s))


def _moved(saved: tuple[Any, ...], place: Place, tangents: tuple[Maybe, ...], final: bool) -> tuple[Maybe, Maybe]:
    """The tangents of z and of the final states; None where they are zero."""
    (x, w, state), (tx, tw, tb, tstate) = saved, tangents
    tz = tfinal = None
    if tx is not None or tstate is not None:
        tx, tstate = or_zeros(tx, x), or_zeros(tstate, state)
        tz, tfinal = _OPS.causal(tx, w, tb, tstate, *place, "", final)
        tb = None
    if tw is not None or tb is not None:
        tz = added(tz, _OPS.causal(x, or_zeros(tw, w), tb, state, *place, "", False)[0])
    return tz, tfinal


class _Causal(_Primitive):
    """The forward op. Its backward computes z, the value before the activation, again, so only the inputs are kept."""

    @staticmethod
    def forward(x: Any, w: Any, b: Any, state: Any, ids: Any, starts: Any, activation: str, final: bool) -> Any:
        return _below_autograd(_OPS.causal, x, w, b, state, ids, starts, activation, final)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.activation, ctx.final = inputs
        ctx.set_materialize_grads(False)
        if not ctx.final:
            ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors, output[1])

    @classmethod
    def tangents(cls, ctx: Any, saved: tuple[Any, ...], *tangents: Any) -> Any:
        x, w, b, state, *place, last = saved
        tz, tfinal = _moved((x, w, state), tuple(place), tangents[:4], ctx.final)
        if ctx.activation and tz is not None:
            z, _ = _OPS.causal(x, w, b, state, *place, "", False)
            tz = tz * _slope(z)
        return tz, or_zeros(tfinal, last) if ctx.final else None

    @staticmethod
    def backward(ctx: Any, dy: Maybe, dfinal: Maybe) -> Any:
        return *_Causal.gradients(ctx, dy, dfinal), *(None,) * 4

    @staticmethod
    def gradients(ctx: Any, dy: Maybe, dfinal: Maybe) -> tuple[Maybe, ...]:
        """The gradients of x, w, b and the state."""
        x, w, b, state, ids, starts = ctx.saved_tensors
        if dy is None and dfinal is None:
            return (None,) * 4
        dy = torch.zeros_like(x) if dy is None else dy
        needs_x, needs_w, needs_b, needs_state, *_ = ctx.needs_input_grad
        needs_wb = needs_w or needs_b
        last = dfinal if ctx.final else None
        wants = needs_x, needs_wb, needs_state
        dwb: Any
        dx, dwb, dstate = called_backward(_OPS.causal_backward, dy, x, w, b, state, ids, starts, last, ctx.activation, *wants)
        taps = w.shape[1]
        return (
            dx if needs_x else None,
            dwb.narrow(1, 0, taps) if needs_w else None,
            dwb.select(1, taps) if needs_b else None,
            dstate if needs_state else None,
        )


class _CausalAgain(_Primitive):
    """`_Causal` of a call whose recipe is known."""

    @staticmethod
    def forward(ctx: Any, x: Any, w: Any, b: Any, state: Any, ids: Any, starts: Any, recipe: Recipe) -> Any:
        ctx.activation, ctx.final = recipe.activation, recipe.final
        results = recipe.run(x, w, b, Given(state, ids, starts))
        ctx.set_materialize_grads(False)
        if not recipe.final:
            ctx.mark_non_differentiable(results[1])
        ctx.save_for_backward(x, w, b, state, ids, starts)
        return results

    @staticmethod
    def backward(ctx: Any, dy: Maybe, dfinal: Maybe) -> Any:
        return *_Causal.gradients(ctx, dy, dfinal), None, None, None


_causal_again = recorded(_CausalAgain)


def repeated(
    recipe: Recipe, x: torch.Tensor, w: torch.Tensor, b: Maybe, state: Maybe, ids: Maybe, starts: Maybe
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, final states, or nothing) of a call whose recipe is known."""
    if not recipe.records:
        return recipe.run(x, w, b, Given(state, ids, starts))
    results: tuple[torch.Tensor, torch.Tensor] = _causal_again(x, w, b, state, ids, starts, recipe)
    return results


class _CausalBackward(_Primitive):
    @staticmethod
    def forward(*args: Any) -> Any:
        return _below_autograd(_OPS.causal_backward, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.activation, wants_x, wants_w, wants_state = inputs
        ctx.wants = wants_x, wants_w, wants_state and inputs[4] is not None
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(t for t, wanted in zip(output, ctx.wants, strict=True) if not wanted))
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors, *output)

    @classmethod
    def tangents(
        cls, ctx: Any, saved: tuple[Any, ...], tdy: Maybe, tx: Maybe, tw: Maybe, tb: Maybe, tstate: Maybe, *others: Any
    ) -> Any:
        dy, x, w, b, state, *place, _, _, _, _ = saved
        tdfinal, dz, tdz = others[2], dy, tdy
        if ctx.activation:
            z, _ = _OPS.causal(x, w, b, state, *place, "", False)
            tz, _ = _moved((x, w, state), tuple(place), (tx, tw, tb, tstate), False)
            dz, slope = dy * _slope(z), _slope(z)
            tdz = added(None if tdy is None else tdy * slope, None if tz is None else dy * _bend(z) * tz)
        contributions: list[tuple[Maybe, ...]] = []
        if tdz is not None or tdfinal is not None:
            tdz = or_zeros(tdz, dy)
            contributions.append(_OPS.causal_backward(tdz, x, w, None, state, *place, tdfinal, "", *ctx.wants))
        if not (tx is None and tw is None and tstate is None):
            tx, tw, tstate = (or_zeros(t, like) for t, like in ((tx, x), (tw, w), (tstate, state)))
            dx, dwb, dstate = _OPS.causal_backward(dz, tx, tw, None, tstate, *place, None, "", *ctx.wants)
            if ctx.wants[1]:  # the bias's gradient, the sum of dz, does not depend on x
                dwb = torch.cat([dwb[:, :-1], torch.zeros_like(dwb[:, -1:])], 1)
            contributions.append((dx, dwb, dstate))
        sums = (added(*column) for column in zip(*contributions, strict=True)) if contributions else (None,) * 3
        results = zip(sums, saved[-3:], ctx.wants, strict=True)
        return tuple(or_zeros(t, result) if wanted else None for t, result, wanted in results)

    @staticmethod
    def backward(ctx: Any, gx: Maybe, gwb: Maybe, gstate: Maybe) -> Any:
        """The gradients for gx, gwb and gstate, which arrive at dx, at dw followed by db, and at dstate."""
        dy, x, w, b, state, ids, starts, _ = ctx.saved_tensors
        place, taps = (ids, starts), w.shape[1]
        needs_dy, needs_x, needs_w, needs_b, needs_state, _, _, needs_dfinal, *_ = ctx.needs_input_grad
        z = _OPS.causal(x, w, b, state, *place, "", False)[0] if ctx.activation else None
        dz = dy if z is None else dy * _slope(z)
        g_dz = g_dfinal = g_x = g_w = g_b = g_state = None
        if gx is not None or gstate is not None:
            gx, gstate = or_zeros(gx, x), or_zeros(gstate, state)
            g_dz, last = _OPS.causal(gx, w, None, gstate, *place, "", needs_dfinal)
            g_dfinal = last if needs_dfinal else None
            if needs_w:
                g_w = _OPS.causal_backward(dz, gx, w, None, gstate, *place, None, "", False, True, False)[1][:, :taps]
        if gwb is not None:
            g_dz = added(g_dz, _OPS.causal(x, gwb[:, :taps], gwb[:, taps], state, *place, "", False)[0])
            if needs_x or needs_state:
                g_x, _, g_state = _OPS.causal_backward(
                    dz, x, gwb[:, :taps], None, state, *place, None, "", needs_x, False, needs_state
                )
        if z is not None and g_dz is not None and (needs_x or needs_w or needs_b or needs_state):
            g_z = g_dz * dy * _bend(z)
            wants = needs_x, needs_w or needs_b, needs_state
            of_x, of_wb, of_state = _OPS.causal_backward(g_z, x, w, b, state, *place, None, "", *wants)
            g_x = added(g_x, of_x) if needs_x else None
            g_w = added(g_w, of_wb[:, :taps]) if needs_w else None
            g_b = of_wb[:, taps] if needs_b else None
            g_state = added(g_state, of_state) if needs_state else None
        g_dy = g_dz if z is None or g_dz is None else g_dz * _slope(z)
        return (
            g_dy if needs_dy else None,
            g_x if needs_x else None,
            g_w,
            g_b,
            g_state if needs_state else None,
            None,
            None,
            g_dfinal,
            *(None,) * 4,
        )


def causal(x: Any, w: Any, *rest: Any) -> Any:
    """`torch.ops.tritonconv.causal` for its Autograd key, which is called without trailing defaults."""
    return _Causal.apply(x, w, *rest, *(None, None, None, None, "", False)[len(rest) :])


def causal_backward(dy: Any, x: Any, w: Any, *rest: Any) -> Any:
    """`torch.ops.tritonconv.causal_backward` for its Autograd key."""
    return _CausalBackward.apply(dy, x, w, *rest, *(*(None,) * 5, "", True, True, False)[len(rest) :])
