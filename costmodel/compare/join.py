"""Convolutions of a trace as measured layers. Sizes come from the trace, or from a model's convolutions in the same order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from costmodel.compare import kernels as names
from costmodel.compare.measured import KINDS, Measured, MeasuredLayer
from costmodel.compare.trace import RECORD, Instance, Kernel, Trace
from costmodel.device import Device
from costmodel.problem import ConvProblem, Pass

if TYPE_CHECKING:
    from costmodel.networks.network import Layer

MICRO = 1e-6
#: Operators inside a convolution that copy its tensors into another layout or type.
_COPYING = ("contiguous", "clone", "copy", "to", "_to_copy", "empty_like")


class _Key(NamedTuple):
    """What all calls of one layer have in common."""

    problem: ConvProblem
    passes: tuple[Pass, ...]
    transposed: bool
    dtype: str
    layout: str | None


def measured(trace: Trace, device: Device, convolutions: Sequence[Layer] | None = None) -> Measured:
    """The trace on `device`. `convolutions` are a model's, for traces that recorded no strides and paddings.

    Raises ValueError where neither says what a convolution computed, or where the model has other convolutions.
    """
    notes = list(trace.notes)
    sized = trace.convolutions
    if any(instance.call.problem is None for instance in sized):
        sized = _joined(trace, convolutions)
        notes.append("strides and paddings are the model's: the trace recorded none, and its shapes agree with the model's")
    layers = _layers(sized, device, trace.steps, notes)
    busy, wall = _busy(trace.kernels)
    if trace.steps > 1:
        notes.append(f"times are of one step, the median or mean of {trace.steps}")
    return Measured(
        source=str(trace.path),
        device=device,
        layers=tuple(layers),
        kinds=_kinds(trace),
        wall=wall / trace.steps,
        busy=busy / trace.steps,
        steps=trace.steps,
        notes=tuple(dict.fromkeys(notes)),
    )


def _joined(trace: Trace, convolutions: Sequence[Layer] | None) -> list[Instance]:
    if convolutions is None:
        raise ValueError(
            f"{trace.path} recorded shapes and no strides and paddings (the profiler of 2021 does not): name the network with "
            f"--model package.module:callable, or record it with a newer torch; {RECORD}"
        )
    forward = [instance for instance in trace.convolutions if not instance.call.backward]
    backward = [instance for instance in trace.convolutions if instance.call.backward]
    order = list(convolutions)
    pairs = _in_order(trace, forward, order) + _in_order(trace, backward, order[::-1])
    return sorted(pairs, key=lambda instance: instance.operator.start)


def _in_order(trace: Trace, instances: Sequence[Instance], layers: Sequence[Layer]) -> list[Instance]:
    what = "backward" if instances and instances[0].call.backward else "forward"
    if not layers or len(instances) % len(layers):
        raise ValueError(
            f"{trace.path} has {len(instances)} {what} convolutions, and the model {len(layers)} per step: "
            "it is another model, or the trace begins or ends within a step"
        )
    pairs = []
    for i, instance in enumerate(instances):
        layer = layers[i % len(layers)]
        assert layer.problem is not None
        transposed = layer.which == Pass.DGRAD
        x = layer.problem.output_shape if transposed else layer.problem.input_shape
        w = layer.weight_shape or layer.problem.weight_shape
        if (tuple(instance.call.x), tuple(instance.call.w)) != (tuple(x), tuple(w)):
            given = f"input {list(instance.call.x)} and weight {list(instance.call.w)}"
            raise ValueError(
                f"{trace.path}: its {what} convolution {i + 1} has {given}, the "
                f"model's {layer.name} {list(x)} and {list(w)}: give the batch and size that were traced with --input"
            )
        passes = (
            instance.call.passes
            if not instance.call.backward
            else tuple(Pass(step.which) for step in layer.backward if step.which)
        )
        passes = passes if instance.call.backward else ((Pass.DGRAD,) if transposed else (Pass.FPROP,))
        call = replace(instance.call, problem=layer.problem, transposed=transposed, passes=passes)
        pairs.append(Instance(instance.operator, call, instance.kernels, instance.inner))
    return pairs


def _layers(instances: Sequence[Instance], device: Device, steps: int, notes: list[str]) -> list[MeasuredLayer]:
    """The layers: calls of the same sizes, passes and layout are one layer, whose time is their median."""
    groups: dict[_Key, list[tuple[Instance, list[Kernel]]]] = defaultdict(list)
    for instance in instances:
        for passes, kernels in _by_pass(instance):
            dtype = instance.call.dtype or _dtype(kernels, notes)
            problem = instance.call.problem
            assert problem is not None
            groups[_Key(problem, passes, instance.call.transposed, dtype, instance.call.layout)].append((instance, kernels))
    layers = []
    for (problem, passes, transposed, dtype, layout), members in groups.items():
        precision = "ieee"
        every = [kernel.name for _, kernels in members for kernel in kernels]
        if dtype == "float32":
            precision, remark = names.precision_of(every, device.capability)
            notes += [remark] if remark else []
        if layout is None:
            notes.append("the trace recorded no strides: tensors are taken to be contiguous")
        main, copies = zip(*(_split(instance, kernels) for instance, kernels in members), strict=True)
        layers.append(
            MeasuredLayer(
                name=_name(problem, transposed),
                problem=problem,
                passes=passes,
                transposed=transposed,
                dtype=dtype,
                precision=precision,
                layout=layout or "contiguous",
                seconds=MICRO * median(main),
                copies=MICRO * median(copies),
                calls=len(members) / steps,
                kernels=sum(len(kernels) for _, kernels in members) / len(members),
                indirect=any(names.INDIRECT.search(name) for name in every),
            )
        )
    return layers


def _by_pass(instance: Instance) -> list[tuple[tuple[Pass, ...], list[Kernel]]]:
    """The kernels of a backward call, separated by gradient where the operators inside tell which kernel is whose. Otherwise
    they stay together; nothing is guessed."""
    own = {"backward_input": instance.call.passes[0], "backward_weight": Pass.WGRAD}
    parts: dict[Pass | None, list[Kernel]] = defaultdict(list)
    for kernel in instance.kernels:
        chain = " ".join(o.name for o in instance.inner[id(kernel)].chain())
        parts[next((which for word, which in own.items() if word in chain), None)].append(kernel)
    if not instance.call.backward or None in parts:
        return [(instance.call.passes, instance.kernels)]
    return [((which,), kernels) for which, kernels in parts.items() if which is not None]


def _split(instance: Instance, kernels: Sequence[Kernel]) -> tuple[float, float]:
    """(microseconds of the kernels that compute, microseconds of those that only copy)."""
    copies = sum(k.duration for k in kernels if _copies(instance, k))
    return sum(k.duration for k in kernels) - copies, copies


def _copies(instance: Instance, kernel: Kernel) -> bool:
    return bool(names.LAYOUT.search(kernel.name)) or names.plain(instance.inner[id(kernel)].name) in _COPYING


def _dtype(kernels: Sequence[Kernel], notes: list[str]) -> str:
    """The dtype by the kernels' names, where none was recorded."""
    half = any(names.HALF.search(kernel.name) for kernel in kernels)
    dtype = "float16" if half else "float32"
    notes.append(f"types were not recorded: {dtype} by the names of kernels")
    return dtype


def _name(problem: ConvProblem, transposed: bool) -> str:
    from costmodel.reports.notation import Convolution

    return str(Convolution(problem, transposed))


def _kinds(trace: Trace) -> dict[str, float]:
    """Seconds of a step by kind."""
    inside = {id(kernel): instance for instance in trace.convolutions for kernel in instance.kernels}
    seconds_of = dict.fromkeys(KINDS, 0.0)
    for kernel in trace.kernels:
        instance = inside.get(id(kernel))
        if instance is not None:
            kind = "layout copies" if _copies(instance, kernel) else "convolution"
        elif names.LAYOUT.search(kernel.name):
            kind = "layout copies"
        else:
            kind = names.kind_of(kernel.operator.name if kernel.operator else None, kernel.name)
        seconds_of[kind] += MICRO * kernel.duration / trace.steps
    return {kind: seconds for kind, seconds in seconds_of.items() if seconds}


def _busy(kernels: Sequence[Kernel]) -> tuple[float, float]:
    """(seconds in which a kernel ran, where overlapping streams count once; seconds from the first kernel to the end of the
    last)."""
    spans = sorted((kernel.start, kernel.start + kernel.duration) for kernel in kernels)
    busy, reached = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return MICRO * busy, MICRO * (reached - spans[0][0])
