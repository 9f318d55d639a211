"""Which bytes of a tensor a kernel may use, and at which address."""

from __future__ import annotations

import numpy as np
import torch

from bench.executor.memory import Region

#: The distance between the first bytes of two tensors, so that an offset that leaves its tensor meets no other.
WINDOW = 1 << 40
#: The offset at which a tensor begins in its window, so that a negative offset stays in the window.
MIDDLE = 1 << 39
#: The low bits of an address that are kept, because kernels may be specialised on them and sectors depend on them.
LOW_BITS = 4096
#: Kernels that step from one tensor to another by the difference of their addresses. Their tensors keep true addresses.
TRUE_ADDRESSES = ("video_kernel",)


def span(tensor: torch.Tensor) -> int:
    """Bytes from the first element of a tensor to the end of its last."""
    if tensor.numel() == 0:
        return 0
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (reach + 1) * tensor.element_size()


def memory_of(tensor: torch.Tensor, size: int) -> np.ndarray:
    """An array of `size` bytes from a tensor's first byte on, which shares the tensor's memory."""
    first = tensor.storage_offset() * tensor.element_size()
    memory = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage(), first, (size,), (1,))
    return memory.numpy()


def bytes_of(tensor: torch.Tensor, size: int) -> np.ndarray | None:
    """A map of the bytes that belong to a view; None where all do."""
    if tensor.numel() * tensor.element_size() == size:
        return None
    owned = np.zeros(size, np.uint8)
    itemsize = tensor.element_size()
    steps = (*(stride * itemsize for stride in tensor.stride()), 1)
    np.lib.stride_tricks.as_strided(owned, (*tensor.shape, itemsize), steps)[...] = 1
    return owned


def region_of(name: str, tensor: torch.Tensor, index: int, true_address: bool = False) -> Region:
    """The memory of argument `name`, the `index`-th tensor of a launch.

    A tensor that begins its storage may be read to the storage's end, because an allocation may be padded and is read in whole
    vectors. Of any other tensor, which is a view, only the elements may be read. Only a tensor's own elements may be written.
    """
    address = tensor.data_ptr()
    base = address if true_address else (index + 1) * WINDOW + MIDDLE + address % LOW_BITS
    size, storage = span(tensor), tensor.untyped_storage().nbytes()
    if tensor.storage_offset() == 0 and storage > size > 0:
        own = np.zeros(storage, np.uint8)
        elements = bytes_of(tensor, size)
        own[:size] = 1 if elements is None else elements
        return Region(name, base, memory_of(tensor, storage), None, own=own)
    return Region(name, base, memory_of(tensor, size), bytes_of(tensor, size))
