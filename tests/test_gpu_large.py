"""Tensors above 2^31 elements, which hold small integers, so that every sum is exact and nothing has a tolerance."""

from __future__ import annotations

import dataclasses
import fcntl
import gc
import itertools
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import oracle
import pytest
import torch
from cases import Case
from gpu import run_pass

import tritonconv
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Plan

pytest_plugins = ["gpu"]  # its fixtures
pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("share_of_the_cores", "settled")]

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
