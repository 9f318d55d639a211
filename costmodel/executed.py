"""Whether a kernel family may be chosen by default on an architecture.

A family that needs special hardware is chosen only on architectures whose compiled code has been executed, on a CPU,
instruction by instruction; `plan=` selects it elsewhere. `bench/executor` executes compiled code, and `bench/compiled` keeps
the record that tests hold `costmodel.families.executed` against.
"""

from __future__ import annotations

from costmodel import families
from costmodel.resources import compiled_for


def is_trusted(name: str, capability: int) -> bool:
    """Whether a family may be chosen on a compute capability without `plan=`. GPUs of compute capability 8.6, 8.9 and 12 use
    the code of sm_80."""
    return not families.family(name).special or compiled_for(capability) in families.executed(name)


def words(name: str, capability: int) -> str:
    """Words that say where a family's code has run: "its compiled code has run for sm_80 and sm_90, on a CPU"."""
    archs = families.executed(name)
    if not archs:
        return "its compiled code has not been executed"
    known = " and ".join(f"sm_{arch}" for arch in archs)
    text = f"its compiled code has run for {known}, on a CPU"
    return text if compiled_for(capability) in archs else f"{text}, and never for sm_{compiled_for(capability)}"
