"""The causal depthwise convolution of sequences: what it counts, which tile its kernels take, and how long they take.

Its tiles are those of the depthwise kernels in 1-D, and its time follows their model (`depthwise_choice`). Only what a thread
reads, holds and sums is different. Plain arithmetic, standard library only.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from costmodel.algebra import ceil_div
from costmodel.arithmetic import arithmetic_named
from costmodel.device import Device, find_device
from costmodel.families import depthwise_choice as choice
from costmodel.families.depthwise import (
    DepthwisePlan,
    Launch,
    Work,
    launch_of,
    max_registers,
    registers_per_lane,
    shape_of,
    tile_of,
    together_of,
    width_of,
    work_of,
)
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Call, channels_last, itemsize
from costmodel.timing import Prediction, borrowed

#: Most taps. All of them stay in registers, and the code is unrolled over them.
MAX_TAPS = 16
#: Most registers per thread of the backward pass. Above, the compiler kept values on the stack (sm_90, 16 taps).
MAX_REGISTERS_BACKWARD = 160
#: Instructions of SiLU, and of its derivative, beside the multiply-adds.
SILU, SILU_BACKWARD = 10, 14


def problem_of(batch: int, channels: int, length: int, taps: int) -> ConvProblem:
    """A call without states as a convolution: x [B, C, L], w [C, 1, K], with K - 1 zeros before each row."""
    return ConvProblem.conv(
        (batch, channels, length), (channels, 1, taps), (1,), ((taps - 1, 0),), (1,), channels, checked=False
    )


def flops(batch: int, channels: int, length: int, taps: int, backward: bool = False) -> int:
    """Dense FLOP (2 * MAC) of the forward pass, or of both gradients. The activation is not counted."""
    return 2 * batch * channels * length * taps * (2 if backward else 1)


def compulsory(problem: ConvProblem, size: int, backward: bool = False, state: bool = False) -> int:
    """Bytes that a pass moves at least: x, w and y, or x, w, dy, dx and dw, and the states where there are any."""
    (taps,), channels = problem.kernel_size, problem.in_channels
    rows = problem.batch * channels * problem.input_size[0]
    states = 2 * problem.batch * channels * (taps - 1) if state else 0
    weights = (2 if backward else 1) * channels * taps
    return int(size * ((3 if backward else 2) * rows + weights + states))


class Kind(NamedTuple):
    """The options of a call that change its kernel."""

    activation: bool = False
    backward: bool = False
    state: bool = False
    ids: bool = False


def kept(taps: int, columns: int, kind: Kind) -> int:
    """Values that a thread holds besides its window: the state, and what each of `columns` sees where another sequence
    begins."""
    return (taps - 1) * (kind.state + columns * kind.ids)


def work(call: Call, columns: int, kind: Kind) -> Work:
    """What a thread does per trip and lane."""
    forward, activation = work_of(call, columns, None), kind.activation
    (taps,) = call.problem.kernel_size
    if not kind.backward:
        adds = forward.multiply_adds + SILU * columns * activation
        return forward._replace(held=forward.held + kept(taps, columns, kind), multiply_adds=adds)
    columns_dz = columns + taps - 1  # columns of dz
    read = columns_dz if activation else columns
    window = read + taps - 1
    width = width_of(call, columns, None)
    extra = 1 if width > 1 else 0
    adds = 2 * columns * taps + columns + activation * columns_dz * (taps + SILU_BACKWARD)
    return Work(
        held=2 * taps + 1 + columns + kept(taps, read, kind),
        read=window,
        loads=ceil_div(window, width) + extra,
        beside=columns_dz,
        beside_loads=ceil_div(columns_dz, width) + extra,
        multiply_adds=adds,
        stored=columns,
    )


def launch(call: Call, plan: DepthwisePlan) -> Launch:
    """The launch of a plan."""
    return launch_of(shape_of(call.problem, Pass.FPROP), tile_of(plan), plan.rows, 1)


def parts(call: Call, plan: DepthwisePlan) -> int:
    """Partial sums per weight that the backward pass writes: one per program along a sequence."""
    return call.problem.batch * launch(call, plan).tiles_q


def registers(call: Call, plan: DepthwisePlan, kind: Kind) -> int:
    """An estimate of the registers per thread."""
    done = work(call, plan.block_m, kind)
    return int(40 + tile_of(plan).lanes_per_thread * registers_per_lane(call, done, None))


def stored_together(call: Call, plan: DepthwisePlan) -> int:
    """Columns of the result per store."""
    return together_of(call, plan.block_m)


def candidates(call: Call, device: Device, kind: Kind) -> list[DepthwisePlan]:
    """Tiles that fit the registers, each with every length of a program's walk; where none fits, those that need fewest."""
    shape, limit = shape_of(call.problem, Pass.FPROP), max_registers(call, device)
    limit = min(limit, MAX_REGISTERS_BACKWARD) if kind.backward else limit
    sized = []
    for option in choice.options(call, shape, device):
        if option.tile.taps is None and not option.tile.pack:
            plans = [option.plan(Pass.FPROP, rows, 1) for rows, _ in choice.walks(shape, option.tile, device)]
            sized += [(registers(call, plan, kind), plan) for plan in plans]
    limit = max(limit, min(needed for needed, _ in sized))
    return [plan for needed, plan in sized if needed <= limit]


def predict(call: Call, plan: DepthwisePlan, device: Device, kind: Kind) -> Prediction:
    """Seconds of a pass under a plan: the launches, plus mainly the largest of DRAM, L2, instruction issue and exposed
    latency."""
    shape, tile, size = shape_of(call.problem, Pass.FPROP), tile_of(plan), itemsize(call.dtype)
    done, launched = work(call, tile.columns, kind), launch(call, plan)
    moved = compulsory(call.problem, size, kind.backward, kind.state)
    if kind.backward:
        (taps,) = call.problem.kernel_size
        moved += 2 * max(4, size) * parts(call, plan) * call.problem.in_channels * (taps + 1)
    constants = device.calibration("causal")
    if device.interpreted:
        seconds, waves, bound = choice.interpreted(done, launched, tile.lanes), float(launched.programs), "the interpreter"
    else:
        pace = choice.pace_of(device, "causal")
        option = choice.Option(tile, done, registers(call, plan, kind))
        rates = choice.rates_of(call, shape, option, pace)
        rates = rates._replace(overhead=rates.overhead * (2 if kind.backward else 1))
        terms = choice.terms_of(rates, launched, tile, moved, pace)
        seconds = choice.seconds_of(rates, terms, pace)
        waves = launched.programs * tile.warps / (device.sm_count * rates.resident)
        bound = ("DRAM", "instruction issue", "latency", "L2")[terms.index(max(terms))]
        bound = "launch" if rates.overhead > seconds - rates.overhead else bound
    use = min(1.0, call.problem.macs / max(1, launched.programs * launched.trips * tile.lanes * tile.columns * shape.kernel[2]))
    interval = constants.low * seconds, constants.high * seconds
    return Prediction(seconds, launched.programs, waves, use, moved, bound, *interval, constants.source + borrowed(device))


@lru_cache(maxsize=1024)
def select(call: Call, device: Device, kind: Kind) -> DepthwisePlan:
    """The plan of least predicted time."""
    return min(candidates(call, device, kind), key=lambda plan: predict(call, plan, device, kind).seconds)


def forecast(
    batch: int,
    channels: int,
    length: int,
    taps: int,
    device: Device | str = "h100",
    *,
    dtype: Any = None,
    activation: bool = True,
    backward: bool = False,
) -> Prediction:
    """Seconds of one pass on dense channels-last tensors, for a caller without tensors. `dtype` is as in `costmodel.predict`.
    Raises ValueError for an unknown device, or a dtype that the device does not multiply.

    >>> print(f"{forecast(8, 2048, 2048, 4).bytes / 1e6:.0f} MB")
    134 MB
    """
    device = find_device(device)
    dtype, _, remark = arithmetic_named(dtype, device)
    call = channels_last(problem_of(batch, channels, length, taps), Pass.FPROP, dtype)
    kind = Kind(activation, backward)
    return predict(call, select(call, device, kind), device, kind).noted(remark)
