"""Large depthwise filters on tensor cores: right wherever a plan may ask for them, refused elsewhere, chosen where they pay."""

import pytest
import test_fused
import torch
from bands import CASES, depthwise, plans
from cases import LAYOUTS, Case
from oracle import check
from triton.runtime.interpreter import InterpreterBuilder

import tritonconv
from costmodel.families import band
from costmodel.problem import ConvProblem, Pass
from tritonconv import launch
from tritonconv.families.band import vectored_copy, vectored_strides

PASSES = {f"band {which}": 1 for which in Pass}


@pytest.mark.parametrize("name", CASES)
def test_every_kind(name, device, launches, overflow_checked):
    case, forced = CASES[name]
    check(case, device, plan=forced)
    assert {key: n for key, n in launches().items() if " " in key} == PASSES


@pytest.mark.parametrize("x, gradient", [*((x, "expanded") for x in LAYOUTS), *(("sliced", g) for g in LAYOUTS[:3])])
def test_any_strides_are_right(x, gradient, device, launches):
    case = depthwise((2, 2, 6, 8), (5, 5), padding=2, x=x, g=gradient, w="sliced" if x == "sliced" else "permuted")
    check(case, device, plan=plans(box=(4, 8), pixels=(4, 16)))
    assert PASSES.items() <= launches().items()


@pytest.mark.parametrize(
    "activation, extras, residual",
    [
        ("gelu", ("scale", "shift", "residual"), "contiguous"),
        ("relu", ("scale", "shift"), "contiguous"),
        (None, ("residual",), "channels_last"),
        ("hardswish", ("residual",), "expanded"),
    ],
)
@pytest.mark.parametrize("kind", ["vectors", "copied", "transposed"])
def test_an_epilogue_in_the_same_kernel(kind, activation, extras, residual, device, launches):
    """What is copied takes its residual and the value before the activation along."""
    case = depthwise((3, 2, 6, 8 if kind == "vectors" else 11), (5, 5), padding=(2, 1), bias=kind != "copied")
    if kind == "transposed":
        case = Case("conv_transpose2d", (3, 2, 6, 16), (2, 1, 5, 3), padding=(2, 1), groups=2, dtype="bfloat16")
    test_fused.check(case, activation, extras, device, residual, plan=plans(box=(2, 8), pixels=(2, 8)))
    found = launches()
    assert found["band dgrad" if kind == "transposed" else "band fprop"] >= 1 and not found["depthwise fprop"]


def test_a_tensor_that_begins_between_vectors_is_copied(device, launches):
    x, w, b = depthwise((2, 2, 6, 16), (5, 5)).tensors(device)
    odd = torch.zeros(x.numel() + 8, dtype=x.dtype, device=device).as_strided(x.shape, x.stride(), 1).copy_(x)
    got, want = (tritonconv.conv2d(t, w, b, padding=2, groups=2, plan=plans()) for t in (odd, x))
    assert torch.equal(got, want) and launches()["band fprop"] == 2
    explained = tritonconv.explain(tritonconv.conv2d, odd, w, b, padding=2, groups=2, plan=plans())
    assert explained.plans["fprop"].pack == ("a",) and explained.plans["dgrad"].pack == ()


def test_an_empty_batch_launches_nothing(device, launches):
    check(depthwise((0, 2, 16, 16), (13, 13), padding=6), device, plan=plans())
    assert not launches()


def test_negative_padding_crops(device, launched):
    x, w, b = depthwise((2, 2, 12, 16), (5, 13)).tensors(device)
    op, forced = torch.ops.tritonconv, ";".join(map(str, plans(split=2)))
    place, inside = ([1, 1], [2, -1, -3, 6], [1, 1], 2), ([1, 1], [2, 0, 0, 6], [1, 1], 2)
    small = x[:, :, :-1, 3:].contiguous()
    want = op.fprop(small, w, b, *inside)
    torch.testing.assert_close(op.fprop(x, w, b, *place, forced), want)
    dx = op.dgrad(want, w, None, x.shape[2:], *place, forced)
    torch.testing.assert_close(dx[:, :, :-1, 3:], op.dgrad(want, w, None, small.shape[2:], *inside))
    assert not dx[:, :, -1].any() and not dx[:, :, :, :3].any()
    dw = op.wgrad(want, x, w.shape[2:], *place, forced)
    torch.testing.assert_close(dw, op.wgrad(want, small, w.shape[2:], *inside), rtol=2e-3, atol=2e-2)
    assert PASSES.keys() <= launched().keys()


def test_a_nan_stays_in_its_image_and_channel(device):
    x, w, _ = depthwise((2, 2, 8, 16), (5, 13)).tensors(device)
    clean = tritonconv.conv2d(x, w, padding=(2, 6), groups=2, plan=plans())
    x[1, 0, 3, 4] = torch.nan
    y = tritonconv.conv2d(x, w, padding=(2, 6), groups=2, plan=plans())
    assert y[1, 0].isnan().any() and torch.equal(y[0], clean[0]) and torch.equal(y[1, 1], clean[1, 1])


def test_offsets_may_take_64_bits(device, launched, monkeypatch):
    monkeypatch.setattr("tritonconv.families.band.fits_int32", lambda *_: False)
    launch.prepare_call.cache_clear()
    check(depthwise((3, 2, 10, 11), (5, 7), padding=3), device, plan=plans(box=(4, 8), pixels=(4, 8)))
    launch.prepare_call.cache_clear()
    assert PASSES.keys() <= launched().keys()


def test_a_copy_in_vectors():
    x = torch.randn(2, 3, 5, 7).to(memory_format=torch.channels_last)
    copy = vectored_copy(x)
    assert torch.equal(copy, x) and copy.stride() == vectored_strides(x.shape) == (120, 40, 8, 1)
    assert not torch.as_strided(copy, (2, 3, 5, 8), copy.stride())[..., 7:].any()


def test_the_call_says_why(device):
    x, w, _ = depthwise((1, 2, 16, 16), (13, 13), dtype="float32").tensors(device)
    with pytest.raises(ValueError, match="in 16 bits, got float32"):
        tritonconv.conv2d(x, w, padding=6, groups=2, plan=plans())


DOTS = {
    "stripes_across": CASES["stripes_across"],
    "blocks_of_two_columns": CASES["blocks_of_two_columns"],
    "columns_of_padding": (depthwise((3, 2, 12, 8), (3, 3), padding=(1, 40)), plans(box=(4, 8), pixels=(4, 8))),
    "rows_of_padding": (depthwise((3, 2, 6, 16), (3, 5), padding=(40, 2)), plans(box=(4, 8), pixels=(4, 8), split=2)),
}


@pytest.mark.interpreter
@pytest.mark.parametrize("name", DOTS)
def test_the_kernels_multiply_as_often_as_is_counted(name, device, monkeypatch):
    """Products of tiles that the interpreter runs, pass by pass."""
    case, forced = DOTS[name]
    x, w, _ = case.tensors(device)
    of = ConvProblem.conv(tuple(x.shape), tuple(w.shape), (1, 1), case.arguments["padding"], (1, 1), case.arguments["groups"])
    dy = torch.ones(of.output_shape, dtype=x.dtype, device=device)
    count, multiply = [], InterpreterBuilder.create_dot
    monkeypatch.setattr(InterpreterBuilder, "create_dot", lambda *operands: count.append(1) or multiply(*operands))
    runs = {
        Pass.FPROP: (launch.fprop, (x, w, None)),
        Pass.DGRAD: (launch.dgrad, (dy, w, None)),
        Pass.WGRAD: (launch.wgrad, (dy, x)),
    }
    for plan in forced:
        run, operands = runs[plan.which]
        count.clear()
        run(*operands, of, str(plan))
        assert len(count) == band.planned(of, plan).trips


def test_explain_says_what_is_copied_and_cut(device):
    x, w, b = depthwise((2, 2, 16, 23), (13, 13)).tensors(device)
    words = str(tritonconv.explain(tritonconv.conv2d, x, w, b, padding=6, groups=2, plan=plans(split=2)))
    assert "fprop: depthwise on tensor cores, each channel's taps a banded matrix" in words
    assert "x copied to contiguous rows of whole vectors first" in words and "then copied to its place" in words
    assert "16 blocks of 4 x 16 outputs, 2 x 16 pixels of a window per trip" in words
    assert "dy and x copied" in words and "2 parts of each added in a fixed order" in words
