"""What the tests that need a GPU share: fences around results, references in float64 on the GPU, shrunken sizes.

Each test takes the device from a fixture and smaller sizes in Triton's interpreter (`size`, `shrunken`), so that all but
the CUDA calls can be rehearsed without a GPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
from collections.abc import Callable, Iterator

import oracle
import pytest
import torch
import torch.nn.functional as F
from cases import Case
from oracle import Expected, Results

import tritonconv
from costmodel.problem import ConvProblem, Pass
from tritonconv import launch
from tritonconv.layout import output_strides
from tritonconv.op import flat

RESULT = {Pass.FPROP: "output", Pass.DGRAD: "input", Pass.WGRAD: "weight"}  # of a plain convolution
#: The kernels that convolve, one per pass, by what they serve.
KERNELS = {"fprop_kernel", "dgrad_kernel", "tma_kernel", "wgrad_kernel"}
DEPTHWISE_KERNELS = {"slide_kernel", "taps_kernel", "strip_kernel"}


# --- shared by all ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def share_of_the_cores() -> Iterator[None]:
    """The oracle's CPU work runs in as many threads as this worker's share of the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))
    yield
    torch.set_num_threads(before)


@pytest.fixture
def settled(device: str, request: pytest.FixtureRequest) -> Iterator[None]:
    """A kernel's fault shows at the next synchronisation, so there is one after each test: the guilty one fails.

    A fault leaves the process without a working GPU. Under pytest-xdist it ends here and a fresh worker takes over.
    """
    yield
    if device != "cuda":
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        if "PYTEST_XDIST_WORKER" not in os.environ:
            pytest.exit(f"the GPU stopped in {request.node.nodeid}: {error}", returncode=1)
        print(f"the GPU stopped in {request.node.nodeid}: {error}", file=sys.__stderr__, flush=True)
        os._exit(1)


@pytest.fixture
def size(device: str) -> Callable[[int, int], int]:
    """size(real, small): the real one on a GPU, the small one in the interpreter."""
    return lambda real, small: real if device == "cuda" else small


FENCE = 4096  # elements
POST = -1280.0  # exact in every dtype


@pytest.fixture
def fenced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Results lie between two fences that no kernel may touch, and hold NaN before: every element must be written."""
    rooms = []

    def allocate(shape, like, *operands):
        span = math.prod(shape)
        room = torch.full((span + 2 * FENCE,), POST, dtype=like.dtype, device=like.device)
        rooms.append(room)
        out = room.as_strided(tuple(shape), output_strides(shape, like, *operands), FENCE)
        return out.fill_(math.nan)

    monkeypatch.setattr(launch, "allocate", allocate)
    yield
    assert rooms, "nothing was allocated"
    for room in rooms:
        for fence in (room[:FENCE], room[-FENCE:]):
            assert bool((fence == POST).all()), "a kernel wrote outside its result"


@contextlib.contextmanager
def fp32_precision(value: str) -> Iterator[None]:
    """torch's setting for float32 convolutions, "ieee" or "tf32", put back at the end."""
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    conv.fp32_precision = value
    try:
        yield
    finally:
        conv.fp32_precision = before


@contextlib.contextmanager
def without_cudnn() -> Iterator[None]:
    """torch's own kernels. `cudnn.flags` would do, but it resets fp32_precision; `cudnn.enabled` may be frozen."""
    before = torch._C._get_cudnn_enabled()
    torch._C._set_cudnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_cudnn_enabled(before)


def expected(
    function: str, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, g: torch.Tensor, **arguments: object
) -> dict[str, Expected]:
    """As `oracle.expected`, computed on the device where the tensors are."""

    def over(change: Callable[[torch.Tensor], torch.Tensor]) -> Results:
        tensors = [None if t is None else change(t.detach().double()).contiguous() for t in (x, w, b, g)]
        return {name: t.cpu() for name, t in oracle.run(getattr(F, function), *tensors, **arguments).items()}

    with without_cudnn():
        value, magnitude, terms = over(torch.clone), over(torch.abs), over(torch.ones_like)
    return {name: Expected(value[name], magnitude[name], terms[name]) for name in value}


def check(case: Case, device: str, **arguments: object) -> Results:
    """As `oracle.check`, with the float64 reference on the device: for sizes that are too large for the CPU."""
    x, w, b = case.tensors(device)
    got = oracle.run(getattr(tritonconv, case.function), x, w, b, case.gradient, **case.arguments, **arguments)
    assert all(result.dtype == case.torch_dtype for result in got.values())
    want = expected(case.function, x, w, b, case.gradient(got["output"]), **case.arguments)
    oracle.assert_close(got, want, oracle.repro(case), oracle.uses_tf32(case.torch_dtype, device))
    return got


def shrunken(case: Case, device: str) -> Case:
    """On a GPU the case itself; for the interpreter the same call on the smallest sizes that still have two outputs."""
    if device != "cpu":
        return case

    def each(value: int | tuple[int, ...] | str) -> tuple[int, ...]:
        return (0,) * case.rank if isinstance(value, str) else (value,) * case.rank if isinstance(value, int) else value

    kernel = case.weight[2:]
    windows = zip(kernel, each(case.stride), each(case.padding), each(case.dilation), strict=True)
    extents = [(d * (k - 1) + 1, s, p) for k, s, p, d in windows]
    if case.transposed:
        spatial = [max(2, 1 + math.ceil((2 * p + 1 - e) / s)) for e, s, p in extents]
    else:
        spatial = [max(1, e + s - 2 * p) for e, s, p in extents]
    groups = min(case.groups, 2)
    first, second = (min(n // g, 5) for n, g in zip(case.weight[:2], (case.groups, 1), strict=True))
    channels = (first if case.transposed else second) * groups
    settings = {"input": (1, channels, *spatial), "weight": (first * groups, second, *kernel), "groups": groups}
    return dataclasses.replace(case, **settings)


def on(device: str, case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, ConvProblem]:
    """x, w, dy and the problem of a plain (not transposed) case without 'same' padding."""
    x, w, _ = case.tensors(device)
    arguments = {name: value for name, value in case.arguments.items() if name != "groups"}
    spread = [value if isinstance(value, tuple) else (value,) * case.rank for value in arguments.values()]
    problem = ConvProblem.conv(x.shape, w.shape, *spread, case.groups)
    return x, w, case.gradient(torch.empty(problem.output_shape, dtype=x.dtype, device=device)), problem


def run_pass(
    which: Pass, problem: ConvProblem, x: torch.Tensor, w: torch.Tensor, dy: torch.Tensor, plan: str = ""
) -> torch.Tensor:
    """One pass by its op: y, dx or dw."""
    window = (problem.stride, flat(problem.padding, problem.padding_mode), problem.dilation, problem.groups, plan)
    if which == Pass.FPROP:
        return torch.ops.tritonconv.fprop(x, w, None, *window)
    if which == Pass.DGRAD:
        return torch.ops.tritonconv.dgrad(dy, w, None, problem.input_size, *window)
    return torch.ops.tritonconv.wgrad(dy, x, problem.kernel_size, *window)


GEOMETRIES = {
    "resnet_stem": Case("conv2d", (2, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3),
    "resnet_3x3": Case("conv2d", (8, 64, 56, 56), (64, 64, 3, 3), padding=1, bias=False),
    "resnet_expand": Case("conv2d", (4, 64, 56, 56), (256, 64, 1, 1)),
    "resnet_downsample": Case("conv2d", (4, 256, 56, 56), (512, 256, 1, 1), stride=2),
    "resnet_stride_2": Case("conv2d", (8, 128, 56, 56), (128, 128, 3, 3), stride=2, padding=1),
    "resnet_deep": Case("conv2d", (8, 512, 7, 7), (512, 512, 3, 3), padding=1),
    "resnext_grouped": Case("conv2d", (4, 128, 28, 28), (128, 4, 3, 3), groups=32, padding=1),
    "resnext_merged": Case("conv2d", (4, 256, 28, 28), (256, 8, 3, 3), groups=32, padding=1),
    "groups_of_2": Case("conv2d", (4, 64, 28, 28), (64, 2, 3, 3), groups=32, padding=1),
    "groups_of_3": Case("conv2d", (2, 48, 27, 29), (48, 3, 3, 3), groups=16, padding=1, stride=2),
    "convnext_depthwise": Case("conv2d", (4, 96, 56, 56), (96, 1, 7, 7), groups=96, padding=3),
    "mobilenet_depthwise": Case("conv2d", (4, 144, 56, 56), (144, 1, 3, 3), groups=144, padding=1, stride=2),
    "replknet_depthwise": Case("conv2d", (4, 128, 56, 56), (128, 1, 31, 31), groups=128, padding=15),
    "atrous_depthwise": Case("conv2d", (2, 96, 33, 33), (96, 1, 3, 3), groups=96, dilation=6, padding=6),
    "aspp_dilated": Case("conv2d", (2, 256, 33, 33), (256, 256, 3, 3), dilation=12, padding=12),
    "vit_patches": Case("conv2d", (4, 3, 224, 224), (384, 3, 16, 16), stride=16),
    "odd": Case("conv2d", (3, 37, 45, 51), (53, 37, 5, 3), stride=(2, 3), padding=(2, 0), dilation=(1, 2)),
    "whisper_1d": Case("conv1d", (4, 80, 3000), (384, 80, 3), padding=1),
    "wav2vec_1d": Case("conv1d", (2, 64, 16000), (96, 64, 10), stride=5),
    "mamba_1d": Case("conv1d", (4, 768, 512), (768, 1, 4), groups=768, padding=3),
    "conformer_1d": Case("conv1d", (4, 512, 400), (512, 1, 31), groups=512, padding=15),
    "x3d_3d": Case("conv3d", (2, 54, 16, 56, 56), (54, 1, 3, 3, 3), groups=54, padding=1, stride=(1, 2, 2)),
    "resnet_3d": Case("conv3d", (2, 32, 16, 28, 28), (64, 32, 3, 3, 3), padding=1, stride=(1, 2, 2)),
    "video_patches_3d": Case("conv3d", (2, 3, 16, 112, 112), (384, 3, 2, 16, 16), stride=(2, 16, 16)),
    "dcgan_transposed": Case("conv_transpose2d", (8, 256, 16, 16), (256, 128, 4, 4), stride=2, padding=1),
    "unet_transposed": Case("conv_transpose2d", (4, 128, 32, 32), (128, 64, 2, 2), stride=2),
    "rest_transposed": Case(
        "conv_transpose2d", (4, 64, 27, 31), (64, 24, 3, 3), stride=3, padding=1, output_padding=2, groups=2
    ),
    "vocoder_transposed_1d": Case("conv_transpose1d", (4, 256, 400), (256, 128, 16), stride=8, padding=4),
    "depthwise_transposed": Case(
        "conv_transpose2d", (4, 96, 28, 28), (96, 1, 3, 3), stride=2, padding=1, output_padding=1, groups=96
    ),
    "multiplier_transposed": Case("conv_transpose2d", (4, 48, 28, 28), (48, 3, 4, 4), stride=2, padding=1, groups=48),
    "unet_transposed_3d": Case("conv_transpose3d", (2, 64, 8, 14, 14), (64, 32, 2, 2, 2), stride=2),
}


def half(input: tuple[int, ...], weight: tuple[int, ...], **settings: object) -> Case:
    given = {"dtype": "float16", "x": "channels_last", "w": "channels_last", "g": "channels_last", "bias": False}
    return Case("conv2d", input, weight, **given | settings)


def bits(t: torch.Tensor) -> torch.Tensor:
    return t.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])
