"""The kernel families of a pass, by name: how `tritonconv` launches and explains them.

`costmodel.families` has the other half: which calls a family serves, and what they cost.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from costmodel.families.copied import PREFIX

if TYPE_CHECKING:
    from tritonconv.families.protocol import Launcher

#: The modules that launch families, each with a tuple `LAUNCHERS`.
MODULES = ("gemm", "tma", "depthwise", "band", "padded")


@cache
def launchers() -> dict[str, Launcher]:
    """The launcher of each family, by name. A test may add one to the dictionary."""
    every = [launcher for module in MODULES for launcher in import_module(f"{__name__}.{module}").LAUNCHERS]
    return {launcher.name: launcher for launcher in every}


@cache
def launcher(name: str) -> Launcher:
    """The launcher of a family that a plan names."""
    from tritonconv.families.copied import CopiedLauncher  # here, because it imports `describe`, which imports this package

    inner = name.removeprefix(PREFIX)
    return launchers()[name] if inner == name else CopiedLauncher(launchers()[inner])
