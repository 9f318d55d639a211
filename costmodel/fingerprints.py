"""Hashes of sources: one per family of kernels, which says whether a measured row is of the kernels as they are now, and one of
the arithmetic of predicted times, which says whether fitted constants are.

A hash leaves out comments, docstrings and layout, so that only an edit that can change a kernel makes its rows stale.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

from costmodel import families

PACKAGE = "tritonconv.kernels"
SOURCES = Path(__file__).parent.parent / "tritonconv" / "kernels"
MODEL = Path(__file__).parent


def imported(tree: ast.Module, package: str = PACKAGE) -> set[str]:
    """The modules of `package` that one of its modules imports."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == package:
            names |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(package + "."):
            names.add(str(node.module).removeprefix(package + "."))
        elif isinstance(node, ast.Import):
            names |= {name.name.removeprefix(package + ".") for name in node.names if name.name.startswith(package + ".")}
    return names


def closure(family: str, sources: Path = SOURCES) -> dict[str, ast.Module]:
    """The parsed modules behind the kernels of a family or function. Raises ValueError for any other name."""
    modules: dict[str, ast.Module] = {}
    todo = list(families.kernels_of(family))
    while todo:
        name = todo.pop()
        if name not in modules:
            modules[name] = ast.parse((sources / f"{name}.py").read_text())
            todo += sorted(imported(modules[name]))
    return modules


def normalised(tree: ast.Module) -> str:
    """The code of a module without docstrings, comments and layout."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return ast.unparse(tree)  # not `ast.dump`, which differs between versions of Python


@cache
def family_hash(family: str, sources: Path = SOURCES) -> str:
    """16 hexadecimal digits that change when the code behind the family's kernels changes."""
    digest = hashlib.sha256()
    for name, tree in sorted(closure(family, sources).items()):
        digest.update(f"{name}\n{normalised(tree)}\n".encode())
    return digest.hexdigest()[:16]


#: Modules that the timed ones import but that are no part of the arithmetic: devices, their calibration, the choice of a plan,
#: the interface of families, and errors.
BESIDE = frozenset("calibration device executed families families.gemm families.protocol forecast plan shapes".split())


def timed() -> tuple[str, ...]:
    """The modules that compute a predicted time from fitted constants."""
    modules = (module for function in families.FUNCTIONS.values() for module in (function.module, function.gradients) if module)
    functions = (module.removeprefix("costmodel.") for module in modules)
    return ("timing", "ahead", *(f"families.{module}" for module in families.TIMED), *functions)


def arithmetic(model: Path) -> dict[str, ast.Module]:
    """The parsed modules behind a predicted time: `timed`, and what they import of the package, except for `BESIDE`."""
    modules: dict[str, ast.Module] = {}
    todo = list(timed())
    while todo:
        name = todo.pop()
        path = model / f"{name.replace('.', '/')}.py"
        if name in modules or name in BESIDE or not path.exists():  # a function of the package `families` is no module
            continue
        modules[name] = ast.parse(path.read_text())
        todo += sorted(imported(modules[name], "costmodel"))
        todo += sorted(f"families.{member}" for member in imported(modules[name], "costmodel.families"))
    return modules


@cache
def model_hash() -> str:
    """16 hexadecimal digits of the arithmetic of predicted times and of the table of compiled kernels that it starts from."""
    digest = hashlib.sha256((MODEL / "data" / "resources.json").read_bytes())
    for name, tree in sorted(arithmetic(MODEL).items()):
        digest.update(f"{name}\n{normalised(tree)}\n".encode())
    return digest.hexdigest()[:16]


def is_current(family: str, measured: str) -> bool:
    """Whether a hash is that of the family's kernels as installed."""
    return family in families.every() and family_hash(family) == measured
