"""The one-line notation: what each word means, that both forms read back, and a reason for each impossible layer."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.problem import ConvProblem
from costmodel.reports.notation import Convolution, parse


@st.composite
def layers(draw):
    """A possible layer, plain or transposed, of rank 1 to 3."""
    rank, groups = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    counts = draw(st.tuples(st.integers(1, 40), st.integers(1, 4), st.integers(1, 4)))
    batch, channels, filters = counts[0], groups * counts[1], groups * counts[2]

    def axes(low, high):
        return tuple(draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank)))

    kernel, stride, dilation, size = axes(1, 7), axes(1, 4), axes(1, 4), axes(1, 60)
    if draw(st.booleans()):
        padding = axes(0, 4)
        extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
        weight = (channels, filters // groups, *kernel)
        problem = ConvProblem.conv_transpose(
            (batch, channels, *size), weight, stride, padding, extra, groups, dilation, checked=False
        )
        possible = all(n >= 1 for n in problem.input_size)
        return Convolution(problem, transposed=True) if possible else None
    padding = tuple(zip(axes(-2, 5), axes(-2, 5), strict=True))
    problem = ConvProblem.conv(
        (batch, channels, *size), (filters, channels // groups, *kernel), stride, padding, dilation, groups, checked=False
    )
    return Convolution(problem) if all(o >= 1 for o in problem.output_size) else None


@settings(max_examples=600, deadline=None)
@given(layers().filter(bool))
def test_what_a_layer_writes_reads_back_as_the_same_layer(layer):
    assert parse(str(layer)) == layer
    if not layer.transposed:
        assert parse(str(layer.problem)).problem == layer.problem


def test_every_word_means_what_it_says():
    layer = parse("conv2d 64x56x40 k3x5 s2x1 p1:2x0 d1x2 g4 c128 n32")
    assert layer.problem == ConvProblem.conv((32, 64, 56, 40), (128, 16, 3, 5), (2, 1), ((1, 2), (0, 0)), (1, 2), 4)
    assert (layer.input_shape, layer.output_shape) == ((32, 64, 56, 40), (32, 128, 29, 32))
    assert parse("conv3d 3x8x9x10 k1").problem == ConvProblem.conv(
        (1, 3, 8, 9, 10), (3, 3, 1, 1, 1), (1,) * 3, (0,) * 3, (1,) * 3
    )
    assert parse("conv1d 6x50 k4 psame gdw c12").problem == ConvProblem.conv((1, 6, 50), (12, 1, 4), (1,), ((1, 2),), (1,), 6)
    assert parse("conv2d 64x56x56 k3 p1 c64 n32") == parse("conv2d n32 c64 56x56 -> 64 k3x3 p1,1")


def test_a_transposed_layer_is_the_dgrad_of_its_forward_problem():
    layer = parse("conv_transpose2d 32x28x28 k4 s2 p1 op1 c16 n8")
    assert layer.input_shape == (8, 32, 28, 28) and layer.output_shape == (8, 16, 57, 57)
    assert layer.problem == ConvProblem.conv_transpose((8, 32, 28, 28), (32, 16, 4, 4), (2, 2), (1, 1), (1, 1))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "unknown layer"),
        ("conv4d 3x8 k3", "conv1d"),
        ("conv2d 64x56x56", "add k3"),
        ("conv2d k3", "input size CxHxW such as 64x56x56, got none"),
        ("conv2d 64x56 k3", "CxHxW such as 64x56x56, got 64x56"),
        ("conv2d 64x56x56x56 k3", "got 64x56x56x56"),
        ("conv2d n2 c64 56 -> 64 k3", "HxW such as 56x56, got 56"),
        ("conv2d 64x56x56 k3x3x3", "k3x3x3 has 3 numbers"),
        ("conv2d 64x56x56 k3 q7", "cannot read 'q7'"),
        ("conv2d 64x56x56 k3 k5", "k is given twice"),
        ("conv2d 64x56x56 k3 s0", "s0 has a number below 1"),
        ("conv2d 64x0x56 k3", "input 64x0x56"),
        ("conv2d 64x56x56 k3 n0", "n0"),
        ("conv2d 64x56x56 k3 g3", "g3 does not divide the 64 input channels"),
        ("conv2d 64x56x56 k3 g4 c6", "g4 does not divide the 6 output channels"),
        ("conv2d 64x5x56 k7", "spans 7 of axis H, whose padded input is 5: add 2"),
        ("conv1d 64x9 k3 d5", "spans 11 of axis L"),
        ("conv1d 64x9 k3 p-4", "padded input is 1"),
        ("conv2d 64x56x56 k3 s2 psame", "psame needs s1"),
        ("conv2d 64x56x56 k3 op1", "op1 is for transposed layers"),
        ("conv_transpose2d 64x7x7 k3 s2 op2", "op2 on axis H must be less"),
        ("conv_transpose2d 64x7x7 k3 psame", "p1 or p1x2"),
        ("conv_transpose2d 64x1x1 k1 p3", "output has size -5"),
    ],
)
def test_an_impossible_layer_is_refused_in_one_line_that_says_why(text, says):
    with pytest.raises(ValueError, match=re.escape(says)) as raised:
        parse(text)
    assert "\n" not in str(raised.value)
