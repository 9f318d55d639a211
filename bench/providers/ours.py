"""tritonconv: the library's ops, with the plan that the library chooses."""

from __future__ import annotations

import torch

from bench.providers.contender import Contender
from bench.work import Work
from costmodel.problem import Pass
from costmodel.tiling import Call, Plan
from tritonconv import host, launch
from tritonconv.layout import output_strides
from tritonconv.op import flat


def call_of(work: Work) -> Call:
    """The call to plan, with the tensors' own strides."""
    a, b = work.meta()
    shape = work.shapes[2]
    keys = launch.key(a), launch.key(b), (shape, output_strides(shape, a, b))
    described = launch.describe(work.problem, work.which, *keys)
    return Call(work.problem, work.which, work.dtype, work.precision, *described)


def chosen(work: Work) -> Plan:
    """The library's plan, on the current CUDA device or in the interpreter."""
    call = call_of(work)
    index = torch.cuda.current_device() if torch.cuda.is_available() and not host.INTERPRETED else -1
    return launch.choose(work.which, work.problem, work.torch_dtype, work.precision, index, call.a, call.b, call.out, forced="")


def contender(work: Work, plan: Plan) -> Contender:
    """The op that computes the work with `plan`."""
    p, ops = work.problem, torch.ops.tritonconv
    window = (p.stride, flat(p.padding, p.padding_mode), p.dilation, p.groups, str(plan))

    def call(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if work.which == Pass.FPROP:
            return ops.fprop(a, b, None, *window)
        if work.which == Pass.DGRAD:
            return ops.dgrad(a, b, None, p.input_size, *window)
        return ops.wgrad(a, b, p.kernel_size, *window)

    return Contender("tritonconv", call, plan=plan)


def contenders(work: Work) -> list[Contender]:
    return [contender(work, chosen(work))]
