"""Calls whose workspace does not fit in memory. Programs that share a reduction keep partial sums; without sharing there are
none."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch

from costmodel.problem import ConvProblem, Pass
from tritonconv.epilogue import Epilogue
from tritonconv.invariant import chosen

Result = TypeVar("Result")


def fitting(
    run: Callable[[str], Result],
    which: Pass,
    problem: ConvProblem,
    a: torch.Tensor,
    b: torch.Tensor,
    bias: Any,
    plan: str,
    epilogue: Epilogue | None = None,
) -> Result:
    """`run(plan)`. Where memory runs out and the plan shares a reduction, it runs again without sharing and warns once.

    Raises torch.OutOfMemoryError where that does not fit either.
    """
    try:
        return run(plan)
    except torch.OutOfMemoryError:
        first: Any = chosen(which, problem, a, b, bias, plan, epilogue)  # every family shares by `split`
        if first.split == 1:
            raise
    alone = replace(first, split=1)
    _say(f"{which} of {problem}: no memory for {first.split} partial sums, so it runs as {alone}")
    return run(str(alone))


@functools.cache
def _say(words: str) -> None:
    warnings.warn(words, stacklevel=3)
