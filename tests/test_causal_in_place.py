"""`causal_conv1d_update` changes its state in place, and must do so as torch's own in-place operators do."""

import pytest
import torch

import tritonconv
from tritonconv import memory


def given(device, batch=2, channels=3, taps=4):
    torch.manual_seed(0)
    return torch.randn(batch, channels, device=device), torch.randn(channels, taps, device=device)


def test_only_one_op_changes_an_argument() -> None:
    """A second one needs what this file asks of the first."""
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("tritonconv::")}
    changing = {name for name in names if torch._C._get_schema(name, "").is_mutable}
    assert changing == {"tritonconv::causal_update"}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_state_that_a_backward_pass_wants_is_missed(mode, device, launched) -> None:
    """The state's version counts, also that of a view of it, and under a mode that records nothing."""
    x, w = given(device)
    for view in (lambda t: t, lambda t: t[:2], lambda t: t.mT.contiguous().mT):
        state, p = torch.randn(3, 3, 3, device=device)[:2], torch.ones((), device=device, requires_grad=True)
        held = view(state)
        y = (held * p).sum()
        before = held._version
        with mode():
            tritonconv.causal_conv1d_update(x, held, w)
        assert held._version == before + 1
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward()


def test_the_version_counts_in_a_compiled_graph(device, launched) -> None:
    torch._dynamo.reset()
    x, w = given(device)
    state, same = torch.randn(2, 2, 3, 3, device=device).clone()
    same.copy_(state)
    compiled = torch.compile(lambda *t: tritonconv.causal_conv1d_update(*t) + 1, backend="aot_eager", fullgraph=True)
    before = state._version
    assert torch.equal(compiled(x, state, w), tritonconv.causal_conv1d_update(x, same, w) + 1)
    assert torch.equal(state, same) and state._version > before


def test_inference_tensors(device, launches) -> None:
    x, w = given(device)
    with torch.inference_mode():
        state = torch.zeros(2, 3, 3, device=device)
        tritonconv.causal_conv1d_update(x, state, w)
        assert torch.equal(state[..., -1], x)
        copies = x.clone(), w.clone()
    seen = launches()
    for tensors in ((x, w), copies):
        with pytest.raises(RuntimeError, match="inference tensor conv_state outside InferenceMode"):
            tritonconv.causal_conv1d_update(tensors[0], state, tensors[1])
    assert launches() == seen


def test_states_that_require_a_gradient(device, launches) -> None:
    x, w = given(device)
    leaf = torch.zeros(2, 3, 3, device=device, requires_grad=True)
    for state in (leaf, leaf * 1):
        with pytest.raises(RuntimeError, match="has no gradients"):
            tritonconv.causal_conv1d_update(x, state, w)
    assert not launches()
    with torch.no_grad():
        tritonconv.causal_conv1d_update(x, leaf, w)
    assert torch.equal(leaf.detach()[..., -1], x)


@pytest.mark.parametrize(
    "shape, strides, overlaps",
    [
        ((2, 3, 3), (9, 3, 1), False),
        ((2, 3, 3), (1, 2, 6), False),
        ((2, 3, 3), (20, 1, 4), False),
        ((1, 3, 3), (0, 3, 1), False),
        ((2, 2, 3), (100, 3, 2), False),  # one row's columns between the other's: 0 2 4, 3 5 7
        ((2, 3, 3), (0, 3, 1), True),
        ((2, 3, 3), (9, 0, 1), True),
        ((2, 3, 3), (9, 1, 1), True),  # a window that slides
        ((2, 3, 3), (4, 3, 1), True),
        ((2, 2, 4), (100, 4, 2), True),  # 0 2 4 6, 4 6 8 10
        ((0, 3, 3), (0, 0, 0), False),
    ],
)
def test_a_state_is_not_twice_itself(shape, strides, overlaps, device, launches) -> None:
    state = torch.zeros(400, device=device).as_strided(shape, strides)
    x, w = torch.randn(shape[0], shape[1], device=device), torch.randn(shape[1], 3, device=device)
    offsets = [sum(i * s for i, s in zip(at, strides, strict=True)) for at in torch.ones(shape).nonzero().tolist()]
    assert overlaps == (len(set(offsets)) < len(offsets)) == memory.overlaps_itself(state)
    if overlaps:
        words = r"more than one element of the written-to tensor refers to a single memory location, in conv_state"
        with pytest.raises(RuntimeError, match=words):
            tritonconv.causal_conv1d_update(x, state, w)
        assert not launches()
    else:
        tritonconv.causal_conv1d_update(x, state, w)
        assert torch.equal(state[..., -1], x)


def test_what_is_read_shares_no_memory_with_the_state(device, launches) -> None:
    """Neighbours in one tensor are told from parts of the state."""
    room = torch.randn(2, 3, 8, device=device)
    state, x, w = room[..., :3], room[..., 3], torch.randn(3, 4, device=device)
    same, token = state.clone(), x.clone()
    assert torch.equal(tritonconv.causal_conv1d_update(x, state, w), tritonconv.causal_conv1d_update(token, same, w))
    assert torch.equal(state, same)
    seen = launches()
    for name, change in (
        ("x", {"x": state[..., 1]}),
        ("x", {"x": room[..., 1:3]}),
        ("weight", {"weight": room[1, :, 2:6]}),
        ("bias", {"bias": room[1, :, 0]}),
    ):
        with pytest.raises(
            RuntimeError, match=f"some elements of the input tensor {name} and the written-to tensor conv_state"
        ):
            tritonconv.causal_conv1d_update(**{"x": x, "conv_state": state, "weight": w} | change)
    assert launches() == seen


def test_overlap_is_that_of_the_elements() -> None:
    random = torch.Generator().manual_seed(0)
    room = torch.zeros(60)
    both = set()
    for _ in range(200):
        tensors = []
        for _ in range(2):
            shape, strides = torch.randint(1, 4, (3,), generator=random), torch.randint(0, 9, (3,), generator=random)
            tensors.append(room.as_strided(shape.tolist(), strides.tolist(), int(torch.randint(0, 12, (), generator=random))))
        one, other = ({int(at) for at in memory._places(t)} for t in tensors)
        assert memory.overlap(*tensors) == bool(one & other)
        assert memory.overlaps_itself(tensors[0]) == (len(one) < tensors[0].numel())
        both.add(bool(one & other))
    assert both == {True, False}


@pytest.mark.parametrize("which", ["state", "x", "weight"])
def test_views_that_are_their_memory_s_negative(which, device, launched) -> None:
    def negative(*shape):
        return torch.randn(*shape, dtype=torch.cfloat, device=device).conj().imag

    torch.manual_seed(0)
    shapes = {"x": (2, 4), "state": (2, 4, 2), "weight": (4, 3)}
    tensors = {name: negative(*s) if name == which else torch.randn(*s, device=device) for name, s in shapes.items()}
    assert tensors[which].is_neg()
    same = {name: t.resolve_neg().clone() for name, t in tensors.items()}
    got, want = (tritonconv.causal_conv1d_update(t["x"], t["state"], t["weight"]) for t in (tensors, same))
    assert torch.equal(got, want) and torch.equal(tensors["state"].resolve_neg(), same["state"])


def test_an_outer_vmap_is_refused(device) -> None:
    x, w = given(device)
    with pytest.raises(RuntimeError):
        torch.func.vmap(lambda x: tritonconv.causal_conv1d_update(x, torch.zeros(2, 3, 3, device=device), w))(x[None])
