"""What only a GPU can show apart from values: the same bits every time, graphs, streams, devices, compilation, memory."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass

import oracle
import pytest
import torch
from cases import Case
from gpu import DEPTHWISE_KERNELS, GEOMETRIES, KERNELS, RESULT, expected, fp32_precision, on, run_pass, shrunken
from oracle import Results

import tritonconv
from costmodel.families.matrix_time import extra_bytes
from costmodel.problem import Pass
from costmodel.tiling import Call, Plan
from tritonconv.kernels.dgrad import dgrad_kernel
from tritonconv.kernels.fprop import fprop_kernel
from tritonconv.kernels.reduce import reduce_kernel
from tritonconv.kernels.wgrad import wgrad_kernel

pytest_plugins = ["gpu"]  # its fixtures
pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("share_of_the_cores", "settled")]

# --- the same bits every time -----------------------------------------------------------------------------------------


def half(input: tuple[int, ...], weight: tuple[int, ...], **settings: object) -> Case:
    given = {"dtype": "float16", "x": "channels_last", "w": "channels_last", "g": "channels_last", "bias": False}
    return Case("conv2d", input, weight, **given | settings)


#: Triton 3.6 leaves out a fence between the copies and the tensor cores of these kernels: a race, if one of them shows it.
REPEATED = {
    "resnet_3x3": (half((8, 64, 56, 56), (64, 64, 3, 3), padding=1), ""),
    "largest_tile": (half((8, 256, 14, 14), (256, 256, 3, 3), padding=1), "128x256x64:w8:s3"),
    "largest_tile_turned": (half((8, 256, 14, 14), (256, 256, 3, 3), padding=1, dtype="bfloat16"), "256x128x64:w8:s3"),
    "small_tile": (half((4, 128, 14, 14), (128, 128, 3, 3), padding=1, stride=2), "64x64x64:w4:s4"),
    "pointwise": (half((8, 256, 28, 28), (128, 256, 1, 1)), ""),
    "odd_contiguous": (Case("conv2d", (4, 35, 29, 31), (37, 35, 3, 3), bias=False, dtype="float16"), ""),
    "tf32": (half((4, 128, 28, 28), (128, 128, 3, 3), padding=1, dtype="float32"), ""),
    "merged_groups": (half((8, 128, 28, 28), (128, 4, 3, 3), padding=1, groups=32), "64x64x64:w4:s4:merge2"),
    "depthwise": (half((8, 144, 56, 56), (144, 1, 3, 3), padding=1, groups=144), ""),
    "depthwise_contiguous": (Case("conv2d", (8, 96, 28, 28), (96, 1, 7, 7), padding=3, groups=96, bias=False), ""),
}


class Load:
    """Work for another stream, a product on the tensor cores and a copy at each call."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()
        self.factor = torch.ones(2048, 2048, dtype=torch.bfloat16, device="cuda")
        self.product = torch.zeros_like(self.factor)
        self.source = torch.zeros(1 << 25, device="cuda")
        self.target = torch.zeros_like(self.source)

    def __call__(self) -> None:
        with torch.cuda.stream(self.stream):
            torch.mm(self.factor, self.factor, out=self.product)
            self.target.copy_(self.source)


def bits(t: torch.Tensor) -> torch.Tensor:
    return t.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])


@pytest.mark.parametrize("loaded", [False, True], ids=["alone", "under_load"])
@pytest.mark.parametrize("which", list(Pass))
@pytest.mark.parametrize("name", REPEATED)
def test_a_thousand_runs_give_the_same_bits(name: str, which: Pass, loaded: bool, device: str, size, launches) -> None:
    case, tile = REPEATED[name]
    case = shrunken(case, device)
    x, w, dy, problem = on(device, case)
    split = f":split{size(8, 2)}" if which == Pass.WGRAD else ""
    plan = f"{which}:{'patch' if problem.is_patch else 'gather'}:{tile}{split}" if tile else ""
    load = Load() if loaded and device == "cuda" else lambda: None
    runs = size(1000, 3)
    with fp32_precision("tf32"):
        first = run_pass(which, problem, x, w, dy, plan)
        differing = torch.zeros((), dtype=torch.int64, device=device)
        for _ in range(runs):
            load()
            differing += (bits(run_pass(which, problem, x, w, dy, plan)) != bits(first)).any()
        assert int(differing) == 0, f"{int(differing)} of {runs} runs differ from the first"
        assert launches()[which] == runs + 1
        assert launches()[f"depthwise {which}"] == (runs + 1 if "depthwise" in name else 0)
        want = {RESULT[which]: expected("conv2d", x, w, None, dy, **case.arguments)[RESULT[which]]}
        tf32 = oracle.uses_tf32(case.torch_dtype, device)
        oracle.assert_close({RESULT[which]: first}, want, oracle.repro(case), tf32)


@pytest.mark.parametrize("name", ["resnet_3x3", "merged_groups", "depthwise"])
def test_a_thousand_fused_runs_give_the_same_bits(name: str, device: str, size, launched) -> None:
    """The value and what is kept of it, where a residual and a scale follow in the same kernel."""
    case = shrunken(REPEATED[name][0], device)
    x, w, residual, problem = on(device, case)
    scale, shift = (case.values(what, (case.out_channels,)).to(device) for what in ("scale", "shift"))
    window = (problem.stride, [p for pair in problem.padding for p in pair], problem.dilation, problem.groups)
    follows = (scale, shift, residual, "gelu", 0.01, True)
    first, differing = torch.ops.tritonconv.fprop_fused(x, w, None, *window, *follows), 0
    for _ in range(size(1000, 3)):
        again = torch.ops.tritonconv.fprop_fused(x, w, None, *window, *follows)
        differing += sum((bits(a) != bits(b)).any() for a, b in zip(first, again, strict=True))
    assert int(differing) == 0


# --- graphs, streams, devices -----------------------------------------------------------------------------------------

STEPS = {
    "conv2d": GEOMETRIES["resnet_stride_2"],
    "conv2d_channels_last": dataclasses.replace(GEOMETRIES["resnet_3x3"], x="channels_last", g="channels_last"),
    "conv2d_grouped": GEOMETRIES["resnext_grouped"],
    "conv1d": GEOMETRIES["whisper_1d"],
    "conv3d": GEOMETRIES["resnet_3d"],
    "conv_transpose2d": GEOMETRIES["dcgan_transposed"],
    "depthwise": GEOMETRIES["convnext_depthwise"],
    "merged_groups": dataclasses.replace(GEOMETRIES["resnext_grouped"], x="channels_last", g="channels_last"),
    "fused": GEOMETRIES["resnet_3x3"],
    "fused_depthwise": dataclasses.replace(GEOMETRIES["convnext_depthwise"], x="channels_last", g="channels_last"),
}
#: What some of them take besides. Merged: the weight gradient too, taken apart after its kernel.
MORE: dict[str, dict[str, object]] = {
    "merged_groups": {
        "plan": [Plan.parse(f"{which}:gather:64x64x64:w4:s4:merge2{':split2' * (which == Pass.WGRAD)}") for which in Pass]
    },
    "fused": {"activation": "silu"},
    "fused_depthwise": {"activation": "silu"},
}


def function_of(name: str) -> Callable[..., torch.Tensor]:
    """The function of a step."""
    return getattr(tritonconv, STEPS[name].function + "_fused" * name.startswith("fused"))


@dataclass(frozen=True)
class Step:
    """Forward and backward of a case on fixed tensors, as a training step would repeat it."""

    name: str
    case: Case
    tensors: tuple[torch.Tensor | None, ...]
    gradient: torch.Tensor

    @classmethod
    def of(cls, name: str, device: str, seed: int = 0) -> Step:
        case = shrunken(dataclasses.replace(STEPS[name], dtype="float16", seed=seed), device)
        tensors = case.tensors(device)
        y = function_of(name)(*tensors, **case.arguments, **MORE.get(name, {}))
        return cls(name, case, tensors, case.gradient(y))

    def __call__(self) -> Results:
        more = MORE.get(self.name, {})
        return oracle.run(function_of(self.name), *self.tensors, self.gradient, **self.case.arguments, **more)

    def take(self, other: Step) -> None:
        """The values of another step, in place."""
        for mine, theirs in zip((*self.tensors, self.gradient), (*other.tensors, other.gradient), strict=True):
            if mine is not None:
                mine.copy_(theirs)


def captured(step: Callable[[], Results]) -> tuple[Results, Callable[[], None]]:
    """A CUDA graph of `step`, warmed up first: the tensors that each replay fills, and the replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return results, graph.replay


@pytest.mark.parametrize("name", STEPS)
def test_a_cuda_graph_replays_forward_and_backward(name: str, device: str, launched) -> None:
    step, other = Step.of(name, device), Step.of(name, device, seed=1)
    want = [step(), other()]
    results, replay = captured(step)
    for values in (want[0], want[1]):
        for _ in range(5):
            replay()
        for role, result in results.items():
            assert torch.equal(result, values[role]), role
        step.take(other)


def test_a_cuda_graph_replays_a_split_with_packed_operands(device: str, launched) -> None:
    """The workspace and the packed copies are made anew inside the graph, from the values of the replay."""
    case = shrunken(dataclasses.replace(GEOMETRIES["resnet_stride_2"], dtype="float16"), device)
    x, w, dy, problem = on(device, case)
    plan = "wgrad:gather:64x64x32:w4:s4:split2:pack-a:pack-b"

    def step() -> Results:
        return {"weight": run_pass(Pass.WGRAD, problem, x, w, dy, plan)}

    results, replay = captured(step)
    x.mul_(-2)
    want = step()
    replay()
    assert torch.equal(results["weight"], want["weight"])


@pytest.mark.parametrize("threads", [False, True], ids=["one_thread", "threads"])
def test_streams_in_parallel(threads: bool, device: str, size, launched) -> None:
    """Steps on streams of their own, at once, give what they give one after another."""
    steps = [Step.of(name, device, seed=i) for i, name in enumerate(STEPS)]
    want = [step() for step in steps]
    streams = [torch.cuda.Stream() for _ in steps]
    differing = [torch.zeros((), dtype=torch.int64, device=device) for _ in steps]
    torch.cuda.synchronize()
    errors: list[BaseException] = []
    rounds = size(50, 1)

    def once(i: int) -> None:
        with torch.cuda.stream(streams[i]):
            for role, result in steps[i]().items():
                differing[i] += (bits(result) != bits(want[i][role])).any()

    def loop(i: int) -> None:
        try:
            for _ in range(rounds):
                once(i)
        except BaseException as error:
            errors.append(error)

    if threads:
        workers = [threading.Thread(target=loop, args=(i,)) for i in range(len(steps))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    else:
        for _, i in itertools.product(range(rounds), range(len(steps))):
            once(i)
    torch.cuda.synchronize()
    assert not errors, errors[0]
    assert [int(count) for count in differing] == [0] * len(steps)


def test_the_tensors_device_is_used(launches) -> None:
    """Tensors on a GPU that is not the current one."""
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    assert torch.cuda.current_device() == 0
    for name in STEPS:
        want, got = Step.of(name, "cuda:0")(), Step.of(name, "cuda:1")()
        for role, result in got.items():
            assert result.device == torch.device("cuda:1")
            assert torch.equal(result.cpu(), want[role].cpu())
    assert torch.cuda.current_device() == 0
    assert launches()


# --- compilation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["conv2d", "conv2d_channels_last", "conv_transpose2d"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_inductor(name: str, dtype: str, device: str, launched) -> None:
    """Forward and backward with nothing left in Python, at three sizes, as eager computes them.

    How many graphs that takes is inductor's affair: it asks whether the bias gradient's sum is short.
    """
    call = getattr(tritonconv, STEPS[name].function)

    def layer(x, w, b, **arguments):
        return call(x * 2, w, b, **arguments).relu() + 1  # something to fuse on both sides

    torch._dynamo.reset()
    fused = torch.compile(layer, fullgraph=True, dynamic=True)
    with torch._inductor.config.patch(compile_threads=1):
        for more in range(3):
            case = shrunken(dataclasses.replace(STEPS[name], dtype=dtype), device)
            batch, channels, *spatial = case.input
            case = dataclasses.replace(case, input=(batch + 1 + more, channels, *(n + 2 * more for n in spatial)))
            x, w, b = case.tensors(device)
            want = oracle.run(layer, x, w, b, case.gradient, **case.arguments)
            got = oracle.run(fused, x, w, b, case.gradient, **case.arguments)
            for role in want:
                torch.testing.assert_close(got[role], want[role], msg=lambda text, role=role: f"{role}: {text}")
            assert got["output"].stride() == want["output"].stride()
    torch._dynamo.reset()


def compiled(kernel) -> int:
    """How often this process has compiled a kernel for the current device (or read it from Triton's cache on disk)."""
    return len(kernel.device_caches[torch.cuda.current_device()][0])


def twenty_sizes() -> list[tuple[int, int, int]]:
    """(batch, height, width): one, even, odd, multiples of 16, and what Triton would specialise on."""
    return [(1 + i % 5, (1, 16, 31, 32, 7)[i % 5] + i // 5, 5 + 3 * i if i % 3 else 16 * (i // 3 + 1)) for i in range(20)]


ONE = {  # tiles and stages that no other test uses
    Pass.FPROP: "fprop:gather:64x32x32:w4:s2",
    Pass.DGRAD: "dgrad:gather:64x32x32:w4:s2",
    Pass.WGRAD: "wgrad:gather:32x64x32:w4:s2:split2:step1x1x4x8",
}


@pytest.mark.parametrize("which", list(Pass))
def test_twenty_sizes_compile_one_kernel(which: Pass, device: str, launched) -> None:
    kernel = {Pass.FPROP: fprop_kernel, Pass.DGRAD: dgrad_kernel, Pass.WGRAD: wgrad_kernel}[which]
    sizes = twenty_sizes()
    assert len(set(sizes)) == 20
    before, reductions = compiled(kernel), []
    for n, h, width in sizes:
        x, w, dy, problem = on(device, half((n, 32, h, width), (32, 32, 3, 3), padding=1))
        reductions.append(compiled(reduce_kernel))
        run_pass(which, problem, x, w, dy, ONE[which])
    assert compiled(kernel) - before == 1
    # the reduction of the partial sums knows no size of an image either; an earlier test may have compiled it
    assert compiled(reduce_kernel) - reductions[0] <= 1


def test_twenty_contiguous_sizes_compile_a_kernel_per_alignment(device: str, launched) -> None:
    """A contiguous image's rows are aligned to 1, 2, 4, 8 or 16 elements, as its width is, and that must be compiled in."""
    before = compiled(fprop_kernel)
    for n, h, width in twenty_sizes():
        case = half((n, 32, h, width), (32, 32, 3, 3), padding=1, x="contiguous", w="contiguous", g="contiguous")
        x, w, dy, problem = on(device, case)
        run_pass(Pass.FPROP, problem, x, w, dy, ONE[Pass.FPROP])
    assert compiled(fprop_kernel) - before <= 5


def test_own_choices_compile_a_kernel_per_plan(device: str, launched) -> None:
    """Where the plan follows the size, sizes that get the same plan share its kernel."""
    before, plans = compiled(fprop_kernel), set()
    for n, h, width in twenty_sizes():
        x, w, dy, problem = on(device, half((n, 32, h, width), (48, 32, 3, 3), padding=1))
        plans.add(str(tritonconv.explain(tritonconv.conv2d, x, w, padding=1).plans["fprop"]))
        run_pass(Pass.FPROP, problem, x, w, dy)
    assert compiled(fprop_kernel) - before <= len(plans)


# --- what runs on the GPU, and in how much memory ---------------------------------------------------------------------

FOREIGN = re.compile("cudnn|convol|conv_|conv[123]d|gemm|xmma|cutlass|winograd|im2col|col2im|vol2col|col2vol|fft", re.I)


def names_on_the_gpu(step: Callable[[], object]) -> list[str]:
    """Names of the kernels, copies and fills that a step runs."""
    from torch.profiler import ProfilerActivity, profile

    step()  # compiled and warm
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        step()
        torch.cuda.synchronize()
    return [event.name for event in found.events() if event.device_type == torch.autograd.DeviceType.CUDA]


@pytest.mark.parametrize("name", STEPS)
def test_only_kernels_of_this_library_convolve(name: str, device: str, launches) -> None:
    step = Step.of(name, device)
    names = names_on_the_gpu(step)
    depthwise = "depthwise" in name
    ours = [kernel for found in names for kernel in (DEPTHWISE_KERNELS if depthwise else KERNELS) if kernel in found]
    assert len(ours) == len(list(Pass)) and ("strip_kernel" if depthwise else "wgrad_kernel") in ours, (
        f"the profiler saw {names}"
    )
    foreign = [found for found in names if FOREIGN.search(found)]
    assert not foreign, foreign


def requested_bytes(step: Callable[[], object]) -> int:
    """Most bytes that a step asks of torch's allocator at one time, its result included."""
    step()
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    step()
    return torch.cuda.memory_stats()["requested_bytes.all.peak"] - before


MEMORY = {
    "fprop": half((8, 64, 56, 56), (64, 64, 3, 3), padding=1),
    "dgrad": half((8, 64, 56, 56), (64, 64, 3, 3), padding=1, stride=2),
    "wgrad": half((8, 64, 56, 56), (64, 64, 3, 3), padding=1),
}
PLANS = {
    "channels_last": ["fprop", "dgrad", "wgrad", "wgrad:gather:64x64x32:w4:s4:split2"],
    "contiguous": [
        "fprop",
        "fprop:gather:64x64x32:w4:s4:pack-a:pack-b",
        "dgrad",
        "dgrad:gather:64x64x32:w4:s4:pack-a",
        "wgrad",
        "wgrad:gather:64x64x32:w4:s4:split2:pack-b",
    ],
}


@pytest.mark.parametrize("layout, text", [(layout, text) for layout, texts in PLANS.items() for text in texts])
def test_memory_is_the_result_and_what_the_plan_states(layout: str, text: str, device: str, launched) -> None:
    """Each stated extra byte is written once and read once, so half of the traffic is memory."""
    which, *forced = text.split(":", 1)
    which = Pass(which)
    case = shrunken(dataclasses.replace(MEMORY[which], x=layout, w=layout, g=layout), device)
    x, w, dy, problem = on(device, case)
    call = (tritonconv.conv2d, x, w, None, case.stride, case.padding)
    plan = Plan.parse(text) if forced else tritonconv.explain(*call).plans[which]
    result = run_pass(which, problem, x, w, dy, str(plan))
    stated = extra_bytes(Call(problem, which, case.dtype), plan) // 2
    assert bool(stated) == bool(plan.pack or plan.split > 1)
    peak = requested_bytes(lambda: run_pass(which, problem, x, w, dy, str(plan)))
    assert peak == result.numel() * result.element_size() + stated
