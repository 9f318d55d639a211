"""Causal calls that were made before (see `tritonconv.recipes`): `causal_conv1d`, its gradients, `causal_conv1d_update`.

Updates on the CPU whose rows are numbered take the ordinary way, which looks at the numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from tritonconv import host, recipes
from tritonconv.causal import launch
from tritonconv.causal.launch import Given
from tritonconv.steps import Launch, Step

Maybe = torch.Tensor | None


class Recipe(NamedTuple):
    """A forward call without its tensors."""

    launch: Launch
    strides: tuple[int, ...]  # of the result, whose shape is that of x
    activation: str
    final: bool  # the final states are answered too
    records: bool
    on_cpu: bool

    def run(self, x: torch.Tensor, w: torch.Tensor, b: Maybe, given: Given) -> tuple[torch.Tensor, torch.Tensor]:
        """(y, final states, or nothing). Nothing is recorded."""
        if not self.on_cpu:
            return self._run(x, w, b, given)
        with host.turn():
            return self._run(x, w, b, given)

    def _run(self, x: torch.Tensor, w: torch.Tensor, b: Maybe, given: Given) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.empty_strided(x.shape, self.strides, dtype=x.dtype, device=x.device)
        launch.start(self.launch, x, w, b, y, given)
        return y, launch.final_state(x, w.shape[1], given) if self.final else x.new_empty(0)


def file(
    key: Any, x: torch.Tensor, w: torch.Tensor, b: Maybe, given: Given, y: torch.Tensor, activation: str, final: bool
) -> None:
    """Keeps what a call took that has just been made the ordinary way and answered y, where it may be repeated."""
    if y.numel() == 0 or not recipes.may_keep(key, x, w, b, *given):
        return
    prepared = launch.prepared_for(x, w, b, launch.key(y), None, activation, given)
    records = recipes.records(x, w, b, given.state)
    recipes.keep(key, Recipe(prepared, y.stride(), activation, final, records, x.is_cpu))


class Backward(NamedTuple):
    """A call of the gradients without its tensors."""

    launch: Launch
    shape: tuple[int, int]  # of dw with db behind it
    strides: tuple[int, ...]  # of dx
    activation: str
    wants: tuple[bool, bool, bool]  # dx, dw and db, dstate
    on_cpu: bool

    def run(
        self, dy: torch.Tensor, x: torch.Tensor, w: torch.Tensor, b: Maybe, given: Given, dfinal: Maybe
    ) -> tuple[Maybe, Maybe, Maybe]:
        """(dx, dw with db behind it, dstate), None for those that are not wanted."""
        wants_x, wants_w, wants_state = self.wants
        dx = torch.empty_strided(x.shape, self.strides, dtype=x.dtype, device=x.device) if wants_x else None
        dwb = torch.empty(self.shape, dtype=w.dtype, device=w.device) if wants_w else None
        with host.turn() if self.on_cpu else launch.on(x):
            launch.start_backward(self.launch, dy, x, w, b, dfinal, dx, dwb, given)
            if not wants_state or given.state is None:
                return dx, dwb, None
            return dx, dwb, launch.state_gradient(dy, x, w, b, dfinal, self.activation, given)


def called_backward(op: Any, *arguments: Any) -> tuple[Maybe, Maybe, Maybe]:
    """`op`, which is torch.ops.tritonconv.causal_backward, of all its arguments; it looks up what it took the last time."""
    dy, x, w, b, state, ids, starts, dfinal, activation, *wants = arguments
    tensors = dy, x, w, b, state, ids, starts, dfinal
    given = Given(state, ids, starts)
    key = recipes.key(("causal_backward", activation, *wants), None, *tensors)
    if (recipe := recipes.known(key)) is not None:
        gradients: tuple[Maybe, Maybe, Maybe] = recipe.run(dy, x, w, b, given, dfinal)
        return gradients
    made: tuple[Maybe, Maybe, Maybe] = op(*arguments)
    if key is not None and x.numel() and any(wants[:2]) and recipes.may_keep(key, *tensors) and not recipes.records(*tensors):
        prepared = launch.prepared_backward(dy, x, w, b, activation, given, wants[0])
        channels, taps = w.shape
        strides = launch.strides_like(x.shape, x)
        recipes.keep(
            key, Backward(prepared, (channels, taps + 1), strides, activation, (wants[0], wants[1], wants[2]), x.is_cpu)
        )
    return made


def update_key(x: torch.Tensor, state: torch.Tensor, w: torch.Tensor, b: Maybe, activation: Any, *numbers: Maybe) -> Any:
    """The key of `causal_conv1d_update`, None for one that is to take the ordinary way."""
    if any(n is not None and (not isinstance(n, torch.Tensor) or n.is_cpu or not n.is_contiguous()) for n in numbers):
        return None
    return recipes.key(("causal_conv1d_update", activation), None, x, state, w, b, *numbers)


def updated(step: Step, x: torch.Tensor, state: torch.Tensor, w: torch.Tensor, b: Maybe, *numbers: Maybe) -> Maybe:
    """The result of a call whose kernel is known; None where memory is shared, which is looked at the ordinary way."""
    place = state.untyped_storage().data_ptr()
    if any(t is not None and t.untyped_storage().data_ptr() == place for t in (x, w, b)):
        return None
    if not state.is_inference():
        torch.autograd.graph.increment_version(state)
    tokens = x if x.dim() == 3 else x.unsqueeze(-1)
    y = launch.allocate(tokens.shape, tokens)
    with host.turn() if x.is_cpu else launch.on(x):
        step.start(tokens, state, w, b, y, *numbers, *step.arguments)
    return y if x.dim() == 3 else y.squeeze(-1)


def file_update(
    key: Any, x: torch.Tensor, state: torch.Tensor, w: torch.Tensor, b: Maybe, activation: str, *numbers: Maybe
) -> None:
    """Keeps the kernel of an update [B, C, T] that has just been made the ordinary way, where it may be repeated."""
    if x.numel() == 0 or not recipes.may_keep(key, x, state, w, b, *numbers):
        return
    y = tuple(x.shape), launch.strides_like(x.shape, x)
    stride = None if b is None else b.stride(0)
    step = launch.update_step(x.dtype, launch.key(x), launch.key(state), launch.key(w), y, stride, activation)
    recipes.keep(key, step)
