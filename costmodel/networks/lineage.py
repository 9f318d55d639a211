"""Follows the axes of a network's input through its operators, and with them the receptive field of every tensor.

A tensor's layout lists the factors of each dimension, so an axis survives reshapes that merge dimensions, permutations, and
matrix products over other axes. An axis that an operator reduces is seen whole. An axis that is lost to an operator that is not
followed here counts as seen whole, which is an upper bound. Normalisation counts as elementwise: its statistics are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import torch

from costmodel.networks import operators, receptive
from costmodel.networks.convolutions import Convolution
from costmodel.networks.receptive import Field
from costmodel.video import Chunk

Factor = tuple[int, int | None]  # size, axis of the network's input
Dimension = tuple[Factor, ...]
Step = Callable[[Field], Field]


@dataclass(frozen=True)
class Lineage:
    """The layout of a tensor, and what the tensor sees of each axis of the network's input."""

    layout: tuple[Dimension, ...]
    fields: tuple[Field, ...]

    def axes(self, dimension: int) -> list[int]:
        return [axis for _, axis in self.layout[dimension] if axis is not None]

    def only(self, layout: Sequence[Dimension], exact: bool = True) -> Lineage:
        """The tensor with another layout. Axes that are no longer in it are seen whole."""
        gone = {axis for dimension in self.layout for _, axis in dimension}
        gone -= {axis for dimension in layout for _, axis in dimension}
        fields = [receptive.everything(f, exact) if axis in gone else f for axis, f in enumerate(self.fields)]
        return Lineage(tuple(layout), tuple(fields))

    def stepped(self, dimension: int, size: int, step: Step) -> Lineage:
        """The tensor after `step` along a dimension. The step is followed only where the dimension is a single axis."""
        if len(self.layout[dimension]) > 1:
            layout = [*self.layout]
            layout[dimension] = plain(size)
            return self.only(layout, exact=False)
        fields = [*self.fields]
        for axis in self.axes(dimension):
            fields[axis] = step(fields[axis])
        layout = [*self.layout]
        layout[dimension] = tuple((size, axis) for _, axis in self.layout[dimension]) or plain(size)
        return Lineage(tuple(layout), tuple(fields))


def plain(size: int) -> Dimension:
    return ((size, None),) if size != 1 else ()


def source(tensor: torch.Tensor) -> Lineage:
    """The network's input: every dimension is an axis of its own."""
    return Lineage(
        tuple(((size, axis),) for axis, size in enumerate(tensor.shape)),
        tuple(Field(size) for size in tensor.shape),
    )


_BESIDES = frozenset(
    "clone _to_copy copy detach alias lift_fresh masked_fill where native_dropout _softmax _log_softmax native_layer_norm "
    "native_group_norm _fused_rms_norm tril triu".split()
)
_RESAMPLES = ("upsample_", "_upsample_", "grid_sampler")
_LIKE_INPUT = _BESIDES | operators.BATCH_NORM | {n for n in operators.ELEMENTWISE if not n.startswith(_RESAMPLES)}
_REDUCTIONS = frozenset("sum mean amax amin max min prod var std any all argmax argmin var_mean std_mean logsumexp".split())
_REDUCTIONS |= {"norm", "linalg_vector_norm"}
#: Results that do not depend on the values of the arguments.
_FRESH = operators.OVERWRITES - {"copy"} | frozenset(
    "empty_like zeros_like ones_like full_like rand_like randn_like new_empty new_empty_strided new_zeros new_ones "
    "new_full".split()
)
_VIEWS = frozenset("view _unsafe_view reshape _reshape_alias squeeze unsqueeze flatten unflatten".split())
_ATTENTION = "_scaled_dot_product_"


class Tracker:
    """Lineage of every tensor of a run, by identity; the caller keeps the tensors alive."""

    def __init__(self) -> None:
        self.known: dict[int, Lineage] = {}
        self.rank: int | None = (
            None  # spatial rank of the first convolution: so many of the input's last dimensions are spatial
        )

    def start(self, tensor: torch.Tensor) -> None:
        self.known[id(tensor)] = source(tensor)

    def fields(self, tensor: torch.Tensor) -> tuple[Field, ...] | None:
        """The fields along the input's spatial axes; None where the tensor does not depend on the input."""
        lineage = self.known.get(id(tensor))
        if lineage is None:
            return None
        rank = self.rank if self.rank is not None else max(0, len(lineage.fields) - 2)
        return lineage.fields[len(lineage.fields) - rank :]

    def follow(self, func: Any, args: Sequence[Any], out: Any, convolution: Convolution | None) -> bool:
        """Records the lineage of an operator's results. Returns True where branches meet whose fields do not align."""
        results = operators.tensors(out)
        if convolution is not None and self.rank is None:
            self.rank = convolution.problem.rank
        if not results:
            return False
        name = operators.name_of(func)
        if name in _FRESH or not any(id(t) in self.known for t in operators.tensors(args)):
            for result in results:
                self.known.pop(id(result), None)
            return False
        before = all(self._aligned(t) for t in operators.tensors(args))
        for position, result in enumerate(results):
            lineage = self._after(name, args, results, position, convolution)
            if lineage is None or tuple(_size(d) for d in lineage.layout) != tuple(result.shape):
                lineage = self._union(args).only([plain(size) for size in result.shape], exact=False)
            self.known[id(result)] = lineage
        return before and not self._aligned(results[0])

    def _aligned(self, tensor: torch.Tensor) -> bool:
        return all(field.aligned for field in self.fields(tensor) or ())

    def _lineage_of(self, value: Any) -> Lineage | None:
        return self.known.get(id(value)) if isinstance(value, torch.Tensor) else None

    def _union(self, args: Any) -> Lineage:
        """The lineage of everything that the arguments see, in the layout of the first."""
        lineages = [self.known[id(t)] for t in operators.tensors(args) if id(t) in self.known]
        fields = tuple(receptive.merged(axis) for axis in zip(*(f.fields for f in lineages), strict=True))
        return Lineage(lineages[0].layout, fields)

    def _after(
        self,
        name: str,
        args: Sequence[Any],
        results: list[torch.Tensor],
        position: int,
        convolution: Convolution | None,
    ) -> Lineage | None:
        """The lineage of one result; None where the operator is not followed."""
        result = results[position]
        if name == "cat":
            return self._cat(args, result)
        if name in _LIKE_INPUT:
            return self._elementwise(name, args, result) if position == 0 else None
        if name.startswith(_ATTENTION):
            return self._attention(args, result) if position == 0 else None
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            return self._product(args[-2:] if name in ("mm", "bmm") else args[1:3], result)
        x = self._lineage_of(args[0]) if args else None
        if x is None:
            return None
        if convolution is not None:
            if position or not result.numel():
                return None
            return self._joined(self._convolution(x, result, convolution), self._lineage_of(convolution.residual))
        if name in _REDUCTIONS:
            return _reduced(x, args, result)
        if name in _VIEWS:
            return _viewed(x, result)
        if "pool" in name:
            return _pooled(x, name, args, result) if position == 0 else None
        if name.startswith(_RESAMPLES):
            return None if name.startswith("grid") else _upsampled(x, name, args, result)
        return _rearranged(x, name, args, results, position)

    def _joined(self, one: Lineage, other: Lineage | None) -> Lineage:
        """The lineage of a sum of two terms, in the layout of the first."""
        if other is None:
            return one
        fields = tuple(receptive.merged(axis) for axis in zip(one.fields, other.fields, strict=True))
        return Lineage(one.layout, fields)

    def _convolution(self, x: Lineage, result: torch.Tensor, convolution: Convolution) -> Lineage:
        problem = convolution.of_input
        stepped = x.only([x.layout[0], plain(result.shape[1]), *x.layout[2:]])
        if isinstance(convolution.call, Chunk) and convolution.call.upsample > 1:
            scale = Fraction(1, convolution.call.upsample)
            magnify = partial(receptive.resampled, scale=scale, offset=Fraction(0), taps=(0,))
            for dimension, size in ((3, problem.input_size[1]), (4, problem.input_size[2])):
                stepped = stepped.stepped(dimension, size, magnify)
        for axis in range(problem.rank):
            step = partial(receptive.convolved, problem=problem, which=convolution.which, axis=axis)
            stepped = stepped.stepped(axis + 2, result.shape[axis + 2], step)
        return stepped

    def _elementwise(self, name: str, args: Sequence[Any], result: torch.Tensor) -> Lineage:
        operands = [args[1]] if name == "copy" else operators.tensors(args)
        lineages = [self.known[id(t)] for t in operands if id(t) in self.known]
        if not lineages:
            return self._union(args)
        layout = []
        for back in range(len(result.shape), 0, -1):
            dimensions = [f.layout[-back] for f in lineages if len(f.layout) >= back]
            fitting = [d for d in dimensions if _size(d) == result.shape[-back]]
            layout.append(next((d for d in fitting if any(axis is not None for _, axis in d)), plain(result.shape[-back])))
        fields = tuple(receptive.merged(axis) for axis in zip(*(f.fields for f in lineages), strict=True))
        if name in ("_softmax", "_log_softmax"):
            for axis in lineages[0].axes(args[1]):
                fields = (*fields[:axis], receptive.everything(fields[axis]), *fields[axis + 1 :])
        kept = {axis for dimension in layout for _, axis in dimension}
        lost = {axis for f in lineages for d in range(len(f.layout)) for axis in f.axes(d)} - kept
        fields = tuple(receptive.everything(f, exact=False) if axis in lost else f for axis, f in enumerate(fields))
        return Lineage(tuple(layout), fields)

    def _cat(self, args: Sequence[Any], result: torch.Tensor) -> Lineage:
        dimension = (args[1] if len(args) > 1 else 0) % result.dim()
        joined = self._union(args)
        layout = [*joined.layout]
        layout[dimension] = plain(result.shape[dimension])
        return joined.only(layout, exact=False)

    def _product(self, factors: Sequence[Any], result: torch.Tensor) -> Lineage:
        a, b = (self._lineage_of(factor) for factor in factors)
        if a is not None and b is not None:  # each element sees a row of one and a column of the other
            both = self._union(factors)
            return both.only([*both.layout[:-2], *map(plain, result.shape[-2:])], exact=False)
        if a is not None:
            return a.only([*a.layout[:-1], plain(result.shape[-1])])
        assert b is not None
        return b.only([*b.layout[:-2], plain(result.shape[-2]), b.layout[-1]])

    def _attention(self, args: Sequence[Any], result: torch.Tensor) -> Lineage | None:
        query = self._lineage_of(args[0])
        if query is None:
            return None
        joined = self._union(args[:3])
        seen = joined.only([*query.layout[:-2], *map(plain, result.shape[-2:])])
        return Lineage((*query.layout[:-1], plain(result.shape[-1])), seen.fields)


def _size(dimension: Dimension) -> int:
    total = 1
    for size, _ in dimension:
        total *= size
    return total


def _reduced(x: Lineage, args: Sequence[Any], result: torch.Tensor) -> Lineage:
    dims = next((a for a in args[1:] if isinstance(a, (int, list, tuple)) and not isinstance(a, bool)), None)
    chosen = range(len(x.layout)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    gone = {d % len(x.layout) for d in chosen}
    kept = len(result.shape) == len(x.layout)
    return x.only([() if d in gone else dim for d, dim in enumerate(x.layout) if kept or d not in gone])


def _viewed(x: Lineage, result: torch.Tensor) -> Lineage:
    """The lineage after a view: the factors regrouped for the new shape. A factor that would have to be split is lost."""
    factors = [factor for dimension in x.layout for factor in dimension if factor[0] != 1 or factor[1] is not None]
    ones = [factor for factor in factors if factor[0] == 1]
    factors = [factor for factor in factors if factor[0] != 1]
    layout: list[Dimension] = []
    for size in result.shape:
        joined: list[Factor] = []
        while factors and _size(tuple(joined)) < size:
            joined.append(factors.pop(0))
        if _size(tuple(joined)) != size:  # they do not fit: this factor and its neighbours become one factor without an axis
            excess = _size(tuple(joined))
            joined = [*plain(size)]
            if size and excess % size == 0:
                factors.insert(0, (excess // size, None))
        layout.append(tuple(joined))
    kept = x.only(layout, exact=False)
    # axes of size 1 are not among the factors and stay as they are
    fields = [x.fields[axis] if (1, axis) in ones else field for axis, field in enumerate(kept.fields)]
    return Lineage(kept.layout, tuple(fields))


def _numbers(value: Any, rank: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * (rank // len(values))


def _pooled(x: Lineage, name: str, args: Sequence[Any], result: torch.Tensor) -> Lineage | None:
    rank = next((int(letter) for letter in name if letter.isdigit()), 0)
    first = len(x.layout) - rank
    stepped = x
    for axis in range(rank):
        old, new = _size(x.layout[first + axis]), result.shape[first + axis]
        step: Step = partial(receptive.adaptive, size=old, result=new)
        if "adaptive" not in name:
            kernel, padding = _numbers(args[1], rank), _numbers(args[3] if len(args) > 3 else 0, rank)
            stride = _numbers(args[2], rank) if len(args) > 2 and args[2] else kernel
            dilation = _numbers(args[4], rank) if name.startswith("max") and len(args) > 4 else [1] * rank
            step = partial(
                receptive.windowed, kernel=kernel[axis], stride=stride[axis], low=padding[axis], dilation=dilation[axis]
            )
        stepped = stepped.stepped(first + axis, new, step)
    return stepped


def _upsampled(x: Lineage, name: str, args: Sequence[Any], result: torch.Tensor) -> Lineage:
    """Interpolation, by the ratio of the sizes. Where torch rounds a size, the ratio stands for the scale factor."""
    stepped = x
    corners = "nearest" not in name and any(value is True for value in args)
    for axis in range(2, len(x.layout)):
        old, new = _size(x.layout[axis]), result.shape[axis]
        scale, offset = Fraction(old, new), Fraction(0)
        taps: tuple[int, ...] = (0,)
        if "exact" in name:
            offset = scale / 2
        elif "nearest" not in name:
            taps = (-1, 0, 1, 2) if "cubic" in name else (0, 1)
            scale = Fraction(old - 1, max(1, new - 1)) if corners else scale
            offset = Fraction(0) if corners else scale / 2 - Fraction(1, 2)
        if scale == 0:
            continue

        step = partial(receptive.resampled, scale=scale, offset=offset, taps=taps)
        stepped = stepped.stepped(axis, new, step)
    return stepped


def _rearranged(x: Lineage, name: str, args: Sequence[Any], results: list[torch.Tensor], position: int) -> Lineage | None:
    """Permutations, slices, splits, padding, broadcasting."""
    result, rank = results[position], len(x.layout)
    if name in ("permute", "transpose", "t"):
        order = list(range(rank))
        if name == "permute":
            order = [d % rank for d in args[1]]
        else:
            i, j = (args[1] % rank, args[2] % rank) if name == "transpose" else (0, rank - 1)
            order[i], order[j] = order[j], order[i]
        return Lineage(tuple(x.layout[d] for d in order), x.fields)
    if name == "slice":
        dimension = (args[1] if len(args) > 1 else 0) % rank
        size = _size(x.layout[dimension])
        start = (args[2] if len(args) > 2 else None) or 0
        start = min(max(0, start + size if start < 0 else start), size)
        step = args[4] if len(args) > 4 else 1
        new = result.shape[dimension]
        if new == size:
            return x
        return x.stepped(dimension, new, partial(receptive.windowed, kernel=1, stride=step, low=-start))
    if name in ("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes"):
        dimension = (args[2] if len(args) > 2 else 0) % rank
        start = sum(part.shape[dimension] for part in results[:position])
        return x.stepped(dimension, result.shape[dimension], partial(receptive.windowed, kernel=1, stride=1, low=-start))
    if name == "constant_pad_nd" or name.startswith(("reflection_pad", "replication_pad")):
        stepped = x
        for back, low in enumerate(args[1][::2], start=1):
            if args[1][2 * back - 2] or args[1][2 * back - 1]:
                step = partial(receptive.windowed, kernel=1, stride=1, low=low)
                stepped = stepped.stepped(rank - back, result.shape[-back], step)
        return stepped
    if name == "expand":
        lead = len(result.shape) - rank
        sizes = [None] * lead + [_size(d) for d in x.layout]
        layout = [x.layout[d - lead] if sizes[d] == size else plain(size) for d, size in enumerate(result.shape)]
        return x.only(layout)
    if name in ("pixel_shuffle", "pixel_unshuffle"):
        factor = args[1]
        outputs, inputs = (factor, 1) if name == "pixel_shuffle" else (1, factor)
        stepped = x.only([*x.layout[:-3], plain(result.shape[-3]), *x.layout[-2:]])
        for dimension in (rank - 2, rank - 1):
            stepped = stepped.stepped(
                dimension,
                result.shape[dimension],
                lambda field: receptive.pull(
                    field, outputs, inputs, lambda i: range(i * inputs // outputs, i * inputs // outputs + inputs)
                ),
            )
        return stepped
    return None
