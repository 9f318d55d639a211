"""Memory of a network's activations: which tensors are alive at once, forward and through a training step.

A tensor is alive from the operator that makes it to the last one that reads it or a view of it, as in a runtime that frees at
once. Python may hold a tensor longer, and an allocator rounds up. The network's input and gradients of activations count;
parameters, buffers, the parameters' gradients and the optimiser's state do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from costmodel.tiling import itemsize


@dataclass(frozen=True)
class Life:
    """The bytes of one storage, and the numbers of the operators between which it is alive."""

    first: int
    last_forward: int  # the last use before the backward pass; -1 where only a backward pass keeps it
    last: int
    bytes: int
    dtype: str

    def bytes_in(self, dtype: str | None) -> int:
        """The bytes, with floating tensors in `dtype`."""
        if dtype is None or not self.dtype.startswith(("float", "bfloat")):
            return self.bytes
        return self.bytes * itemsize(dtype) // itemsize(self.dtype) if self.dtype in FLOATING else self.bytes


FLOATING = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Memory:
    """The lives of a traced network's activations."""

    lives: tuple[Life, ...] = ()

    def peak(self, training: bool = False, dtype: str | None = None) -> int:
        """The most bytes alive at once in a forward pass without gradients, or in a forward and a backward pass.

        `dtype` is that of the floating tensors; None takes the trace's.
        """
        changes: dict[int, int] = {}
        for life in self.lives:
            last = life.last if training else life.last_forward
            if last < life.first:
                continue
            size = life.bytes_in(dtype)
            changes[life.first] = changes.get(life.first, 0) + size
            changes[last + 1] = changes.get(last + 1, 0) - size
        highest = alive = 0
        for place in sorted(changes):
            alive += changes[place]
            highest = max(highest, alive)
        return highest


class Lives:
    """Records lives while operators run. A storage is recognised by its address, so the caller must keep every tensor alive."""

    def __init__(self) -> None:
        self.place = 0
        self.forward = True
        self.lives: dict[int, Life] = {}

    def created(self, tensors: Iterable[object]) -> None:
        """Records tensors that exist from now on: inputs, or results of an operator."""
        for tensor in tensors:
            storage = tensor.untyped_storage()  # type: ignore[attr-defined]
            if storage._cdata not in self.lives:
                dtype = str(tensor.dtype).removeprefix("torch.")  # type: ignore[attr-defined]
                self.lives[storage._cdata] = Life(self.place, self.place - 1, self.place, storage.nbytes(), dtype)
        self.used(tensors)

    def used(self, tensors: Iterable[object]) -> None:
        """Records tensors that an operator reads, or that are the network's result."""
        for tensor in tensors:
            address = tensor.untyped_storage()._cdata  # type: ignore[attr-defined]
            life = self.lives.get(address)
            if life is not None:
                forward = self.place if self.forward else life.last_forward
                self.lives[address] = replace(life, last_forward=forward, last=self.place)

    def ran(self, read: Sequence[object], written: Sequence[object], known: Iterable[int]) -> None:
        """Records an operator. `known` are the addresses of parameters and buffers, which do not count."""
        self.place += 1
        self.used(read)
        self.created([tensor for tensor in written if tensor.untyped_storage()._cdata not in known])  # type: ignore[attr-defined]

    def kept(self, tensors: Iterable[object]) -> None:
        """Records tensors that are kept only for a backward pass."""
        for tensor in tensors:
            address = tensor.untyped_storage()._cdata  # type: ignore[attr-defined]
            if address in self.lives:
                self.lives[address] = replace(self.lives[address], last_forward=-1)

    def without(self, tensors: Iterable[object]) -> Memory:
        """The memory without `tensors`, the gradients of parameters."""
        left = {tensor.untyped_storage()._cdata for tensor in tensors}  # type: ignore[attr-defined]
        return Memory(tuple(life for address, life in self.lives.items() if address not in left))
