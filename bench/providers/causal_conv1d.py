"""Dao's causal_conv1d, where the package is installed. It serves depthwise 1-D forward passes that see no later element."""

from __future__ import annotations

import importlib
import importlib.util

import torch

from bench.providers.contender import Contender, Unserved
from bench.work import Work
from costmodel.problem import Pass


def contenders(work: Work) -> list[Contender]:
    p = work.problem
    depthwise = p.rank == 1 and p.groups == p.in_channels == p.out_channels and p.stride == p.dilation == (1,)
    if not depthwise or work.which != Pass.FPROP or work.transposed:
        raise Unserved("causal_conv1d serves the forward of depthwise 1-D layers")
    if not 2 <= p.kernel_size[0] <= 4 or p.padding != ((p.kernel_size[0] - 1, 0),):
        raise Unserved("causal_conv1d has 2 to 4 taps and pads the front only, as k4 p3:0")
    if importlib.util.find_spec("causal_conv1d") is None:
        raise Unserved("causal_conv1d is not installed")
    function = importlib.import_module("causal_conv1d").causal_conv1d_fn

    def prepare(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a, b.squeeze(1)

    return [Contender("causal_conv1d", function, prepare=prepare)]
