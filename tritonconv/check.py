"""Arguments as torch takes them: forms, defaults, and what is rejected, with torch's exception types.

Every message names the argument, what came and what was expected. Nothing is launched before these checks have passed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from costmodel.problem import ConvProblem, padding_pairs
from costmodel.shapes import MODES, ShapeError
from tritonconv.epilogue import ACTIVATIONS

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


#: The largest integer that an operator of torch takes.
INT64_MAX = 2**63 - 1


def is_int(value: Any) -> bool:
    """Whether torch takes `value` as an int: an int or SymInt, one of NumPy's integers, or a tensor of one integer; not a
    bool."""
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 and not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    if isinstance(value, (int, torch.SymInt)):
        return not isinstance(value, bool)
    return hasattr(value, "__index__") and getattr(value, "shape", None) == () and value.dtype.kind in "iu"


def as_int(function: str, name: str, value: Any) -> Any:
    """A value that `is_int` accepts as an integer. Raises ValueError beyond 64 bits, as torch does."""
    number = value if isinstance(value, torch.SymInt) or type(value) is int else value.__index__()
    if isinstance(number, int) and not -INT64_MAX - 1 <= number <= INT64_MAX:
        raise ValueError(f"{function}(): argument {name!r} must be an integer of 64 bits, got {number}")
    return number


def ints(function: str, name: str, value: Any, rank: int, least: int) -> tuple[int, ...]:
    """`value` as `rank` integers, from an int, or from a sequence of `rank` ints or of one. `is_int` says what an int is."""
    if is_int(value):
        values: tuple[Any, ...] = (as_int(function, name, value),) * rank
    elif isinstance(value, (tuple, list)) and all(map(is_int, value)):
        values = tuple(as_int(function, name, v) for v in value)
        values = values * rank if len(values) == 1 else values
    else:
        raise TypeError(
            f"{function}(): argument {name!r} must be an int or a tuple of {rank} ints, got {value!r} of type "
            f"{type(value).__name__}"
        )
    if len(values) != rank:
        raise RuntimeError(f"{function}(): expected {name} to be an int or {rank} ints, got {len(values)}: {name}={value}")
    if any(v < least for v in values):
        kind = "negative" if least == 0 else "non-positive"
        raise RuntimeError(f"{function}(): {kind} {name} is not supported, got {name}={value}")
    return values


def cast_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype that a convolution takes a tensor in: torch's autocast changes all but float64."""
    device = tensor.device.type
    if tensor.dtype == torch.float64 or device not in ("cuda", "cpu") or not torch.is_autocast_enabled(device):
        return tensor.dtype
    return torch.get_autocast_dtype(device)


def tensors(function: str, rank: int, input: Any, weight: Any, bias: Any, **others: Any) -> None:
    """Checks kinds, ranks, dtypes and devices. `bias` and `others` may be None."""
    optional = {"bias": bias, **others}
    given = {"input": input, "weight": weight, **optional}
    for name, value in given.items():
        if not isinstance(value, torch.Tensor) and not (name in optional and value is None):
            raise TypeError(f"{function}(): argument {name!r} must be a Tensor, got {type(value).__name__}")
    if weight.dim() != rank + 2:
        raise RuntimeError(
            f"{function}(): expected a {rank + 2}-dimensional weight, got {weight.dim()}: weight {list(weight.shape)}"
        )
    if input.dim() not in (rank + 1, rank + 2):
        raise RuntimeError(
            f"{function}(): expected {rank + 1}D (unbatched) or {rank + 2}D (batched) input, got input {list(input.shape)}"
        )
    alike(function, "input", given)


def alike(function: str, first: str, given: Mapping[str, torch.Tensor | None]) -> None:
    """Checks that all tensors have the device and, after autocast, the dtype of the argument named `first`, and that the dtype
    is served."""
    input = given[first]
    assert input is not None
    dtype = cast_dtype(input)
    for name, value in given.items():
        if value is None:
            continue
        if value.layout != torch.strided:
            raise RuntimeError(f"{function}(): {name} has layout {value.layout}; tritonconv takes strided tensors")
        if value.dtype not in DTYPES:
            raise RuntimeError(
                f"{function}(): {name} has dtype {value.dtype}; tritonconv takes float16, bfloat16, float32 and float64"
            )
        if cast_dtype(value) != dtype:
            raise RuntimeError(
                f"{function}(): {first} and {name} must have the same dtype, got {first} {input.dtype} and {name} {value.dtype}"
            )
        if value.device != input.device:
            raise RuntimeError(
                f"{function}(): {first} and {name} must be on the same device, got {first} {input.device} and {name} "
                f"{value.device}"
            )


def _bias(function: str, bias: torch.Tensor | None, channels: int, weight: torch.Tensor) -> None:
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != channels):
        raise RuntimeError(
            f"{function}(): expected bias of shape [{channels}] for weight {list(weight.shape)}, got bias {list(bias.shape)}"
        )


def epilogue(
    function: str,
    rank: int,
    output: Sequence[int],
    activation: Any,
    negative_slope: Any,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> None:
    """Checks the epilogue of a convolution whose result has the shape `output`, [N, C, *spatial] or without N."""
    if activation is not None and activation not in ACTIVATIONS:
        names = ", ".join(map(repr, ACTIVATIONS))
        raise ValueError(f"{function}(): activation must be None or one of {names}, got activation={activation!r}")
    if not isinstance(negative_slope, (int, float)) or isinstance(negative_slope, bool):
        raise TypeError(
            f"{function}(): argument 'negative_slope' must be a number, got {negative_slope!r} of type "
            f"{type(negative_slope).__name__}"
        )
    channels = output[-rank - 1]
    for name, value in (("scale", scale), ("shift", shift)):
        if value is not None and (value.dim() != 1 or value.shape[0] != channels):
            raise RuntimeError(
                f"{function}(): expected {name} of shape [{channels}], one value per output channel, got {name} "
                f"{list(value.shape)}"
            )
    if residual is not None and tuple(residual.shape) != tuple(output):
        raise RuntimeError(
            f"{function}(): expected residual of the output's shape {list(output)}, got residual {list(residual.shape)}"
        )


def _groups(function: str, groups: Any) -> int:
    if not is_int(groups):
        raise TypeError(f"{function}(): argument 'groups' must be int, got {groups!r} of type {type(groups).__name__}")
    number: int = as_int(function, "groups", groups)
    if number <= 0:
        raise RuntimeError(f"{function}(): non-positive groups is not supported, got groups={groups}")
    return number


def _countable(function: str, input: torch.Tensor, output: Sequence[int], **given: Any) -> None:
    """Raises RuntimeError, naming what made the result so large, unless 64 bits can count its bytes."""
    if all(isinstance(size, int) for size in output) and math.prod(output) * input.element_size() > INT64_MAX:
        words = ", ".join(f"{name}={value}" for name, value in given.items())
        raise RuntimeError(
            f"{function}(): the output would have shape {list(output)}, more bytes than 64 bits count: input "
            f"{list(input.shape)}, {words}"
        )


def _not_empty(function: str, input: Sequence[int], weight: Sequence[int]) -> None:
    """Raises RuntimeError where anything but the batch is empty, as torch does."""
    for name, shape, skip in (("input", input, 1), ("weight", weight, 0)):
        if any(n == 0 for n in shape[skip:]):
            raise RuntimeError(f"{function}(): only the batch may be empty, got {name} of shape {list(shape)}")


def _ends(function: str, padding: Any, rank: int) -> tuple[tuple[int, int], ...]:
    """The padding ((lo, hi), ...) of both ends, one pair per axis."""
    if len(padding) != rank or not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in padding):
        raise RuntimeError(
            f"{function}(): expected padding to be an int, {rank} ints, or {rank} pairs of a low and a high end, got "
            f"padding={padding}"
        )
    pairs = (ints(function, "padding", tuple(pair), 2, 0) for pair in padding)
    return tuple((low, high) for low, high in pairs)


def modes(function: str, value: Any, rank: int) -> tuple[str, ...]:
    """`padding_mode` as a mode per axis. Raises TypeError for values that are no words, ValueError for words that torch does
    not know, and RuntimeError for a wrong number of them."""
    words = (value,) * rank if isinstance(value, str) else value
    if not isinstance(words, (tuple, list)) or not all(isinstance(word, str) for word in words):
        raise TypeError(
            f"{function}(): argument 'padding_mode' must be a str or a tuple of {rank} strs, got {value!r} of type "
            f"{type(value).__name__}"
        )
    if any(word not in MODES for word in words):
        raise ValueError(f"{function}(): padding_mode must be one of {', '.join(map(repr, MODES))}, got {value!r}")
    if len(words) != rank:
        raise RuntimeError(f"{function}(): expected padding_mode to be a str or {rank} strs, got {len(words)}: {value!r}")
    return tuple(words)


def conv(
    function: str,
    rank: int,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    padding_mode: Any = "zeros",
) -> ConvProblem:
    """The problem of a batched conv call. Raises TypeError, ValueError and RuntimeError as torch does."""
    per_axis = modes(function, padding_mode, rank)
    stride = ints(function, "stride", stride, rank, 1)
    dilation = ints(function, "dilation", dilation, rank, 1)
    groups = _groups(function, groups)
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise RuntimeError(f"{function}(): padding must be 'same', 'valid' or integers, got padding={padding!r}")
        if padding == "same" and any(s != 1 for s in stride):
            raise RuntimeError(f"{function}(): padding='same' is not supported for strided convolutions, got stride={stride}")
        pads = padding_pairs(padding, weight.shape[2:], dilation)
    elif isinstance(padding, (tuple, list)) and any(isinstance(pair, (tuple, list)) for pair in padding):
        pads = _ends(function, padding, rank)
    else:
        pads = padding_pairs(ints(function, "padding", padding, rank, 0), weight.shape[2:], dilation)
    _not_empty(function, input.shape, weight.shape)
    try:
        problem = ConvProblem.conv(input.shape, weight.shape, stride, pads, dilation, groups, padding_mode=per_axis)
    except ShapeError as error:
        raise RuntimeError(f"{function}(): {error} (input {list(input.shape)}, {padding=}, {dilation=})") from None
    _bias(function, bias, weight.shape[0], weight)
    _countable(function, input, problem.output_shape, padding=padding, stride=stride, dilation=dilation)
    return problem


def conv_transpose(
    function: str,
    rank: int,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: Any,
    dilation: Any,
) -> ConvProblem:
    """The forward problem whose dgrad is a batched conv_transpose call. Raises TypeError and RuntimeError as torch does."""
    stride = ints(function, "stride", stride, rank, 1)
    padding = ints(function, "padding", padding, rank, 0)
    output_padding = ints(function, "output_padding", output_padding, rank, 0)
    dilation = ints(function, "dilation", dilation, rank, 1)
    groups = _groups(function, groups)
    _not_empty(function, input.shape, weight.shape)
    for extra, s, d in zip(output_padding, stride, dilation, strict=True):
        if extra >= s and extra >= d:
            raise RuntimeError(
                f"{function}(): output_padding must be smaller than either stride or dilation, got "
                f"output_padding={output_padding}, stride={stride}, dilation={dilation}"
            )
    try:
        problem = ConvProblem.conv_transpose(input.shape, weight.shape, stride, padding, output_padding, groups, dilation)
    except ShapeError as error:
        raise RuntimeError(f"{function}(): {error}") from None
    _bias(function, bias, weight.shape[1] * groups, weight)
    given = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
    _countable(function, input, problem.input_shape, **given)
    return problem
