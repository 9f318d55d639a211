"""ConvProblem against torch's own shapes and a brute-force walk over the taps; on ints, SymInts and sympy symbols."""

import random
import subprocess
import sys

import pytest
import sympy
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.problem import ConvProblem, Pass, padding_pairs

axis = st.tuples(
    st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(0, 5), st.integers(-2, 5), st.integers(1, 24)
)


def one_axis(kernel, stride, dilation, low, high, size):
    return ConvProblem(1, 1, 1, 1, (size,), (kernel,), (stride,), ((low, high),), (dilation,))


def meetings(problem):
    """Every (input, tap, output) coordinate that the definition of the convolution joins."""
    (k,), (s,), (d,), ((low, _),) = problem.kernel_size, problem.stride, problem.dilation, problem.padding
    found = set()
    for o in range(problem.output_size[0]):
        for r in range(k):
            h = o * s - low + r * d
            if 0 <= h < problem.input_size[0]:
                found.add((h, r, o))
    return found


@settings(max_examples=400, deadline=None)
@given(axis)
def test_phases_meet_every_tap_once_and_cover_every_input_pixel_once(numbers):
    problem = one_axis(*numbers)
    if problem.padded_size[0] < problem.effective_kernel[0]:
        return
    pixels, found = [], []
    for phase in problem.phases():
        (a,) = phase.axes
        for i in range(a.size):
            pixels.append(a.residue + i * problem.stride[0])
            for t in range(a.taps):
                o = i + a.base - t * a.delta
                if 0 <= o < problem.output_size[0]:
                    found.append((pixels[-1], a.first + t * a.step, o))
    assert sorted(pixels) == list(range(problem.input_size[0])), problem
    assert len(found) == len(set(found)) and set(found) == meetings(problem), problem


def test_heaviest_phase_runs_first_and_empty_ones_are_listed():
    problem = ConvProblem.conv((1, 1, 9, 9), (1, 1, 1, 3), (3, 2), (0, 1), (1, 1))
    taps = [phase.taps for phase in problem.phases()]
    assert taps == [2, 1, 0, 0, 0, 0]


@settings(max_examples=200, deadline=None)
@given(axis, st.integers(1, 3))
def test_sizes_are_torchs(numbers, rank):
    kernel, stride, dilation, low, _, size = numbers
    problem = ConvProblem.conv(
        (2, 3, *(size,) * rank), (4, 3, *(kernel,) * rank), (stride,) * rank, (low,) * rank, (dilation,) * rank
    )
    if problem.padded_size[0] < problem.effective_kernel[0]:
        return
    x, w = torch.empty(problem.input_shape, device="meta"), torch.empty(problem.weight_shape, device="meta")
    y = getattr(F, f"conv{rank}d")(x, w, None, stride, low, dilation)
    assert tuple(y.shape) == problem.output_shape
    assert problem.flops == 2 * problem.macs == 2 * y.numel() * 3 * kernel**rank


@settings(max_examples=200, deadline=None)
@given(axis, st.data())
def test_transposed_sizes_are_torchs_and_invert_exactly(numbers, data):
    kernel, stride, dilation, low, _, size = numbers
    extra = data.draw(st.integers(0, max(stride, dilation) - 1))
    problem = ConvProblem.conv_transpose((2, 4, size), (4, 3, kernel), (stride,), (low,), (extra,), 1, (dilation,))
    if problem.input_size[0] <= 0:
        return
    x, w = torch.empty((2, 4, size), device="meta"), torch.empty((4, 3, kernel), device="meta")
    assert tuple(F.conv_transpose1d(x, w, None, stride, low, extra, 1, dilation).shape) == problem.input_shape
    assert problem.output_shape == (2, 4, size)


def test_same_padding_puts_the_odd_element_high():
    assert padding_pairs("same", (4, 3), (1, 2)) == ((1, 2), (2, 2))
    assert padding_pairs("valid", (4, 3), (1, 2)) == ((0, 0), (0, 0))
    with pytest.raises(ValueError, match="'full'"):
        padding_pairs("full", (3,), (1,))


def test_gemm_views_agree_on_the_work():
    problem = ConvProblem.conv((2, 6, 9, 8), (4, 3, 3, 2), (2, 1), (1, 0), (1, 2), 2)
    for which in (Pass.FPROP, Pass.WGRAD):
        view = problem.gemm(which)
        assert view.m * view.n * view.k * view.batch == problem.macs
    phases = sum(phase.pixels * phase.taps for phase in problem.phases())
    dgrad = problem.gemm(Pass.DGRAD)
    assert dgrad.m == problem.batch * sum(phase.pixels for phase in problem.phases())
    assert problem.batch * phases * problem.in_channels * problem.filters_per_group >= problem.macs  # borders included


def test_patches():
    def patch(kernel, stride, padding=((0, 0),), dilation=1):
        return ConvProblem(1, 3, 4, 1, (9,), (kernel,), (stride,), padding, (dilation,)).is_patch

    assert patch(1, 1) and patch(4, 4) and patch(4, 4, ((0, -1),)) and patch(1, 1, dilation=3)
    assert not patch(1, 2) and not patch(4, 4, ((0, 1),)) and not patch(4, 4, ((1, 0),)) and not patch(2, 2, dilation=2)


@settings(max_examples=200, deadline=None)
@given(axis)
def test_needs_bounds_is_exact(numbers):
    problem = one_axis(*numbers)
    if problem.padded_size[0] < problem.effective_kernel[0]:
        return
    (k,), (s,), (d,), ((low, _),) = problem.kernel_size, problem.stride, problem.dilation, problem.padding
    taken = [o * s - low + r * d for o in range(problem.output_size[0]) for r in range(k)]
    assert problem.needs_bounds == any(not 0 <= h < problem.input_size[0] for h in taken), problem


@settings(max_examples=300, deadline=None)
@given(axis)
def test_useful_counts_are_exact(numbers):
    """(output, tap) pairs and input coordinates, found one by one. The three passes share the pairs."""
    problem = one_axis(*numbers)
    if problem.padded_size[0] < problem.effective_kernel[0]:
        return
    (k,), (s,), (d,), ((low, _),) = problem.kernel_size, problem.stride, problem.dilation, problem.padding
    met = [o * s - low + r * d for o in range(problem.output_size[0]) for r in range(k)]
    met = [h for h in met if 0 <= h < problem.input_size[0]]
    assert (problem.valid_pairs, problem.touched_size) == ((len(met),), (len(set(met)),)), problem
    channels = problem.batch * problem.out_channels * problem.channels_per_group
    assert problem.useful_macs == channels * len(met)


def numbers_of(problem):
    gemms = [value for which in Pass for value in problem.gemm(which)]
    moved = [problem.bytes(2, which) for which in Pass]
    counted = [*problem.valid_pairs, *problem.touched_size, problem.useful_macs, problem.macs, problem.flops]
    return [*problem.output_shape, *counted, *moved, *gemms]


def test_the_same_lines_run_on_sympy_symbols():
    n, c, k, h, w = sympy.symbols("n c k h w", integer=True, positive=True)
    r, s, p, q = sympy.symbols("r s p q", integer=True, positive=True)
    symbolic = ConvProblem(n, c, k, 1, (h, w), (r, r), (s, s), ((p, q), (q, p)), (1, 2))
    generator = random.Random(0)
    for _ in range(6):
        values = {x: generator.randint(1, 5) for x in (n, c, k, r, s, p, q)} | {h: 20, w: 25}
        plain = ConvProblem(
            values[n], values[c], values[k], 1, (20, 25), (values[r],) * 2, (values[s],) * 2,
            ((values[p], values[q]), (values[q], values[p])), (1, 2),
        )  # fmt: skip
        assert [int(sympy.sympify(e).subs(values).doit()) for e in numbers_of(symbolic)] == numbers_of(plain)


def test_the_same_lines_run_on_symints():
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    dynamic = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * 4)
    real = torch.zeros(3, 4, 17, 19)
    with torch._subclasses.FakeTensorMode(shape_env=ShapeEnv()) as mode:
        x = mode.from_tensor(real, symbolic_context=dynamic)
        problem = ConvProblem.conv(x.shape, (8, 4, 3, 3), (2, 2), (1, 1), (1, 1))
        assert isinstance(problem.output_size[0], torch.SymInt)
        plain = ConvProblem.conv((3, 4, 17, 19), (8, 4, 3, 3), (2, 2), (1, 1), (1, 1))
        assert [int(value) for value in numbers_of(problem)] == numbers_of(plain)
        assert len(problem.phases()) == 4


def test_costmodel_imports_the_standard_library_only():
    code = (
        "import sys, costmodel, costmodel.plan, costmodel.timing, costmodel.device; "
        "print([m for m in ('torch', 'triton', 'sympy', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
