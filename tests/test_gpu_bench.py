"""The real clock: what only a GPU shows of the measuring harness."""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys

import pytest
import torch

from bench import overhead
from bench.choice import qualities
from bench.machine import Gpu
from bench.measure import capture, measure
from bench.model import compare
from bench.probe import Sizes, answers
from bench.providers import DEFAULT, PROVIDERS
from bench.rows import load
from bench.run import lines_of
from bench.sweep import sweep
from bench.work import LAYOUTS, Line

pytestmark = pytest.mark.gpu

LAYERS = (
    "conv2d n8 c64 56x56 -> 64 k3 p1",
    "conv2d n8 c64 56x56 -> 128 k1",
    "conv2d n8 c96 28x28 -> 96 k7 p3 g96",
    "conv1d n4 c256 1024 -> 256 k4 p3 g256",
    "conv_transpose2d n8 c64 16x16 -> 32 k4 s2 p1",
)


@pytest.fixture(scope="module")
def gpu() -> Gpu:
    return Gpu()


def lines(text: str, dtype: str = "bf16", layout: str = "") -> list[Line]:
    return lines_of([], [text], [], ["fprop", "dgrad", "wgrad"], dtype, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("text", LAYERS)
def test_every_provider_is_right_and_has_a_time(text, layout, gpu):
    for line in lines(text, layout=layout):
        outcome = measure(line, DEFAULT, gpu, ())
        assert not outcome.skipped
        for row in outcome.rows:
            assert row.ok, f"{line.work} {row.provider} {row.setting}: {row.note}"
            assert 0 < row.p10_us <= row.median_us <= row.p90_us
        (ours,) = (row for row in outcome.rows if row.provider == "tritonconv")
        assert ours.median_us > 0.5 * ours.roofline_us, "faster than the roofline: something is not computed, or is cached"


def test_a_graph_holds_every_set(gpu):
    (line, *_) = lines(LAYERS[1])
    (contender,) = PROVIDERS["tritonconv"](line.work)
    sets = line.work.inputs(3, "cuda")
    captured = capture(contender, sets, 7, gpu)
    for out in captured.outputs:
        out.fill_(float("nan"))
    captured.replay()
    for out, pair in zip(captured.outputs, sets, strict=True):
        assert torch.equal(out, contender.call(*pair))
    assert len({out.data_ptr() for out in captured.outputs}) == 3


SEARCH = """
import torch
from bench.machine import Gpu
from bench.providers.cudnn import contenders
from bench.run import lines_of

Gpu(cudnn_plans=1)
(line,) = lines_of([], ["conv2d n8 c64 56x56 -> 64 k3 p1"], [], ["fprop"], "bf16", "")
((a, b),) = line.work.inputs(1, "cuda")
for contender in contenders(line.work)[:2]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen, contender.active():
        contender.call(*contender.prepare(a, b))
        torch.cuda.synchronize()
    names = {event.name for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA}
    print(contender.setting, len(names), sep=":")
"""


def test_a_search_does_not_take_the_heuristics_plan():
    """torch keeps cuDNN's plans by a key without `benchmark`; with one plan kept, each setting finds its own.

    In a process of its own: torch reads the limit once.
    """
    done = subprocess.run([sys.executable, "-c", SEARCH], capture_output=True, text=True, check=True)
    kernels = dict(line.split(":") for line in done.stdout.splitlines())
    assert int(kernels["channels_last benchmark"]) > int(kernels["channels_last"]), kernels


def test_the_machine_says_who_it_is(gpu):
    assert gpu.facts["gpu"] == torch.cuda.get_device_name() and gpu.facts["driver"] and int(gpu.facts["cudnn"]) > 9000
    assert gpu.clock_mhz() is None or gpu.clock_mhz() > 100


def test_probe(gpu):
    sizes = dataclasses.replace(Sizes(), runs=20, launches=100, copy_bytes=1 << 28, matrix=2048, repeats=5)
    for answer in answers(gpu, sizes):
        print(answer)
        assert answer.value is not None or answer.question.startswith("a tensor map"), answer
        if answer.question.startswith("runs with other bits"):
            assert answer.value == 0, answer


def test_host_time(gpu):
    row = overhead.overhead_of(overhead.LAYERS[0], gpu)
    assert 0 < row.forward_us < 1000 and 0 < row.compiled_ms < 1e3 * row.first_s


def test_a_network(gpu):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.BatchNorm2d(32), torch.nn.Conv2d(32, 8, 1))
    x = torch.randn(8, 3, 32, 32, device="cuda")
    for variant in compare(model.cuda(), x, True, False, gpu):
        assert variant.ok and variant.peak_bytes > x.nbytes, variant
    assert statistics.median(gpu.elapsed(lambda: model(x), 5)) > 0


def test_a_sweep_measures_plans_and_judges_the_choice(gpu, tmp_path):
    todo, path = lines(LAYERS[0])[:1], tmp_path / "sweep.jsonl"
    done = sweep(todo, gpu, path, most=6)
    rows = list(load(path))
    assert not done.failed and done.new_rows == len(rows) == 6 and all(row.ok for row in rows)
    (found,) = qualities(rows, gpu.model)
    assert found.share is not None and 0 < found.share <= 1 and found.plans == 6
