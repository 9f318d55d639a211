"""The memory of a tensor, as a kernel may use it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Region:
    """The memory of one tensor.

    name: the argument's name. base: the kernel's address of the first byte. data: uint8, C-contiguous, the host's bytes from
    that byte on, which share the tensor's memory. readable: a uint8 map, as long as data, of the bytes that the kernel may
    read; None for all. own: the same for the bytes that it may write; None where these are the readable ones. writable: whether
    it may write at all.
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
