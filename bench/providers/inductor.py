"""torch.compile, which searches over Triton templates and cuDNN. It serves forward passes only, because it does not rewrite
gradients."""

from __future__ import annotations

import torch

from bench.providers.contender import Contender, Unserved
from bench.providers.cudnn import benchmark, convolution, in_layout
from bench.work import Work
from costmodel.problem import Pass


def contenders(work: Work) -> list[Contender]:
    p = work.problem
    if work.which != (Pass.DGRAD if work.transposed else Pass.FPROP):
        raise Unserved("Inductor leaves backward passes to cuDNN")
    if any(low != high or low < 0 for low, high in p.padding) and not work.transposed:
        raise Unserved("the padding differs at the two ends")
    torch._dynamo.reset()  # a compiled function is looked up by its code, which is the same for every layer

    def forward(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return in_layout(convolution(work, a, b, None), work.layout)

    # without CUDA graphs of its own, because the timer captures one
    call = torch.compile(forward, mode="max-autotune-no-cudagraphs", dynamic=False)
    return [Contender("inductor", call, "max-autotune", active=lambda: benchmark(True))]
