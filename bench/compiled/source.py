"""The part of the sources that decides a kernel's compiled code: the syntax of the kernel and of everything that it reaches.

Comments, docstrings, positions and other kernels of the same file do not count. A row of the record is current while the
kernels that it launched are unchanged.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from costmodel import families
from costmodel.fingerprints import PACKAGE, SOURCES, normalised

#: The name in the record of the second stage of a shared reduction, which several families have.
SHARED = "reduce"


@dataclass(frozen=True)
class Module:
    """A parsed file: what it defines at its top level, and what it imports from the package: name -> (module, name there)."""

    defined: dict[str, ast.stmt]
    imported: dict[str, tuple[str, str]]


@cache
def kernels_by_module() -> dict[str, tuple[str, ...]]:
    """The names of the kernels that each file defines."""
    return {
        module: tuple(name for name in tree.defined if name.endswith("_kernel")) for module, tree in parsed(SOURCES).items()
    }


def every_kernel() -> tuple[str, ...]:
    return tuple(kernel for kernels in kernels_by_module().values() for kernel in kernels)


@cache
def families_of() -> dict[str, tuple[str, ...]]:
    """The families and functions that have each kernel, by its name."""
    return {
        kernel: tuple(name for name in families.every() if module in families.kernels_of(name))
        for module, kernels in kernels_by_module().items()
        for kernel in kernels
    }


def is_shared(kernel: str) -> bool:
    """Whether a kernel is the second stage of a shared reduction."""
    return kernel == f"{SHARED}_kernel"


def kernels_of(names: Iterable[str]) -> tuple[str, ...]:
    """The names of the kernels that families launch. The kernel of `SHARED` counts for no family."""
    selected = set(names)
    return tuple(
        kernel
        for kernel, owners in families_of().items()
        if (SHARED in selected if is_shared(kernel) else selected.intersection(owners))
    )


@cache
def source_hash(kernels: tuple[str, ...], sources: Path = SOURCES) -> str:
    """16 hexadecimal digits that change when code changes that one of the kernels is compiled from.

    Raises ValueError where a kernel is in no file.
    """
    modules = parsed(sources)
    definitions: set[tuple[str, str]] = set()
    for name in kernels:
        homes = [module for module, tree in modules.items() if name in tree.defined]
        if not homes:
            raise ValueError(f"no file of {sources} defines a kernel {name!r}")
        definitions |= reached((homes[0], name), modules)
    texts = {ast.unparse(modules[module].defined[name]) for module, name in definitions}
    texts |= {text for module in {module for module, _ in definitions} for text in classes(modules[module])}
    digest = hashlib.sha256("\n".join([*sorted(set(kernels)), *sorted(texts)]).encode())
    return digest.hexdigest()[:16]


@cache
def parsed(sources: Path) -> dict[str, Module]:
    """Every file of a folder of kernels, by name. Raises ValueError for an import that `reached` cannot follow."""
    modules = {}
    for path in sources.glob("*.py"):
        defined: dict[str, ast.stmt] = {}
        imported: dict[str, tuple[str, str]] = {}
        tree = ast.parse(path.read_text())
        normalised(tree)  # removes its docstrings
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                defined |= {name.id: node for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE + "."):
                home = str(node.module).removeprefix(PACKAGE + ".")
                if any(name.asname or name.name == "*" for name in node.names):
                    raise ValueError(f"{path}:{node.lineno}: kernels import functions of each other by their own names")
                imported |= {name.name: (home, name.name) for name in node.names}
            elif any(name.split(".")[0] in ("tritonconv", "costmodel", "bench") for name in modules_of(node)):
                raise ValueError(f"{path}:{node.lineno}: kernels import functions of files of {PACKAGE}, and nothing else")
        modules[path.stem] = Module(defined, imported)
    return modules


def modules_of(node: ast.stmt) -> Iterator[str]:
    """The modules that a statement imports."""
    if isinstance(node, ast.ImportFrom):
        yield node.module or PACKAGE
    elif isinstance(node, ast.Import):
        yield from (name.name for name in node.names)


def reached(start: tuple[str, str], modules: dict[str, Module]) -> set[tuple[str, str]]:
    """The functions and constants, as (module, name), that `start` uses, directly or not."""
    visited: set[tuple[str, str]] = set()
    todo = [start]
    while todo:
        module, name = todo.pop()
        file = modules[module]
        if name in file.imported:
            todo.append(file.imported[name])
        elif name in file.defined and (module, name) not in visited:
            visited.add((module, name))
            todo += [(module, node.id) for node in ast.walk(file.defined[name]) if isinstance(node, ast.Name)]
    return visited


def classes(module: Module) -> Iterator[str]:
    """The classes of a file. They matter because kernels take named tuples apart, whose fields have the order of the class."""
    for node in module.defined.values():
        if isinstance(node, ast.ClassDef):
            yield ast.unparse(node)
