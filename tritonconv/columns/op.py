"""The library ops of `unfold` and `fold`: schemas, fake tensors, gradients, `vmap`.

    unfold(x [N, C, *size], kernel_size, dilation, padding, stride, plan) -> y [N, C * prod(kernel_size), L]
    fold(y [N, C * prod(kernel_size), L], output_size, kernel_size, dilation, padding, stride, plan) -> x [N, C, *output_size]

Every list has an entry per axis. Both are linear and each other's gradient, so they have derivatives of any order. torch's
autocast leaves their dtype alone, so there is no kernel for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from costmodel.problem import Pass
from costmodel.unfold import Unfolding
from tritonconv import operands
from tritonconv.again import recorded
from tritonconv.autograd import _below_autograd, _Primitive
from tritonconv.columns import check, cpu, launch
from tritonconv.columns.again import Recipe, called
from tritonconv.host import either
from tritonconv.op import LIBRARY

Maybe = torch.Tensor | None
Ints = Sequence[Any]
_OPS = torch.ops.tritonconv
_WINDOW = "SymInt[] kernel_size, SymInt[] dilation, SymInt[] padding, SymInt[] stride, str plan=''"
_SCHEMAS = (f"unfold(Tensor x, {_WINDOW}) -> Tensor", f"fold(Tensor y, SymInt[] output_size, {_WINDOW}) -> Tensor")
for _schema in _SCHEMAS:
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))


def _window(op: str, rank: int, kernel: Ints, dilation: Ints, padding: Ints, stride: Ints) -> tuple[tuple[Any, ...], ...]:
    """The window as tuples. RuntimeError unless each has `rank` numbers that make sense."""
    operands.sizes(op, "kernel_size", kernel, rank, 1)
    operands.sizes(op, "padding", padding, rank, 0)
    operands.window(op, rank, stride, (*padding, *padding), dilation)
    return tuple(kernel), tuple(dilation), tuple(padding), tuple(stride)


def _unfold_by(where: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def call(x: torch.Tensor, kernel: Ints, dilation: Ints, padding: Ints, stride: Ints, plan: str = "") -> torch.Tensor:
        operands.floating("unfold", "x", x)
        if not 3 <= x.dim() <= 5:
            raise RuntimeError(f"tritonconv::unfold: expected x of 3 to 5 axes, got x {list(x.shape)}")
        operands.sizes("unfold", "the size of x, without its batch,", x.shape[1:], x.dim() - 1, 1)
        window = _window("unfold", x.dim() - 2, kernel, dilation, padding, stride)
        return where(check.image("tritonconv::unfold", x, *window), x, plan)

    return call


def _fold_by(where: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def call(
        y: torch.Tensor, output_size: Ints, kernel: Ints, dilation: Ints, padding: Ints, stride: Ints, plan: str = ""
    ) -> torch.Tensor:
        operands.floating("fold", "y", y)
        operands.axes("fold", "y", y, 3)
        rank = len(output_size)
        if not 1 <= rank <= 3:
            raise RuntimeError(f"tritonconv::fold: output_size must be 1 to 3 numbers, got output_size={list(output_size)}")
        operands.sizes("fold", "the size of y, without its batch,", y.shape[1:], 2, 1)
        operands.sizes("fold", "output_size", output_size, rank, 1)
        window = _window("fold", rank, kernel, dilation, padding, stride)
        return where(check.columns("tritonconv::fold", y, tuple(output_size), *window), y, plan)

    return call


def _fake(which: Pass) -> Callable[..., torch.Tensor]:
    def call(unfolding: Unfolding, source: torch.Tensor, plan: str) -> torch.Tensor:
        return launch.allocated(unfolding, which, source)

    return call


class _Linear(_Primitive):
    """An op of one tensor that is linear in it: its tangents are the op's own."""

    op: Any

    @classmethod
    def tangents(cls, ctx: Any, saved: tuple[Any, ...], tangent: Maybe, *_: Any) -> Maybe:
        return None if tangent is None else cls.op(tangent, *ctx.rest)


class _Unfold(_Linear):
    op = _OPS.unfold

    @staticmethod
    def forward(*args: Any) -> Any:
        return _below_autograd(_OPS.unfold, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, *ctx.rest = inputs
        ctx.size = tuple(x.shape[2:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def gradient(ctx: Any, g: Maybe) -> Maybe:
        return None if g is None else called(_OPS.fold, Pass.DGRAD, g, ctx.size, *ctx.rest)

    @staticmethod
    def backward(ctx: Any, g: Maybe) -> Any:
        return _Unfold.gradient(ctx, g), *(None,) * len(ctx.rest)


class _Fold(_Linear):
    op = _OPS.fold

    @staticmethod
    def forward(*args: Any) -> Any:
        return _below_autograd(_OPS.fold, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, *ctx.rest = inputs
        ctx.set_materialize_grads(False)

    @staticmethod
    def gradient(ctx: Any, g: Maybe) -> Maybe:
        return None if g is None else called(_OPS.unfold, Pass.FPROP, g, *ctx.rest[1:])

    @staticmethod
    def backward(ctx: Any, g: Maybe) -> Any:
        return _Fold.gradient(ctx, g), *(None,) * len(ctx.rest)


class _LinearAgain(_Primitive):
    """`_Unfold` or `_Fold` of a call whose recipe is known."""

    @staticmethod
    def forward(ctx: Any, source: Any, recipe: Recipe) -> torch.Tensor:
        ctx.function = _Unfold if recipe.which == Pass.FPROP else _Fold
        ctx.function.setup_context(ctx, (source, *recipe.window), None)
        return recipe.run(source)

    @staticmethod
    def backward(ctx: Any, g: Maybe) -> Any:
        return ctx.function.gradient(ctx, g), None


_linear_again = recorded(_LinearAgain)


def repeated(recipe: Recipe, source: torch.Tensor) -> torch.Tensor:
    """The result of a call whose recipe is known."""
    if not recipe.records:
        return recipe.run(source)
    made: torch.Tensor = _linear_again(source if recipe.batched else source.unsqueeze(0), recipe)
    return made if recipe.batched else made.squeeze(0)


def _mapped(op: Any) -> Callable[..., Any]:
    """The batching rule: the mapped axis joins the batch."""

    def call(info: Any, dims: Any, tensor: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, int]:
        made = op(tensor.movedim(dims[0], 0).flatten(0, 1), *rest)
        return made.unflatten(0, (info.batch_size, -1)), 0

    return call


for _name, _by, _which, _kernel, _by_torch, _function in (
    ("unfold", _unfold_by, Pass.FPROP, launch.unfold, cpu.unfold, _Unfold),
    ("fold", _fold_by, Pass.DGRAD, launch.fold, cpu.fold, _Fold),
):
    LIBRARY.impl(_name, _by(_kernel), "CUDA")
    LIBRARY.impl(_name, _by(either(_kernel, _by_torch)), "CPU")
    LIBRARY.impl(_name, _function.apply, "Autograd")
    torch.library.register_fake(f"tritonconv::{_name}", _by(_fake(_which)), lib=LIBRARY)
    torch.library.register_vmap(f"tritonconv::{_name}", _mapped(getattr(_OPS, _name)), lib=LIBRARY)
