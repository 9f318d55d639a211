"""A copy of a model that shares the parameters' memory with it and nothing else.

`copy.deepcopy` copies the memory too, and fails on what many models hold: results with a history (a weight that a hook made, a
cached activation), locks, open files. Here such things are shared, and everything that can name a module of the model
(containers, plain objects, bound methods, partials, closures) is copied, so that a copy never calls the original.
"""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections import ChainMap, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

Model = TypeVar("Model", bound=nn.Module)

#: Values that need no copy.
ATOMS = (int, float, complex, bool, str, bytes, type(None), type, range, torch.dtype, torch.device)
#: The callables that `rebuilt` looks into.
Callables = types.MethodType | types.FunctionType | functools.partial


def rebuilt(value: Any, swap: Callable[[Any], Any], seen: frozenset[int] = frozenset()) -> Any:
    """A callable in which `swap` has replaced the objects: a method's, a partial's, those of a closure and of wrapped
    functions. It is the same callable where nothing in it changes."""
    if id(value) in seen:
        return value
    if (replacement := swap(value)) is not value:
        return replacement
    again = functools.partial(rebuilt, swap=swap, seen=seen | {id(value)})
    if isinstance(value, types.MethodType):
        owner, function = again(value.__self__), again(value.__func__)
        same = owner is value.__self__ and function is value.__func__
        return value if same else types.MethodType(function, owner)
    if isinstance(value, functools.partial):
        function, arguments = again(value.func), tuple(map(again, value.args))
        named = {name: again(argument) for name, argument in value.keywords.items()}
        held = {name: again(attribute) for name, attribute in vars(value).items()}
        pieces = [function, *arguments, *named.values(), *held.values()]
        before = [value.func, *value.args, *value.keywords.values(), *vars(value).values()]
        if all(a is b for a, b in zip(pieces, before, strict=True)):
            return value
        partial = functools.partial(function, *arguments, **named)
        vars(partial).update(held)
        return partial
    if isinstance(value, types.FunctionType):
        return _function(value, again)
    return value


def _function(value: types.FunctionType, again: Callable[[Any], Any]) -> types.FunctionType:
    cells, changed = [], False
    for cell in value.__closure__ or ():
        try:
            copied = again(cell.cell_contents)
        except ValueError:  # the cell is still empty
            cells.append(cell)
            continue
        changed = changed or copied is not cell.cell_contents
        cells.append(types.CellType(copied))
    held = {name: again(attribute) for name, attribute in vars(value).items()}
    if not changed and all(held[name] is attribute for name, attribute in vars(value).items()):
        return value
    function = types.FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, tuple(cells) or None)
    function.__kwdefaults__, function.__qualname__, function.__doc__ = value.__kwdefaults__, value.__qualname__, value.__doc__
    vars(function).update(held)
    return function


def class_like(cls: type, *bases: type) -> Any:
    """A new class with the namespace of `cls`, with the bases `bases` if given."""
    namespace = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    return type(cls.__name__, bases or cls.__bases__, namespace)


def sharing_copy(model: Model) -> Model:
    """The copy. Its parameters and buffers are new objects over the same memory: an in-place change of values shows in both
    models; `.to(...)`, a new gradient or a new buffer shows in only one."""
    duplicate = _Duplicate()
    for tensor in model.buffers():
        duplicate.remember(tensor, tensor.detach() if not is_lazy(tensor) else tensor)
    for part in model.modules():
        duplicate.shell(part)
    for part in model.modules():
        duplicate.fill(part)
    copied: Model = duplicate.memo[id(model)]
    return copied


class _Duplicate:
    def __init__(self) -> None:
        self.memo: dict[int, Any] = {}  # id -> copy, as `copy.deepcopy` keeps it
        self.alive: list[Any] = []  # everything whose id is in the memo
        self.filled: set[int] = set()

    def remember(self, value: Any, duplicate: Any) -> Any:
        self.memo[id(value)] = duplicate
        self.alive.append(value)
        return duplicate

    def shell(self, part: nn.Module) -> Any:
        """An empty module in the place of `part`."""
        if id(part) in self.memo:
            return self.memo[id(part)]
        if isinstance(part, torch.jit.ScriptModule) or type(part).__module__.startswith("torch.ao.nn.quantized"):
            self.filled.add(id(part))  # their content is not in their dict
            return self.remember(part, self.by_protocol(part))
        if isinstance(part, torch.fx.GraphModule):  # its `__new__` makes a class to which the graph's code is written
            return self.remember(part, type(part).__new__(type(part)))
        own = is_parametrized(part)  # torch gave the instance a class of its own, which its methods write to
        return self.remember(part, object.__new__(class_like(type(part)) if own else type(part)))

    def fill(self, part: nn.Module) -> None:
        if id(part) in self.filled:
            return
        self.filled.add(id(part))
        duplicate = self.memo[id(part)]
        custom = type(part).__getstate__ is not object.__getstate__ and not is_parametrized(part)
        state = part.__getstate__() if custom else vars(part)
        state = {name: self.copied(value) for name, value in state.items()}
        if state.get("_compiled_call_impl") is not None:
            state["_compiled_call_impl"] = None  # torch's own copies do the same
        if custom:
            duplicate.__setstate__(state)
        else:
            vars(duplicate).update(state)
        if isinstance(duplicate, torch.fx.GraphModule):
            duplicate.graph = duplicate.graph  # this writes the forward

    def copied(self, value: Any) -> Any:
        if id(value) in self.memo:
            return self.memo[id(value)]
        if isinstance(value, nn.Module):
            duplicate = self.shell(value)
            self.fill(value)
            return duplicate
        if isinstance(value, torch.Tensor):
            return self.remember(value, self.parameter(value)) if isinstance(value, nn.Parameter) else value
        if isinstance(value, weakref.ref):
            target = value()
            known = None if target is None else self.memo.get(id(target), target)
            return value if known is target else weakref.ref(known)
        if isinstance(value, Callables):
            return self.remember(value, rebuilt(value, self.swapped))
        return self.container(value)

    def swapped(self, value: Any) -> Any:
        """The copy of what a callable holds: modules, and plain objects that hold modules. Tensors are shared by the caller."""
        return value if isinstance(value, (Callables, torch.Tensor, type)) else self.copied(value)

    def container(self, value: Any) -> Any:
        kind, duplicate = type(value), None
        if kind in ATOMS:
            return value
        if kind in (list, deque, set):
            duplicate = self.remember(value, kind() if kind is not deque else deque(maxlen=value.maxlen))
            add = duplicate.add if kind is set else duplicate.append
            for item in value:
                add(self.copied(item))
            return duplicate
        if kind in (dict, OrderedDict, defaultdict):
            duplicate = self.remember(value, defaultdict(value.default_factory) if kind is defaultdict else kind())
            for name, item in value.items():
                duplicate[self.copied(name)] = self.copied(item)
            return duplicate
        if kind is tuple or (isinstance(value, tuple) and hasattr(kind, "_make")):
            items = [self.copied(item) for item in value]
            if all(a is b for a, b in zip(items, value, strict=True)):
                return value
            return self.remember(value, kind._make(items) if hasattr(kind, "_make") else tuple(items))
        if is_plain(kind):
            duplicate = self.remember(value, object.__new__(kind))
            vars(duplicate).update({name: self.copied(item) for name, item in vars(value).items()})
            return duplicate
        if kind.__module__.partition(".")[0] == "torch" and not hasattr(kind, "__deepcopy__"):
            return value  # torch's own objects: dtypes, hooks without state, what it keeps beside a module
        return self.by_protocol(value)

    def by_protocol(self, value: Any) -> Any:
        """`copy.deepcopy`, or the object itself where it refuses."""
        copies: dict[int, Any] = {}
        memo: Any = ChainMap(copies, self.memo)  # so that a failed attempt leaves nothing behind
        try:
            duplicate = copy.deepcopy(value, memo)
        except Exception:  # an object that cannot be copied may raise anything
            return value
        self.alive += copies.pop(id(memo), [])
        self.memo |= copies
        return duplicate

    def parameter(self, value: nn.Parameter) -> Any:
        if is_lazy(value):
            return self.by_protocol(value)
        duplicate = nn.Parameter(value.detach(), value.requires_grad)
        vars(duplicate).update(vars(value))
        return duplicate


def is_plain(kind: type) -> bool:
    """Whether objects of this class consist of their attributes only, as far as the class shows, and are not torch's."""
    own = ("__deepcopy__", "__copy__", "__setstate__", "__getnewargs__", "__getnewargs_ex__", "__slots__")
    plain = all(getattr(kind, name) is getattr(object, name) for name in ("__reduce_ex__", "__reduce__", "__getstate__"))
    standard = kind.__new__ is object.__new__ and kind.__dictoffset__ != 0
    return standard and plain and not any(hasattr(kind, name) for name in own) and kind.__module__.partition(".")[0] != "torch"
