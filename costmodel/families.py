"""Which source files a kernel family comes from, and a hash of what they compile to: a row is as old as its kernels.
Constants that were fitted are as old as the arithmetic that they were fitted in, too.

The hash leaves comments, docstrings and layout out, so that only an edit that can change a kernel makes its rows stale.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

PACKAGE = "tritonconv.kernels"
SOURCES = Path(__file__).parent.parent / "tritonconv" / "kernels"
MODEL = Path(__file__).parent
#: A plan's family, "separable" among them, or "causal", whose plans are the depthwise family's -> the modules of its kernels.
#: What these import of the package counts too.
ENTRIES = {
    "gather": ("fprop", "dgrad", "wgrad", "reduce"),
    "patch": ("fprop", "dgrad", "wgrad", "reduce"),
    "tma": ("tma", "wgrad", "reduce"),
    "depthwise": ("depthwise", "depthwise_taps", "depthwise_wgrad"),
    "band": ("band", "band_wgrad"),
    "causal": ("causal", "causal_backward", "causal_state"),
    "video": ("video",),
    "separable": ("separable",),
}

#: Families that no row of a pass can be of, since their functions are several passes -> the one whose product or window theirs
#: is: its constants hold for them, as long as they have none of their own.
KIN = {"separable": "patch", "video": "gather", "causal": "depthwise"}


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
    """The modules behind a family, parsed. ValueError for a family that is not in the table."""
    if family not in ENTRIES:
        raise ValueError(f"unknown kernel family {family!r}; costmodel/families.py knows {', '.join(ENTRIES)}")
    found: dict[str, ast.Module] = {}
    todo = list(ENTRIES[family])
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


#: Modules with a predicted time of their own, into which fitted constants go.
TIMED = ("timing", "depthwise_choice", "band", "causal", "video", "separable")
#: Modules that they import and that are none of the arithmetic: what a device is, what is known of it, which plan is taken,
#: and errors.
BESIDE = frozenset("calibration device forecast plan shapes".split())


def arithmetic(model: Path) -> dict[str, ast.Module]:
    """The modules behind a predicted time, parsed: `TIMED`, and what they import of the package but for `BESIDE`."""
    found: dict[str, ast.Module] = {}
    todo = list(TIMED)
    while todo:
        name = todo.pop()
        if name not in found and name not in BESIDE:
            found[name] = ast.parse((model / f"{name}.py").read_text())
            todo += sorted(imported(found[name], "costmodel"))
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
    return family in ENTRIES and family_hash(family) == measured
