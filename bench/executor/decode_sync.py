"""Decoding of control flow and of instructions that order threads: branches, barriers, shuffles, votes, fences, mbarriers."""

from __future__ import annotations

from bench.executor.builder import Builder, Op, Unknown
from bench.executor.layout import NONE, PARAMETER_BASE
from bench.executor.text import address

REDUCTIONS = ["add", "min", "max", "and", "or", "xor"]
SHUFFLES = ["idx", "bfly", "up", "down"]
VOTES = ["any", "all", "uni", "ballot"]


def control(b: Builder, parts: list[str], operands: list[str]) -> bool:
    """Decodes an instruction of control or order; returns False for any other."""
    decoder = {
        "bra": _branch,
        "bar": _barrier,
        "barrier": _barrier,
        "shfl": _shuffle,
        "redux": _reduce,
        "vote": _vote,
        "elect": _elect,
        "fence": _fence,
        "membar": _fence,
        "mbarrier": _mbarrier,
    }.get(parts[0])
    if decoder:
        decoder(b, parts, operands)
    elif parts[0] in ("ret", "exit"):
        b.add(Op.RETURN)
    elif parts[0] == "trap":
        b.add(Op.TRAP)
    elif parts[0] == "activemask":
        b.add(Op.ACTIVE, D=b.register(operands[0]))
    elif parts[0] == "cvta":
        _convert_address(b, parts, operands)
    elif parts[0] in ("nanosleep", "griddepcontrol", "createpolicy", "prefetch", "discard", "setmaxnreg"):
        _hint(b, parts, operands)
    else:
        return False
    return True


def _branch(b: Builder, parts: list[str], operands: list[str]) -> None:
    if parts[1:] not in ([], ["uni"]):
        raise Unknown(".".join(parts))
    label = operands[0]
    b.jumps.append((len(b.rows), label if label.startswith("$") else f"{label}@{b.scope_ids[-1]}"))
    b.add(Op.BRANCH)


def _convert_address(b: Builder, parts: list[str], operands: list[str]) -> None:
    """cvta: a generic address is the address itself in global memory, and lies in a window of its own for a parameter."""
    target, source = b.register(operands[0]), b.value(operands[1], 64)
    if "to" in parts or not {"global", "param"} & set(parts):
        raise Unknown(".".join(parts))
    if "param" in parts:
        b.emit("add64", target, source, b.constant(PARAMETER_BASE, "l"))
    else:
        b.emit("mov64", target, source)


def _hint(b: Builder, parts: list[str], operands: list[str]) -> None:
    """Decodes an instruction that changes no value."""
    form = ".".join(parts)
    if parts[0] == "createpolicy":
        b.emit("mov64", b.register(operands[0]), b.constant(0, "l"))
    elif parts[0] in ("nanosleep", "griddepcontrol", "setmaxnreg") or form.startswith("prefetch.global"):
        b.add(Op.NOTHING)
    else:
        raise Unknown(form)


def _barrier(b: Builder, parts: list[str], operands: list[str]) -> None:
    kinds = [part for part in parts[1:] if part not in ("cta", "aligned")]
    if kinds == ["warp", "sync"]:
        b.add(Op.WARP_BARRIER, A=b.value(operands[0]))
    elif kinds == ["sync"]:
        number = operands[0]
        which = {"A": b.value(number)} if number.startswith("%") else {"A": NONE, "IMM": int(number, 0)}
        b.add(Op.BARRIER, **which, COUNT=int(operands[1], 0) if len(operands) > 1 else 0)
    else:
        raise Unknown(".".join(parts))


def _shuffle(b: Builder, parts: list[str], operands: list[str]) -> None:
    if parts[1] != "sync" or parts[2] not in SHUFFLES or parts[3] != "b32":
        raise Unknown(".".join(parts))
    name, _, predicate = operands[0].partition("|")
    value, by, clamp, members = (b.value(operand) for operand in operands[1:5])
    predicate_fields = {"FLAG": 1, "IMM": b.predicate(predicate)} if predicate else {}
    b.add(Op.SHUFFLE, D=b.register(name), A=value, B=by, C=clamp, E=members, SIZE=SHUFFLES.index(parts[2]), **predicate_fields)


def _reduce(b: Builder, parts: list[str], operands: list[str]) -> None:
    if parts[1] != "sync" or parts[2] not in REDUCTIONS or parts[3] not in ("s32", "u32", "b32"):
        raise Unknown(".".join(parts))
    fields = {"SIZE": REDUCTIONS.index(parts[2]), "FLAG": int(parts[3] == "s32")}
    b.add(Op.REDUCE, D=b.register(operands[0]), A=b.value(operands[1]), B=b.value(operands[2]), **fields)


def _vote(b: Builder, parts: list[str], operands: list[str]) -> None:
    if parts[1] != "sync" or parts[2] not in VOTES:
        raise Unknown(".".join(parts))
    target = b.register(operands[0]) if parts[2] == "ballot" else b.predicate(operands[0])
    source = b.predicate(operands[1])
    b.add(Op.VOTE, D=target, A=source, B=b.value(operands[2]), SIZE=VOTES.index(parts[2]))


def _elect(b: Builder, parts: list[str], operands: list[str]) -> None:
    if parts != ["elect", "sync"]:
        raise Unknown(".".join(parts))
    name, _, predicate = operands[0].partition("|")
    target = {} if name == "_" else {"D": b.register(name), "FLAG": 1}
    b.add(Op.ELECT, **target, A=b.predicate(predicate), B=b.value(operands[1]))


def _fence(b: Builder, parts: list[str], operands: list[str]) -> None:
    """Decodes a fence. Accesses of other programs have no order in this model, so only the fence between proxies is
    modelled."""
    if parts[:3] == ["fence", "proxy", "async"] and parts[3:] in ([], ["shared::cta"]):
        b.add(Op.FENCE_PROXY)
    elif parts[0] == "membar" or parts[1] in ("acq_rel", "sc", "mbarrier_init"):
        b.add(Op.NOTHING)
    else:
        raise Unknown(".".join(parts))


def _mbarrier(b: Builder, parts: list[str], operands: list[str]) -> None:
    form = ".".join(parts)
    space = [part for part in parts[2:] if part not in ("shared", "shared::cta", "b64", "release", "acquire", "cta")]

    def where(operand: str) -> dict[str, int]:
        register, at = address(operand)
        return {"A": b.value(register), "IMM": at}

    if parts[1] == "init" and not space:
        b.add(Op.MBARRIER_INIT, **where(operands[0]), B=b.value(operands[1]))
    elif parts[1] == "inval" and not space:
        b.add(Op.MBARRIER_INVALIDATE, **where(operands[0]))
    elif parts[1] == "arrive" and space in ([], ["expect_tx"]) and operands[0] == "_":
        amount = b.value(operands[2]) if len(operands) > 2 else b.constant(0 if space else 1, "i")
        b.add(Op.MBARRIER_ARRIVE, **where(operands[1]), B=amount, FLAG=int(bool(space)))
    elif parts[1] in ("try_wait", "test_wait") and space == ["parity"]:
        b.add(Op.MBARRIER_WAIT, D=b.predicate(operands[0]), **where(operands[1]), B=b.value(operands[2]))
    else:
        raise Unknown(form)
