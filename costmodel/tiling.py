"""What a plan is, and how it tiles a pass: loads, grid, trips. Plain arithmetic, standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from costmodel.algebra import ceil_div, product
from costmodel.problem import ConvProblem, Pass

#: Elements in the widest load (16 bytes of a 16-bit type); alignments beyond it tell the compiler nothing more.
MAX_ALIGN = 16
#: What must divide a row of pixels for a kernel to be told so: then it loads and stores several of them at once.
ROW_ALIGN = 8
#: Validity bits of a pixel's taps live in one 32-bit word.
MAX_BIT_TAPS = 32


class Tile(NamedTuple):
    m: int
    n: int
    k: int
    warps: int
    stages: int


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
    `align` a power of two that divides every other stride and the offset of a group, in elements, `outside` one that divides
    the strides, `far` that a program of the largest tile needs 64-bit offsets into it."""

    unit: int = 1
    align: int = MAX_ALIGN
    outside: int = MAX_ALIGN
    far: bool = False


@dataclass(frozen=True)
class Call:
    """One pass to plan: the problem, the arithmetic, and the three tensors (a times b gives out).

    `epilogue` says what follows in the same kernel besides a bias: "" nothing, "channels" values per channel and an
    activation made of selections, "tensors" also a tensor of the output's size, read (a residual) or written (the value
    before the activation), "heavy" an activation with an exponential, or a residual that does not lie as the output.
    """

    problem: ConvProblem
    which: Pass
    dtype: str
    precision: str = "ieee"
    a: Operand = Operand()
    b: Operand = Operand()
    out: Operand = Operand()
    epilogue: str = ""


def channels_last(problem: ConvProblem, which: Pass, dtype: str, precision: str = "ieee") -> Call:
    """The call with all three tensors dense and channels-last: every other stride is a multiple of the channel count."""

    def dense(channels: int, per_group: int) -> Operand:
        return Operand(1, math.gcd(MAX_ALIGN, per_group), math.gcd(MAX_ALIGN, channels))

    x = dense(problem.in_channels, problem.channels_per_group)
    y = dense(problem.out_channels, problem.filters_per_group)
    w = dense(problem.channels_per_group, problem.channels_per_group)
    a, b, out = {Pass.FPROP: (x, w, y), Pass.DGRAD: (y, w, x), Pass.WGRAD: (y, x, w)}[which]
    return Call(problem, which, dtype, precision, a, b, out)


def merge_groups(problem: ConvProblem, merge: int) -> ConvProblem:
    """The problem with `merge` neighbouring groups as one, for weights that are block-diagonal in them."""
    return problem if merge == 1 else replace(problem, groups=problem.groups // merge)


def merged(call: Call, merge: int) -> Call:
    """The call as its kernel sees it with `merge` groups as one: wider channels, and channels-last block-diagonal weights."""
    if merge == 1:
        return call
    problem = merge_groups(call.problem, merge)
    c, k = problem.channels_per_group, problem.filters_per_group

    def wider(operand: Operand, channels: int) -> Operand:
        return replace(operand, align=math.gcd(operand.outside, channels) if operand.unit == 1 else operand.outside)

    w = Operand(1, math.gcd(MAX_ALIGN, c), math.gcd(MAX_ALIGN, c))
    a, b, out = {
        Pass.FPROP: (wider(call.a, c), w, wider(call.out, k)),
        Pass.DGRAD: (wider(call.a, k), w, wider(call.out, c)),
        Pass.WGRAD: (wider(call.a, k), wider(call.b, c), w),
    }[call.which]
    return replace(call, problem=problem, a=a, b=b, out=out)


@dataclass(frozen=True)
class Plan:
    """A kernel with its tile. `family`: "gather" (implicit GEMM over taps) or "patch" (windows tile the input: a plain GEMM,
    1x1 included). `split` counts the programs that share one reduction: over channels in fprop, filters in dgrad, pixels in
    wgrad. `step` is wgrad's box of output pixels (n, o, p, q), whose product is `block_k`. `pack` names operands that are
    first copied to channels-last. `merge` counts the groups that are laid together in one block-diagonal weight, so that
    narrow groups fill a tile.

    "depthwise" reads its tile as columns x channels x column tiles. `rows` is what a program walks down, in groups of output
    rows; `taps` the filter rows and columns that it unrolls, None for all of them in a window that slides over the rows."""

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
    merge: int = 1
    rows: int = 1
    taps: tuple[int, int] | None = None

    @property
    def tile(self) -> Tile:
        return Tile(self.block_m, self.block_n, self.block_k, self.num_warps, self.num_stages)

    def __str__(self) -> str:
        """One word, which `Plan.parse` reads back:
        fprop:patch:128x64x64:w4:s4[:split7][:group8][:step1x1x8x8][:merge4][:rows14][:taps1x8][:pack-a]."""
        words = [str(self.which), self.family, f"{self.block_m}x{self.block_n}x{self.block_k}"]
        words += [f"w{self.num_warps}", f"s{self.num_stages}"]
        if self.split != 1:
            words.append(f"split{self.split}")
        if self.group_m != 8:
            words.append(f"group{self.group_m}")
        if self.step is not None:
            words.append("step" + "x".join(map(str, self.step)))
        if self.merge != 1:
            words.append(f"merge{self.merge}")
        if self.rows != 1:
            words.append(f"rows{self.rows}")
        if self.taps is not None:
            words.append("taps" + "x".join(map(str, self.taps)))
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
                elif word.startswith("merge"):
                    plan = replace(plan, merge=int(word.removeprefix("merge")))
                elif word.startswith("rows"):
                    plan = replace(plan, rows=int(word.removeprefix("rows")))
                elif word.startswith("taps"):
                    r_, s_ = map(int, word.removeprefix("taps").split("x"))
                    plan = replace(plan, taps=(r_, s_))
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


def row_align(problem: ConvProblem, which: Pass) -> int:
    """A divisor, `ROW_ALIGN` or 1, of the row of pixels that a tile of results runs along: y's, or dx's where one stride phase
    is all of it; of patches, which may leave a rest of dx over, dy's too."""
    x, y = problem.input_size[-1], problem.output_size[-1]
    if which == Pass.WGRAD or (which == Pass.DGRAD and problem.stride[-1] != 1):
        return 1
    row = y if which == Pass.FPROP else math.gcd(x, y) if problem.is_patch else x
    return 1 if row % ROW_ALIGN else ROW_ALIGN


def vector_widths(call: Call, plan: Plan) -> tuple[int, int]:
    """Elements per load of operands a and b under a plan: what alignment and the axis of stride 1 allow."""
    call = merged(call, plan.merge)
    problem = call.problem
    packed_a = "a" in plan.pack
    packed_b = "b" in plan.pack

    def along_channels(operand: Operand, packed: bool, channels: int) -> int:
        if packed:
            return math.gcd(channels, MAX_ALIGN)
        return math.gcd(operand.align, channels) if operand.unit == 1 else 1

    def on_pixels(operand: Operand) -> int:
        # channels-first: neighbouring pixels are contiguous where nothing shifts them
        return math.gcd(operand.align, row_align(problem, call.which)) if operand.unit == 4 else 1

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
        if call.a.unit == 4 and not packed_a and pointwise:
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
    """How a plan's kernel reaches memory, which decides its registers: "wide" where both operands come in 16-byte loads,
    "folded" where they do and taps share an axis with the channels (patches), else "narrow"."""
    widest = max(1, 16 // itemsize(call.dtype))
    if vector_widths(call, plan) != (widest, widest):
        return "narrow"
    return "folded" if plan.family == "patch" and call.problem.taps > 1 else "wide"


def reduction_step(problem: ConvProblem, block_k: int) -> tuple[int, int, int, int]:
    """wgrad's box (n, o, p, q) of `block_k` output pixels, powers of two, that wastes least, and of those the widest."""
    return _least_box(_reduced_sizes(problem), block_k.bit_length() - 1)


def reduction_steps(problem: ConvProblem, step: tuple[int, int, int, int]) -> int:
    """Boxes that cover the output pixels."""
    return math.prod(ceil_div(s, b) for s, b in zip(_reduced_sizes(problem), step, strict=True))


def _reduced_sizes(problem: ConvProblem) -> tuple[int, ...]:
    """(n, o, p, q): what wgrad sums over, with axes of size 1 in front up to three."""
    return (problem.batch, *(1,) * (3 - problem.rank), *problem.output_size)


@lru_cache(maxsize=4096)
def _least_box(sizes: tuple[int, ...], bits: int) -> tuple[int, int, int, int]:
    covered = [[-(-size >> e) for e in range(bits + 1)] for size in sizes]  # boxes along an axis, 2^e wide
    widest = [min(bits, max(0, (2 * size - 1).bit_length() - 1)) for size in sizes[:3]]
    best, found = math.inf, (0, 0, 0, bits)
    for q in range(bits, -1, -1):
        for p in range(min(bits - q, widest[2]), -1, -1):
            for o in range(min(bits - q - p, widest[1]), -1, -1):
                n = bits - q - p - o
                if n <= widest[0]:
                    boxes = covered[0][n] * covered[1][o] * covered[2][p] * covered[3][q]
                    if boxes < best:
                        best, found = boxes, (n, o, p, q)
    return 1 << found[0], 1 << found[1], 1 << found[2], 1 << found[3]


class Extent(NamedTuple):
    """What a kernel family tiles: m x n results, `repeats` times over (groups, phases, taps), each the sum of `loops` passes
    over `depth` terms. wgrad's depth is its output pixels, which it walks in boxes. `loops` is dgrad's average over phases."""

    m: int
    n: int
    repeats: int
    depth: int
    loops: float


@lru_cache(maxsize=4096)
def extent(problem: ConvProblem, which: Pass, family: str) -> Extent:
    """The extent of a pass for the "gather" or the "patch" family."""
    c, k, taps, patch = problem.channels_per_group, problem.filters_per_group, problem.taps, family == "patch"
    if which == Pass.FPROP:
        pixels = problem.batch * product(problem.output_size)
        return Extent(pixels, k, problem.groups, c * taps if patch else c, 1 if patch else taps)
    if which == Pass.DGRAD:
        # the largest stride phase, over the batch
        pixels = problem.batch * product(ceil_div(n, s) for n, s in zip(problem.input_size, problem.stride, strict=True))
        phases = 1 if patch else product(problem.stride)
        return Extent(pixels, c * taps if patch else c, problem.groups * phases, k, 1 if patch else taps / phases)
    pixels = problem.batch * product(problem.output_size)
    return Extent(k, c * taps if patch else c, problem.groups * (1 if patch else taps), pixels, 1)


def grid(problem: ConvProblem, plan: Plan) -> tuple[int, int, int]:
    """(m tiles, n tiles, repeats) of a launch; repeats are groups, phases, taps and splits."""
    of = extent(merge_groups(problem, plan.merge), plan.which, plan.family)
    return ceil_div(of.m, plan.block_m), ceil_div(of.n, plan.block_n), of.repeats * plan.split


def trips(problem: ConvProblem, plan: Plan) -> float:
    """Main-loop trips of one program, on average over the phases of dgrad."""
    of = extent(merge_groups(problem, plan.merge), plan.which, plan.family)
    if plan.which == Pass.WGRAD:
        step = plan.step or reduction_step(problem, plan.block_k)
        return ceil_div(reduction_steps(problem, step), plan.split)
    return ceil_div(ceil_div(of.depth, plan.block_k), plan.split) * of.loops


def shares(problem: ConvProblem, which: Pass, family: str) -> bool:
    """Whether programs may share a reduction. fprop's patches have taps and channels on one axis, which is not cut."""
    return which != Pass.FPROP or family == "gather" or problem.taps == 1


def full_shares(blocks: int, split: int) -> int:
    """The most programs up to `split` that share `blocks` blocks of a reduction so that none has nothing to do."""
    return ceil_div(blocks, ceil_div(blocks, split))


def issued_macs(problem: ConvProblem, plan: Plan) -> int:
    """Multiply-adds that the plan's tiles compute, those on padding, tile edges and other groups' channels included."""
    m_tiles, n_tiles, repeats = grid(problem, plan)
    return round(m_tiles * n_tiles * repeats * trips(problem, plan) * plan.block_m * plan.block_n * plan.block_k)
