"""Pools of states as inference engines keep them: prefill by index, and draft tokens that are taken back."""

import pytest
import torch

import tritonconv
from tritonconv import causal_conv1d, causal_conv1d_prefill, causal_conv1d_update

C, K, L = 5, 4, 7
X, W, B = torch.randn(3, C, L), torch.randn(C, K), torch.randn(C)


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("layout", ["BCL", "BLC"])
@pytest.mark.parametrize("known", [None, (True, False, True)])
@pytest.mark.parametrize("size", [K - 1, K + 2])
def test_rows_by_index(size, known, layout, launches):
    """Windows: what `causal_conv1d` answers of each row's last columns, and what it leaves."""
    pool, rows = torch.randn(6, C, size), ints(4, 0, 5)
    before, begun = pool.clone(), pool[rows.long(), :, size - K + 1 :]
    has = None if known is None else torch.tensor(known)
    if has is not None:
        begun = begun * has[:, None, None]
    x = X if layout == "BCL" else X.transpose(1, 2).contiguous()
    want, final = causal_conv1d(x, W, B, "silu", begun, True, layout=layout)
    counted = launches()
    y = causal_conv1d_prefill(x, pool, W, B, "silu", None, rows, has, layout=layout)
    assert launches() - counted == {"causal": 1, "causal final": 1}
    assert torch.equal(y, want) and torch.equal(pool[rows.long(), :, size - K + 1 :], final)
    assert torch.equal(pool[[1, 2, 3]], before[[1, 2, 3]]) and torch.equal(
        pool[:, :, : size - K + 1], before[:, :, : size - K + 1]
    )


@pytest.mark.parametrize("rows", [(4, -1, 5), (-1, -1, -1), (-1, 2, -7)])
def test_padded_sequences_leave_nothing(rows, launched):
    pool = torch.randn(6, C, K - 1)
    before = pool.clone()
    y = causal_conv1d_prefill(X, pool, W, B, "silu", conv_state_indices=ints(*rows))
    for i, row in enumerate(rows):
        begun = before[row][None] if row >= 0 else torch.zeros(1, C, K - 1)
        want, final = causal_conv1d(X[i : i + 1], W, B, "silu", begun, True)
        close(y[i : i + 1], want)
        if row >= 0:
            assert torch.equal(pool[row], final[0])
    others = [row for row in range(6) if row not in rows]
    assert torch.equal(pool[others], before[others])


def test_packed_sequences_and_an_empty_one(launched):
    pool, rows, starts = torch.randn(6, C, K - 1), ints(2, 5, 0), ints(0, 5, 5, 7)
    begun = pool[rows.long()].clone()
    x = X[:1]
    want, final = causal_conv1d(x, W, B, None, begun, True, cu_seqlens=starts)
    y = causal_conv1d_prefill(x, pool, W, B, conv_state_indices=rows, cu_seqlens=starts)
    assert torch.equal(y, want) and torch.equal(pool[rows.long()], final) and torch.equal(pool[5], begun[1])


def test_prefill_in_parts_then_tokens_in_a_ring(launched):
    """A ring of 6 columns and sequences of other lengths: chunks, then tokens, are the whole."""
    whole = causal_conv1d(X, W, B, "silu")
    pool, rows, had = torch.full((4, C, 6), 9.0), ints(3, 1, 0), ints(0, 0, 0)
    has = torch.zeros(3, dtype=torch.bool)
    parts = [causal_conv1d_prefill(X[..., :2], pool, W, B, "silu", had, rows, has)]
    parts.append(causal_conv1d_prefill(X[..., 2:5], pool, W, B, "silu", had + 2, rows))
    parts += [causal_conv1d_update(X[..., 5:], pool, W, B, "silu", had + 5, rows)]
    close(torch.cat(parts, 2), whole)
    assert torch.equal(pool[2], torch.full((C, 6), 9.0))


def verified(pool, rows, update):
    """Drafts of three tokens, of which 1, 3 and 2 stand, then those that follow, which must not see the others."""
    stand = (1, 3, 2)
    wrong = X[..., 3:6].clone()
    for i, count in enumerate(stand):
        wrong[i, :, count:] = 99.0
    update(0, wrong)
    follow = torch.stack([X[i, :, 3 + count :][:, :1] for i, count in enumerate(stand)])
    follow = torch.cat([follow, torch.full((3, C, 2), 7.0)], 2)
    y = update(stand, follow)[..., :1]
    want = causal_conv1d(X, W, B, "silu")
    close(y, torch.stack([want[i, :, 3 + count :][:, :1] for i, count in enumerate(stand)]))


def test_drafts_in_a_ring_are_taken_back_by_smaller_counts(launched):
    pool, rows = torch.zeros(4, C, K - 1 + 3), ints(3, 1, 0)
    causal_conv1d_prefill(X[..., :3], pool, W, B, "silu", ints(0, 0, 0), rows)

    def update(stand, tokens):
        had = ints(3, 3, 3) + (ints(*stand) if stand else 0)
        return causal_conv1d_update(tokens, pool, W, B, "silu", had.int(), rows)

    verified(pool, rows, update)


@pytest.mark.parametrize("size", [K - 2 + 3, K + 5])
@pytest.mark.parametrize("padded", [False, True])
def test_drafts_in_a_window_are_taken_back_by_what_stands(size, padded, launched):
    """As vLLM lays them out: K - 2 + T columns, read from number of those that stand - 1 on."""
    pool, rows = torch.zeros(5, C, size), ints(3, 1, 0)
    causal_conv1d_prefill(X[..., :3], pool, W, B, "silu", None, rows)
    untouched = pool[[2, 4]].clone()

    def update(stand, tokens):
        stands = ints(*stand) if stand else None
        if not padded:
            return causal_conv1d_update(tokens, pool, W, B, "silu", None, rows, stands)
        more = torch.cat([torch.full_like(tokens[:1], 5.0), tokens]), ints(-1, *rows.tolist())
        stands = None if stands is None else torch.cat([ints(1), stands])
        return causal_conv1d_update(more[0], pool, W, B, "silu", None, more[1], stands)[1:]

    verified(pool, rows, update)
    assert torch.equal(pool[[2, 4]], untouched)


@pytest.mark.parametrize("pooled", [torch.float32, torch.bfloat16])
def test_states_of_another_dtype(pooled, launched):
    pool, x = torch.randn(4, C, K - 1).to(pooled), X.bfloat16()
    wide, rows = pool.double(), ints(2, 0, 3)
    y = causal_conv1d_prefill(x, pool, W, B, "silu", conv_state_indices=rows)
    want = causal_conv1d_prefill(x.double(), wide, W.double(), B.double(), "silu", conv_state_indices=rows)
    assert y.dtype == torch.bfloat16 and pool.dtype == pooled and torch.equal(pool.double(), wide)
    torch.testing.assert_close(y.double(), want, rtol=1e-2, atol=1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        causal_conv1d_prefill(X, pool, W, B, "silu", conv_state_indices=rows)
    assert pool.dtype == pooled


def test_gradients_of_all_but_the_pool_and_its_version(launched):
    pool, x, w = torch.randn(3, C, K - 1), X.clone().requires_grad_(), W.clone().requires_grad_()
    begun, version = pool.clone(), pool._version
    causal_conv1d_prefill(x, pool, w, B, "silu").square().sum().backward()
    assert pool._version > version and not pool.requires_grad
    again, v = X.clone().requires_grad_(), W.clone().requires_grad_()
    causal_conv1d(again, v, B, "silu", begun).square().sum().backward()
    assert torch.equal(x.grad, again.grad) and torch.equal(w.grad, v.grad)


def test_compiled(launched):
    torch._dynamo.reset()
    pool, rows = torch.randn(6, C, K + 1), ints(4, -1, 5)
    other = pool.clone()
    drafts = torch.zeros(6, C, K + 1)
    step = torch.compile(
        lambda x, p: causal_conv1d_update(x, p, W, B, "silu", None, rows, ints(1, 1, 2)), backend="aot_eager", fullgraph=True
    )
    close(step(X[..., :3], drafts), causal_conv1d_update(X[..., :3], torch.zeros_like(drafts), W, B, "silu", None, rows))
    run = torch.compile(lambda x, p: causal_conv1d_prefill(x, p, W, B, "silu", None, rows), backend="aot_eager", fullgraph=True)
    close(run(X, pool), causal_conv1d_prefill(X, other, W, B, "silu", None, rows))
    assert torch.equal(pool, other)
    torch._dynamo.reset()


POOL = torch.zeros(6, C, K - 1)
ROWS = {"conv_state_indices": ints(0, 1, 2)}
REFUSED = [
    ({"conv_state": 3}, TypeError, "argument 'conv_state' must be a Tensor, got int"),
    ({"conv_state": POOL[:, :, 1:]}, RuntimeError, r"expected conv_state of shape \[any number of rows, 5, at least 3\]"),
    ({"conv_state_indices": None}, RuntimeError, r"expected conv_state of shape \[3 rows, 5, at least 3\], got conv_state \[6"),
    ({"conv_state_indices": ints(0, 1)}, RuntimeError, r"expected conv_state_indices of shape \[3\]"),
    ({"conv_state_indices": ints(0, 1, 6)}, IndexError, r"causal_conv1d_prefill\(\): conv_state_indices must lie below 6"),
    ({"conv_state_indices": ints(0, 1, 1)}, ValueError, "may name a row of conv_state once, got 1"),
    ({"cache_seqlens": ints(0, -1, 1)}, ValueError, "cache_seqlens must be at least 0"),
    ({"has_initial_state": ints(0, 1, 1)}, TypeError, "'has_initial_state' must be a Tensor of torch.bool, got torch.int32"),
    ({"has_initial_state": torch.ones(2, dtype=torch.bool)}, RuntimeError, r"expected has_initial_state of shape \[3\]"),
    ({"conv_state": POOL[:1].expand(6, C, K - 1)}, RuntimeError, "more than one element of the written-to tensor"),
    ({"conv_state": POOL.double()}, RuntimeError, "conv_state"),
    ({"layout": "LBC"}, ValueError, "layout must be 'BCL' or 'BLC'"),
    ({"activation": "relu"}, ValueError, "activation must be None, 'silu' or 'swish'"),
    ({"weight": W[0]}, RuntimeError, r"expected weight of 2 axes \[C, K\]"),
    ({"cu_seqlens": [0, 7]}, TypeError, "argument 'cu_seqlens' must be a Tensor"),
]


@pytest.mark.parametrize(
    "change, kind, words", REFUSED, ids=lambda value: next(iter(value)) if isinstance(value, dict) else None
)
def test_bad_input_is_named_before_anything_runs(change, kind, words, launches):
    given = {"x": X, "conv_state": POOL, "weight": W, **ROWS} | change
    with pytest.raises(kind, match=words):
        causal_conv1d_prefill(**given)
    assert not launches() and not POOL.any()


def test_what_cannot_be_taken_back():
    pool, tokens = torch.zeros(3, C, K - 1), X[..., :3]
    for change, kind, words in (
        ({}, RuntimeError, r"conv_state of at least K - 2 \+ T columns"),
        ({"num_accepted_tokens": ints(1, 1)}, RuntimeError, r"expected num_accepted_tokens of shape \[3\]"),
        ({"num_accepted_tokens": [1]}, TypeError, "argument 'num_accepted_tokens' must be a Tensor"),
        ({"cache_seqlens": ints(0, 0, 0)}, RuntimeError, "num_accepted_tokens does not go with cache_seqlens"),
    ):
        with pytest.raises(kind, match=words):
            causal_conv1d_update(
                **{"x": tokens, "conv_state": pool, "weight": W, "num_accepted_tokens": ints(1, 1, 1)} | change
            )
    wide = torch.ones(3, C, K + 1)
    wide[..., 0] = 2
    before = wide.clone()
    with pytest.raises(IndexError, match="conv_state_indices must lie below 3"):
        causal_conv1d_update(tokens, wide, W, None, None, None, ints(0, 1, 7), ints(1, 1, 1))
    assert not pool.any() and torch.equal(wide, before) and "causal_conv1d_prefill" in tritonconv.__all__
