"""Whether a kernel family may be chosen: where its compiled code has been executed, on a CPU, instruction by instruction.

A family that rests on special hardware is chosen by default only there; `plan=` forces it elsewhere. `bench/executor` executes,
and `bench/compiled` keeps the record that `costmodel.families.executed` is held against.
"""

from __future__ import annotations

from costmodel import families
from costmodel.resources import compiled_for


def is_trusted(name: str, capability: int) -> bool:
    """Whether a family may be chosen on a compute capability without being asked for. GPUs of compute capability 8.6, 8.9 and
    12 take what sm_80 compiles to."""
    return not families.family(name).special or compiled_for(capability) in families.executed(name)


def words(name: str, capability: int) -> str:
    """What has run of a family, for a reader: "its compiled code has run for sm_80 and sm_90, on a CPU"."""
    archs = families.executed(name)
    if not archs:
        return "its compiled code has not been executed"
    known = " and ".join(f"sm_{arch}" for arch in archs)
    text = f"its compiled code has run for {known}, on a CPU"
    return text if compiled_for(capability) in archs else f"{text}, and never for sm_{compiled_for(capability)}"
