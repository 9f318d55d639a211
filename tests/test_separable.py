"""A depthwise and a pointwise convolution as one function, against torch's in float64, and as one kernel against two.

Gradients are tested in float64, where nothing is rounded that counts.
"""

import pytest
import torch
import triton.language as tl
from pairs import NAMES, Example, assert_close
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck
from torch.utils.flop_counter import FlopCounterMode

import tritonconv
from bench.separable import LAYERS, prepared
from costmodel.tiling import Plan
from tritonconv import host, recipes
from tritonconv.layout import channels_last_strides
from tritonconv.separable.launch import fits_int32, prepare_call
from tritonconv.separable.op import pair_of


def test_by_hand(device, launched):
    """Two channels of 1 x 3 pixels, filters [1, 2, 1] and [0, 1, 0], then their sum and their difference."""
    x = torch.tensor([[[[1.0, 2.0, 3.0]], [[4.0, -5.0, 6.0]]]], device=device)
    w1 = torch.tensor([[[[1.0, 2.0, 1.0]]], [[[0.0, 1.0, 0.0]]]], device=device)
    w2 = torch.tensor([[1.0, 1.0], [1.0, -1.0]], device=device).view(2, 2, 1, 1)
    bias = torch.tensor([0.0, 1.0], device=device)
    got = tritonconv.depthwise_separable_conv2d(x, w1, w2, bias, bias, 1, (0, 1), activation="relu", plan="fused")
    # between: [4, 8, 8] and relu([5, -4, 7])
    assert got.tolist() == [[[[9.0, 8.0, 15.0]], [[0.0, 9.0, 2.0]]]]


SHAPES = {
    "3x3": {"padding": 1},
    "stride 2": {"padding": 1, "stride": 2, "x": (2, 20, 13, 11)},
    "5x5": {"kernel": (5, 5), "padding": 2, "x": (1, 7, 9, 10), "filters": 19},
    "7x7 stride (1, 2)": {"kernel": (7, 7), "padding": 3, "stride": (1, 2), "x": (1, 3, 8, 9)},
    "dilation": {"dilation": (2, 3), "padding": (2, 3), "x": (2, 4, 8, 10)},
    "5x3, a window of 32 pixels": {"kernel": (5, 3), "padding": (2, 1), "x": (1, 3, 9, 5)},
    "a window of 32 rows": {"dilation": (14, 1), "padding": (14, 1), "x": (1, 3, 30, 5)},
    "even filter": {"kernel": (2, 4), "padding": (1, 0)},
    "1x1": {"kernel": (1, 1)},
    "padding beyond the filter": {"padding": 4, "kernel": (2, 2), "x": (1, 3, 2, 3)},
    "one channel, one filter": {"x": (3, 1, 5, 5), "filters": 1},
    "many channels": {"x": (1, 70, 4, 4), "filters": 67, "padding": 1},
    "empty batch": {"x": (0, 6, 9, 7)},
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape(name, device, launches):
    example = Example(**SHAPES[name], device=device)
    assert_close(example, "relu6", None)
    assert launches()["separable"] == (name != "empty batch")


@pytest.mark.parametrize("layout", ["last", "contiguous", "sliced", "expanded"])
def test_tensors_may_lie_anyhow(layout, device, launches):
    example = Example(layout=layout, residual=True, device=device, padding=1)
    got = assert_close(example, "silu", "relu")
    assert launches()["separable"] == 1
    last = layout == "last"
    assert got.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def test_weights_may_lie_anyhow(device):
    example = Example(device=device, padding=1)
    example.w1 = example.w1.movedim(0, -1).contiguous().movedim(-1, 0)
    example.w2 = example.w2.transpose(0, 1).contiguous().transpose(0, 1)
    example.b1, example.b2 = example.b1.repeat_interleave(2)[::2], example.b2[:1].expand(5)
    assert_close(example, "relu")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("biased", [True, False], ids=["biases", "no bias"])
def test_every_dtype(dtype, biased, device):
    example = Example((2, 12, 8, 8), 10, dtype=dtype, biased=biased, device=device, padding=1)
    assert_close(example, "relu6")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES, ids=str)
def test_what_lies_between_is_rounded_as_in_memory(name, dtype, device):
    """Three times the unit matrix adds nothing up: one kernel and two must answer the same bits."""
    example = Example((1, 16, 6, 6), 16, dtype=dtype, device=device, padding=1)
    example.w2 = 3 * torch.eye(16, dtype=dtype, device=device).view(16, 16, 1, 1)
    assert torch.equal(example.ours(name), example.ours(name, plan="apart"))


@pytest.mark.parametrize("between, after", [(None, None), ("relu6", None), ("silu", "gelu"), ("leaky_relu", "relu")])
def test_gradients(between, after, device, launches):
    example = Example(stride=2, padding=1, residual=True, device=device)

    def gradients(call):
        leaves = {k: t.detach().double().requires_grad_() for k, t in example.tensors.items()}
        y = call(leaves)
        dy = torch.linspace(-1, 1, y.numel(), dtype=torch.float64, device=y.device).view_as(y)
        return torch.autograd.grad(y, list(leaves.values()), dy)

    got = gradients(lambda leaves: example.ours(between, after, tensors=leaves))
    counted = launches()
    want = gradients(lambda leaves: example.exact(between, after, tensors=leaves))
    for name, ours, theirs in zip(example.tensors, got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
    assert counted["separable"] == 1 and counted["dgrad"] == counted["wgrad"] == 2


@pytest.mark.parametrize(
    "wanted", ["input", "depthwise_weight", "pointwise_weight", "depthwise_bias", "pointwise_bias", "residual"]
)
def test_one_gradient_alone(wanted, device, launches):
    example = Example(padding=1, residual=True, device=device)
    leaf = example.tensors[wanted].detach().requires_grad_()
    example.ours("relu", tensors={**example.tensors, wanted: leaf}).sum().backward()
    other = leaf.detach().clone().requires_grad_()
    tensors = {k: t.cpu() for k, t in example.tensors.items()}
    example.exact("relu", None, tensors={**tensors, wanted: other.cpu()}).sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-12, atol=1e-12)
    asked = {"input": (1, 2, 0), "depthwise_weight": (1, 1, 1), "pointwise_weight": (1, 0, 1), "depthwise_bias": (1, 1, 0)}
    counted = launches()
    assert tuple(counted[k] for k in ("fprop", "dgrad", "wgrad")) == asked.get(wanted, (0, 0, 0))


def test_dy_may_lie_anyhow(device):
    """A sum's gradient is expanded, a slice's full of gaps."""
    example = Example(padding=1, device=device)
    for reduce in (torch.sum, lambda y: (y[:, :, ::2] * 2).sum()):
        x, other = (example.x.detach().requires_grad_() for _ in range(2))
        reduce(example.ours("silu", tensors={**example.tensors, "input": x})).backward()
        tensors = {k: t if t is None else t.cpu() for k, t in example.tensors.items()}
        reduce(example.exact("silu", None, tensors={**tensors, "input": other.cpu()})).backward()
        torch.testing.assert_close(x.grad, other.grad, rtol=1e-12, atol=1e-12)


def test_gradients_of_gradients(device):
    example = Example((1, 3, 3, 3), 2, (2, 2), residual=True, device=device, padding=1, seed=3)

    def twice(call):
        leaves = {k: t.detach().requires_grad_() for k, t in example.tensors.items()}
        y = call(leaves)
        first = torch.autograd.grad(y.square().sum(), list(leaves.values()), create_graph=True)
        return torch.autograd.grad(sum(g.sin().sum() for g in first), list(leaves.values()))

    got = twice(lambda leaves: example.ours("silu", "tanh", tensors=leaves))
    want = twice(lambda leaves: example.exact("silu", "tanh", tensors=leaves))
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_gradcheck(device):
    example = Example((1, 2, 3, 2), 2, (2, 2), device=device)
    leaves = [t.detach().requires_grad_() for t in (example.x, example.w1, example.w2, example.b1, example.b2)]
    assert gradcheck(
        lambda *given: example.ours("silu", "relu6", tensors=dict(zip(example.tensors, given, strict=False))),
        leaves,
        fast_mode=True,
    )


def test_unbatched(device):
    example = Example(padding=1, residual=True, device=device, x=(1, 6, 9, 7))
    one = {**example.tensors, "input": example.x[0], "residual": example.residual[0]}
    assert torch.equal(example.ours("relu", tensors=one), example.ours("relu")[0])


@pytest.mark.parametrize("plan", [None, "fused", "apart", "fprop:separable:16x32x16:w4:s1:step1x1x2x1"])
def test_every_plan_answers_the_same(plan, device, launches):
    example = Example((2, 20, 5, 6), 40, dtype=torch.float32, device=device, padding=1)
    assert_close(example, "relu6", "relu6", plan if plan is None or ":" not in plan else Plan.parse(plan))
    counted = launches()
    assert (counted["separable"], counted["fprop"]) in ({None: ((1, 0), (0, 2)), "apart": ((0, 2),)}.get(plan, ((1, 0),)))


def test_64_bit_offsets(device, monkeypatch):
    example = Example(padding=1, residual=True, device=device)
    want = example.ours("relu6")
    monkeypatch.setattr("tritonconv.separable.launch.fits_int32", lambda *given: False)
    prepare_call.cache_clear(), recipes.forget()
    got = example.ours("relu6")
    prepare_call.cache_clear(), recipes.forget()
    assert torch.equal(got, want)


@pytest.mark.parametrize(
    "shape, fits", [((2, 64, 1000, 1000), True), ((1, 2048, 1024, 1024), False), ((4096, 64, 64, 64), True)]
)
def test_which_offsets_are_long(shape, fits):
    """A program reaches over few images: only a large one needs 64 bits."""
    pair = pair_of(shape, (shape[1], 1, 3, 3), (16, shape[1], 1, 1), (1, 1), (1, 1, 1, 1), (1, 1))
    last = [(s, channels_last_strides(s)) for s in (shape, (16, shape[1], 1, 1), pair.pointwise.output_shape)]
    w1 = pair.depthwise.weight_shape, (9, 9, 3, 1)
    plan = Plan.parse("fprop:separable:64x64x64:w4:s1:step1x1x4x2")
    assert fits_int32(pair, plan, last[0], w1, last[1], last[2]) == fits


@pytest.mark.parametrize("stride, index", [(1, tl.int32), (1 << 28, tl.int64)])
def test_biases_far_apart_are_reached_in_64_bits(stride, index):
    plan = Plan.parse("fprop:separable:64x64x64:w4:s1:step1x1x4x2")
    ready = prepared(LAYERS[0], plan, torch.bfloat16, 90, True, None, stride)
    assert ready.main.constants["INDEX"] == index


@pytest.mark.parametrize("plan", [None, "apart"])
def test_an_empty_batch_lies_as_the_fake_one(plan, device):
    """One answer for all: the pointwise weight alone is channels-last."""
    x, w1 = torch.ones(0, 3, 4, 5, device=device), torch.ones(3, 1, 1, 2, device=device)
    w2 = torch.ones(2, 3, 1, 1, device=device).as_strided((2, 3, 1, 1), (3, 1, 3, 3))
    with FakeTensorMode() as mode:
        fake = tritonconv.depthwise_separable_conv2d(
            *map(mode.from_tensor, (x, w1, w2)), pointwise_activation="relu", plan=plan
        )
    y = tritonconv.depthwise_separable_conv2d(x, w1, w2, pointwise_activation="relu", plan=plan)
    assert y.stride() == fake.stride()


def test_a_network_counts_both(device):
    example = Example(padding=1, residual=True, device=device)
    with FlopCounterMode(display=False) as counter:
        example.ours("relu")
    n, c, h, w = example.x.shape
    assert counter.get_total_flops() == 2 * n * h * w * c * (9 + 5) == example_pair(example).flops


def example_pair(example):
    x, w1, w2 = example.x.shape, example.w1.shape, example.w2.shape
    return pair_of(x, w1, w2, (1, 1), (1, 1, 1, 1), (1, 1))


def test_opcheck(device):
    example = Example((2, 3, 4, 4), 2, device=device, padding=1)
    tensors = [t.detach().requires_grad_() for t in (example.x, example.w1, example.w2, example.b1, example.b2)]
    given = (*tensors, None, (1, 1), (1, 1, 1, 1), (1, 1), "silu", "relu", 0.01, "fused")
    torch.library.opcheck(torch.ops.tritonconv.separable, given)


def test_compiled(device):
    torch._dynamo.reset()
    example = Example(padding=1, residual=True, device=device)
    leaves = [{k: t.detach().requires_grad_() for k, t in example.tensors.items()} for _ in range(2)]

    def call(tensors):
        return example.ours("relu6", "silu", None, tensors).square()

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    got, want = compiled(leaves[0]), call(leaves[1])
    torch.testing.assert_close(got, want)
    for ours, theirs in zip(
        torch.autograd.grad(got.sum(), [*leaves[0].values()]),
        torch.autograd.grad(want.sum(), [*leaves[1].values()]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_autocast(device):
    example = Example((2, 8, 6, 6), 8, dtype=torch.float32, device=device, padding=1)
    kind = "cuda" if device == "cuda" else "cpu"
    with torch.autocast(kind, torch.bfloat16):
        got = example.ours("relu")
    half = {k: t if t is None else t.bfloat16() for k, t in example.tensors.items()}
    assert got.dtype == torch.bfloat16 and torch.equal(got, example.ours("relu", tensors=half))


def test_without_the_interpreter_torch_computes(monkeypatch):
    """A CPU tensor's two convolutions are then torch's own."""
    example = Example(padding=1, residual=True)
    want = example.exact("silu", None)
    monkeypatch.setattr(host, "_kernels", False)
    torch.testing.assert_close(example.ours("silu", plan=None), want)


@pytest.mark.parametrize(
    "change, error, says",
    [
        ({"depthwise_weight": torch.ones(12, 1, 3, 3)}, RuntimeError, r"depthwise_weight of shape \[6, 1, R, S\]"),
        ({"depthwise_weight": torch.ones(6, 2, 3, 3)}, RuntimeError, r"depthwise_weight of shape \[6, 1, R, S\]"),
        ({"pointwise_weight": torch.ones(5, 6, 3, 3)}, RuntimeError, r"pointwise_weight of shape \[K, 6, 1, 1\]"),
        ({"pointwise_weight": torch.ones(5, 4, 1, 1)}, RuntimeError, r"pointwise_weight of shape \[K, 6, 1, 1\]"),
        ({"pointwise_weight": None}, TypeError, "'pointwise_weight' must be a Tensor"),
        ({"depthwise_bias": torch.ones(5)}, RuntimeError, r"bias of shape \[6\]"),
        ({"pointwise_bias": torch.ones(6)}, RuntimeError, r"pointwise_bias of shape \[5\]"),
        ({"pointwise_bias": torch.ones(5).double()}, RuntimeError, "same dtype"),
        ({"residual": torch.ones(2, 5, 1, 1)}, RuntimeError, "residual of the output's shape"),
        ({"activation": "swish"}, ValueError, "activation='swish'"),
        ({"pointwise_activation": 3}, ValueError, "activation=3"),
        ({"stride": 0}, RuntimeError, "stride=0"),
        ({"padding": "full"}, RuntimeError, "padding='full'"),
        ({"plan": "both"}, ValueError, "plan 'both' names no family"),
        ({"plan": Plan.parse("fprop:gather:64x64x64")}, ValueError, "not of fprop:separable"),
        ({"plan": Plan.parse("fprop:separable:64x64x48:step1x1x2x2")}, ValueError, "block_k must be a power of two"),
        ({"plan": Plan.parse("fprop:separable:64x64x64")}, ValueError, "step must be"),
        ({"plan": Plan.parse("fprop:separable:64x64x64:w64:step1x1x2x2")}, ValueError, "warps must be .* at most 32, got 64"),
        ({"plan": Plan.parse("fprop:separable:64x64x64:s0:step1x1x2x2")}, ValueError, "stages must be positive, got 0"),
        ({"plan": Plan.parse("fprop:separable:16x16x32768:step1x1x2x2")}, ValueError, "bytes of shared memory"),
        ({"plan": Plan.parse("fprop:separable:64x32768x64:step1x1x2x2")}, ValueError, "span at most 1048576 values"),
        ({"plan": Plan.parse("fprop:separable:64x64x64:step1x1x8x16")}, ValueError, "must fit block_m 64"),
        ({"plan": Plan.parse("fprop:separable:64x64x64:step1x1x2x2"), "dilation": 16, "padding": 16}, ValueError, "window"),
    ],
)
def test_errors_name_the_argument(change, error, says):
    given = {
        "input": torch.ones(2, 6, 9, 7),
        "depthwise_weight": torch.ones(6, 1, 3, 3),
        "pointwise_weight": torch.ones(5, 6, 1, 1),
    }
    with pytest.raises(error, match=says):
        tritonconv.depthwise_separable_conv2d(**{**given, **change})
