"""Offsets of weights and of values per channel, all of which a program may reach: strides that add up past 32 bits.

The values are those of tensors that lie close together, bit by bit. In the interpreter only: most of the memory is never there.
"""

import itertools

import pytest
import torch

import tritonconv
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Plan
from tritonconv import launch
from tritonconv.families import gemm
from tritonconv.layout import channels_last_strides, dense_strides

CHANNELS, STEP = 5, 2**29  # four steps reach 2^31; one, or an image's worth, does not
WINDOW = {"padding": 1, "stride": (2, 1)}


@pytest.fixture(autouse=True)
def on_the_cpu(device: str) -> None:
    if device != "cpu":
        pytest.skip("needs the interpreter")


def far(t: torch.Tensor) -> torch.Tensor:
    """The values of `t` in memory where a step along axis 0 is STEP elements, none of them touched."""
    memory = torch.UntypedStorage((1 + (len(t) - 1) * STEP + t[0].numel()) * t.element_size())
    return torch.tensor([], dtype=t.dtype).set_(memory, 0, t.shape, (STEP, *t.contiguous().stride()[1:])).copy_(t)


def far_channels(t: torch.Tensor) -> torch.Tensor:
    """The values of `t` [N, 2, H, W] where the second channel lies 2^31 elements after the first."""
    step, images = 2**31, t[:, :1].contiguous().stride()
    memory = torch.UntypedStorage((step + t.numel()) * t.element_size())
    return torch.tensor([], dtype=t.dtype).set_(memory, 0, t.shape, (images[0], step, *images[2:])).copy_(t)


def plan_of(which: Pass, split: int = 1) -> Plan:
    return Plan(which, "gather", 16, 16, 16, 4, 3, split=split)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("which", [Pass.FPROP, Pass.DGRAD])
def test_depthwise_filters_far_apart(which: Pass, channels_last: bool, launched) -> None:
    """All taps in registers, and in a loop."""
    x, w = torch.randn(1, CHANNELS, 5, 4).half(), torch.randn(CHANNELS, 1, 3, 3).half()
    x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    call = tritonconv.conv2d if which == Pass.FPROP else tritonconv.conv_transpose2d
    for taps in (None, (1, 3)):
        plan = Plan(which, "depthwise", 4, 8, 2, 1, 3, taps=taps)
        near, apart = (call(x, weight, groups=CHANNELS, **WINDOW, plan=plan) for weight in (w, far(w)))
        assert torch.equal(near, apart), plan


@pytest.mark.parametrize("which", [Pass.FPROP, Pass.DGRAD])
def test_filters_far_apart(which: Pass, launched) -> None:
    w = torch.randn(CHANNELS, 2, 3, 3).half()
    call = tritonconv.conv2d if which == Pass.FPROP else tritonconv.conv_transpose2d
    x = torch.randn(1, 2 if which == Pass.FPROP else CHANNELS, 5, 4).half()
    near, apart = (call(x, weight, **WINDOW, plan=plan_of(which)) for weight in (w, far(w)))
    assert torch.equal(near, apart)


def test_a_weight_gradient_with_filters_far_apart(launched) -> None:
    problem = ConvProblem.conv((1, 2, 5, 4), (CHANNELS, 2, 3, 3), (2, 1), ((1, 1), (1, 1)), (1, 1), 1)
    x, dy = torch.randn(problem.input_shape).half(), torch.randn(problem.output_shape).half()
    results = [torch.zeros(problem.weight_shape).half(), far(torch.zeros(problem.weight_shape).half())]
    for split, out in ((split, out) for split in (1, 2) for out in results):
        launch.execute(Pass.WGRAD, problem, dy, x, out.zero_(), None, str(plan_of(Pass.WGRAD, split)))
        assert results[0].any() and (out is results[0] or torch.equal(*results))


@pytest.mark.parametrize("name", ["bias", "scale", "shift"])
@pytest.mark.parametrize("function", ["conv2d", "conv_transpose2d"])
def test_values_per_channel_far_apart(function: str, name: str, launched) -> None:
    """In the kernel itself, in the one that adds up a shared reduction, and in the depthwise ones."""
    which = Pass.FPROP if function == "conv2d" else Pass.DGRAD
    values, x, wide = torch.randn(CHANNELS).half(), torch.randn(1, CHANNELS, 5, 4).half(), torch.randn(1, 32, 5, 4).half()
    w, summed = torch.randn(CHANNELS, CHANNELS, 3, 3).half(), torch.randn(CHANNELS, 32, 3, 3).half()
    settings = [
        (x, w, 1, plan_of(which)),
        (wide, summed if which == Pass.FPROP else summed.transpose(0, 1), 1, plan_of(which, split=2)),
        (x, w[:, :1], CHANNELS, Plan(which, "depthwise", 4, 8, 2, 1, 3)),
    ]
    functions = [getattr(tritonconv, f"{function}_fused")] + [getattr(tritonconv, function)] * (name == "bias")
    for call, (a, weight, groups, plan) in itertools.product(functions, settings):
        near, apart = (call(a, weight, groups=groups, plan=plan, **{name: v}) for v in (values, far(values)))
        assert torch.equal(near, apart), plan


@pytest.mark.parametrize("which", list(Pass))
def test_channels_far_apart_of_a_large_filter(which: Pass, launched) -> None:
    """One channel's pixels are close together, the next one's out of reach of 32 bits: in operands and in a residual."""
    problem = ConvProblem.conv((2, 2, 5, 16), (2, 1, 3, 5), (1, 1), ((1, 1), (2, 2)), (1, 1), 2)
    x, w, dy = (torch.randn(shape).half() for shape in (problem.input_shape, problem.weight_shape, problem.output_shape))
    tile, step = ("64x64x16", "4x16:rows4") if which == Pass.WGRAD else ("16x64x32", "4x16:rows2")
    plan = f"{which}:band:{tile}:w4:s3:step1x1x{step}"
    if which == Pass.WGRAD:
        results = [launch.wgrad(a, b, problem, plan) for a, b in ((dy, x), (far_channels(dy), x), (dy, far_channels(x)))]
    else:
        run, a = (launch.fprop, x) if which == Pass.FPROP else (launch.dgrad, dy)
        results = [run(t, w, None, problem, plan) for t in (a, far_channels(a))]
        call = tritonconv.conv2d_fused if which == Pass.FPROP else tritonconv.conv_transpose2d_fused
        settings = {"padding": (1, 2), "groups": 2, "plan": Plan.parse(plan)}
        followed = [call(a, w, residual=t, **settings) for t in (x, far_channels(x))]
        assert torch.equal(*followed)
    assert results[0].any() and all(torch.equal(other, results[0]) for other in results[1:])


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("which", list(Pass))
def test_large_weights_take_64_bits(which: Pass, channels_last: bool) -> None:
    """Weights of 2^32 elements, and of 2^30, whose groups are half of that."""
    for channels, groups, small in ((2**15, 1, False), (2**13, 1, True), (2**13, 2, True)):
        problem = ConvProblem.conv((1, channels * groups, 2, 2), (2**17, channels, 1, 1), (1, 1), (0, 0), (1, 1), groups)
        shapes = problem.input_shape, problem.weight_shape, problem.output_shape
        x, w, y = (
            (s, channels_last_strides(s) if channels_last else dense_strides(s, range(len(s) - 1, -1, -1))) for s in shapes
        )
        tensors = {Pass.FPROP: (x, w, y), Pass.DGRAD: (y, w, x), Pass.WGRAD: (y, x, w)}[which]
        assert gemm.fits_int32(problem, plan_of(which), *tensors) == small
