"""The causal convolution of whole sequences whose states are rows of a pool."""

from __future__ import annotations

import torch

from tritonconv import memory
from tritonconv.causal import causal_conv1d, check, operands
from tritonconv.causal.pool import Rows, last

_NAME = "causal_conv1d_prefill"


def causal_conv1d_prefill(
    x: torch.Tensor,
    conv_state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: torch.Tensor | None = None,
    conv_state_indices: torch.Tensor | None = None,
    has_initial_state: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    *,
    layout: str = "BCL",
) -> torch.Tensor:
    """`causal_conv1d` of sequences whose states are rows of a pool. Each sequence goes on from its row and leaves its last
    columns there, in place, for `causal_conv1d_update` to go on from.

    x [B, C, L], or with cu_seqlens [1, C, L] of B sequences, weight [C, K], bias [C], activation, cu_seqlens and layout as
    `causal_conv1d` takes them; out has the shape of x. conv_state [rows, C, S], cache_seqlens and conv_state_indices int32 [B]
    as `causal_conv1d_update`: a window whose last K - 1 columns are read and written, or with cache_seqlens a ring of which
    column n % S is column n. A sequence without a row begins with zeros and leaves nothing. has_initial_state bool [B]:
    whether a sequence goes on from its row; where it is False the sequence begins with zeros. None means that all go on.

    One kernel computes out, one writes the pool, and a few small ones of torch copy K - 1 columns per sequence. out has
    derivatives of x, weight and bias; for autograd the pool is a constant that is changed in place.

    Raises TypeError, ValueError or RuntimeError naming the argument, before anything is launched, and on the CPU IndexError and
    ValueError as `causal_conv1d_update` does. The meaning is that of `causal_conv1d_fn` of vLLM
    (https://github.com/vllm-project/vllm), with `conv_states`, `cache_indices` and `query_start_loc` under the names of this
    package.
    """
    check.pool(_NAME, x, conv_state, weight, bias, layout, cu_seqlens)
    batch, channels, length = x.shape if layout == "BCL" else (x.shape[0], x.shape[2], x.shape[1])
    count = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    check.rows(_NAME, x, conv_state, weight, count, channels, cache_seqlens, conv_state_indices, has_initial_state)
    if not torch.compiler.is_compiling():  # a graph's tensors have neither memory nor values
        memory.may_be_written(_NAME, "conv_state", conv_state, x=x, weight=weight, bias=bias)
        operands.here(_NAME, conv_state, cache_seqlens, conv_state_indices)
    taps, size, pool = weight.shape[1], conv_state.shape[2], conv_state.detach()
    rows = Rows(pool, count, conv_state_indices)
    had = torch.full((count,), size, device=x.device) if cache_seqlens is None else cache_seqlens
    begun = rows.read(last(had, taps - 1, size), has_initial_state)
    out, final = causal_conv1d(x, weight, bias, activation, begun, True, None, cu_seqlens, layout=layout)
    if taps > 1:
        lengths = length if cu_seqlens is None else cu_seqlens.diff()
        ends = had if cache_seqlens is None else had + lengths
        rows.write(last(ends, taps - 1, size), final.detach().to(pool.dtype))
    return out
