"""`explain` for a module: every convolution that it calls, with the plan that it takes here or on a named device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from costmodel.networks.operators import tensors
from costmodel.networks.recorder import MetaToFake, ModuleStack
from costmodel.networks.stage import Stage, settings
from costmodel.problem import Pass
from tritonconv import host, launch, op
from tritonconv.causal.explain import explained as explained_causal
from tritonconv.epilogue import Epilogue
from tritonconv.explain import explained
from tritonconv.functional import After
from tritonconv.normalize import Prologue
from tritonconv.normalize.launch import Values
from tritonconv.plans import Explanation
from tritonconv.separable.explain import explained as explained_separable
from tritonconv.swap import is_convolution
from tritonconv.use import SERVED, refusal
from tritonconv.video.explain import explained as explained_video


@dataclass(frozen=True)
class ExplainedCall:
    """One convolution of a model: the module that calls it, and what `explain` says about it. Where no kernel of this package
    serves it, `reason` says why."""

    layer: str
    explanation: Explanation | None
    reason: str = ""

    @property
    def seconds(self) -> tuple[float, float]:
        """The predicted seconds of each pass by its name: the forward pass, and the gradients."""
        times = [prediction.seconds for prediction in self.explanation.predictions.values()] if self.explanation else []
        together = self.explanation is not None and "pointwise" in self.explanation.predictions
        return (sum(times) if together else sum(times[:1])), sum(times)


@dataclass(frozen=True)
class ModelExplanation:
    """The convolutions that a model calls, in the order they run; `str` is a table."""

    name: str
    device: str
    calls: tuple[ExplainedCall, ...]

    def __str__(self) -> str:
        forward, every = (1e6 * sum(call.seconds[place] for call in self.calls) for place in (0, 1))
        heads = ("layer", "convolution", "plan of the forward pass", "us", "with gradients")
        rows: list[tuple[str, ...]] = [heads]
        for call in self.calls:
            layer = call.layer or "(the model)"
            explanation = call.explanation
            if explanation is None:
                rows.append((layer, call.reason, "", "", ""))
                continue
            plans = ", ".join(map(str, explanation.plans.values() if "pointwise" in explanation.plans else _first(explanation)))
            plans = "torch's, where= says so" if [*explanation.plans][:1] == [*explanation.left][:1] != [] else plans
            times = (f"{1e6 * seconds:.3g}" if explanation.plans else "" for seconds in call.seconds)
            name, _, what = explanation.words.splitlines()[0].partition(": ")
            rows.append(
                (layer, what if what.startswith(f"{name} ") else f"{name} {what}", plans or "nothing to multiply", *times)
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
        lines = [
            f"{self.name} on {self.device}: {len(self.calls)} convolutions, {forward:.4g} us predicted, {every:.4g} us with "
            "the gradients of all operands"
        ]
        for row in rows:
            aligned = zip((str.ljust, str.ljust, str.ljust, str.rjust, str.rjust), row, widths, strict=True)
            lines.append("  ".join(align(cell, width) for align, cell, width in aligned).rstrip())
        return "\n".join(lines)


def _first(explanation: Explanation) -> list[Any]:
    return [*explanation.plans.values()][:1]


class _Calls(TorchFunctionMode):
    """Runs a model on stand-ins, has torch's convolutions call this package's ops, and keeps the ops that were called."""

    def __init__(self, stack: ModuleStack) -> None:
        super().__init__()
        self.stack = stack
        self.calls: list[tuple[str, str, tuple[Any, ...], bool]] = []
        self.torchs = False
        self.left: list[tuple[int, ExplainedCall]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in SERVED:
            input = args[0] if args else kwargs.get("input")
            reason = refusal(input, args[1] if len(args) > 1 else kwargs.get("weight"))
            if not reason:
                self.torchs = True
                with self:  # so that this mode sees the op too
                    return SERVED[func](*args, **kwargs)
            self.left.append((len(self.calls), ExplainedCall(self.stack.path, None, f"torch's, {reason}")))
        name = str(func)
        if name.startswith("tritonconv."):
            self.calls.append((self.stack.path, name.split(".")[1], args, self.torchs))
            self.torchs = False
        return func(*args, **kwargs)


def explained_model(number: int | None, model: nn.Module, *inputs: Any, **keywords: Any) -> Explanation | ModelExplanation:
    """What `explain` answers for a module. For a convolution layer that is its one call."""
    stage = Stage(model, inputs, None, keywords)
    calls = _Calls(stage.stack)
    with settings(model, model.training), stage.fake, MetaToFake(stage.fake), calls:
        stage.forward()
    index = _where(model, inputs, keywords) if number is None else number
    explained = [_explained(index, *call) for call in calls.calls]
    for place, left in reversed(calls.left):
        explained.insert(place, left)
    if is_convolution(model) and len(explained) == 1 and explained[0].explanation is not None:
        return explained[0].explanation
    return ModelExplanation(type(model).__name__, launch.device_model(index).name, tuple(explained))


def _where(*given: Any) -> int:
    """The device of a model's tensors, by the number that `host` gives it."""
    held = (value.parameters() if isinstance(value, nn.Module) else tensors(value) for value in given)
    return next((host.index_of(t) for group in held for t in group if t.is_cuda), host.index_of(torch.empty(0)))


def _explained(number: int, layer: str, name: str, given: Sequence[Any], torchs: bool) -> ExplainedCall:
    """What `explain` says about one call of an op."""
    args = [*map(_on_meta, given)]
    if name == "fprop_normalized":
        return ExplainedCall(layer, _normalized(number, args))
    if name.removesuffix("_fused") in ("fprop", "dgrad"):
        return ExplainedCall(layer, _convolution(number, name, args, torchs))
    if name == "causal":
        x, w, b, state, ids, _, activation, final = args
        return ExplainedCall(layer, Explanation(*explained_causal(number, x, w, b, activation or None, state, final, ids)))
    if name == "video":
        x, w, b, cache, stride, padding, dilation, upsample, time_padding, keeps, plan, *after = args
        window = {"dilation": tuple(dilation), "upsample": upsample, "time_padding": time_padding, "plan": plan or None}
        if after:
            scale, shift, rstd, activation, slope, residual, groups, summed, mode = after
            before = Prologue(scale, shift, rstd, activation or None, slope)
            empty = before == Prologue(negative_slope=slope)
            window |= {"prologue": None if empty else before, "residual": residual, "groups": groups}
            window |= {"summed_taps": summed, "padding_mode": mode}
        sides = tuple(padding[::2])
        return ExplainedCall(
            layer, Explanation(*explained_video(number, x, w, b, tuple(stride), sides, cache, keeps, **window))
        )
    if name == "separable":
        return ExplainedCall(layer, Explanation(*_separable(number, *args)))
    return ExplainedCall(layer, None, f"{name}: one kernel, there is no plan to choose")


def _on_meta(value: Any) -> Any:
    """A tensor on the meta device with the strides of a stand-in."""
    if not isinstance(value, torch.Tensor):
        return value
    stand_in = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return stand_in.requires_grad_(value.requires_grad)


def _convolution(number: int, name: str, args: Sequence[Any], torchs: bool) -> Explanation:
    primitive = op._PRIMITIVES[name.removesuffix("_fused")]
    a, w, *rest = args
    problem, plan, after = (
        op._problem(primitive, a, w, rest),
        "".join(rest[primitive.arguments - 2 :]) if name == primitive.name else "",
        After(),
    )
    if name != primitive.name:
        scale, shift, residual, activation, slope, _ = Epilogue(*rest[primitive.arguments - 2 :][: len(Epilogue._fields)])
        plan = rest[primitive.arguments - 2 + len(Epilogue._fields)]
        after = After(activation or None, slope, scale, shift, residual)
    words = f"conv{'_transpose' * (primitive.name == 'dgrad')}{problem.rank}d{'_fused' * (name != primitive.name)}"
    return explained(words, problem, Pass(primitive.name), (a, w, rest[0]), after, plan, number, torchs)


def _normalized(number: int, args: Sequence[Any]) -> Explanation:
    x, w, b, *place = args[:7]
    scale, shift, residual, activation, slope, plan = args[12:]
    problem = op._problem(op._PRIMITIVES["fprop"], x, w, (b, *place))
    after, words = After(activation or None, slope, scale, shift, residual), f"conv{problem.rank}d_fused"
    return explained(words, problem, Pass.FPROP, (x, w, b), after, plan, number, False, Values(*args[7:12]))


def _separable(
    number: int, x: Any, w1: Any, w2: Any, b1: Any, b2: Any, residual: Any, stride: Any, padding: Any, dilation: Any,
    between: str, activation: str, slope: float, plan: str,
) -> Any:  # fmt: skip
    window = (tuple(stride), tuple(padding[::2]), tuple(dilation))
    follows = {"activation": between or None, "pointwise_activation": activation or None, "negative_slope": slope}
    return explained_separable(number, x, w1, w2, b1, b2, *window, **follows, residual=residual, plan=plan or None)
