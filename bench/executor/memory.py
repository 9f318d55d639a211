"""Tensors as a kernel may see them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Region:
    """One tensor.

    name: the argument's name. base: the address that the kernel gets for the first byte. data: uint8, the host's bytes from
    that byte on, sharing memory with the tensor, C-contiguous. readable: a uint8 map of the bytes that the kernel may touch,
    as long as data, or None for all. own: the same of the bytes that it may write, None for those that are readable.
    writable: whether the kernel may write at all.
    """

    name: str
    base: int
    data: np.ndarray
    readable: np.ndarray | None = None
    writable: bool = True
    own: np.ndarray | None = None

    def __post_init__(self) -> None:
        for field in ("data", "readable", "own"):
            array = getattr(self, field)
            if array is not None and (array.dtype != np.uint8 or array.ndim != 1 or not array.flags.c_contiguous):
                raise ValueError(f"{self.name}: {field} is {array.dtype}{list(array.shape)}, expected contiguous uint8 [n]")
            if array is not None and len(array) != len(self.data):
                raise ValueError(f"{self.name}: {field} has {len(array)} bytes, data {len(self.data)}")
