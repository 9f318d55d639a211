"""Arguments of the deformable convolution. Every message names the argument, what came and what was expected."""

from __future__ import annotations

from typing import Any

import torch

from costmodel.deform import Deformation
from costmodel.problem import ConvProblem
from costmodel.shapes import ShapeError
from costmodel.tiling import reach_refusal
from tritonconv.check import DTYPES, _bias, _countable, _not_empty, alike, ints

NAME = "deform_conv2d"
Window = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def _tensors(input: Any, offset: Any, weight: Any, bias: Any, mask: Any) -> None:
    given = {"input": input, "offset": offset, "weight": weight, "bias": bias, "mask": mask}
    for name, value in given.items():
        if not isinstance(value, torch.Tensor) and not (value is None and name in ("bias", "mask")):
            raise TypeError(f"{NAME}(): argument {name!r} must be a Tensor, got {type(value).__name__}")
    if input.dim() != 4:
        raise ValueError(f"{NAME}(): expected input of 4 axes [N, C, H, W], got input {list(input.shape)}")
    for name in ("offset", "weight", "mask"):
        value = given[name]
        if value is not None and value.dim() != 4:
            raise RuntimeError(f"{NAME}(): expected {name} of 4 axes, got {name} {list(value.shape)}")
    alike(NAME, "input", {name: given[name] for name in ("input", "weight", "bias")})
    for name in ("offset", "mask"):
        value = given[name]
        if value is None:
            continue
        if value.layout != torch.strided or value.dtype not in DTYPES:
            raise RuntimeError(f"{NAME}(): expected {name} strided and of a float dtype, got {value.layout}, {value.dtype}")
        if value.device != input.device:
            raise RuntimeError(
                f"{NAME}(): input and {name} must be on the same device, got input {input.device} and {name} {value.device}"
            )
        if value.dtype not in (input.dtype, torch.float32):
            raise RuntimeError(
                f"{NAME}(): {name} must have input's dtype or torch.float32, got input {input.dtype} and {name} {value.dtype}"
            )
    _not_empty(NAME, input.shape, weight.shape)


def described(
    input: torch.Tensor,
    offset: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor | None,
    stride: tuple[Any, ...],
    padding: tuple[Any, ...],
    dilation: tuple[Any, ...],
    name: str = f"{NAME}()",
) -> Deformation:
    """The call of tensors of four axes, whose shapes set the groups. Raises RuntimeError if the shapes do not go together."""
    channels, per_group, taps = input.shape[1], weight.shape[1], weight.shape[2] * weight.shape[3]
    if channels % per_group or weight.shape[0] % (channels // per_group):
        raise RuntimeError(
            f"{name}: expected weight [K, C / G, R, S] whose groups G share out C channels and K filters, got input "
            f"{list(input.shape)}, weight {list(weight.shape)}"
        )
    groups = offset.shape[1] // (2 * taps)
    if groups == 0 or offset.shape[1] % (2 * taps) or channels % groups:
        raise RuntimeError(
            f"{name}: expected offset with 2 * D * {taps} channels, for weight {list(weight.shape)} and D offset groups that "
            f"share out {channels} channels of input, got offset {list(offset.shape)}"
        )
    try:
        problem = ConvProblem.conv(input.shape, weight.shape, stride, padding, dilation, channels // per_group)
    except ShapeError as error:
        raise RuntimeError(f"{name}: {error} (input {list(input.shape)}, {padding=}, {dilation=})") from None
    deformation = Deformation(problem, groups, mask is not None)
    for what, tensor, shape in (("offset", offset, deformation.offset_shape), ("mask", mask, deformation.mask_shape)):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise RuntimeError(
                f"{name}: expected {what} of shape {list(shape)} for input {list(input.shape)}, weight {list(weight.shape)}, "
                f"{stride=}, {padding=}, {dilation=} and {groups} offset groups, got {what} {list(tensor.shape)}"
            )
    return deformation


def _pair(name: str, value: Any, least: int) -> tuple[Any, ...]:
    """Two numbers, from one for both axes or from two. Raises ValueError for other counts, as torchvision does."""
    if isinstance(value, (tuple, list)) and len(value) != 2:
        raise ValueError(f"{NAME}(): expected {name} to be an int or 2 ints, got {len(value)}: {name}={value}")
    return ints(NAME, name, value, 2, least)


def call(input: Any, offset: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, mask: Any) -> Window:
    """The values of stride, padding and dilation, as the op takes them."""
    _tensors(input, offset, weight, bias, mask)
    window = _pair("stride", stride, 1), _pair("padding", padding, 0), _pair("dilation", dilation, 1)
    deformation = described(input, offset, weight, mask, *window)
    _bias(NAME, bias, weight.shape[0], weight)
    _countable(NAME, input, deformation.problem.output_shape, stride=stride, padding=padding, dilation=dilation)
    if all(isinstance(n, int) for n in (*weight.shape, *window[0])) and (reason := reach_refusal(deformation.problem)):
        raise RuntimeError(f"{NAME}(): {reason}: weight {list(weight.shape)}, {stride=}, {padding=}, {dilation=}")
    return window
