"""torch's own convolution functions computed by the kernels: in a region, and in a process.

Kernels are counted everywhere, since torch's convolution gives the same values.
"""

import json
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import tritonconv
from costmodel.problem import ConvProblem
from tritonconv import installed, use, where

X = torch.randn(1, 3, 6, 6)
WINDOW = ([1, 1], [0, 0], [1, 1])
FORWARD = {"fprop": 1, "dgrad": 1}
#: A step of `net` whose input needs a gradient.
STEP = {"fprop": 2, "dgrad": 2, "wgrad": 2}


class Standardized(nn.Conv2d):
    """As timm's StdConv2d: torch's function with other weights."""

    def forward(self, x):
        return F.conv2d(x, self.weight - self.weight.mean(), self.bias)


def net():
    return nn.Sequential(Standardized(3, 4, 3), nn.ConvTranspose2d(4, 3, 2))


def leaf():
    return X.clone().requires_grad_()


WEIGHT = torch.randn(4, 3, 3, 3)
CALLS = {
    "F": lambda: F.conv2d(X, WEIGHT),
    "F by name": lambda: F.conv2d(input=X, weight=WEIGHT, padding="same"),
    "torch.conv2d": lambda: torch.conv2d(X, WEIGHT, None, 1, 1),
    "torch.convolution": lambda: torch.convolution(X, WEIGHT, None, *WINDOW, False, [0, 0], 1),
    "transposed": lambda: torch.convolution(X, WEIGHT[:3], None, *WINDOW, True, [0, 0], 1),
    "aten.conv2d": lambda: torch.ops.aten.conv2d(X, WEIGHT),
    "aten.convolution": lambda: torch.ops.aten.convolution.default(X, WEIGHT, None, *WINDOW, False, [0, 0], 1),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_way_to_call_is_reached(name, launches):
    want = CALLS[name]()
    assert not launches()
    with use() as used:
        got = CALLS[name]()
    assert sum(launches().values()) == 1 and used.record.by("tritonconv") == 1
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    CALLS[name]()
    assert sum(launches().values()) == 1  # behind the region torch's convolution is torch's


@pytest.mark.parametrize(
    ("differentiate", "reentrant"),  # torch's reentrant checkpoint takes no torch.autograd.grad
    [("y.backward", False), ("y.backward", True), ("backward", False), ("backward", True), ("grad", False)],
)
def test_what_backward_recomputes_is_reached(differentiate, reentrant, launches):
    model, x = net(), leaf()
    model(x).sum().backward()
    want = x.grad.clone()
    x.grad = None
    with use():
        y = checkpoint(model, x, use_reentrant=reentrant).sum()
        before = launches()
        if differentiate == "y.backward":
            y.backward()
        elif differentiate == "backward":
            torch.autograd.backward(y)
        else:
            (x.grad,) = torch.autograd.grad(y, x)
    # gradients take one each of fprop and dgrad; the others recompute the two layers
    assert launches() - before == {"fprop": 2, "dgrad": 2, "wgrad": 2}
    torch.testing.assert_close(x.grad, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inside", [False, True], ids=["the region around it", "the region in it"])
def test_compiled_in_one_graph(inside, launches):
    torch._dynamo.reset()
    model = net()

    def called(x):
        with use():
            return model(x)

    compiled = torch.compile(called if inside else model, backend="aot_eager", fullgraph=True)
    x, want = leaf(), model(X)
    if inside:
        y = compiled(x)
    else:
        with use():
            y = compiled(x)
    y.sum().backward()
    assert launches() == STEP
    torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


@pytest.mark.parametrize("compiled", [False, True])
def test_a_predicate_chooses_pass_by_pass_when_calls_run(compiled, launches):
    torch._dynamo.reset()
    model, asked = net(), []

    def chosen(call):
        asked.append(call)
        return call.which != "wgrad" and call.problem.kernel_size != (3, 3)

    run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    x = leaf()
    model(x).sum().backward()
    want, x.grad = x.grad.clone(), None
    for times in (1, 2):
        with use(where=chosen) as used:
            run(x).sum().backward()
        assert launches() == {"fprop": times, "dgrad": times}  # the transposed layer, forward and its input's gradient
        assert (used.record.by("tritonconv"), used.record.by("torch")) == (2, 4)
    assert {(call.dtype, call.device.type, call.layout) for call in asked} == {(torch.float32, "cpu", "contiguous")}
    torch.testing.assert_close(x.grad, 2 * want, rtol=1e-4, atol=1e-4)
    assert "     1  wgrad conv2d n1 c3 6x6 -> 4 k3x3: torch, where= says so" in str(used.record)
    torch._dynamo.reset()


def test_recorded_rows_choose(tmp_path, launches):
    problem = ConvProblem.conv((1, 3, 6, 6), (4, 3, 3, 3), (1, 1), (0, 0), (1, 1))
    names = ("batch", "in_channels", "out_channels", "input_size", "kernel_size", "stride", "padding", "dilation", "groups")
    sizes = {name: getattr(problem, name) for name in names}
    gpu = tritonconv.where.host.model(-1).name
    row = {"problem": sizes, "which": "fprop", "dtype": "float32", "layout": "contiguous", "gpu": gpu, "ok": True}
    faster = [{**row, "provider": "cudnn", "median_us": 2.0}, {**row, "provider": "tritonconv", "median_us": 1.0}]
    path = tmp_path / "rows.jsonl"

    def ran(rows):
        path.write_text("".join(json.dumps(each) + "\n" for each in rows))
        before = launches()
        with use(where=path):
            F.conv2d(X, WEIGHT)
            F.conv2d(X, WEIGHT, padding=1)  # of which there is no row
        return sum((launches() - before).values())

    assert ran(faster) == 1
    assert ran([{**faster[0], "median_us": 0.5}, faster[1]]) == 0
    assert ran(faster[1:]) == 0  # nothing to compare with
    assert ran([{**each, "gpu": "another"} for each in faster]) == 0
    assert ran([{**each, "ok": False, "median_us": None} for each in faster]) == 0
    with pytest.raises(ValueError, match="a row of 'where' lacks the field 'problem'"):
        use(where=[{"ok": True, "median_us": 1.0}])
    with pytest.raises(TypeError, match=r"argument 'where' must be a predicate, rows or a path of rows, got int"):
        use(where=3)


def test_what_the_kernels_do_not_take_stays_torchs_and_is_named(launches):
    layer = nn.Conv2d(3, 4, 3, dtype=torch.complex64)
    with use() as used:
        layer(X.to(torch.complex64))
        F.conv2d(torch.ones(1, 1, 3, 3, dtype=torch.int64), torch.ones(1, 1, 1, 1, dtype=torch.int64))
        assert not launches()
        F.conv2d(X, WEIGHT)
    assert str(used.record).splitlines() == [
        "1 of 3 calls ran on tritonconv's kernels",
        "     1  conv2d input [1, 1, 3, 3], weight [1, 1, 1, 1]: torch, its dtype is int64",
        "     1  conv2d input [1, 3, 6, 6], weight [4, 3, 3, 3]: torch, its dtype is complex64",
        "     1  conv2d input [1, 3, 6, 6], weight [4, 3, 3, 3]: tritonconv",
    ]


def test_what_a_region_does_not_reach(launches):
    """As the docs say: scripted modules and other threads."""
    scripted = torch.jit.script(nn.Conv2d(3, 4, 3))
    with use():
        scripted(X)
        thread = threading.Thread(target=lambda: F.conv2d(X, WEIGHT))
        thread.start()
        thread.join()
        assert not launches()


def test_errors_are_ours_and_leave_the_region_whole():
    with use() as used:
        with pytest.raises(RuntimeError, match="negative padding is not supported"):
            F.conv2d(X, WEIGHT, padding=-1)
        assert F.conv2d(X, WEIGHT).shape == (1, 4, 4, 4)
    assert used.record.by("tritonconv") == 2 and not where._OPEN


# ---- a process ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def process():
    """As `use.install`, for CPU tensors, which the interpreter's kernels compute without calling torch's convolution."""
    handle = installed._installed(None, "CPU")
    yield handle
    installed.uninstall()


REACHED = {
    "modules": (lambda model: model(leaf()).sum().backward(), STEP),
    "scripted": (lambda model: torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), model[1]))(X), FORWARD),
    "checkpoint": (
        lambda model: checkpoint(model, leaf(), use_reentrant=True).sum().backward(),
        {"fprop": 3, "dgrad": 3, "wgrad": 2},
    ),
    "forward mode": (lambda model: torch.func.jvp(model, (X,), (X,)), {"fprop": 3, "dgrad": 3}),
    "vmap": (lambda model: torch.vmap(model)(torch.stack([X, X])), FORWARD),
    "double backward": (
        lambda model: torch.autograd.grad(model(x := leaf()).sum(), x, create_graph=True)[0].sum().backward(),
        None,
    ),
    "complex": (lambda model: nn.Conv2d(3, 4, 3, dtype=torch.complex64)(X.to(torch.complex64)), {"fprop": 3}),
}


@pytest.mark.interpreter
@pytest.mark.parametrize("name", REACHED)
def test_a_process_is_reached(name, process, launches):
    run, counts = REACHED[name]
    run(net())
    assert launches() == counts if counts else launches()
    assert process.record.by("torch") == 0 and process.record.by("tritonconv") == sum(launches()[which] for which in STEP)


@pytest.mark.interpreter
def test_every_thread_of_a_process_is_reached(process, launches):
    threads = [threading.Thread(target=lambda: F.conv2d(X, WEIGHT)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert launches() == {"fprop": 3}


@pytest.mark.interpreter
@pytest.mark.parametrize("transposed", [False, True])
def test_values_and_a_predicate_of_a_process(transposed, launches):
    def step():
        x, w = leaf(), torch.linspace(-1, 1, 108).view(3, 3, 3, 4).requires_grad_()
        b = torch.ones(3, requires_grad=True)
        y = (F.conv_transpose2d if transposed else F.conv2d)(x, w, b, stride=2, padding=1)
        y.square().sum().backward()
        return y, x.grad, w.grad, b.grad

    want = step()
    for which in ("fprop", "dgrad", "wgrad", "all"):
        handle = installed._installed(lambda call, which=which: which in (call.which, "all"), "CPU")
        try:
            before = launches()
            got = step()
            counts = launches() - before
        finally:
            installed.uninstall()
        assert dict(counts) == ({which: 1} if which != "all" else dict.fromkeys(("fprop", "dgrad", "wgrad"), 1))
        assert handle.record.by("torch") == (2 if which != "all" else 0)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_installing_is_for_cuda_tensors_and_once(launches):
    handle = use.install()
    try:
        F.conv2d(X, WEIGHT)
        assert not launches() and not handle.record.counts
        with pytest.raises(RuntimeError, match="it is installed already"):
            use.install()
    finally:
        use.uninstall()
    with pytest.raises(RuntimeError, match="nothing is installed"):
        use.uninstall()
