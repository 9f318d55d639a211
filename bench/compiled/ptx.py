"""The code in a kernel's PTX: a hash that tells kernels apart, and the kernel's family and type."""

from __future__ import annotations

import hashlib
import re

from bench.compiled.source import SHARED, families_of, is_shared
from bench.executor.driver import Launched
from tritonconv.families import launchers

#: Triton's names of element types, the narrowest first.
DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "fp64": "float64"}
#: Lines that say where code comes from, which are no code.
_ORIGIN = re.compile(r"^\s*(\.loc\b|\.file\b|//|\$L__tmp\d+:)")


def ptx_hash(ptx: str) -> str:
    """16 hexadecimal digits of the code: comments, source positions and debug sections are left out."""
    digest = hashlib.sha256()
    for line in ptx.splitlines():
        if line.lstrip().startswith(".section"):
            break
        if not _ORIGIN.match(line):
            digest.update(line.partition("//")[0].rstrip().encode() + b"\n")
    return digest.hexdigest()[:16]


def family_of(launched: Launched) -> str:
    """The kernel family of a launch; `SHARED` for the second stage that several families have."""
    name = launched.program.name
    if is_shared(name):
        return SHARED
    first, *others = families_of()[name]
    if not others:
        return first
    return next(candidate for candidate in (first, *others) if launchers()[candidate].launches(launched.constants))


def dtype_of(launched: Launched) -> str:
    """The type of the elements that are read or written, the narrowest of several; "tf32" is float32 multiplied in tf32."""
    kinds = [re.sub(r"\[.*", "", kind.removeprefix("*").removeprefix("tensordesc<")) for kind in launched.types]
    for name, dtype in DTYPES.items():
        if name in kinds:
            tf32 = dtype == "float32" and str(launched.constants.get("PRECISION", "")).startswith("tf32")
            return "tf32" if tf32 else dtype
    raise ValueError(f"{launched.program.name} takes no floating-point tensor: {launched.types}")
