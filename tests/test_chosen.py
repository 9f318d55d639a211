"""A problem that is small enough to execute compiles to the same code as the layer that a plan was chosen for."""

import math
from dataclasses import replace

import pytest

from bench.compiled import suite
from bench.compiled.chosen import MANY_MACS, chosen, code_of, far, key_of, prepared_for, reach, sizes, smaller, walked
from bench.work import Work
from bench.workloads import load
from bench.workloads.lists import BOTH, line_of
from costmodel.device import DEVICES
from costmodel.problem import Pass
from costmodel.reports.notation import parse
from tritonconv import host
from tritonconv.families import gemm

H200, A100 = DEVICES["NVIDIA H200"], DEVICES["NVIDIA A100-SXM4-80GB"]
LAYERS = [
    ("conv2d n64 c64 56x56 -> 64 k3x3 p1,1", "channels_last"),
    ("conv2d n64 c3 224x224 -> 64 k7x7 s2x2 p3,3", "channels_last"),
    ("conv1d n16 c128 8192 -> 128 k7 p15 d5", "contiguous"),
    ("conv2d n128 c384 28x28 -> 384 k7x7 p3,3 g384", "channels_last"),
    ("conv2d n16 c512 64x64 -> 512 k31x31 p15,15 g512", "contiguous"),
    ("conv3d n1 c64 361x370x251 -> 32 k3x3x3 p1,1,1", "channels_last"),  # offsets of 64 bits
    ("conv2d n2 c64 9000x9000 -> 64 k3x3 p1,1 g64", "channels_last"),
    ("conv2d n1 c25600 32x32 -> 25600 k3x3 g50", "channels_last"),  # too many multiply-adds in any image
    ("conv1d n1 c512 20016 -> 512 k20000 g512", "contiguous"),  # few multiply-adds, but many pairs that meet padding
]


@pytest.fixture(autouse=True)
def host_as_it_was(monkeypatch):
    for name in ("_now", "_kernels"):
        monkeypatch.setattr(host, name, getattr(host, name))


@pytest.mark.parametrize("device", [H200, A100], ids=["h200", "a100"])
@pytest.mark.parametrize("which", Pass)
@pytest.mark.parametrize("text, layout", LAYERS)
def test_the_same_code_on_a_small_problem(text, layout, which, device):
    work = Work(parse(text).problem, which, "float16", layout=layout)
    of, real = chosen(work, False, device), prepared_for(work, False, device)
    assert walked(of.work.problem) < 10 * MANY_MACS and of.plan == real.plan
    assert not of.far or "361x370x251" in text or "9000x9000" in text
    if of.far:
        with far():
            small = prepared_for(of.work, False, device, str(of.plan))
    else:
        small = prepared_for(of.work, False, device, str(of.plan))
    assert code_of(small) == code_of(real)
    kept = ("kernel_size", "stride", "dilation", "padding", "channels_per_group", "filters_per_group")
    assert all(getattr(of.work.problem, name) == getattr(work.problem, name) for name in kept)


def test_what_a_key_depends_on():
    work = Work(parse(LAYERS[0][0]).problem, Pass.FPROP, "float16")
    keys = {
        "here": key_of(prepared_for(work, False, H200), work, 90),
        "other architecture": key_of(prepared_for(work, False, H200), work, 89),
        "other type": key_of(prepared_for(work, False, H200), replace(work, dtype="bfloat16"), 90),
        "bias": key_of(prepared_for(work, True, H200), work, 90),
        "other tile": key_of(prepared_for(work, False, H200, "fprop:gather:64x64x32:w4:s4"), work, 90),
        "channels": key_of(
            prepared_for(other := replace(work, problem=parse("conv2d n64 c24 56x56 -> 64 k3x3").problem), False, H200),
            other,
            90,
        ),
    }
    assert len(set(keys.values())) == len(keys)
    one = replace(work, problem=replace(work.problem, batch=7))
    plan = str(prepared_for(work, False, H200).plan)
    assert key_of(prepared_for(one, False, H200, plan), one, 90) == keys["here"]


def test_far_leaves_everything_as_it_was():
    before = [module.fits_int32 for module in reach()]
    work = Work(parse(LAYERS[0][0]).problem, Pass.FPROP, "float16")
    near = code_of(prepared_for(work, False, A100, "fprop:gather:64x64x32:w4:s4"))
    with pytest.raises(KeyError), far():
        assert not gemm.fits_int32(work.problem, None)
        assert code_of(prepared_for(work, False, A100, "fprop:gather:64x64x32:w4:s4")) != near
        raise KeyError
    assert [module.fits_int32 for module in reach()] == before
    assert code_of(prepared_for(work, False, A100, "fprop:gather:64x64x32:w4:s4")) == near


@pytest.mark.parametrize(
    "size, kernel, stride, low, high",
    [(224, 7, 2, 3, 3), (17, 3, 1, 0, 0), (5, 5, 1, 2, 2), (96, 4, 4, 0, 0), (31, 3, 2, -1, 1)],
)
def test_sizes_of_an_axis(size, kernel, stride, low, high):
    found = sizes(size, kernel, stride, low, high, 1)
    assert size in found and max(found) == size
    assert all(n % stride == size % stride and n + low + high >= kernel for n in found)
    assert any(math.gcd(n, 16) == math.gcd(size, 16) for n in found)


def test_smaller_problems_come_by_their_work():
    found = list(smaller(parse(LAYERS[1][0]).problem))
    work = [p.batch * math.prod(p.input_size) for p in found if p.batch > 1]
    assert work == sorted(work) and found[0].batch == 2 and all(min(p.output_size) >= 1 for p in found)


def test_every_convolution_of_the_workloads_is_asked_for():
    layers = [layer for layer in load() if layer.op.startswith("conv")]
    assert len(layers) == 1044
    assert {line_of(layers[0], which, "float16").work.which for which in BOTH} == set(Pass)


def test_files_of_tma_plans_are_asked_of_hopper_alone():
    pairs = suite.pairs()
    assert ("tests/test_tma.py", 90) in pairs and ("tests/test_tma.py", 80) not in pairs
    assert set(suite.NEED) <= set(suite.FILES) and len(pairs) == 2 * len(suite.FILES) - len(suite.NEED)
