"""The op boundary: schemas and fake tensors that hold, torch.compile with nothing left in Python, and FLOP counts."""

import math

import cases
import oracle
import pytest
import torch
from cases import Case
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import tritonconv

CALLS = {
    "conv1d": Case("conv1d", (2, 4, 7), (6, 2, 3), stride=2, padding=1, groups=2),
    "conv2d": Case("conv2d", (2, 4, 5, 4), (6, 4, 3, 2), stride=(2, 1), padding=1),
    "conv2d_same": Case("conv2d", (1, 3, 4, 5), (4, 3, 2, 4), padding="same"),
    "conv2d_channels_last": Case("conv2d", (2, 4, 5, 4), (6, 4, 3, 3), x="channels_last", dilation=2, padding=2),
    "conv2d_unbatched": Case("conv2d", (4, 5, 4), (6, 4, 3, 3)),
    "conv3d": Case("conv3d", (1, 2, 4, 3, 4), (3, 2, 2, 3, 2), stride=2, padding=(0, 1, 0)),
    "conv_transpose1d": Case("conv_transpose1d", (2, 4, 5), (4, 3, 3), stride=2, groups=2, output_padding=1),
    "conv_transpose2d": Case("conv_transpose2d", (2, 4, 3, 2), (4, 3, 3, 2), stride=2, padding=1),
    "conv_transpose3d": Case("conv_transpose3d", (1, 2, 2, 2, 3), (2, 3, 2, 2, 3), stride=(1, 2, 1)),
}
every_call = pytest.mark.parametrize("case", CALLS.values(), ids=CALLS)

# --- library ops ------------------------------------------------------------------------------------------------------

# (operator, tensors by shape, the arguments after them); padding is (low, high) per dimension
OPS = {
    "fprop": ("fprop", [(2, 4, 5, 4), (6, 2, 3, 3), (6,)], ([2, 1], [1, 1, 0, 2], [1, 1], 2)),
    "fprop_without_bias": ("fprop", [(2, 4, 7), (6, 4, 3), None], ([1], [2, 0], [2], 1)),
    "fprop_empty_batch": ("fprop", [(0, 4, 7), (6, 4, 3), (6,)], ([1], [0, 0], [1], 1)),
    "dgrad": ("dgrad", [(2, 6, 3, 4), (6, 2, 3, 3), (4,)], ([5, 4], [2, 1], [1, 1, 0, 2], [1, 1], 2)),
    "dgrad_without_bias": ("dgrad", [(2, 6, 5), (6, 4, 3), None], ([7], [1], [2, 0], [2], 1)),
    "dgrad_cropped": ("dgrad", [(1, 3, 2), (3, 2, 3), None], ([6], [2], [0, -1], [1], 1)),
    "wgrad": ("wgrad", [(2, 6, 3, 4), (2, 4, 5, 4)], ([3, 3], [2, 1], [1, 1, 0, 2], [1, 1], 2)),
    "wgrad_3d": ("wgrad", [(1, 3, 2, 1, 2), (1, 2, 4, 3, 4)], ([2, 3, 2], [2, 2, 2], [0, 0, 0, 0, 0, 0], [1, 1, 1], 1)),
}
every_op = pytest.mark.parametrize("name", OPS)


def operands(name: str, device: str, requires_grad: bool = False) -> tuple:
    operator, shapes, rest = OPS[name]
    torch.manual_seed(0)
    tensors = [None if shape is None else torch.randn(shape, device=device).requires_grad_(requires_grad) for shape in shapes]
    return getattr(torch.ops.tritonconv, operator).default, (*tensors, *rest)


@every_op
@pytest.mark.parametrize("requires_grad", [False, True], ids=["plain", "differentiable"])
def test_opcheck(name: str, requires_grad: bool, device: str, launches) -> None:
    operator, arguments = operands(name, device, requires_grad)
    torch.library.opcheck(operator, arguments)
    assert bool(launches()) == ("empty" not in name)


@every_op
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "permuted"])
def test_fake_tensors_have_the_real_strides(name: str, layout: str, device: str) -> None:
    operator, arguments = operands(name, device)
    real = [cases.laid_out(a, layout, a.dim() - 2) if isinstance(a, torch.Tensor) and a.dim() > 1 else a for a in arguments]
    with FakeTensorMode() as mode:
        fake = operator(*(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in real))
    got = operator(*real)
    assert (fake.shape, fake.stride(), fake.dtype, fake.device) == (got.shape, got.stride(), got.dtype, got.device)


@every_call
def test_meta_tensors(case: Case, launches) -> None:
    """Shapes can be asked for without any memory, as in torch."""
    x, w, b = (t.to("meta") for t in case.tensors())
    y = getattr(tritonconv, case.function)(x, w, b, **case.arguments)
    assert y.device.type == "meta"
    assert y.shape == getattr(torch.nn.functional, case.function)(x, w, b, **case.arguments).shape
    assert not launches()


# --- torch.compile ----------------------------------------------------------------------------------------------------


def compiled(function: str, backend: str = "aot_eager", dynamic: bool | None = True):
    torch._dynamo.reset()
    call = getattr(tritonconv, function)

    def layer(x, w, b, **arguments):
        return call(x * 2, w, b, **arguments).relu() + 1  # something to fuse on both sides

    return layer, torch.compile(layer, backend=backend, fullgraph=True, dynamic=dynamic)


@every_call
@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "static"])
def test_compile(case: Case, dynamic: bool, device: str, launched) -> None:
    eager, fused = compiled(case.function, dynamic=dynamic)
    x, w, b = case.tensors(device)
    want = oracle.run(eager, x, w, b, case.gradient, **case.arguments)
    got = oracle.run(fused, x, w, b, case.gradient, **case.arguments)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=0, atol=0)
        assert got[name].stride() == want[name].stride(), name


def test_compile_with_inductor(device: str, launched) -> None:
    case = CALLS["conv2d"]
    eager, fused = compiled("conv2d", backend="inductor")
    x, w, b = case.tensors(device)
    want = oracle.run(eager, x, w, b, case.gradient, **case.arguments)
    got = oracle.run(fused, x, w, b, case.gradient, **case.arguments)
    for name in want:
        torch.testing.assert_close(got[name], want[name])


def test_dynamic_sizes_compile_once(device: str, launched) -> None:
    """Batch and image sizes are symbols: a second size must not trace again, and must be right."""
    torch._dynamo.reset()
    graphs = CompileCounter()
    fused = torch.compile(
        lambda x, w: tritonconv.conv2d(x, w, stride=2, padding=1), backend=graphs, fullgraph=True, dynamic=True
    )
    # No size of the first is another's by accident: torch would take them for one symbol.
    for shape in ((2, 4, 9, 7), (5, 4, 8, 11), (7, 4, 10, 5)):
        case = Case("conv2d", shape, (6, 4, 3, 3), stride=2, padding=1, bias=False)
        x, w, _ = case.tensors(device)
        torch.testing.assert_close(fused(x, w), tritonconv.conv2d(x, w, stride=2, padding=1), rtol=0, atol=0)
    assert graphs.frame_count == 1


def test_compile_under_autocast(device: str, launched) -> None:
    case = CALLS["conv2d"]
    eager, fused = compiled("conv2d")
    x, w, b = case.tensors(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        want, got = eager(x, w, b, **case.arguments), fused(x, w, b, **case.arguments)
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("function", ["conv2d", "conv_transpose2d"])
def test_export(function: str, device: str, launched) -> None:
    """torch.export keeps the op as one node."""
    case = CALLS[function]

    class Layer(torch.nn.Module):
        def forward(self, x, w, b):
            return getattr(tritonconv, function)(x, w, b, **case.arguments)

    tensors = case.tensors(device)
    program = torch.export.export(Layer(), tensors)
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called == [f"tritonconv.{'dgrad' if case.transposed else 'fprop'}.default"]
    torch.testing.assert_close(program.module()(*tensors), Layer()(*tensors), rtol=0, atol=0)


# --- FLOPs ------------------------------------------------------------------------------------------------------------


@every_call
def test_flop_counter(case: Case, device: str) -> None:
    """Every pass is one dense product: 2 * output elements * taps * channels of a group, for a transposed one of
    the convolution it inverts. (torch's own counter forgets the groups in a backward pass.)"""
    x, w, b = (t.requires_grad_() for t in case.tensors(device))
    with FlopCounterMode(display=False) as counter:
        y = getattr(tritonconv, case.function)(x, w, b, **case.arguments)
        forward = counter.get_total_flops()
        y.backward(case.gradient(y))
    pixels = x if case.transposed else y  # those that meet every tap
    per_tap = math.prod(w.shape[:2])  # products of channels within the groups, per tap and pixel
    batch = pixels.shape[0] if pixels.dim() == case.rank + 2 else 1
    one = 2 * batch * math.prod(pixels.shape[-case.rank :]) * math.prod(w.shape[2:]) * per_tap
    assert forward == one
    assert counter.get_total_flops() == 3 * one


def test_flop_counter_agrees_with_torch(device: str) -> None:
    """Forward, where torch's counter knows the answer."""
    for case in CALLS.values():
        x, w, b = case.tensors(device)
        totals = []
        for library in (tritonconv, torch.nn.functional):
            with FlopCounterMode(display=False) as counter:
                getattr(library, case.function)(x, w, b, **case.arguments)
            totals.append(counter.get_total_flops())
        assert totals[0] == totals[1], case


def test_flop_counter_of_the_gradients_asked_for(device: str) -> None:
    case = CALLS["conv2d"]
    x, w, b = case.tensors(device)
    w.requires_grad_()
    with FlopCounterMode(display=False) as counter:
        tritonconv.conv2d(x, w, b, **case.arguments).sum().backward()
    counts = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    assert set(counts) == {"tritonconv.fprop", "tritonconv.wgrad"}
    assert len(set(counts.values())) == 1
