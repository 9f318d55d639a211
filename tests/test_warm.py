"""What a warm call costs the host: its Python frames, which are the same on every machine; many threads; the table of times."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from test_compiled import executed, executor  # noqa: F401
from test_direct import CALLS, conv, nothing_is_known, operands, step, unaligned  # noqa: F401

from bench import launched
from tritonconv import direct, recipes

pytest.importorskip("numba", reason="compiled code is not run: the executor needs numba")
pytestmark = pytest.mark.compiled

#: The most Python frames that a warm call enters, those of Triton's launch and of the executor's included (9 per kernel): of a
#: call under no_grad, of one that records, of its backward pass, which is no kernel to five. The ordinary way takes 104 to
#: 710 each.
FRAMES = {
    "gather": (32, 36, 54),
    "depthwise": (32, 36, 54),
    "tma": (46, 50, 72),
    "fused": (40, 48, 60),
    "causal": (36, 40, 44),
    "seq_idx": (42, 46, 48),
    "unbatched": (32, 36, 54),
    "video": (44, 49, 74),
    "separable": (31, 37, 120),
    "separable, two": (56, 62, 120),
    "deform": (28, 33, 80),
    "video, prologue": (55, 86, 91),
    "unfold": (26, 29, 27),
    "group norm": (45, 50, 14),
}


def frames_of(call):
    """The frames that a call enters, but for those of the counter of launches, which other tests may have put in place."""
    names = []

    def profile(frame, event, arg):
        if event == "call" and frame.f_code.co_filename != launched.__file__:
            names.append(f"{frame.f_code.co_filename}:{frame.f_code.co_qualname}")

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return names


def fewest_frames(of):
    """Of three times: a weak reference may die, and call back, during one of them. `of` makes a call to count."""
    return min((frames_of(of()) for _ in range(3)), key=len)


@pytest.mark.parametrize("arch", [90])
@pytest.mark.parametrize("name", FRAMES)
def test_frames_of_a_warm_call(name, executor, monkeypatch):  # noqa: F811
    """Counted instead of timed, since a count is the same on every machine."""
    monkeypatch.undo()  # memory is not poisoned, which takes frames
    call, given, _ = CALLS[name]
    executor.skipped = []
    tensors = operands(**given)
    for _ in range(3):
        step(call, *tensors)
        with torch.no_grad():
            y = call(*tensors)
    dy, found = torch.ones_like(y), []

    def forward():
        return lambda: call(*tensors)

    def gradients():
        y = call(*tensors)
        return lambda: torch.autograd.grad(y, tensors, dy, allow_unused=True)

    with torch.no_grad():
        found.append(fewest_frames(forward))
    found.append(fewest_frames(forward))
    backward = fewest_frames(gradients)
    found.append(backward[next(i for i, frame in enumerate(backward) if "BackwardCFunction.apply" in frame) :])
    counts = [len(names) - 1 for names in found]
    assert all(n <= most for n, most in zip(counts, FRAMES[name], strict=True)), counts


@pytest.mark.parametrize("arch", [90])
def test_32_threads_at_once(executed):  # noqa: F811
    tensors = [t.detach() for t in operands()]
    want = [conv(*tensors), conv(unaligned(tensors[0]), *tensors[1:])]
    ready = threading.Barrier(32)

    def work(i):
        ready.wait()
        for j in range(3):
            odd = (i + j) % 2
            x = unaligned(tensors[0]) if odd else tensors[0]
            assert torch.equal(conv(x, *tensors[1:]), want[odd])
        return True

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(work, range(32)))


def test_the_table_of_warm_calls(monkeypatch, capsys):
    from bench import warm
    from tritonconv import host

    monkeypatch.setattr(warm, "ROUNDS", 1)
    monkeypatch.setattr(warm, "CALLS", 2)
    monkeypatch.setattr(warm, "EXAMPLES", (warm.EXAMPLES[0], warm.EXAMPLES[-1]))
    kept = recipes.key, direct.key
    warm.command(90)
    assert (recipes.key, direct.key) == kept and not host.runs_kernels()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split("|")[3].strip() for line in lines[2:]] == ["1", "1", "2", "2", "2", "4"]  # kernels
