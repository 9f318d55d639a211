"""Where a convolution's prologue is applied, and what the other way would take, in words."""

from __future__ import annotations

from costmodel import ahead as model
from costmodel.device import Device
from costmodel.families.padded import unprepared
from costmodel.plan import select
from costmodel.tiling import Plan
from tritonconv import plans
from tritonconv.ahead import launch
from tritonconv.ahead.op import without_together


def chosen(both: model.Ways, forced: str, device: Device, recorded: bool) -> Plan:
    """The forward plan of a call. Where gradients are recorded the prologue comes first."""
    if not recorded:
        return launch.chosen(both, forced, device)
    return plans.forced(both.apart, without_together(forced), device) or select(both.apart, device)


def lines(both: model.Ways, plan: Plan, device: Device, recorded: bool) -> list[str]:
    """Where the prologue is applied and why, and what the better plan of the other way would take."""
    together, prediction = model.is_together(plan), model.predict(both, plan, device)
    how = "while pixels are gathered" if together else "by a kernel of its own first, which writes the input once"
    text = [f"  the prologue ({both.prologue}) is applied {how}"]
    if recorded:
        return [*text, "  because gradients are recorded"]
    if not device.interpreted:
        text.append(f"  {prediction.seconds * 1e6:.3g} us with it, {prediction.bytes / 1e6:.3g} MB moved")
    others = [other for other in model.quickest(both, device) if model.is_together(other) != together]
    for other in others if not device.interpreted else []:
        way = "by a kernel of its own" if together else "while gathered, for each tap and block of filters"
        text.append(f"  {way} it would take {model.predict(both, other, device).seconds * 1e6:.3g} us in all")
    if not others and not together:
        reason = unprepared(both.together) or "no tile keeps it in registers"
        text.append(f"  it cannot be applied while pixels are gathered: {reason}")
    return text
