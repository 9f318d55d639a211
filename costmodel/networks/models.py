"""Models by name: "package.module:callable" or "path/to/file.py:callable", imported and called."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn


def load(name: str, **arguments: Any) -> nn.Module:
    """The model that `name` builds, on the meta device (shapes and no weights) where it lets itself be built there.

    It is called with `arguments` alone: some builders fetch weights unless told not to (`weights_backbone=None`).
    Raises ValueError in one line: no such module or attribute, a failed call, a result that is no `nn.Module`.
    """
    where, separator, attribute = name.rpartition(":")
    if not separator or not where or not attribute:
        raise ValueError(f"model must be package.module:callable or file.py:callable, got {name!r}")
    target: Any = imported(where)
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise ValueError(f"model {name!r}: {where} has no {part!r}")
        target = getattr(target, part)
    if isinstance(target, nn.Module):
        return target
    if not callable(target):
        raise ValueError(f"model {name!r}: {attribute} is {type(target).__name__}, neither a model nor callable")
    model = _build(name, target, arguments)
    if not isinstance(model, nn.Module):
        raise ValueError(f"model {name!r}: the call returned {type(model).__name__}, not an nn.Module")
    return model


def _build(name: str, target: Any, arguments: Mapping[str, Any]) -> Any:
    """Called on the meta device first; once more with weights where it reads or places tensors while it is built."""
    try:
        try:
            with torch.device("meta"):
                return target(**arguments)
        except OSError:  # a file or a download that is missing will be missing again
            raise
        except Exception:  # whatever a user's code raises
            return target(**arguments)
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise ValueError(f"model {name!r}: calling it with ({given}) failed: {_one_line(error)}") from error


def imported(where: str) -> ModuleType:
    """The module of a dotted name or a file. ValueError in one line where importing it fails."""
    if where.endswith(".py"):
        return _file(Path(where))
    if where.partition(".")[0] == "torchvision":
        _allow_torchvision_without_operators()
    # a script's own directory is importable, that of an installed command is not
    with contextlib.ExitStack() as stack:
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
            stack.callback(sys.path.remove, str(Path.cwd()))
        try:
            return importlib.import_module(where)
        except Exception as error:  # an import runs code, which may raise anything
            raise ValueError(f"model: cannot import {where!r}: {_one_line(error)}") from error


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"model: no file {str(path)!r}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # a .py file has a loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a file runs code, which may raise anything
        raise ValueError(f"model: cannot run {str(path)!r}: {_one_line(error)}") from error
    return module


_TORCHVISION: list[torch.library.Library] = []


def _allow_torchvision_without_operators() -> None:
    """torchvision built for another torch cannot load its C++ operators, and its import fails because it describes
    torchvision::nms (and qnms), which then does not exist. Declared, they let the models, which need neither, be imported."""
    if _TORCHVISION or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            return
        for module in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
            del sys.modules[module]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _TORCHVISION.append(library)  # its declarations live as long as it does


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
