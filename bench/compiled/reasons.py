"""Why compiled kernels ask for more sectors or wavefronts than their bytes take: the numbered sentences of docs/counts.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.compiled.store import CountRow


@dataclass(frozen=True)
class Reason:
    """Why a column of some kernels is above the goal. `holds` says for which rows that is true, from the words of the call."""

    column: str
    kernels: tuple[str, ...]
    holds: Callable[[set[str]], bool]
    text: str

    def explains(self, row: CountRow, column: str) -> bool:
        return column == self.column and row.kernel in self.kernels and self.holds(set(row.call.split()))


def holds(*every: str, but: str = "") -> Callable[[set[str]], bool]:
    """Whether a call has all of these words, and none of those in `but`."""
    return lambda words: words.issuperset(every) and words.isdisjoint(but.split())


GATHERS = ("fprop_kernel", "dgrad_kernel", "wgrad_kernel", "padded_fprop_kernel", "padded_wgrad_kernel")
WINDOWS = ("slide_kernel", "taps_kernel", "strip_kernel", "causal_kernel", "causal_backward_kernel")
STATES = ("final_state_kernel", "state_gradient_kernel", "causal_update_kernel")
REASONS = (
    Reason(
        "read",
        GATHERS,
        holds("contiguous"),
        "Contiguous tensors, gathered (`gather.py`, `wgrad.py`): neighbouring threads take neighbouring channels, "
        "which lie a plane apart, so each lane of a request has a sector of its own and an element of it, "
        "`ld.global.b16` or a `cp.async.ca` of 4 bytes. Threads along pixels would ask for 2 to 4 sectors; they are "
        "another layout of the code that 1,300 rows of `resources.json` (narrow ones, four versions of Triton) "
        "describe. Copies to channels-last (`pack-a`) are in the menu.",
    ),
    Reason(
        "read",
        ("dgrad_kernel", "wgrad_kernel"),
        holds("tf32", "channels_last"),
        "`wgmma` takes operands of tf32 with k side by side alone: weights of dgrad and both operands of wgrad, which lie "
        "along n or m, are copied by one or two elements per lane, with lanes along k. sm_80, whose `mma` reads them one by "
        "one, has 1.00 for the same plans.",
    ),
    Reason(
        "written",
        ("fprop_kernel", "dgrad_kernel", "video_kernel", "reduce_kernel", "padded_fprop_kernel", "padded_fold_kernel"),
        holds("contiguous", but="wgrad"),
        "Contiguous results: a plane of 195 pixels begins anywhere in a sector, and a warp writes 16 to 64 pixels of "
        "each, so the sectors at both ends of such a run are asked for twice. 2.00 is a run of 32 bytes (tiles of 16 "
        "pixels).",
    ),
    Reason(
        "written",
        ("wgrad_kernel", "reduce_kernel", "padded_wgrad_kernel"),
        holds("contiguous", "wgrad"),
        "A contiguous weight gradient has its 9 taps side by side and its channels 9 elements apart. The sum of parts "
        "writes runs of 9; a kernel that adds up alone has its threads along the channels, one element a sector, and "
        "its rows of `resources.json` hang on that.",
    ),
    Reason(
        "shared read",
        ("fprop_kernel", "video_kernel", "padded_fprop_kernel"),
        holds("fp32"),
        "float32 without tensor cores: Triton gives the operands of scalar products no swizzle, and weights with "
        "channels side by side are read with lanes a row of k apart, in one bank. Weights with filters side by side "
        "take 289,184 wavefronts instead of 1,127,840 in fprop of 64x64x16 (1.49 of the fewest, 1.00 at 16x16x32): a "
        "copy of the weights, `pack-b` as the depthwise kernels have it, is the mend. It wants a predicted time for "
        "shared memory, so that it is chosen.",
    ),
    Reason(
        "shared read",
        ("dgrad_kernel", "wgrad_kernel", "padded_wgrad_kernel"),
        holds("fp32"),
        "float32 without tensor cores: no swizzle either. Of the operand with channels, or filters, along a thread's row "
        "1.00 is read, of the other one 2.50.",
    ),
    Reason(
        "shared read",
        GATHERS,
        holds("fp64"),
        "float64: ldmatrix has no form for 8 bytes, so fragments of `mma.m8n8k4` are read by `ld.shared.b64` from the "
        "layout that Triton gives them, where some lanes share a bank (1.50 in dgrad on sm_80).",
    ),
    Reason(
        "read",
        ("slide_kernel", "taps_kernel", "causal_kernel", "causal_backward_kernel", "separable_kernel"),
        holds(but="contiguous"),
        "Weights: a lane reads the taps of its channel, which lie side by side, so neighbouring lanes are 9 elements "
        "apart (8 to 9 sectors for one, line by line: `slide_kernel` 9.00 for weights and 1.00 for pixels). A window "
        "that slides reads them once per program; for filters in a loop `pack-b` lays them out by channels.",
    ),
    Reason(
        "read",
        WINDOWS,
        holds("contiguous"),
        "Contiguous rows: a lane owns neighbouring columns, of which a load brings what divides rows and tiles; where "
        "rows are odd that is one element, and lanes are a tile of columns apart. Lanes that take turns at columns "
        "would bring a pixel once per tap instead of once per row.",
    ),
    Reason(
        "written",
        ("slide_kernel", "taps_kernel", "causal_kernel", "causal_backward_kernel"),
        holds("contiguous"),
        "Contiguous rows: as above, of stores. As many columns go together as divide a row (2 of rows of 14, half the "
        "sectors of one by one); rows that are odd go one by one. A row of 13 or 28 elements ends within a sector in "
        "any case.",
    ),
    Reason(
        "shared read",
        ("strip_kernel", "causal_backward_kernel"),
        holds(),
        "Sums of column tiles across warps, once per tap behind the main loop: Triton lays what the warps hand over "
        "side by side, so the lanes of a warp are 4 to 8 words apart, or most of them idle.",
    ),
    Reason(
        "shared written",
        ("strip_kernel", "causal_backward_kernel"),
        holds(),
        "As above, the other side of it.",
    ),
    Reason(
        "written",
        ("strip_reduce_kernel",),
        holds(),
        "A depthwise weight gradient has its taps side by side, its parts are read with channels side by side: an "
        "element of the result a sector, for 4 bytes of each part that are read at 1.00. To write runs of 9 it would "
        "go through shared memory.",
    ),
    Reason(
        "written",
        ("strip_kernel",),
        holds("contiguous"),
        "Parts of a program that has 2 or 4 channels: 8 or 16 bytes per tap, once per program.",
    ),
    Reason(
        "read",
        ("table_kernel",),
        holds(),
        "A row of 31 taps at eight offsets: rows of an odd number of elements begin anywhere in a sector.",
    ),
    Reason(
        "shared written",
        ("diagonal_kernel",),
        holds(),
        "`tl.gather` hands a tile's rows over through shared memory, once behind the main loop, in the layout of the sums.",
    ),
    Reason("shared read", ("diagonal_kernel",), holds(), "As above, the other side of it."),
    Reason(
        "read",
        STATES,
        holds(),
        "States of a few entries per channel, side by side, and the last few columns of a sequence: a sector or two per "
        "channel, once per call.",
    ),
    Reason(
        "written",
        STATES,
        holds(),
        "As above, of what is written.",
    ),
    Reason(
        "shared read",
        ("separable_kernel",),
        holds(),
        "What lies between the two convolutions is handed from threads that own channels to the product, by 4 to 16 "
        "bytes in Triton's conversion of layouts; as the second operand of a float32 product without tensor cores it "
        "has no swizzle.",
    ),
    Reason(
        "shared written",
        ("separable_kernel",),
        holds(),
        "As above, the other side of it.",
    ),
    Reason(
        "read",
        ("padded_copy_kernel",),
        holds("contiguous"),
        "Contiguous rows with their padding: a warp takes 32 neighbouring places, so it meets two or three rows of 15 to 30 "
        "pixels, each of which begins anywhere in a sector and is read twice at its ends, where the padding repeats it.",
    ),
    Reason(
        "written",
        ("padded_copy_kernel",),
        holds("contiguous"),
        "A plane of 450 or 510 places in 16 bits begins anywhere in a sector, and a warp writes 64 bytes of it.",
    ),
    Reason(
        "read",
        ("reduce_kernel",),
        holds("video", "fp64"),
        "The bias in float64: a thread has two neighbouring channels and loads their values one at a time, so each sector is "
        "asked for twice. The partial sums beside it are read at 1.00.",
    ),
    Reason(
        "written",
        ("reduce_kernel",),
        holds("deform"),
        "The gradient of contiguous weights, as of other weights above: 9 taps side by side, and channels 9 elements apart.",
    ),
    Reason(
        "read",
        ("targets_kernel",),
        holds("deform"),
        "A thread has two neighbouring pixels, whose offsets and factors it loads one at a time: a request asks for every "
        "second element, so each sector is asked for twice, and rows of 182 pixels begin anywhere in one.",
    ),
    Reason(
        "written",
        ("targets_kernel",),
        holds("deform"),
        "As above: a thread stores the numbers and weights of its two neighbouring pixels one at a time.",
    ),
    Reason(
        "read",
        ("scatter_kernel",),
        holds("deform"),
        "A thread sums eight channels, in float32 a sector, which it loads in two halves: each request asks for half of every "
        "sector.",
    ),
    Reason(
        "read",
        ("weights_kernel",),
        holds("deform", "tf32"),
        "`wgmma` takes operands of tf32 with k side by side alone, as in wgrad: pixels are copied element by element.",
    ),
    Reason(
        "shared written",
        ("weights_kernel",),
        holds("deform", "tf32"),
        "Samples are stored with pixels side by side, as `wgmma` of tf32 wants them, by lanes that hold neighbouring channels.",
    ),
    Reason(
        "shared read",
        ("deform_kernel", "columns_kernel"),
        holds("deform", "fp32"),
        "float32 without tensor cores: Triton gives the operands of scalar products no swizzle, as in fprop above.",
    ),
    Reason(
        "shared read",
        ("weights_kernel",),
        holds("deform", "fp64"),
        "Operands of `mma` in float64 are read by `ld.shared.b64`, twice as many lanes to a bank as its width takes.",
    ),
    Reason(
        "read",
        ("unfold_kernel",),
        holds("unfold", "contiguous"),
        "Windows begin anywhere, so pixels are loaded one at a time by threads that store two or four neighbouring places at "
        "once: a request asks for every second or fourth element of its sectors, and the next finds them in the first-level "
        "cache.",
    ),
    Reason(
        "read",
        ("unfold_kernel",),
        holds("unfold", "channels_last"),
        "A block of so small a call has 16 bytes of the channels of a pixel, half a sector.",
    ),
    Reason(
        "read",
        ("fold_kernel",),
        holds("unfold", "channels_last"),
        "Columns whose rows are contiguous: each lane's place lies a row from the next, in a sector of its own. A copy of the "
        "columns, which larger calls take first, would be a second launch.",
    ),
    Reason(
        "read",
        ("apply_kernel", "square_kernel", "moments_kernel"),
        holds("prologue"),
        "A tile reads scale and shift in float32 once more for its pixels, half as much again as 16-bit channels of 90 "
        "pixels; a contiguous plane of 90 pixels begins anywhere in a sector, and a warp reads a run of each channel.",
    ),
    Reason(
        "shared read",
        ("moments_kernel", "square_kernel", "group_kernel", "apply_kernel"),
        holds("prologue"),
        "The sums of a tile's warps meet in shared memory once per tile, by single values, and a tile of contiguous pixels is "
        "turned there; both are once per reading of x.",
    ),
    Reason(
        "shared written",
        ("moments_kernel", "square_kernel", "group_kernel", "apply_kernel"),
        holds("prologue"),
        "As it is read, above.",
    ),
)
