"""Recasts a convolution as another one that a kernel serves better: groups laid together, filter columns as channels."""

from __future__ import annotations

from dataclasses import replace

from costmodel.algebra import product
from costmodel.problem import ConvProblem, Pass

#: Channels that columns are padded to before they are folded: 8 and 16 bytes of a 16-bit type.
FOLDED_WIDTHS = (4, 8)


def merge_groups(problem: ConvProblem, merge: int) -> ConvProblem:
    """The problem in which `merge` neighbouring groups are one group, with block-diagonal weights."""
    return problem if merge == 1 else replace(problem, groups=problem.groups // merge)


def folds(problem: ConvProblem, which: Pass) -> bool:
    """Whether `fold_columns` serves a pass: x has a stem's few channels, and a filter row reads neighbouring columns. It does
    not serve dgrad, whose result has the few channels."""
    few = problem.groups == 1 and problem.in_channels <= FOLDED_WIDTHS[-1]
    return bool(which != Pass.DGRAD and few and problem.kernel_size[-1] > 1 and problem.dilation[-1] == 1 and problem.macs)


def fold_width(problem: ConvProblem) -> int:
    """The channels of a padded pixel."""
    return next(width for width in FOLDED_WIDTHS if problem.in_channels <= width)


def fold_row(problem: ConvProblem) -> int:
    """Pixels of a padded row, from the first that a window meets to the last."""
    return (problem.output_size[-1] - 1) * problem.stride[-1] + problem.kernel_size[-1]


def fold_columns(problem: ConvProblem) -> ConvProblem:
    """The problem whose input channels are (column of the filter, channel): x[n, c, .., w + s] as x'[n, (s, c), .., w].

    A channels-last row of pixels is that tensor already, with strides that let windows overlap. A copy only pads the channels
    and writes out the padding of each row. A filter row is then one step of the reduction.
    """
    width = problem.kernel_size[-1] * fold_width(problem)
    modes = (*problem.modes[:-1], "zeros")
    return replace(
        problem,
        in_channels=width,
        input_size=(*problem.input_size[:-1], (problem.output_size[-1] - 1) * problem.stride[-1] + 1),
        kernel_size=(*problem.kernel_size[:-1], 1),
        padding=(*problem.padding[:-1], (0, 0)),
        padding_mode=modes if any(mode != "zeros" for mode in modes) else (),
    )


def folded_input(problem: ConvProblem) -> tuple[int, ...]:
    """The padded copy of x: (batch, *sizes, row, channels)."""
    return (problem.batch, *problem.input_size[:-1], fold_row(problem), fold_width(problem))


def fold_elements(problem: ConvProblem, which: Pass) -> tuple[int, int]:
    """The pair (elements that the kernel moves at least, elements that the copies before and after it move)."""
    x, padded = product(problem.input_shape), product(folded_input(problem))
    w, folded = product(problem.weight_shape), product(fold_columns(problem).weight_shape)
    weights = folded + w if which == Pass.WGRAD else w + 2 * folded  # a copy clears the padding first
    return padded + folded + product(problem.output_shape), x + 2 * padded + weights
