"""Deformable convolution: what a call is, what it counts, and the tile that its forward kernel takes. Plain arithmetic,
standard library only. `costmodel.deform_backward` has the gradients.

A place is where a tap of an output pixel samples: one per (image, output pixel, tap, offset group). A sample is one channel
there, made of four pixels. Zhu et al. 2018, "Deformable ConvNets v2" (arXiv:1811.11168); v1 has no mask (arXiv:1703.06211).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from costmodel.algebra import ceil_div, product
from costmodel.device import Device
from costmodel.problem import ConvProblem, Pass
from costmodel.resources import Resources, memory_refusal
from costmodel.tiling import (
    INTERPRETED_MENU,
    LARGEST_BOX,
    Operand,
    Plan,
    Tile,
    arithmetic,
    itemsize,
    pack_refusal,
    plan_option,
    tile_refusal,
)
from costmodel.timing import Kernel, Prediction, borrowed, from_dram, interpreted, kernel, on_chip, overhead, trip_clocks

FAMILY = "deform"
#: FLOP per sample: four multiplications and three additions. The weights of the four pixels, and the mask in them, belong to a
#: place and are shared by its channels; they are not counted.
SAMPLE_FLOPS = 7
#: Warp instructions that compute a place: its pixels, their offsets and masks, and the weight of each pixel.
PLACE = 77
#: Pixels that a sample is made of.
CORNERS = 4
#: A channels-last operand that is read 16 bytes at a time.
DENSE = Operand()
#: Registers that a thread can have.
REGISTERS = 255
#: Tiles by arithmetic. Each compiles without a spill for every architecture (`tests/test_deform_aot.py`).
MENU = {
    "half": (Tile(128, 128, 32, 8, 2), Tile(64, 128, 32, 4, 2), Tile(64, 64, 32, 4, 2), Tile(64, 32, 32, 4, 3)),
    "tf32": (Tile(64, 64, 32, 4, 2), Tile(64, 32, 32, 4, 2)),
    "fp32": (Tile(64, 32, 16, 4, 2), Tile(32, 32, 16, 4, 2)),
    "fp64": (Tile(32, 32, 16, 4, 2),),
}


#: The tiles of all kernels where a load brings less than 8 bytes: as many addresses as samples leave few registers.
NARROW = {name: Tile(32, 32, 16, 4, 2) for name in ("half", "tf32", "fp32")} | {"fp64": Tile(16, 16, 16, 4, 2)}


@dataclass(frozen=True)
class DeformPlan(Plan):
    """A plan of "deform". fprop: `block_m` pixels x `block_n` filters, `block_k` channels at a time. dgrad: `block_m` pixels x
    `block_n` channels, `block_k` filters at a time. wgrad: `block_m` filters x `block_n` channels, `block_k` pixels at a time,
    in `split` shares. `pack` names what is copied to channels-last first: "a" the input, and in the gradients that of the
    output too, "b" the weight."""

    split: int = plan_option("split", 1)
    group_m: int = plan_option("group", 8)
    pack: tuple[str, ...] = plan_option("pack-", ())


@dataclass(frozen=True)
class Deformation:
    """A call: the convolution whose grid the offsets deform, the number of offset groups, and whether there is a mask.

    >>> problem = ConvProblem.conv((2, 8, 9, 9), (16, 8, 3, 3), (1, 1), (1, 1), (1, 1))
    >>> call = Deformation(problem, 2, True)
    >>> call.offset_shape, call.mask_shape, call.samples, call.flops == problem.flops + 7 * call.samples
    ((2, 36, 9, 9), (2, 18, 9, 9), 11664, True)
    """

    problem: ConvProblem
    offset_groups: Any = 1
    masked: bool = False

    @property
    def shared(self) -> Any:
        """Channels of an offset group."""
        return self.problem.in_channels // self.offset_groups

    @property
    def run(self) -> int:
        """Channels that one weight group and one offset group have in common: both are whole numbers of such runs."""
        return math.gcd(self.problem.channels_per_group, self.shared)

    @property
    def offset_shape(self) -> tuple[Any, ...]:
        problem = self.problem
        return (problem.batch, 2 * self.offset_groups * problem.taps, *problem.output_size)

    @property
    def mask_shape(self) -> tuple[Any, ...]:
        problem = self.problem
        return (problem.batch, self.offset_groups * problem.taps, *problem.output_size)

    @property
    def pixels(self) -> Any:
        """Output pixels of the batch."""
        return self.problem.batch * product(self.problem.output_size)

    @property
    def places(self) -> Any:
        return product(self.mask_shape)

    @property
    def samples(self) -> Any:
        return self.pixels * self.problem.taps * self.problem.in_channels

    @property
    def macs(self) -> Any:
        """Multiply-adds of the product of samples and weights."""
        return self.problem.macs

    @property
    def flops(self) -> Any:
        """FLOP of one forward pass that the formula asks for: two per multiply-add, and `SAMPLE_FLOPS` per sample."""
        return 2 * self.macs + SAMPLE_FLOPS * self.samples

    def __str__(self) -> str:
        parts = [str(self.problem)] + [f"{self.offset_groups} offset groups"] * (self.offset_groups != 1)
        return ", ".join(parts + ["modulated"] * self.masked)


def elements(deformation: Deformation) -> dict[str, int]:
    """Elements of each tensor of a call."""
    problem = deformation.problem
    return {
        "input": product(problem.input_shape),
        "offset": product(deformation.offset_shape),
        "mask": deformation.places if deformation.masked else 0,
        "weight": product(problem.weight_shape),
        "output": product(problem.output_shape),
    }


def compulsory(deformation: Deformation, size: int) -> int:
    """The least bytes that a forward pass moves: each tensor once, with `size` bytes per element."""
    return size * sum(elements(deformation).values())


def column_bytes(deformation: Deformation, size: int) -> int:
    """Bytes that writing all samples to memory and reading them back would add: what torchvision's im2col moves."""
    return 2 * size * deformation.samples


@dataclass(frozen=True)
class DeformCall:
    """A call to plan, with the layouts of its operands as in `costmodel.tiling.Call`. `x` and `w` are described as given,
    before any copy."""

    deformation: Deformation
    dtype: str
    precision: str = "ieee"
    x: Operand = DENSE
    w: Operand = DENSE
    y: Operand = DENSE


def refusal(call: DeformCall, plan: Plan, device: Device) -> str:
    """Why the forward kernel cannot run a call under a plan; "" where it can."""
    if plan.which != Pass.FPROP or not isinstance(plan, DeformPlan):
        return f"a deformable convolution takes plans fprop:{FAMILY}, got {plan.which}:{plan.family}"
    if plan.split != 1:
        return f"only wgrad splits its sums, got split {plan.split}"
    return block_refusal(plan) or memory_refusal(plan.tile, resources(call, plan).shared, device)


def block_refusal(plan: DeformPlan) -> str:
    """Why no pass can run a plan's blocks; "" where one can."""
    for name, block in (("block_m", plan.block_m), ("block_n", plan.block_n), ("block_k", plan.block_k)):
        if block < 16 or block & (block - 1):
            return f"{name} must be a power of two of at least 16, got {block}"
    if plan.group_m < 1:
        return f"group must be positive, got {plan.group_m}"
    return pack_refusal(plan.pack) or tile_refusal(plan)


def checked(call: DeformCall, plan: Plan, device: Device) -> DeformPlan:
    """A forced plan. Raises ValueError where it cannot run the call."""
    if reason := refusal(call, plan, device):
        raise ValueError(f"plan {plan} cannot run {call.deformation}: {reason}")
    assert isinstance(plan, DeformPlan)
    return plan


def tiles(deformation: Deformation, plan: DeformPlan) -> tuple[int, int]:
    """(m tiles, n tiles over all weight groups) of the forward kernel."""
    problem = deformation.problem
    return ceil_div(deformation.pixels, plan.block_m), problem.groups * ceil_div(problem.filters_per_group, plan.block_n)


def trips(deformation: Deformation, plan: DeformPlan) -> int:
    """Trips of the forward kernel's inner loop, over all runs and taps of a weight group."""
    return (
        deformation.problem.channels_per_group
        // deformation.run
        * deformation.problem.taps
        * ceil_div(deformation.run, plan.block_k)
    )


def widths(call: DeformCall, plan: DeformPlan) -> tuple[int, int]:
    """Elements that a load brings of a pixel's channels and of a filter's."""
    widest = max(1, 16 // itemsize(call.dtype))
    channels = math.gcd(call.deformation.run, widest)

    def width(operand: Operand, name: str) -> int:
        if name in plan.pack:
            return channels
        return math.gcd(channels, operand.align) if operand.unit == 1 else 1

    return width(call.x, "a"), width(call.w, "b")


class Trip(NamedTuple):
    """What one trip of a kernel's inner loop does, including its share of the outer loop's work."""

    samples: float  # rows x channels of samples that it makes, or whose pixels it reads
    rows: float  # places that it computes
    across: int  # channels of a place that it samples
    others: float  # elements that it reads besides, of the operands that are not sampled


def trip_of(call: DeformCall, plan: DeformPlan) -> Trip:
    """A trip of the forward, columns (dgrad) or weight kernel."""
    (m, n, k, *_), deformation = plan.tile, call.deformation
    if plan.which == Pass.WGRAD:
        return Trip(k * n, k, n, m * k)
    if plan.which == Pass.DGRAD:  # the pixels are read once per block of channels, after the filters
        trips = ceil_div(deformation.problem.filters_per_group, k)
        return Trip(m * n / trips, m / (trips * max(1, ceil_div(deformation.shared, n))), n, (m + n) * k)
    return Trip(m * k, m / ceil_div(deformation.run, k), k, n * k)


def trip_instructions(call: DeformCall, plan: DeformPlan) -> float:
    """Warp instructions per trip: four loads per sample with their addresses, conversions and sums; the positions, which lanes
    along the channels compute together; the loads of the other operands; and the product. `tests/test_deform_aot.py` compares
    them with compiled kernels."""
    m, n, k, warps, _ = plan.tile
    trip, size, threads = trip_of(call, plan), itemsize(call.dtype), 32 * warps
    width, other = widths(call, plan)
    convert = 1.0 if size == 2 else 0.0  # a 16-bit value takes a conversion, and the sample half of one
    instructions = 85 + trip.samples / threads * (CORNERS * (4 / width + convert + (2 if size == 8 else 1)) + convert / 2)
    instructions += PLACE * trip.rows / threads * max(1.0, trip.across / width)
    instructions += trip.others / threads * (13 if plan.which == Pass.WGRAD else 6 / other)
    if arithmetic(call.dtype, call.precision) == "fp32":
        instructions += m * n * k / threads
    return instructions


def takes_all_registers(call: DeformCall) -> bool:
    """Whether kernels are compiled with permission to use all `REGISTERS`. On tensor cores ptxas would otherwise spill a few of
    130 registers to stay within 128. Kernels without matrix instructions spill only with the permission."""
    return arithmetic(call.dtype, call.precision) in ("half", "tf32")


def resources(call: DeformCall, plan: DeformPlan) -> Resources:
    """What the forward kernel needs. Shared memory holds the samples of a trip once, and its weights once per stage."""
    size, (m, n, k, warps, stages) = itemsize(call.dtype), plan.tile
    held = m * n // (32 * warps) * (2 if size == 8 else 1)
    shared = (m + stages * n) * k * size
    return Resources(min(REGISTERS, 96 + held), shared, 0, round(trip_instructions(call, plan)))


def narrow(call: DeformCall, names: str = "ab") -> tuple[str, ...]:
    """The operands whose channels are not contiguous. A plan for a GPU copies them, because the kernel's registers cannot hold
    an address per sample."""
    return tuple(name for name, operand in (("a", call.x), ("b", call.w)) if operand.unit != 1 and name in names)


def fitting(call: DeformCall, which: Pass, menu: tuple[Tile, ...], pack: tuple[str, ...]) -> list[DeformPlan]:
    """Plans of a menu's tiles, or of `NARROW` where a load of samples brings less than 8 bytes."""
    plans = [DeformPlan(which, FAMILY, *tile, pack=pack) for tile in menu]
    if widths(call, plans[0])[0] * itemsize(call.dtype) >= 8:
        return plans
    kind = "fp64" if which == Pass.DGRAD else arithmetic(call.dtype, call.precision)  # columns: the four pixels are in flight
    return [DeformPlan(which, FAMILY, *NARROW[kind], pack=pack)]


def candidates(call: DeformCall, device: Device) -> list[DeformPlan]:
    """The menu's tiles, with the copies that they need."""
    kind = arithmetic(call.dtype, call.precision)
    if device.interpreted:
        return [DeformPlan(Pass.FPROP, FAMILY, *tile) for tile in INTERPRETED_MENU]
    plans = fitting(call, Pass.FPROP, MENU[kind], narrow(call))
    return [plan for plan in plans if not refusal(call, plan, device)]


def kernel_of(call: DeformCall, plan: DeformPlan, device: Device) -> Kernel:
    """The kernel of a plan of any pass. Each of a sample's four pixels is assumed to come from L2, because its position is not
    known before a run. Loads depend on other loads, so only other programs hide their latency."""
    m, n, k, *_ = plan.tile
    kind, size, trip = arithmetic(call.dtype, call.precision), itemsize(call.dtype), trip_of(call, plan)
    tile_kernel = kernel(FAMILY, plan.tile, resources(call, plan), kind, size, (LARGEST_BOX, LARGEST_BOX), device)
    share = (CORNERS * trip.samples + trip.others) / ((m + n) * k)
    latency = tile_kernel.constants.latency * (1 if plan.which == Pass.DGRAD else 2)
    return tile_kernel._replace(
        from_l2=tile_kernel.from_l2 * share, from_l2_alone=tile_kernel.from_l2_alone * share, exposed=latency
    )


def predict(call: DeformCall, plan: DeformPlan, device: Device) -> Prediction:
    """Seconds of a forward pass under a plan, with the copies before it."""
    size, tile_kernel = itemsize(call.dtype), kernel_of(call, plan, device)
    tiles_m, tiles_n = tiles(call.deformation, plan)
    count, trips_each = tiles_m * tiles_n, trips(call.deformation, plan)
    named = {"a": "input", "b": "weight"}
    moved = compulsory(call.deformation, size) + sum(2 * size * elements(call.deformation)[named[name]] for name in plan.pack)
    issued = count * trips_each * plan.block_m * plan.block_n * plan.block_k
    if device.interpreted:
        total, bound = CORNERS * interpreted(plan.tile, count, trips_each), tile_kernel.bound
    else:
        busy, dram = on_chip(tile_kernel, count, trips_each, device), from_dram(moved, device, tile_kernel.constants)
        start = overhead(1 + len(plan.pack), device, tile_kernel.constants)
        total, bound = (
            start + max(busy, dram),
            tile_kernel.bound if tile_kernel.clocks >= trip_clocks(tile_kernel, count, device) else "L2",
        )
        bound = "DRAM" if dram > busy else bound
        bound = "launch" if start > max(busy, dram) else bound
    return Prediction(
        seconds=total,
        tiles=count,
        waves=count / (device.sm_count * tile_kernel.resident),
        tile_use=min(1.0, call.deformation.macs / max(1, issued)),
        bytes=moved,
        bound=bound,
        low=total * tile_kernel.constants.low,
        high=total * tile_kernel.constants.high,
        source=tile_kernel.constants.source + borrowed(device),
    )


def select(call: DeformCall, device: Device) -> DeformPlan:
    """The candidate of least predicted time. Raises RuntimeError where no candidate fits the device's shared memory."""
    plans = candidates(call, device)
    if not plans:
        raise RuntimeError(f"no tile of a deformable convolution fits {device.name}: {call.deformation}")
    return min(plans, key=lambda plan: predict(call, plan, device).seconds)
