"""Where the compiled code of each kernel family has been executed: on a CPU, instruction by instruction, by `bench/executor`.

A family that rests on special hardware is chosen by default only there; `plan=` forces it elsewhere. `bench/compiled` keeps the
record that this table is held against.
"""

from __future__ import annotations

from costmodel.resources import compiled_for

#: Kernel family -> the architectures whose code ran and was right.
EXECUTED: dict[str, tuple[int, ...]] = {
    "gather": (80, 90),
    "patch": (80, 90),
    "depthwise": (80, 90),
    "band": (80, 90),
    "tma": (90,),
    "causal": (80, 90),
    "video": (80, 90),
    "separable": (80, 90),
}
#: Families whose instructions the others do without: boxes copied by TMA, products by a banded matrix.
SPECIAL = ("tma", "band")


def is_trusted(family: str, capability: int) -> bool:
    """Whether a family may be chosen on a compute capability without being asked for. GPUs of compute capability 8.6, 8.9 and
    12 take what sm_80 compiles to."""
    return family not in SPECIAL or compiled_for(capability) in EXECUTED[family]


def words(family: str, capability: int) -> str:
    """What has run of a family, for a reader: "its compiled code has run for sm_80 and sm_90, on a CPU"."""
    archs = EXECUTED[family]
    known = " and ".join(f"sm_{arch}" for arch in archs)
    text = f"its compiled code has run for {known}, on a CPU"
    return text if compiled_for(capability) in archs else f"{text}, and never for sm_{compiled_for(capability)}"
