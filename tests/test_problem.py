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
    shapes, window = ((2, 3, *(size,) * rank), (4, 3, *(kernel,) * rank)), [(n,) * rank for n in (stride, low, dilation)]
    problem = ConvProblem.conv(*shapes, *window, checked=False)
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
    problem = ConvProblem.conv_transpose(
        (2, 4, size), (4, 3, kernel), (stride,), (low,), (extra,), 1, (dilation,), checked=False
    )
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


# ---- what is no convolution --------------------------------------------------------------------------------------------

CONV = {"input_shape": (1, 4, 5, 5), "weight_shape": (6, 2, 3, 3), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
NO_CONV = [
    (
        {"weight_shape": (6, 2, 7, 3)},
        r"kernel size can't be greater than the padded input: padded \[5, 5\], dilated kernel \[7, 3\]",
    ),
    ({"dilation": (1, 3)}, r"padded \[5, 5\], dilated kernel \[3, 7\]"),
    ({"padding": ((-1, -2), (0, 0))}, r"padded \[2, 5\], dilated kernel \[3, 3\]"),
    (
        {"input_shape": (4, 5, 5)},
        r"input_shape must be \[N, C, \*size\] with 4 sizes.*got \[4, 5, 5\]: an unbatched input needs a",
    ),
    (
        {"input_shape": (1, 4, 5, 5, 5)},
        r"input_shape must be .* with 4 sizes for weight_shape \[6, 2, 3, 3\], got \[1, 4, 5, 5, 5\]$",
    ),
    ({"weight_shape": (6, 2)}, r"weight_shape must be \[K, C / groups, \*kernel\] with an axis or more, got \[6, 2\]"),
    ({"stride": (1,)}, r"stride must have an entry for each of 2 spatial axes, got \(1,\)"),
    ({"stride": 2}, r"stride must have an entry for each of 2 spatial axes, got 2"),
    ({"padding": (0, 0, 0)}, r"padding must have an entry for each of 2 spatial axes, got \(0, 0, 0\)"),
    ({"dilation": ()}, r"dilation must have an entry for each of 2 spatial axes, got \(\)"),
    ({"stride": (0, 1)}, r"must be at least 1, got groups=2, stride=\(0, 1\), dilation=\(1, 1\)"),
    ({"dilation": (1, -1)}, r"must be at least 1, got .*dilation=\(1, -1\)"),
    ({"groups": 0}, "must be at least 1, got groups=0"),
    ({"groups": 4}, r"weight to be divisible by groups at dimension 0, got weight \[6, 2, 3, 3\] and groups=4"),
    ({"groups": 1}, r"given groups=1 and weight .*, expected input to have 2 channels, got input \[1, 4, 5, 5\] with 4"),
]


@pytest.mark.parametrize("change, words", NO_CONV, ids=[str(change) for change, _ in NO_CONV])
def test_what_is_no_convolution_is_refused_in_words(change, words):
    arguments = CONV | {"groups": 2} | change
    for kind in (ValueError, RuntimeError):  # as of the rest of costmodel, and as torch
        with pytest.raises(kind, match=words):
            ConvProblem.conv(**arguments)


def test_torch_refuses_the_same():
    """Small sizes at random, half of which torch takes."""
    pick = random.Random(3)
    agreed = {True: 0, False: 0}
    for _ in range(400):
        n, c, size, k, each, taps = (pick.randint(1, 6) for _ in range(6))
        c = c if pick.random() < 0.3 else each * pick.randint(1, 2)
        stride, padding, dilation, groups = pick.randint(1, 2), pick.randint(0, 2), pick.randint(1, 2), pick.choice((1, 1, 2))
        for transposed in (False, True):
            weight = (c, k, taps) if transposed and pick.random() < 0.8 else (k, each, taps)
            given = [
                (stride,),
                (padding,),
                *([(0,)] if transposed else []),
                *([groups] if transposed else [(dilation,), groups]),
            ]
            function = F.conv_transpose1d if transposed else F.conv1d
            window = [stride, padding, 0, groups, dilation] if transposed else [stride, padding, dilation, groups]
            try:
                theirs = tuple(function(torch.zeros(n, c, size), torch.zeros(weight), None, *window).shape)
                theirs = theirs if all(theirs) else None  # a transposed one may answer no pixel
            except RuntimeError:
                theirs = None
            try:
                if transposed:
                    ours = ConvProblem.conv_transpose((n, c, size), weight, *given, (dilation,)).input_shape
                else:
                    ours = ConvProblem.conv((n, c, size), weight, *given).output_shape
            except ValueError:
                ours = None
            assert ours == theirs, (transposed, (n, c, size), weight, window)
            agreed[ours is None] += 1
    assert min(agreed.values()) > 150


@pytest.mark.parametrize(
    "change, words",
    [
        ({"weight_shape": (3, 2, 3, 3)}, r"given transposed=1 and weight \[3, 2, 3, 3\], expected input to have 3 channels"),
        ({"groups": 3}, r"divisible by groups=3, got input \[1, 4, 5, 5\]"),
        ({"padding": (4, 0)}, r"the output would have size \[-1, 7\]: input=\[1, 4, 5, 5\].*padding=\(4, 0\)"),
        ({"padding": (3, 0), "weight_shape": (4, 2, 2, 3)}, r"the output would have size \[0, 7\]"),
        ({"input_shape": (4, 5, 5)}, "an unbatched input needs a batch of 1 in front"),
        ({"weight_shape": (4, 2, 3)}, r"input_shape must be \[N, C, \*size\] with 3 sizes"),
        ({"output_padding": (0,)}, r"output_padding must have an entry for each of 2 spatial axes, got \(0,\)"),
        ({"stride": (1, 0)}, "must be at least 1"),
    ],
)
def test_what_is_no_transposed_convolution_is_refused_in_words(change, words):
    arguments = CONV | {"weight_shape": (4, 2, 3, 3), "output_padding": (0, 0), "groups": 2} | change
    with pytest.raises(ValueError, match=words):
        ConvProblem.conv_transpose(**arguments)


def test_who_asks_for_it_gets_a_problem_without_a_result():
    """Causal functions know chunks that are shorter than a window, and say so themselves."""
    problem = ConvProblem.conv((1, 1, 2), (1, 1, 5), (1,), (0,), (1,), checked=False)
    assert problem.output_size == (-2,)
    assert ConvProblem.conv_transpose((1, 1, 1), (1, 1, 1), (1,), (2,), (0,), checked=False).input_size == (-3,)


def test_of_symbols_their_number_alone_is_asked():
    n, k = sympy.symbols("n k", positive=True, integer=True)
    free = ConvProblem.conv((1, 1, n), (1, 1, k), (1,), (0,), (1,))
    assert free.output_size == (n - k + 1,)
    with pytest.raises(ValueError, match="unbatched"):
        ConvProblem.conv((1, n), (1, 1, k), (1,), (0,), (1,))
