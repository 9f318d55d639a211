"""What a normalisation before a convolution costs: statistics, a kernel that applies it, or the same while pixels are gathered.

Plain arithmetic, standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from costmodel.device import Device
from costmodel.resources import compiled_for
from costmodel.tiling import Tile
from costmodel.timing import Kernel, from_dram, overhead

#: Instructions per element of `kernels.prologue.prepared` in the gather's loop, with scale and shift, by activation: the way
#: from shared memory through registers, conversion, arithmetic, rounding, selection. rstd adds RSTD_INSTRUCTIONS. Counted in
#: machine code for sm_90 (`tests/test_prologue_aot.py`).
INSTRUCTIONS = {
    "": 8.0,
    "relu": 10.0,
    "relu6": 11.0,
    "leaky_relu": 10.0,
    "hardswish": 14.0,
    "sigmoid": 24.0,
    "silu": 23.0,
    "tanh": 34.0,
    "gelu": 40.0,
    "gelu_tanh": 29.0,
}
RSTD_INSTRUCTIONS = 2.5
#: Further instructions per element for scale, and as many for shift, where the rows of a tile are of images with values of
#: their own, which are then loaded element by element (`tests/test_conv_prologue_aot.py`).
ROW_INSTRUCTIONS = 2.5
#: Tiles of 4-byte elements that spill with a prologue on some architecture.
SPILL_WIDE = ((128, 32, 32, 4), (64, 32, 16, 4), (64, 64, 16, 4), (128, 64, 16, 8), (32, 32, 32, 4))
#: Tiles of 2-byte elements that compile for sm_80 with a prologue and without a spill.
FITS_SM80 = (*((128, 128, 64), (128, 128, 32), (128, 64, 32), (64, 32, 64), (128, 64, 16), (128, 16, 32), (64, 16, 64)),)


@dataclass(frozen=True)
class Prologue:
    """act(x * rstd * scale + shift), without its tensors. scale and shift have a value per channel, or none; rstd has one per
    pixel. values: elements of all of them together. slope: of leaky_relu. each_image: scale or shift differ from image to
    image; each_frame: from frame to frame."""

    activation: str = ""
    scale: bool = True
    shift: bool = True
    rstd: bool = False
    values: int = 0
    slope: float = 0.01
    each_image: bool = False
    each_frame: bool = False

    @classmethod
    def of(cls, activation: str, scale: Any, shift: Any, rstd: Any, slope: float = 0.01) -> Self:
        """The prologue of the tensors scale and shift [N or 1, T or 1, C] and rstd [N, T, H, W], each of which may be None."""
        per_channel = [tensor for tensor in (scale, shift) if tensor is not None]
        values = sum(tensor.numel() for tensor in (scale, shift, rstd) if tensor is not None)
        each_image, each_frame = (any(tensor.shape[axis] > 1 for tensor in per_channel) for axis in (0, 1))
        with_scale, with_shift, with_rstd = (tensor is not None for tensor in (scale, shift, rstd))
        return cls(activation, with_scale, with_shift, with_rstd, values, slope, each_image, each_frame)

    def spans(self, rows: int, pixels: int, batch: int) -> bool:
        """Whether a tile of `rows` results, of images of `pixels` results, may hold rows with different values."""
        return self.each_image and batch > 1 and pixels % rows != 0

    def __str__(self) -> str:
        words = ["rstd"] * self.rstd + ["scale"] * self.scale + ["shift"] * self.shift
        return ", ".join(words + [self.activation] * bool(self.activation))


def extra_instructions(prologue: Prologue, tile: Tile, spans: bool = False) -> int:
    """Instructions per trip of a thread that prepares its part of a tile of x. `spans`: the tile's rows have different
    values."""
    per_thread = tile.m * tile.k / (32 * tile.warps)
    by_row = ROW_INSTRUCTIONS * (prologue.scale + prologue.shift) if spans else 0
    return round(per_thread * (INSTRUCTIONS[prologue.activation] + RSTD_INSTRUCTIONS * prologue.rstd + by_row))


def gathered(plain: Kernel, prologue: Prologue | None, device: Device, spans: bool = False) -> Kernel:
    """A kernel that applies a prologue to the pixels that it gathers. The product reads registers that the prologue writes in
    the same trip, so that its instructions come on top."""
    if prologue is None or device.interpreted:
        return plain
    extra = extra_instructions(prologue, plain.tile, spans) * plain.tile.warps / (4 * plain.constants.issue)
    return plain._replace(clocks=plain.clocks + extra, bound="instruction issue" if extra > plain.clocks else plain.bound)


def fits(tile: Tile, size: int, capability: int) -> bool:
    """Whether a tile of elements of `size` bytes keeps the prologue, its sums and its addresses in registers with every
    activation (compiled with silu and gelu, scale, shift and rstd for sm_80, sm_90 and sm_100).

    A thread may prepare 32 elements, or 16 beside 128 x 128 sums on sm_100. On sm_80 the compiler spills a few registers of
    most small tiles of 16-bit elements, so the tiles that do not spill are listed. Some tiles of wider elements spill on some
    architecture; these are listed too.
    """
    arch, per_thread = compiled_for(capability), tile.m * tile.k // (32 * tile.warps)
    if tile.m * tile.n > 128 * 128 or per_thread > 32:
        return False
    if size > 2 and (tile.m, tile.n, tile.k, tile.warps) in SPILL_WIDE:
        return False
    if arch == 80 and size == 2:
        return (tile.m, tile.n, tile.k) in FITS_SM80
    return arch != 100 or tile.m * tile.n < 128 * 128 or per_thread <= 16


def value_bytes(prologue: Prologue, size: int) -> int:
    """Bytes of scale, shift and rstd, in float32, or float64 beside elements of 8 bytes."""
    return prologue.values * max(4, size)


def applied(elements: int, prologue: Prologue, size: int, device: Device, family: str) -> tuple[int, float]:
    """(bytes, seconds) of the kernel that reads `elements` and writes them normalised."""
    moved = 2 * size * elements + value_bytes(prologue, size)
    constants = device.calibration(family)
    return moved, overhead(1, device, constants) + from_dram(moved, device, constants)


def statistics(elements: int, size: int, kernels: int, device: Device, family: str = "video") -> tuple[int, float]:
    """(bytes, seconds) of the statistics of `elements`, which are read once, in `kernels` launches."""
    constants = device.calibration(family)
    moved = size * elements
    return moved, overhead(kernels, device, constants) + from_dram(moved, device, constants)
