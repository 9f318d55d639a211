"""The forms of `plan=`: plans, their words, a family's name, a dictionary by pass, or the result of `explain`.

Ops take a plan as text: `str(plan)` of each, joined by ";". "fprop:tma" names a family and leaves the tile to the cost model.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from costmodel.device import Device
from costmodel.families import family
from costmodel.families import named as families
from costmodel.legality import checked
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Call, Plan
from costmodel.timing import Prediction
from tritonconv import private


@dataclass(frozen=True)
class Explanation:
    """The result of `explain`.

    It holds the problem, and for each pass ("fprop", "dgrad", "wgrad") the plan, its prediction (times in seconds, traffic in
    bytes) and the words for both, which `print` shows. `left` names the passes that an open `tritonconv.use(where=...)` leaves
    to torch. `plan=` takes an Explanation too. Source: `docs/design/prediction.md` says how times are predicted. Raises nothing
    of its own: `explain` raises what the call would.

    >>> import torch, tritonconv
    >>> explanation = tritonconv.explain(tritonconv.conv2d, torch.ones(1, 8, 6, 6), torch.ones(16, 8, 3, 3), padding=1)
    >>> [*explanation.plans], explanation.problem.output_shape, explanation.predictions["fprop"].seconds > 0
    (['fprop', 'dgrad', 'wgrad'], (1, 16, 6, 6), True)
    >>> print(explanation)  # doctest: +ELLIPSIS
    conv2d: conv2d n1 c8 6x6 -> 16 k3x3 p1,1, float32...
    """

    problem: ConvProblem
    plans: dict[str, Plan]
    predictions: dict[str, Prediction]
    words: str
    left: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.words


Plans = Plan | str | Mapping[str, Any] | Explanation | Iterable[Any] | None

#: What stands between the words of a plan: ":" in `str(plan)`, blanks and lines in the tables of `costmodel layer`.
_BETWEEN = re.compile(r"[\s:;,]+")
#: A plan in what `explain` prints.
_SHOWN = re.compile(r"^ *plan (\S+:\S+)$", re.MULTILINE)


@private.constant
def text(plan: Plans, function: str, forward: Pass = Pass.FPROP, idle: Mapping[Pass, str] | None = None, own: str = "") -> str:
    """The argument `plan=` of a function, as its op takes it.

    `forward` is the pass that computes the function's result. `idle` says why a pass never runs in this call. `own` is the
    family of a function that has only one; its name alone forces nothing.

    Raises TypeError for what is no plan. Raises ValueError for words that name no plan, for two plans of one pass, and if no
    plan is of a pass that runs; plans of other passes may stand beside it, since one value may serve a whole training step.
    `torch.compile` takes the result as a constant.
    """
    if plan is None:
        return ""
    try:
        named = _flat(plan, forward, own)
    except ValueError as error:
        raise ValueError(f"{function}(): {error}") from None
    except TypeError as error:
        raise TypeError(f"{function}(): {error}, got plan={plan!r}") from None
    idle = idle or {}
    if named and all(which in idle for which, _ in named):
        which, word = named[0]
        raise ValueError(f"{function}(): plan {word!r} is for {which}, which does not run: {idle[which]}")
    passes = [which for which, _ in named]
    for which in passes:
        if passes.count(which) > 1:
            both = " and ".join(repr(word) for of_pass, word in named if of_pass == which)
            raise ValueError(f"{function}(): plan has {passes.count(which)} plans of {which}: {both}")
    return ";".join(word for which, word in named if word != f"{which}:{own}")


def _flat(plan: Any, forward: Pass, own: str) -> list[tuple[Pass, str]]:
    """The pair (pass, text) of each plan."""
    if isinstance(plan, Plan):
        return [(plan.which, str(plan))]
    if isinstance(plan, str):
        return _read(plan, forward, own)
    if isinstance(plan, Explanation):
        plan = plan.plans
    if isinstance(plan, Mapping):
        return [pair for name, value in plan.items() for pair in _of_pass(name, value, forward, own)]
    if isinstance(plan, Iterable):
        return [pair for value in plan for pair in _flat(value, forward, own)]
    raise TypeError(
        "argument 'plan' must be a costmodel.tiling.Plan, its words, a family's name, what tritonconv.explain answered, "
        "several, or a dictionary of them by pass"
    )


def _of_pass(name: Any, value: Any, forward: Pass, own: str) -> list[tuple[Pass, str]]:
    """The plan that a dictionary holds under the name of a pass."""
    which = forward if name in ("forward", own) else name
    if which not in [*Pass]:
        raise ValueError(f"plan names the pass {name!r}, passes are forward, {', '.join(Pass)}")
    which = Pass(which)
    if isinstance(value, (str, Plan)):
        read = _flat(value, which, own)
        if {of_pass for of_pass, _ in read} == {*Pass}:  # a family's name, which here stands for this pass alone
            read = [pair for pair in read if pair[0] == which]
        if len(read) == 1 and read[0][0] == which:
            return read
    raise ValueError(f"plan of {name} must be one plan of {which}, its words or a family's name, got {value!r}")


@functools.lru_cache(maxsize=1024)
def _read(text: str, forward: Pass, own: str) -> list[tuple[Pass, str]]:
    """The plans that a text names.

    A plan that does not begin with its pass is the forward pass's. A family's name alone means that family in every pass. What
    `explain` prints and a column of `costmodel layer` are read too."""
    words = [word for word in _BETWEEN.split(" ".join(_SHOWN.findall(text)) or text) if word not in ("", "plan")]
    groups: list[list[str]] = []
    for word in words:
        if word in [*Pass] or not groups:
            groups.append([])
        groups[-1].append(word)
    if not words:
        raise ValueError(f"plan {text!r} has no words: None leaves the choice to the cost model")
    if len(groups) == 1 and len(words) == 1 and words[0] not in [*Pass]:
        name = _known(text, words[0], own)
        return [(which, f"{which}:{name}") for which in Pass]
    return [_one(text, group if group[0] in [*Pass] else [str(forward), *group], own) for group in groups]


def _one(word: str, words: list[str], own: str) -> tuple[Pass, str]:
    if len(words) == 2:
        return Pass(words[0]), f"{words[0]}:{_known(word, words[1], own)}"
    plan = Plan.parse(":".join(words))
    return plan.which, str(plan)


def _known(word: str, name: str, own: str) -> str:
    """The word, if it is a family's name. Raises ValueError for another one."""
    known = (own,) if own else tuple(families())
    if name not in known:
        raise ValueError(
            f"plan {word!r} names no family and is no plan: families are {', '.join(known)}, a plan is of the form "
            "fprop:gather:128x64x64:w4:s4, as tritonconv.explain shows"
        )
    return name


def is_forced(which: Pass, given: str) -> bool:
    """Whether an op's `plan` says anything about a pass."""
    return any(word.partition(":")[0] == which for word in given.split(";"))


def plan_for(which: Pass, given: str) -> Plan | None:
    """The plan that an op's `plan` forces on a pass of a function without families, or None if it says nothing about the
    pass."""
    return next((Plan.parse(word) for word in given.split(";") if word.partition(":")[0] == which), None)


def forced(call: Call, given: str, device: Device) -> Plan | None:
    """The plan that an op's `plan` forces on a pass, or None if it says nothing about this pass.

    For a family's name that is the family's plan of least predicted time. Raises ValueError if the plan cannot run the call."""
    for word in filter(None, given.split(";")):
        which, _, rest = word.partition(":")
        if which not in [*Pass]:
            Plan.parse(word)  # raises, and says why: only an op that is called by itself brings such a word
        if which == call.which:
            return checked(call, Plan.parse(word), device) if ":" in rest else _least(call, rest, device)
    return None


def _least(call: Call, name: str, device: Device) -> Plan:
    if reason := family(name).padding_refusal(call.problem, call.prologue is not None):
        raise ValueError(f"plan names the family {name!r}, which cannot run {call.which} of {call.problem}: {reason}")
    _, plan = family(name).quickest(call, device, math.inf)
    if plan is None:
        raise ValueError(
            f"plan names the family {name!r}, which has no plan of its own choice for {call.which} of {call.problem} in "
            f"{call.dtype} on {device.name}: give its tile, as in {call.which}:{name}:64x64x32, or plan= a dictionary of "
            "other passes"
        )
    return plan
