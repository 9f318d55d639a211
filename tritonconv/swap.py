"""Exchanges one layer's class, torch's for ours or ours for torch's, or says why it cannot."""

from __future__ import annotations

import functools
import types
from collections.abc import Hashable
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from tritonconv import layers as ours
from tritonconv.adapters import Adapted
from tritonconv.check import DTYPES, as_int, is_int
from tritonconv.modelcopy import Callables, class_like, rebuilt
from tritonconv.private import ConvNd
from tritonconv.use import SERVED, Region

#: torch's class -> our class, which adds no state and can replace it in an instance.
REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: ours.Conv1d,
    nn.Conv2d: ours.Conv2d,
    nn.Conv3d: ours.Conv3d,
    nn.ConvTranspose1d: ours.ConvTranspose1d,
    nn.ConvTranspose2d: ours.ConvTranspose2d,
    nn.ConvTranspose3d: ours.ConvTranspose3d,
}
_TORCHS = {replacement: kind for kind, replacement in REPLACEMENTS.items()}
#: The names of torch's convolution functions.
_NAMES = {torchs.__name__.lower().replace("transpose", "_transpose") for torchs in REPLACEMENTS} | {"convolution"}
#: Subclasses of torch's classes -> the classes that replace them.
_MADE: dict[type[nn.Module], type[nn.Module]] = {}
#: The attribute in which an instance keeps whether its own forward has called a convolution that ours serve.
_REACHED = "_tritonconv_reached"


def adapt(part: nn.Module, mixin: type[Adapted]) -> None:
    """Makes a layer run the forward that `adapter` gives it. Where the layer is a convolution, `replace` has made it ours
    before."""
    _exchange(part, _adapted(type(part), mixin))


#: Classes of layers -> what `adapt` makes of them.
_ADAPTED: dict[type[nn.Module], Any] = {}


def _adapted(kind: Any, mixin: type[Adapted]) -> Any:
    if kind not in _ADAPTED:
        names = {"__module__": kind.__module__, "__doc__": kind.__doc__, "__reduce_ex__": _reduced_adapted}
        _ADAPTED[kind] = type(kind.__name__, (mixin, kind), names)
    return _ADAPTED[kind]


def _reduced_adapted(self: Any, protocol: Any) -> Any:
    mixin, kind = type(self).__bases__
    origin = next((old for old, replacement in _MADE.items() if replacement is kind), kind)
    return _adapted_instance, (origin, mixin), self.__getstate__()


def _adapted_instance(kind: Any, mixin: type[Adapted]) -> Any:
    adapted = _adapted(_replacement(kind) if issubclass(kind, ConvNd) else kind, mixin)
    return adapted.__new__(adapted)


def is_convolution(part: nn.Module) -> bool:
    """Whether a module is a convolution of torch's or ours, by its class."""
    return isinstance(part, ConvNd)


def refusal(part: nn.Module) -> str:
    """Why a convolution's computation cannot be replaced; "" where it can or has been."""
    if isinstance(part, nn.modules.lazy.LazyModuleMixin):
        return "it is lazy: run the model once first"
    dtypes = {p.dtype for p in part.parameters() if p.dtype not in DTYPES}
    if dtypes:
        return f"its weights are {', '.join(sorted(str(dtype).removeprefix('torch.') for dtype in dtypes))}"
    if isinstance(part, ours.Replacement):
        reached = part.__dict__.get(_REACHED)
        return "its own forward called no convolution that is reached" if reached is False else ""
    if type(part).__module__.startswith("torch.ao.nn.quantized"):
        return "it is quantised, and multiplies integers"
    if _base(type(part)) is None:
        return "it is none of torch's six classes"
    if _calls_torch(part.__dict__.get("forward")):
        return "a forward that calls torch's functions itself was bound to it"
    return ""


def replace(part: nn.Module) -> None:
    """Makes torch's layer ours, in place. `refusal` must have returned ""."""
    kind = type(part)
    if is_parametrized(part):  # torch gave the instance a class of its own, derived from the layer's
        _exchange(part, class_like(kind, _replacement(kind.__bases__[0])))
    else:
        _exchange(part, _replacement(kind))
    for name in ("stride", "padding", "dilation", "output_padding", "groups"):
        value = getattr(part, name)
        if isinstance(value, tuple) and all(map(is_int, value)):  # converts NumPy's integers, which no graph takes
            setattr(part, name, tuple(as_int(name, name, v) for v in value))
        elif is_int(value):
            setattr(part, name, as_int(name, name, value))


def restore(part: nn.Module) -> bool:
    """Makes our layer torch's, in place. Returns False for a class that derives from ours, and for a padding mode per axis,
    which torch's layers do not take."""
    if not isinstance(getattr(part, "padding_mode", ""), str):
        return False
    if isinstance(part, Adapted):
        _exchange(part, type(part).__bases__[1])
    kind = type(part)
    back = _TORCHS | {original: old for old, original in _MADE.items()}
    if is_parametrized(part):
        base = back.get(kind.__bases__[0])
        original = base and class_like(kind, base)
    else:
        original = back.get(kind)
    if original is None:
        return False
    part.__dict__.pop(_REACHED, None)
    _exchange(part, original)
    return True


def own_forward(part: nn.Module) -> bool:
    """Whether a layer of ours runs a forward of its own, in a region that takes torch's functions to ours."""
    kind: Any = type(part)
    return bool(getattr(kind, "by_region", False))


def calls_functional(part: nn.Module) -> str:
    """Which of torch's convolutions a module that is not one calls itself, as far as its code shows; "" for none. These are the
    ones that its `forward` names, or a method or function that `forward` names, and the calls of a traced graph."""
    if isinstance(part, torch.fx.GraphModule):
        return ", ".join(sorted({_function_name(node.target) for node in part.graph.nodes if _serves(node.target)}))
    if type(part).__module__.startswith(("torch.", "tritonconv.")) and "forward" not in part.__dict__:
        return ""
    names: set[str] = set()
    _named_in(_bare(part.forward), part, names, set())
    return ", ".join(sorted(names))


def _function_name(target: Any) -> str:
    return str(getattr(target, "__name__", target)).partition(".")[0]


def _serves(value: Any) -> bool:
    """Whether a value is one of torch's convolutions."""
    return isinstance(value, Hashable) and value in SERVED


def _named_in(function: Any, part: nn.Module, names: set[str], seen: set[int]) -> None:
    """Adds torch's convolutions that a function's code names, and those that the functions and methods it names do."""
    code = getattr(function, "__code__", None)
    if code is None or id(code) in seen or str(function.__module__).startswith(("torch.", "tritonconv.")):
        return
    seen.add(id(code))
    codes = [code]
    while codes:
        code = codes.pop()
        codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]
        for name in code.co_names:
            value = function.__globals__.get(name)
            # a layer or method of the module's own may be called as one of torch's functions
            if _serves(value) or (name in _NAMES and not hasattr(part, name)):
                names.add(_function_name(value) if _serves(value) else name)
            for member in (value, *(vars(kind).get(name) for kind in type(part).__mro__)):
                if isinstance(member, types.FunctionType):
                    _named_in(member, part, names, seen)


def _base(kind: type[nn.Module]) -> type[nn.Module] | None:
    """The one of torch's six classes that a class is or extends."""
    return next((base for base in REPLACEMENTS if issubclass(kind, base)), None)


def _calls_torch(forward: Any) -> bool:
    """Whether a forward that was bound to an instance names a convolution of torch's; a partial's or method's too."""
    return any(name.startswith("conv") for name in getattr(getattr(_bare(forward), "__code__", None), "co_names", ()))


def _bare(forward: Any) -> Any:
    """The function of a method or a partial."""
    while hasattr(forward, "__func__") or isinstance(forward, functools.partial):
        forward = forward.func if isinstance(forward, functools.partial) else forward.__func__
    return forward


def _reaches_ours(forward: Any, base: type[nn.Module]) -> bool:
    """Whether a class's own forward leaves the convolution to a method that ours replaces: torch's `_conv_forward`, which
    transposed layers lack, or the forward of the class that it extends."""
    code = getattr(forward, "__code__", None)
    if code is None or any(name.startswith("conv") for name in code.co_names):
        return False
    return ("_conv_forward" in code.co_names and hasattr(base, "_conv_forward")) or {"super", "forward"} <= {*code.co_names}


def _replacement(kind: type[nn.Module]) -> type[nn.Module]:
    """The class that replaces torch's class or a subclass; it is made once. A subclass comes before ours in the order of
    methods, so that its own forward runs and finds our methods where it would have found torch's. A subclass that calls torch's
    functions itself runs in a region in which they are ours."""
    if kind in REPLACEMENTS:
        return REPLACEMENTS[kind]
    if kind not in _MADE:
        base = _base(kind)
        assert base is not None
        between = kind.__mro__[: kind.__mro__.index(base)]
        own = {name: value for base_class in reversed(between) for name, value in vars(base_class).items()}
        by_region = "_conv_forward" in own or ("forward" in own and not _reaches_ours(own["forward"], base))

        def forward(self: Any, input: Any, *arguments: Any, **keywords: Any) -> Any:
            if isinstance(input, torch.fx.Proxy):
                return ours.traced(self, input, *arguments, **keywords)
            if not by_region:
                return super(replacement, self).forward(input, *arguments, **keywords)
            with Region() as region:
                made_of = super(replacement, self).forward(input, *arguments, **keywords)
            if not torch.compiler.is_compiling():
                self.__dict__[_REACHED] = region.reached
            return made_of

        def reduced(self: Any, protocol: Any) -> Any:  # the class has no name that pickle could look up
            return _instance, (kind,), self.__getstate__()

        namespace = {"forward": forward, "__module__": kind.__module__, "__doc__": kind.__doc__, "__reduce_ex__": reduced}
        replacement: Any = type(kind.__name__, (kind, REPLACEMENTS[base]), {**namespace, "by_region": by_region})
        _MADE[kind] = replacement
    return _MADE[kind]


def _instance(kind: type[nn.Module]) -> nn.Module:
    """An empty instance of the class that replaces `kind`, for pickle to fill."""
    replacement = _replacement(kind)
    return replacement.__new__(replacement)


def _exchange(part: nn.Module, kind: Any) -> None:
    """Gives an instance another class. Methods of the old class that a hook has bound to the instance, or that it keeps in a
    closure or a partial, are replaced by those of the new class."""
    old = type(part)

    def swap(value: Any) -> Any:
        if isinstance(value, types.MethodType) and value.__self__ is part:
            name = value.__func__.__name__
            if name in ("forward", "_conv_forward") and value.__func__ is getattr(old, name, None):
                return types.MethodType(getattr(kind, name), part)
        return value

    part.__class__ = kind
    for name, value in list(vars(part).items()):
        if isinstance(value, Callables):
            vars(part)[name] = rebuilt(value, swap)
