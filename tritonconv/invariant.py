"""Results that do not depend on how many images are computed together: `with tritonconv.batch_invariant():`.

A kernel adds the terms of an output in an order that its plan says, whatever else it computes. So each call takes the plan of
one image, forced on the whole batch. The region marks the calls that are made in it (the word "invariant" in an op's `plan`,
which gradients hand on), so their backward passes take the plans of one image wherever they run.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from costmodel.problem import ConvProblem, Pass
from tritonconv import host, launch
from tritonconv.epilogue import Epilogue
from tritonconv.layout import output_strides
from tritonconv.prepared import FusedKey, is_aligned, key

_WORD = "invariant;"
_lock = threading.Lock()
_depth = 0


@contextlib.contextmanager
def batch_invariant() -> Iterator[None]:
    """A region in which each image's result, and its input gradient, has the same bits whatever batch it is in.

    Holds for all functions of this package, in every thread, while the region is open; `with` nests. Plans are those of one
    image, which may be slower than those of the batch; `depthwise_separable_conv2d` and `causal_conv3d` launch once an image.
    Weight and bias gradients are sums over the batch, and not meant. CPU tensors that torch's convolution computes are not
    either.

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
    """An op's `plan`, with the mark where the region is open."""
    return _WORD + plan if _depth > 0 else plan


def unmarked(plan: str) -> tuple[bool, str]:
    """Whether an op's `plan` has the mark, and the rest of it."""
    return plan.startswith(_WORD), plan.removeprefix(_WORD)


def by_image(call: Callable[..., Any], batched: tuple[torch.Tensor | None, ...]) -> Any:
    """`call` of each image of the tensors of `batched`, its tensors joined again; others than tensors are not."""
    size = max(len(tensor) for tensor in batched if tensor is not None)
    made = [call(*(None if t is None else t[i : i + 1] for t in batched)) for i in range(size)]
    if isinstance(made[0], torch.Tensor):
        return torch.cat(made)
    return tuple(torch.cat(parts) if parts[0] is not None else None for parts in zip(*made, strict=True))


def fixed(
    which: Pass, problem: ConvProblem, a: torch.Tensor, b: torch.Tensor, bias: Any, plan: str, epilogue: Epilogue | None = None
) -> str | None:
    """The plan of one image of fprop or dgrad, as an op takes it; None where it cannot run the batch.

    ValueError where a forced plan cannot run one image.
    """
    one = replace(problem, batch=1)
    shape = one.output_shape if which == Pass.FPROP else one.input_shape
    first = a[:1]
    out = (tuple(shape), output_strides(shape, first, b))
    fused = None
    if epilogue is not None:
        residual = epilogue.residual
        fused = FusedKey.of(epilogue._replace(residual=None if residual is None else residual[:1]))
    prepared = functools.partial(
        launch.prepare_call, dtype=a.dtype, precision=launch.fp32_precision(), device=host.index_of(a),
        bias_stride=None if bias is None else bias.stride(0), aligned=(is_aligned(a), is_aligned(b)),
    )  # fmt: skip
    found = str(prepared(which, one, a=key(first), b=key(b), out=out, forced=plan, fused=fused).plan)
    whole = problem.output_shape if which == Pass.FPROP else problem.input_shape
    fused = None if epilogue is None else FusedKey.of(epilogue)
    try:
        prepared(which, problem, a=key(a), b=key(b), out=(tuple(whole), output_strides(whole, a, b)), forced=found, fused=fused)
    except ValueError:
        return None
    return found
