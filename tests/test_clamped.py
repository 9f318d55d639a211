"""Masked-off copies whose addresses lie inside of their tensors: what kernels do on compute capability 10.x, executed as code
of sm_80 and sm_90, where they do it only if asked.

Code of sm_100 itself is compiled and not executed (`bench/executor` does not know tcgen05).
"""

from __future__ import annotations

import re
from collections import Counter

import pytest

from bench.work import Work, float32_in
from costmodel.device import DEVICES
from costmodel.reports.notation import parse
from costmodel.tiling import Plan

pytest.importorskip("numba", reason="compiled code is not run: the executor needs numba")
pytestmark = pytest.mark.compiled

#: layer, plan, arithmetic, layout, architecture: each place where a mask meets an address, along either axis of each operand.
PLANS = [
    ("conv2d n2 c24 9x7 -> 40 k3x3 p1,1", "fprop:gather:64x64x32:w4:s3", "float16", "channels_last", 80),
    ("conv2d n2 c64 9x7 -> 64 k3x3 p1,1", "fprop:gather:64x64x32:w4:s4", "float16", "channels_last", 90),
    ("conv2d n2 c64 9x8 -> 64 k2x2 s2x1", "dgrad:gather:64x64x32:w4:s4", "float16", "channels_last", 80),
    ("conv2d n2 c24 9x7 -> 40 k3x3 p1,1", "fprop:gather:64x64x16:w4:s3", "float32", "contiguous", 80),
    ("conv2d n2 c40 9x7 -> 40 k3x3 p1,1", "fprop:gather:64x32x32:w4:s3:split2", "float16", "channels_last", 90),
    ("conv2d n1 c16 9x8 -> 24 k3x3 s2x2 p1,1", "dgrad:gather:64x32x32:w4:s3", "bfloat16", "channels_last", 90),
    ("conv2d n1 c16 9x8 -> 24 k3x3 p1,1", "dgrad:gather:64x32x32:w4:s3", "tf32", "contiguous", 80),
    ("conv2d n2 c24 8x6 -> 40 k3x3 p1,1", "wgrad:gather:64x32x32:w4:s3", "float16", "channels_last", 90),
    ("conv2d n1 c16 5x8 -> 24 k3x3 s1x1 p1,1", "wgrad:gather:32x32x32:w4:s3", "tf32", "contiguous", 80),
    ("conv2d n2 c24 8x8 -> 40 k2x2 s2x2", "fprop:patch:32x64x32:w4:s3", "float16", "channels_last", 80),
    ("conv2d n2 c3 8x16 -> 40 k4x4 s4x4", "fprop:patch:32x64x32:w4:s3", "tf32", "contiguous", 80),
    ("conv2d n2 c24 8x8 -> 40 k2x2 s2x2", "dgrad:patch:64x64x32:w4:s3", "float16", "channels_last", 80),
    ("conv2d n2 c3 8x16 -> 40 k4x4 s4x4", "dgrad:patch:32x64x32:w4:s3", "tf32", "contiguous", 80),
    ("conv2d n2 c24 8x8 -> 40 k2x2 s2x2", "wgrad:patch:64x128x16:w4:s3", "float16", "channels_last", 90),
    ("conv2d n2 c2 24x32 -> 2 k13x13 p6,6 g2", "fprop:band:16x32x64:w4:s4:step1x1x2x16:rows4", "float16", "contiguous", 80),
    ("conv2d n2 c2 24x32 -> 2 k13x13 p6,6 g2", "wgrad:band:32x64x16:w4:s4:step1x1x2x16:rows4", "float16", "contiguous", 90),
    ("conv2d n3 c32 8x8 -> 40 k3x3 p1,1", "wgrad:tma:64x32x32:w4:s3", "float16", "channels_last", 90),
]


@pytest.fixture
def clamping(arch, monkeypatch):
    """A function that has launches compiled with the constant or without, the executor of an architecture and its device."""
    from bench.executor.driver import install, uninstall
    from tritonconv import host, launch, recipes, steps
    from tritonconv.video import launch as video

    executor, device = install(arch), next(device for device in DEVICES.values() if device.capability == arch)
    host.use(device)

    def switch(on: bool):
        monkeypatch.setattr(steps, "masks_inside", lambda capability: on)
        forget()

    def forget():
        for function in (launch.prepare_call, video.prepare):
            function.cache_clear()
        recipes.forget()

    yield switch, executor, device
    monkeypatch.undo()
    forget()
    host.use(None)
    uninstall()


def copied(executor, call):
    """(lanes outside of every tensor, bytes of each asynchronous copy in the code) of a call's launches."""
    heard = []
    executor.listeners = [heard.append]
    call()
    lanes = sum(int(one.execution.outside.sum()) for one in heard)
    found = (re.search(r"cp\.async\.c[ag]\..*\], (\w+)", where.statement) for one in heard for where in one.program.where)
    return lanes, Counter(int(match[1], 0) for match in found if match)


@pytest.mark.parametrize("layer, plan, arithmetic, layout, arch", PLANS, ids=[f"{row[1]}-{row[2]}-{row[3]}" for row in PLANS])
def test_no_copy_begins_outside(layer, plan, arithmetic, layout, arch, clamping):
    """The result is as right, and every copy as wide: addresses of masked lanes are runs of memory too."""
    from bench.compiled.chosen import Chosen
    from bench.compiled.plans import ARITHMETICS, error_of

    switch, executor, device = clamping
    dtype, precision = ARITHMETICS[arithmetic]
    forced = Plan.parse(plan)
    work = Work(parse(layer).problem, forced.which, dtype, precision, layout)

    def call():
        assert error_of(Chosen(work, forced, False, arch, ""), device) <= 1

    with float32_in(precision):
        before = copied(executor, call)
        switch(True)
        outside, widths = copied(executor, call)
    assert before[0] > 0 and outside == 0
    assert widths == before[1]


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("name", ["cached", "replicate"])
def test_no_copy_of_a_chunk_begins_outside(name, arch, clamping):
    from bench.gpu.functions import video_item

    switch, executor, _ = clamping
    item = video_item(name, "fp16")
    tensors = item.inputs("cpu")

    def call():
        assert item.judge(tensors, item.call(*tensors)) <= 1

    before = copied(executor, call)
    switch(True)
    outside, widths = copied(executor, call)
    assert before[0] > 0 and outside == 0
    assert widths == before[1]


@pytest.mark.parametrize("capability, on", [(80, False), (89, False), (90, False), (100, True), (103, True), (120, False)])
def test_where_launches_ask_for_it(capability, on):
    from tritonconv.steps import masks_inside

    assert masks_inside(capability) == on
