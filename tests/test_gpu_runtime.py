"""What only a GPU can show apart from values and bits: graphs, streams, devices, what runs, memory."""

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
from gpu import DEPTHWISE_KERNELS, GEOMETRIES, KERNELS, bits, half, on, run_pass, shrunken
from oracle import Results

import tritonconv
from costmodel.families.matrix_time import extra_bytes
from costmodel.problem import Pass
from costmodel.tiling import Call, Plan

pytest_plugins = ["gpu"]  # its fixtures
pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("share_of_the_cores", "settled")]

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
