"""What differs between the versions of Triton that the executor drives: 3.6.0, 3.7.1, 3.8.0 and 3.9.0.

The last stage of a compilation, ptxas, is left out: the "binary" is the PTX itself.
"""

from __future__ import annotations

from typing import Any

import triton
from triton import knobs
from triton.backends.nvidia import driver as nvidia

from bench.executor.layout import Kind

#: The function of `driver.active.utils` that makes a descriptor. 3.6 has the first name, later versions the second.
FILL_NAMES = ("fill_tma_descriptor", "fill_tma_descriptor_tiled")
#: The part of the key that keeps executed kernels apart from others in Triton's cache, where Triton asks for one (from 3.7 on).
KEY = "executor: the binary is the PTX"
#: The folder of executed kernels in Triton's cache.
FOLDER = "/executor"
#: Major and minor version of the installed Triton, such as (3, 7).
VERSION = tuple(int(word) for word in triton.__version__.split(".")[:2])

#: Known faults of the compiler, which are not this project's. 3.6 puts no fence between a cp.async or a store and a wgmma that
#: reads what it wrote, which PTX asks for; later versions do.
FORGIVEN = (Kind.PROXY,) if VERSION < (3, 7) else ()


def _no_machine_code(
    backend: Any = None, stages: Any = None, options: Any = None, language: Any = None, capability: Any = None
) -> tuple[str, str] | None:
    """Triton's hook on the stages of a compilation. Without arguments it returns its part of the cache's key."""
    if stages is None:
        return KEY, KEY
    stages["cubin"] = lambda ptx, metadata: ptx.encode()
    return None


def leave_out_machine_code() -> None:
    """From here on Triton compiles only to PTX, in a cache folder of its own, because 3.6 does not ask the hook for a key."""
    knobs.runtime.add_stages_inspection_hook = _no_machine_code
    _cache_in(str(knobs.cache.dir).removesuffix(FOLDER) + FOLDER)


def make_machine_code() -> None:
    """Undoes `leave_out_machine_code`."""
    knobs.runtime.add_stages_inspection_hook = None
    _cache_in(str(knobs.cache.dir).removesuffix(FOLDER))


def _cache_in(folder: str) -> None:
    """Sets the folder of Triton's cache in this process, but not in the environment of processes that it starts."""
    propagates, knobs.propagate_env = knobs.propagate_env, False
    knobs.cache.dir = folder
    knobs.propagate_env = propagates


def descriptor_values(descriptor: Any, metadata: Any) -> list[Any]:
    """A kernel's parameters for a TMA descriptor, by Triton's own code: the filled descriptor, shape and strides. Where the
    architecture has no descriptors, the tensor, shape and strides."""
    if VERSION >= (3, 8):
        return nvidia.make_tensordesc_arg(descriptor, metadata, None)
    return nvidia.make_tensordesc_arg(descriptor, metadata)
