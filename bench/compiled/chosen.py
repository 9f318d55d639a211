"""The code that a GPU would choose for a layer, and a problem for the same code that is small enough to execute.

A plan is chosen for the layer's real sizes. Then batch and image are made smaller while the launch still compiles to the same
code, that is while its constants, boxes and widths of integers are the same. This needs no compilation.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton.language as tl

from bench.work import Work
from costmodel.device import Device
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Plan
from tritonconv import host, launch
from tritonconv.families import launcher, launchers
from tritonconv.layout import output_strides
from tritonconv.prepared import INT32_MAX
from tritonconv.steps import Launch, Step

#: Smaller problems that are tried per layer.
TRIED = 96
#: Multiply-adds (`walked`) above which a problem's number of groups is reduced too.
MANY_MACS = 10**9


@dataclass(frozen=True)
class Chosen:
    """The code of a plan, with the smallest problem that compiles to it (`work`). `key` names code, architecture and
    arithmetic."""

    work: Work
    plan: Plan
    bias: bool
    arch: int
    key: str
    far: bool = False  # whether its offsets take 64 bits

    def __str__(self) -> str:
        return f"sm_{self.arch} {self.plan} of {self.work}" + (" with bias" if self.bias else "")


def prepared_for(work: Work, bias: bool, device: Device, forced: str = "") -> Launch:
    """The launch of a work's pass on a device. Raises as `tritonconv.launch.choose` does."""
    host.use(device)
    a, b = work.meta()
    out = work.shapes[2], output_strides(work.shapes[2], a, b)
    stride = 1 if bias else None
    index = host.index_of(torch.empty(0))
    keys = launch.key(a), launch.key(b), out
    return launch.prepare_call(work.which, work.problem, work.torch_dtype, work.precision, index, *keys, stride, forced)


def code_of(prepared: Launch) -> tuple[Any, ...]:
    """Everything that the compiled kernels of a launch depend on, except for the element type and the architecture."""
    plan, main = prepared.plan, prepared.main
    pack, kind = option_of(plan, "pack"), (plan.which.value, plan.family, option_of(plan, "taps") is None)
    boxes = tuple(main.boxes.get(name) for name in ("a", "b", "out")) if main.boxes else ()
    blocks = tuple(None if box is None else (len(box[0]), tuple(box[2])) for box in boxes)
    recast = pack, option_of(plan, "merge") > 1, option_of(plan, "fold"), bool(prepared.workspace), prepared.copies.elsewhere
    beside: tuple[Any, ...] = ()
    for step in (*prepared.before, *prepared.after):  # there is at most one
        family = launcher(plan.family).kernels_of(plan.which)
        beside = kind[0], family, kind[2], (pack, *(False,) * 4), (), *code_of_step(step), ()
    return *kind, recast, blocks, *code_of_step(main), beside


def code_of_step(step: Step) -> tuple[Any, Any]:
    """(the constants of a step, which of its integers take 64 bits)."""
    return tuple(sorted((name, str(value)) for name, value in step.constants.items())), widths(step.arguments)


def option_of(plan: Plan, option: str) -> Any:
    """The value of an option of a plan, or its default where the plan's family does not have it. The keys of the record are
    older than the families' own classes of plans."""
    return getattr(plan, option, {"pack": (), "merge": 1, "fold": False}.get(option))


def widths(value: Any) -> Any:
    """The arguments with each integer replaced by whether it takes 64 bits."""
    if isinstance(value, tuple):
        return tuple(map(widths, value))
    return None if value is None else value > INT32_MAX


def key_of(prepared: Launch, work: Work, arch: int) -> str:
    """16 hexadecimal digits of code, element type and architecture."""
    text = repr((code_of(prepared), work.dtype, work.tf32, arch))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def chosen(work: Work, bias: bool, device: Device, forced: str = "") -> Chosen:
    """What `device` runs for a layer's pass, or the plan that is forced, and the smallest problem tried that the same code
    computes."""
    real = prepared_for(work, bias, device, forced)
    code, plan = code_of(real), real.plan
    step = option_of(plan, "step")
    least = step[4 - work.problem.rank :] if step and work.which == Pass.WGRAD else ()
    wide = real.main.constants.get("INDEX") == tl.int64

    def alike(problem: ConvProblem) -> bool:
        try:
            return code_of(prepared_for(replace(work, problem=problem), bias, device, str(plan))) == code
        except (ValueError, RuntimeError):
            return False

    with far() if wide else nullcontext():
        candidates = itertools.islice(smaller(work.problem, least), TRIED)
        problem = next(filter(alike, candidates), work.problem)
        if walked(problem) > MANY_MACS:
            problem = next(filter(alike, fewer_groups(problem)), problem)
    small = replace(work, problem=problem)
    return Chosen(small, plan, bias, device.capability, key_of(real, work, device.capability), wide)


def reach() -> list[Any]:
    """The modules that say whether 32-bit offsets reach a family's tensors."""
    return [sys.modules[name] for name in dict.fromkeys(type(own).__module__ for own in launchers().values())]


@contextmanager
def far() -> Iterator[None]:
    """Inside the block no tensor is within reach of 32-bit offsets, so that small tensors take the code of large ones."""
    kept = [(module, module.fits_int32) for module in reach()]
    launch.prepare_call.cache_clear()
    try:
        for module, _ in kept:
            module.fits_int32 = lambda *given, **named: False
        yield
    finally:
        for module, function in kept:
            module.fits_int32 = function
        launch.prepare_call.cache_clear()


def walked(problem: ConvProblem) -> int:
    """Multiply-adds of each tap with each pixel of the input or of the result, whichever has more of them. A kernel walks over
    pairs that meet padding too, which `macs` leaves out."""
    pixels = max(math.prod(problem.input_size), math.prod(problem.output_size))
    return problem.batch * problem.out_channels * problem.channels_per_group * math.prod(problem.kernel_size) * pixels


def fewer_groups(problem: ConvProblem) -> Iterator[ConvProblem]:
    """Problems with fewer groups of the same channels and filters."""
    for groups in (2, 4, 8, 16, 32):
        if groups < problem.groups:
            channels, filters = groups * problem.channels_per_group, groups * problem.filters_per_group
            yield replace(problem, groups=groups, in_channels=channels, out_channels=filters)


def smaller(problem: ConvProblem, least: tuple[int, ...] = ()) -> Iterator[ConvProblem]:
    """Problems with a smaller batch and image, the least work first. `least` is the smallest size of the result."""
    axes = [
        sizes(n, k, s, low, high, small)
        for n, k, s, (low, high), small in zip(
            problem.input_size,
            problem.effective_kernel,
            problem.stride,
            problem.padding,
            least or (1,) * problem.rank,
            strict=True,
        )
    ]
    images = sorted({min(problem.batch, n) for n in (1, 2, 3, 8, 32)})
    every = [(batch, size) for batch in images for size in itertools.product(*axes)]
    for batch, size in sorted(every, key=lambda pair: (pair[0] == 1 < problem.batch, pair[0] * math.prod(pair[1]))):
        candidate = replace(problem, batch=batch, input_size=size)
        if all(extent >= 1 for extent in candidate.output_size):
            yield candidate


def sizes(size: int, kernel: int, stride: int, low: int, high: int, least_result: int) -> list[int]:
    """The extents to try for a shorter axis, which keeps an inside and both borders: first one with the same remainder by the
    stride, then ones with the same divisibility by 16, then those whose result has the same divisibility too."""

    def result(n: int) -> int:
        return (n + low + high - kernel) // stride + 1

    least = max(kernel - max(low, 0) - max(high, 0), 1) + 2 * stride + max(0, -low) + max(0, -high)
    least = min(size, max(least, (least_result - 1) * stride + kernel - low - high))
    same = [n for n in range(least, min(size, least + 40 * max(16, stride)) + 1) if n % stride == size % stride]
    alike = [n for n in same if math.gcd(n, 16) == math.gcd(size, 16)]
    exact = [n for n in alike if math.gcd(result(n), 16) == math.gcd(result(size), 16)]
    return sorted({*same[:2], *alike[:2], *exact[:2], *exact[4:20:8], size})
