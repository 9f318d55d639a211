"""Counts the kernels that the package starts, by pass and family, so that tests can prove that some, or none, were started.

Importing this module puts a counter around `tritonconv.steps`, which starts all kernels. The package itself counts by kernel.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from tritonconv.steps import Launch, Step

#: Launches so far, by "fprop", "dgrad" or "wgrad"; also by "tma fprop" and so on for families other than gather and patch; by
#: "reduce" for the second stage of a shared reduction; and for kernels of functions by `FUNCTIONS`.
COUNTS: Counter[str] = Counter()
#: The names under which kernels of functions are counted.
FUNCTIONS = {
    "causal_kernel": "causal",
    "final_state_kernel": "causal final",
    "causal_backward_kernel": "causal backward",
    "state_gradient_kernel": "causal state gradient",
    "causal_update_kernel": "causal update",
    "video_kernel": "video",
    "apply_kernel": "prologue",
    "moments_kernel": "group moments",
    "group_kernel": "group scale",
    "square_kernel": "rms rstd",
    "separable_kernel": "separable",
    "deform_kernel": "deform",
    "columns_kernel": "deform columns",
    "targets_kernel": "deform targets",
    "scatter_kernel": "deform scatter",
    "weights_kernel": "deform weights",
    "unfold_kernel": "unfold",
    "fold_kernel": "fold",
}
_PLAIN = ("fprop_kernel", "dgrad_kernel", "wgrad_kernel")
_start, _run = Step.start, Launch.run


def start(step: Step, *values: Any, **named: Any) -> None:
    """`Step.start`, counted."""
    name = step.kernel.__name__
    if name == "reduce_kernel":
        COUNTS["reduce"] += 1
    elif name in FUNCTIONS:
        COUNTS[FUNCTIONS[name]] += 1
    _start(step, *values, **named)


def run(launch: Launch, *given: Any) -> None:
    """`Launch.run`, counted."""
    which = str(launch.plan.which)
    COUNTS[which] += 1
    if launch.main.kernel.__name__ not in _PLAIN or launch.main.boxes:
        COUNTS[f"{launch.plan.family} {which}"] += 1
    _run(launch, *given)


setattr(Step, "start", start)  # noqa: B010, mypy has no methods assigned
setattr(Launch, "run", run)  # noqa: B010
