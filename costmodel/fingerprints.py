"""Hashes of sources. A row is as old as the kernels of its family, so those files have one; constants that were fitted are as
old as the arithmetic of predicted times, which has another.

The hash leaves comments, docstrings and layout out, so that only an edit that can change a kernel makes its rows stale.
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
    """The modules of a package that a module of it imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == package:
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(package + "."):
            found.add(str(node.module).removeprefix(package + "."))
        elif isinstance(node, ast.Import):
            found |= {name.name.removeprefix(package + ".") for name in node.names if name.name.startswith(package + ".")}
    return found


def closure(family: str, sources: Path = SOURCES) -> dict[str, ast.Module]:
    """The modules behind the kernels of a family or function, parsed. ValueError for a name that is neither's."""
    found: dict[str, ast.Module] = {}
    todo = list(families.kernels_of(family))
    while todo:
        name = todo.pop()
        if name not in found:
            found[name] = ast.parse((sources / f"{name}.py").read_text())
            todo += sorted(imported(found[name]))
    return found


def normalised(tree: ast.Module) -> str:
    """The code without docstrings; comments and positions are not part of it."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return ast.unparse(tree)  # not `ast.dump`, which differs between versions of Python


@cache
def family_hash(family: str, sources: Path = SOURCES) -> str:
    """16 hexadecimal digits that change where code behind the family's kernels does."""
    digest = hashlib.sha256()
    for name, tree in sorted(closure(family, sources).items()):
        digest.update(f"{name}\n{normalised(tree)}\n".encode())
    return digest.hexdigest()[:16]


#: Modules that these import and that are none of the arithmetic: what a device is, what is known of it, which plan is taken,
#: what a family is asked, and errors.
BESIDE = frozenset("calibration device executed families families.gemm families.protocol forecast plan shapes".split())


def timed() -> tuple[str, ...]:
    """Modules with a predicted time of their own, into which fitted constants go."""
    functions = (each.module.removeprefix("costmodel.") for each in families.FUNCTIONS.values())
    return ("timing", *(f"families.{module}" for module in families.TIMED), *functions)


def arithmetic(model: Path) -> dict[str, ast.Module]:
    """The modules behind a predicted time, parsed: `timed`, and what they import of the package but for `BESIDE`."""
    found: dict[str, ast.Module] = {}
    todo = list(timed())
    while todo:
        name = todo.pop()
        if name not in found and name not in BESIDE:
            found[name] = ast.parse((model / f"{name.replace('.', '/')}.py").read_text())
            todo += sorted(
                imported(found[name], "costmodel") | {f"families.{n}" for n in imported(found[name], "costmodel.families")}
            )
    return found


@cache
def model_hash() -> str:
    """The same for the arithmetic of predicted times and the counts that it starts from."""
    digest = hashlib.sha256((MODEL / "data" / "resources.json").read_bytes())
    for name, tree in sorted(arithmetic(MODEL).items()):
        digest.update(f"{name}\n{normalised(tree)}\n".encode())
    return digest.hexdigest()[:16]


def is_current(family: str, measured: str) -> bool:
    """Whether a hash is that of a family's kernels as they are installed."""
    return family in families.every() and family_hash(family) == measured
