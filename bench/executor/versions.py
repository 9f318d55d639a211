"""What differs between the versions of Triton that the executor drives: 3.6.0, 3.7.1, 3.8.0 and 3.9.0.

Of the stages of a compilation the last, ptxas, is left out: the "binary" is the PTX itself.
"""

from __future__ import annotations

from typing import Any

import triton
from triton import knobs
from triton.backends.nvidia import driver as nvidia

from bench.executor.layout import Kind

#: What makes a descriptor in `driver.active.utils`: 3.6 has the first name, later versions the second.
FILL_NAMES = ("fill_tma_descriptor", "fill_tma_descriptor_tiled")
#: What keeps executed kernels apart from others in Triton's cache, where it asks (3.7 on).
KEY = "executor: the binary is the PTX"
#: The folder of executed kernels in Triton's cache.
FOLDER = "/executor"
#: The version at hand, (3, 7).
VERSION = tuple(int(word) for word in triton.__version__.split(".")[:2])

#: Faults of the compiler that are known and not this project's: 3.6 puts no fence between what cp.async or a store wrote and a
#: wgmma that reads it, which PTX asks for; 3.7 on do.
FORGIVEN = (Kind.PROXY,) if VERSION < (3, 7) else ()


def _no_machine_code(
    backend: Any = None, stages: Any = None, options: Any = None, language: Any = None, capability: Any = None
) -> tuple[str, str] | None:
    """Triton's hook on the stages of a compilation: without arguments it is asked for its part of the cache's key."""
    if stages is None:
        return KEY, KEY
    stages["cubin"] = lambda ptx, metadata: ptx.encode()
    return None


def leave_out_machine_code() -> None:
    """From here on Triton compiles to PTX and no further, in a folder of its own: 3.6 does not ask the hook for a key."""
    knobs.runtime.add_stages_inspection_hook = _no_machine_code
    _cache_in(str(knobs.cache.dir).removesuffix(FOLDER) + FOLDER)


def make_machine_code() -> None:
    """Undoes `leave_out_machine_code`."""
    knobs.runtime.add_stages_inspection_hook = None
    _cache_in(str(knobs.cache.dir).removesuffix(FOLDER))


def _cache_in(folder: str) -> None:
    """The folder of Triton's cache in this process, not in the environment of those that it starts."""
    propagates, knobs.propagate_env = knobs.propagate_env, False
    knobs.cache.dir = folder
    knobs.propagate_env = propagates


def descriptor_values(descriptor: Any, metadata: Any) -> list[Any]:
    """What a kernel gets for a TMA descriptor, by Triton's own code: the filled one, then shape and strides; where the
    architecture has none, the tensor and its shape and strides."""
    if VERSION >= (3, 8):
        return nvidia.make_tensordesc_arg(descriptor, metadata, None)
    return nvidia.make_tensordesc_arg(descriptor, metadata)
