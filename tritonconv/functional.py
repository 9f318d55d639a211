"""The six convolutions, called exactly as those of `torch.nn.functional`.

The plain ones take more than torch's as `padding`: ((low, high), ...), the two ends of each axis; and `padding_mode`, as
`torch.nn.Conv2d` does: what the padding holds ("zeros", "reflect", "replicate", "circular"), one word or one per axis.
`plan` forces kernels: see `tritonconv.plans`; `tritonconv.explain` prints what was chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from costmodel.problem import ConvProblem, Pass
from tritonconv import check, plans, private, recipes
from tritonconv.again import repeated
from tritonconv.autograd import _OPS
from tritonconv.epilogue import Epilogue
from tritonconv.invariant import marked
from tritonconv.normalize import Prologue, as_arguments
from tritonconv.op import flat, known_problem
from tritonconv.plans import Plans
from tritonconv.subclasses import know_subclass

Size = int | tuple[int, ...]
Padding = Size | tuple[tuple[int, int], ...] | str  # the same at both ends, or (low, high) per axis
Modes = str | tuple[str, ...]  # what the padding holds, on all axes or on each


class Asked(NamedTuple):
    """Replaces a plan where a predicate of `tritonconv.use` chooses between torch and ours; see `tritonconv.where`."""

    word: str


def _plan_text(plan: Plans | Asked, function: str, forward: Pass, input: torch.Tensor, weight: torch.Tensor) -> str:
    """`plan` as the ops take it. Its errors are those of `plans.text`."""
    if plan is None:
        return ""
    if isinstance(plan, Asked):
        return plan.word
    return plans.text(plan, function, forward, _idle(forward, input, weight))


def _idle(forward: Pass, input: torch.Tensor, weight: torch.Tensor) -> dict[Pass, str]:
    """The passes that a call never runs, and why. A tensor that requires no gradient gets none, and none of a higher order."""
    if torch.compiler.is_compiling() or private.transforms_are_active():
        return {}
    input_pass = Pass.DGRAD if forward == Pass.FPROP else Pass.FPROP
    gradients = {input_pass: ("input", input), Pass.WGRAD: ("weight", weight)}
    return {which: f"{name} requires no gradient" for which, (name, tensor) in gradients.items() if not tensor.requires_grad}


class After(NamedTuple):
    """The further arguments of the fused functions. Without any it is the plain convolution."""

    activation: str | None = None
    negative_slope: float = 0.01
    scale: torch.Tensor | None = None  # [C_out]
    shift: torch.Tensor | None = None  # [C_out]
    residual: torch.Tensor | None = None  # of the output's shape

    def tensors(self) -> dict[str, torch.Tensor | None]:
        return {"scale": self.scale, "shift": self.shift, "residual": self.residual}

    def arguments(self, batched: bool) -> tuple[Any, ...]:
        """The arguments as the ops take them, up to `keep`."""
        residual = self.residual if self.residual is None or batched else self.residual.unsqueeze(0)
        return self.scale, self.shift, residual, self.activation or "", float(self.negative_slope)

    def is_empty(self) -> bool:
        return self.activation is None and self.scale is None and self.shift is None and self.residual is None


def _call(
    function: str,
    rank: int,
    checked: Callable[..., ConvProblem],
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    window: tuple[Any, ...],
    plan: Plans,
    after: After | None = None,
    prologue: Prologue | None = None,
) -> torch.Tensor:
    """One of the functions. `checked` is check.conv or check.conv_transpose, and `window` are its further arguments."""
    beside = () if after is None else after[2:]
    key = None
    if not isinstance(plan, Asked) and prologue is None:  # an `Asked` may choose torch
        words = (function, *window) if after is None else (function, *window, *after[:2])
        key = recipes.key(words, plan, input, weight, bias, *beside)
    recipe = recipes.known(key)
    if recipe is not None:
        try:
            if input.dim() == rank + 2:
                return repeated(recipe, input, weight, bias, *beside)
            with_batch = (t if t is None or t.dim() == 1 else t.unsqueeze(0) for t in beside)  # scale and shift have one axis
            return repeated(recipe, input.unsqueeze(0), weight, bias, *with_batch).squeeze(0)
        except torch.OutOfMemoryError:  # the op knows another plan
            pass
    know_subclass(weight)
    check.tensors(function, rank, input, weight, bias, **({} if after is None else after.tensors()))
    batched = input.dim() == rank + 2
    a = input if batched else input.unsqueeze(0)
    problem = checked(function, rank, a, weight, bias, *window)
    forward = checked is check.conv
    before = None if prologue is None else as_arguments(function, a, prologue)
    pads = flat(problem.padding, problem.padding_mode)
    place: tuple[Any, ...] = (problem.stride, pads, problem.dilation, problem.groups)
    place = place if forward else (problem.input_size, *place)
    if after is not None:
        shape = problem.output_shape if forward else problem.input_shape
        check.epilogue(function, rank, shape if batched else shape[1:], *after)
    forced = marked(_plan_text(plan, function, Pass.FPROP if forward else Pass.DGRAD, a, weight))
    epilogue = None
    if before is not None:
        assert after is not None
        y = _OPS.fprop_normalized(a, weight, bias, *place, *before, *after.arguments(batched), forced)
    elif after is None or after.is_empty():
        y = (_OPS.fprop if forward else _OPS.dgrad)(a, weight, bias, *place, forced)
    else:
        follows = (*after.arguments(batched), False)
        y, z = (_OPS.fprop_fused if forward else _OPS.dgrad_fused)(a, weight, bias, *place, *follows, forced)
        epilogue = Epilogue(*follows)._replace(keep=z.numel() > 0) if key is not None else None
    if key is not None:
        which = Pass.FPROP if forward else Pass.DGRAD
        recipes.file(key, which, known_problem(which, a, weight, place), a, weight, bias, place, forced, epilogue)
    return y if batched else y.squeeze(0)


def conv1d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    padding_mode: Modes = "zeros",
    plan: Plans = None,
) -> torch.Tensor:
    """input [N, C, L] or [C, L], weight [K, C / groups, S], bias [K]; see `torch.nn.functional.conv1d`."""
    return _call("conv1d", 1, check.conv, input, weight, bias, (stride, padding, dilation, groups, padding_mode), plan)


def conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    padding_mode: Modes = "zeros",
    plan: Plans = None,
) -> torch.Tensor:
    """input [N, C, H, W] or [C, H, W], weight [K, C / groups, R, S], bias [K]; see `torch.nn.functional.conv2d`."""
    return _call("conv2d", 2, check.conv, input, weight, bias, (stride, padding, dilation, groups, padding_mode), plan)


def conv3d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    padding_mode: Modes = "zeros",
    plan: Plans = None,
) -> torch.Tensor:
    """input [N, C, D, H, W] or [C, D, H, W], weight [K, C / groups, T, R, S], bias [K]; see `torch.nn.functional.conv3d`."""
    return _call("conv3d", 3, check.conv, input, weight, bias, (stride, padding, dilation, groups, padding_mode), plan)


def conv_transpose1d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    plan: Plans = None,
) -> torch.Tensor:
    """input [N, K, L] or [K, L], weight [K, C / groups, S], bias [C]; see `torch.nn.functional.conv_transpose1d`."""
    window = (stride, padding, output_padding, groups, dilation)
    return _call("conv_transpose1d", 1, check.conv_transpose, input, weight, bias, window, plan)


def conv_transpose2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    plan: Plans = None,
) -> torch.Tensor:
    """input [N, K, H, W] or [K, H, W], weight [K, C / groups, R, S], bias [C]; see `torch.nn.functional.conv_transpose2d`."""
    window = (stride, padding, output_padding, groups, dilation)
    return _call("conv_transpose2d", 2, check.conv_transpose, input, weight, bias, window, plan)


def conv_transpose3d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    plan: Plans = None,
) -> torch.Tensor:
    """input [N, K, D, H, W] or unbatched, weight [K, C / groups, T, R, S], bias [C]: torch.nn.functional.conv_transpose3d."""
    window = (stride, padding, output_padding, groups, dilation)
    return _call("conv_transpose3d", 3, check.conv_transpose, input, weight, bias, window, plan)
