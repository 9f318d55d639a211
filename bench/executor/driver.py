"""A Triton driver whose GPU is the executor: a launch with CPU tensors runs the compiled kernel on them.

    driver = install(90)          # from here on kernels compile for sm_90 and are executed
    kernel[grid](x, y, BLOCK=64)  # CPU tensors; raises ExecutorFault where the code does something illegal
    uninstall()

Binder, specialisation, cache and descriptors are Triton's own; ptxas and the device are replaced.
"""

from __future__ import annotations

import functools
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.backends.nvidia.driver import ty_to_cpp
from triton.runtime import driver as active_driver

from bench.executor.descriptor import TF32, TensorMap, overlap, refusal, tensor_map
from bench.executor.launch import Descriptor, Execution, execute
from bench.executor.memory import Region
from bench.executor.program import Program, decode
from bench.executor.tensors import TRUE_ADDRESSES, region_of
from bench.executor.versions import FILL_NAMES, FORGIVEN, descriptor_values, leave_out_machine_code, make_machine_code

#: Most shared memory of a block in bytes, by compute capability.
SHARED = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 103: 232448, 120: 101376}
#: Number of pointers to scratch memory after a kernel's own parameters. No kernel here uses them.
SCRATCH = 2
#: How `struct` packs the floating-point parameters.
FLOATS = {"fp16": "<e", "fp32": "<f", "f32": "<f", "fp64": "<d"}


class ExecutorFault(AssertionError):
    """Compiled code, or its launch, did something that the hardware or the driver forbid, or that the executor does not
    know."""


@dataclass(frozen=True)
class Launched:
    """A launch that was executed."""

    ptx: str
    program: Program
    grid: tuple[int, int, int]
    regions: tuple[Region, ...]
    shared_bytes: int
    arch: int
    constants: Mapping[str, Any]  # the kernel's constexprs by name
    types: tuple[str, ...]  # the parameters' types as Triton writes them: "*fp16", "i32", "tensordesc<fp16[...", ...
    seconds: float
    execution: Execution


@functools.lru_cache(maxsize=2048)
def decoded(ptx: str) -> Program:
    """The program of a kernel's PTX, decoded once."""
    return decode(ptx)


class Utils:
    """The functions that Triton calls of a device's driver."""

    def __init__(self, arch: int) -> None:
        if arch not in SHARED:
            raise ValueError(f"arch must be one of {', '.join(map(str, SHARED))}, got {arch}")
        self.shared = SHARED[arch]
        for name in FILL_NAMES:
            setattr(self, name, tensor_map)

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[Any, str, int, int, int]:
        """(module, function, registers, spills, most threads) of a kernel, which is its PTX."""
        ptx = kernel.decode()
        return name, ptx, 0, 0, 1024

    def unload_module(self, module: Any) -> None:
        """Does nothing, since nothing is kept."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self.shared, "multiprocessor_count": 132, "warpSize": 32, "max_num_regs": 65536}


def flat(name: str, signature: Any, value: Any) -> Iterator[tuple[str, str, Any]]:
    """(name, type, value) of each parameter that an argument becomes. Constants become no parameter."""
    if isinstance(signature, tuple):
        for i, (inner, entry) in enumerate(zip(signature, value, strict=True)):
            yield from flat(f"{name}[{i}]", inner, entry)
    elif signature != "constexpr":
        yield name, signature, value


class Launcher:
    """Launches one compiled kernel. Triton makes a launcher per kernel and calls it with the bound arguments."""

    def __init__(self, src: Any, metadata: Any) -> None:
        self.signature: dict[str, Any] = dict(src.signature)
        names = src.fn.arg_names
        self.constants = {names[path[0]]: value for path, value in src.constants.items() if len(path) == 1}
        self.metadata = metadata

    def __call__(
        self,
        grid_x: int,
        grid_y: int,
        grid_z: int,
        stream: int,
        function: str,
        packed_metadata: Any,
        launch_metadata: Any,
        enter_hook: Any,
        exit_hook: Any,
        *arguments: Any,
    ) -> None:
        driver: Executor = active_driver.active
        if driver.skipped is not None:
            driver.skipped.append(function)
            return
        grid = grid_x, grid_y, grid_z
        driver.launch(function, grid, self.metadata, list(self.parameters(arguments)), self.constants)

    def parameters(self, arguments: Sequence[Any]) -> Iterator[tuple[str, str, Any]]:
        """(name, type, value) of each of the kernel's parameters. A descriptor becomes several parameters."""
        described = iter(getattr(self.metadata, "tensordesc_meta", None) or ())
        for (name, signature), argument in zip(self.signature.items(), arguments, strict=True):
            for inner, kind, value in flat(name, signature, argument):
                if not kind.startswith("tensordesc"):
                    yield inner, kind, value
                    continue
                for word in descriptor_values(value, next(described, None)):
                    if isinstance(word, TensorMap):
                        yield inner, kind, (word, value.base)
                    else:
                        yield inner, "*" if isinstance(word, torch.Tensor) else "i64", word


class Executor(DriverBase):
    """The driver. `seed` decides the order in which warps run; each of `listeners` is called with every launch that was
    executed.

    Where `skipped` is a list, launches are compiled and not executed, and the list receives the PTX of each.
    """

    def __init__(self, arch: int, seed: int = 0, check: bool = True) -> None:
        super().__init__()
        self.arch, self.seed, self.check = arch, seed, check
        self.utils = Utils(arch)
        self.launcher_cls = Launcher
        self.listeners: list[Callable[[Launched], None]] = []
        self.skipped: list[str] | None = None

    def launch(
        self,
        ptx: str,
        grid: tuple[int, int, int],
        metadata: Any,
        parameters: Sequence[tuple[str, str, Any]],
        constants: Mapping[str, Any],
    ) -> Launched:
        """Lays out the parameters and executes the kernel. Raises `ExecutorFault` where something was illegal."""
        program = decoded(ptx)
        regions: list[Region] = []
        descriptors: dict[int, Descriptor] = {}
        if len(program.params) != len(parameters) + SCRATCH:
            given = f"the launch has {len(parameters)} and {SCRATCH} for scratch"
            raise ExecutorFault(f"{program.name} has {len(program.params)} parameters, {given}")
        laid = np.zeros(program.param_bytes, np.uint8)
        true_addresses = program.name in TRUE_ADDRESSES
        for (name, kind, value), param in zip(parameters, program.params, strict=False):
            if isinstance(value, tuple):
                tensor_map, tensor = value
                if reason := refusal(tensor_map) or overlap(tensor_map):
                    raise ExecutorFault(
                        f"{program.name}: the CUDA driver refuses the descriptor of {name}: {reason}; {tensor_map}"
                    )
                regions.append(region_of(name, tensor, len(regions), true_addresses))
                descriptors[param.offset] = descriptor_of(tensor_map, len(regions) - 1, regions[-1].base)
                continue
            if isinstance(value, torch.Tensor):
                regions.append(region_of(name, value, len(regions), true_addresses))
                value = regions[-1].base
            laid[param.offset : param.offset + param.size] = np.frombuffer(packed(kind, value, param.size), np.uint8)
        began = time.perf_counter()
        done = execute(program, grid, laid, regions, descriptors, metadata.shared, seed=self.seed, check=self.check)
        seconds = time.perf_counter() - began
        types = tuple(kind for _, kind, _ in parameters)
        launched = Launched(ptx, program, grid, tuple(regions), metadata.shared, self.arch, constants, types, seconds, done)
        for listener in self.listeners:
            listener(launched)
        if faults := [fault for fault in done.faults if fault.kind not in FORGIVEN]:
            raise ExecutorFault("\n".join(map(str, faults)))
        return launched

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty_to_cpp(ty)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        """The architecture, so that each architecture has its own cache of compiled kernels."""
        return self.arch

    def set_current_device(self, device: int) -> None:
        """Does nothing, since there is one device."""

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_capability(self, device: int | None = None) -> tuple[int, int]:
        return divmod(self.arch, 10)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("an executor's time says nothing about a GPU's")


def descriptor_of(tensor_map: TensorMap, region: int, address: int) -> Descriptor:
    """The executor's form of a descriptor, over the window of its tensor."""
    return Descriptor(
        region,
        address,
        tensor_map.element_size,
        tensor_map.shape,
        (tensor_map.element_size, *tensor_map.strides),
        tensor_map.box,
        tensor_map.swizzle,
        tensor_map.fill_nan,
        tensor_map.element_type in TF32,
    )


def packed(kind: str, value: Any, size: int) -> bytes:
    """The bytes of a scalar parameter."""
    if kind == "bf16":
        return struct.pack("<f", value)[2:]
    if kind in FLOATS:
        return struct.pack(FLOATS[kind], value)
    number = int(value or 0)
    return (number % (1 << 8 * size)).to_bytes(size, "little")


def install(arch: int, seed: int = 0, check: bool = True) -> Executor:
    """Makes the executor of compute capability `arch` (80, 86, 89, 90, 100, 120) Triton's device, and returns it."""
    executor = Executor(arch, seed, check)
    leave_out_machine_code()
    active_driver.set_active(executor)
    return executor


def uninstall() -> None:
    """Leaves Triton without a chosen device. It looks for one when it next needs one."""
    make_machine_code()
    active_driver.set_active(None)
