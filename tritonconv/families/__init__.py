"""The kernel families of a pass, by name, as `tritonconv` launches and explains them.

`costmodel.families` has the other half: what a family serves and costs.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tritonconv.families.protocol import Launcher

#: The modules that launch families, each with them as `LAUNCHERS`.
MODULES = ("gemm", "tma", "depthwise", "band")


@cache
def launchers() -> dict[str, Launcher]:
    """What launches each family, by its name. A test may put one more into it."""
    found = [launcher for module in MODULES for launcher in import_module(f"{__name__}.{module}").LAUNCHERS]
    return {launcher.name: launcher for launcher in found}
