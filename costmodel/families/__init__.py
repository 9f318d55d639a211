"""The kernel families of a pass, by name, and the functions that have kernels of their own: the one place that names them all.

The choice, the launch, the counts and the audit ask here. A family is one module of this package, which implements
`costmodel/families/protocol.py`, and one module of `tritonconv.families`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from costmodel.families.copied import Copied
    from costmodel.families.protocol import Family
    from costmodel.problem import ConvProblem
    from costmodel.tiling import Plan

#: The modules that define families, each in a tuple `FAMILIES`.
MODULES = ("gemm", "tma", "depthwise_choice", "band", "padded")
#: The modules of this package that compute a predicted time.
TIMED = ("matrix_time", "depthwise_choice", "band", "padded", "copied")


class Function(NamedTuple):
    """A function of several passes in kernels of its own. `module` predicts their time, and defines the class of their plans
    where they do not use a family's."""

    module: str
    kernels: tuple[str, ...]  # modules of `tritonconv.kernels`
    executed: tuple[int, ...]  # architectures whose compiled code has been executed
    kin: str  # the family that its kernels resemble, whose constants it uses until it has its own
    plan: str = ""  # the class of its plans
    gradients: str = ""  # the module that predicts the time of its gradients, where it is another


FUNCTIONS = {
    "causal": Function("costmodel.causal", ("causal", "causal_backward", "causal_state"), (80, 90), "depthwise"),
    "video": Function("costmodel.video", ("video", "statistics", "prologue"), (80, 90), "gather", "VideoPlan"),
    "separable": Function("costmodel.separable", ("separable",), (80, 90), "patch", "SeparablePlan"),
    "deform": Function(
        "costmodel.deform",
        ("deform", "deform_backward", "deform_scatter", "reduce"),
        (80, 90),
        "gather",
        "DeformPlan",
        "costmodel.deform_backward",
    ),
    "unfold": Function("costmodel.unfold", ("unfold",), (80, 90), "depthwise", "UnfoldPlan"),
}


@cache
def families() -> dict[str, Family]:
    """Every kernel family by its name. A test may add one."""
    registered = [family for module in MODULES for family in import_module(f"{__name__}.{module}").FAMILIES]
    return {family.name: family for family in registered}


@cache
def behind_copies() -> dict[str, Copied]:
    """Every family that pads with zeros, behind a copy of x with its padding, by its name. None has kernels of its own."""
    module = import_module(f"{__name__}.copied")
    copied: list[Copied] = [module.Copied(inner) for inner in families().values() if not inner.modes]
    return {family.name: family for family in copied}


def named() -> dict[str, Family]:
    """The families that a plan may name: `families` and `behind_copies`."""
    return {**families(), **behind_copies()}


def family(name: str) -> Family:
    """The family of a plan. ValueError where there is none of that name."""
    if (member := families().get(name) or behind_copies().get(name)) is None:
        raise ValueError(f"there is no family {name!r}, there are {', '.join(named())}")
    return member


def serving(problem: ConvProblem, prologue: bool = False) -> list[Family]:
    """The families that serve a problem's padding, in the order in which a choice asks them: those that serve few calls come
    first. With `prologue` they are those that can apply one to the pixels that they gather."""
    every = named() if problem.padding_mode else families()
    members = [member for member in every.values() if not member.padding_refusal(problem, prologue)]
    return sorted(members, key=lambda member: not member.narrow)


def plan_class(name: str) -> type[Plan]:
    """The class of the plans of a family or function. ValueError where there is none of that name."""
    if name in FUNCTIONS and FUNCTIONS[name].plan:
        plan: type[Plan] = getattr(import_module(FUNCTIONS[name].module), FUNCTIONS[name].plan)
        return plan
    return family(name).plan


def kernels_of(name: str) -> tuple[str, ...]:
    """The modules of `tritonconv.kernels` that a family or function launches. ValueError where there is none of that name."""
    return FUNCTIONS[name].kernels if name in FUNCTIONS else family(name).kernels


def executed(name: str) -> tuple[int, ...]:
    """The architectures whose compiled code of a family or function has been executed."""
    return FUNCTIONS[name].executed if name in FUNCTIONS else family(name).executed


def every() -> tuple[str, ...]:
    """The names of all families and functions."""
    return (*families(), *FUNCTIONS)
