"""The six functions, forward and backward, against the float64 oracle and against torch's habits."""

import itertools
import math

import cases
import oracle
import pytest
import torch
import torch.nn.functional as F
from cases import Case

import tritonconv

COVER = cases.pairwise()


@pytest.mark.parametrize("case", COVER, ids=[f"{i}-{case.function}-{case.dtype}" for i, case in enumerate(COVER)])
def test_pairwise(case: Case, device: str, launched) -> None:
    oracle.check(case, device)


@pytest.mark.parametrize("case", cases.EDGES.values(), ids=cases.EDGES)
def test_edge(case: Case, device: str, launches, overflow_checked) -> None:
    oracle.check(case, device)
    assert bool(launches()) == (0 not in case.input)


def test_cover_is_pairwise() -> None:
    """Every pair of settings is in the cover, but for those that torch rejects or that mean nothing."""
    points = list(cases.points())
    for (n, vs), (m, us) in itertools.combinations(cases.AXES.items(), 2):
        missing = set(itertools.product(vs, us)) - {(point[n], point[m]) for point in points}
        for v, u in missing:
            words = {("function", f, "padding", p) for f in cases.FUNCTIONS[3:] for p in ("same", "valid")}
            words |= {("stride", s, "padding", "same") for s in cases.AXES["stride"] if s != 1}
            words |= {("function", f, "output_padding", "most") for f in cases.FUNCTIONS[:3]}
            words |= {("padding", p, "output_padding", "most") for p in ("same", "valid")}
            assert (n, v, m, u) in words


@pytest.mark.parametrize("function", cases.FUNCTIONS)
def test_gradient_of_a_sum(function: str, device: str, launched) -> None:
    """`y.sum().backward()` sends one number with stride 0, the gradient that most kernels forget."""
    case = sample(function, groups=2)
    x, w, b = (t.requires_grad_() for t in case.tensors(device))
    y = getattr(tritonconv, function)(x, w, b, **case.arguments)
    y.sum().backward()
    got = {"output": y.detach(), "input": x.grad, "weight": w.grad, "bias": b.grad}
    want = oracle.expected(function, x, w, b, torch.ones_like(y), **case.arguments)
    oracle.assert_close(got, want, repr(case), oracle.uses_tf32(x.dtype, device))


@pytest.mark.parametrize("layout", cases.LAYOUTS[1:])
@pytest.mark.parametrize("function", ["conv2d", "conv_transpose2d"])
def test_gradient_layout(function: str, layout: str, device: str, launched) -> None:
    case = sample(function, stride=2)
    oracle.check(Case(**vars(case) | {"g": layout}), device)


def sample(function: str, **settings: object) -> Case:
    """A small call of the function: two images, four channels in, six out."""
    rank, groups = int(function[-2]), settings.get("groups", 1)
    weight = (4, 6 // groups) if "transpose" in function else (6, 4 // groups)
    return Case(function, (2, 4, *(5, 4, 3)[:rank]), (*weight, *(3, 2, 2)[:rank]), **settings)


@pytest.mark.parametrize("function", cases.FUNCTIONS)
def test_only_the_gradients_asked_for_are_computed(function: str, device: str, launches) -> None:
    case = sample(function, stride=2)
    forward, backward = ("dgrad", "fprop") if case.transposed else ("fprop", "dgrad")
    passes = {"input": {backward}, "weight": {"wgrad"}, "bias": set()}
    seen = launches()
    for wanted in ((), ("input",), ("weight",), ("bias",), ("input", "bias"), tuple(passes)):
        tensors = dict(zip(passes, case.tensors(device), strict=True))
        for name in wanted:
            tensors[name].requires_grad_()
        y = getattr(tritonconv, function)(*tensors.values(), **case.arguments)
        assert set(launches() - seen) == {forward}
        seen = launches()
        assert y.requires_grad == bool(wanted)
        if wanted:
            y.backward(case.gradient(y))
        assert set(launches() - seen) - {"reduce"} == set().union(*(passes[name] for name in wanted)), wanted
        seen = launches()
        assert {name for name, t in tensors.items() if t.grad is not None} == set(wanted)


def test_no_grad_records_nothing(device: str, launched) -> None:
    x, w, b = (t.requires_grad_() for t in sample("conv2d").tensors(device))
    with torch.no_grad():
        assert not tritonconv.conv2d(x, w, b).requires_grad


def test_inputs_are_left_alone(device: str, launched) -> None:
    case = sample("conv2d", padding=1)
    x, w, b = case.tensors(device)
    oracle.run(tritonconv.conv2d, x, w, b, case.gradient, **case.arguments)
    for kept, fresh in zip((x, w, b), case.tensors(device), strict=True):
        assert torch.equal(kept, fresh)


def test_weight_changed_in_place_is_seen(device: str, launched) -> None:
    """No packed weight survives a step of the optimiser."""
    case = sample("conv2d", stride=2)
    x, w, b = case.tensors(device)
    for _ in range(2):
        for t in (x, w):
            got = oracle.run(tritonconv.conv2d, x, w, b, case.gradient, **case.arguments)
            g = case.gradient(got["output"])
            want = oracle.expected("conv2d", x, w, b, g, **case.arguments)
            oracle.assert_close(got, want, "in place", oracle.uses_tf32(x.dtype, device))
            t.mul_(-1.5).add_(0.25)


def test_saved_tensor_changed_in_place_raises(device: str) -> None:
    x, w, _ = sample("conv2d").tensors(device)
    w.requires_grad_()
    y = tritonconv.conv2d(x, w)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("function", cases.FUNCTIONS)
@pytest.mark.parametrize("batch", [(0,), (1,), ()], ids=["empty", "one", "unbatched"])
def test_batches(function: str, batch: tuple[int, ...], device: str, launches) -> None:
    case = sample(function, stride=2, groups=2, dtype="float16")
    oracle.check(Case(**vars(case) | {"input": batch + case.input[1:]}), device)
    assert bool(launches()) == (0 not in batch)


@pytest.mark.parametrize("function", cases.FUNCTIONS)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_dtypes(function: str, dtype: str, device: str, launched) -> None:
    oracle.check(sample(function, padding=1, dtype=dtype), device)


@pytest.mark.parametrize("function", cases.FUNCTIONS)
def test_argument_forms(function: str, device: str, launched) -> None:
    """An int, a tuple and a list of one, and a tuple of all mean the same, as in torch; a torch.Size is a tuple too."""
    case = sample(function)
    rank, call, tensors = case.rank, getattr(tritonconv, function), case.tensors(device)
    plain = call(*tensors, stride=2, padding=1, dilation=1)
    for form in (lambda n: (n,), lambda n: [n], lambda n: (n,) * rank, lambda n: [n] * rank, lambda n: torch.Size([n])):
        assert torch.equal(call(*tensors, stride=form(2), padding=form(1), dilation=form(1)), plain)


@pytest.mark.parametrize("function", cases.FUNCTIONS)
def test_positional_call(function: str, device: str, launched) -> None:
    """The transposed functions take output_padding and groups before dilation."""
    case = sample(function, groups=2)
    x, w, b = case.tensors(device)
    settings = (2, 1, 1, 2, 3) if case.transposed else (2, 2, 2, 2)
    want = getattr(F, function)(x.cpu().double(), w.cpu().double(), b.cpu().double(), *settings)
    got = getattr(tritonconv, function)(x, w, b, *settings)
    assert got.shape == want.shape
    tolerance = 1e-2 if oracle.uses_tf32(x.dtype, device) else 1e-4
    torch.testing.assert_close(got.cpu().double(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("function", cases.FUNCTIONS[:3])
def test_valid_is_no_padding(function: str, device: str, launched) -> None:
    case = sample(function)
    call = getattr(tritonconv, function)
    assert torch.equal(call(*case.tensors(device), stride=2, padding="valid"), call(*case.tensors(device), stride=2))


def test_same_is_asymmetric_for_an_even_kernel(device: str, launched) -> None:
    """The one extra zero goes to the end: an impulse kernel of two taps shows which neighbour is read."""
    x = torch.tensor([[[1.0, 2.0, 3.0]]], device=device)
    assert tritonconv.conv1d(x, torch.tensor([[[1.0, 0.0]]], device=device), padding="same").tolist() == [[[1, 2, 3]]]
    assert tritonconv.conv1d(x, torch.tensor([[[0.0, 1.0]]], device=device), padding="same").tolist() == [[[2, 3, 0]]]


# --- output memory format ---------------------------------------------------------------------------------------------

# torch's rule, on the CPU and with cuDNN alike: the output is channels_last where input or weight is, and contiguous
# otherwise; other strides are not kept. 1-D and unbatched tensors have no such format.
FORMATS = ("contiguous", "channels_last", "sliced", "permuted")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("function", ["conv2d", "conv3d", "conv_transpose2d", "conv_transpose3d"])
def test_output_strides_are_torchs(function: str, dtype: str, device: str, launched) -> None:
    rank = int(function[-2])
    for x_layout, w_layout in itertools.product(FORMATS, FORMATS):
        case = Case(function, (2, 3, *(2,) * rank), (3, 3, *(2, 1, 2)[:rank]), dtype=dtype, x=x_layout, w=w_layout)
        x, w, b = case.tensors(device)
        got = getattr(tritonconv, function)(x, w, b)
        assert got.stride() == getattr(F, function)(x, w, b).stride(), case
        last = torch.channels_last if case.rank == 2 else torch.channels_last_3d
        assert got.is_contiguous(memory_format=last) == ("channels_last" in (x_layout, w_layout)), case


@pytest.mark.parametrize("function", cases.FUNCTIONS)
def test_output_strides_without_a_format(function: str, device: str, launched) -> None:
    """1-D, and unbatched: the strides torch gives for the same call."""
    for x_layout in FORMATS:
        case = sample(function, x=x_layout)
        shapes = [case.input[1:]] + ([case.input] if case.rank == 1 else [])
        for shape in shapes:
            case = Case(**vars(case) | {"input": shape})
            x, w, b = case.tensors(device)
            got = getattr(tritonconv, function)(x, w, b)
            assert got.stride() == getattr(F, function)(x, w, b).stride(), case


@pytest.mark.parametrize("function", ["conv2d", "conv3d", "conv_transpose2d", "conv_transpose3d"])
def test_channels_last_survives_backward(function: str, device: str, launched) -> None:
    """In a channels_last network every gradient is channels_last too, or the next layer pays for a copy."""
    case = sample(function, stride=2, x="channels_last", w="channels_last", g="channels_last")
    got = oracle.run(getattr(tritonconv, function), *case.tensors(device), case.gradient, **case.arguments)
    last = torch.channels_last if case.rank == 2 else torch.channels_last_3d
    for name in ("output", "input", "weight"):
        assert got[name].is_contiguous(memory_format=last), f"{name}: {got[name].stride()}"


# --- autocast ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", cases.FUNCTIONS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_autocast(function: str, dtype: str, device: str, launched) -> None:
    """Under autocast float32 tensors are cast as torch's convolutions cast them, and gradients come back in float32."""
    case = sample(function, stride=2)
    x, w, b = case.tensors(device)
    cast = getattr(torch, dtype)
    leaves = [t.clone().requires_grad_() for t in (x, w, b)]
    with torch.autocast(device, dtype=cast):
        got = getattr(tritonconv, function)(*leaves, **case.arguments)
        assert got.dtype == getattr(F, function)(x, w, b, **case.arguments).dtype == cast
    g = case.gradient(got).to(cast)
    got.backward(g)
    rounded = [t.to(cast) for t in (x, w, b)]
    want = oracle.expected(function, *rounded, g, **case.arguments)
    results = {"output": got.detach()}
    for name, leaf in zip(("input", "weight", "bias"), leaves, strict=True):
        assert leaf.grad.dtype == torch.float32
        results[name] = leaf.grad.to(cast)  # exact: it was rounded to this dtype already
        assert torch.equal(results[name].float(), leaf.grad)
    oracle.assert_close(results, want, repr(case))


MIXED = [("float32", "float32"), ("float16", "float32"), ("float32", "bfloat16"), ("float64", "float64")]


@pytest.mark.parametrize("dtypes", MIXED, ids="-".join)
def test_autocast_of_mixed_dtypes(dtypes: tuple[str, str], device: str) -> None:
    """Float64 is never cast, everything else is."""
    x, w, b = sample("conv2d").tensors(device)
    x, w, b = x.to(getattr(torch, dtypes[0])), w.to(getattr(torch, dtypes[1])), b.to(getattr(torch, dtypes[1]))
    with torch.autocast(device, dtype=torch.bfloat16):
        assert tritonconv.conv2d(x, w, b).dtype == F.conv2d(x, w, b).dtype
    with torch.autocast(device, enabled=False):
        if dtypes[0] == dtypes[1]:
            assert tritonconv.conv2d(x, w, b).dtype == x.dtype
        else:
            with pytest.raises(RuntimeError):
                tritonconv.conv2d(x, w, b)


# --- a result is a function of its input, and of nothing else ---------------------------------------------------------


def test_repeats_bit_for_bit(device: str, launched) -> None:
    case = Case("conv2d", (2, 8, 9, 9), (8, 8, 3, 3), padding=1, dtype="float16")
    first, second = (oracle.run(tritonconv.conv2d, *case.tensors(device), case.gradient, **case.arguments) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy, in the interpreter
@pytest.mark.parametrize("function", cases.FUNCTIONS)
def test_nan_and_infinity_stay_where_they_are(function: str, device: str, launched) -> None:
    """A NaN in one image, or in one group, must not reach another: masked loads may not multiply it by zero."""
    case = sample(function, groups=2, padding=1)
    x, w, b = case.tensors(device)
    x[0, :2] = math.nan  # image 0, group 0
    y = getattr(tritonconv, function)(x, w, b, **case.arguments)
    assert y[0, :3].isnan().all()
    assert not y[1].isnan().any() and not y[0, 3:].isnan().any()
    x, w, b = case.tensors(device)
    x[1, 3] = math.inf
    y = getattr(tritonconv, function)(x, w, b, **case.arguments)
    assert y[0].isfinite().all() and y[1, :3].isfinite().all() and not y[1, 3:].isfinite().all()


def test_all_passes_launch_kernels(device: str, launched) -> None:
    oracle.check(sample("conv2d"), device)
    assert set(launched()) - {"reduce"} == {"fprop", "dgrad", "wgrad"}
