"""The convolutions to try: every family, pass, dtype and layout, recast and shared plans, and every kind of epilogue."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import torch

from bench.gpu.item import Item, Tensors, model_of_device
from bench.providers.contender import Unserved
from bench.providers.ours import call_of, contender
from bench.tolerance import Expected, activated_share, share
from bench.work import Work
from costmodel.device import DEVICES
from costmodel.families import behind_copies, families, family
from costmodel.families.copied import PREFIX
from costmodel.plan import candidates, predict, select
from costmodel.problem import Pass
from costmodel.reports.notation import parse
from costmodel.tiling import Call, Plan
from tritonconv.epilogue import ACTIVATIONS
from tritonconv.op import flat

#: (dtype, precision of float32) by short name.
NUMBERS = {
    "fp16": ("float16", "ieee"),
    "bf16": ("bfloat16", "ieee"),
    "tf32": ("float32", "tf32"),
    "fp32": ("float32", "ieee"),
    "fp64": ("float64", "ieee"),
}
LAYOUTS = ("channels_last", "contiguous")

#: For each family a layer that it serves. A new family adds its own.
FAMILIES = {
    "gather": "conv2d n4 c64 15x13 -> 96 k3 p1",
    "patch": "conv2d n4 c64 15x13 -> 96 k1",
    "tma": "conv2d n4 c64 14x12 -> 96 k3 p1",
    "depthwise": "conv2d n4 c64 15x13 -> 64 k3 p1 g64",
    "band": "conv2d n4 c16 32x32 -> 16 k31 p15 g16",
    "padded": "conv2d n4 c64 15x13 -> 96 k3 p1 zeros,circular",
}
#: For each family behind a copy a layer whose padding holds pixels.
COPIED = {
    f"{PREFIX}gather": "conv2d n2 c32 9x7 -> 48 k3x5 s2x1 p2 reflect,circular",
    f"{PREFIX}patch": "conv2d n2 c64 15x13 -> 96 k1 p1 replicate",
    f"{PREFIX}tma": "conv2d n4 c64 14x12 -> 96 k3 p1 reflect",
    f"{PREFIX}depthwise": "conv2d n4 c64 15x13 -> 64 k3 p1 g64 circular",
    f"{PREFIX}band": "conv2d n4 c16 32x32 -> 16 k31 p15 g16 zeros,circular",
}
#: A GPU on which each family serves all that it can.
SERVING = "NVIDIA H200"
#: Layers of other kinds, by the plan that the library chooses.
LAYERS = {
    "odd": "conv2d n3 c37 15x17 -> 53 k5x3 s2x3 p2x0 d1x2",
    "stride 2": "conv2d n4 c64 16x12 -> 96 k3 s2 p1",
    "dilated": "conv2d n2 c64 17x17 -> 64 k3 p6 d6",
    "stem": "conv2d n2 c3 40x40 -> 64 k7 s2 p3",
    "patches": "conv2d n2 c16 32x48 -> 64 k16 s16",
    "line": "conv1d n4 c64 200 -> 96 k3 p1",
    "space": "conv3d n2 c32 5x9x8 -> 48 k3 s1x2x2 p1",
    "groups of 8": "conv2d n4 c128 14x14 -> 128 k3 p1 g16",
    "groups of 2": "conv2d n4 c64 14x14 -> 64 k3 p1 g32",
    "multiplier": "conv2d n2 c32 14x14 -> 96 k3 p1 g32",
    "large depthwise": "conv2d n2 c32 20x20 -> 32 k9 s2 p4 g32",
    "depthwise line": "conv1d n4 c96 200 -> 96 k4 p3 g96",
    "depthwise space": "conv3d n2 c16 6x9x8 -> 16 k3 p1 g16",
    "reflected": "conv2d n2 c37 15x17 -> 53 k5x3 s2x1 p4:3x2 d1x2 reflect,replicate",
    "around in groups": "conv2d n2 c32 9x7 -> 24 k3 p7 circular g4",
    "space around": "conv3d n2 c32 5x9x8 -> 48 k3 s1x2x2 p1 circular,zeros,reflect",
    "transposed": "conv_transpose2d n4 c64 9x8 -> 48 k4 s2 p1",
    "transposed in groups": "conv_transpose2d n2 c32 9x7 -> 24 k3 s3 p1 op2 g2",
    "transposed line": "conv_transpose1d n4 c64 50 -> 32 k8 s4 p2",
}

Choice = Callable[[Call], Plan]


def of_family(name: str, call: Call) -> Plan:
    """The plan of least predicted time within a family. Raises `Unserved` where the current GPU has none."""
    device = model_of_device()
    plans = [plan for plan in candidates(call, device) if plan.family == name]
    if not plans:
        raise Unserved(f"no {name} plan serves this call on {device.name}")
    return min(plans, key=lambda plan: predict(call, plan, device).seconds)


@cache
def serves(name: str, which: Pass, numbers: str, layout: str) -> bool:
    """Whether a family has plans for its layer on `SERVING` that are worth a try.

    In tf32 these are plans that exact float32 does not have. For contiguous tensors they are plans without a copy, because
    behind a copy the kernels are those of channels-last tensors.
    """

    def plans(numbers: str) -> list[Any]:
        call = call_of(work_of((FAMILIES | COPIED)[name], which, numbers, layout))
        return family(name).candidates(call, DEVICES[SERVING])

    if numbers == "tf32" and plans("fp32") == plans("tf32"):
        return False
    return any(layout == "channels_last" or not plan.pack for plan in plans(numbers))


def chosen(call: Call) -> Plan:
    """The plan that the library takes."""
    return select(call, model_of_device())


def forced(text: str, call: Call) -> Plan:
    """The plan that `text` names."""
    return Plan.parse(text)


def work_of(text: str, which: Pass, numbers: str, layout: str) -> Work:
    work, (dtype, precision) = parse(text), NUMBERS[numbers]
    return Work(work.problem, which, dtype, precision, layout, work.transposed)


def pass_item(name: str, work: Work, choice: Choice) -> Item:
    """One pass of a convolution under the plan that `choice` takes."""
    plan = cache(lambda: choice(call_of(work)))

    def inputs(device: str) -> Tensors:
        if device == "meta":
            return work.meta()
        ((a, b),) = work.inputs(1, device)
        return a, b

    def call(a: torch.Tensor, b: torch.Tensor) -> Sequence[torch.Tensor]:
        return (contender(work, plan()).call(a, b),)

    def judge(tensors: Tensors, results: Sequence[torch.Tensor]) -> float:
        a, b = tensors
        assert a is not None and b is not None
        return share(results[0], work.exact(a, b), work.tf32)

    return Item(name, inputs, call, judge, lambda: str(plan()), work.precision)


# --- with an epilogue -------------------------------------------------------------------------------------------------

#: Epilogues by the cost model's kind: (the tensors, the activation, whether z is written too).
EPILOGUES = {
    "channels": (("scale", "shift"), "relu", False),
    "tensors": (("scale", "shift", "residual"), "relu6", True),
    "heavy": (("residual",), "gelu", False),
}
SLOPE = 0.01


def followed(sums: Expected, bias: Any, scale: Any, shift: Any, residual: Any) -> Expected:
    """(sums + bias) * scale + shift + residual. Each is a float64 tensor that broadcasts, or None."""
    value, magnitude = sums.value, sums.magnitude
    if bias is not None:
        value, magnitude = value + bias, magnitude + bias.abs()
    if scale is not None:
        value, magnitude = value * scale, magnitude * scale.abs()
    for added in (shift, residual):
        if added is not None:
            value, magnitude = value + added, magnitude + added.abs()
    return Expected(value, magnitude, sums.terms + 4)


def fused_item(name: str, work: Work, kind: str, choice: Choice) -> Item:
    """fprop, or dgrad of a transposed layer, with a bias and an epilogue."""
    extras, activation, keep = EPILOGUES[kind]
    p, rank = work.problem, work.problem.rank
    channels = work.shapes[2][1]
    plain = pass_item(name, work, chosen)

    @cache
    def plan() -> Plan:
        plan_of: Plan = choice(Call(**{**call_of(work).__dict__, "epilogue": kind}))
        return plan_of

    def inputs(device: str) -> Tensors:
        a, b = plain.inputs(device)
        assert a is not None
        tensors: list[torch.Tensor | None] = [a, b]
        generator = None if device == "meta" else torch.Generator(device).manual_seed(1)
        for extra in ("bias", "scale", "shift", "residual"):
            if extra != "bias" and extra not in extras:
                tensors.append(None)
                continue
            shape = work.shapes[2] if extra == "residual" else (channels,)
            strides = work.strides(shape) if extra == "residual" else (1,)
            room = torch.empty_strided(shape, strides, dtype=work.torch_dtype, device=device)
            tensors.append(room if device == "meta" else room.normal_(generator=generator))
        return tensors

    def call(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor, *rest: torch.Tensor | None) -> Sequence[torch.Tensor]:
        window = (p.stride, flat(p.padding, p.padding_mode), p.dilation, p.groups)
        follows = (*rest, activation, SLOPE, keep, str(plan()))
        if work.which == Pass.FPROP:
            results = torch.ops.tritonconv.fprop_fused(a, b, bias, *window, *follows)
        else:
            results = torch.ops.tritonconv.dgrad_fused(a, b, bias, p.input_size, *window, *follows)
        return results if keep else results[:1]

    def judge(tensors: Tensors, results: Sequence[torch.Tensor]) -> float:
        a, b, *rest = tensors
        assert a is not None and b is not None
        wide = [t if t is None or t.dim() > 1 else t.double().view(-1, *(1,) * rank) for t in rest]
        z = followed(work.exact(a, b), *(t if t is None else t.double() for t in wide))
        error = activated_share(results[0], z, lambda t: ACTIVATIONS[activation].forward(t, SLOPE), work.tf32)
        return max(error, share(results[1], z, work.tf32)) if keep else error

    return Item(name, inputs, call, judge, lambda: str(plan()), work.precision)


# --- all of them ------------------------------------------------------------------------------------------------------


def family_items(numbers: Sequence[str], layouts: Sequence[str]) -> Iterator[Item]:
    """Every family and pass in some types and layouts."""
    for name in families():
        for word, layout, which in itertools.product(numbers, layouts, Pass):
            if serves(name, which, word, layout):
                work = work_of(FAMILIES[name], which, word, layout)
                yield pass_item(f"{name} {which} {word} {layout}", work, partial(of_family, name))


def copied_items() -> Iterator[Item]:
    """Every family behind a copy. Input gradients of 16 bits are held to one rounding, which narrow groups do not promise."""
    for name, which in itertools.product(COPIED, Pass):
        word = "fp32" if which == Pass.DGRAD and behind_copies()[name].sums("float16") == 2 else "fp16"
        if serves(name, which, word, "channels_last"):
            work = work_of(COPIED[name], which, word, "channels_last")
            yield pass_item(f"{name} {which} {word}", work, partial(of_family, name))


def fused_items(numbers: str) -> Iterator[Item]:
    """Every family with every kind of epilogue, and a transposed layer."""
    for kind in EPILOGUES:
        for name in families():
            if serves(name, Pass.FPROP, numbers, "channels_last"):
                work = work_of(FAMILIES[name], Pass.FPROP, numbers, "channels_last")
                yield fused_item(f"{name} {kind} {numbers}", work, kind, partial(of_family, name))
        work = work_of(LAYERS["transposed"], Pass.DGRAD, numbers, "channels_last")
        yield fused_item(f"transposed {kind} {numbers}", work, kind, chosen)


def layer_items(numbers: str, layout: str) -> Iterator[Item]:
    """Every other kind of layer, under the plan that is chosen for it."""
    for name, text in LAYERS.items():
        for which in Pass:
            yield pass_item(f"{name} {which} {numbers} {layout}", work_of(text, which, numbers, layout), chosen)
