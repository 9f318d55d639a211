"""Whether a plan can run a call, family by family: the one answer for who launches it, counts it or predicts its time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from costmodel import band, depthwise, tma
from costmodel.algebra import ceil_div, product
from costmodel.device import Device
from costmodel.problem import Pass
from costmodel.recast import FOLDED_WIDTHS, folds
from costmodel.resources import resources_of, too_large
from costmodel.tiling import (
    Call,
    Plan,
    extent,
    full_shares,
    ignored,
    reduction_step,
    seen_problem,
    shares,
    step_of,
    unlaunchable,
)


class Family(NamedTuple):
    """What is asked of a kernel family. Without a device nothing is asked of its limits."""

    serves: Callable[[Call, Plan, Device | None], str]  # why a plan cannot run a call, "" where it can
    completed: Callable[[Call, Plan], Plan]  # the plan with what it leaves open filled in


def gemm_serves(call: Call, plan: Plan, device: Device | None) -> str:
    """Why the implicit GEMM kernels ("gather" and "patch") cannot run a plan; "" where they can."""
    problem, which = call.problem, call.which
    if plan.merge < 1 or problem.groups % plan.merge:
        return f"merge must divide the {problem.groups} groups, got {plan.merge}"
    if plan.fold and not folds(problem, which):
        few = f"fprop and wgrad of up to {FOLDED_WIDTHS[-1]} channels in one group, under several columns without dilation"
        return f"fold is for {few}"
    if plan.x3 and call.dtype != "float32":
        return f"x3 is for float32, not for {call.dtype}"
    problem = seen_problem(problem, plan)
    if plan.family == "patch" and not problem.is_patch:
        return "its windows do not tile the input"
    for name, block in (("block_m", plan.block_m), ("block_n", plan.block_n), ("block_k", plan.block_k)):
        if block < 16 or block & (block - 1):
            return f"{name} must be a power of two of at least 16, got {block}"
    if device is not None and (reason := too_large(plan.tile, resources_of(call, plan, device).shared, device)):
        return reason
    blocks = ceil_div(extent(problem, which, plan.family).depth, plan.block_k)
    if plan.split < 1 or (plan.split > 1 and not shares(problem, which, plan.family)):
        return f"split must be 1 for {which} of patches, got {plan.split}"
    if which != Pass.WGRAD and blocks and plan.split != full_shares(blocks, plan.split):
        return f"{blocks} blocks of the reduction cannot be split {plan.split} ways evenly"
    if which == Pass.WGRAD and plan.step is not None:
        if product(plan.step) != plan.block_k or any(size < 1 or size & (size - 1) for size in plan.step):
            return f"step {plan.step} must be powers of two with product {plan.block_k}"
    return ""


def gemm_completed(call: Call, plan: Plan) -> Plan:
    """wgrad's box of pixels, where a plan leaves it open."""
    if call.which != Pass.WGRAD or plan.step is not None:
        return plan
    return replace(plan, step=reduction_step(seen_problem(call.problem, plan), plan.block_k))


def tma_completed(call: Call, plan: Plan) -> Plan:
    """The box of pixels, where a plan leaves it open."""
    return replace(plan, step=step_of(call.problem, plan))


def tma_serves(call: Call, plan: Plan, device: Device | None) -> str:
    """Why the TMA kernels cannot run a plan; "" where they can."""
    if plan.merge < 1 or call.problem.groups % plan.merge:
        return f"merge must divide the {call.problem.groups} groups, got {plan.merge}"
    if plan.split < 1 or (plan.split > 1 and not shares(call.problem, plan.which, plan.family)):
        return f"split must be 1 for {plan.which}, got {plan.split}"
    if reason := tma.shape_error(call, plan) or tma.serves(call, plan, device.capability if device else tma.LEAST_CAPABILITY):
        return reason
    return too_large(plan.tile, resources_of(call, plan, device).shared, device) if device else ""


FAMILIES = {
    "gather": Family(gemm_serves, gemm_completed),
    "patch": Family(gemm_serves, gemm_completed),
    "depthwise": Family(depthwise.serves, lambda call, plan: plan),
    "tma": Family(tma_serves, tma_completed),
    "band": Family(band.serves, band.completed),
}


def refuses(call: Call, plan: Plan, device: Device | None = None) -> str:
    """Why a plan cannot run a call; "" where it can."""
    if plan.which != call.which:
        return f"it is for {plan.which}"
    if plan.family not in FAMILIES:
        return f"there is no family {plan.family!r}, there are {', '.join(FAMILIES)}"
    if reason := unlaunchable(plan) or ignored(plan):
        return reason
    if plan.group_m < 1 or plan.num_stages < 1:
        return f"group and stages must be positive, got {plan.group_m} and {plan.num_stages}"
    if not {*plan.pack} <= {"a", "b"}:
        return f"pack names operands a and b, got {', '.join(plan.pack)}"
    return FAMILIES[plan.family].serves(call, plan, device)


def checked(call: Call, plan: Plan, device: Device | None = None) -> Plan:
    """A forced plan with what it leaves open filled in. Raises ValueError where it cannot run the call."""
    if reason := refuses(call, plan, device):
        raise ValueError(f"plan {plan} cannot run {call.which} of {call.problem}: {reason}")
    return FAMILIES[plan.family].completed(call, plan)
