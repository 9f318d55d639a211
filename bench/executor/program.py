"""Decodes PTX to a program that the engine runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from bench.executor import layout
from bench.executor.builder import SPECIAL, Builder, Op, Unknown, UnknownInstruction
from bench.executor.decode_arithmetic import arithmetic
from bench.executor.decode_convert import convert, move
from bench.executor.decode_memory import copy_async, load_parameter, load_store, matrix_move, matrix_product, warpgroup
from bench.executor.decode_sync import control
from bench.executor.flow import set_joins
from bench.executor.text import Param, Statement, Where, kernel_name, params_of, split, statements, threads_of

_DEBUG_LABEL = re.compile(r"\$L__(tmp|func|info|pack|debug)\w*")
_DECODERS: dict[str, Callable[[Builder, list[str], list[str]], None]] = {
    "cvt": convert,
    "mov": move,
    "ld": load_store,
    "st": load_store,
    "cp": copy_async,
    "ldmatrix": matrix_move,
    "stmatrix": matrix_move,
    "mma": matrix_product,
    "wgmma": warpgroup,
}


@dataclass(frozen=True, eq=False)
class Program:
    """A kernel's decoded PTX. `where[k]` is statement k; the counts of `Execution` are by statement."""

    name: str
    params: tuple[Param, ...]
    param_bytes: int
    num_warps: int
    where: Sequence[Where]
    rows: np.ndarray = field(repr=False)  # int64 [n, layout.ROW]
    extras: np.ndarray = field(repr=False)  # int64: operand lists
    slots: int
    predicates: int
    constants: tuple[tuple[int, str, int], ...] = field(repr=False)  # (value, "i" or "l", slot)
    arguments: tuple[tuple[int, int, bool, int], ...] = field(repr=False)  # (offset, bytes, signed, slot) of parameters
    special: dict[str, int] = field(repr=False)  # special register -> slot

    @property
    def instructions(self) -> int:
        """How many instructions were decoded."""
        return len(self.where)

    @property
    def first_rows(self) -> np.ndarray:
        """The first row of each statement, which counts it."""
        return np.searchsorted(self.rows[:, layout.STATEMENT], np.arange(len(self.where)))


def _opcode(text: str) -> tuple[str, list[str]]:
    name, _, rest = text.replace("\t", " ").partition(" ")
    return name, split(rest.strip())


def _instruction(b: Builder, statement: Statement) -> None:
    text = statement.text
    b.guard = (layout.NONE, 0)
    if guard := re.match(r"@(!?)([%\w$]+)\s+", text):
        place = b.predicate(guard[2])
        b.guard = (place, int(bool(guard[1])))
        text = text[guard.end() :]
    name, operands = _opcode(text)
    parts = name.split(".")
    if parts[0] == "ld" and "param" in parts:
        load_parameter(b, parts, operands)
    elif parts[0] == "mov" and parts[-1] != "pred":
        move(b, parts, operands)
    elif parts[0] in _DECODERS and parts[-1] != "pred":
        _DECODERS[parts[0]](b, parts, operands)
    elif not arithmetic(b, parts, operands) and not control(b, parts, operands):
        raise Unknown(name)


@lru_cache(maxsize=256)
def decode(ptx: str) -> Program:
    """Decodes a kernel. Raises UnknownInstruction, which names every unknown form with its line; none is skipped."""
    params, param_bytes = params_of(ptx)
    b = Builder(params)
    unknown: list[str] = []
    for statement in statements(ptx):
        if statement.kind == "open":
            b.open()
        elif statement.kind == "close":
            b.close()
        elif statement.kind == "label":
            if not _DEBUG_LABEL.fullmatch(statement.text):
                b.label(statement.text)
        else:
            before = len(b.rows)
            try:
                if statement.kind == "register":
                    b.declare(statement.text)
                    continue
                b.where.append(statement.where)
                _instruction(b, statement)
                if len(b.rows) == before:
                    b.add(Op.NOTHING)
            except (Unknown, KeyError, ValueError, IndexError) as error:
                why = str(error) if isinstance(error, Unknown) else f"{type(error).__name__} {error}"
                unknown.append(f"line {statement.where.line}: {statement.text[:200]} ({why})")
    if unknown:
        raise UnknownInstruction(f"{kernel_name(ptx)}: not known to the executor: " + "; ".join(unknown))
    for row, label in b.jumps:
        b.rows[row][layout.TARGET] = b.labels[label]
    rows = b.array()
    set_joins(rows)
    return Program(
        kernel_name(ptx),
        params,
        param_bytes,
        threads_of(ptx) // 32,
        tuple(b.where),
        rows,
        np.array(b.extras or [0], np.int64),
        b.slots,
        len(b.predicates),
        tuple((value, kind, slot) for (value, kind), slot in b.constants.items()),
        tuple((*key, slot) for key, slot in b.arguments.items()),
        {name: slot for name, slot in b.registers.items() if name in SPECIAL},
    )


__all__ = ["Param", "Program", "UnknownInstruction", "Where", "decode"]
