"""What the families of matrix products share: their plans, and how a plan tiles a pass (loads, grid, trips).

"gather" and "patch" (`gemm`) and "tma" multiply pixels by weights, tile by tile of an implicit matrix product. Plain
arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import ClassVar

from costmodel.algebra import ceil_div, product
from costmodel.device import Device
from costmodel.problem import ConvProblem, Pass
from costmodel.recast import fold_columns, fold_width, merge_groups
from costmodel.resources import Resources, estimated, resource_key, resource_table
from costmodel.tiling import LARGEST_BOX, MAX_ALIGN, Call, Extent, Operand, Plan, arithmetic, itemsize, plan_option

#: Bytes of a cache line.
LINE = 128
#: Where this divides a row of pixels the kernel is told so, and loads and stores several pixels at once.
ROW_ALIGN = 8


@dataclass(frozen=True)
class MatrixPlan(Plan):
    """A tile of a matrix product: `block_m` x `block_n` results, `block_k` terms of each per trip.

    `split` programs share one reduction: over channels in fprop, over filters in dgrad, over pixels in wgrad. `group_m` m tiles
    are walked across every n tile before the next ones. `step` is a box of pixels (n, o, p, q). For wgrad it is a box of the
    output and its product is `block_k`; for fprop and dgrad of a boxed family it is a box of the result (in dgrad of one stride
    phase) and its product is `block_m`. `merge` groups are laid together in one block-diagonal weight, so that narrow groups
    fill a tile. `pack` names the operands that are first copied to channels-last.
    """

    boxed: ClassVar[bool] = False  # the copy engine fetches the operands as boxes (for wgrad only x)
    folds: ClassVar[bool] = False  # the columns of a filter may become channels
    patches: ClassVar[bool] = False  # the windows tile the input, so taps and channels are one axis

    split: int = plan_option("split", 1)
    group_m: int = plan_option("group", 8)
    step: tuple[int, int, int, int] | None = plan_option("step", None, 4)
    merge: int = plan_option("merge", 1)
    fold: bool = field(default=False, init=False, repr=False)  # an option of the families with `folds`
    x3: bool = field(default=False, init=False, repr=False)
    pack: tuple[str, ...] = plan_option("pack-", ())


def merged(call: Call, merge: int) -> Call:
    """The call as its kernel sees it with `merge` groups as one: more channels per group, and block-diagonal weights that are
    channels-last."""
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
    """The call as its kernel sees it with the columns of a filter as channels; x and the weights are padded copies."""
    problem = fold_columns(call.problem)
    x = Operand(1, fold_width(call.problem), fold_width(call.problem), boxed=False)  # windows overlap
    w = Operand(1, *(math.gcd(MAX_ALIGN, problem.in_channels),) * 2)
    if call.which == Pass.WGRAD:
        return replace(call, problem=problem, b=x, out=w)
    return replace(call, problem=problem, a=x, b=w)


def seen_problem(problem: ConvProblem, plan: MatrixPlan) -> ConvProblem:
    """The problem as the plan's kernel sees it."""
    problem = merge_groups(problem, plan.merge)
    return fold_columns(problem) if plan.fold else problem


def seen(call: Call, plan: MatrixPlan) -> Call:
    """The call as the plan's kernel sees it, except for copies of operands to channels-last."""
    call = merged(call, plan.merge)
    return folded(call) if plan.fold else call


def arithmetic_of(call: Call, plan: MatrixPlan) -> str:
    """`arithmetic` of a call under a plan, which may ask for "tf32x3"."""
    return "tf32x3" if plan.x3 else arithmetic(call.dtype, call.precision)


def row_align(problem: ConvProblem, which: Pass) -> int:
    """`ROW_ALIGN` if it divides the row of pixels that a tile of results runs along, else 1. This is a row of y, or of dx
    where it has a single stride phase. For patches, whose dx may have pixels left over, it must divide dy's row too."""
    x, y = problem.input_size[-1], problem.output_size[-1]
    if which == Pass.WGRAD or (which == Pass.DGRAD and problem.stride[-1] != 1):
        return 1
    row = y if which == Pass.FPROP else math.gcd(x, y) if problem.is_patch else x
    return 1 if row % ROW_ALIGN else ROW_ALIGN


def vector_widths(call: Call, plan: MatrixPlan) -> tuple[int, int]:
    """Elements per load of operands a and b under a plan, as alignment and the axis of stride 1 allow. A boxed operand is
    loaded a box at a time; threads load dy of wgrad."""
    if plan.boxed and plan.which != Pass.WGRAD:
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
        if call.a.unit == 4 and not packed_a and problem.is_patch and call.prologue is None:
            a = on_pixels(call.a) if pointwise else math.gcd(call.a.align, problem.kernel_size[-1], MAX_ALIGN)
        b = along_channels(call.b, packed_b, c)
        if plan.patches and call.b.unit == 4 and not packed_b:
            b = math.gcd(call.b.align, problem.kernel_size[-1], MAX_ALIGN)
    elif call.which == Pass.DGRAD:
        a = along_channels(call.a, packed_a, k)
        if call.a.unit == 4 and not packed_a and pointwise:
            a = on_pixels(call.a)
        b = along_channels(call.b, packed_b, c)
        if plan.patches and call.b.unit == 4 and not packed_b:
            b = math.gcd(call.b.align, problem.kernel_size[-1], MAX_ALIGN)
        if call.b.unit == 0 and not packed_b:
            b = math.gcd(call.b.align, k)
    else:
        a = along_channels(call.a, packed_a, k)
        b = along_channels(call.b, packed_b, c)
        if plan.patches and call.b.unit == 4 and not packed_b:
            b = math.gcd(call.b.align, problem.kernel_size[-1], MAX_ALIGN)
    widest = max(1, 16 // itemsize(call.dtype))
    return min(a, widest), LARGEST_BOX if plan.boxed else min(b, widest)


def scattered_lines(call: Call, plan: MatrixPlan) -> tuple[float, float]:
    """Cache lines per element of operands a and b that a warp touches where it reads them one element at a time; 0 where
    loads are wider.

    The lanes of a warp then read elements of neighbouring results: the same element of neighbouring patches, or of neighbouring
    filters. `python -m bench validate --choice` counted such lines in three cases. Channels-last patches of an odd number of
    channels have no contiguous run that Triton knows of. In contiguous weights the neighbouring filters (fprop) are a filter
    apart, and the neighbouring channels (dgrad) its taps. In the contiguous x of a strided weight gradient the lanes are 16
    channels (32 for a tile of 128 or more), each in a plane of its own.
    """
    if plan.boxed:
        return 0.0, 0.0
    if plan.which == Pass.WGRAD:
        strided = call.problem.stride[-1] > 1 and call.b.unit == 4 and "b" not in plan.pack
        scattered = strided and not plan.patches and not plan.fold and vector_widths(call, plan)[1] == 1
        return 0.0, (1.0 if plan.block_n >= 128 else 0.5) if scattered else 0.0
    (a_width, b_width), size = vector_widths(call, plan), itemsize(call.dtype)
    call = seen(call, plan)
    problem, a, b = call.problem, 0.0, 0.0
    of_patches = plan.patches and plan.which == Pass.FPROP and problem.taps > 1 and call.a.unit == 1
    if of_patches and a_width == 1 and "a" not in plan.pack:
        a = min(1.0, problem.stride[-1] * problem.in_channels * size / LINE)
    if call.b.unit == 4 and b_width == 1 and "b" not in plan.pack:
        apart = problem.taps * (problem.channels_per_group if plan.which == Pass.FPROP else 1)
        b = min(1.0, apart * size / LINE)
    return a, b


def access(call: Call, plan: MatrixPlan) -> str:
    """How a plan's kernel reaches memory, which decides its registers. "wide": both operands come in 16-byte loads. "folded":
    they do, and taps share an axis with the channels (patches). "narrow": anything else. For fprop and dgrad of a boxed family
    the stores decide: "wide" where results leave as boxes, "scattered" where each thread stores its own."""
    if plan.boxed and plan.which != Pass.WGRAD:
        return "wide" if stores_boxes(merged(call, plan.merge)) else "scattered"
    widest = max(1, 16 // itemsize(call.dtype))
    if min(vector_widths(call, plan)) < widest:
        return "narrow"
    return "folded" if plan.patches and call.problem.taps > 1 else "wide"


def stores_boxes(call: Call) -> bool:
    """Whether results may be stored as boxes: the channels are dense, there is one group, and a phase's pixels are
    neighbours."""
    strided = call.which == Pass.DGRAD and any(s > 1 for s in call.problem.stride)
    aligned = call.out.unit == 1 and call.out.boxed and call.out.outside * itemsize(call.dtype) % 16 == 0
    return aligned and call.problem.groups == 1 and not strided


def reduction_step(problem: ConvProblem, block_k: int, within: bool = False) -> tuple[int, int, int, int]:
    """wgrad's box (n, o, p, q) of `block_k` output pixels, powers of two, that wastes least; of equal ones the widest.

    `within` keeps it within the output along o, p and q, as boxed kernels need, which shift the last box of an axis back.
    """
    return _least_box(_boxed_sizes(problem, Pass.WGRAD), block_k.bit_length() - 1, within)


def reduction_steps(problem: ConvProblem, step: tuple[int, int, int, int]) -> int:
    """Boxes that cover the output pixels."""
    return boxes(problem, Pass.WGRAD, step)


def pixel_box(problem: ConvProblem, which: Pass, pixels: int) -> tuple[int, int, int, int]:
    """The box (n, o, p, q) of `pixels` pixels, powers of two, that wastes least; of equal ones the widest."""
    return _least_box(_boxed_sizes(problem, which), pixels.bit_length() - 1, False)


def step_of(problem: ConvProblem, plan: MatrixPlan) -> tuple[int, int, int, int]:
    """The box of a plan that has one: its `step`, or the best one where `step` is None."""
    if plan.which == Pass.WGRAD:
        return plan.step or reduction_step(problem, plan.block_k, plan.boxed)
    return plan.step or pixel_box(problem, plan.which, plan.block_m)


def boxes(problem: ConvProblem, which: Pass, box: tuple[int, int, int, int]) -> int:
    """Boxes that cover the pixels of a pass."""
    return math.prod(ceil_div(s, b) for s, b in zip(_boxed_sizes(problem, which), box, strict=True))


@lru_cache(maxsize=4096)
def _boxed_sizes(problem: ConvProblem, which: Pass) -> tuple[int, ...]:
    """(n, o, p, q): the size of the output, or for dgrad of the largest stride phase, with leading axes of size 1."""
    sizes = problem.output_size
    if which == Pass.DGRAD:
        sizes = tuple(ceil_div(n, s) for n, s in zip(problem.input_size, problem.stride, strict=True))
    return (problem.batch, *(1,) * (3 - problem.rank), *sizes)


@lru_cache(maxsize=4096)
def _least_box(sizes: tuple[int, ...], bits: int, within: bool) -> tuple[int, int, int, int]:
    covered = [[-(-size >> e) for e in range(bits + 1)] for size in sizes]  # boxes along an axis, 2^e wide
    widest = [min(bits, max(0, (2 * size - 1).bit_length() - 1)) for size in sizes[:3]] + [bits]
    if within:  # only along the images may a box be larger than the output
        widest = [bits] + [min(bits, max(0, size.bit_length() - 1)) for size in sizes[1:]]
    best, box = math.inf, (0, 0, 0, bits)
    for q in range(widest[3], -1, -1):
        for p in range(min(bits - q, widest[2]), -1, -1):
            for o in range(min(bits - q - p, widest[1]), -1, -1):
                n = bits - q - p - o
                if n <= widest[0]:
                    boxes = covered[0][n] * covered[1][o] * covered[2][p] * covered[3][q]
                    if boxes < best:
                        best, box = boxes, (n, o, p, q)
    return 1 << box[0], 1 << box[1], 1 << box[2], 1 << box[3]


@lru_cache(maxsize=4096)
def extent(problem: ConvProblem, which: Pass, patches: bool) -> Extent:
    """The extent of a pass; `patches` is as in `MatrixPlan`."""
    c, k, taps = problem.channels_per_group, problem.filters_per_group, problem.taps
    if which == Pass.FPROP:
        pixels = problem.batch * product(problem.output_size)
        return Extent(pixels, k, problem.groups, c * taps if patches else c, 1 if patches else taps)
    if which == Pass.DGRAD:
        # the largest stride phase, over the batch
        pixels = problem.batch * product(ceil_div(n, s) for n, s in zip(problem.input_size, problem.stride, strict=True))
        phases = 1 if patches else product(problem.stride)
        return Extent(pixels, c * taps if patches else c, problem.groups * phases, k, 1 if patches else taps / phases)
    pixels = problem.batch * product(problem.output_size)
    return Extent(k, c * taps if patches else c, problem.groups * (1 if patches else taps), pixels, 1)


def grid(problem: ConvProblem, plan: MatrixPlan) -> tuple[int, int, int]:
    """(m tiles, n tiles, repeats) of a launch. `repeats` is the product of groups, phases, taps and splits."""
    problem = seen_problem(problem, plan)
    covers = extent(problem, plan.which, plan.patches)
    m_tiles = ceil_div(covers.m, plan.block_m)
    if plan.boxed and plan.which != Pass.WGRAD:
        m_tiles = boxes(problem, plan.which, step_of(problem, plan))
    return m_tiles, ceil_div(covers.n, plan.block_n), covers.repeats * plan.split


def trips(problem: ConvProblem, plan: MatrixPlan) -> float:
    """Main-loop trips of one program, on average over the phases of dgrad."""
    problem = seen_problem(problem, plan)
    covers = extent(problem, plan.which, plan.patches)
    if plan.which == Pass.WGRAD:
        return ceil_div(reduction_steps(problem, step_of(problem, plan)), plan.split)
    return ceil_div(ceil_div(covers.depth, plan.block_k), plan.split) * covers.loops


def shares(problem: ConvProblem, which: Pass, kind: type[MatrixPlan]) -> bool:
    """Whether programs may share a reduction. In fprop of patches taps and channels are on one axis, which is not cut."""
    if kind.boxed:
        return which == Pass.WGRAD
    return which != Pass.FPROP or not kind.patches or problem.taps == 1


def full_shares(blocks: int, split: int) -> int:
    """The most programs, up to `split`, that can share `blocks` blocks of a reduction without one being idle."""
    return ceil_div(blocks, ceil_div(blocks, split))


def issued_macs(problem: ConvProblem, plan: MatrixPlan) -> int:
    """Multiply-adds that the plan's tiles compute, including those on padding, tile edges and other groups' channels."""
    m_tiles, n_tiles, repeats = grid(problem, plan)
    return round(m_tiles * n_tiles * repeats * trips(problem, plan) * plan.block_m * plan.block_n * plan.block_k)


def resources_of(call: Call, plan: MatrixPlan, device: Device) -> Resources:
    """What the kernel of a plan takes: the row of the table of compiled kernels, or an estimate where it has none."""
    key = resource_key(plan, arithmetic_of(call, plan), access(call, plan), device.capability)
    return resource_table().get(key) or estimated(plan.tile, itemsize(call.dtype))
