"""torch's convolution as a careful user calls it: contiguous or channels-last, `cudnn.benchmark` off or on.

Where the setting's layout is not that of the tensors, the activations are copied before and the result after the call, within
the measured time; weights are kept in the setting's layout. For channels-last, which torch does not have in 1-D, 1-D tensors
become images of one row. Paddings that differ at the two ends are written by `pad`, as torch's users do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch.nn import functional

from bench.providers.contender import Contender
from bench.work import LAYOUTS, Work
from costmodel.problem import ConvProblem, Pass

SETTINGS = {f"{layout}{' benchmark' * benchmark}": (layout, benchmark) for layout in LAYOUTS for benchmark in (False, True)}


def in_layout(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """The tensor in a layout, copied where it is in another. torch has a channels-last format only for images and volumes."""
    if layout == "contiguous":
        return tensor.contiguous()
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=formats[tensor.dim()]) if tensor.dim() in formats else tensor


def forget_plans() -> None:
    """Empties torch's cache of cuDNN plans. Its key does not contain `benchmark`, so a second setting would run the first one's
    plan. With a limit of one plan (`Gpu(cudnn_plans=1)`), another convolution pushes the last plan out.
    """
    if torch.cuda.is_available():
        one = torch.zeros(1, 8, 1, 1, dtype=torch.float16, device="cuda")
        torch.convolution(one, one.expand(8, 8, 1, 1), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)


@contextmanager
def benchmark(on: bool) -> Iterator[None]:
    saved = torch.backends.cudnn.benchmark
    forget_plans()
    torch.backends.cudnn.benchmark = on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = saved


def convolution(work: Work, a: torch.Tensor, b: torch.Tensor, template: torch.Tensor | None) -> torch.Tensor:
    """The pass by torch. For a gradient torch reads the size and layout of the result from `template`."""
    p, none = work.problem, [0] * work.problem.rank
    backward = torch.ops.aten.convolution_backward
    lows = [low for low, _ in p.padding]
    if work.transposed:
        extra = [low - high for low, high in p.padding]
        if work.which == Pass.DGRAD:
            return torch.convolution(a, b, None, p.stride, lows, p.dilation, True, extra, p.groups)
        window = (p.stride, lows, p.dilation, True, extra, p.groups)
        if work.which == Pass.FPROP:  # the layer's input gradient: a is the gradient of its output
            return backward(a, template, b, None, *window, [True, False, False])[0]
        return backward(b, a, template, None, *window, [False, True, False])[1]
    even = all(low == high >= 0 for low, high in p.padding)
    pads = [0] * (2 * p.rank) if even else [n for pair in reversed(p.padding) for n in pair]
    window = (p.stride, lows if even else none, p.dilation, False, none, p.groups)
    if work.which == Pass.FPROP:
        return torch.convolution(a if even else functional.pad(a, pads), b, None, *window)
    if work.which == Pass.DGRAD:
        dx = backward(a, template, b, None, *window, [True, False, False])[0]
        return dx if even else functional.pad(dx, [-n for n in pads])
    return backward(a, b if even else functional.pad(b, pads), template, None, *window, [False, True, False])[1]


def template(work: Work, layout: str, device: torch.device) -> torch.Tensor | None:
    """What `convolution` needs besides a and b: for a gradient, a tensor of the differentiated one's size."""
    if work.which == (Pass.DGRAD if work.transposed else Pass.FPROP):
        return None
    p = work.problem
    shape = work.shapes[2]
    if work.which == Pass.DGRAD and not all(low == high >= 0 for low, high in p.padding):
        shape = (p.batch, p.in_channels, *p.padded_size)
    return in_layout(torch.empty(shape, dtype=work.torch_dtype, device=device), layout)


def contender(work: Work, setting: str) -> Contender:
    layout, search = SETTINGS[setting]
    lifted = work.problem.rank == 1 and layout == "channels_last"
    lifted_work = replace(work, problem=lift(work.problem)) if lifted else work
    cached: dict[torch.device, torch.Tensor | None] = {}

    def call(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if a.device not in cached:  # made in the warm-up, so that neither the time nor the graph includes it
            cached[a.device] = template(lifted_work, layout, a.device)
        if lifted:
            a, b = a.unsqueeze(2), b.unsqueeze(2)
        a = in_layout(a, layout)
        b = in_layout(b, layout) if work.which == Pass.WGRAD else b
        result = convolution(lifted_work, a, b, cached[a.device])
        result = result.squeeze(2) if lifted else result
        return result if work.which == Pass.WGRAD else in_layout(result, work.layout)

    def prepare(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if work.which == Pass.WGRAD:
            return a, b
        return a, in_layout(b.unsqueeze(2), layout).squeeze(2) if lifted else in_layout(b, layout)

    return Contender("cudnn", call, setting, prepare, lambda: benchmark(search))


def lift(problem: ConvProblem) -> ConvProblem:
    return problem.with_unit_axes(2)


def contenders(work: Work) -> list[Contender]:
    return [contender(work, setting) for setting in SETTINGS]
