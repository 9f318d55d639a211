"""Folds into a convolution what follows it in a model's graph: batch norm, a residual, an activation.

`torch.fx` finds out what follows what. A part of a model that it traces becomes a `torch.fx.GraphModule` with the same
parameters under the same names. Layers with something folded into them are of the class `Folded`.
"""

from __future__ import annotations

import inspect
import operator
from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node, Tracer
from torch.nn import functional

from tritonconv import check, fused
from tritonconv import layers as ours
from tritonconv.epilogue import ACTIVATIONS
from tritonconv.functional import After

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
#: Activations, as modules and as functions, by their names in `conv2d_fused`. Functions are listed if they need no argument.
_MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.LeakyReLU: "leaky_relu",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.Hardswish: "hardswish",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
}
_FUNCTIONS: dict[Any, str] = {
    functional.relu: "relu",
    torch.relu: "relu",
    functional.relu6: "relu6",
    functional.silu: "silu",
    torch.sigmoid: "sigmoid",
    torch.tanh: "tanh",
}
_METHODS = {"relu": "relu", "relu_": "relu", "sigmoid": "sigmoid", "tanh": "tanh"}
_SUMS = (operator.add, operator.iadd, torch.add)
#: The attribute in which a graph keeps the module that it was made from.
ORIGIN = "_tritonconv_origin"


class Follows(NamedTuple):
    """What has been folded into a layer. The modules are in tuples, because torch does not look for children there."""

    norm: tuple[nn.Module, ...]
    activation: str | None
    slope: float
    words: str


class Folded:
    """A layer of ours with what follows it: `layer(input, residual)` is act(norm(conv(input)) + residual).

    With the norm in eval mode it is one kernel. The norm's scale and shift are computed from its parameters at each call, so
    the parameters may change. In training mode the parts are computed one by one.
    """

    def forward(self: Any, input: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        if isinstance(input, torch.fx.Proxy):  # a graph that comes from a file is traced again
            return ours.traced(self, input, *(() if residual is None else (residual,)))
        return followed(self, super().forward, input, residual, self._follows)  # type: ignore[misc]


def followed(layer: Any, plain: Any, input: torch.Tensor, residual: torch.Tensor | None, follows: Follows) -> torch.Tensor:
    """The result of a layer of ours and what follows it. `plain` is the layer's own forward."""
    norm: Any = follows.norm[0] if follows.norm else None
    if norm is not None and norm.training:
        return _one_by_one(plain(input), norm, residual, follows)
    scale, shift = (None, None) if norm is None else scale_and_shift(norm, layer.weight.dtype)
    if residual is not None:
        if residual.shape != _output_shape(layer, input) or residual.dtype != check.cast_dtype(input):
            return _one_by_one(plain(input), norm, residual, follows)
    function = getattr(fused, f"{layer.function.__name__}_fused")
    after = After(follows.activation, follows.slope, scale, shift, residual)
    result: torch.Tensor = layer.by(function, input, layer.weight, layer.bias, **after._asdict())
    return result


def _output_shape(layer: Any, input: torch.Tensor) -> tuple[int, ...]:
    rank = len(layer.kernel_size)
    batched = input if input.dim() == rank + 2 else input.unsqueeze(0)
    window = (layer.stride, layer.padding, *((layer.output_padding,) if layer.transposed else (layer.dilation,)), layer.groups)
    given = ("", rank, batched, layer.weight, None, *window)
    shape = check.conv_transpose(*given, layer.dilation).input_shape if layer.transposed else check.conv(*given).output_shape
    return shape if batched is input else shape[1:]


def scale_and_shift(norm: Any, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch norm with running statistics as y = x * scale + shift, each [C], rounded once."""
    wide = torch.promote_types(norm.running_var.dtype, torch.float32)
    scale = torch.rsqrt(norm.running_var.to(wide) + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight.to(wide)
    shift = -norm.running_mean.to(wide) * scale
    shift = shift if norm.bias is None else shift + norm.bias.to(wide)
    return scale.to(dtype), shift.to(dtype)


def _one_by_one(z: torch.Tensor, norm: Any, residual: torch.Tensor | None, follows: Follows) -> torch.Tensor:
    z = z if norm is None else norm(z)
    z = z if residual is None else z + residual
    return ACTIVATIONS[follows.activation].forward(z, follows.slope) if follows.activation else z


_CLASSES: dict[type, Any] = {}


def _folded_class(kind: type) -> Any:
    if kind not in _CLASSES:
        _CLASSES[kind] = type(kind.__name__, (Folded, kind), {"__module__": __name__, "__reduce_ex__": _reduced})
    return _CLASSES[kind]


def _reduced(self: Any, protocol: Any) -> Any:  # needed because the class has no name that pickle could look up
    return _instance, (type(self).__mro__[2],), self.__getstate__()


def _instance(kind: type) -> Any:
    kind_with_epilogue = _folded_class(kind)
    return kind_with_epilogue.__new__(kind_with_epilogue)


def words(part: nn.Module) -> str:
    """Words on what has been folded into a layer; "" for nothing."""
    follows: Follows | None = part.__dict__.get("_follows")
    return "" if follows is None else follows.words


def original(model: Any) -> Any:
    """The model with the modules that `folded` made graphs from put back, in place except for the model itself.

    Raises ValueError for a copy that has lost its origin.
    """
    if ORIGIN in model.__dict__:
        (model,) = model.__dict__[ORIGIN]
    elif isinstance(model, GraphModule) and any(isinstance(part, Folded) for part in model.modules()):
        raise ValueError("revert(): this is a copy of a folded model, which has no way back: revert the one it was copied of")
    for name, part in list(model.named_children()):
        restored = original(part)
        if restored is not part:
            setattr(model, name, restored)
    for part in model.modules():
        if isinstance(part, Folded):
            part.__class__ = type(part).__mro__[2]
            del part.__dict__["_follows"]
    return model


# ---- the graph ----------------------------------------------------------------------------------------------------------


class _Whole(Tracer):
    """A tracer for which layers of ours are leaves, as torch's are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, ours.Replacement) or super().is_leaf_module(m, module_qualified_name)


def folded(model: Any) -> Any:
    """`model`, or the graph that replaces it. Parts of the model that torch.fx traces become graphs in place."""
    graph = _graph(model)
    if graph is not None:
        return graph
    for name, part in list(model.named_children()):
        replaced = folded(part)
        if replaced is not part:
            setattr(model, name, replaced)
    return model


def _graph(model: nn.Module) -> GraphModule | None:
    """The graph of a module with something folded; None where there is nothing to fold, or torch.fx cannot prove that it may
    be."""
    if isinstance(model, ours.Replacement) or not any(isinstance(part, ours.Replacement) for part in model.modules()):
        return None
    if any(part.training for part in model.modules()) or not _is_plain(model):
        return None
    tracer = _Whole()
    try:
        graph = tracer.trace(model)
    except Exception:  # a forward that torch.fx cannot trace may raise anything
        return None
    plans = _foldable(model, graph)
    if not plans:
        return None
    for node in graph.nodes:
        node.type = None  # an annotation that is a string would keep the graph from being pickled
    module = GraphModule(model, graph, type(model).__name__)
    for name, part in model.named_modules():  # what was folded is no longer called, but keeps its names
        if name and (part._parameters or part._buffers):
            module.add_submodule(name, part)
    _ordered(module, model)
    if set(module.state_dict()) != set(model.state_dict()):
        return None
    new: dict[Node, Node] = {}
    for plan in plans:
        new[plan.last] = _rewrite(model, graph, plan, new)
    module.recompile()
    module.eval()
    module.__dict__[ORIGIN] = (model,)
    return module


def _ordered(folded: nn.Module, model: nn.Module) -> None:
    """Puts the children into the model's order, which is that of its parameters and `state_dict`."""
    names = [
        *(name for name in model._modules if name in folded._modules),
        *(n for n in folded._modules if n not in model._modules),
    ]
    folded._modules = {name: folded._modules[name] for name in names}
    for name in names:
        child = folded._modules[name]
        if child is not None and name in model._modules and child is not model._modules[name]:
            _ordered(child, model.get_submodule(name))


def _is_plain(model: nn.Module) -> bool:
    """Whether a graph of the module's forward has everything that a call of the module does."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    if not parameters or any(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        return False
    inner = [part for part in model.modules() if next(part.children(), None) is not None]
    return not any(_hooked(part) for part in (model, *inner)) and not isinstance(model, torch.jit.ScriptModule)


def _hooked(part: Any) -> bool:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(part, name, None) for name in names) or "forward" in part.__dict__


class _Plan(NamedTuple):
    """Nodes of a graph: the convolution, the nodes to fold into it in order, and the residual that is added."""

    layer: Node
    last: Node
    folded: tuple[Node, ...]
    residual: Node | None
    follows: Follows


def _foldable(model: nn.Module, graph: Graph) -> list[_Plan]:
    parts = dict(model.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    shared = Counter(id(part) for part in parts.values())
    plans: list[_Plan] = []
    folded: set[Node] = set()
    for node in graph.nodes:
        part = parts.get(node.target) if node.op == "call_module" else None
        if type(part) not in _KINDS or _hooked(part) or calls[node.target] != 1:
            continue
        if shared[id(part)] != 1 or node.kwargs or len(node.args) != 1:
            continue
        plan = _chain(node, parts, folded)
        if plan is not None:
            plans.append(plan)
            folded |= {node, *plan.folded}
    return plans


_KINDS = (ours.Conv1d, ours.Conv2d, ours.Conv3d, ours.ConvTranspose1d, ours.ConvTranspose2d, ours.ConvTranspose3d)


def _chain(node: Node, parts: dict[str, nn.Module], folded: set[Node]) -> _Plan | None:
    """The longest chain behind one convolution that nothing else reads from; None where there is nothing to fold."""
    steps: list[_Plan] = []
    norm: tuple[nn.Module, ...] = ()
    chain: tuple[Node, ...] = ()
    words: tuple[str, ...] = ()
    residual = None

    def taken_over(user: Node, word: str, activation: str | None = None, slope: float = 0.01) -> None:
        nonlocal chain, words
        chain, words = (*chain, user), (*words, word)
        if norm or activation:
            follows = Follows(norm, activation, slope, "with " + ", ".join(words))
            steps.append(_Plan(node, user, chain, residual, follows))

    user = _only_user(node, folded)
    part = _module(user, parts)
    if user is not None and type(part) in _NORMS and part.running_mean is not None and not _hooked(part) and _alone(user):
        norm = (part,)
        taken_over(user, str(user.target))
        user = _only_user(user, folded)
    residual = _added(user, chain[-1] if chain else node)
    if user is not None and residual is not None:
        taken_over(user, "a residual")
        user = _only_user(user, folded)
    activation, slope = _activation(user, parts)
    if user is not None and activation is not None:
        taken_over(user, activation, activation, slope)
    sound = [plan for plan in steps if not _changed_between(node, plan.last, {node, *plan.folded}, parts)]
    return sound[-1] if sound else None


def _changed_between(first: Node, last: Node, chain: set[Node], parts: dict[str, nn.Module]) -> bool:
    """Whether a node between `first` and `last` that is not in the chain may change a tensor in place. It would then run before
    the layer's call, which moves to `last`."""
    node = first
    while node is not last:
        node = node.next
        name = getattr(node.target, "__name__", str(node.target))
        by_name = node.op in ("call_method", "call_function") and (name.endswith("_") or name.startswith("i"))
        by_flag = bool(node.kwargs.get("inplace")) or getattr(_module(node, parts), "inplace", False)
        if node not in chain and (by_name or by_flag or "out" in node.kwargs):
            return True
    return False


def _only_user(node: Node, folded: set[Node]) -> Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0] not in folded else None


def _module(node: Node | None, parts: dict[str, nn.Module]) -> Any:
    return parts.get(str(node.target)) if node is not None and node.op == "call_module" else None


def _alone(node: Node) -> bool:
    """Whether a call has one argument and nothing else."""
    return len(node.args) == 1 and not node.kwargs


def _added(node: Node | None, to: Node) -> Node | None:
    """What a node adds to node `to`; None where it is no sum of two, or changes in place what others read."""
    if node is None or node.kwargs or len(node.args) != 2:
        return None
    by_method = node.op == "call_method" and node.target in ("add", "add_")
    if not by_method and not (node.op == "call_function" and node.target in _SUMS):
        return None
    first, second = node.args
    if not isinstance(first, Node) or not isinstance(second, Node) or first is second:
        return None
    other = second if first is to else first
    in_place = node.target in (operator.iadd, "add_")
    return None if in_place and other is first and len(other.users) > 1 else other


def _activation(node: Node | None, parts: dict[str, nn.Module]) -> tuple[str | None, float]:
    if node is None:
        return None, 0.01
    part = _module(node, parts)
    if part is not None:
        name = None if _hooked(part) or not _alone(node) else _MODULES.get(type(part))
        if name == "gelu" and part.approximate != "none":
            name = "gelu_tanh"
        return name, getattr(part, "negative_slope", 0.01)
    if any(key != "inplace" for key in node.kwargs) or len(node.args) != 1:
        return None, 0.01
    name = _FUNCTIONS.get(node.target) if node.op == "call_function" else None
    name = _METHODS.get(str(node.target)) if node.op == "call_method" else name
    return name, 0.01


def _rewrite(model: nn.Module, graph: Graph, plan: _Plan, new: dict[Node, Node]) -> Node:
    """The call that replaces the nodes of a plan; `new` has the calls of earlier plans."""
    part: Any = model.get_submodule(str(plan.layer.target))
    part.__class__ = _folded_class(type(part))
    part.__dict__["_follows"] = plan.follows
    with graph.inserting_after(plan.last):
        arguments = (*plan.layer.args, *(() if plan.residual is None else (new.get(plan.residual, plan.residual),)))
        call = graph.call_module(str(plan.layer.target), arguments)
    plan.last.replace_all_uses_with(call)
    for node in reversed((plan.layer, *plan.folded)):
        graph.erase_node(node)
    return call
