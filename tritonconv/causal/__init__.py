"""The short convolutions of state-space models: depthwise and along a sequence, where each output sees its own column and
earlier ones only.

The meaning is that of the package causal-conv1d (https://github.com/Dao-AILab/causal-conv1d, `causal_conv1d_fn` and
`causal_conv1d_update`). Kernels: `tritonconv.kernels.causal`.
"""

from __future__ import annotations

import torch

from tritonconv import memory, recipes
from tritonconv.causal import (
    check,
    op,  # noqa: F401  registers the ops
    operands,
)
from tritonconv.causal.again import file, file_update, update_key, updated
from tritonconv.causal.autograd import repeated
from tritonconv.causal.launch import Given
from tritonconv.causal.pool import Rows, take_back

_OPS = torch.ops.tritonconv
_ACTIVATIONS = {None: "", "silu": "silu", "swish": "silu"}


def _sequences(
    x: torch.Tensor, seq_idx: torch.Tensor | None, cu_seqlens: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """(the sequence of each column of x [B, C, L], the starts of packed sequences) as the op takes them, None for neither."""
    if cu_seqlens is None:
        return None if seq_idx is None else seq_idx.contiguous(), None
    # the sequence of each column takes two small launches; no value is read back
    columns = torch.arange(x.shape[2], device=x.device, dtype=cu_seqlens.dtype)
    owners = torch.bucketize(columns, cu_seqlens[1:], out_int32=True, right=True)
    ids = torch.where(owners < cu_seqlens.shape[0] - 1, owners, -1).unsqueeze(0)
    return ids.contiguous(), cu_seqlens.contiguous()


def causal_conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    initial_state: torch.Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    *,
    layout: str = "BCL",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """out[b, c, t] = act(bias[c] + sum_j weight[c, j] * x[b, c, t - K + 1 + j]), zeros or `initial_state` before t = 0.

    x [B, C, L], weight [C, K] with K from 1 to 16, bias [C]; out has the shape of x and its memory layout. Channels-last is
    fastest: x whose channels are contiguous (`(B, L, C)` transposed) is read without a copy, and with `layout="BLC"` x and out
    are [B, L, C]. activation: None, "silu" or "swish" (the same). The dtype is float16, bfloat16, float32 or float64; sums are
    in float32 (float64 for float64) and rounded once. Beside x of 16 bits, weight, bias and initial_state may be float32, as
    SGLang and vLLM keep them: x is then converted to float32 for the call, and final has the dtype of initial_state.

    initial_state [B, C, K - 1]: the columns before t = 0, the oldest first. return_final_state: returns (out, final), where
    final [B, C, K - 1] is the initial_state of what follows, also where L < K - 1. Both may be differentiated.

    seq_idx int32 [B, L]: taps that reach a column of another number add nothing, and a column of a negative number is zero.
    cu_seqlens int32 [S + 1], rising from 0 to L: x [1, C, L] is S sequences one after another, which may be empty; both states
    are then [S, C, K - 1]. Columns after its last entry are zero. seq_idx cannot be combined with a state or with cu_seqlens.
    On the CPU other values raise ValueError. On CUDA values are not read back. A bound outside 0 to L then counts as 0 or L,
    and a bound below the one before it counts as that one, for the final state; which sequence a column belongs to is
    undefined. Memory outside the tensors is never read or written.

    Every tensor has derivatives to any order, forwards and backwards; first derivatives have the same bits on every run. The
    package causal-conv1d calls the arguments `initial_states` and `return_final_states` and has another order; here one row has
    one state.

    Raises TypeError, ValueError or RuntimeError naming the argument, before anything is launched.
    """
    function = "causal_conv1d"
    words = function, activation, return_final_state, layout
    key = recipes.key(words, None, x, weight, bias, initial_state, seq_idx, cu_seqlens)
    if (recipe := recipes.known(key)) is not None:
        x = x.transpose(1, 2) if layout == "BLC" else x
        ids, starts = _sequences(x, seq_idx, cu_seqlens)
        if starts is not None and x.is_cpu:
            operands.values(x, ids, starts)
        out, final = repeated(recipe, x, weight, bias, initial_state, ids, starts)
        out = out.transpose(1, 2) if layout == "BLC" else out
        return (out, final) if return_final_state else out
    if check.is_mixed(x, weight, bias, initial_state):
        kept = x.dtype if initial_state is None else initial_state.dtype
        x32, *rest = (None if t is None else t.float() for t in (x, weight, bias, initial_state))
        assert x32 is not None and rest[0] is not None
        result = causal_conv1d(
            x32, rest[0], rest[1], activation, rest[2], return_final_state, seq_idx, cu_seqlens, layout=layout
        )
        if isinstance(result, tuple):
            return result[0].to(x.dtype), result[1].to(kept)
        return result.to(x.dtype)
    check.tensors(function, x=x, weight=weight, bias=bias, initial_state=initial_state)
    check.layout(function, layout, x)
    if layout == "BLC":
        x = x.transpose(1, 2)
    check.causal(function, x, weight, bias, activation, initial_state, return_final_state, seq_idx, cu_seqlens)
    ids, starts = _sequences(x, seq_idx, cu_seqlens)
    out, final = _OPS.causal(x, weight, bias, initial_state, ids, starts, _ACTIVATIONS[activation], return_final_state)
    if key is not None:
        file(key, x, weight, bias, Given(initial_state, ids, starts), out, _ACTIVATIONS[activation], return_final_state)
    out = out.transpose(1, 2) if layout == "BLC" else out
    return (out, final) if return_final_state else out


def causal_conv1d_update(
    x: torch.Tensor,
    conv_state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: torch.Tensor | None = None,
    conv_state_indices: torch.Tensor | None = None,
    num_accepted_tokens: torch.Tensor | None = None,
) -> torch.Tensor:
    """The next token of every sequence, or the next few. It changes `conv_state` in place, in one kernel.

    x [B, C] or [B, C, T], weight [C, K], bias [C]; out has the shape of x. conv_state [B, C, S], with S at least K - 1 and at
    least 1, holds the last S columns, the oldest first. The final state of `causal_conv1d(..., return_final_state=True)`
    serves.

    cache_seqlens int32 [B]: how many columns each sequence has had. The state is then a ring, whose column n % S is column n of
    the sequence. conv_state_indices int32 [B]: conv_state has more than B rows, and these are the rows of the sequences. A
    negative index gives zeros and changes nothing (the package's PAD_SLOT_ID is -1); no row may be named twice. On the CPU an
    index beyond the rows raises IndexError, and a row named twice or a negative number of columns raises ValueError. On CUDA
    values are not read back: such an index gives zeros and changes nothing, a negative number counts modulo S, and of two
    sequences in one row either may win.

    The next call takes back draft tokens that were rejected. A ring with S at least K - 1 + T goes back by smaller
    cache_seqlens: give the number of columns that remain, and those after them are overwritten. A window with S at least K - 2
    + T goes back by num_accepted_tokens int32 [B], from 1 to T: how many of the T tokens of the previous call, which had as
    many, remain. Its columns are then moved first, in a few more small launches. The meaning is that of vLLM's argument.

    Beside x of 16 bits, weight, bias and conv_state may be float32. A float32 conv_state is changed in place; one of 16 bits
    beside a float32 weight is converted and written back.

    conv_state counts as changed for autograd, as with torch's own in-place operators. Raises RuntimeError where two of its
    elements share memory (an expanded state), where it shares memory with x, weight or bias, or where it is an inference tensor
    outside inference mode.

    There are no derivatives: RuntimeError is raised where a gradient would be recorded, or where x, conv_state, weight or bias
    has a tangent. Other errors are those of `causal_conv1d`.
    """
    function = "causal_conv1d_update"
    key = None
    if num_accepted_tokens is None:
        key = update_key(x, conv_state, weight, bias, activation, cache_seqlens, conv_state_indices)
    if (step := recipes.known(key)) is not None:
        result = updated(step, x, conv_state, weight, bias, cache_seqlens, conv_state_indices)
        if result is not None:
            return result
    if check.is_mixed(x, weight, bias, conv_state):
        wide = None if bias is None else bias.float()
        state = conv_state.float()  # the state itself where it is float32
        rest = cache_seqlens, conv_state_indices, num_accepted_tokens
        y = causal_conv1d_update(x.float(), state, weight.float(), wide, activation, *rest)
        if state is not conv_state:
            conv_state.copy_(state)
        return y.to(x.dtype)
    check.tensors(function, x=x, conv_state=conv_state, weight=weight, bias=bias)
    check.update(function, x, conv_state, weight, bias, activation, cache_seqlens, conv_state_indices)
    if num_accepted_tokens is not None:
        check.accepted(function, x, conv_state, weight, num_accepted_tokens, cache_seqlens)
        if not torch.compiler.is_compiling():
            memory.may_be_written(function, "conv_state", conv_state, x=x, weight=weight, bias=bias)
            operands.here(function, conv_state, None, conv_state_indices)
        take_back(
            Rows(conv_state.detach(), x.shape[0], conv_state_indices), x.shape[2] - num_accepted_tokens.clamp(1, x.shape[2])
        )
    before = None if cache_seqlens is None else cache_seqlens.contiguous()
    entries = None if conv_state_indices is None else conv_state_indices.contiguous()
    tokens = x if x.dim() == 3 else x.unsqueeze(-1)
    out = _OPS.causal_update(tokens, conv_state, weight, bias, before, entries, _ACTIVATIONS[activation])
    if key is not None:
        file_update(key, tokens, conv_state, weight, bias, _ACTIVATIONS[activation], before, entries)
    return out if x.dim() == 3 else out.squeeze(-1)
