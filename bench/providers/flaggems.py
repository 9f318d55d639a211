"""FlagGems' Triton convolutions, where the package is installed. It serves forward passes."""

from __future__ import annotations

import importlib
import importlib.util

import torch

from bench.providers.contender import Contender, Unserved
from bench.work import Work
from costmodel.problem import Pass


def contenders(work: Work) -> list[Contender]:
    p = work.problem
    if importlib.util.find_spec("flag_gems") is None:
        raise Unserved("flag_gems is not installed")
    if work.transposed or work.which != Pass.FPROP:
        raise Unserved("flag_gems serves the forward of plain convolutions")
    if any(low != high or low < 0 for low, high in p.padding):
        raise Unserved("the padding differs at the two ends")
    function = getattr(importlib.import_module("flag_gems"), f"conv{p.rank}d", None)
    if function is None:
        raise Unserved(f"flag_gems has no conv{p.rank}d")
    lows = [low for low, _ in p.padding]

    def call(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return function(a, b, None, list(p.stride), lows, list(p.dilation), p.groups)

    return [Contender("flaggems", call)]
