"""The program while it is being decoded: slots for registers and constants, predicates, rows."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from bench.executor import layout
from bench.executor.floats import NUMBERS, TABLE
from bench.executor.layout import NONE, ROW, SHARED_BASE, Op
from bench.executor.text import Param, Where, group, immediate, split

SPECIAL = ("%tid.x", "%ctaid.x", "%ctaid.y", "%ctaid.z", "%nctaid.x", "%nctaid.y", "%nctaid.z", "%laneid", "%warpid", "%ntid.x")
#: Special registers that have the same value in every kernel that this executor runs.
CONSTANT = {
    "%tid.y": 0,
    "%tid.z": 0,
    "%ntid.y": 1,
    "%ntid.z": 1,
    "%cluster_ctarank": 0,
    "%cluster_ctaid.x": 0,
    "%cluster_nctarank": 1,
}
SLOT = 128  # bytes: 32 lanes of 32 bits


class UnknownInstruction(NotImplementedError):
    """PTX has instruction forms that the executor does not know. The message names each with its line."""


class Unknown(Exception):
    """One instruction form that is not known, and why."""


class Builder:
    """A program while it is being decoded. Offsets of slots and predicates are in bytes, as the engine adds them."""

    def __init__(self, params: tuple[Param, ...]) -> None:
        self.params = {param.name: param for param in params}
        self.rows: list[list[int]] = []
        self.extras: list[int] = []
        self.where: list[Where] = []
        self.slots = 0
        self.registers: dict[str, int] = {}
        self.predicates: dict[str, int] = {"%true": 0, "%false": 4}
        self.constants: dict[tuple[int, str], int] = {}
        self.arguments: dict[tuple[int, int, bool], int] = {}  # (offset, size, signed) of a parameter -> its slot
        self.scopes: list[dict[str, str]] = []  # declared name -> type
        self.scope_ids: list[int] = []
        self.opened = 0
        self.guard = (NONE, 0)
        self.jumps: list[tuple[int, str]] = []
        self.labels: dict[str, int] = {}

    # --- scopes
    def open(self) -> None:
        self.opened += 1
        self.scopes.append({})
        self.scope_ids.append(self.opened)

    def close(self) -> None:
        self.scopes.pop()
        self.scope_ids.pop()

    def declare(self, text: str) -> None:
        """`.reg .b32 %r<40>` or `.reg .pred p, q`. A prefix is kept as "%r<"."""
        match = re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", text, re.S)
        if not match:
            raise Unknown(f"declaration {text}")
        for name in split(match[2]):
            self.scopes[-1][re.sub(r"<\d+>$", "<", name)] = match[1]

    def find(self, name: str) -> tuple[str, str]:
        """(the unique name of a register, its type)."""
        prefix = re.sub(r"\d+$", "", name) + "<"
        for scope, number in zip(reversed(self.scopes), reversed(self.scope_ids), strict=True):
            kind = scope.get(name) or scope.get(prefix)
            if kind:
                return (name if number == 1 else f"{name}@{number}"), kind
        raise Unknown(f"{name} is not declared")

    def label(self, name: str) -> None:
        self.labels[name if len(self.scopes) == 1 else f"{name}@{self.scope_ids[-1]}"] = len(self.rows)

    def target(self, name: str) -> int:
        """The row of the label that a jump names in the current scope."""
        return self.labels[name]

    # --- slots
    def new_slot(self, kind: str) -> int:
        at = self.slots * SLOT
        self.slots += 2 if kind in "ld" else 1
        return at

    def width(self, name: str) -> int:
        """Bits of a declared register."""
        kind = self.find(name)[1]
        return 1 if kind == "pred" else int(kind.lstrip("busf"))

    def register(self, name: str) -> int:
        """The slot of a register that is written. "_" is a slot that is never read."""
        if name == "_":
            return self.new_slot("l")
        unique, kind = self.find(name)
        if kind == "pred":
            raise Unknown(f"{name} is a predicate")
        if unique not in self.registers:
            self.registers[unique] = self.new_slot("l" if kind.endswith("64") else "i")
        return self.registers[unique]

    def constant(self, value: int, kind: str) -> int:
        value &= (1 << 64) - 1 if kind in "ld" else (1 << 32) - 1
        kind = "l" if kind in "ld" else "i"
        if (value, kind) not in self.constants:
            self.constants[value, kind] = self.new_slot(kind)
        return self.constants[value, kind]

    def argument(self, offset: int, size: int, signed: bool) -> int:
        key = (offset, size, signed)
        if key not in self.arguments:
            self.arguments[key] = self.new_slot("l" if size == 8 else "i")
        return self.arguments[key]

    def value(self, text: str, bits: int = 32) -> int:
        """The slot of an operand that is read as `bits` bits (16 and 8 are the low bits of 32)."""
        kind = "l" if bits == 64 else "i"
        if text in SPECIAL:
            if bits != 32:
                raise Unknown(f"{text} read as {bits} bits")
            if text not in self.registers:
                self.registers[text] = self.new_slot("i")
            return self.registers[text]
        if text in CONSTANT:
            return self.constant(CONSTANT[text], kind)
        number = immediate(text)
        if number is None and text == "global_smem":
            number = SHARED_BASE
        if number is None and text in self.params:
            number = self.params[text].offset  # the address within the parameters' space; cvta makes it a generic one
        if number is not None:
            return self.constant(number & ((1 << bits) - 1), kind)
        width = self.width(text)
        slot = self.register(text)
        if width == 64 and bits < 64:  # the low bits of a wider register
            return self.emit("low", self.new_slot("i"), slot)
        if width < 64 and bits == 64:
            raise Unknown(f"{text} has {width} bits where 64 are read")
        return slot

    def predicate(self, text: str) -> int:
        """The place of a predicate that is read: "%p1", "!%p1" or a constant."""
        if text in ("-1", "1"):
            return 0
        if text == "0":
            return 4
        if text.startswith("!"):
            place = self.new_predicate()
            self.emit("notp", place, self.predicate(text[1:]))
            return place
        unique, kind = self.find(text)
        if kind != "pred":
            raise Unknown(f"{text} is no predicate")
        return self.predicates.setdefault(unique, 4 * len(self.predicates))

    def new_predicate(self) -> int:
        return self.predicates.setdefault(f"%temporary{len(self.predicates)}", 4 * len(self.predicates))

    # --- rows
    def add(self, op: int, **fields: int) -> None:
        row = [0] * ROW
        row[layout.OP], row[layout.STATEMENT] = int(op), len(self.where) - 1
        row[layout.GUARD], row[layout.GUARD_NOT] = self.guard
        row[layout.TARGET] = row[layout.JOIN] = NONE
        for name, value in fields.items():
            row[getattr(layout, name)] = value
        self.rows.append(row)

    def emit(self, name: str, target: int, *sources: int, immediate: int = 0) -> int:
        """Adds a row of arithmetic. Returns its target."""
        signature = TABLE[NUMBERS[name]][1]
        if len(signature) - 2 != len(sources):
            raise Unknown(f"{name} takes {len(signature) - 2} operands, not {len(sources)}")
        places: dict[str, Any] = dict(zip("ABCE", sources, strict=False))
        self.add(NUMBERS[name], D=target, IMM=immediate, **places)
        return target

    def into(self, name: str, *sources: int, immediate: int = 0) -> int:
        """Adds a row of arithmetic with a new slot (or predicate) as its target. Returns that."""
        kind = TABLE[NUMBERS[name]][1][0]
        target = self.new_predicate() if kind == "p" else self.new_slot({"f": "i", "d": "l"}.get(kind, kind))
        return self.emit(name, target, *sources, immediate=immediate)

    def extra(self, values: list[int]) -> int:
        at = len(self.extras)
        self.extras.extend(values)
        return at

    def slots_of(self, operand: str, bits: int) -> list[int]:
        """The slots of "{%r1, %r2}", for reading."""
        return [self.value(name, bits) for name in group(operand)]

    def array(self) -> np.ndarray:
        return np.array(self.rows, np.int64).reshape(-1, ROW)


__all__ = ["Builder", "Op", "Unknown", "UnknownInstruction"]
