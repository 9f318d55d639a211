"""What only a GPU can show: the compiled kernels at real sizes, the memory they touch, streams, graphs and repetition.

Results are held against torch in float64 on the GPU (without cuDNN) by the tolerance of `oracle`. Where the tensors are
too large for that, they hold small integers and every sum is exact.
Each body takes the device from a fixture and smaller sizes in Triton's interpreter (`size`, `shrunken`), so that all but
the CUDA calls can be rehearsed without a GPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import gc
import itertools
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cases
import oracle
import pytest
import torch
import torch.nn.functional as F
from cases import Case
from oracle import Expected, Results

import tritonconv
from costmodel.cost import extra_bytes
from costmodel.plan import MENU
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Call, Plan, Tile
from tritonconv import launch
from tritonconv.kernels.dgrad import dgrad_kernel
from tritonconv.kernels.fprop import fprop_kernel
from tritonconv.kernels.wgrad import wgrad_kernel, wgrad_reduce_kernel
from tritonconv.layout import output_strides
from tritonconv.op import flat

pytestmark = pytest.mark.gpu

RESULT = {Pass.FPROP: "output", Pass.DGRAD: "input", Pass.WGRAD: "weight"}  # of a plain convolution
KERNELS = {"fprop_kernel", "dgrad_kernel", "wgrad_kernel"}


# --- shared by all ----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def share_of_the_cores() -> Iterator[None]:
    """The oracle's CPU work runs in as many threads as this worker's share of the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
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
    window = (problem.stride, flat(problem.padding), problem.dilation, problem.groups, plan)
    if which == Pass.FPROP:
        return torch.ops.tritonconv.fprop(x, w, None, *window)
    if which == Pass.DGRAD:
        return torch.ops.tritonconv.dgrad(dy, w, None, problem.input_size, *window)
    return torch.ops.tritonconv.wgrad(dy, x, problem.kernel_size, *window)


# --- tensors above 2^31 elements --------------------------------------------------------------------------------------

LIMIT = 2**31
LENGTH = LIMIT + 77  # of one axis that alone is past 32 bits
SIDE = 5800  # 64 channels of its square are 2.15e9 elements
CUBE = 1300  # 2.2e9 voxels


@dataclass(frozen=True)
class Large:
    """A convolution without bias or groups, some tensor of which has more elements than 31 bits count."""

    x: tuple[int, ...]
    w: tuple[int, ...]
    layout: str = "channels_last"
    stride: int = 1
    padding: int = 0
    plans: str = "own"  # or forced ones, by whether they copy the larger operand to channels-last: "unpacked", "packed"

    @property
    def rank(self) -> int:
        return len(self.w) - 2

    @property
    def y(self) -> tuple[int, ...]:
        axes = zip(self.x[2:], self.w[2:], strict=True)
        return (self.x[0], self.w[0], *((n + 2 * self.padding - k) // self.stride + 1 for n, k in axes))

    @property
    def bytes(self) -> int:
        """Twice both tensors, for a gradient or a packed copy of each, and the reference's temporaries."""
        return 2 * 2 * (math.prod(self.x) + math.prod(self.y)) + (4 << 30)

    @property
    def problem(self) -> ConvProblem:
        return ConvProblem.conv(self.x, self.w, (self.stride,) * self.rank, (self.padding,) * self.rank, (1,) * self.rank)

    @property
    def taps(self) -> Iterator[tuple[int, ...]]:
        return itertools.product(*map(range, self.w[2:]))

    def on(self, device: str) -> Large:
        """Itself, or for the interpreter a small one of the same kind, of more pixels than a tile has."""
        if device == "cuda":
            return self
        spatial = {1: (150,), 2: (13, 14), 3: (6, 7, 8)}[self.rank]
        return dataclasses.replace(self, x=(min(self.x[0], 3), self.x[1], *spatial))

    def integers(self, shape: tuple[int, ...], most: int, device: str) -> torch.Tensor:
        """Integers of [-most, most] in the layout: all products and sums of them here are exact in float16."""
        return self.laid_out(lambda memory: torch.randint(-most, most + 1, memory, dtype=torch.float16, device=device), shape)

    def laid_out(self, make: Callable[[tuple[int, ...]], torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
        if self.layout == "contiguous":
            return make(shape)
        return make((shape[0], *shape[2:], shape[1])).movedim(-1, 1)

    def plan(self, which: Pass) -> str:
        if self.plans == "own":
            return ""
        forced = {
            Pass.FPROP: "fprop:gather:128x16x32:w4:s4",
            Pass.DGRAD: "dgrad:gather:128x64x16:w4:s4",
            Pass.WGRAD: "wgrad:gather:64x32x64:w4:s4:split64",
        }[which]
        larger = "a" if which != Pass.WGRAD or math.prod(self.y) > math.prod(self.x) else "b"
        return f"{forced}:pack-{larger}" if self.plans == "packed" else forced

    def meeting(self, tap: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """The pixels of x and of y that this tap brings together."""
        of_x, of_y = [], []
        for t, n, out in zip(tap, self.x[2:], self.y[2:], strict=True):
            first = max(0, -(-(self.padding - t) // self.stride))
            last = min(out - 1, (n - 1 + self.padding - t) // self.stride)
            start = first * self.stride - self.padding + t
            of_x.append(slice(start, start + (last - first) * self.stride + 1, self.stride))
            of_y.append(slice(first, last + 1))
        return (slice(None), slice(None), *of_x), (slice(None), slice(None), *of_y)


LARGE = {
    # offsets fit in 32 bits, while the size of the axis, sent doubled to the kernels, does not
    "half_of_it_1d": Large((1, 1, LENGTH // 2), (1, 1, 3), "contiguous", padding=1),
    # one axis, one image and the batch together past 2^31, pixels and elements alike
    "pixels_1d": Large((2, 1, LENGTH), (1, 1, 3), "contiguous", padding=1),
    "pixels_3d": Large((1, 1, CUBE, CUBE, CUBE), (1, 1, 2, 2, 2), "contiguous"),
    # one image, in x or in y, with channels apart or together
    "input_channels_last": Large((1, 64, SIDE, SIDE), (8, 64, 3, 3), padding=1),
    "input_contiguous": Large((1, 64, SIDE, SIDE), (8, 64, 3, 3), "contiguous", padding=1, plans="unpacked"),
    "input_packed": Large((1, 64, SIDE, SIDE), (8, 64, 3, 3), "contiguous", padding=1, plans="packed"),
    "output_channels_last": Large((1, 8, SIDE, SIDE), (64, 8, 3, 3), padding=1),
    "output_contiguous": Large((1, 8, SIDE, SIDE), (64, 8, 3, 3), "contiguous", padding=1, plans="unpacked"),
    "output_packed": Large((1, 8, SIDE, SIDE), (64, 8, 3, 3), "contiguous", padding=1, plans="packed"),
    # a batch of ordinary images
    "batch_channels_last": Large((700, 64, 224, 224), (8, 64, 3, 3), stride=2, padding=1),
    "batch_contiguous": Large((700, 64, 224, 224), (8, 64, 3, 3), "contiguous", stride=2, padding=1, plans="unpacked"),
    # plain GEMMs
    "pointwise_channels_last": Large((1, 64, SIDE, SIDE), (8, 64, 1, 1)),
    "patches_contiguous": Large((700, 64, 224, 224), (8, 64, 4, 4), "contiguous", stride=4),
}


@pytest.fixture
def alone(device: str) -> Iterator[None]:
    """One test at a time fills the memory of the GPU, whichever worker runs it."""
    with open(Path(tempfile.gettempdir()) / "tritonconv-large-tensors.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()


def sampled(shape: tuple[int, ...], count: int, device: str) -> tuple[torch.Tensor, ...]:
    """Coordinates (n, *spatial) of pixels: random ones, both ends, and those around element 2^31 of either layout."""
    axes = (shape[0], *shape[2:])
    total = math.prod(axes)
    middles = [0, total - 1, LIMIT, LIMIT // shape[1], LIMIT // 2, 2 * LIMIT]
    near = [m + i for m in middles for i in range(-2, 3) if 0 <= m + i < total]
    flat_index = torch.cat([torch.tensor(near), torch.randint(0, total, (count,))]).unique().to(device)
    return torch.unravel_index(flat_index, axes)


def read(t: torch.Tensor, n: torch.Tensor, coordinates: list[torch.Tensor]) -> torch.Tensor:
    """t[n, :, *coordinates] as [pixels, channels] in float64, zero outside of t."""
    there = torch.ones_like(n, dtype=torch.bool)
    for c, limit in zip(coordinates, t.shape[2:], strict=True):
        there &= (c >= 0) & (c < limit)
    kept = [c.clamp(0, limit - 1) for c, limit in zip(coordinates, t.shape[2:], strict=True)]
    return t[(n, slice(None), *kept)].double() * there[:, None]


def channel_sums(t: torch.Tensor) -> torch.Tensor:
    """The sum of each channel in float64, converted a slab at a time."""
    axis = max((0, *range(2, t.dim())), key=lambda a: t.shape[a])
    slabs = t.chunk(max(1, t.numel() >> 27), axis)
    return torch.stack([slab.double().sum((0, *range(2, t.dim()))) for slab in slabs]).sum(0)


def large_fprop(large: Large, device: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Name -> (got, want): sampled pixels of y, and the sum of each of its channels, which a missing or stray write changes."""
    x, w = large.integers(large.x, 4, device), large.integers(large.w, 1, device)
    y = run_pass(Pass.FPROP, large.problem, x, w, w, large.plan(Pass.FPROP))
    assert tuple(y.shape) == large.y
    n, *spatial = sampled(large.y, 4096, device)
    pixels, sums = 0, 0
    for tap in large.taps:
        there = [o * large.stride - large.padding + t for o, t in zip(spatial, tap, strict=True)]
        slab = w[(slice(None), slice(None), *tap)].double()  # [K, C]
        pixels = pixels + read(x, n, there) @ slab.T
        sums = sums + slab @ channel_sums(x[large.meeting(tap)[0]])
    return {"pixels": (y[(n, slice(None), *spatial)].double(), pixels), "sums": (channel_sums(y), sums)}


def large_dgrad(large: Large, device: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    dy, w = large.integers(large.y, 4, device), large.integers(large.w, 1, device)
    dx = run_pass(Pass.DGRAD, large.problem, w, w, dy, large.plan(Pass.DGRAD))
    assert tuple(dx.shape) == large.x
    n, *spatial = sampled(large.x, 4096, device)
    pixels, sums = 0, 0
    for tap in large.taps:
        shifted = [i + large.padding - t for i, t in zip(spatial, tap, strict=True)]
        whole = torch.stack([i % large.stride == 0 for i in shifted]).all(0)
        slab = w[(slice(None), slice(None), *tap)].double()  # [K, C]
        pixels = pixels + (read(dy, n, [i // large.stride for i in shifted]) * whole[:, None]) @ slab
        sums = sums + channel_sums(dy[large.meeting(tap)[1]]) @ slab
    return {"pixels": (dx[(n, slice(None), *spatial)].double(), pixels), "sums": (channel_sums(dx), sums)}


def large_wgrad(large: Large, device: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A sum of 2^31 rounded numbers would show nothing: dy is zero but for a few hundred pixels of ones and minus ones."""
    x = large.integers(large.x, 4, device)
    dy = large.laid_out(lambda shape: torch.zeros(shape, dtype=torch.float16, device=device), large.y)
    n, *spatial = sampled(large.y, 256, device)
    signs = 2.0 * torch.randint(0, 2, (len(n), large.w[0]), device=device) - 1
    dy[(n, slice(None), *spatial)] = signs.half()
    dw = run_pass(Pass.WGRAD, large.problem, x, x, dy, large.plan(Pass.WGRAD))
    want = torch.zeros(large.w, dtype=torch.float64, device=device)
    for tap in large.taps:
        there = [o * large.stride - large.padding + t for o, t in zip(spatial, tap, strict=True)]
        want[(slice(None), slice(None), *tap)] = signs.double().T @ read(x, n, there)
    return {"weight": (dw.double(), want)}


@pytest.mark.parametrize("which", list(Pass))
@pytest.mark.parametrize("name", LARGE)
def test_large_tensors(name: str, which: Pass, device: str, alone, launches) -> None:
    large = LARGE[name].on(device)
    assert device == "cpu" or max(math.prod(large.x), math.prod(large.y)) > (LIMIT // 2 if "half" in name else LIMIT)
    if device == "cuda":
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        if free < large.bytes:
            pytest.skip(f"needs {large.bytes / 2**30:.0f} GiB of GPU memory, {free / 2**30:.0f} GiB are free")
    torch.manual_seed(0)
    by_pass = {Pass.FPROP: large_fprop, Pass.DGRAD: large_dgrad, Pass.WGRAD: large_wgrad}
    # Only small results come back, so that a failure's traceback keeps no large tensor alive.
    for what, (got, want) in by_pass[which](large, device).items():
        assert want.abs().max() > 0
        wrong = int((got != want).sum())  # NaN, an element that was never written, differs from everything
        assert wrong == 0, f"{what}: {wrong} of {want.numel()} are not exact"
    assert which in launches()


FAR = LIMIT + 64
NEAR_TILES = [Plan(which, "gather", 64, 16, 64, 4, 4) for which in Pass]


def far(t: torch.Tensor, axis: int) -> torch.Tensor:
    """The values of `t` in memory where one step along an axis passes more than 2^31 elements, none of them touched."""
    strides = [FAR if i == axis else stride for i, stride in enumerate(t.contiguous().stride())]
    span = 1 + sum((n - 1) * stride for n, stride in zip(t.shape, strides, strict=True))
    memory = torch.UntypedStorage(span * t.element_size(), device=t.device)
    return torch.tensor([], dtype=t.dtype, device=t.device).set_(memory, 0, t.shape, strides).copy_(t)


@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize("role", ["input", "weight", "gradient"])
@pytest.mark.parametrize("groups", [1, 2])
def test_strides_past_32_bits(role: str, axis: int, groups: int, device: str, launched) -> None:
    """As far apart as in a large tensor, but few: this one runs in the interpreter too."""
    case = Case("conv2d", (2, 2, 2, 2), (2, 2 // groups, 2, 2), stride=2, padding=1, groups=groups, dtype="float16")
    x, w, b = case.tensors(device)
    tensors = {"input": x, "weight": w, "gradient": case.gradient(x)}  # the output has the input's shape
    want = oracle.expected("conv2d", x, w, b, tensors["gradient"], **case.arguments)
    tensors[role] = far(tensors[role], axis)
    x, w, g = tensors.values()
    got = oracle.run(tritonconv.conv2d, x, w, b, g, **case.arguments, plan=NEAR_TILES)
    oracle.assert_close(got, want, f"{role} far along axis {axis}, {groups} groups")


# --- the same matrix at real sizes ------------------------------------------------------------------------------------

GEOMETRIES = {
    "resnet_stem": Case("conv2d", (2, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3),
    "resnet_3x3": Case("conv2d", (8, 64, 56, 56), (64, 64, 3, 3), padding=1, bias=False),
    "resnet_expand": Case("conv2d", (4, 64, 56, 56), (256, 64, 1, 1)),
    "resnet_downsample": Case("conv2d", (4, 256, 56, 56), (512, 256, 1, 1), stride=2),
    "resnet_stride_2": Case("conv2d", (8, 128, 56, 56), (128, 128, 3, 3), stride=2, padding=1),
    "resnet_deep": Case("conv2d", (8, 512, 7, 7), (512, 512, 3, 3), padding=1),
    "resnext_grouped": Case("conv2d", (4, 128, 28, 28), (128, 4, 3, 3), groups=32, padding=1),
    "convnext_depthwise": Case("conv2d", (4, 96, 56, 56), (96, 1, 7, 7), groups=96, padding=3),
    "mobilenet_depthwise": Case("conv2d", (4, 144, 56, 56), (144, 1, 3, 3), groups=144, padding=1, stride=2),
    "aspp_dilated": Case("conv2d", (2, 256, 33, 33), (256, 256, 3, 3), dilation=12, padding=12),
    "vit_patches": Case("conv2d", (4, 3, 224, 224), (384, 3, 16, 16), stride=16),
    "odd": Case("conv2d", (3, 37, 45, 51), (53, 37, 5, 3), stride=(2, 3), padding=(2, 0), dilation=(1, 2)),
    "whisper_1d": Case("conv1d", (4, 80, 3000), (384, 80, 3), padding=1),
    "wav2vec_1d": Case("conv1d", (2, 64, 16000), (96, 64, 10), stride=5),
    "mamba_1d": Case("conv1d", (4, 768, 512), (768, 1, 4), groups=768, padding=3),
    "resnet_3d": Case("conv3d", (2, 32, 16, 28, 28), (64, 32, 3, 3, 3), padding=1, stride=(1, 2, 2)),
    "video_patches_3d": Case("conv3d", (2, 3, 16, 112, 112), (384, 3, 2, 16, 16), stride=(2, 16, 16)),
    "dcgan_transposed": Case("conv_transpose2d", (8, 256, 16, 16), (256, 128, 4, 4), stride=2, padding=1),
    "unet_transposed": Case("conv_transpose2d", (4, 128, 32, 32), (128, 64, 2, 2), stride=2),
    "rest_transposed": Case(
        "conv_transpose2d", (4, 64, 27, 31), (64, 24, 3, 3), stride=3, padding=1, output_padding=2, groups=2
    ),
    "vocoder_transposed_1d": Case("conv_transpose1d", (4, 256, 400), (256, 128, 16), stride=8, padding=4),
    "unet_transposed_3d": Case("conv_transpose3d", (2, 64, 8, 14, 14), (64, 32, 2, 2, 2), stride=2),
}
#: dtype, float32 precision and layout; None takes turns from one geometry to the next.
COLUMNS = (
    ("float16", "ieee", "channels_last"),
    ("float16", "ieee", "contiguous"),
    ("bfloat16", "ieee", None),
    ("float32", "ieee", None),
    ("float32", "tf32", None),
    ("float64", "ieee", None),
)


def matrix() -> Iterator[tuple[str, Case, str]]:
    for i, (name, case) in enumerate(GEOMETRIES.items()):
        for j, (dtype, precision, layout) in enumerate(COLUMNS):
            layout = layout or ("channels_last", "contiguous")[(i + j) % 2]
            numbers = "tf32" if precision == "tf32" else dtype
            laid_out = dataclasses.replace(case, dtype=dtype, x=layout, w=layout, g=layout)
            yield f"{name}-{numbers}-{layout}", laid_out, precision


MATRIX = list(matrix())


@pytest.mark.parametrize("case, precision", [row[1:] for row in MATRIX], ids=[row[0] for row in MATRIX])
def test_matrix(case: Case, precision: str, device: str, fenced, launched) -> None:
    with fp32_precision(precision):
        check(shrunken(case, device), device)
    assert set(launched()) >= {"fprop", "dgrad", "wgrad"}


@pytest.mark.parametrize("g", cases.LAYOUTS)
@pytest.mark.parametrize("name", ["resnet_stride_2", "odd", "dcgan_transposed", "whisper_1d"])
def test_gradients_arrive_in_any_layout(name: str, g: str, device: str, fenced, launched) -> None:
    """Expanded is what `y.sum().backward()` sends; sliced and permuted gradients have no unit stride to rely on."""
    case = dataclasses.replace(GEOMETRIES[name], dtype="float16", x="channels_last", g=g)
    check(shrunken(case, device), device)


@pytest.mark.parametrize("layouts", [("sliced", "permuted"), ("expanded", "sliced"), ("permuted", "expanded")])
@pytest.mark.parametrize("name", ["resnet_3x3", "unet_transposed", "resnext_grouped"])
def test_inputs_in_any_layout(name: str, layouts: tuple[str, str], device: str, fenced, launched) -> None:
    case = dataclasses.replace(GEOMETRIES[name], dtype="bfloat16", x=layouts[0], w=layouts[1])
    check(shrunken(case, device), device)


def test_gradient_of_a_sum(device: str, launched) -> None:
    case = shrunken(dataclasses.replace(GEOMETRIES["resnet_stride_2"], dtype="float32"), device)
    with fp32_precision("ieee"):
        x, w, b = (t.requires_grad_() for t in case.tensors(device))
        y = tritonconv.conv2d(x, w, b, **case.arguments)
        y.sum().backward()
    want = expected("conv2d", x, w, b, torch.ones_like(y), **case.arguments)
    got = {"output": y.detach(), "input": x.grad, "weight": w.grad, "bias": b.grad}
    oracle.assert_close(got, want, oracle.repro(case))


def test_fresh_memory_is_nan(device: str) -> None:
    """The poison that the other tests rely on reaches the memory of this device, in each way the library allocates."""
    assert torch.empty(3, 5, device=device).isnan().all()
    assert torch.empty_strided((3, 5), (1, 3), dtype=torch.float16, device=device).isnan().all()


COVER = cases.pairwise()


@pytest.mark.parametrize("case", COVER, ids=[f"{i}-{case.function}-{case.dtype}" for i, case in enumerate(COVER)])
def test_pairwise(case: Case, device: str, fenced, launched) -> None:
    """The interpreter's cases, compiled."""
    with fp32_precision("ieee"):
        oracle.check(case, device)


@pytest.mark.parametrize("case", cases.EDGES.values(), ids=cases.EDGES)
def test_edge(case: Case, device: str, fenced, launches) -> None:
    with fp32_precision("ieee"):
        oracle.check(case, device)
    assert bool(launches()) == (0 not in case.input)


# --- compute-sanitizer ------------------------------------------------------------------------------------------------

SCRIPT = Path(__file__).parent / "sanitize.py"
SANITIZER_ERROR = 86  # its exit status where it finds something


def sanitizer() -> str | None:
    """The program, where a CUDA toolkit has it."""
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [Path(root) / folder for root in roots if root for folder in ("bin", "compute-sanitizer")]
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=os.pathsep.join(map(str, places)))


@pytest.mark.parametrize("planted", [False, True], ids=["clean", "planted"])
def test_compute_sanitizer(planted: bool, device: str) -> None:
    """memcheck finds nothing in small runs of every kernel, and does find a write past a result that is too short."""
    program = sanitizer()
    if program is None:
        pytest.skip("compute-sanitizer is not installed")
    command = [program, "--tool", "memcheck", "--target-processes", "application-only"]
    command += ["--error-exitcode", str(SANITIZER_ERROR), sys.executable, str(SCRIPT), *["--plant"] * planted]
    root = SCRIPT.parent.parent
    environment = os.environ | {"PYTHONPATH": str(root), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=200)
    said = done.stdout + done.stderr
    if "Device not supported" in said:
        pytest.skip("compute-sanitizer does not support this device here")
    if planted:
        assert done.returncode != 0 and "Invalid __global__ write" in said, said[-4000:]
    else:
        assert done.returncode == 0 and "ERROR SUMMARY: 0 errors" in said and "all right" in said, said[-4000:]


# --- every tile of the menu -------------------------------------------------------------------------------------------

NUMBERS = {"half": ("float16", "ieee"), "tf32": ("float32", "tf32"), "fp32": ("float32", "ieee"), "fp64": ("float64", "ieee")}


def tiles() -> Iterator[tuple[str, str, int, Pass, Tile]]:
    """(arithmetic, family, channels, pass, tile): 160 channels leave a rest in most tiles, 256 in none."""
    for kind, row in MENU.items():
        for tile, which in itertools.product(row, Pass):
            yield kind, "gather", 160, which, tile
            if tile.warps == 8:
                yield kind, "gather", 256, which, tile
            if kind == "half":
                yield kind, "patch", 160, which, tile


@functools.cache
def tile_case(kind: str, family: str, channels: int, device: str) -> tuple:
    """Operands of a case that every tile shares, and what they should give."""
    dtype, _ = NUMBERS[kind]
    if device == "cpu":
        channels //= 8
    kernel = 1 if family == "patch" else 3
    images = (4, channels, 21, 19) if device == "cuda" else (1, channels, 5, 4)
    case = Case(
        "conv2d", images, (channels, channels, kernel, kernel), bias=False, padding=kernel // 2, dtype=dtype,
        x="channels_last", w="channels_last", g="channels_last",
    )  # fmt: skip
    x, w, dy, problem = on(device, case)
    return x, w, dy, problem, expected("conv2d", x, w, None, dy, **case.arguments), oracle.repro(case)


@pytest.mark.parametrize(
    "kind, family, channels, which, tile",
    [pytest.param(*row, id=f"{row[3]}-{row[0]}-{row[1]}-{row[2]}-{'x'.join(map(str, row[4]))}") for row in tiles()],
)
def test_every_tile(kind: str, family: str, channels: int, which: Pass, tile: Tile, device: str, fenced, launched) -> None:
    x, w, dy, problem, want, repro = tile_case(kind, family, channels, device)
    plan = Plan(which, family, *tile, split=3 if which == Pass.WGRAD else 1)
    with fp32_precision(NUMBERS[kind][1]):
        got = run_pass(which, problem, x, w, dy, str(plan))
    name = RESULT[which]
    assert which in launched()
    oracle.assert_close({name: got}, {name: want[name]}, f"plan {plan}\n{repro}", kind == "tf32")


PACKED = [
    "fprop:gather:128x64x32:w4:s4:pack-a:pack-b",
    "dgrad:gather:64x64x32:w4:s4:pack-a",
    "dgrad:gather:64x64x32:w4:s4:pack-b",
    "wgrad:gather:64x64x32:w4:s4:split7:pack-a:pack-b",
    "wgrad:gather:64x64x32:w4:s4:group1:step1x1x4x8",
]


@pytest.mark.parametrize("text", PACKED)
def test_a_forced_plan(text: str, device: str, fenced, launched) -> None:
    """Packed operands, an odd number of splits, a given box."""
    case = dataclasses.replace(GEOMETRIES["resnet_stride_2"], dtype="float16")
    if device == "cpu":
        text = re.sub("split[0-9]+", "split2", text)
    check(shrunken(case, device), device, plan=Plan.parse(text))


# --- float32 precision ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_tf32_and_ieee(layout: str, device: str, launched) -> None:
    """Read at each call: ieee errs as float32 does, tf32 visibly more, and ieee again gives the first bits again."""
    case = dataclasses.replace(GEOMETRIES["resnet_3x3"], bias=True, x=layout, w=layout, g=layout)
    case = shrunken(case, device)
    x, w, b = case.tensors(device)
    rounds = []
    for precision in ("ieee", "tf32", "ieee"):
        with fp32_precision(precision):
            rounds.append(oracle.run(tritonconv.conv2d, x, w, b, case.gradient, **case.arguments))
    ieee, tf32, again = rounds
    want = expected("conv2d", x, w, b, case.gradient(ieee["output"]), **case.arguments)
    oracle.assert_close(ieee, want, oracle.repro(case))
    oracle.assert_close(tf32, want, oracle.repro(case), tf32=True)
    for name in RESULT.values():
        assert torch.equal(ieee[name], again[name])
        errors = [float((got[name].cpu().double() - want[name].value).abs().max()) for got in (ieee, tf32)]
        if device == "cuda":  # the interpreter computes both alike
            assert errors[1] > 8 * errors[0], f"{name}: ieee errs by {errors[0]:.3g}, tf32 by {errors[1]:.3g}"


def test_autocast(device: str, launched) -> None:
    """As torch's convolutions: float32 is cast, the result has the region's dtype, gradients come back in float32."""
    for function, dtype in itertools.product(("conv2d", "conv_transpose2d"), (torch.float16, torch.bfloat16)):
        name = {"conv2d": "resnet_stride_2", "conv_transpose2d": "dcgan_transposed"}[function]
        case = shrunken(GEOMETRIES[name], device)
        x, w, b = case.tensors(device)
        leaves = [t.clone().requires_grad_() for t in (x, w, b)]
        with torch.autocast(device, dtype=dtype):
            y = getattr(tritonconv, function)(*leaves, **case.arguments)
            assert y.dtype == getattr(F, function)(x, w, b, **case.arguments).dtype == dtype
        g = case.gradient(y).to(dtype)
        y.backward(g)
        got = {"output": y.detach()}
        for role, leaf in zip(("input", "weight", "bias"), leaves, strict=True):
            assert leaf.grad.dtype == torch.float32
            got[role] = leaf.grad.to(dtype)
            assert torch.equal(got[role].float(), leaf.grad), "the gradient was not rounded to the region's dtype"
        want = expected(function, *(t.to(dtype) for t in (x, w, b)), g, **case.arguments)
        oracle.assert_close(got, want, oracle.repro(case))


def test_autocast_leaves_float64_alone(device: str, launched) -> None:
    case = shrunken(dataclasses.replace(GEOMETRIES["resnet_expand"], dtype="float64"), device)
    x, w, b = case.tensors(device)
    with torch.autocast(device, dtype=torch.float16):
        assert tritonconv.conv2d(x, w, b).dtype == F.conv2d(x, w, b).dtype == torch.float64


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
        want = {RESULT[which]: expected("conv2d", x, w, None, dy, **case.arguments)[RESULT[which]]}
        tf32 = oracle.uses_tf32(case.torch_dtype, device)
        oracle.assert_close({RESULT[which]: first}, want, oracle.repro(case), tf32)


# --- graphs, streams, devices -----------------------------------------------------------------------------------------

STEPS = {
    "conv2d": GEOMETRIES["resnet_stride_2"],
    "conv2d_channels_last": dataclasses.replace(GEOMETRIES["resnet_3x3"], x="channels_last", g="channels_last"),
    "conv2d_grouped": GEOMETRIES["resnext_grouped"],
    "conv1d": GEOMETRIES["whisper_1d"],
    "conv3d": GEOMETRIES["resnet_3d"],
    "conv_transpose2d": GEOMETRIES["dcgan_transposed"],
}


@dataclass(frozen=True)
class Step:
    """Forward and backward of a case on fixed tensors, as a training step would repeat it."""

    case: Case
    tensors: tuple[torch.Tensor | None, ...]
    gradient: torch.Tensor

    @classmethod
    def of(cls, name: str, device: str, seed: int = 0) -> Step:
        case = shrunken(dataclasses.replace(STEPS[name], dtype="float16", seed=seed), device)
        tensors = case.tensors(device)
        y = getattr(tritonconv, case.function)(*tensors, **case.arguments)
        return cls(case, tensors, case.gradient(y))

    def __call__(self) -> Results:
        call = getattr(tritonconv, self.case.function)
        return oracle.run(call, *self.tensors, self.gradient, **self.case.arguments)

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
        reductions.append(compiled(wgrad_reduce_kernel))
        run_pass(which, problem, x, w, dy, ONE[which])
    assert compiled(kernel) - before == 1
    # the reduction of the partial sums knows no size of an image either; an earlier test may have compiled it
    assert compiled(wgrad_reduce_kernel) - reductions[0] <= 1


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
    ours = [kernel for found in names for kernel in KERNELS if kernel in found]
    assert sorted(ours) == sorted(KERNELS), f"the profiler saw {names}"
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
