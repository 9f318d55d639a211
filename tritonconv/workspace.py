"""Runs a call by a plan that needs less memory where memory runs out.

Programs that share a reduction need memory for partial sums; programs that do not share it need none. Plans behind a copy need
memory for x with its padding; the kernels of padding modes do not.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch

from costmodel.families.copied import BY_INDEX, is_copied
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
    """The result of `run(plan)`.

    Where memory runs out and the plan copies x with its padding, the call runs again by index arithmetic. Where the plan shares
    a reduction, the call runs again without sharing. Either gives a warning, the first time.

    Raises torch.OutOfMemoryError where memory runs out again, or where the plan does neither.
    """
    try:
        return run(plan)
    except torch.OutOfMemoryError:
        first: Any = chosen(which, problem, a, b, bias, plan, epilogue)  # every family has the field `split`
        if first.split == 1 and not is_copied(first):
            raise
    if is_copied(first):
        _say(f"{which} of {problem}: no memory for a copy of x with its padding, so it runs as {BY_INDEX}")
        return fitting(run, which, problem, a, b, bias, f"{which}:{BY_INDEX}", epilogue)
    alone = replace(first, split=1)
    _say(f"{which} of {problem}: no memory for {first.split} partial sums, so it runs as {alone}")
    return run(str(alone))


@functools.cache
def _say(words: str) -> None:
    warnings.warn(words, stacklevel=3)
