"""The library op of a depthwise and a pointwise convolution: schema, kernels, fake tensor, autocast, FLOP formula, gradients.

    separable(x [N, C, H, W], w1 [C, 1, R, S], w2 [K, C, 1, 1], b1, b2, residual, ..., between, activation, slope, plan) -> y

`between` and `activation` are "" for none. `plan` is "", "fused", "apart" or a plan of "separable". Two kernels are `fprop` or
`fprop_fused` twice. The backward pass computes the depthwise result again, also where two kernels ran.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from costmodel.problem import ConvProblem, Pass
from costmodel.separable import Pair
from tritonconv import operands, private, recipes
from tritonconv.autograd import _below_autograd, _bias_gradient, _Primitive, added, bilinear, called
from tritonconv.epilogue import ACTIVATIONS, Epilogue, needs_z
from tritonconv.host import runs_kernels
from tritonconv.layout import allocate
from tritonconv.op import LIBRARY, _autocast, known_problem, pairs
from tritonconv.separable import launch

Maybe = torch.Tensor | None
Ints = Sequence[int]
_OPS = torch.ops.tritonconv
_SCHEMA = (
    "separable(Tensor x, Tensor w1, Tensor w2, Tensor? b1, Tensor? b2, Tensor? residual, SymInt[] stride, SymInt[] padding, "
    "SymInt[] dilation, str between='', str activation='', float slope=0.01, str plan='') -> Tensor"
)
#: stride, padding and dilation of the pointwise convolution, and its groups.
_POINTWISE: tuple[Any, ...] = ((1, 1), (0, 0, 0, 0), (1, 1), 1)


def pair_of(x: Ints, w1: Ints, w2: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Pair:
    """The two problems of the op's arguments, with shapes in place of tensors. Raises RuntimeError where they do not fit
    together."""
    if len(x) != 4 or len(w1) != 4 or tuple(w1[:2]) != (x[1], 1) or tuple(w2[1:]) != (x[1], 1, 1) or x[1] < 1:
        raise RuntimeError(
            f"tritonconv::separable: expected x [N, C, H, W], w1 [C, 1, R, S] and w2 [K, C, 1, 1], got x {list(x)}, w1 "
            f"{list(w1)}, w2 {list(w2)}"
        )
    operands.window("separable", 2, stride, padding, dilation)
    operands.sizes("separable", "the kernel's size", w1[2:], 2, 1)
    problem = ConvProblem.conv(x, w1, stride, pairs(padding), dilation, x[1])
    operands.covered("separable", problem)
    return Pair(problem, w2[0])


_known_pair = functools.lru_cache(maxsize=1024)(pair_of)


def checked(
    x: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    b1: Maybe,
    b2: Maybe,
    residual: Maybe,
    window: tuple[Any, ...],
    between: str,
    activation: str,
) -> Pair:
    """`pair_of` for the op's tensors, whose shapes, dtypes and devices are checked."""
    operands.alike("separable", x, w1, w2, b1, b2, residual)
    make = pair_of if isinstance(x, private.FakeTensor) else _known_pair  # symbols cannot be hashed
    pair = make(x.shape, w1.shape, w2.shape, *map(tuple, window))
    operands.shaped("separable", "b1", b1, w1.shape[0])
    operands.shaped("separable", "b2", b2, w2.shape[0])
    operands.shaped("separable", "residual", residual, *pair.pointwise.output_shape)
    operands.word("separable", "between", between, ACTIVATIONS)
    operands.word("separable", "activation", activation, ACTIVATIONS)
    return pair


def followed(
    x: torch.Tensor,
    w: torch.Tensor,
    b: Maybe,
    window: tuple[Any, ...],
    residual: Maybe,
    activation: str,
    slope: float,
    keep: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, z) of one of the two convolutions, computed by its own op, or by the recipe of its last call if there is one."""
    key = recipes.key(("separable half", *window, activation, slope, keep), None, x, w, b, residual)
    if (recipe := recipes.known(key)) is not None:
        try:
            y, z = recipe.run_fused(x, w, b, None, None, residual) if recipe.fused else (recipe.run(x, w, b), None)
            return y, y if z is None else z
        except torch.OutOfMemoryError:  # the ordinary call of the op takes another plan
            pass
    epilogue = Epilogue(None, None, residual, activation, slope, keep) if activation or residual is not None else None
    if epilogue is None:
        y = z = _OPS.fprop(x, w, b, *window)
    else:
        y, z = _OPS.fprop_fused(x, w, b, *window, *epilogue)
    if key is not None and not recipes.records(x, w, b, residual):
        recipes.file(key, Pass.FPROP, known_problem("fprop", x, w, window), x, w, b, window, "", epilogue)
    return y, z


def _separable(
    x: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    b1: Maybe,
    b2: Maybe,
    residual: Maybe,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    between: str = "",
    activation: str = "",
    slope: float = 0.01,
    plan: str = "",
) -> torch.Tensor:
    pair = checked(x, w1, w2, b1, b2, residual, (stride, padding, dilation), between, activation)
    if 0 in pair.pointwise.output_shape:
        return allocate(pair.pointwise.output_shape, x, w1, w2)
    if x.is_cuda or runs_kernels():
        one = launch.arranged(pair, x, w1, w2, b1, b2, residual, between, activation, slope, plan)
        if one is not None:
            return one.run(x, w1, w2, b1, b2, residual)
    z, _ = followed(x, w1, b1, (stride, padding, dilation, x.shape[1]), None, between, slope, False)
    return followed(z, w2, b2, _POINTWISE, residual, activation, slope, False)[0]


def _fake(
    x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, b1: Maybe, b2: Maybe, residual: Maybe, *rest: Any
) -> torch.Tensor:
    between, activation = (*rest[3:5], "", "")[:2]
    pair = checked(x, w1, w2, b1, b2, residual, rest[:3], between, activation)
    return allocate(pair.pointwise.output_shape, x, w1, w2)


def _flops(
    x: Ints, w1: Ints, w2: Ints, b1: Any, b2: Any, residual: Any, *window: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    return pair_of(x, w1, w2, *window[:3]).flops


class _Separable(_Primitive):
    """The op with its derivatives, where z = between(conv(x, w1) + b1) and y = act(conv(z, w2) + b2 + residual).

    The backward pass computes z again, and whatever else the activations' derivatives need. The only tensor of y's size that is
    kept is y, where the derivative of its activation is computed from y."""

    @staticmethod
    def forward(*args: Any) -> Any:
        return _below_autograd(_OPS.separable, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, w1, w2, b1, b2, residual, *ctx.window, ctx.between, ctx.activation, ctx.slope, _ = inputs
        again = needs_z(ctx.activation, ctx.slope)  # z of the second convolution
        ctx.window = (*ctx.window, x.shape[1])
        ctx.save_for_backward(
            x, w1, w2, b1, b2 if again else None, residual if again else None, output if ctx.activation and not again else None
        )
        ctx.set_materialize_grads(False)
        ctx.save_for_forward(x, w1, w2, b1, b2, residual, output)

    @classmethod
    def tangents(
        cls,
        ctx: Any,
        saved: tuple[Any, ...],
        tx: Maybe,
        tw1: Maybe,
        tw2: Maybe,
        tb1: Maybe,
        tb2: Maybe,
        ty: Maybe,
        *_: Any,
    ) -> Maybe:
        """The tangents, through one convolution and then the other. `ty` is that of the residual."""
        x, w1, w2, b1, b2, residual, y = saved
        keep = needs_z(ctx.between, ctx.slope)
        z, before = followed(x, w1, b1, ctx.window, None, ctx.between, ctx.slope, keep)
        tz = bilinear(_OPS.fprop, (x, w1), (tx, tw1), tb1, z, ctx.window)
        if ctx.between and tz is not None:
            tz = ACTIVATIONS[ctx.between].backward(tz, before if keep else z, ctx.slope)
        ty = added(ty, bilinear(_OPS.fprop, (z, w2), (tz, tw2), tb2, y, _POINTWISE))
        if ctx.activation and ty is not None:
            at = y
            if needs_z(ctx.activation, ctx.slope):
                at = followed(z, w2, b2, _POINTWISE, residual, ctx.activation, ctx.slope, True)[1]
            ty = ACTIVATIONS[ctx.activation].backward(ty, at, ctx.slope)
        return ty

    @staticmethod
    def backward(ctx: Any, dy: Maybe) -> Any:
        if dy is None:
            return (None,) * 13
        x, w1, w2, b1, b2, residual, y = ctx.saved_tensors
        needs_x, needs_w1, needs_w2, needs_b1, needs_b2, needs_residual, *_ = ctx.needs_input_grad
        below = needs_x or needs_w1 or needs_b1
        if needs_w2 or (below and ctx.between) or needs_z(ctx.activation, ctx.slope):
            keep = below and needs_z(ctx.between, ctx.slope)
            z, before = followed(x, w1, b1, ctx.window, None, ctx.between, ctx.slope, keep)
        if ctx.activation:
            at = followed(z, w2, b2, _POINTWISE, residual, ctx.activation, ctx.slope, True)[1] if y is None else y
            dy = ACTIVATIONS[ctx.activation].backward(dy, at, ctx.slope)
        dx = dw1 = dw2 = db1 = None
        if needs_w2:
            dw2 = called("wgrad", dy, z, (1, 1), *_POINTWISE)
        if below:
            dz = called("dgrad", dy, w2, tuple(dy.shape[2:]), *_POINTWISE)
            if ctx.between:
                dz = ACTIVATIONS[ctx.between].backward(dz, before if keep else z, ctx.slope)
            dx = called("dgrad", dz, w1, tuple(x.shape[2:]), *ctx.window) if needs_x else None
            dw1 = called("wgrad", dz, x, tuple(w1.shape[2:]), *ctx.window) if needs_w1 else None
            db1 = _bias_gradient(dz) if needs_b1 else None
        db2 = _bias_gradient(dy) if needs_b2 else None
        return dx, dw1, dw2, db1, db2, dy if needs_residual else None, *(None,) * 7


def _autograd(*args: Any) -> Any:
    defaults = ("", "", 0.01, "")
    return _Separable.apply(*args, *defaults[len(args) - 9 :])


LIBRARY.define(_SCHEMA, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))
for _key in ("CUDA", "CPU"):
    LIBRARY.impl("separable", _separable, _key)
LIBRARY.impl("separable", _autograd, "Autograd")
torch.library.register_fake("tritonconv::separable", _fake, lib=LIBRARY)
register_flop_formula(_OPS.separable)(_flops)
for _device in ("cuda", "cpu"):
    LIBRARY.impl("separable", _autocast(_OPS.separable.default, _device), f"Autocast{_device.upper()}")
