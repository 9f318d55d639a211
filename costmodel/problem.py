"""The description of a convolution: sizes, the GEMM each pass is, and the stride phases of the input gradient.

Everything else (launch, fake tensors, plans, formulas) asks this module; no other module computes convolution geometry.
The size properties use only `+ - * //` and tuples, so the same lines run on `int`, `torch.SymInt` and sympy symbols.

A transposed convolution is the input gradient of a forward convolution and is described by that forward problem;
`output_padding` is then no field of its own: it lowers the high padding, which may become negative (a crop).
Shape relations: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning" (arXiv 1603.07285).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from costmodel import shapes
from costmodel.algebra import Size, ceil_div, gcd, maximum, minimum, product, summation, where_less
from costmodel.phases import AxisPhase, Phase, axis_phases
from costmodel.shapes import padding_pairs as padding_pairs

#: A longer stride that steps beyond its axis is computed as 1 (`ConvProblem.with_steps_in_reach`). Existing layers stay below
#: it.
LONGEST_STRIDE = 2**16


class Pass(StrEnum):
    """The three primitives: y = fprop(x, w), dx = dgrad(dy, w), dw = wgrad(dy, x), as cuDNN names them (Chetlur et al. 2014,
    arXiv:1410.0759). `Pass(name)` raises ValueError for other names.

    >>> Pass("dgrad") is Pass.DGRAD, str(Pass.WGRAD)
    (True, 'wgrad')
    """

    FPROP = "fprop"
    DGRAD = "dgrad"
    WGRAD = "wgrad"

    @classmethod
    def _missing_(cls, value: object) -> Pass:
        raise ValueError(f"a pass is fprop, dgrad or wgrad, got {value!r}")


class Gemm(NamedTuple):
    """The matrix product that a pass is, per group: [m, k] x [k, n], `batch` of them, in elements. `ConvProblem.gemm` makes it;
    the class raises nothing. Source: the implicit matrix product of Chetlur et al. 2014 (arXiv:1410.0759).

    >>> ConvProblem.conv((2, 8, 9, 9), (16, 8, 3, 3), (1, 1), (0, 0), (1, 1)).gemm(Pass.FPROP)
    Gemm(m=98, n=16, k=72, batch=1)
    """

    m: Size
    n: Size
    k: Size
    batch: Size


@dataclass(frozen=True)
class ConvProblem:
    """A forward convolution of x [batch, in_channels, *input_size] with w [out_channels, in_channels // groups, *kernel_size].

    `padding` holds (low, high) per axis; both may be negative (a crop). All tuples have one entry per spatial axis. Sizes
    may be sympy symbols. `conv` and `conv_transpose` take torch's arguments and raise ValueError for a layer that cannot be.
    `padding_mode` says per axis what stands in the padding (`shapes.MODES`); it is empty where that is zeros on every axis.
    The class itself checks nothing and raises nothing. The geometry is that of `torch.nn.functional.conv2d`; Dumoulin and Visin
    (arXiv:1603.07285) draw it.

    >>> problem = ConvProblem.conv((2, 8, 9, 9), (16, 8, 3, 3), (1, 1), (1, 1), (1, 1))
    >>> problem.output_shape, problem.macs, problem.useful_macs
    ((2, 16, 9, 9), 186624, 160000)
    """

    batch: Size
    in_channels: Size
    out_channels: Size
    groups: Size
    input_size: tuple[Size, ...]
    kernel_size: tuple[Size, ...]
    stride: tuple[Size, ...]
    padding: tuple[tuple[Size, Size], ...]
    dilation: tuple[Size, ...]
    padding_mode: tuple[str, ...] = ()

    # ---- construction -------------------------------------------------------------------------------------------

    @classmethod
    def conv(
        cls,
        input_shape: Sequence[Size],
        weight_shape: Sequence[Size],
        stride: Sequence[Size],
        padding: Sequence[Size] | Sequence[tuple[Size, Size]] | str,
        dilation: Sequence[Size],
        groups: Size = 1,
        *,
        padding_mode: str | Sequence[str] = "zeros",
        checked: bool = True,
    ) -> ConvProblem:
        """The problem of torch's conv: input [N, C, *size], weight [K, C / groups, *kernel]; padding as in `padding_pairs`.

        padding_mode: "zeros", "reflect", "replicate" or "circular", for all axes or one of them per axis. An axis without
        padding has no mode.

        Raises ShapeError, a ValueError, for a wrong number of sizes, and unless `checked` is False for channels that do not
        go with the groups, for a stride or dilation below 1, a kernel larger than the padded input, or more padding than a
        mode has pixels for. Where sizes are sympy symbols only their number is checked.

        >>> ConvProblem.conv((1, 3, 224, 224), (64, 3, 7, 7), (2, 2), (3, 3), (1, 1)).output_shape
        (1, 64, 112, 112)
        """
        shapes.check_ranks(input_shape, weight_shape, stride=stride, padding=padding, dilation=dilation)
        kernel = tuple(weight_shape[2:])
        pads = padding_pairs(padding, kernel, dilation)
        problem = cls(
            batch=input_shape[0],
            in_channels=input_shape[1],
            out_channels=weight_shape[0],
            groups=groups,
            input_size=tuple(input_shape[2:]),
            kernel_size=kernel,
            stride=tuple(stride),
            padding=pads,
            dilation=tuple(dilation),
            padding_mode=shapes.modes_of(padding_mode, pads),
        )
        if checked and shapes.known(*input_shape, *weight_shape, *stride, *dilation, groups, *problem.padded_size):
            shapes.check_window(groups, stride, dilation)
            shapes.check_channels(input_shape, weight_shape, groups)
            shapes.check_modes(problem.input_size, problem.padding, problem.padding_mode)
            shapes.check_kernel(problem.padded_size, problem.effective_kernel)
        return problem

    @classmethod
    def conv_transpose(
        cls,
        input_shape: Sequence[Size],
        weight_shape: Sequence[Size],
        stride: Sequence[Size],
        padding: Sequence[Size],
        output_padding: Sequence[Size],
        groups: Size = 1,
        dilation: Sequence[Size] | None = None,
        *,
        checked: bool = True,
    ) -> ConvProblem:
        """The forward problem whose dgrad is torch's conv_transpose: input [N, K, *out], weight [K, C / groups, *kernel].

        The result of the transposed convolution has this problem's `input_shape`. Raises ShapeError as `conv` does, and for a
        result without a pixel.
        """
        kernel = tuple(weight_shape[2:])
        dilation = tuple(dilation) if dilation is not None else (1,) * len(kernel)
        window = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
        shapes.check_ranks(input_shape, weight_shape, **window)
        known = checked and shapes.known(*input_shape, *weight_shape, *stride, *padding, *output_padding, *dilation, groups)
        if known:
            shapes.check_window(groups, stride, dilation)
            shapes.check_transposed_channels(input_shape, weight_shape, groups)
        low_high = tuple((p, p - extra) for p, extra in zip(padding, output_padding, strict=True))
        sizes = tuple(
            (o - 1) * s + d * (k - 1) + 1 - lo - hi
            for o, s, d, k, (lo, hi) in zip(input_shape[2:], stride, dilation, kernel, low_high, strict=True)
        )
        if known:
            shapes.check_result(
                sizes, input=list(input_shape), weight=list(weight_shape), **{k: tuple(v) for k, v in window.items()}
            )
        return cls(
            batch=input_shape[0],
            in_channels=weight_shape[1] * groups,
            out_channels=input_shape[1],
            groups=groups,
            input_size=sizes,
            kernel_size=kernel,
            stride=tuple(stride),
            padding=low_high,
            dilation=dilation,
        )

    # ---- sizes (int, SymInt or sympy) -----------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        return len(self.kernel_size)

    @property
    def channels_per_group(self) -> Size:
        """Input channels that one output channel sees: C / groups."""
        return self.in_channels // self.groups

    @property
    def filters_per_group(self) -> Size:
        """Output channels of one group: K / groups."""
        return self.out_channels // self.groups

    @property
    def effective_kernel(self) -> tuple[Size, ...]:
        """Extent of the dilated kernel: dilation * (kernel - 1) + 1."""
        return tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True))

    @property
    def farthest(self) -> int:
        """Most pixels that a window spans, a stride steps over or padding adds: how far coordinates go beyond the sizes."""
        return max(*self.effective_kernel, *self.stride, *(abs(p) for pair in self.padding for p in pair), 1)

    @property
    def padded_size(self) -> tuple[Size, ...]:
        return tuple(size + lo + hi for size, (lo, hi) in zip(self.input_size, self.padding, strict=True))

    @property
    def modes(self) -> tuple[str, ...]:
        """What stands in the padding of each axis, "zeros" included."""
        return self.padding_mode or ("zeros",) * self.rank

    @property
    def written_out(self) -> ConvProblem:
        """The convolution of the input with its padding written out, along every axis whose padding is not zeros; the problem
        itself where there is no such axis."""
        if not self.padding_mode:
            return self
        axes = [*zip(self.input_size, self.padded_size, self.padding, self.padding_mode, strict=True)]
        return replace(
            self,
            input_size=tuple(size if mode == "zeros" else padded for size, padded, _, mode in axes),
            padding=tuple(pair if mode == "zeros" else (0, 0) for *_, pair, mode in axes),
            padding_mode=(),
        )

    @property
    def output_size(self) -> tuple[Size, ...]:
        """floor((input + low + high - effective_kernel) / stride) + 1 per axis."""
        return tuple(
            (size - extent) // s + 1
            for size, extent, s in zip(self.padded_size, self.effective_kernel, self.stride, strict=True)
        )

    @property
    def input_shape(self) -> tuple[Size, ...]:
        return (self.batch, self.in_channels, *self.input_size)

    @property
    def weight_shape(self) -> tuple[Size, ...]:
        return (self.out_channels, self.channels_per_group, *self.kernel_size)

    @property
    def output_shape(self) -> tuple[Size, ...]:
        return (self.batch, self.out_channels, *self.output_size)

    @property
    def taps(self) -> Size:
        return product(self.kernel_size)

    @property
    def macs(self) -> Size:
        """Dense multiply-adds, padding included, the same for every pass: N * K * (C / g) * prod(kernel) * prod(out)."""
        return product((self.batch, self.out_channels, self.channels_per_group, self.taps, *self.output_size))

    @property
    def flops(self) -> Size:
        """Dense floating-point operations: 2 * MAC. Bias is not counted."""
        return 2 * self.macs

    @property
    def valid_pairs(self) -> tuple[Size, ...]:
        """Per axis, the (output coordinate, tap) pairs that meet the input and not zeros in its padding. No pass needs any
        other."""
        if self.padding_mode:
            return self.written_out.valid_pairs

        def count(axis: int) -> Size:
            return summation(self.kernel_size[axis], lambda tap: self._reached(axis, tap, self.output_size[axis]))

        return tuple(count(axis) for axis in range(self.rank))

    @property
    def touched_size(self) -> tuple[Size, ...]:
        """Per axis, the distinct input coordinates that any window covers: the input size where windows overlap and cover.

        Tap j reads input i * stride + j * dilation - low. Tap j + stride / gcd(stride, dilation) reads the same coordinates
        from `dilation / gcd` outputs earlier on, so each tap but the last of its kind is counted over that many outputs only.
        A pixel that a window meets only as a copy in the padding counts as covered too; the sum is at most the input size.
        """
        if self.padding_mode:
            return tuple(map(minimum, self.input_size, self.written_out.touched_size))

        def count(axis: int) -> Size:
            s, d, out = self.stride[axis], self.dilation[axis], self.output_size[axis]
            shared = gcd(s, d)

            def fresh(tap: Size) -> Size:
                return where_less(tap + s // shared, self.kernel_size[axis], minimum(out, d // shared), out)

            return summation(self.kernel_size[axis], lambda tap: self._reached(axis, tap, fresh(tap)))

        return tuple(count(axis) for axis in range(self.rank))

    def _reached(self, axis: int, tap: Size, count: Size) -> Size:
        """The number of output coordinates below `count` whose tap number `tap` meets input, and not zeros in the padding."""
        s, offset = self.stride[axis], self.padding[axis][0] - tap * self.dilation[axis]
        last = minimum(count - 1, (self.input_size[axis] - 1 + offset) // s)
        return maximum(0, last - maximum(0, ceil_div(offset, s)) + 1)

    @property
    def useful_macs(self) -> Size:
        """Multiply-adds that meet input, not zeros in the padding, of any pass: N * K * (C / g) * prod(valid pairs)."""
        return product((self.batch, self.out_channels, self.channels_per_group, *self.valid_pairs))

    def bytes(self, itemsize: Size, which: Pass = Pass.FPROP) -> Size:
        """Compulsory traffic of a pass in bytes: each tensor moves once. Of an x that is read only the pixels that windows
        touch count."""
        moved = self.touched_size if which != Pass.DGRAD else self.input_size
        x = product((self.batch, self.in_channels, *moved))
        return itemsize * (x + product(self.weight_shape) + product(self.output_shape))

    def gemm(self, which: Pass) -> Gemm:
        """The matrix product of a pass, per group. dgrad's k counts every tap; its phases share them out."""
        c, k = self.channels_per_group, self.filters_per_group
        pixels_in, pixels_out = self.batch * product(self.input_size), self.batch * product(self.output_size)
        if which == Pass.FPROP:
            return Gemm(pixels_out, k, c * self.taps, self.groups)
        if which == Pass.DGRAD:
            return Gemm(pixels_in, c, k * self.taps, self.groups)
        return Gemm(k, c * self.taps, pixels_out, self.groups)

    # ---- structure (plain int kernel, stride, dilation, padding) --------------------------------------------------

    @property
    def is_patch(self) -> bool:
        """Windows tile the input without overlap or padding, so every pass is one plain GEMM (1x1 stride 1 included)."""
        return not self.padding_mode and all(
            k == s and (d == 1 or k == 1) and lo == 0 and hi <= 0
            for k, s, d, (lo, hi) in zip(self.kernel_size, self.stride, self.dilation, self.padding, strict=True)
        )

    @property
    def needs_bounds(self) -> bool:
        """Whether some tap of fprop can fall on zeros outside the input."""
        written = self.written_out
        return any(
            lo > 0 or (hi > 0 and (out - 1) * s + extent - lo > size)
            for (lo, hi), out, s, extent, size in zip(
                written.padding, self.output_size, self.stride, self.effective_kernel, written.input_size, strict=True
            )
        )

    def with_unit_axes(self, rank: int = 3) -> ConvProblem:
        """The same problem with leading axes of size 1, up to `rank` spatial axes."""
        lead = rank - self.rank
        return replace(
            self,
            input_size=(1,) * lead + self.input_size,
            kernel_size=(1,) * lead + self.kernel_size,
            stride=(1,) * lead + self.stride,
            padding=((0, 0),) * lead + self.padding,
            dilation=(1,) * lead + self.dilation,
            padding_mode=("zeros",) * lead + self.padding_mode if self.padding_mode else (),
        )

    def with_steps_in_reach(self) -> ConvProblem:
        """The same convolution, with every stride beyond `LONGEST_STRIDE` that is longer than its padded axis replaced by 1.

        Such an axis has one output, so its step is never taken; what lies behind the only window is cropped. dgrad would
        otherwise go through as many phases as the stride is long.
        """
        if all(s <= LONGEST_STRIDE for s in self.stride):
            return self
        axes = [
            (1, (lo, hi - (n - extent))) if s > max(n, LONGEST_STRIDE) else (s, (lo, hi))
            for s, (lo, hi), n, extent in zip(self.stride, self.padding, self.padded_size, self.effective_kernel, strict=True)
        ]
        return replace(self, stride=tuple(s for s, _ in axes), padding=tuple(pair for _, pair in axes))

    def axis_phases(self, axis: int) -> tuple[AxisPhase, ...]:
        """The `stride` residues of one input axis, most taps first."""
        size, kernel, low = self.input_size[axis], self.kernel_size[axis], self.padding[axis][0]
        return axis_phases(size, kernel, self.stride[axis], self.dilation[axis], low)

    def phases(self) -> tuple[Phase, ...]:
        """dgrad as stride-1 convolutions over dy that together write every input pixel once, phases without a tap included."""
        return tuple(Phase(axes) for axes in itertools.product(*(self.axis_phases(i) for i in range(self.rank))))

    # ---- words --------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        def by(values: Sequence[Size]) -> str:
            return "x".join(str(v) for v in values)

        text = f"conv{self.rank}d n{self.batch} c{self.in_channels} {by(self.input_size)} -> {self.out_channels}"
        text += f" k{by(self.kernel_size)}"
        if any(s != 1 for s in self.stride):
            text += f" s{by(self.stride)}"
        if any(p != (0, 0) for p in self.padding):
            text += " p" + ",".join(str(lo) if lo == hi else f"{lo}:{hi}" for lo, hi in self.padding)
        if self.padding_mode:
            text += " " + shapes.mode_words(self.padding_mode)
        if any(d != 1 for d in self.dilation):
            text += f" d{by(self.dilation)}"
        return text + (f" g{self.groups}" if self.groups != 1 else "")
