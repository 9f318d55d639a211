"""A convolution call as one line of Python, and a pairwise cover of the calls worth testing.

Nothing here comes from the library: the sizes that matter to a case (an input that the kernel fits, the largest legal
output padding) are worked out again, on purpose.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

FUNCTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
DTYPES = ("float16", "bfloat16", "float32", "float64")
LAYOUTS = ("contiguous", "channels_last", "sliced", "expanded", "permuted")


@dataclass(frozen=True)
class Case:
    """One call of one of the six functions. `input` and `weight` are shapes; without a batch, input is one shorter."""

    function: str
    input: tuple[int, ...]
    weight: tuple[int, ...]
    bias: bool = True
    stride: int | tuple[int, ...] = 1
    padding: int | tuple[int, ...] | str = 0
    dilation: int | tuple[int, ...] = 1
    groups: int = 1
    output_padding: int | tuple[int, ...] = 0
    dtype: str = "float32"
    x: str = "contiguous"  # layouts: of the input,
    w: str = "contiguous"  # of the weight,
    g: str = "contiguous"  # and of the gradient that arrives at the output
    seed: int = 0

    def __repr__(self) -> str:
        """The shortest line of Python that makes this case again."""
        shown = [repr(self.function), repr(self.input), repr(self.weight)]
        for field in dataclasses.fields(self)[3:]:
            if (value := getattr(self, field.name)) != field.default:
                shown.append(f"{field.name}={value!r}")
        return f"Case({', '.join(shown)})"

    @property
    def rank(self) -> int:
        return len(self.weight) - 2

    @property
    def transposed(self) -> bool:
        return "transpose" in self.function

    @property
    def out_channels(self) -> int:
        return self.weight[1] * self.groups if self.transposed else self.weight[0]

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def arguments(self) -> dict[str, object]:
        """The keyword arguments of the call, apart from the tensors."""
        names = ("stride", "padding", "dilation", "groups") + (("output_padding",) if self.transposed else ())
        return {name: getattr(self, name) for name in names}

    def tensors(self, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Input, weight and bias, always the same for the same case, in its dtype and layouts."""
        x = laid_out(self.values("x", self.input).to(device), self.x, self.rank)
        w = laid_out(self.values("w", self.weight).to(device), self.w, self.rank)
        b = guarded(self.values("b", (self.out_channels,)).to(device)) if self.bias else None
        return x, w, b

    def gradient(self, output: torch.Tensor) -> torch.Tensor:
        """A gradient for an output of this shape, in the layout the case asks for; expanded is what `y.sum()` sends."""
        if self.g == "expanded":
            return guarded(self.values("g", (1,) * output.dim()).to(output.device)).expand(output.shape)
        return laid_out(self.values("g", tuple(output.shape)).to(output.device), self.g, self.rank)

    def values(self, role: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Standard normal values that depend on the role and the seed, rounded to the dtype of the case."""
        seeded = torch.Generator().manual_seed(zlib.crc32(f"{role}{self.seed}".encode()))
        return torch.randn(shape, generator=seeded, dtype=torch.float64).to(self.torch_dtype)


def laid_out(t: torch.Tensor, layout: str, rank: int) -> torch.Tensor:
    """The values of `t` (of its first row, for `expanded`) in memory of the given layout, with NaN all around."""
    channel = t.dim() - rank - 1
    if layout == "contiguous":
        return guarded(t)
    if layout == "channels_last":
        if rank > 1 and t.dim() == rank + 2:
            return guarded(t.contiguous(memory_format=torch.channels_last if rank == 2 else torch.channels_last_3d))
        # torch has no name for it in 1-D or unbatched
        return guarded(t.movedim(channel, -1).contiguous().movedim(-1, channel))
    if layout == "sliced":  # every second element of a row
        return guarded(t.new_zeros(*t.shape[:-1], 2 * t.shape[-1])[..., ::2].copy_(t))
    if layout == "expanded":  # one row for all: stride 0
        return guarded(t[:1]).expand(t.shape)
    if layout == "permuted":  # dimensions in memory in the opposite order
        backwards = tuple(reversed(range(t.dim())))
        return guarded(t.permute(backwards).contiguous().permute(backwards))
    raise ValueError(f"unknown layout {layout!r}")


GUARD = 64  # elements, so that no alignment is lost


def guarded(t: torch.Tensor) -> torch.Tensor:
    """`t` with its strides in a memory that is NaN before, between and after its elements: stray reads show."""
    span = 1 + sum((n - 1) * step for n, step in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0
    room = torch.full((span + 2 * GUARD,), math.nan, dtype=t.dtype, device=t.device)
    return room.as_strided(t.shape, t.stride(), GUARD).copy_(t)


# --- the pairwise cover -----------------------------------------------------------------------------------------------

# A named kernel or stride is a pattern that fits any rank: its first `rank` entries are taken.
PATTERNS = {
    "rect": (3, 1, 2),
    "rect_even": (2, 4, 3),
    "rect_stride": (2, 1, 3),
    "rect_pad": (1, 0, 2),
    "rect_dil": (1, 2, 1),
}

AXES: dict[str, tuple] = {
    "function": FUNCTIONS,
    "kernel": (1, 2, 3, 4, "rect", "rect_even"),
    "stride": (1, 2, 3, "rect_stride"),
    "padding": (0, 1, "rect_pad", "same", "valid"),
    "dilation": (1, 2, "rect_dil"),
    "groups": (1, 2, "depthwise", "multiplier"),
    "output_padding": (0, "most"),
    "dtype": DTYPES,
    "x": LAYOUTS,
    "w": LAYOUTS,
    "g": LAYOUTS,
    "batch": (1, 2, "unbatched"),  # not 0: a pair that only an empty batch covers would not be tested
    "bias": (True, False),
}


def legal(point: dict[str, object]) -> bool:
    """Whether torch would take these settings together; settings not yet in `point` count as legal."""
    function, padding, stride = point.get("function", ""), point.get("padding"), point.get("stride")
    transposed = "transpose" in str(function)
    if function and transposed and padding in ("same", "valid"):
        return False
    if padding == "same" and stride not in (None, 1):
        return False
    if point.get("output_padding") == "most":
        if function and not transposed:
            return False
        if padding in ("same", "valid"):
            return False
        if stride == 1 and point.get("dilation") == 1:
            return False  # the most is 0
    return True


def spread(value: int | str, rank: int) -> tuple[int, ...]:
    """A setting as one number a dimension. In 3-D it tapers off, 4 to (4, 3, 2): a cube has too many taps or phases."""
    if isinstance(value, str):
        return PATTERNS[value][:rank]
    return tuple(max(value - (axis if rank == 3 else 0), min(value, 1)) for axis in range(rank))


def plain(values: tuple[int, ...]) -> int | tuple[int, ...]:
    """One number where all are the same, so that both forms of an argument are used."""
    return values[0] if len(set(values)) == 1 else values


def build(point: dict[str, object], seed: int = 0) -> Case:
    """The smallest interesting case with these settings: two or three outputs a dimension, few channels."""
    function = str(point["function"])
    rank, transposed = int(function[-2]), "transpose" in function
    kernel, stride, dilation = (spread(point[name], rank) for name in ("kernel", "stride", "dilation"))
    words = point["padding"] in ("same", "valid")
    padding = (0,) * rank if words else spread(point["padding"], rank)
    extent = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    if transposed:
        # a transposed output must not be empty: (size - 1) * stride + extent > 2 * padding
        fits = [1 + math.ceil((2 * p + 1 - e) / s) for e, s, p in zip(extent, stride, padding, strict=True)]
        size = [max(2 + axis % 2, fit) for axis, fit in enumerate(fits)]
    else:
        # two outputs a dimension, three in every second one, and a remainder that no window reaches where stride > 1
        settings = enumerate(zip(extent, stride, padding, strict=True))
        size = [max(1, e + s * (1 + axis % 2) + s // 2 - 2 * p) for axis, (e, s, p) in settings]
    per_group_in, per_group_out, groups = {1: (5, 3, 1), 2: (3, 2, 2), "depthwise": (1, 1, 4), "multiplier": (1, 2, 3)}[
        point["groups"]
    ]
    channels = (per_group_in * groups, per_group_out) if transposed else (per_group_out * groups, per_group_in)
    batch = point["batch"]
    most = tuple(max(s, d) - 1 for s, d in zip(stride, dilation, strict=True))
    return Case(
        function,
        (*(() if batch == "unbatched" else (batch,)), per_group_in * groups, *size),
        (*channels, *kernel),
        bias=bool(point["bias"]),
        stride=plain(stride),
        padding=point["padding"] if words else plain(padding),
        dilation=plain(dilation),
        groups=groups,
        output_padding=most if point["output_padding"] == "most" else 0,
        dtype=str(point["dtype"]),
        x=str(point["x"]),
        w=str(point["w"]),
        g=str(point["g"]),
        seed=seed,
    )


def points(seed: int = 0) -> Iterator[dict[str, object]]:
    """Settings in which every legal pair of two axes' settings comes up: a greedy cover, fixed by the seed."""
    rng = random.Random(seed)
    names = list(AXES)

    def pairs(point: dict[str, object]) -> set[tuple]:
        return set(itertools.combinations(((n, point[n]) for n in names), 2))

    wanted = {
        pair
        for (n, vs), (m, us) in itertools.combinations(AXES.items(), 2)
        for pair in itertools.product([(n, v) for v in vs], [(m, u) for u in us])
        if legal(dict(pair))
    }
    order = sorted(wanted, key=repr)
    while order:
        best: dict[str, object] = {}
        gain: set[tuple] = set()
        for _ in range(20):
            point = dict(rng.choice(order))  # at least one pair that is still wanted
            for name in rng.sample(names, len(names)):
                if name not in point:
                    point[name] = rng.choice([v for v in AXES[name] if legal({**point, name: v})])
            if len(found := pairs(point) & wanted) > len(gain):
                best, gain = point, found
        wanted -= gain
        order = [pair for pair in order if pair in wanted]
        yield {name: best[name] for name in names}


def pairwise(seed: int = 0) -> list[Case]:
    """The cover as cases; `seed` chooses both the cover and the values."""
    return [build(point, seed) for point in points(seed)]


# --- cases at random --------------------------------------------------------------------------------------------------


def drawn(pick: Callable[[int, int], int]) -> Case:
    """A small legal case of any kind. Each choice is `pick(low, high)`, both included, and the low ones are the simple
    ones: a seeded generator and hypothesis draw alike, and hypothesis shrinks to what matters."""

    def one_of(options: tuple) -> Any:
        return options[pick(0, len(options) - 1)]

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(pick(low, high) for _ in range(rank))

    function = one_of(FUNCTIONS)
    rank, transposed = int(function[-2]), "transpose" in function
    word = "" if transposed else one_of(("", "valid", "same"))
    kernel, dilation, padding = each(1, 4), each(1, 3), (0,) * rank if word else each(0, 3)
    stride = (1,) * rank if word == "same" else each(1, 4)
    output_padding: tuple[int, ...] | int = 0
    size = []
    if transposed:
        output_padding = tuple(pick(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True))
        for k, s, p, d, extra in zip(kernel, stride, padding, dilation, output_padding, strict=True):
            missing = 1 - (d * (k - 1) + 1 - 2 * p + extra)  # pixels that one element of input does not make
            size.append(1 + max(0, math.ceil(missing / s)) + pick(0, 2))
    else:
        for k, s, p, d in zip(kernel, stride, padding, dilation, strict=True):
            fits = 1 if word == "same" else max(1, d * (k - 1) + 1 - 2 * p)
            size.append(fits + pick(0, s + 2))
    groups, channels, filters = pick(1, 4), pick(1, 5), pick(1, 5)
    batch = one_of(((1,), (2,), (3,), ()))
    return Case(
        function,
        (*batch, channels * groups, *size),
        (*((channels * groups, filters) if transposed else (filters * groups, channels)), *kernel),
        bias=one_of((True, False)),
        stride=stride,
        padding=word or padding,
        dilation=dilation,
        groups=groups,
        output_padding=output_padding,
        dtype=one_of(("float32", "float16", "bfloat16", "float64")),
        x=one_of(LAYOUTS),
        w=one_of(LAYOUTS),
        g=one_of(LAYOUTS),
        seed=pick(0, 99),
    )


# --- edges, by hand ---------------------------------------------------------------------------------------------------

EDGES = {
    "kernel_below_stride": Case("conv2d", (2, 3, 7, 6), (4, 3, 2, 1), stride=3, padding=1),
    "kernel_below_stride_transposed": Case("conv_transpose2d", (2, 4, 3, 2), (4, 3, 2, 1), stride=3, output_padding=2),
    "pointwise": Case("conv2d", (2, 5, 4, 3), (7, 5, 1, 1)),
    "pointwise_stride_2": Case("conv2d", (2, 5, 5, 4), (6, 5, 1, 1), stride=2),  # three quarters of dx are zeros
    "pointwise_stride_2_half": Case("conv2d", (2, 8, 5, 4), (9, 8, 1, 1), stride=2, dtype="float16", x="channels_last"),
    "pointwise_padded": Case("conv2d", (1, 5, 3, 3), (6, 5, 1, 1), padding=1),  # a border of bias alone
    "pointwise_transposed_stride_2": Case("conv_transpose2d", (2, 5, 3, 2), (5, 6, 1, 1), stride=2, output_padding=1),
    "stride_above_input": Case("conv2d", (2, 3, 4, 3), (4, 3, 3, 3), stride=7),
    "stride_above_input_1d": Case("conv1d", (2, 3, 4), (4, 3, 2), stride=9),
    "kernel_as_large_as_padded_input": Case("conv2d", (2, 3, 3, 4), (4, 3, 5, 6), padding=1),
    "windows_of_padding_alone": Case("conv2d", (1, 3, 2, 2), (4, 3, 2, 2), padding=3, stride=2),
    "groups_are_channels": Case("conv2d", (2, 6, 4, 4), (6, 1, 3, 3), groups=6, padding=1),
    "groups_are_channels_multiplier": Case("conv2d", (2, 4, 4, 4), (12, 1, 3, 3), groups=4, padding=1, stride=2),
    "groups_are_channels_transposed": Case("conv_transpose2d", (2, 6, 3, 3), (6, 1, 3, 3), groups=6, stride=2),
    "groups_of_one_output": Case("conv2d", (1, 6, 4, 4), (2, 3, 3, 3), groups=2),
    "batch_0": Case("conv2d", (0, 3, 5, 5), (4, 3, 3, 3), stride=2),
    "batch_0_transposed": Case("conv_transpose3d", (0, 3, 2, 2, 2), (3, 4, 3, 3, 3), stride=2),
    "patches": Case("conv2d", (2, 3, 6, 8), (5, 3, 2, 4), stride=(2, 4)),
    "patches_rest": Case("conv2d", (2, 3, 7, 9), (5, 3, 2, 2), stride=2),  # a row and a column that no window covers
    "patches_3d": Case("conv3d", (1, 3, 4, 5, 6), (8, 3, 2, 2, 2), stride=2, dtype="bfloat16"),
    "patches_1d": Case("conv1d", (2, 3, 13), (4, 3, 4), stride=4, dtype="float16"),
    "patches_transposed": Case("conv_transpose2d", (2, 4, 3, 2), (4, 3, 2, 2), stride=2, dtype="float16"),
    "patches_grouped": Case("conv2d", (2, 6, 5, 5), (4, 3, 2, 2), stride=2, groups=2),
    "channels_not_of_8": Case("conv2d", (1, 13, 4, 4), (11, 13, 3, 3), padding=1, dtype="float16", x="channels_last"),
    "channels_40": Case("conv2d", (1, 40, 3, 3), (24, 40, 3, 3), padding=1, dtype="float16", x="channels_last"),
    "channels_72_bfloat16": Case("conv1d", (1, 72, 6), (8, 72, 3), padding=1, dtype="bfloat16"),
    "channels_of_a_photograph": Case("conv2d", (1, 3, 9, 9), (16, 3, 7, 7), stride=2, padding=3, dtype="float16"),
    "taps_32": Case("conv2d", (1, 2, 5, 9), (3, 2, 4, 8), padding=(1, 3)),  # as many as a word of bits holds
    "taps_33": Case("conv2d", (1, 2, 4, 12), (3, 2, 3, 11), padding=(1, 4)),  # and one more
    "taps_33_strided": Case("conv1d", (1, 2, 40), (3, 2, 33), padding=7, stride=2),
    "taps_64": Case("conv3d", (1, 2, 4, 3, 4), (2, 2, 4, 4, 4), padding=1, dtype="float16"),
    "one_output_channel": Case("conv2d", (2, 4, 4, 4), (1, 4, 3, 3)),
    "one_channel": Case("conv1d", (1, 1, 5), (1, 1, 2)),
    "one_element": Case("conv3d", (1, 1, 1, 1, 1), (1, 1, 1, 1, 1)),
    "many_groups_odd": Case("conv1d", (1, 21, 6), (14, 3, 3), groups=7, padding=1),
    "dilation_above_input": Case("conv2d", (1, 3, 4, 3), (4, 3, 3, 3), dilation=5, padding=5),  # centre tap alone
    "dilation_above_input_transposed": Case("conv_transpose1d", (1, 3, 2), (3, 4, 3), dilation=5, padding=4),
    "dilation_and_stride_share_a_factor": Case("conv2d", (1, 3, 9, 9), (4, 3, 3, 3), dilation=2, stride=4, padding=2),
    "dilation_equals_stride": Case("conv2d", (1, 3, 8, 8), (4, 3, 3, 3), dilation=2, stride=2, padding=1),
    "same_even_kernel": Case("conv2d", (2, 3, 5, 4), (4, 3, 4, 2), padding="same"),
    "same_even_dilated": Case("conv1d", (2, 3, 7), (4, 3, 2), padding="same", dilation=3),
    "same_even_3d": Case("conv3d", (1, 2, 3, 4, 3), (3, 2, 2, 3, 4), padding="same", dtype="float16"),
    "same_kernel_above_input": Case("conv1d", (1, 2, 2), (3, 2, 6), padding="same"),
    "output_padding_by_dilation": Case("conv_transpose2d", (2, 3, 3, 2), (3, 4, 3, 2), dilation=(4, 3), output_padding=(3, 2)),
    "output_padding_by_stride": Case("conv_transpose1d", (2, 3, 3), (3, 4, 3), stride=4, output_padding=3, padding=1),
    "output_padding_beyond_taps": Case("conv_transpose1d", (1, 2, 2), (2, 3, 1), stride=5, output_padding=4),
    "transposed_all_cropped_but_one": Case("conv_transpose2d", (1, 3, 1, 1), (3, 4, 3, 3), padding=1),
    "all_expanded": Case("conv2d", (2, 4, 4, 4), (6, 4, 3, 3), x="expanded", w="expanded", g="expanded"),
    "large_bias_only": Case("conv1d", (3, 2, 1), (300, 2, 1)),  # more output channels than any tile is wide
    "many_pixels": Case("conv1d", (1, 2, 700), (3, 2, 3), padding=1),  # more rows than any tile is high
}
