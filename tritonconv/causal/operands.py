"""What the ops of the causal convolution require of their arguments: shapes of real and fake tensors, and values on the CPU.

Values on a GPU are not read back; the kernels mask what lies outside (`kernels.causal_state`).
"""

from __future__ import annotations

import itertools
from typing import Any

import torch

from costmodel.causal import MAX_TAPS
from tritonconv import private
from tritonconv.operands import Maybe, alike, axes, numbers, shaped, word

SILU = ("silu",)


def _filter(op: str, x: torch.Tensor, w: torch.Tensor, b: Maybe, activation: str) -> None:
    axes(op, "x", x, 3)
    axes(op, "w", w, 2)
    if w.shape[0] != x.shape[1] or not 1 <= w.shape[1] <= MAX_TAPS:
        raise RuntimeError(
            f"tritonconv::{op}: expected w of shape [{x.shape[1]}, 1 to {MAX_TAPS}], for x {list(x.shape)}, got w "
            f"{list(w.shape)}"
        )
    shaped(op, "b", b, w.shape[0])
    word(op, "activation", activation, SILU)


def call(
    op: str,
    x: torch.Tensor,
    w: torch.Tensor,
    b: Maybe,
    state: Maybe,
    ids: Maybe,
    starts: Maybe,
    activation: str,
    dy: Maybe = None,
    dfinal: Maybe = None,
) -> None:
    """Checks the arguments of `causal`, or with dy and dfinal those of `causal_backward`."""
    alike(op, x, w, b, state, dy, dfinal)
    _filter(op, x, w, b, activation)
    sequences = x.shape[0]
    numbers(op, "ids", ids, x, x.shape[0], x.shape[2])
    if starts is not None:
        if x.shape[0] != 1 or starts.dim() != 1 or starts.shape[0] < 2 or ids is None:
            raise RuntimeError(
                f"tritonconv::{op}: starts go with ids, x of batch 1 and have at least 2 entries, got starts "
                f"{list(starts.shape)}, x {list(x.shape)} and {'no ids' if ids is None else 'ids'}"
            )
        numbers(op, "starts", starts, x, *starts.shape)
        sequences = starts.shape[0] - 1
    shaped(op, "dy", dy, *x.shape)
    for name, tensor in (("state", state), ("dfinal", dfinal)):
        shaped(op, name, tensor, sequences, x.shape[1], w.shape[1] - 1)


def update(
    x: torch.Tensor, state: torch.Tensor, w: torch.Tensor, b: Maybe, before: Maybe, entries: Maybe, activation: str
) -> None:
    """Checks the arguments of `causal_update`."""
    op = "causal_update"
    alike(op, x, state, w, b)
    _filter(op, x, w, b, activation)
    axes(op, "state", state, 3)
    batch, channels, _ = x.shape
    least = max(1, w.shape[1] - 1)
    if state.shape[1] != channels or state.shape[2] < least or (entries is None and state.shape[0] != batch):
        rows = batch if entries is None else "any number"
        raise RuntimeError(
            f"tritonconv::{op}: expected state of shape [{rows}, {channels}, at least {least}], got state {list(state.shape)}"
        )
    numbers(op, "before", before, x, batch)
    numbers(op, "entries", entries, x, batch)


def values(x: torch.Tensor, ids: Maybe, starts: Maybe) -> None:
    """On the CPU, raises ValueError unless starts rise from 0 to at most the columns of x, and IndexError for ids beyond
    them."""
    if starts is None:
        return
    bounds, length = starts.tolist(), x.shape[2]
    if bounds[0] != 0:
        raise ValueError(f"causal_conv1d(): cu_seqlens must begin with 0, got cu_seqlens[0] = {bounds[0]}")
    for i, (first, end) in enumerate(itertools.pairwise(bounds)):
        if end < first:
            raise ValueError(
                f"causal_conv1d(): cu_seqlens must not fall, got cu_seqlens[{i}] = {first} and cu_seqlens[{i + 1}] = {end}"
            )
    if bounds[-1] > length:
        raise ValueError(
            f"causal_conv1d(): cu_seqlens must end at {length}, the columns of x, or before, got "
            f"cu_seqlens[{len(bounds) - 1}] = {bounds[-1]}"
        )
    if ids is not None and ids.numel() and int(ids.max()) >= len(bounds) - 1:
        raise IndexError(f"tritonconv: ids must lie below {len(bounds) - 1}, the sequences of starts, got {int(ids.max())}")


def here(function: str, state: torch.Tensor, before: Maybe, entries: Maybe) -> None:
    """`places`, where the tensors are the CPU's and have values."""
    if state.is_cpu and not isinstance(state, private.FakeTensor):
        places(function, state, before, entries)


def places(function: str, state: torch.Tensor, before: Maybe, entries: Maybe) -> None:
    """On the CPU, raises IndexError for entries beyond the states, and ValueError for an entry named twice or a negative
    count."""
    rows = state.shape[0]
    if before is not None and before.numel() and int(before.min()) < 0:
        at = int(before.argmin())
        raise ValueError(f"{function}(): cache_seqlens must be at least 0, got cache_seqlens[{at}] = {int(before[at])}")
    slots: dict[Any, int] = {}
    for i, entry in enumerate([] if entries is None else entries.tolist()):
        if entry >= rows:
            raise IndexError(
                f"{function}(): conv_state_indices must lie below {rows}, the rows of conv_state, or be negative for none, got "
                f"conv_state_indices[{i}] = {entry}"
            )
        if entry >= 0 and slots.setdefault(entry, i) != i:
            raise ValueError(
                f"{function}(): conv_state_indices may name a row of conv_state once, got {entry} as "
                f"conv_state_indices[{slots[entry]}] and [{i}]"
            )
