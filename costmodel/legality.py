"""Whether a plan can run a call: the one answer that the launch, the counts and the prediction use."""

from __future__ import annotations

from costmodel.device import Device
from costmodel.families import family
from costmodel.tiling import Call, Plan, tile_refusal


def refusal(call: Call, plan: Plan, device: Device | None = None) -> str:
    """Why a plan cannot run a call; "" where it can."""
    if plan.which != call.which:
        return f"it is for {plan.which}"
    if reason := tile_refusal(plan):
        return reason
    try:
        member = family(plan.family)
    except ValueError as error:  # the plan of a function
        return str(error)
    return member.padding_refusal(call.problem, call.prologue is not None) or member.refusal(call, plan, device)


def checked(call: Call, plan: Plan, device: Device | None = None) -> Plan:
    """A forced plan with every option that it leaves open filled in. Raises ValueError where it cannot run the call."""
    if reason := refusal(call, plan, device):
        raise ValueError(f"plan {plan} cannot run {call.which} of {call.problem}: {reason}")
    return family(plan.family).completed(call, plan)
