"""Results that do not depend on how many images are computed together: `with tritonconv.batch_invariant():`.

A kernel adds the terms of an output in an order that depends only on its plan. So each call takes the plan of one image and
forces it on the whole batch. The region marks the calls that are made in it by the word "invariant" in an op's `plan`, which
gradients pass on, so their backward passes take the plans of one image wherever they run.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Plan
from tritonconv import launch
from tritonconv.epilogue import Epilogue
from tritonconv.layout import output_strides
from tritonconv.prepared import is_aligned

_WORD = "invariant;"
_lock = threading.Lock()
_depth = 0


@contextlib.contextmanager
def batch_invariant() -> Iterator[None]:
    """A region in which each image's result, and its input gradient, has the same bits whatever batch it is in.

    It holds for all functions of this package, in every thread, while the region is open; `with` nests. Plans are those of one
    image, which may be slower than those of the batch; `depthwise_separable_conv2d`, `causal_conv3d` and `deform_conv2d` launch
    once per image. It does not hold for weight and bias gradients, which are sums over the batch, nor for CPU tensors that
    torch's convolution computes. Raises nothing of its own; a call in it raises what it raises elsewhere. Source:
    `docs/design/determinism.md`.

    >>> import torch, tritonconv
    >>> with tritonconv.batch_invariant():
    ...     y = tritonconv.conv1d(torch.ones(5, 2, 8), torch.ones(3, 2, 3))
    """
    _enter(1)
    try:
        yield
    finally:
        _enter(-1)


def _enter(by: int) -> None:
    global _depth
    with _lock:
        _depth += by


def is_on() -> bool:
    """Whether the region is open."""
    return _depth > 0


def marked(plan: str) -> str:
    """An op's `plan`, with the mark if the region is open."""
    return _WORD + plan if _depth > 0 else plan


def unmarked(plan: str) -> tuple[bool, str]:
    """(whether an op's `plan` has the mark, the rest of it)."""
    return plan.startswith(_WORD), plan.removeprefix(_WORD)


def by_image(call: Callable[..., Any], batched: tuple[torch.Tensor | None, ...]) -> Any:
    """`call` for each image of the tensors in `batched`, with the resulting tensors joined again; other results are None."""
    size = max(len(tensor) for tensor in batched if tensor is not None)
    results = [call(*(None if t is None else t[i : i + 1] for t in batched)) for i in range(size)]
    if isinstance(results[0], torch.Tensor):
        return torch.cat(results)
    return tuple(torch.cat(parts) if parts[0] is not None else None for parts in zip(*results, strict=True))


def fixed(
    which: Pass, problem: ConvProblem, a: torch.Tensor, b: torch.Tensor, bias: Any, plan: str, epilogue: Epilogue | None = None
) -> str | None:
    """The plan of one image of fprop or dgrad, as an op takes it; None where it cannot run the batch.

    Raises ValueError where a forced plan cannot run one image.
    """
    residual = None if epilogue is None or epilogue.residual is None else epilogue.residual[:1]
    first = None if epilogue is None else epilogue._replace(residual=residual)
    words = str(chosen(which, replace(problem, batch=1), a[:1], b, bias, plan, first, is_aligned(a)))
    try:
        chosen(which, problem, a, b, bias, words, epilogue)
    except ValueError:
        return None
    return words


def chosen(
    which: Pass,
    problem: ConvProblem,
    a: torch.Tensor,
    b: torch.Tensor,
    bias: Any,
    forced: str,
    epilogue: Epilogue | None = None,
    aligned: bool | None = None,
) -> Plan:
    """The plan that a call of an op takes."""
    shape = {Pass.FPROP: problem.output_shape, Pass.DGRAD: problem.input_shape, Pass.WGRAD: problem.weight_shape}[which]
    out = tuple(shape), output_strides(shape, a, b)
    return launch.prepared_for(which, problem, a, b, out, bias, forced, epilogue, aligned).plan
