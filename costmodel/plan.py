"""Which kernel and tile a pass takes: the menu, what of it is legal, and the choice by least predicted time.

Nothing here runs or times a kernel. Registers, spills and shared memory of every row of the menu come from a table read off
compiled kernels (`python -m bench audit --write`); a row that spills or exceeds the device's shared memory is no candidate.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from typing import NamedTuple

from costmodel.device import Device
from costmodel.problem import ConvProblem, Pass, ceil_div, product

#: Elements in the widest load (16 bytes of a 16-bit type); alignments beyond it tell the compiler nothing more.
MAX_ALIGN = 16
#: Validity bits of a pixel's taps live in one 32-bit word.
MAX_BIT_TAPS = 32


class Tile(NamedTuple):
    m: int
    n: int
    k: int
    warps: int
    stages: int


#: The menu. float16/bfloat16 and tf32 use tensor cores, ieee float32 the FMA units, float64 its own tensor cores.
MENU: dict[str, tuple[Tile, ...]] = {
    "half": (
        Tile(128, 256, 64, 8, 3),
        Tile(256, 128, 64, 8, 3),
        Tile(128, 128, 64, 8, 3),
        Tile(128, 128, 32, 8, 4),
        Tile(128, 64, 64, 4, 4),
        Tile(64, 128, 64, 4, 4),
        Tile(64, 64, 64, 4, 4),
        Tile(128, 64, 32, 4, 4),
        Tile(64, 64, 32, 4, 4),
        Tile(128, 32, 64, 4, 4),
        Tile(128, 32, 32, 4, 4),
        Tile(64, 32, 64, 4, 4),
        Tile(128, 64, 16, 4, 4),
        Tile(128, 16, 32, 4, 4),
        Tile(64, 16, 64, 4, 4),
        Tile(32, 32, 64, 4, 4),
        Tile(16, 128, 64, 4, 4),
        Tile(16, 16, 64, 4, 4),
    ),
    "tf32": (
        Tile(128, 128, 32, 8, 3),
        Tile(128, 64, 32, 4, 3),
        Tile(64, 128, 32, 4, 3),
        Tile(64, 64, 32, 4, 4),
        Tile(128, 32, 32, 4, 4),
        Tile(128, 64, 16, 4, 4),
        Tile(64, 16, 32, 4, 4),
        Tile(32, 32, 32, 4, 4),
        Tile(16, 16, 32, 4, 4),
    ),
    "fp32": (
        Tile(128, 64, 16, 8, 3),
        Tile(64, 64, 16, 4, 3),
        Tile(64, 32, 16, 4, 3),
        Tile(32, 32, 32, 4, 3),
        Tile(64, 16, 16, 4, 3),
        Tile(16, 16, 32, 4, 3),
    ),
    "fp64": (
        Tile(64, 64, 16, 8, 3),
        Tile(64, 32, 16, 4, 3),
        Tile(32, 32, 16, 4, 3),
        Tile(16, 16, 16, 4, 3),
    ),
}


def arithmetic(dtype: str, precision: str) -> str:
    """The menu's name for the arithmetic of a dtype: "half", "tf32", "fp32" or "fp64"."""
    if dtype in ("float16", "bfloat16"):
        return "half"
    if dtype == "float64":
        return "fp64"
    return "tf32" if precision == "tf32" else "fp32"


def itemsize(dtype: str) -> int:
    """Bytes of one element."""
    return {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}[dtype]


@dataclass(frozen=True)
class Operand:
    """How a tensor lies in memory: `unit` is the axis of stride 1 (0 batch or filter, 1 channel, 4 last spatial, -1 none),
    `align` a power of two that divides every other stride and the offset of a group, in elements."""

    unit: int = 1
    align: int = MAX_ALIGN


@dataclass(frozen=True)
class Call:
    """One pass to plan: the problem, the arithmetic, and the three tensors (a times b gives out)."""

    problem: ConvProblem
    which: Pass
    dtype: str
    precision: str = "ieee"
    a: Operand = Operand()
    b: Operand = Operand()
    out: Operand = Operand()


@dataclass(frozen=True)
class Plan:
    """A kernel with its tile. `family`: "gather" (implicit GEMM over taps) or "patch" (windows tile the input: a plain GEMM,
    1x1 included). `split` counts the programs that share one reduction (wgrad). `step` is wgrad's box of output pixels
    (n, o, p, q), whose product is `block_k`. `pack` names operands that are first copied to channels-last."""

    which: Pass
    family: str
    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    split: int = 1
    group_m: int = 8
    step: tuple[int, int, int, int] | None = None
    pack: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One word, which `Plan.parse` reads back: fprop:patch:128x64x64:w4:s4[:split7][:group8][:step1x1x8x8][:pack-a]."""
        words = [str(self.which), self.family, f"{self.block_m}x{self.block_n}x{self.block_k}"]
        words += [f"w{self.num_warps}", f"s{self.num_stages}"]
        if self.split != 1:
            words.append(f"split{self.split}")
        if self.group_m != 8:
            words.append(f"group{self.group_m}")
        if self.step is not None:
            words.append("step" + "x".join(map(str, self.step)))
        return ":".join(words + [f"pack-{name}" for name in self.pack])

    @classmethod
    def parse(cls, text: str) -> Plan:
        """The plan that `str(plan)` wrote. Raises ValueError where the text is no plan."""
        try:
            which, family, tile, *rest = text.split(":")
            m, n, k = map(int, tile.split("x"))
            plan = cls(Pass(which), family, m, n, k, 4, 3)
            for word in rest:
                if word.startswith("pack-"):
                    plan = replace(plan, pack=(*plan.pack, word.removeprefix("pack-")))
                elif word.startswith("step"):
                    n_, o_, p_, q_ = map(int, word.removeprefix("step").split("x"))
                    plan = replace(plan, step=(n_, o_, p_, q_))
                elif word.startswith("split"):
                    plan = replace(plan, split=int(word.removeprefix("split")))
                elif word.startswith("group"):
                    plan = replace(plan, group_m=int(word.removeprefix("group")))
                elif word.startswith("w"):
                    plan = replace(plan, num_warps=int(word.removeprefix("w")))
                elif word.startswith("s"):
                    plan = replace(plan, num_stages=int(word.removeprefix("s")))
                else:
                    raise ValueError(word)
        except ValueError as error:
            raise ValueError(f"plan {text!r} is not of the form {cls.__str__.__doc__}") from error
        return plan


class Resources(NamedTuple):
    """What a compiled kernel needs: registers a thread, shared bytes, spill instructions, instructions of one loop trip."""

    registers: int
    shared: int
    spills: int
    trip: int


@lru_cache(maxsize=1)
def resource_table() -> dict[str, Resources]:
    """`resource_key` -> Resources, read off compiled kernels."""
    path = resources.files("costmodel") / "data" / "resources.json"
    if not path.is_file():
        return {}
    return {key: Resources(*row) for key, row in json.loads(path.read_text())["kernels"].items()}


def resource_key(plan: Plan, kind: str, access: str, capability: int) -> str:
    """Row of the table: pass, family, arithmetic, access ("wide" 16-byte loads, "narrow" any other), tile, architecture."""
    arch = max((a for a in (80, 90, 100) if a <= capability), default=80)
    tile = f"{plan.block_m}x{plan.block_n}x{plan.block_k}:w{plan.num_warps}:s{plan.num_stages}"
    return f"{plan.which}:{plan.family}:{kind}:{access}:{tile}:sm{arch}"


def vector_widths(call: Call, plan: Plan) -> tuple[int, int]:
    """Elements per load of operands a and b under a plan: what alignment and the axis of stride 1 allow."""
    problem = call.problem
    packed_a = "a" in plan.pack
    packed_b = "b" in plan.pack

    def along_channels(operand: Operand, packed: bool, channels: int) -> int:
        if packed:
            return math.gcd(channels, MAX_ALIGN)
        return math.gcd(operand.align, channels) if operand.unit == 1 else 1

    def on_pixels(operand: Operand) -> int:
        # channels-first: neighbouring pixels are contiguous where nothing shifts them
        return math.gcd(operand.align, problem.output_size[-1], MAX_ALIGN) if operand.unit == 4 else 1

    c, k = problem.channels_per_group, problem.filters_per_group
    pointwise = problem.taps == 1 and problem.is_patch
    if call.which == Pass.FPROP:
        a = along_channels(call.a, packed_a, c)
        if call.a.unit == 4 and not packed_a and problem.is_patch:
            a = on_pixels(call.a) if pointwise else math.gcd(call.a.align, problem.kernel_size[-1], MAX_ALIGN)
        b = along_channels(call.b, packed_b, c)
        if plan.family == "patch" and call.b.unit == 4 and not packed_b:
            b = math.gcd(call.b.align, problem.kernel_size[-1], MAX_ALIGN)
    elif call.which == Pass.DGRAD:
        a = along_channels(call.a, packed_a, k)
        if call.a.unit == 4 and not packed_a and problem.is_patch:
            a = on_pixels(call.a)
        b = along_channels(call.b, packed_b, c)
        if plan.family == "patch" and call.b.unit == 4 and not packed_b:
            b = math.gcd(call.b.align, problem.kernel_size[-1], MAX_ALIGN)
        if call.b.unit == 0 and not packed_b:
            b = math.gcd(call.b.align, k)
    else:
        a = along_channels(call.a, packed_a, k)
        b = along_channels(call.b, packed_b, c)
        if plan.family == "patch" and call.b.unit == 4 and not packed_b:
            b = math.gcd(call.b.align, problem.kernel_size[-1], MAX_ALIGN)
    widest = max(1, 16 // itemsize(call.dtype))
    return min(a, widest), min(b, widest)


def access(call: Call, plan: Plan) -> str:
    """ "wide" where both operands come in 16-byte loads."""
    widest = max(1, 16 // itemsize(call.dtype))
    return "wide" if vector_widths(call, plan) == (widest, widest) else "narrow"


def resources_of(call: Call, plan: Plan, device: Device) -> Resources | None:
    """The table's row for a plan, None where the plan is not in it."""
    kind = arithmetic(call.dtype, call.precision)
    return resource_table().get(resource_key(plan, kind, access(call, plan), device.capability))


def reduction_step(problem: ConvProblem, block_k: int) -> tuple[int, int, int, int]:
    """wgrad's box (n, o, p, q) of `block_k` output pixels, powers of two, that wastes least; among equals the widest along q."""
    full = problem.with_unit_axes()
    sizes = (problem.batch, *full.output_size)

    def boxes(left: int, axes: int) -> Iterator[tuple[int, ...]]:
        if axes == 1:
            yield (left,)
            return
        size = 1
        while size <= left:
            if size < 2 * sizes[4 - axes]:
                for rest in boxes(left // size, axes - 1):
                    yield (size, *rest)
            size *= 2

    best = min(
        boxes(block_k, 4),
        key=lambda box: (product(ceil_div(s, b) for s, b in zip(sizes, box, strict=True)), -box[3], -box[2], -box[1]),
    )
    return best  # type: ignore[return-value]


def reduction_steps(problem: ConvProblem, step: tuple[int, int, int, int]) -> int:
    """Boxes that cover the output pixels."""
    sizes = (problem.batch, *problem.with_unit_axes().output_size)
    return int(product(ceil_div(s, b) for s, b in zip(sizes, step, strict=True)))


def columns(problem: ConvProblem, plan: Plan) -> int:
    """Length of the GEMM's n axis of one program grid."""
    if plan.which == Pass.FPROP:
        return problem.filters_per_group
    return problem.channels_per_group * (problem.taps if plan.family == "patch" else 1)


def phase_pixels(problem: ConvProblem) -> int:
    """Pixels of dgrad's largest stride phase, over the batch."""
    return int(problem.batch * product(ceil_div(n, s) for n, s in zip(problem.input_size, problem.stride, strict=True)))


def grid(problem: ConvProblem, plan: Plan) -> tuple[int, int, int]:
    """(m tiles, n tiles, repeats) of a launch; repeats are groups, phases, taps and splits."""
    n_tiles = ceil_div(columns(problem, plan), plan.block_n)
    if plan.which == Pass.FPROP:
        pixels = problem.batch * product(problem.output_size)
        return ceil_div(pixels, plan.block_m), n_tiles, problem.groups
    if plan.which == Pass.DGRAD:
        phases = 1 if plan.family == "patch" else product(problem.stride)
        return ceil_div(phase_pixels(problem), plan.block_m), n_tiles, problem.groups * phases
    taps = 1 if plan.family == "patch" else problem.taps
    return ceil_div(problem.filters_per_group, plan.block_m), n_tiles, problem.groups * taps * plan.split


def trips(problem: ConvProblem, plan: Plan) -> float:
    """Main-loop trips of one program, on average over the phases of dgrad."""
    if plan.which == Pass.WGRAD:
        assert plan.step is not None
        return ceil_div(reduction_steps(problem, plan.step), plan.split)
    channels = problem.channels_per_group if plan.which == Pass.FPROP else problem.filters_per_group
    if plan.family == "patch":
        depth = channels * (problem.taps if plan.which == Pass.FPROP else 1)
        return ceil_div(depth, plan.block_k)
    blocks = ceil_div(channels, plan.block_k)
    phases = product(problem.stride) if plan.which == Pass.DGRAD else 1
    return blocks * problem.taps / phases


def candidates(call: Call, device: Device) -> list[Plan]:
    """Every legal plan: rows of the menu that compile without a spill and fit, with and without packed operands."""
    problem, which = call.problem, call.which
    family = "patch" if problem.is_patch else "gather"
    table = resource_table()
    plans = []
    for tile in MENU[arithmetic(call.dtype, call.precision)]:
        base = Plan(which, family, tile.m, tile.n, tile.k, tile.warps, tile.stages)
        if which == Pass.WGRAD:
            base = replace(base, step=reduction_step(problem, tile.k))
        for pack in packings(call, base):
            plan = replace(base, pack=pack)
            needs = resources_of(call, plan, device)
            if table and (needs is None or needs.spills or needs.shared > device.shared_per_block):
                continue
            plans += [replace(plan, split=split) for split in splits(problem, plan, device)]
    return plans


def packings(call: Call, plan: Plan) -> list[tuple[str, ...]]:
    """Which operands may be copied to channels-last first: those whose channels are not contiguous already."""
    names = [name for name, operand in (("a", call.a), ("b", call.b)) if operand.unit != 1]
    choices: list[tuple[str, ...]] = [()]
    choices += [(name,) for name in names]
    return choices + ([tuple(names)] if len(names) == 2 else [])


def splits(problem: ConvProblem, plan: Plan, device: Device) -> list[int]:
    """How many programs may share wgrad's reduction: powers of two up to about four waves of the device."""
    if plan.which != Pass.WGRAD:
        return [1]
    m_tiles, n_tiles, repeats = grid(problem, plan)
    steps = trips(problem, plan)
    room = max(1, 4 * device.sm_count // max(1, m_tiles * n_tiles * repeats))
    return [1 << i for i in range(room.bit_length()) if (1 << i) <= max(1, steps)]


def select(call: Call, device: Device) -> Plan:
    """The candidate with the least predicted time. Cached by callers; plain arithmetic."""
    from costmodel.cost import predict

    found = candidates(call, device)
    if not found:
        raise RuntimeError(f"no plan for {call.which} of {call.problem} in {call.dtype} on {device.name}")
    return min(found, key=lambda plan: predict(call, plan, device).seconds)
