"""The probe on a stand-in clock, and its kernels in the interpreter and compiled."""

from __future__ import annotations

import io
import json
import os

import pytest
import torch
from rich.console import Console
from standin import StandIn

from bench import probe as probing
from bench.probe import Sizes, boxes, probe
from bench.probe_kernels import box_kernel, descriptors_kernel, empty_kernel, read_kernel
from costmodel.problem import ConvProblem

interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in the interpreter")
SMALL = Sizes(
    l2_bytes=1 << 16,
    read_programs=2,
    read_trips=3,
    copy_bytes=1 << 10,
    matrix=16,
    repeated=ConvProblem.conv((1, 16, 4, 4), (16, 16, 3, 3), (1, 1), (1, 1), (1, 1)),
    runs=1,
    launches=2,
    repeats=3,
)


@interpreted
def test_every_question_is_answered(tmp_path, monkeypatch):
    monkeypatch.setattr(probing, "REPEATED", ("64x64x64:w4:s4",))
    console = Console(file=io.StringIO(), width=200)
    found = probe(StandIn(), tmp_path, SMALL, console)
    assert [answer.question for answer in found if answer.value is None] == []
    by_name = {answer.question: answer.value for answer in found}
    assert by_name["a tensor map whose outer stride is the smaller one"] == 1
    assert by_name["a tensor map of overlapping windows"] == 1
    assert by_name["a copy in device memory"] == pytest.approx(2 * (1 << 10) / 1e-5 / 1e9)
    assert [value for name, value in by_name.items() if name.startswith("runs with other bits")] == [0, 0, 0]
    assert by_name["a launch with a pointer"] == pytest.approx(1e6 / 2)  # a tick of the clock for two launches
    saved = json.loads((tmp_path / "probe.json").read_text())
    assert [record["question"] for record in saved] == [answer.question for answer in found]
    assert saved[0]["gpu"] == "stand-in" and "overlapping" in console.file.getvalue()


@interpreted
def test_a_refusal_is_an_answer(tmp_path, monkeypatch):
    def refused(view, block):
        raise RuntimeError("the driver says no")

    monkeypatch.setattr(probing, "boxes", refused)
    monkeypatch.setattr(probing, "REPEATED", ())
    found = probe(StandIn(), tmp_path, SMALL, Console(file=io.StringIO()))
    assert found[0].value is None and found[0].note == "RuntimeError: the driver says no" and found[-1].value is not None
    assert found[0].question == "a tensor map whose outer stride is the smaller one"


@interpreted
def test_boxes_see_a_wrong_map(monkeypatch):
    view = torch.randn(2, 8, 16).half()
    assert boxes(view, (1, 4, 8))
    make = probing.TensorDescriptor
    monkeypatch.setattr(probing, "TensorDescriptor", lambda base, shape, strides, block: make(base, shape, [64, 16, 1], block))
    assert not boxes(view, (1, 4, 8))


@interpreted
def test_the_reads_are_all_made():
    source, out = torch.arange(4 * 16, dtype=torch.float32), torch.empty(2)
    read_kernel[(2,)](source, out, 4, 6, BLOCK=16)
    blocks = source.view(4, 16).sum(1)
    assert out.tolist() == [3 * float(blocks[0] + blocks[2]), 3 * float(blocks[1] + blocks[3])]


@pytest.mark.aot
def test_the_kernels_compile():
    from triton.tools.tensor_descriptor import TensorDescriptor

    from bench.aot import Pointer, compile_ahead

    half, wide = Pointer(torch.float16), Pointer(torch.float32)
    described = TensorDescriptor(half, [9, 64, 64], [64, 576, 1], [1, 64, 64])
    box = compile_ahead(box_kernel, {"descriptor": described, "out": half, "BLOCK": (1, 64, 64)}, arch=90)
    assert "cp.async.bulk.tensor" in box.asm["ptx"]
    flat = {"source": wide, "out": wide, "blocks": 1024, "trips": 512, "BLOCK": 4096}
    assert "ld.global.v4" in compile_ahead(read_kernel, flat, arch=90, num_warps=8).asm["ptx"]
    compile_ahead(empty_kernel, {"out": half}, arch=90)
    maps = dict.fromkeys("abc", TensorDescriptor(half, [128, 64], [64, 1], [64, 64]))
    compile_ahead(descriptors_kernel, {**maps, "out": half}, arch=90)
