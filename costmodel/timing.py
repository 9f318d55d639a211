"""Predicted time of a tile: tile and wave quantisation over tensor, issue, L2 and DRAM limits. Plain arithmetic.

Rates are those of the device's datasheet times the shares of `costmodel.calibration`; instruction counts are those of compiled
kernels. What does not depend on the problem's size is worked out once per tile (`Kernel`), so that ranking is quick.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from costmodel.algebra import ceil_div
from costmodel.calibration import DEFAULT, PRIOR_SOURCE, Calibration
from costmodel.device import Device
from costmodel.problem import Pass
from costmodel.resources import COMPILED, LEAST_CAPABILITY, Resources, compiled_for
from costmodel.tiling import Call, Extent, Tile, itemsize

#: Share of the L2 cache that operands may fill; beyond it a second sweep over them reads DRAM again.
L2_SHARE = 0.5
#: Bytes per clock that one multiprocessor can draw from L2; the chip cannot give as much to all of them at once.
L2_PORT = 64
#: Seconds that Triton's interpreter takes per program or loop trip, and per element loaded (two slow cores, Triton 3.7).
INTERPRETED_TRIP = 12e-3
INTERPRETED_ELEMENT = 3e-8
#: The dtype and precision whose peak an arithmetic of the menu reaches.
_RATE = {"half": ("float16", "ieee"), "tf32": ("float32", "tf32"), "fp32": ("float32", "ieee"), "fp64": ("float64", "ieee")}
_RATE["tf32x3"] = _RATE["tf32"]
#: Multiplications per product that is asked for.
_PRODUCTS = {"tf32x3": 3}


@dataclass(frozen=True)
class Prediction:
    """Seconds of one pass under a plan, and where they go. `bound` names the largest term, `low` and `high` the interval."""

    seconds: float
    tiles: int
    waves: float
    tile_use: float  # share of issued multiply-adds that the dense count asks for
    bytes: int  # compulsory traffic, the copies and workspace the plan adds, and operands read again from DRAM
    bound: str
    low: float = 0.0
    high: float = math.inf
    source: str = PRIOR_SOURCE  # where the interval comes from

    def beside(self, seconds: float, moved: int, name: str = "") -> Prediction:
        """The same prediction with a kernel beside it that takes `seconds` and moves `moved` bytes. The interval keeps its
        share of the time. `name` is the bound where that kernel takes longer than the rest."""
        slowdown = 1 + seconds / self.seconds
        return replace(
            self,
            seconds=self.seconds * slowdown,
            bytes=self.bytes + moved,
            bound=name if name and seconds > self.seconds else self.bound,
            low=self.low * slowdown,
            high=self.high * slowdown,
        )

    def noted(self, remark: str) -> Prediction:
        """The same prediction with a remark added to its source, where there is one."""
        return replace(self, source=f"{self.source}; {remark}") if remark else self


class Kernel(NamedTuple):
    """A compiled tile on a device: the parts of its time that do not depend on the problem's size. Clocks are those of one
    multiprocessor."""

    tile: Tile
    resident: int  # programs that fit a multiprocessor together
    clocks: float  # clocks per trip for arithmetic and instruction issue, when other programs hide its latency
    from_l2: float  # clocks per trip for operands from L2, when every multiprocessor draws on it
    from_l2_alone: float  # the same when only this multiprocessor draws on it
    exposed: float  # clocks of latency per trip that its own stages do not hide
    epilogue: float
    bound: str  # what sets `clocks`: "arithmetic", "instruction issue" or "cache lines"
    constants: Calibration  # the constants of its family


@lru_cache(maxsize=4096)
def kernel(
    family: str,
    tile: Tile,
    needs: Resources,
    kind: str,
    size: int,
    widths: tuple[int, int],
    device: Device,
    lines: tuple[float, float] = (0.0, 0.0),
) -> Kernel:
    """The `Kernel` of a tile in arithmetic `kind`. Elements have `size` bytes; loads of operands a and b bring `widths`
    elements. `lines`: cache lines of 128 bytes that a warp touches per element of a and of b, where those are more than the
    elements fill; the load unit handles one line per clock.

    `needs` is its row of the table of compiled kernels, or an estimate.
    """
    if device.interpreted:
        return Kernel(tile, 1, 0, 0, 0, 0, 0, "the interpreter", DEFAULT)
    m, n, k, warps, stages = tile
    clock, constants = device.clock * 1e6, device.calibration(family)
    resident = min(
        device.shared_per_sm // max(1, needs.shared + 1024),
        device.registers_per_sm // max(1, needs.registers * warps * 32),
        device.warps_per_sm // warps,
        device.blocks_per_sm,
    )
    multiply = multiply_clocks(tile, kind, constants, device)
    loads = m * k / widths[0] / 32 + n * k / widths[1] / 32  # warp instructions
    issue = (needs.trip * warps + 2 * loads) / (4 * constants.issue)
    if kind == "fp32":
        issue = 0.0  # the FMA rate counts it already
    l2_rate = device.l2_bandwidth * constants.l2 * 1e9 / device.sm_count / clock  # bytes per clock and multiprocessor
    operands = (m + n) * k * size
    # loads narrower than 4 bytes are not pipelined: only other resident programs hide their latency
    exposed = constants.latency / (stages if min(widths) * size >= 4 else 1)
    clocks, bound = max(
        (multiply, "arithmetic"), (issue, "instruction issue"), (m * k * lines[0] + n * k * lines[1], "cache lines")
    )
    from_l2, epilogue = operands / l2_rate, m * n * size / l2_rate
    return Kernel(tile, max(1, resident), clocks, from_l2, operands / L2_PORT, exposed, epilogue, bound, constants)


def multiply_clocks(tile: Tile, kind: str, constants: Calibration, device: Device) -> float:
    """Clocks of one multiprocessor for the multiply-adds of a trip in arithmetic `kind`."""
    m, n, k = tile[:3]
    rate = device.rate(*_RATE[kind]) * constants.share(kind, f"{m}x{n}x{k}")
    return 2 * m * n * k * _PRODUCTS.get(kind, 1) / (rate / device.sm_count / (device.clock * 1e6))


def trip_clocks(tile_kernel: Kernel, tiles: int, device: Device) -> float:
    """Clocks per trip of one program: the larger of arithmetic, issue, and its share of L2, which grows where some
    multiprocessors have no program."""
    share = tiles / device.sm_count
    return max(
        tile_kernel.clocks, tile_kernel.from_l2 if share >= 1 else max(tile_kernel.from_l2 * share, tile_kernel.from_l2_alone)
    )


def on_chip(tile_kernel: Kernel, tiles: int, n_trips: float, device: Device) -> float:
    """Seconds of the busiest multiprocessor, which runs ceil(tiles / multiprocessors) programs, as many at once as fit."""
    tiles_each = -(-tiles // device.sm_count)
    clocks = trip_clocks(tile_kernel, tiles, device)
    trip = max(clocks, (clocks + tile_kernel.exposed) / min(tile_kernel.resident, tiles_each))
    return (tiles_each * (n_trips * trip + tile_kernel.epilogue) + 2 * tile_kernel.constants.latency) / (device.clock * 1e6)


def interpreted(tile: Tile, tiles: int, n_trips: float) -> float:
    """Seconds that Triton's interpreter takes."""
    loaded = (tile.m + tile.n) * tile.k
    return tiles * (1 + n_trips) * (INTERPRETED_TRIP + loaded * INTERPRETED_ELEMENT)


class Traffic(NamedTuple):
    """Bytes of a pass that do not depend on the tile."""

    compulsory: int
    swept: int  # bytes that tiles sweep over more than once: one group's weights, or wgrad's activations
    workspace: int  # bytes to write and read one share's partial sums, in float32 or float64


@lru_cache(maxsize=4096)
def traffic(call: Call) -> Traffic:
    """The bytes that a call moves under any plan, without copies."""
    problem, size = call.problem, itemsize(call.dtype)
    weights = math.prod(problem.weight_shape)
    results = {Pass.FPROP: problem.output_shape, Pass.DGRAD: problem.input_shape, Pass.WGRAD: problem.weight_shape}[call.which]
    if call.which == Pass.WGRAD:
        swept = size * (math.prod(problem.output_shape) + math.prod(problem.input_shape))
    else:
        swept = size * weights // problem.groups
    return Traffic(problem.bytes(size, call.which), swept, 2 * math.prod(results) * (8 if size == 8 else 4))


def read_again(tile_kernel: Kernel, covers: Extent, split: int, group_m: int, call: Call, swept: int, device: Device) -> int:
    """Bytes of operands that the L2 cache cannot keep from one sweep over them to the next.

    fprop and dgrad walk `group_m` m tiles across every n tile, so they read the weights again for each such sweep (or for each
    wave, where a wave is wider). wgrad runs all tiles and taps of one slice of the pixels before the next slice, so it reads a
    slice again for each wave. Where `split` programs share a reduction, one share is swept at a time.
    """
    wgrad = call.which == Pass.WGRAD
    if swept / split <= device.l2_bytes * L2_SHARE:
        return 0
    wave = device.sm_count * tile_kernel.resident
    m_tiles, n_tiles = ceil_div(covers.m, tile_kernel.tile.m), ceil_div(covers.n, tile_kernel.tile.n)
    if wgrad:
        return (ceil_div(m_tiles * n_tiles * covers.repeats, wave) - 1) * swept
    return (ceil_div(m_tiles * n_tiles, max(wave, min(group_m, m_tiles) * n_tiles)) - 1) * swept * call.problem.groups


def from_dram(moved: float, device: Device, constants: Calibration) -> float:
    """Seconds that DRAM takes for `moved` bytes."""
    return moved / (device.bandwidth * 1e9 * constants.dram)


def overhead(kernels: int, device: Device, constants: Calibration) -> float:
    """Seconds that `kernels` launches take."""
    return kernels * device.launch_overhead * constants.launch


def borrowed(device: Device) -> str:
    """Words that say which architecture's compiled kernels a prediction uses, where it is not the device's own, and whether
    tritonconv runs on the device."""
    if device.capability in COMPILED:
        return ""
    words = f"; registers and shared memory are those of kernels compiled for sm_{compiled_for(device.capability)}"
    if device.capability < LEAST_CAPABILITY:
        words += f", for tritonconv does not run on {device.name}: it needs compute capability {LEAST_CAPABILITY / 10:.1f}"
    return words
