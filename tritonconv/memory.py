"""Whether a tensor may be changed in place: no two of its elements share memory, and none shares memory with what is read."""

from __future__ import annotations

import torch


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """(the first address of a tensor with elements, the address after its last element)."""
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    begin = tensor.data_ptr()
    return begin, begin + (last + 1) * tensor.element_size()


def _places(tensor: torch.Tensor) -> torch.Tensor:
    """The addresses of a tensor's elements, counted in elements from address 0."""
    places = torch.zeros((), dtype=torch.int64)
    for n, step in zip(tensor.shape, tensor.stride(), strict=True):
        places = places.unsqueeze(-1) + torch.arange(n) * step
    return places.flatten() + tensor.data_ptr() // tensor.element_size()


def _is_nested(tensor: torch.Tensor) -> bool:
    """Whether each axis steps over everything within it, so that no two elements share memory."""
    extent = 1
    for step, n in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if n > 1:
            if step < extent:
                return False
            extent = step * (n - 1) + extent
    return True


def overlaps_itself(tensor: torch.Tensor) -> bool:
    """Whether two elements of a tensor share memory, as those of an expanded tensor do."""
    if tensor.is_contiguous() or tensor.numel() < 2 or _is_nested(tensor):
        return False
    if any(n > 1 and step == 0 for n, step in zip(tensor.shape, tensor.stride(), strict=True)):
        return True
    return bool(_places(tensor).unique().numel() < tensor.numel())


def overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors share an element of memory. Tensors of the device "meta" share none."""
    if one.is_meta or not one.numel() or not other.numel():
        return False
    if one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr():
        return False
    (begin, end), (first, last) = _span(one), _span(other)
    if end <= first or last <= begin:
        return False
    if not _is_nested(one):
        return bool(torch.isin(_places(other), _places(one)).any())
    left = _places(other) - one.data_ptr() // one.element_size()
    inside = left >= 0
    for step, n in sorted(zip(one.stride(), one.shape, strict=True), reverse=True):
        if n > 1:  # the largest steps first: what remains must lie within the inner axes
            steps = left.div(step, rounding_mode="floor").clamp(0, n - 1)
            left = left - steps * step
    return bool((inside & (left == 0)).any())


def may_be_written(function: str, name: str, tensor: torch.Tensor, **read: torch.Tensor | None) -> None:
    """Raises RuntimeError, in torch's words, unless the tensor may be changed in place while the others are read."""
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"{function}(): Inplace update to inference tensor {name} outside InferenceMode is not allowed. You can make a "
            "clone to get a normal tensor before doing inplace update."
        )
    if overlaps_itself(tensor):
        raise RuntimeError(
            f"{function}(): unsupported operation: more than one element of the written-to tensor refers to a single memory "
            f"location, in {name} of shape {list(tensor.shape)} and strides {list(tensor.stride())}. Please clone() the tensor "
            "before performing the operation."
        )
    for other, value in read.items():
        if value is not None and overlap(tensor, value):
            raise RuntimeError(
                f"{function}(): unsupported operation: some elements of the input tensor {other} and the written-to tensor "
                f"{name} refer to a single memory location. Please clone() the tensor before performing the operation."
            )
