"""Arguments of the causal convolution. Every message names the argument, what came and what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from costmodel.causal import MAX_TAPS
from tritonconv.check import _bias, alike


def _name_shape(function: str, name: str, value: torch.Tensor, shape: Sequence[Any], why: str) -> None:
    if tuple(value.shape) != tuple(shape):
        raise RuntimeError(f"{function}(): expected {name} of shape {list(shape)}, {why}, got {name} {list(value.shape)}")


def tensors(function: str, **given: Any) -> None:
    """Checks kinds, dtypes and devices. `bias` and `initial_state` may be None."""
    for name, value in given.items():
        if not isinstance(value, torch.Tensor) and not (value is None and name in ("bias", "initial_state")):
            raise TypeError(f"{function}(): argument {name!r} must be a Tensor, got {type(value).__name__}")
    alike(function, "x", given)


def is_mixed(x: Any, *others: Any) -> bool:
    """Whether x has 16 bits and each given tensor has x's dtype or float32, at least one of them float32."""
    given = [other for other in others if other is not None]
    if not all(isinstance(t, torch.Tensor) for t in (x, *given)) or x.dtype not in (torch.float16, torch.bfloat16):
        return False
    if torch.is_autocast_enabled(x.device.type):
        return False
    return {t.dtype for t in given} <= {x.dtype, torch.float32} and any(t.dtype == torch.float32 for t in given)


def layout(function: str, layout: Any, x: torch.Tensor) -> None:
    if layout not in ("BCL", "BLC"):
        raise ValueError(f"{function}(): layout must be 'BCL' or 'BLC', got layout={layout!r}")
    if x.dim() != 3:
        raise RuntimeError(f"{function}(): expected x of 3 axes ({layout}), got x {list(x.shape)}")


def _filter(function: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: Any) -> None:
    if weight.dim() != 2:
        raise RuntimeError(f"{function}(): expected weight of 2 axes [C, K], got weight {list(weight.shape)}")
    if weight.shape[0] != x.shape[1] or weight.shape[0] == 0:
        raise RuntimeError(
            f"{function}(): expected weight of {x.shape[1]} channels, at least 1, for x {list(x.shape)}, got weight "
            f"{list(weight.shape)}"
        )
    if not 1 <= weight.shape[1] <= MAX_TAPS:
        raise RuntimeError(
            f"{function}(): expected 1 to {MAX_TAPS} taps, got {weight.shape[1]}: weight {list(weight.shape)}; "
            "tritonconv.conv1d takes any number"
        )
    _bias(function, bias, weight.shape[0], weight)
    if activation not in (None, "silu", "swish"):
        raise ValueError(f"{function}(): activation must be None, 'silu' or 'swish', got activation={activation!r}")


def _indices(function: str, name: str, value: Any, x: torch.Tensor, axes: int) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{function}(): argument {name!r} must be a Tensor, got {type(value).__name__}")
    if value.dtype != torch.int32:
        raise RuntimeError(f"{function}(): expected {name} of dtype torch.int32, got {value.dtype}")
    if value.device != x.device:
        raise RuntimeError(f"{function}(): x and {name} must be on the same device, got x {x.device} and {name} {value.device}")
    if value.dim() != axes:
        raise RuntimeError(f"{function}(): expected {name} of {axes} axes, got {name} {list(value.shape)}")


def causal(
    function: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: Any,
    initial_state: torch.Tensor | None,
    return_final_state: Any,
    seq_idx: Any,
    cu_seqlens: Any,
) -> None:
    """Checks a call with x as [B, C, L]."""
    _filter(function, x, weight, bias, activation)
    if not isinstance(return_final_state, bool):
        raise TypeError(
            f"{function}(): argument 'return_final_state' must be bool, got {return_final_state!r} of type "
            f"{type(return_final_state).__name__}"
        )
    sequences = x.shape[0]
    if seq_idx is not None:
        _indices(function, "seq_idx", seq_idx, x, 2)
        _name_shape(function, "seq_idx", seq_idx, (x.shape[0], x.shape[2]), "one number per column of x")
        for name, wanted in (
            ("cu_seqlens", cu_seqlens is not None),
            ("initial_state", initial_state is not None),
            ("return_final_state", return_final_state),
        ):
            if wanted:
                raise RuntimeError(f"{function}(): {name} does not go with seq_idx, got both; cu_seqlens takes states")
    if cu_seqlens is not None:
        _indices(function, "cu_seqlens", cu_seqlens, x, 1)
        if cu_seqlens.shape[0] < 2 or x.shape[0] != 1:
            raise RuntimeError(
                f"{function}(): expected x of batch 1 and cu_seqlens of at least 2 entries, got x {list(x.shape)} and "
                f"cu_seqlens {list(cu_seqlens.shape)}"
            )
        sequences = cu_seqlens.shape[0] - 1
    if initial_state is not None:
        shape = (sequences, x.shape[1], weight.shape[1] - 1)
        _name_shape(function, "initial_state", initial_state, shape, "K - 1 columns per channel of each sequence")


def pool(function: str, x: Any, conv_state: Any, weight: Any, bias: Any, how: Any, cu_seqlens: Any) -> None:
    """What must be known of a call before its sequences can be counted."""
    if not is_mixed(x, weight, bias, conv_state):
        tensors(function, x=x, conv_state=conv_state, weight=weight, bias=bias)
    layout(function, how, x)
    if weight.dim() != 2:
        raise RuntimeError(f"{function}(): expected weight of 2 axes [C, K], got weight {list(weight.shape)}")
    if cu_seqlens is not None:
        _indices(function, "cu_seqlens", cu_seqlens, x, 1)


def rows(
    function: str,
    x: torch.Tensor,
    conv_state: torch.Tensor,
    weight: torch.Tensor,
    count: int,
    channels: int,
    cache_seqlens: Any,
    conv_state_indices: Any,
    has_initial_state: Any = None,
) -> None:
    """The states of `count` sequences, and whose they are."""
    least = max(1, weight.shape[1] - 1)
    fits = conv_state.dim() == 3 and conv_state.shape[1] == channels and conv_state.shape[2] >= least
    if not fits or conv_state.shape[0] < 1 or (conv_state_indices is None and conv_state.shape[0] != count):
        many = "any number of" if conv_state_indices is not None else count
        raise RuntimeError(
            f"{function}(): expected conv_state of shape [{many} rows, {channels}, at least {least}], got conv_state "
            f"{list(conv_state.shape)}"
        )
    for name, value in (("cache_seqlens", cache_seqlens), ("conv_state_indices", conv_state_indices)):
        if value is not None:
            _indices(function, name, value, x, 1)
            _name_shape(function, name, value, (count,), "one number per sequence of x")
    if has_initial_state is not None:
        if not isinstance(has_initial_state, torch.Tensor) or has_initial_state.dtype != torch.bool:
            kind = getattr(has_initial_state, "dtype", type(has_initial_state).__name__)
            raise TypeError(f"{function}(): argument 'has_initial_state' must be a Tensor of torch.bool, got {kind}")
        _name_shape(function, "has_initial_state", has_initial_state, (count,), "one value per sequence of x")


def accepted(function: str, x: torch.Tensor, conv_state: torch.Tensor, weight: torch.Tensor, value: Any, ring: Any) -> None:
    """num_accepted_tokens of an update, whose state must have room for tokens that were not."""
    _indices(function, "num_accepted_tokens", value, x, 1)
    _name_shape(function, "num_accepted_tokens", value, (x.shape[0],), "one number per sequence of x")
    if ring is not None:
        raise RuntimeError(
            f"{function}(): num_accepted_tokens does not go with cache_seqlens, got both: a ring goes back by smaller "
            "cache_seqlens"
        )
    if x.dim() != 3 or conv_state.shape[2] < weight.shape[1] - 2 + x.shape[2]:
        raise RuntimeError(
            f"{function}(): num_accepted_tokens asks for x (B, C, T) and conv_state of at least K - 2 + T columns, got x "
            f"{list(x.shape)}, weight {list(weight.shape)} and conv_state {list(conv_state.shape)}"
        )


def update(
    function: str,
    x: torch.Tensor,
    conv_state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: Any,
    cache_seqlens: Any,
    conv_state_indices: Any,
) -> None:
    if x.dim() not in (2, 3):
        raise RuntimeError(f"{function}(): expected x of 2 axes (B, C) or 3 (B, C, T), got x {list(x.shape)}")
    _filter(function, x, weight, bias, activation)
    batch, channels, least = x.shape[0], x.shape[1], weight.shape[1] - 1
    rows = "any number" if conv_state_indices is not None else batch
    fits = conv_state.dim() == 3 and conv_state.shape[1] == channels and conv_state.shape[2] >= max(1, least)
    if not fits or (conv_state_indices is None and conv_state.shape[0] != batch):
        raise RuntimeError(
            f"{function}(): expected conv_state of shape [{rows}, {channels}, at least {max(1, least)}], got conv_state "
            f"{list(conv_state.shape)}"
        )
    for name, value in (("cache_seqlens", cache_seqlens), ("conv_state_indices", conv_state_indices)):
        if value is not None:
            _indices(function, name, value, x, 1)
            _name_shape(function, name, value, (batch,), "one number per sequence of x")
