"""What a plan is, and how it tiles a pass: loads, grid, trips. Plain arithmetic, standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import NamedTuple

from costmodel.algebra import ceil_div, product
from costmodel.problem import ConvProblem, Pass
from costmodel.recast import fold_columns, fold_width, merge_groups

#: Elements in the widest load (16 bytes of a 16-bit type); alignments beyond it tell the compiler nothing more.
MAX_ALIGN = 16
#: What must divide a row of pixels for a kernel to be told so: then it loads and stores several of them at once.
ROW_ALIGN = 8
#: Validity bits of a pixel's taps live in one 32-bit word.
MAX_BIT_TAPS = 32
#: Warps of a program at most (CUDA: 1024 threads), and values of a tensor (Triton).
MAX_WARPS, MAX_VALUES = 32, 1 << 20
#: Elements of the largest box that one instruction copies: 256 along an axis, 64 along the channels.
LARGEST_BOX = 256 * 64


class Tile(NamedTuple):
    m: int
    n: int
    k: int
    warps: int
    stages: int


#: The interpreter's menu: its time goes by programs and trips, so tiles may be larger than any GPU takes.
INTERPRETED_MENU = tuple(
    Tile(m, n, k, 4, 3) for m in (16, 128, 512, 2048) for n in (16, 64) for k in (16, 64, 256, 1024) if m * k <= MAX_VALUES
)


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
    the strides. `boxed`: a TMA descriptor may describe it, if its channels are contiguous and its strides multiples of 16
    bytes. The first element's address is one too, and each axis of (batch, *spatial, channel) steps over what lies within it;
    a filter is one run of memory. `far`: a program of the largest tile needs 64-bit offsets. `aligned`: the first element's
    address is a multiple of 16 bytes, whatever the strides."""

    unit: int = 1
    align: int = MAX_ALIGN
    outside: int = MAX_ALIGN
    boxed: bool = True
    far: bool = False
    aligned: bool = True


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
    """The call that tensors make which are dense and channels-last: other strides are multiples of the channel count."""

    def dense(shape: tuple[int, ...], per_group: int) -> Operand:
        outer, channels, *spatial = shape
        if channels > 1:
            return Operand(1, math.gcd(MAX_ALIGN, per_group), math.gcd(MAX_ALIGN, channels))
        # one channel is no axis to read along: weights of depthwise layers lie filter after filter, row after row
        if product(spatial) == 1 < outer:
            return Operand(0)
        steps = (product(spatial[axis:]) for axis in range(len(spatial)))  # of the outer axis and all but the last
        align = math.gcd(MAX_ALIGN, *(step for n, step in zip((outer, *spatial), steps, strict=False) if n > 1))
        return Operand(4, align, align)

    x = dense(problem.input_shape, problem.channels_per_group)
    y = dense(problem.output_shape, problem.filters_per_group)
    w = dense(problem.weight_shape, problem.channels_per_group)
    a, b, out = {Pass.FPROP: (x, w, y), Pass.DGRAD: (y, w, x), Pass.WGRAD: (y, x, w)}[which]
    return Call(problem, which, dtype, precision, a, b, out)


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


def folded(call: Call) -> Call:
    """The call as its kernel sees it with the columns of a filter as channels, in padded copies."""
    problem = fold_columns(call.problem)
    x = Operand(1, fold_width(call.problem), fold_width(call.problem), boxed=False)  # windows overlap
    w = Operand(1, *(math.gcd(MAX_ALIGN, problem.in_channels),) * 2)
    if call.which == Pass.WGRAD:
        return replace(call, problem=problem, b=x, out=w)
    return replace(call, problem=problem, a=x, b=w)


@dataclass(frozen=True)
class Plan:
    """A kernel with its tile. `family`: "gather" (implicit GEMM over taps) or "patch" (windows tile the input: a plain GEMM,
    1x1 included) or "tma" (the gather with both operands copied as boxes, in wgrad x alone). `split` counts the programs that
    share one reduction: over channels in fprop, filters in dgrad, pixels in wgrad. `step` is a box of pixels (n, o, p, q):
    wgrad's of the output, whose product is `block_k`, and tma's of the result (of a stride phase in dgrad), whose product is
    `block_m`. `pack` names operands that are first copied to channels-last. `merge` counts the groups that are laid together
    in one block-diagonal weight, so that narrow groups fill a tile. `fold` makes the columns of a filter channels
    (`costmodel.recast`), so that few channels do. `x3` makes each product of float32 of three in tf32, whatever the
    precision asked for: only where a plan is forced, since ieee's last bits are lost.

    "depthwise" reads its tile as columns x channels (wgrad: pairs of a filter and a channel) x column tiles. `rows` is
    what a program walks down, in groups of output rows; `taps` the filter rows and columns that it unrolls, None for all of
    them in a window that slides over the rows.

    "band" reads `step` as a block of outputs, whose product is `block_n` (wgrad: `block_m`), and `rows` as the rows of a
    window in the pixels that meet it, `block_k` (wgrad: `block_n`); what is left counts blocks."""

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
    fold: bool = False
    x3: bool = False
    rows: int = 1
    taps: tuple[int, int] | None = None

    @property
    def tile(self) -> Tile:
        return Tile(self.block_m, self.block_n, self.block_k, self.num_warps, self.num_stages)

    def __str__(self) -> str:
        """One word, which `Plan.parse` reads back:
        fprop:patch:128x64x64:w4:s4[:split7][:group8][:step1x1x8x8][:merge4][:fold][:x3][:rows14][:taps1x8][:pack-a]."""
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
        if self.fold:
            words.append("fold")
        if self.x3:
            words.append("x3")
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
                elif word == "fold":
                    plan = replace(plan, fold=True)
                elif word == "x3":
                    plan = replace(plan, x3=True)
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


#: What plans of a family may say besides their tile. A family that is not here is none.
SAYS = {
    "gather": ("split", "group_m", "step", "pack", "merge", "fold", "x3"),
    "patch": ("split", "group_m", "step", "pack", "merge", "fold", "x3"),
    "tma": ("split", "group_m", "step", "pack", "merge"),
    "depthwise": ("split", "pack", "rows", "taps"),
    "band": ("split", "step", "pack", "rows"),
}


#: The farthest that a window, a stride or padding may reach, in pixels, where a kernel counts coordinates in 32 bits only. It
#: leaves room for a tile beyond the sizes. The gather's kernels count in 64 bits where they must.
FARTHEST = 2**28


def reaches_too_far(problem: ConvProblem, farthest: int = FARTHEST) -> str:
    """Why coordinates of 32 bits do not serve a problem; "" where they do."""
    if problem.farthest <= farthest:
        return ""
    return f"a window, stride or padding reaches {problem.farthest} pixels, the kernel counts {farthest}"


def unlaunchable(plan: Plan) -> str:
    """Why no kernel can be compiled for a tile, whose blocks are powers of two, or started; "" where one can."""
    if plan.num_warps < 1 or plan.num_warps & (plan.num_warps - 1) or plan.num_warps > MAX_WARPS:
        return f"warps must be a power of two of at most {MAX_WARPS}, got {plan.num_warps}"
    m, n, k, *_ = plan.tile
    if max(m * n, m * k, n * k) > MAX_VALUES:
        return f"each two blocks must span at most {MAX_VALUES} values, got {m}x{n}x{k}"
    return ""


def ignored(plan: Plan) -> str:
    """What a plan asks of a family that has no such thing, in words; "" where all of it is heeded."""
    tile = ("which", "family", "block_m", "block_n", "block_k", "num_warps", "num_stages")
    for field in fields(plan):
        if field.name not in (*tile, *SAYS[plan.family]) and getattr(plan, field.name) != field.default:
            return f"family {plan.family!r} knows no {field.name}, got {getattr(plan, field.name)}"
    return ""


def seen_problem(problem: ConvProblem, plan: Plan) -> ConvProblem:
    """The problem as the plan's kernel sees it."""
    problem = merge_groups(problem, plan.merge)
    return fold_columns(problem) if plan.fold else problem


def seen(call: Call, plan: Plan) -> Call:
    """The call as the plan's kernel sees it, but for operands that are copied to channels-last."""
    call = merged(call, plan.merge)
    return folded(call) if plan.fold else call


def arithmetic_of(call: Call, plan: Plan) -> str:
    """`arithmetic` under a plan, which may ask for "tf32x3"."""
    return "tf32x3" if plan.x3 else arithmetic(call.dtype, call.precision)


def row_align(problem: ConvProblem, which: Pass) -> int:
    """A divisor, `ROW_ALIGN` or 1, of the row of pixels that a tile of results runs along: y's, or dx's where one stride phase
    is all of it; of patches, which may leave a rest of dx over, dy's too."""
    x, y = problem.input_size[-1], problem.output_size[-1]
    if which == Pass.WGRAD or (which == Pass.DGRAD and problem.stride[-1] != 1):
        return 1
    row = y if which == Pass.FPROP else math.gcd(x, y) if problem.is_patch else x
    return 1 if row % ROW_ALIGN else ROW_ALIGN


def vector_widths(call: Call, plan: Plan) -> tuple[int, int]:
    """Elements per load of operands a and b under a plan: what alignment and the axis of stride 1 allow; a box for tma, whose
    wgrad loads dy by threads."""
    if plan.family == "tma" and plan.which != Pass.WGRAD:
        return LARGEST_BOX, LARGEST_BOX
    call = seen(call, plan)
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
    return min(a, widest), LARGEST_BOX if plan.family == "tma" else min(b, widest)


def access(call: Call, plan: Plan) -> str:
    """How a plan's kernel reaches memory, which decides its registers: "wide" where both operands come in 16-byte loads,
    "folded" where they do and taps share an axis with the channels (patches), else "narrow". tma's results are what differs:
    "wide" where they leave as boxes, "scattered" where each thread stores its own; but for wgrad, whose dy is."""
    if plan.family == "tma" and plan.which != Pass.WGRAD:
        return "wide" if stores_boxes(merged(call, plan.merge)) else "scattered"
    widest = max(1, 16 // itemsize(call.dtype))
    if min(vector_widths(call, plan)) < widest:
        return "narrow"
    return "folded" if plan.family == "patch" and call.problem.taps > 1 else "wide"


def stores_boxes(call: Call) -> bool:
    """Whether a box of the result may leave as one: dense channels of a single group, no stride between a phase's pixels."""
    strided = call.which == Pass.DGRAD and any(s > 1 for s in call.problem.stride)
    aligned = call.out.unit == 1 and call.out.boxed and call.out.outside * itemsize(call.dtype) % 16 == 0
    return aligned and call.problem.groups == 1 and not strided


def reduction_step(problem: ConvProblem, block_k: int, within: bool = False) -> tuple[int, int, int, int]:
    """wgrad's box (n, o, p, q) of `block_k` output pixels, powers of two, that wastes least, and of those the widest.

    tma's lies `within` the output along o, p and q: the kernel shifts the last box of an axis back.
    """
    return _least_box(_boxed_sizes(problem, Pass.WGRAD), block_k.bit_length() - 1, within)


def reduction_steps(problem: ConvProblem, step: tuple[int, int, int, int]) -> int:
    """Boxes that cover the output pixels."""
    return boxes(problem, Pass.WGRAD, step)


def pixel_box(problem: ConvProblem, which: Pass, pixels: int) -> tuple[int, int, int, int]:
    """The box (n, o, p, q) of `pixels` pixels, powers of two, that wastes least, and of those the widest."""
    return _least_box(_boxed_sizes(problem, which), pixels.bit_length() - 1, False)


def step_of(problem: ConvProblem, plan: Plan) -> tuple[int, int, int, int]:
    """The box of a plan that has one: its `step`, or the best where it leaves that open."""
    if plan.which == Pass.WGRAD:
        return plan.step or reduction_step(problem, plan.block_k, plan.family == "tma")
    return plan.step or pixel_box(problem, plan.which, plan.block_m)


def boxes(problem: ConvProblem, which: Pass, box: tuple[int, int, int, int]) -> int:
    """Boxes that cover the pixels of a pass."""
    return math.prod(ceil_div(s, b) for s, b in zip(_boxed_sizes(problem, which), box, strict=True))


@lru_cache(maxsize=4096)
def _boxed_sizes(problem: ConvProblem, which: Pass) -> tuple[int, ...]:
    """(n, o, p, q): the output pixels, or dgrad's of the largest stride phase, with axes of size 1 in front up to three."""
    sizes = problem.output_size
    if which == Pass.DGRAD:
        sizes = tuple(ceil_div(n, s) for n, s in zip(problem.input_size, problem.stride, strict=True))
    return (problem.batch, *(1,) * (3 - problem.rank), *sizes)


@lru_cache(maxsize=4096)
def _least_box(sizes: tuple[int, ...], bits: int, within: bool) -> tuple[int, int, int, int]:
    covered = [[-(-size >> e) for e in range(bits + 1)] for size in sizes]  # boxes along an axis, 2^e wide
    widest = [min(bits, max(0, (2 * size - 1).bit_length() - 1)) for size in sizes[:3]] + [bits]
    if within:  # images alone may be fewer than a box's
        widest = [bits] + [min(bits, max(0, size.bit_length() - 1)) for size in sizes[1:]]
    best, found = math.inf, (0, 0, 0, bits)
    for q in range(widest[3], -1, -1):
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
    """The extent of a pass for the "gather", the "patch" or the "tma" family."""
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
    problem = seen_problem(problem, plan)
    of = extent(problem, plan.which, plan.family)
    m_tiles = ceil_div(of.m, plan.block_m)
    if plan.family == "tma" and plan.which != Pass.WGRAD:
        m_tiles = boxes(problem, plan.which, step_of(problem, plan))
    return m_tiles, ceil_div(of.n, plan.block_n), of.repeats * plan.split


def trips(problem: ConvProblem, plan: Plan) -> float:
    """Main-loop trips of one program, on average over the phases of dgrad."""
    problem = seen_problem(problem, plan)
    of = extent(problem, plan.which, plan.family)
    if plan.which == Pass.WGRAD:
        return ceil_div(reduction_steps(problem, step_of(problem, plan)), plan.split)
    return ceil_div(ceil_div(of.depth, plan.block_k), plan.split) * of.loops


def shares(problem: ConvProblem, which: Pass, family: str) -> bool:
    """Whether programs may share a reduction. fprop's patches have taps and channels on one axis, which is not cut."""
    if family == "tma":
        return which == Pass.WGRAD
    return which != Pass.FPROP or family == "gather" or problem.taps == 1


def full_shares(blocks: int, split: int) -> int:
    """The most programs up to `split` that share `blocks` blocks of a reduction so that none has nothing to do."""
    return ceil_div(blocks, ceil_div(blocks, split))


def issued_macs(problem: ConvProblem, plan: Plan) -> int:
    """Multiply-adds that the plan's tiles compute, those on padding, tile edges and other groups' channels included."""
    m_tiles, n_tiles, repeats = grid(problem, plan)
    return round(m_tiles * n_tiles * repeats * trips(problem, plan) * plan.block_m * plan.block_n * plan.block_k)
