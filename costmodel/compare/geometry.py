"""The convolution that a traced operator computed, from the shapes and numbers that the profiler recorded."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from costmodel.problem import ConvProblem, Pass

#: The positions of (x, w, stride, padding, dilation, groups, transposed, output padding) among an operator's arguments; None
#: where it has no such argument.
_FORWARD = {
    "conv": (0, 1, 3, 4, 5, 6, None, None),
    "conv_transpose": (0, 1, 3, 4, 7, 6, True, 5),
    "convolution": (0, 1, 3, 4, 5, 8, 6, 7),
    "_convolution": (0, 1, 3, 4, 5, 8, 6, 7),
    "cudnn_convolution": (0, 1, 3, 2, 4, 5, None, None),
    "cudnn_convolution_transpose": (0, 1, 4, 2, 5, 6, True, 3),
    "cudnn_convolution_relu": (0, 1, 3, 4, 5, 6, None, None),
    "_conv_depthwise2d": (0, 1, 4, 5, 6, "depthwise", None, None),
    "conv_depthwise3d": (0, 1, 4, 5, 6, "depthwise", None, None),
}
_BACKWARD = {"convolution_backward": (1, 2, 4, 5, 6, 9, 7, 8)}
#: Operators of older traces, with the positions of x and w. These traces record no numbers.
_OLD_BACKWARD = {"cudnn_convolution_backward": (0, 2), "thnn_conv2d_backward": (1, 2), "convolution_backward": (1, 2)}
DTYPES = {
    "float": "float32", "double": "float64", "c10::Half": "float16", "c10::BFloat16": "bfloat16", "half": "float16",
    "at::Half": "float16",
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """What an operator says about its convolution. `problem` is None where no stride and padding were recorded. `x` and `w` are
    shapes."""

    backward: bool
    x: tuple[int, ...]
    w: tuple[int, ...]
    dtype: str | None
    layout: str | None
    problem: ConvProblem | None
    transposed: bool
    passes: tuple[Pass, ...]


def base(operator: str) -> str:
    """ "aten::conv2d" as "conv", "aten::cudnn_convolution" as it is."""
    name = operator.removeprefix("aten::").rstrip("_")
    for kind in ("conv_transpose", "conv"):
        if name in {f"{kind}{rank}d" for rank in (1, 2, 3)}:
            return kind
    return name


def is_convolution(operator: str) -> bool:
    """Whether an operator is a convolution or its gradient; autograd's nodes are neither."""
    name = base(operator)
    known = {*_FORWARD, *_BACKWARD, *_OLD_BACKWARD}
    return operator.startswith("aten::") and (name in known or name.startswith(("cudnn_convolution", "slow_conv", "thnn_conv")))


def read(
    operator: str, dims: Sequence[Any], strides: Sequence[Any], types: Sequence[Any], concrete: Sequence[Any]
) -> Call | None:
    """The call, as far as it was recorded; None where no shapes were recorded."""
    name = base(operator)
    backward = name in _BACKWARD or name in _OLD_BACKWARD
    places = (_BACKWARD if backward else _FORWARD).get(name)
    at_x, at_w = (places[0], places[1]) if places else _OLD_BACKWARD.get(name, (None, None))
    if at_x is None or at_w is None:
        return None
    x, w = _shape(dims, int(at_x)), _shape(dims, int(at_w))
    if x is None or w is None or len(w) < 3 or len(x) not in (len(w), len(w) - 1):
        return None
    x = x if len(x) == len(w) else (1, *x)
    dtype = DTYPES.get(str(types[int(at_x)])) if len(types) > int(at_x) else None
    layout = _layout(_shape(strides, int(at_x)), x)
    problem, transposed = _problem(places, x, w, concrete) if places and concrete else (None, False)
    own, other = (Pass.DGRAD, Pass.FPROP) if transposed else (Pass.FPROP, Pass.DGRAD)
    passes: tuple[Pass, ...] = (own,)
    if backward:
        mask = _literal(concrete, 10) if len(concrete) > 10 else None
        requested = mask if isinstance(mask, list) else [True, True]
        passes = tuple(which for which, wanted in zip((other, Pass.WGRAD), requested, strict=False) if wanted)
    return Call(backward, x, w, dtype, layout, problem, transposed, passes)


def _problem(
    places: Sequence[Any], x: Sequence[int], w: Sequence[int], concrete: Sequence[Any]
) -> tuple[ConvProblem | None, bool]:
    _, _, *rest = places
    stride, padding, dilation = (_literal(concrete, at) for at in rest[:3])
    groups = x[1] if rest[3] == "depthwise" else _literal(concrete, rest[3])
    transposed = rest[4] if isinstance(rest[4], bool) else bool(_literal(concrete, rest[4])) if rest[4] is not None else False
    extra = _literal(concrete, rest[5]) if rest[5] is not None else [0]
    rank = len(w) - 2
    if not all(isinstance(value, list) for value in (stride, dilation)) or not isinstance(groups, int) or padding is None:
        return None, transposed
    wide = [tuple(v) * (rank // len(v)) if isinstance(v, list) and v else v for v in (stride, padding, dilation, extra)]
    try:
        if transposed:
            return ConvProblem.conv_transpose(x, w, wide[0], wide[1], wide[3], groups, wide[2]), True
        return ConvProblem.conv(x, w, wide[0], wide[1], wide[2], groups), False
    except (TypeError, ValueError):
        return None, transposed


def _literal(values: Sequence[Any], at: Any) -> Any:
    """The number, list or word at a position; None where nothing was recorded."""
    if not isinstance(at, int) or at >= len(values) or values[at] in ("", None):
        return None
    value = values[at]
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value if value in ("same", "valid") else None


def _shape(values: Sequence[Any], at: int) -> tuple[int, ...] | None:
    if at >= len(values) or not isinstance(values[at], list) or not values[at]:
        return None
    value = values[at]
    return tuple(value) if all(isinstance(size, int) for size in value) else None


def _layout(strides: Sequence[int] | None, x: Sequence[int]) -> str | None:
    if strides is None or len(strides) != len(x):
        return None
    return "channels_last" if strides[1] == 1 and x[1] > 1 and x[-1] > 1 else "contiguous"
