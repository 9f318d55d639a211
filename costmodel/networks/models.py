"""Models by name: "package.module:callable", "path/to/file.py:callable" or "timm:name", imported and called.

Nothing is downloaded. Where a factory tries to, the error says which argument makes it build without weights.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from costmodel.device_names import meant
from costmodel.networks.offline import offline


def load(name: str, **arguments: Any) -> nn.Module:
    """The model that `name` builds, on the meta device (shapes and no weights) where that is possible.

    It is called with `arguments` only: some builders fetch weights unless told not to (`weights_backbone=None`). A name of timm
    is built by `timm.create_model`. Raises ValueError, in one line, for a missing module or attribute, a failed call, a call
    that would download, and a result that is no `nn.Module`.
    """
    where, separator, attribute = name.rpartition(":")
    if not separator or not where or not attribute:
        hint = f"; torchvision.models:{name} or timm:{name}?" if name.isidentifier() else ""
        raise ValueError(f"model must be package.module:callable or file.py:callable, got {name!r}{hint}")
    with offline() as requests, _aside(requests):
        target, described = _looked_up(name, where, attribute)
        if isinstance(target, nn.Module):
            return target
        if not callable(target):
            raise ValueError(f"model {name!r}: {attribute} is {type(target).__name__}, neither a model nor callable")
        try:
            model = _patient(partial(_build, target, arguments))
        except Exception as error:  # whatever a user's code raises
            if requests:
                raise ValueError(f"model {name!r}: {_refusal(described, requests[0])}") from error
            given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
            raise ValueError(f"model {name!r}: calling it with ({given}) failed: {_one_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"model {name!r}: the call returned {type(model).__name__}, not an nn.Module")
    return model


@contextlib.contextmanager
def _aside(requests: Sequence[str]) -> Iterator[None]:
    """Keeps what a factory prints out of the report, and writes it to stderr at the end. Where the factory failed because a
    download was refused it is dropped, because it would say that the download is under way."""
    output, built = io.StringIO(), False
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            yield
        built = True
    finally:
        if built or not requests:
            sys.stderr.write(output.getvalue())


def _looked_up(name: str, where: str, attribute: str) -> tuple[Any, Any]:
    """(what to call, what has its signature)."""
    module = imported(where)
    if where == "timm" and not hasattr(module, attribute):
        return partial(module.create_model, attribute), module.create_model
    target: Any = module
    for part in attribute.split("."):
        if not hasattr(target, part):
            known = [word for word in dir(target) if callable(getattr(target, word, None)) and not word.startswith("_")]
            raise ValueError(f"model {name!r}: {where} has no {part!r}{meant(part, known)}")
        target = getattr(target, part)
    return target, target


def _refusal(described: Any, host: str) -> str:
    """Words that say how to tell a factory to download nothing."""
    try:
        names = list(inspect.signature(described).parameters)
    except (TypeError, ValueError):  # a class written in C has no signature
        names = []
    weights = [word for word in names if word.startswith("weights")]
    settings = [f"{word}=None" for word in weights] + [f"{word}=False" for word in names if word.startswith("pretrained")]
    options = " ".join(f"--arg {word}" for word in settings or ["weights=None"])
    return f"it asked {host} for weights, and nothing is downloaded: say no with {options}"


def _build(target: Any, arguments: Mapping[str, Any]) -> Any:
    """The built model: on the meta device, or with weights where building it reads or places tensors."""
    try:
        with torch.device("meta"):
            return target(**arguments)
    except OSError:  # a file or a download that is missing will be missing again
        raise
    except Exception as error:  # whatever a user's code raises
        if NO_OPERATORS in str(error):
            raise
        return target(**arguments)


def imported(where: str) -> ModuleType:
    """The module of a dotted name or a file. Raises ValueError, in one line, where importing it fails."""
    if where.endswith(".py"):
        return _file(Path(where))
    # Python makes a script's directory importable, but not the working directory of an installed command
    with contextlib.ExitStack() as stack:
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
            stack.callback(sys.path.remove, str(Path.cwd()))
        try:
            return _patient(partial(importlib.import_module, where))
        except Exception as error:  # an import runs code, which may raise anything
            hint = ""
            if isinstance(error, ModuleNotFoundError) and error.name == where.partition(".")[0]:
                hint = meant(str(error.name), importlib.metadata.packages_distributions(), 1)
            raise ValueError(f"model: cannot import {where!r}: {_one_line(error)}{hint}") from error


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        near = meant(path.name, [other.name for other in path.parent.glob("*.py")]) if path.parent.is_dir() else ""
        raise ValueError(f"model: no file {str(path)!r}{near}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # a .py file has a loader
    module = importlib.util.module_from_spec(spec)
    try:
        _patient(partial(spec.loader.exec_module, module))
    except Exception as error:  # a file runs code, which may raise anything
        raise ValueError(f"model: cannot run {str(path)!r}: {_one_line(error)}") from error
    return module


NO_OPERATORS = "torchvision::nms does not exist"
_TORCHVISION: list[torch.library.Library] = []


def _patient(action: Callable[[], Any]) -> Any:
    """The result of `action`, which may import torchvision, directly or through another module.

    torchvision built for another torch cannot load its C++ operators. Its import then fails, because it describes
    torchvision::nms (and qnms), which do not exist. Declaring them here lets the models, which need neither, be imported.
    """
    try:
        return action()
    except RuntimeError as error:
        if _TORCHVISION or NO_OPERATORS not in str(error):
            raise
    for module in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
        del sys.modules[module]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _TORCHVISION.append(library)  # its declarations live as long as it does
    return action()


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
