"""From the tensors of a convolution with a prologue to its launches: in one kernel, or in two."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch

from costmodel import ahead as model
from costmodel.device import Device
from costmodel.families import family
from costmodel.legality import checked
from costmodel.problem import ConvProblem, Pass
from costmodel.prologue import Prologue
from costmodel.tiling import Call, Plan
from tritonconv import host, invariant, launch, plans
from tritonconv.describe import describe
from tritonconv.epilogue import Epilogue
from tritonconv.layout import allocate, channels_last_strides
from tritonconv.normalize.check import as_video
from tritonconv.normalize.launch import Values, apply, packed
from tritonconv.prepared import FusedKey, TensorKey, is_aligned, key

Maybe = torch.Tensor | None


def described(values: Values) -> Prologue:
    """A prologue without its tensors."""
    scale, shift, rstd, activation, slope = values
    return Prologue.of(activation, scale, shift, rstd, slope)


def is_empty(epilogue: Epilogue) -> bool:
    return epilogue.scale is None and epilogue.shift is None and epilogue.residual is None and not epilogue.activation


def ways(
    problem: ConvProblem,
    dtype: str,
    precision: str,
    x: TensorKey,
    w: TensorKey,
    y: TensorKey,
    kind: str,
    aligned: tuple[bool, bool],
    prologue: Prologue,
) -> model.Ways:
    """The call in one kernel and in two, of which the second reads x dense and channels-last."""
    as_given = describe(problem, Pass.FPROP, x, w, y, aligned)
    as_written = describe(problem, Pass.FPROP, (x[0], channels_last_strides(x[0])), w, y, (True, aligned[1]))
    return model.Ways(
        Call(problem, Pass.FPROP, dtype, precision, *as_given, kind, prologue),
        Call(problem, Pass.FPROP, dtype, precision, *as_written, kind),
    )


def chosen(both: model.Ways, forced: str, device: Device) -> Plan:
    """The plan of a call: the quickest of both ways, or what is forced. A plan that says "together" is for one kernel, any
    other for what follows the prologue's own kernel; the name of a family stands for its quickest plan of either way."""
    word = next((word for word in forced.split(";") if word.partition(":")[0] == Pass.FPROP), "")
    _, _, rest = word.partition(":")
    if ":" in rest:
        plan = Plan.parse(word)
        return checked(both.call_for(plan), plan, device)
    quickest = model.quickest(both, device, family(rest).name if rest else "")
    if quickest:
        return quickest[0]
    plans.forced(both.apart, word, device)  # raises, and says why there is none
    raise RuntimeError(f"no plan for fprop of {both.apart.problem} in {both.apart.dtype} on {device.name}")


@functools.lru_cache(maxsize=4096)
def prepare(
    problem: ConvProblem,
    dtype: torch.dtype,
    precision: str,
    device: int,
    x: TensorKey,
    w: TensorKey,
    y: TensorKey,
    forced: str,
    kind: str,
    aligned: tuple[bool, bool],
    prologue: Prologue,
) -> tuple[bool, str]:
    """(whether the prologue is applied together, the plan as an op takes it)."""
    both = ways(problem, launch.DTYPES[dtype], precision, x, w, y, kind, aligned, prologue)
    plan = chosen(both, forced, launch.device_model(device))
    return model.is_together(plan), str(plan)


def applied(x: torch.Tensor, values: Values) -> torch.Tensor:
    """x [N, C, *size] with the prologue, channels-last."""
    return apply(as_video(x), values).view(x.shape)


def forward(
    problem: ConvProblem,
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None,
    values: Values,
    epilogue: Epilogue,
    plan: str = "",
) -> torch.Tensor:
    """y in one launch, or in those of the prologue and of an ordinary convolution."""
    alone, plan = invariant.unmarked(plan)
    if alone and problem.batch > 1:
        return each_image(problem, x, w, b, values, epilogue, plan)
    y = allocate(problem.output_shape, x, w)
    if y.numel() == 0:
        return y
    follows = None if is_empty(epilogue) else epilogue
    fused = None if follows is None else FusedKey.of(follows)
    precision, index, aligned = launch.fp32_precision(), host.index_of(x), (is_aligned(x), is_aligned(w))
    prologue, kind = described(values), "" if fused is None else fused.kind(key(y))
    together, words = prepare(problem, x.dtype, precision, index, key(x), key(w), key(y), plan, kind, aligned, prologue)
    if not together:
        return launch.execute(Pass.FPROP, problem, applied(x, values), w, y, b, words, follows)
    stride = None if b is None else b.stride(0)
    prepared = launch.prepare_call(
        Pass.FPROP, problem, x.dtype, precision, index, key(x), key(w), key(y), stride, words, fused, aligned, prologue
    )
    values = values.readable()
    launch.perform(prepared, x, w, y, b, follows, None, values.pointers(packed(values.strides())))
    return y


def each_image(
    problem: ConvProblem,
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None,
    values: Values,
    epilogue: Epilogue,
    plan: str,
) -> torch.Tensor:
    """`forward` image by image, so that a result does not depend on its batch."""
    one = replace(problem, batch=1)
    tensors = [t if t is None else t.expand(len(x), *t.shape[1:]) for t in values[:3]]

    def on_image(image: torch.Tensor, scale: Maybe, shift: Maybe, rstd: Maybe, residual: Maybe) -> torch.Tensor:
        image_values = Values(scale, shift, rstd, values.activation, values.slope)
        return forward(one, image, w, b, image_values, epilogue._replace(residual=residual), plan)

    result: torch.Tensor = invariant.by_image(on_image, (x, *tensors, epilogue.residual))
    return result
