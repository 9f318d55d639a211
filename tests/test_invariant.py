"""Results that do not depend on the batch: in `batch_invariant()` each image has the bits that it has alone."""

import pytest
import torch

import tritonconv
from tritonconv import batch_invariant, invariant
from tritonconv.steps import Launch

G = torch.Generator().manual_seed(0)


def randn(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=G).to(dtype)


W = {
    name: randn(*shape)
    for name, shape in {"dense": (24, 16, 3, 3), "depthwise": (16, 1, 3, 3), "grouped": (16, 4, 3, 3)}.items()
}
PLANES, SCALE = randn(16, 24, 3, 3), randn(24)
CAUSAL, VIDEO, TIPS = randn(16, 4), randn(8, 16, 2, 3, 3), randn(8, 16, 1, 1)
IMAGE, SEQUENCE, CLIP = (16, 6, 5), (16, 11), (16, 3, 4, 4)
CALLS = {
    "dense": (lambda x: tritonconv.conv2d(x, W["dense"], padding=1), IMAGE),
    "pointwise": (lambda x: tritonconv.conv2d(x, W["dense"][..., :1, :1]), IMAGE),
    "grouped": (lambda x: tritonconv.conv2d(x, W["grouped"], groups=4), IMAGE),
    "depthwise": (lambda x: tritonconv.conv2d(x, W["depthwise"], groups=16, padding=1), IMAGE),
    "transposed": (lambda x: tritonconv.conv_transpose2d(x, PLANES, stride=2), IMAGE),
    "fused": (lambda x: tritonconv.conv2d_fused(x, W["dense"], scale=SCALE, shift=SCALE, activation="gelu"), IMAGE),
    "separable": (lambda x: tritonconv.depthwise_separable_conv2d(x, W["depthwise"], TIPS, activation="relu"), IMAGE),
    "causal": (lambda x: tritonconv.causal_conv1d(x, CAUSAL, activation="silu"), SEQUENCE),
    "video": (lambda x: tritonconv.causal_conv3d(x, VIDEO, padding=1)[0], CLIP),
}


def forced(x, w, plan, **window):
    """By the plans that a family, or for each pass one, has for this image on a GPU."""
    found = tritonconv.explain(tritonconv.conv2d, x[:1], w, **window, plan=plan, device="h100")
    return tritonconv.conv2d(x, w, **window, plan=found)


HALF = W["dense"].half().contiguous(memory_format=torch.channels_last)
WIDE = randn(16, 1, 13, 13).half()
CALLS |= {
    "tma": (lambda x: forced(x.half().to(memory_format=torch.channels_last), HALF, "tma", padding=1), IMAGE),
    "band": (lambda x: forced(x.half(), WIDE, {"fprop": "band", "dgrad": "band"}, padding=6, groups=16), IMAGE),
}


def bits(call, x):
    x = x.clone().requires_grad_()
    y = call(x)
    y.backward(torch.ones_like(y) / 3)
    return y.detach(), x.grad


@pytest.mark.parametrize("sizes", [(2, 7), pytest.param((1, 3, 4, 5, 6), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_each_image_has_the_bits_it_has_alone(name, sizes, launched):
    call, shape = CALLS[name]
    images = randn(7, *shape)
    with batch_invariant():
        alone = [bits(call, image[None]) for image in images[[0, 3, 6]]]
        for size in sizes:
            y, dx = bits(call, images[:size])
            for i, (one, gradient) in zip((0, 3, 6), alone, strict=True):
                if i < size:
                    assert torch.equal(y[i], one[0]) and torch.equal(dx[i], gradient[0])
    near = 1e-4 if y.dtype == torch.float32 else 1e-2
    torch.testing.assert_close(y, call(images[: len(y)]), rtol=near, atol=near)


def test_the_plan_is_that_of_one_image(monkeypatch):
    """Of a layer whose plan for 64 images adds up in another order: outside of the region the bits differ."""
    w, images, plans = randn(8, 512, 3, 3), randn(64, 512, 6, 6), []
    run = Launch.run

    def seen(prepared, *args):
        plans.append(str(prepared.plan))
        return run(prepared, *args)

    monkeypatch.setattr(Launch, "run", seen)
    one = tritonconv.conv2d(images[:1], w)
    many = tritonconv.conv2d(images, w)
    with batch_invariant():
        y = tritonconv.conv2d(images, w)
    assert plans[0] == plans[2] != plans[1]
    assert torch.equal(y[:1], one) and not torch.equal(many[:1], one)


def test_functions_without_a_plan_to_force_launch_once_an_image(launches):
    for name, count in (("separable", 2), ("video", 2)):
        call, shape = CALLS[name]
        before = launches()
        call(randn(2, *shape))
        once = sum((launches() - before).values())
        before = launches()
        with batch_invariant():
            call(randn(2, *shape))
        assert sum((launches() - before).values()) == count * once


def test_a_plan_that_cannot_run_the_batch_is_run_image_by_image(monkeypatch, launches):
    x, w, r = randn(3, 16, 6, 5), W["dense"], randn(3, 24, 4, 3)
    want = tritonconv.conv2d(x, w), tritonconv.conv2d_fused(x, w, activation="relu", residual=r)
    monkeypatch.setattr(invariant, "fixed", lambda *_: None)
    before = launches()
    with batch_invariant():
        got = tritonconv.conv2d(x, w), tritonconv.conv2d_fused(x, w, activation="relu", residual=r)
    assert (launches() - before)["fprop"] == 6
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_it_nests_ends_and_is_compiled():
    x, seen = torch.ones(2, 16, 6, 5), []

    def backend(graph, inputs):
        seen.extend(node.args[-1] for node in graph.graph.nodes if "tritonconv" in str(node.target))
        return graph.forward

    torch._dynamo.reset()
    call = torch.compile(CALLS["dense"][0], backend=backend, fullgraph=True)
    with batch_invariant():
        with batch_invariant():
            pass
        call(x)
    call(x)
    assert seen == ["invariant;", ""] and not invariant.is_on()
    torch._dynamo.reset()
