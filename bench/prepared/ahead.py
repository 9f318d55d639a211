"""Makes calls of the library on tensors without memory, for a GPU that is not there: kernels are compiled and not launched.

Triton's own path runs up to the launch (binder, specialisation, options, cache) on a driver that claims to be that GPU, and the
library plans for the same GPU. So this compiles what the same call compiles there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from costmodel.device import Device
from tritonconv import host

#: torch's device of tensors without memory.
DEVICE = "meta"
MOST_THREADS = 1024  # per block
#: The namespace of the library's ops.
NAMESPACE = "tritonconv"


class Utils:
    """The functions that Triton calls before it loads a kernel, and the one that loads it."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def get_device_properties(self, index: int) -> dict[str, int]:
        return {"max_shared_mem": self.device.shared_per_block, "multiprocessor_count": self.device.sm_count}

    def load_binary(self, name: str, kernel: bytes, shared: int, index: int) -> tuple[int, ...]:
        return 0, 1, 0, 0, MOST_THREADS

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(f"Triton asks the driver for {name}, which a GPU that is not there has not")


class Driver(DriverBase):
    """A CUDA device that takes every launch and does nothing."""

    def __init__(self, device: Device) -> None:
        self.utils = Utils(device)
        self.target = GPUTarget("cuda", device.capability, 32)

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        return lambda *arguments: None

    @classmethod
    def is_active(cls) -> bool:
        return False

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, index: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device(DEVICE)

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("nothing can be timed on a GPU that is not there")


class AsOnCuda(TorchDispatchMode):
    """Inside the block the library's ops run what they run for CUDA tensors, instead of making fake results."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == NAMESPACE:
            with self:  # for ops that it calls
                return func._op_dk(torch._C.DispatchKey.CUDA, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


@contextmanager
def ahead(device: Device) -> Iterator[None]:
    """Inside the block calls on tensors of device "meta" compile for `device` and launch nothing. Raises RuntimeError under the
    interpreter."""
    if host.INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET=1 forbids compiling")
    driver = triton.runtime.driver
    before = driver._active
    driver.set_active(Driver(device))
    host.use(device)
    try:
        with AsOnCuda():
            yield
    finally:
        host.use(None)
        driver._active = before
