"""Where the causal kernels may reach: 32 or 64 bits, and indices that a caller may have wrong."""

import pytest
import torch
import triton.language as tl

import tritonconv
from costmodel import causal as model
from tritonconv import host
from tritonconv.causal import launch
from tritonconv.causal.launch import Given
from tritonconv.launch import device_model

LONG = 2**20 - 8


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(
    "shape, strides, index",
    [
        ((2, 1024, 512), (2**19, 1, 1024), tl.int32),
        ((2**15, 2048, 2048), (2**22, 1, 2048), tl.int32),  # 2^37 elements, but an image is near: its base has 64 bits
        ((2, 1024, LONG), (0, 1, 2048), tl.int64),  # only the masked columns behind the row lie beyond 2^31
        ((1, 2**11, 2**20), (2**31, 1, 2**11), tl.int64),
        ((1, 2**11, 2**20), (2**31, 2**20, 1), tl.int64),
    ],
)
def test_which_offsets_are_long(shape, strides, index, backward) -> None:
    """The images are x, the result and dy; weights are read in 64 bits always."""
    x, y = (shape, strides), (shape, launch.strides_like(shape, torch.empty_strided(shape, strides, device="meta")))
    problem, w = model.problem_of(*shape, 4), ((shape[1], 1, 4), (2**40, 1, 1))
    made = launch.prepare(problem, torch.float32, device_model(-1), x, w, y, y if backward else None, 1, "", (False,) * 3)
    assert made.main.constants["INDEX"] == index


WRONG = -(2**31), -7, -1, 0, 3, 4, 8, 9, 50, 2**31 - 1
FAR = 1e9  # what lies around every tensor of a test: no result may hold it, and no kernel may change it


class Room:
    """Tensors with a margin of FAR around them, in memory of their own."""

    def __init__(self, device: str) -> None:
        self.device, self.rooms = device, []

    def put(self, *shape: int) -> torch.Tensor:
        return self.around(torch.randn(shape, generator=torch.Generator().manual_seed(len(self.rooms))))

    def around(self, t: torch.Tensor, margin: int = 64) -> torch.Tensor:
        memory = torch.full((t.numel() + 2 * margin,), FAR if t.is_floating_point() else 2**31 - 1, dtype=t.dtype)
        memory = memory.to(self.device)
        self.rooms.append((memory, margin))
        return memory[margin : margin + t.numel()].view(t.shape).copy_(t)

    def untouched(self) -> bool:
        edges = [torch.cat([room[:margin], room[-margin:]]) for room, margin in self.rooms]
        return all(bool((e == (FAR if e.is_floating_point() else 2**31 - 1)).all()) for e in edges)


def numbers(*values: int, device: str = "cpu") -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


@pytest.fixture
def room(device, monkeypatch, launched) -> Room:
    """A room, results of the launches in it too."""
    made = Room(device)

    def allocate(shape, like):
        assert launch.strides_like(shape, like) == made.put(*shape).stride()
        return made.rooms[-1][0][64:-64].view(shape).fill_(0)

    monkeypatch.setattr(launch, "allocate", allocate)
    return made


@pytest.mark.parametrize("bad", WRONG)
@pytest.mark.parametrize("starts", ["first", "inner", "last"])
def test_kernels_stay_inside_whatever_cu_seqlens_say(starts, bad, room) -> None:
    """Below the checks, as on CUDA: nothing outside is read into a result or changed."""
    x, w, dy = room.put(1, 2, 8), room.put(2, 4), room.put(1, 2, 8)
    state, dfinal = room.put(3, 2, 3), room.put(3, 2, 3)
    values = [0, 3, 5, 8]
    values[{"first": 0, "inner": 1, "last": 3}[starts]] = bad
    bounds = room.around(numbers(*values))
    for ids in ([0, 0, 0, 1, 1, 2, 2, 2], [2, 2, 2, 2, 0, 0, 1, bad]):
        given = Given(state, room.around(numbers(*ids).view(1, 8)), bounds)
        results = [launch.forward(x, w, None, "silu", given), launch.final_state(x, 4, given)]
        results += launch.backward(dy, x, w, None, dfinal, "silu", given, (True, True, True))
        assert all(bool(t.isfinite().all()) and float(t.abs().max()) < 1e4 for t in results) and room.untouched()


@pytest.mark.parametrize("bad", WRONG)
def test_kernels_stay_inside_whatever_an_update_is_told(bad, room) -> None:
    x, w, states = room.put(2, 3, 2), room.put(3, 4), room.put(4, 3, 3)
    kept = states.clone()
    y = launch.update(x, states, w, None, "", None, room.around(numbers(1, bad)))
    reached = {1, bad} & set(range(4))
    for row in range(4):
        assert torch.equal(states[row], kept[row]) == (row not in reached)
    assert y[0].any() and bool(y[1].any()) == (0 <= bad < 4)
    states.copy_(kept)
    again = launch.update(x, states, w, None, "", room.around(numbers(0, bad)), room.around(numbers(2, 0)))
    modulo = kept.clone()
    want = launch.update(x, modulo, w, None, "", room.around(numbers(0, bad % 3)), room.around(numbers(2, 0)))
    assert torch.equal(again, want) and torch.equal(states, modulo)
    assert float(again.abs().max()) < 1e4 and room.untouched()


def reads_values(device: str) -> None:
    if device != "cpu":
        pytest.skip("values of a GPU are not read back")


@pytest.mark.parametrize(
    "bounds, words",
    [
        ((1, 8), r"cu_seqlens must begin with 0, got cu_seqlens\[0\] = 1"),
        ((-1, 8), r"cu_seqlens must begin with 0, got cu_seqlens\[0\] = -1"),
        ((0, 5, 3, 8), r"cu_seqlens must not fall, got cu_seqlens\[1\] = 5 and cu_seqlens\[2\] = 3"),
        ((0, 5, 9), r"cu_seqlens must end at 8, the columns of x, or before, got cu_seqlens\[2\] = 9"),
    ],
)
def test_values_of_cu_seqlens(bounds, words, device, launches) -> None:
    reads_values(device)
    x, w = torch.randn(1, 2, 8), torch.randn(2, 4)
    with pytest.raises(ValueError, match=words):
        tritonconv.causal_conv1d(x, w, cu_seqlens=numbers(*bounds))
    ids = torch.zeros(1, 8, dtype=torch.int32)
    with pytest.raises(ValueError, match=words):
        torch.ops.tritonconv.causal_backward(x, x, w, None, None, ids, numbers(*bounds))
    with pytest.raises(IndexError, match=r"ids must lie below 1, .* got 1"):
        torch.ops.tritonconv.causal(x, w, None, None, ids + 1, numbers(0, 8))
    assert not launches()


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"conv_state_indices": numbers(0, 3)}, IndexError, r"must lie below 3, .* got conv_state_indices\[1\] = 3"),
        ({"conv_state_indices": numbers(2**31 - 1, 0)}, IndexError, r"got conv_state_indices\[0\] = 2147483647"),
        ({"conv_state_indices": numbers(2, 2)}, ValueError, r"once, got 2 as conv_state_indices\[0\] and \[1\]"),
        ({"cache_seqlens": numbers(4, -2), "conv_state_indices": numbers(2, 0)}, ValueError, r"cache_seqlens\[1\] = -2"),
    ],
)
@pytest.mark.parametrize("by", ["kernel", "torch"])
def test_values_of_an_update(by, change, error, words, device, launches, monkeypatch) -> None:
    reads_values(device)
    if by == "torch":
        monkeypatch.setattr(host, "_kernels", False)
    state = torch.zeros(3, 4, 2)
    with pytest.raises(error, match=words):
        tritonconv.causal_conv1d_update(torch.randn(2, 4), state, torch.randn(4, 3), **change)
    assert not launches() and not state.any()


def test_nobody_may_be_named_often(device, launched) -> None:
    state, entries = torch.zeros(3, 4, 2, device=device), numbers(-1, 1, -1, -5, device=device)
    x = torch.randn(4, 4, device=device)
    y = tritonconv.causal_conv1d_update(x, state, torch.randn(4, 3, device=device), conv_state_indices=entries)
    assert y[1].any() and not y[[0, 2, 3]].any() and torch.equal(state[1, :, 1], x[1]) and not state[[0, 2]].any()
