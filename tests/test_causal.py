"""The causal convolution of sequences against its definition, one column at a time in float64."""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sequences import Example, assert_close, walked
from torch.utils.flop_counter import FlopCounterMode

import tritonconv
from bench.tolerance import UNIT
from costmodel import causal as model
from tritonconv.causal import cpu as causal_cpu

OPS = torch.ops.tritonconv
MODES = ("plain", "state", "packed", "packed state", "ids")


@pytest.mark.parametrize("last", [True, False], ids=["channels-last", "contiguous"])
@pytest.mark.parametrize("mode", MODES)
def test_results_and_gradients_are_the_definition(mode, last, device, launched):
    example = Example(mode, 2, 5, 24, 4, last, device=device)
    activation = "silu" if last == (mode in ("plain", "packed", "packed state")) else None
    assert_close(example.library(activation), example.by_definition(activation), 1e-14)


@pytest.mark.parametrize(
    "taps, last, mode, activation",
    [
        (1, True, "state", "silu"),
        (2, False, "packed state", "silu"),
        (7, True, "packed state", None),
        (16, False, "state", "silu"),
    ],
)
def test_any_number_of_taps(taps, last, mode, activation, device, launched):
    example = Example(mode, 2, 3, 21, taps, last, device=device)
    assert_close(example.library(activation), example.by_definition(activation), 1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("last", [True, False], ids=["channels-last", "contiguous"])
def test_one_rounding(dtype, last, device, launched):
    """The accumulator's error lies far below half's rounding; in float32 a sum of 48 columns may cost a few."""
    example = Example("state", 2, 16, 24, 4, last, dtype, device)
    got = example.library("silu")
    assert all(value.dtype == dtype for value in got.values())
    assert_close(got, example.by_definition("silu"), 1.01 * UNIT[dtype] if dtype != torch.float32 else 16 * UNIT[dtype])


def test_by_hand(device, launched):
    x = torch.tensor([[[1.0, 2.0, 3.0], [1.0, 0.0, 0.0]]], device=device)
    w = torch.tensor([[10.0, 1.0], [0.0, 2.0]], device=device)
    state = torch.tensor([[[5.0], [7.0]]], device=device)
    out, final = tritonconv.causal_conv1d(x, w, torch.tensor([0.5, 0.0], device=device), None, state, True)
    assert out.tolist() == [[[51.5, 12.5, 23.5], [2.0, 0.0, 0.0]]]
    assert final.tolist() == [[[3.0], [0.0]]]
    y = tritonconv.causal_conv1d_update(torch.tensor([[4.0, 1.0]], device=device), final, w, None)
    assert y.tolist() == [[34.0, 2.0]] and final.tolist() == [[[4.0], [1.0]]]


@pytest.mark.parametrize("mode", MODES)
def test_torch_on_the_cpu_is_the_definition_too(mode):
    """What a CPU tensor gets outside the interpreter."""
    example = Example(mode, 2, 5, 24, 4)
    activation = None if mode == "plain" else "silu"
    want = example.by_definition(activation)
    dfinal = None if mode == "ids" else example.dfinal
    tensors = example.x, example.w, example.b
    got = {"out": causal_cpu.forward(*tensors, activation or "", example.given)}
    got["final"] = None if mode == "ids" else causal_cpu.final_state(example.x, 4, example.given)
    wants = True, True, example.state is not None
    dx, dwb, dstate = causal_cpu.backward(example.dy, *tensors, dfinal, activation or "", example.given, wants)
    got |= {"dx": dx, "dw": dwb[:, :4], "db": dwb[:, 4]} | ({"dstate": dstate} if wants[2] else {})
    assert_close(got, want, 1e-14)


@pytest.mark.parametrize("length", [0, 1, 2])
def test_sequences_shorter_than_the_filter(length, device):
    """The final state mixes the old one with x, and hands its gradient on."""
    example = Example("state", 2, 3, length, 5, device=device)
    got = example.library("silu")
    _, final = walked(example.x.cpu(), example.w.cpu(), example.b.cpu(), "silu", example.state.cpu())
    assert torch.equal(got["final"].cpu(), final) and got["out"].shape == example.x.shape
    if length:
        assert_close(got, example.by_definition("silu"), 1e-14)
    else:
        assert torch.equal(got["dstate"], example.dfinal) and not got["dw"].any() and not got["db"].any()


def test_an_empty_batch(device):
    example = Example("state", 0, 3, 8, 4, device=device)
    got = example.library(None)
    assert got["out"].shape == (0, 3, 8) and got["final"].shape == (0, 3, 3) and got["dstate"].shape == (0, 3, 3)
    assert not got["dw"].any()


@pytest.mark.parametrize("kind", ["expanded", "sliced", "permuted"])
def test_strides_of_x_and_of_the_gradient(kind, device, launched):
    example = Example("plain", 2, 4, 16, 3, False, device=device)
    if kind == "expanded":
        example.dy = example.dy[:1, :1, :1].expand(2, 4, 16)
    elif kind == "sliced":  # every second column, odd offset, NaN between
        for name in ("x", "dy"):
            room = torch.full((2, 4, 40), float("nan"), dtype=torch.float64, device=device)
            setattr(example, name, room[..., 3:35:2].copy_(getattr(example, name)))
    else:
        example.x, example.dy = (t.permute(2, 1, 0).contiguous().permute(2, 1, 0) for t in (example.x, example.dy))
    assert_close(example.library("silu"), example.by_definition("silu"), 1e-14)


def test_only_the_gradients_asked_for(device, launches):
    example = Example("state", 2, 3, 8, 4, device=device)
    state, x = example.state.requires_grad_(), example.x.requires_grad_()
    _, final = tritonconv.causal_conv1d(x, example.w, None, None, state, True)
    dx, dstate = torch.autograd.grad(final.sum(), (x, state))
    assert torch.equal(dx[0, 0].cpu(), torch.tensor([0.0] * 5 + [1.0] * 3, dtype=torch.float64)) and not dstate.any()
    before = launches()["causal backward"]
    out = tritonconv.causal_conv1d(x.detach(), example.w, None, None, state)
    (dstate,) = torch.autograd.grad(out.sum(), state)
    assert launches()["causal backward"] == before == 1
    assert torch.allclose(dstate[..., -1].cpu(), example.w[:, :-1].sum(1).cpu().expand(2, 3))


def test_gradcheck(device):
    example = Example("state", 1, 2, 3, 3, False, device=device)
    leaves = [t.requires_grad_() for t in (example.x, example.w, example.b, example.state)]
    call = lambda x, w, b, state: tritonconv.causal_conv1d(x, w, b, "silu", state, True)  # noqa: E731
    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(cuts=st.lists(st.integers(0, 12), max_size=4), last=st.booleans(), taps=st.sampled_from([2, 4, 6]))
def test_chunks_that_hand_the_state_on_are_the_whole(cuts, last, taps, device):
    example = Example("state", 2, 3, 12, taps, last, torch.float32, device)
    whole, final = tritonconv.causal_conv1d(example.x, example.w, example.b, "silu", example.state, True)
    state, pieces, edges = example.state, [], [0, *sorted(cuts), 12]
    for first, end in itertools.pairwise(edges):
        piece, state = tritonconv.causal_conv1d(example.x[..., first:end], example.w, example.b, "silu", state, True)
        pieces.append(piece)
    assert torch.equal(torch.cat(pieces, 2), whole) and torch.equal(state, final)


@pytest.mark.parametrize("ring", [False, True], ids=["window", "ring"])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("update", ["kernel", "torch"])
def test_single_tokens_are_the_whole(ring, size, update, device):
    """Tokens one and three at a time, states that wrap around, in rows of a larger tensor; one sequence of nobody."""
    example = Example("plain", 2, 4, 8, 4, device=device)
    whole, _ = walked(example.x.cpu(), example.w.cpu(), example.b.cpu(), "silu")
    states, rows = torch.full((4, 4, size), 9.0, dtype=torch.float64, device=device), [2, -1, 0]
    states[[2, 0]] = 0
    x, t = example.x[[0, 0, 1]], 0
    for tokens in (1, 3, 1, 1, 2):
        had = torch.full((3,), t, dtype=torch.int32, device=device) if ring else None
        entries = torch.tensor(rows, dtype=torch.int32, device=device)
        piece = x[..., t : t + tokens]
        if update == "kernel":
            arguments = example.w, example.b, "swish", had, entries
            y = tritonconv.causal_conv1d_update(piece[..., 0] if tokens == 1 else piece, states, *arguments)
            y = y.unsqueeze(-1) if tokens == 1 else y
        else:
            y = causal_cpu.update(piece, states, example.w, example.b, "silu", had, entries)
        assert torch.allclose(y[[0, 2]].cpu(), whole[..., t : t + tokens], rtol=1e-13, atol=1e-14) and not y[1].any()
        t += tokens
    assert (states[[1, 3]] == 9).all(), "the state of another sequence"
    order = [(8 + i) % size for i in range(size)] if ring else list(range(size))
    assert torch.equal(states[[2, 0]][..., order], example.x[..., 8 - size :])


def test_no_copy_and_the_layout_of_x(device, launched):
    x = torch.randn(2, 16, 24, device=device, requires_grad=True)  # [B, L, C]
    w = torch.randn(24, 4, device=device)
    out, final = tritonconv.causal_conv1d(x.transpose(1, 2), w, None, "silu", None, True)
    assert out.stride() == (16 * 24, 1, 24) and final.stride() == (3 * 24, 1, 24)
    same, _ = tritonconv.causal_conv1d(x, w, None, "silu", None, True, layout="BLC")
    assert same.is_contiguous() and torch.equal(same.transpose(1, 2), out)
    (dx,) = torch.autograd.grad(same.sum(), x)
    assert dx.is_contiguous()
    plain = tritonconv.causal_conv1d(x.transpose(1, 2).contiguous(), w)
    assert plain.is_contiguous()


def test_columns_behind_the_last_sequence_are_zero(device):
    x, w = torch.randn(1, 2, 8, device=device), torch.randn(2, 3, device=device)
    bounds = torch.tensor([0, 3, 5], dtype=torch.int32, device=device)
    out = tritonconv.causal_conv1d(x, w, torch.ones(2, device=device), None, cu_seqlens=bounds)
    assert not out[..., 5:].any() and out[..., :5].all()


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_an_infinity_stays_in_its_sequence(device):
    x, w = torch.randn(1, 2, 8, device=device), torch.randn(2, 3, device=device)
    x[..., 3] = float("inf")
    bounds = torch.tensor([0, 4, 8], dtype=torch.int32, device=device)
    out = tritonconv.causal_conv1d(x, w, None, "silu", cu_seqlens=bounds)
    assert out[..., :3].isfinite().all() and out[..., 4:].isfinite().all()


def test_the_same_bits_twice(device):
    example = Example("packed state", 1, 5, 40, 4, dtype=torch.float32, device=device)
    once, again = example.library("silu"), example.library("silu")
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_compiles_whole(device):
    example = Example("packed state", 1, 3, 12, 4, dtype=torch.float32, device=device)

    def call(x, w, b, state):
        out, final = tritonconv.causal_conv1d(x, w, b, "silu", state, True, None, example.cu_seqlens)
        y = tritonconv.causal_conv1d_update(x.detach()[:, :, 0], final[:1].detach().clone(), w.detach(), None)
        return out, final, y

    leaves = [t.requires_grad_() for t in (example.x, example.w, example.b, example.state)]
    results = []
    for function in (call, torch.compile(call, fullgraph=True, backend="aot_eager")):
        out, final, y = function(*leaves)
        results.append([out, final, y, *torch.autograd.grad(out.sum() + final.sum(), leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_ops_keep_their_promises(device):
    example = Example("packed state", 1, 3, 12, 4, dtype=torch.float32, device=device)
    leaves = [t.requires_grad_() for t in (example.x, example.w, example.b, example.state)]
    torch.library.opcheck(OPS.causal.default, (*leaves, example.packed_ids(), example.cu_seqlens, "silu", True))
    plain = [t.detach() for t in leaves]
    arguments = (example.dy, *plain, example.packed_ids(), example.cu_seqlens, None, "silu", True, True, True)
    torch.library.opcheck(OPS.causal_backward.default, arguments)
    torch.library.opcheck(
        OPS.causal_update.default, (example.x[..., :2].detach(), example.state[:1].detach().clone(), plain[1])
    )


def test_autocast_and_flops(device):
    example = Example("state", 2, 4, 8, 4, dtype=torch.float32, device=device)
    with torch.autocast(device, torch.bfloat16):
        out, final = tritonconv.causal_conv1d(example.x, example.w.double().float(), None, None, example.state, True)
        held = final.float()
        y = tritonconv.causal_conv1d_update(example.x[..., 0], held, example.w)
    assert out.dtype == final.dtype == torch.bfloat16 and y.dtype == held.dtype == torch.float32
    x = example.x.requires_grad_()
    with FlopCounterMode(display=False) as counted:
        tritonconv.causal_conv1d(x, example.w.requires_grad_()).sum().backward()
    assert (
        counted.get_total_flops() == 3 * 2 * 2 * 4 * 8 * 4 == model.flops(2, 4, 8, 4) + model.flops(2, 4, 8, 4, backward=True)
    )


X, W = torch.zeros(2, 4, 8), torch.zeros(4, 3)
LIST = torch.tensor([0, 8], dtype=torch.int32)


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"x": "x"}, TypeError, "'x' must be a Tensor, got str"),
        ({"x": X[0]}, RuntimeError, r"x of 3 axes \(BCL\), got x \[4, 8\]"),
        ({"weight": W[:3]}, RuntimeError, r"weight of 4 channels.* got weight \[3, 3\]"),
        ({"weight": torch.zeros(4, 17)}, RuntimeError, "1 to 16 taps, got 17"),
        ({"weight": W.double()}, RuntimeError, "same dtype, got x torch.float32 and weight torch.float64"),
        ({"bias": torch.zeros(3)}, RuntimeError, r"bias of shape \[4\]"),
        ({"activation": "gelu"}, ValueError, "None, 'silu' or 'swish', got activation='gelu'"),
        ({"layout": "NLC"}, ValueError, "'BCL' or 'BLC', got layout='NLC'"),
        ({"initial_state": torch.zeros(2, 4, 3)}, RuntimeError, r"initial_state of shape \[2, 4, 2\]"),
        ({"return_final_state": 1}, TypeError, "'return_final_state' must be bool"),
        ({"seq_idx": torch.zeros(2, 8)}, RuntimeError, "seq_idx of dtype torch.int32, got torch.float32"),
        ({"seq_idx": torch.zeros(2, 7, dtype=torch.int32)}, RuntimeError, r"seq_idx of shape \[2, 8\]"),
        (
            {"seq_idx": torch.zeros(2, 8, dtype=torch.int32), "return_final_state": True},
            RuntimeError,
            "return_final_state does not go with seq_idx",
        ),
        ({"cu_seqlens": LIST}, RuntimeError, r"x of batch 1 .* got x \[2, 4, 8\]"),
        ({"x": X[:1], "cu_seqlens": LIST, "initial_state": torch.zeros(2, 4, 2)}, RuntimeError, r"of shape \[1, 4, 2\]"),
    ],
)
def test_errors_name_the_argument(change, error, words, launches):
    with pytest.raises(error, match=words):
        tritonconv.causal_conv1d(**{"x": X, "weight": W} | change)
    assert not launches()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"x": X[0, 0]}, r"x of 2 axes \(B, C\) or 3"),
        ({"conv_state": torch.zeros(2, 4, 1)}, r"conv_state of shape \[2, 4, at least 2\], got conv_state \[2, 4, 1\]"),
        ({"conv_state": torch.zeros(3, 4, 2)}, r"conv_state of shape \[2, 4"),
        ({"cache_seqlens": torch.zeros(2)}, "cache_seqlens of dtype torch.int32"),
        ({"conv_state_indices": LIST[:1]}, r"conv_state_indices of shape \[2\]"),
        ({"weight": W.clone().requires_grad_()}, r"has no gradients.* torch.no_grad\(\)"),
    ],
)
def test_errors_of_an_update(change, words, launches):
    arguments = {"x": X[..., 0], "conv_state": torch.zeros(2, 4, 2), "weight": W}
    with pytest.raises(RuntimeError, match=words):
        tritonconv.causal_conv1d_update(**arguments | change)
    assert not launches()


def test_the_cost_of_a_call():
    """Mamba's layer: two tensors of 67 MB through DRAM, so that time and the roofline agree; the backward pass moves three."""
    forward, backward = (model.forecast(8, 2048, 2048, 4, backward=b) for b in (False, True))
    tensor = 2 * 8 * 2048 * 2048
    assert 2 * tensor < forward.bytes < 2.01 * tensor and forward.bound == "DRAM"
    assert 3 * tensor < backward.bytes < 3.3 * tensor and backward.seconds > forward.seconds
    assert forward.seconds > forward.bytes / 3.35e12
    problem = model.problem_of(8, 2048, 2048, 4)
    assert problem.output_size == (2048,) and problem.flops == model.flops(8, 2048, 2048, 4)


def test_explain_says_what_a_call_takes(device, launches):
    x, w = torch.zeros(2, 16, 24, device=device), torch.zeros(24, 4, device=device)
    found = tritonconv.explain(tritonconv.causal_conv1d, x, w, activation="silu", layout="BLC")
    assert list(found.plans) == ["forward", "backward"] and found.problem == model.problem_of(2, 24, 16, 4)
    assert "programs of" in str(found) and "partial sums of every tap and bias" in str(found) and not launches()
    with pytest.raises(RuntimeError, match="weight of 16 channels"):
        tritonconv.explain(tritonconv.causal_conv1d, x, w)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("last", [True, False], ids=["channels-last", "contiguous"])
@pytest.mark.parametrize("mode", MODES)
def test_on_a_gpu(mode, last, dtype, device, launched):
    example = Example(mode, 2, 328, 1000, 4, last, dtype, device)
    rounding = 1.01 * UNIT[dtype] if dtype != torch.float32 else 64 * UNIT[dtype]
    assert_close(example.library("silu"), example.by_definition("silu"), rounding)


@pytest.mark.gpu
def test_decoding_on_a_gpu(device, launched):
    example = Example("plain", 64, 1000, 12, 4, dtype=torch.bfloat16, device=device)
    whole = tritonconv.causal_conv1d(example.x, example.w, example.b, "silu")
    _, state = tritonconv.causal_conv1d(example.x[..., :5], example.w, example.b, "silu", None, True)
    for t in range(5, 12):
        y = tritonconv.causal_conv1d_update(example.x[..., t], state, example.w, example.b, "silu")
        assert torch.equal(y, whole[..., t])
