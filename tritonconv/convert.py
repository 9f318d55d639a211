"""Replaces a model's convolutions by tritonconv's, reports which were replaced, and gives torch's back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from tritonconv import folding, swap
from tritonconv import layers as ours
from tritonconv.adapters import Adapted, adapter, is_deformable
from tritonconv.modelcopy import Model, sharing_copy
from tritonconv.swap import is_convolution, refusal


@dataclass(frozen=True)
class Layer:
    """One convolution of a model: its path, its class, whether our kernels compute it, and the reason if they do not."""

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
        """The convolutions that torch computes."""
        return tuple(layer for layer in self.layers if not layer.replaced)

    def __str__(self) -> str:
        done = len(self.layers) - len(self.left)
        lines = [f"{done} of {len(self.layers)} convolutions run on tritonconv's kernels"]
        width = max((len(layer.name) for layer in self.layers), default=0)
        for layer in self.layers:
            how = ", ".join(["tritonconv"] * layer.replaced + [layer.reason] * bool(layer.reason))
            lines.append(f"{layer.name:<{width}}  {layer.kind}: {how}")
        return "\n".join(lines)


def convert(
    model: Model,
    *,
    only: Callable[[str, nn.Module], bool] | None = None,
    inplace: bool = False,
    fuse: bool = False,
    strict: bool = False,
) -> Model:
    """`model` with its convolutions computed by tritonconv's kernels. It is a copy, or with `inplace` the model itself.

    It replaces torch's six classes and their subclasses: parametrized, weight-normed, pruned and quantisation-aware layers,
    layers whose `forward` a hook has bound to the instance, and layers with a forward of their own, inside which our kernels
    compute torch's convolutions (as in `tritonconv.use`). The causal layers of diffusers' Wan, Qwen-Image and CogVideoX VAEs
    call `causal_conv3d`, and torchvision's DeformConv2d calls `deform_conv2d`. A module that is no convolution and calls
    torch's functions itself stays as it is, and `report` names it. `only(name, layer)` says for each layer whether to replace
    it.

    The copy is a model of its own over the same memory: values that change in place (an optimizer's step, `load_state_dict`)
    show in both, while `.to(...)` changes one alone. `state_dict` has the same keys. `revert` gives torch's classes back.

    `fuse` takes a model in eval mode and folds into a convolution what follows it: a batch norm, a sum with a residual, an
    activation, as far as torch.fx proves that nothing else reads the values in between. The changed parts of the model become
    `torch.fx.GraphModule`s with the same `state_dict`. A part that torch.fx cannot trace keeps its class.

    Raises TypeError for what is no module, and ValueError for `fuse` together with `inplace` or in training mode. With `strict`
    it raises ValueError with the table of `report` if a convolution that `only` admits is left to torch; with `inplace` the
    model is then unchanged.

    >>> import torch, tritonconv
    >>> net = tritonconv.convert(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()))
    >>> print(tritonconv.report(net))
    1 of 1 convolutions run on tritonconv's kernels
    0  tritonconv.Conv2d: tritonconv
    """
    _is_module("convert", model)
    if only is not None and not callable(only):
        raise TypeError(f"convert(): argument 'only' must be a function of (name, layer), got {type(only).__name__}")
    if fuse and (inplace or model.training):
        raise ValueError(
            "convert(): fuse=True makes another model of one in eval mode, so inplace is False and model.eval() first"
        )
    wanted = {id(part) for name, part in model.named_modules() if is_convolution(part) and (only is None or only(name, part))}
    missed = [name for name, part in model.named_modules() if id(part) in wanted and refusal(part)]
    missed += [name for name, part in model.named_modules() if _stays(part) and (only is None or only(name, part))]
    if strict and missed:
        raise ValueError(f"convert(): {', '.join(missed)} cannot be replaced\n{report(model, wanted)}")
    names = [name for name, part in model.named_modules() if id(part) in wanted and not refusal(part)]
    converted = model if inplace else sharing_copy(model)
    chosen = [(part, adapter(part)) for name, part in converted.named_modules() if only is None or only(name, part)]
    for name in names:
        part = converted.get_submodule(name)
        if not isinstance(part, ours.Replacement):
            swap.replace(part)
    for part, kind in chosen:
        if kind is not None and not isinstance(part, Adapted):
            swap.adapt(part, kind)
    return folding.folded(converted) if fuse else converted


def revert(model: Model) -> Model:
    """Undoes `convert`: returns `model` itself with torch's classes in place of ours. Raises TypeError for what is no module.

    A graph that `fuse=True` made becomes the module that it was. `docs/drop-in.md` shows when that is needed.
    """
    _is_module("revert", model)
    model = folding.original(model)
    for part in model.modules():
        if isinstance(part, (ours.Replacement, Adapted)):
            swap.restore(part)
    return model


def report(model: nn.Module, wanted: set[int] | None = None) -> Report:
    """Which convolutions of `model` run on tritonconv's kernels, and why the others do not. Raises TypeError for what is no
    module.

    A module that is no convolution and whose `forward` calls one of torch's functions itself is listed too, as far as its code
    shows. `wanted` holds the ids of layers that are to be looked at as `convert` sees them, before it replaces any.
    `docs/drop-in.md` lists what is converted.
    """
    _is_module("report", model)
    layers = []
    for name, part in model.named_modules():
        if is_convolution(part):
            why = refusal(part)
            replaced = isinstance(part, ours.Replacement) and not why
            if isinstance(part, Adapted):
                reason = f"as {part.function}"
            elif replaced:
                reason = "in a forward of its own" if swap.own_forward(part) else folding.words(part)
            elif wanted is None:
                reason = why or "not converted"
            else:
                reason = why or ("can be replaced" if id(part) in wanted else "not asked for")
            layers.append(Layer(name or "(the model)", part._get_name(), replaced, reason))
        elif is_deformable(part):
            function = part.function if isinstance(part, Adapted) else ""
            reason = f"as {function}" if function else "not converted" if wanted is None else "can be replaced"
            layers.append(Layer(name or "(the model)", part._get_name(), bool(function), reason))
        elif why := _stays(part):
            layers.append(Layer(name or "(the model)", part._get_name(), False, why))
    return Report(tuple(layers))


def _stays(part: nn.Module) -> str:
    """Why torch computes the convolution of a module that is no convolution by its class; "" for any other module."""
    if is_convolution(part):
        return ""
    if isinstance(part, torch.jit.ScriptModule):
        scripted = str(getattr(part, "original_name", "")).startswith("Conv")
        return "it is scripted: convert the model before it is" if scripted else ""
    if type(part).__module__.startswith("torch.ao.nn.quantized") and "Conv" in type(part).__name__:
        return "it is quantised, and multiplies integers"
    called = swap.calls_functional(part)
    return f"its forward calls {called} itself: tritonconv.use() reaches that" if called else ""


def _is_module(function: str, module: object) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"{function}() takes a torch.nn.Module, got {type(module).__name__}")
