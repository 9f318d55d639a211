"""Gradients of the deformable convolution: the tiles that their kernels take, the memory between them, and how long they take.

There are four parts, of which a call runs those that its gradients need: columns (gradients of the samples, and of offset and
mask), sort (places by pixel), scatter (input), weights. Plain arithmetic, standard library only.
"""

from __future__ import annotations

from dataclasses import replace

from costmodel.algebra import ceil_div, product
from costmodel.deform import (
    CORNERS,
    FAMILY,
    SAMPLE_FLOPS,
    Deformation,
    DeformCall,
    DeformPlan,
    block_refusal,
    compulsory,
    elements,
    fitting,
    kernel_of,
    narrow,
    resources,
    widths,
)
from costmodel.device import Device
from costmodel.problem import Pass
from costmodel.resources import memory_refusal
from costmodel.tiling import Plan, Tile, arithmetic, itemsize
from costmodel.timing import Prediction, borrowed, from_dram, interpreted, on_chip, overhead

#: The menus of the columns kernel and of the weight gradient's kernel, by arithmetic. They are chosen like that of
#: `costmodel.deform`.
COLUMNS = {
    "half": (Tile(64, 64, 32, 8, 2), Tile(64, 32, 32, 8, 2)),
    "tf32": (Tile(64, 32, 32, 8, 2),),
    "fp32": (Tile(32, 16, 16, 4, 2),),
    "fp64": (Tile(32, 16, 16, 4, 2),),
}
WEIGHTS = {
    "half": (Tile(128, 64, 32, 8, 2), Tile(64, 64, 32, 8, 2)),
    "tf32": (Tile(64, 64, 32, 8, 2), Tile(64, 32, 32, 8, 2)),
    "fp32": (Tile(32, 16, 16, 4, 2),),
    "fp64": (Tile(32, 16, 16, 4, 2),),
}
#: The interpreter's menu, which always fits. Its time depends on the number of programs and trips.
INTERPRETED = {Pass.DGRAD: Tile(512, 64, 64, 4, 3), Pass.WGRAD: Tile(128, 64, 256, 4, 3)}
#: Pixels and channels of a program of the scatter kernel, and places of one of the targets kernel.
SCATTER, TARGETS = (16, 64), 256
#: Bytes of workspace above which a batch is computed in parts. Each part has the columns and the pixel lists of its own images.
WORKSPACE = 1 << 28
#: Bytes that torch.sort moves per entry: radix sort of 32-bit numbers with 64-bit places, four passes that read and write both.
SORTED = 4 * 2 * (4 + 8)


def workspace(deformation: Deformation, size: int) -> int:
    """Bytes between the kernels for the input's gradient of one image: columns in the accumulator's type, and for each of a
    place's four pixels its number twice (as given and sorted), its position and its weight."""
    inner = max(4, size)
    return (deformation.samples * inner + CORNERS * deformation.places * (4 + 4 + 8 + inner)) // max(
        1, deformation.problem.batch
    )


def images_at_a_time(deformation: Deformation, size: int) -> int:
    """Images whose workspace fits `WORKSPACE`, at least one."""
    return max(1, min(deformation.problem.batch, WORKSPACE // max(1, workspace(deformation, size))))


def refusal(call: DeformCall, plan: Plan, which: Pass, device: Device) -> str:
    """Why a kernel of the backward pass cannot run a call under a plan; "" where it can."""
    if plan.which != which or not isinstance(plan, DeformPlan):
        return f"the gradients of a deformable convolution take plans {which}:{FAMILY}, got {plan.which}:{plan.family}"
    if plan.split < 1 or (plan.split > 1 and which != Pass.WGRAD):
        return f"only wgrad splits its sums, in at least 1 share, got split {plan.split}"
    return block_refusal(plan) or memory_refusal(plan.tile, resources(call, plan).shared, device)


def checked(call: DeformCall, plan: Plan, which: Pass, device: Device) -> DeformPlan:
    """A forced plan. Raises ValueError where it cannot run the call."""
    if reason := refusal(call, plan, which, device):
        raise ValueError(f"plan {plan} cannot run {call.deformation}: {reason}")
    assert isinstance(plan, DeformPlan)
    return plan


def candidates(call: DeformCall, which: Pass, device: Device) -> list[DeformPlan]:
    """Plans of the columns kernel (dgrad) or of the weight's gradient (wgrad), split into as many shares of the pixels as give
    each multiprocessor two programs."""
    kind = arithmetic(call.dtype, call.precision)
    if device.interpreted:
        return [DeformPlan(which, FAMILY, *INTERPRETED[which])]
    pack = ("a",) * (call.x.unit != 1 or call.y.unit != 1) + narrow(call, "b") * (which == Pass.DGRAD)
    plans = fitting(call, which, (WEIGHTS if which == Pass.WGRAD else COLUMNS)[kind], pack)
    if which == Pass.WGRAD:
        return [replace(plan, split=shares(call.deformation, plan, device)) for plan in plans]
    # four pixels of a block of channels are in flight: wide blocks need loads of 16 bytes
    whole = [p for p in plans if widths(call, p)[0] * itemsize(call.dtype) == 16 and not call.deformation.run % p.block_n]
    return [plan for plan in plans if plan in whole or plan is plans[-1]]


def shares(deformation: Deformation, plan: DeformPlan, device: Device) -> int:
    """Programs among which the pixels of a weight's gradient are shared out, none of them without a trip."""
    trips = ceil_div(deformation.pixels, plan.block_k)
    wanted = ceil_div(2 * device.sm_count, weights_tiles(deformation, plan))
    return ceil_div(trips, ceil_div(trips, min(wanted, trips))) if trips else 1


def select(call: DeformCall, which: Pass, device: Device) -> DeformPlan:
    """The candidate of least predicted time."""
    return min(candidates(call, which, device), key=lambda plan: busy(call, plan, device))


def columns_tiles(deformation: Deformation, plan: DeformPlan) -> int:
    return deformation.offset_groups * deformation.problem.taps * ceil_div(deformation.pixels, plan.block_m)


def columns_trips(deformation: Deformation, plan: DeformPlan) -> int:
    """Trips of the inner loop of one program of the columns kernel: blocks of channels times blocks of filters."""
    blocks = deformation.shared // deformation.run * ceil_div(deformation.run, plan.block_n)
    return blocks * ceil_div(deformation.problem.filters_per_group, plan.block_k)


def weights_tiles(deformation: Deformation, plan: DeformPlan) -> int:
    """Programs that compute the weight's gradient for one share of the pixels."""
    problem = deformation.problem
    runs = problem.in_channels // deformation.run
    return runs * problem.taps * ceil_div(deformation.run, plan.block_n) * ceil_div(problem.filters_per_group, plan.block_m)


def flops(deformation: Deformation, inputs: bool = True, places: bool = True, weights: bool = True) -> int:
    """FLOP of the gradients that are asked for. The samples' gradients take one matrix product. The weight's take another, and
    the samples a second time. Each of a sample's four pixels takes a multiplication and an addition. Offset and mask take the
    product of the sample's gradient with the four pixels."""
    total = 2 * deformation.macs * ((inputs or places) + weights)
    return int(total + deformation.samples * (SAMPLE_FLOPS * weights + 2 * CORNERS * inputs + 2 * CORNERS * places))


def busy(call: DeformCall, plan: DeformPlan, device: Device) -> float:
    """Seconds that the chip takes for the kernel of the columns, or for that of the weight's gradient with the kernel that adds
    its parts. Copies before them are included."""
    deformation, weights = call.deformation, plan.which == Pass.WGRAD
    if weights:
        count, trips = (
            weights_tiles(deformation, plan) * plan.split,
            ceil_div(ceil_div(deformation.pixels, plan.block_k), plan.split),
        )
    else:
        count, trips = columns_tiles(deformation, plan), columns_trips(deformation, plan)
    if device.interpreted:
        return interpreted(plan.tile, count, trips)
    size = itemsize(call.dtype)
    kernel = kernel_of(call, plan, device)
    second = from_dram(share_bytes(deformation, plan, size) + copy_bytes(deformation, plan, size), device, kernel.constants)
    return on_chip(kernel, count, max(1, trips), device) + second


def share_bytes(deformation: Deformation, plan: DeformPlan, size: int) -> int:
    """Bytes of partial sums of a weight's gradient, written and read."""
    return 2 * max(4, size) * plan.split * elements(deformation)["weight"] if plan.split > 1 else 0


def copy_bytes(deformation: Deformation, plan: DeformPlan, size: int) -> int:
    """Bytes of the copies that a plan asks for."""
    sizes = elements(deformation)
    copied = ("a" in plan.pack) * (sizes["input"] + sizes["output"]) + ("b" in plan.pack) * sizes["weight"]
    return 2 * size * copied


def parts(call: DeformCall, device: Device) -> dict[str, tuple[float, int]]:
    """(seconds, bytes of DRAM) of each of the four parts, without launches."""
    deformation, size = call.deformation, itemsize(call.dtype)
    inner, sizes, constants = max(4, size), elements(deformation), device.calibration(FAMILY)
    columns, weights = (select(call, which, device) for which in (Pass.DGRAD, Pass.WGRAD))
    entries, everything = CORNERS * deformation.places, compulsory(deformation, size)
    moved = {
        "columns": everything
        + size * (sizes["offset"] + sizes["mask"])
        + inner * deformation.samples
        + copy_bytes(deformation, columns, size),
        "sort": entries * (SORTED + 4 + inner),
        # a column is read by the four pixels that it belongs to, which lie next to each other and find it in L2
        "scatter": inner * deformation.samples + entries * (8 + inner) + size * sizes["input"],
        "weights": everything + share_bytes(deformation, weights, size),
    }
    times = {"columns": busy(call, columns, device), "weights": busy(call, weights, device)}
    return {
        name: (max(times.get(name, 0.0), 0.0 if device.interpreted else from_dram(count, device, constants)), count)
        for name, count in moved.items()
    }


def predict(call: DeformCall, device: Device) -> Prediction:
    """Seconds of a backward pass for all tensors except the bias, whose sum is left out."""
    deformation, size = call.deformation, itemsize(call.dtype)
    times = parts(call, device)
    columns, weights = (select(call, which, device) for which in (Pass.DGRAD, Pass.WGRAD))
    constants = device.calibration(FAMILY)
    portions = ceil_div(deformation.problem.batch, images_at_a_time(deformation, size))
    # columns, targets, the sort's passes, a search for the bounds, scatter; weights and their second stage
    launches = portions * 10 + 1 + (weights.split > 1)
    seconds = sum(part for part, _ in times.values())
    start = 0.0 if device.interpreted else overhead(launches, device, constants)
    longest = max(times, key=lambda name: times[name][0])
    count = columns_tiles(deformation, columns)
    issued = count * columns_trips(deformation, columns) * product(columns.tile[:3])
    return Prediction(
        seconds=seconds + start,
        tiles=count,
        waves=count / device.sm_count,
        tile_use=min(1.0, deformation.macs / max(1, issued)),
        bytes=sum(part for _, part in times.values()),
        bound="launch" if start > seconds else longest,
        low=(seconds + start) * constants.low,
        high=(seconds + start) * constants.high,
        source=constants.source + borrowed(device),
    )
