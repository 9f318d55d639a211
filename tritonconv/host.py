"""What computes CPU tensors: torch's own convolution, or the kernels, where something can run kernels on a CPU.

Triton's interpreter can (TRITON_INTERPRET=1 when triton was imported). So can a Triton driver that serves CPU tensors; then
`use` says which GPU's plans they take.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import triton

from costmodel.device import INTERPRETER, Device
from costmodel.resources import LEAST_CAPABILITY

OLDEST = (3, 6)
#: Triton's version, such as (3, 7).
TRITON = tuple(map(int, triton.__version__.split(".")[:2]))
if TRITON < OLDEST:
    raise ImportError(f"tritonconv needs Triton {'.'.join(map(str, OLDEST))} or newer, found {triton.__version__}")

#: Whether Triton's interpreter runs the kernels (TRITON_INTERPRET=1 when triton was imported).
INTERPRETED = bool(triton.knobs.runtime.interpret)

#: The devices for which CPU tensors have been planned: number -1 - i is the i-th. The interpreter is the first.
_MODELS: list[Device] = [INTERPRETER]
#: The number of the device for which CPU tensors are planned now, and whether kernels run on them.
_now = -1
#: The lock under which kernels run: while Triton's interpreter runs one, it changes `triton.language` for the whole process.
_turn = threading.RLock()
_kernels = INTERPRETED


def _renew() -> None:
    global _turn
    _turn = threading.RLock()


os.register_at_fork(after_in_child=_renew)  # the thread that held it does not exist in a forked process


def index_of(x: torch.Tensor) -> int:
    """The number of the CUDA device of `x`; a negative one for a CPU tensor. `model` knows the negative ones."""
    return x.device.index if x.is_cuda else _now


def model(index: int) -> Device:
    """The cost model's description of the device that a negative number of `index_of` stands for."""
    return _MODELS[-1 - index]


def runs_kernels() -> bool:
    """Whether the kernels compute CPU tensors."""
    return _kernels


def computes(x: torch.Tensor) -> int | None:
    """The number of the device whose kernels compute `x`, as `index_of`; None where torch's convolution computes it."""
    return x.device.index if x.is_cuda else _now if _kernels else None


def turn() -> AbstractContextManager[Any]:
    """The lock under which kernels run on CPU tensors."""
    return _turn


def use(device: Device | None) -> None:
    """From here on Triton's active driver runs kernels on CPU tensors, with the plans of `device` (with `INTERPRETER`, those of
    Triton's interpreter). With None torch's convolution computes CPU tensors."""
    global _now, _kernels
    _kernels = device is not None
    _now = number_of(device or INTERPRETER)


def number_of(device: Device) -> int:
    """The negative number that stands for a description from here on."""
    if device not in _MODELS:
        _MODELS.append(device)
    return -1 - _MODELS.index(device)


def is_new_enough(name: str, capability: int) -> None:
    """Raises RuntimeError for a GPU that is too old."""
    if capability < LEAST_CAPABILITY:
        needed, has = (".".join((str(n // 10), str(n % 10))) for n in (LEAST_CAPABILITY, capability))
        raise RuntimeError(f"tritonconv needs a GPU of compute capability {needed} or newer, as Triton does; {name} has {has}")


def either(kernel: Callable[..., Any], by_torch: Callable[..., Any]) -> Callable[..., Any]:
    """A function that decides at each call: `kernel`, one thread at a time, where kernels compute CPU tensors, else
    `by_torch`."""

    def call(*args: Any) -> Any:
        if not _kernels:
            return by_torch(*args)
        with _turn:
            return kernel(*args)

    return call
