"""A model's convolutions replaced by tritonconv's, a table of what was replaced and what was not, and the way back."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tritonconv import nn as ours
from tritonconv.modelcopy import Model, sharing_copy
from tritonconv.private import ConvNd as _ConvNd

#: torch's class -> ours, which adds no state and takes its place in an instance.
REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: ours.Conv1d,
    nn.Conv2d: ours.Conv2d,
    nn.Conv3d: ours.Conv3d,
    nn.ConvTranspose1d: ours.ConvTranspose1d,
    nn.ConvTranspose2d: ours.ConvTranspose2d,
    nn.ConvTranspose3d: ours.ConvTranspose3d,
}
#: Subclasses of torch's -> what takes their place.
_MADE: dict[type[nn.Module], type[nn.Module]] = {}


@dataclass(frozen=True)
class Layer:
    """One convolution of a model: its path, its class, whether our kernels compute it, and why not where they do not."""

    name: str
    kind: str
    replaced: bool
    reason: str


@dataclass(frozen=True)
class Report:
    """The convolutions of a model, in the order of `named_modules`; `str` is a table."""

    layers: tuple[Layer, ...]

    @property
    def left(self) -> tuple[Layer, ...]:
        """Those that torch computes."""
        return tuple(layer for layer in self.layers if not layer.replaced)

    def __str__(self) -> str:
        done = len(self.layers) - len(self.left)
        lines = [f"{done} of {len(self.layers)} convolutions run on tritonconv's kernels"]
        width = max((len(layer.name) for layer in self.layers), default=0)
        for layer in self.layers:
            lines.append(f"{layer.name:<{width}}  {layer.kind}: {'tritonconv' if layer.replaced else layer.reason}")
        return "\n".join(lines)


def convert(
    model: Model,
    *,
    only: Callable[[str, nn.Module], bool] | None = None,
    inplace: bool = False,
    strict: bool = False,
) -> Model:
    """`model` with its convolutions computed by tritonconv's kernels: a copy, or the model itself where `inplace`.

    Replaced are torch's six classes and their subclasses whose convolution is torch's: parametrized and weight-normed layers,
    pruned ones, quantisation-aware ones, and those whose `forward` a hook has bound to the instance. A subclass with a forward
    of its own that calls torch's functions is left as it is; `report` names it. `only(name, layer)` says of each layer whether
    to replace it.

    The copy is a model of its own over the same memory: values that change in place (an optimizer's step, `load_state_dict`)
    show in both, and `.to(...)` changes one alone. `state_dict` has the same keys. `revert` gives torch's classes back.

    Raises TypeError for what is no module, and with `strict` ValueError with the table of `report` where a convolution that
    `only` admits is left to torch; with `inplace` the model is then unchanged.

    >>> import torch, tritonconv
    >>> net = tritonconv.convert(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()))
    >>> print(tritonconv.report(net))
    1 of 1 convolutions run on tritonconv's kernels
    0  tritonconv.Conv2d: tritonconv
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert() takes a torch.nn.Module, got {type(model).__name__}")
    if only is not None and not callable(only):
        raise TypeError(f"convert(): argument 'only' must be a function of (name, layer), got {type(only).__name__}")
    wanted = {id(part) for name, part in model.named_modules() if _is_convolution(part) and (only is None or only(name, part))}
    missed = [name for name, part in model.named_modules() if id(part) in wanted and _refusal(part)]
    if strict and missed:
        raise ValueError(f"convert(): {', '.join(missed)} cannot be replaced\n{report(model, wanted)}")
    names = [name for name, part in model.named_modules() if id(part) in wanted and not _refusal(part)]
    converted = model if inplace else sharing_copy(model)
    for name in names:
        part = converted.get_submodule(name)
        if not isinstance(part, ours.Replacement):
            _become(part, _replacement(type(part)))
    return converted


def revert(model: Model) -> Model:
    """`model` itself with torch's classes in place of ours; the way back from `convert`. TypeError for what is no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"revert() takes a torch.nn.Module, got {type(model).__name__}")
    back = {new: old for old, new in (*REPLACEMENTS.items(), *_MADE.items())}
    for part in model.modules():
        if type(part) in back:
            _become(part, back[type(part)])
    return model


def report(model: nn.Module, wanted: set[int] | None = None) -> Report:
    """Which convolutions of `model` run on tritonconv's kernels, and why the others do not. TypeError for what is no module.

    `wanted` holds the ids of layers that are to be looked at as `convert` sees them, before it replaces any.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"report() takes a torch.nn.Module, got {type(model).__name__}")
    layers = []
    for name, part in model.named_modules():
        if _is_convolution(part):
            replaced = isinstance(part, ours.Replacement)
            reason = "" if replaced else _refusal(part) or "not converted"
            if wanted is not None and not replaced:
                reason = _refusal(part) or ("can be replaced" if id(part) in wanted else "not asked for")
            layers.append(Layer(name or "(the model)", part._get_name(), replaced, reason))
    return Report(tuple(layers))


def _is_convolution(part: nn.Module) -> bool:
    return isinstance(part, _ConvNd)


def _base(kind: type[nn.Module]) -> type[nn.Module] | None:
    """Which of torch's six classes a class is or extends."""
    return next((base for base in REPLACEMENTS if issubclass(kind, base)), None)


def _refusal(part: nn.Module) -> str:
    """Why a convolution's computation cannot be replaced; "" where it can or has been."""
    kind, base = type(part), _base(type(part))
    if isinstance(part, ours.Replacement):
        return ""
    if _calls_torch(part.__dict__.get("forward")):
        return "a forward that calls torch's functions itself was bound to it"
    if kind is base:
        return ""
    if base is None:
        return "it is none of torch's six classes"
    if isinstance(part, nn.modules.lazy.LazyModuleMixin):
        return "it is lazy: run the model once first"
    between = kind.__mro__[: kind.__mro__.index(base)]
    own = {name: value for each in reversed(between) for name, value in vars(each).items()}
    if "_conv_forward" in own:
        return "its class has a _conv_forward of its own"
    if "forward" in own and not _reaches_ours(own["forward"], base):
        return "its class has a forward of its own, which calls torch's functions itself"
    return ""


def _calls_torch(forward: Any) -> bool:
    """Whether a forward that was bound to an instance names a convolution of torch's; a partial's or method's too."""
    while hasattr(forward, "__func__") or isinstance(forward, functools.partial):
        forward = forward.func if isinstance(forward, functools.partial) else forward.__func__
    return any(name.startswith("conv") for name in getattr(getattr(forward, "__code__", None), "co_names", ()))


def _reaches_ours(forward: Any, base: type[nn.Module]) -> bool:
    """Whether a class's own forward leaves the convolution to what ours replaces: torch's `_conv_forward`, which transposed
    layers have not, or the forward of the class that it extends."""
    code = getattr(forward, "__code__", None)
    if code is None or any(name.startswith("conv") for name in code.co_names):
        return False
    return ("_conv_forward" in code.co_names and hasattr(base, "_conv_forward")) or {"super", "forward"} <= {*code.co_names}


def _replacement(kind: type[nn.Module]) -> type[nn.Module]:
    """The class that takes the place of torch's class or of a subclass, made once. A subclass comes before ours in the order of
    methods, so that its own forward runs and finds ours where it would have found torch's."""
    if kind in REPLACEMENTS:
        return REPLACEMENTS[kind]
    if kind not in _MADE:
        base = _base(kind)
        assert base is not None

        def forward(self: Any, input: Any, *arguments: Any, **keywords: Any) -> Any:
            if isinstance(input, torch.fx.Proxy):
                return ours.traced(self, input, *arguments, **keywords)
            return super(made, self).forward(input, *arguments, **keywords)

        def reduced(self: Any, protocol: Any) -> Any:  # the class has no name that pickle could look up
            return _instance, (kind,), self.__getstate__()

        namespace = {"forward": forward, "__module__": kind.__module__, "__doc__": kind.__doc__, "__reduce_ex__": reduced}
        made: Any = type(kind.__name__, (kind, REPLACEMENTS[base]), namespace)
        _MADE[kind] = made
    return _MADE[kind]


def _instance(kind: type[nn.Module]) -> nn.Module:
    """An empty instance of what takes the place of `kind`, for pickle to fill."""
    made = _replacement(kind)
    return made.__new__(made)


def _become(part: nn.Module, kind: type[nn.Module]) -> None:
    """Another class for an instance. Methods of the old class that a hook has bound to the instance become the new one's."""
    old = type(part)
    part.__class__ = kind
    for name, value in list(part.__dict__.items()):
        if isinstance(value, types.MethodType) and value.__self__ is part:
            method = value.__func__.__name__
            if method in ("forward", "_conv_forward") and value.__func__ is getattr(old, method, None):
                part.__dict__[name] = types.MethodType(getattr(kind, method), part)
