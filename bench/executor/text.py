"""Splits PTX text into statements (declarations, labels, instructions), each with its line and its source line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_NUMBER = re.compile(r"-?\d+U?|-?0[xX][0-9a-fA-F]+U?|0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}")
_PARAM = re.compile(r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)((?:\s+\.\w+(?:\s+\d+)?)*)\s+([\w$]+)(?:\[(\d+)\])?")


class Where(NamedTuple):
    """A statement: its line in the PTX (from 1), its text, and its source as "file.py:12", followed by " in " and callers."""

    line: int
    statement: str
    source: str


class Param(NamedTuple):
    """A parameter: kind "u64", "u32", "s32", "f32", ..., or "bytes" for an array such as a descriptor; sizes in bytes."""

    name: str
    offset: int
    size: int
    kind: str


class Statement(NamedTuple):
    """kind: "instruction", "label", "open", "close" or "register" (a declaration)."""

    kind: str
    text: str
    where: Where


def kernel_name(ptx: str) -> str:
    """The name of the only kernel. Raises ValueError where there is none."""
    match = re.search(r"\.entry\s+([\w$]+)", ptx)
    if not match:
        raise ValueError("the PTX has no .entry")
    return match[1]


def head_of(ptx: str) -> str:
    """The text from .entry to the brace of the body."""
    start = re.search(r"\.entry\s", ptx)
    if not start:
        raise ValueError("the PTX has no .entry")
    return ptx[start.start() : ptx.index("\n{", start.start())]


def params_of(ptx: str) -> tuple[tuple[Param, ...], int]:
    """(the parameters, the number of bytes of all of them)."""
    params, offset = [], 0
    for match in _PARAM.finditer(head_of(ptx)):
        align, kind, _, name, length = match.groups()
        element = int(kind.lstrip("busf")) // 8
        size = element * int(length) if length else element
        step = int(align) if align else element
        offset = -(-offset // step) * step
        params.append(Param(name, offset, size, "bytes" if length else kind))
        offset += size
    return tuple(params), offset


def threads_of(ptx: str) -> int:
    """Threads per program. Raises ValueError where neither .reqntid nor .maxntid says so."""
    match = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", head_of(ptx))
    if not match:
        raise ValueError("the PTX says neither .reqntid nor .maxntid")
    return int(match[1])


def _source(text: str, comment: str, files: dict[str, str]) -> str:
    number, line = text.split()[1:3]
    if chain := re.findall(r"([\w.<>-]+):(\d+):\d+", comment):
        return " in ".join(f"{name}:{at}" for name, at in chain)
    return f"{files.get(number, '?')}:{line}"


def statements(ptx: str) -> Iterator[Statement]:
    """The statements of the kernel's body, in order. Raises ValueError for text that ends inside one."""
    files = {m[1]: m[2].rsplit("/", 1)[-1] for m in re.finditer(r'\.file\s+(\d+)\s+(?:"[^"]*"\s+)?"([^"]*)"', ptx)}
    start = ptx.index("\n{", re.search(r"\.entry\s", ptx).start())  # type: ignore[union-attr]
    depth, source, pending, pending_line = 0, "", "", 0
    first = ptx[: start + 1].count("\n") + 1
    for number, line in enumerate(ptx[start + 1 :].split("\n"), first):
        code, _, comment = line.partition("//")
        code = code.strip()
        if not pending and code.startswith(".loc"):
            source = _source(code, comment, files)
            continue
        if not pending and code.startswith(".pragma"):
            continue
        while code:
            if not pending:
                if code[0] in "{}":
                    depth += 1 if code[0] == "{" else -1
                    yield Statement("open" if code[0] == "{" else "close", "", Where(number, code[0], source))
                    if depth == 0:
                        return
                    code = code[1:].lstrip()
                    continue
                if label := re.match(r"([$\w]+):(?!:)\s*", code):
                    yield Statement("label", label[1], Where(number, code, source))
                    code = code[label.end() :]
                    continue
                pending_line = number
            end = code.find(";")
            if end < 0:
                pending += code + " "
                break
            text = (pending + code[:end]).strip()
            pending, code = "", code[end + 1 :].lstrip()
            if text:
                kind = "register" if text.startswith(".reg") else "instruction"
                yield Statement(kind, text, Where(pending_line, text, source))
    raise ValueError("the PTX ends within its kernel")


def split(text: str) -> list[str]:
    """The operands between commas that are outside braces and brackets."""
    parts, depth, current = [], 0, ""
    for character in text:
        depth += (character in "{[") - (character in "}]")
        if character == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += character
    return [*parts, current.strip()] if current.strip() else parts


def immediate(text: str) -> int | None:
    """The bits of a literal; None where the text is none."""
    if not _NUMBER.fullmatch(text):
        return None
    if text[:2] in ("0f", "0F", "0d", "0D"):
        return int(text[2:], 16)
    text = text.rstrip("U")
    digits = text.lstrip("-")
    if len(digits) > 1 and digits[0] == "0" and digits[1] not in "xX":
        return int(text, 8)
    return int(text, 0)


def address(text: str) -> tuple[str, int]:
    """(register or symbol, bytes) of an address such as "[%r1+16]". Raises ValueError for another form."""
    match = re.fullmatch(r"\[\s*([%$\w.]+)\s*(?:\+\s*(-?\w+))?\s*\]", text.strip())
    if not match:
        raise ValueError(f"an address is [register+bytes], not {text}")
    return match[1], int(match[2], 0) if match[2] else 0


def group(text: str) -> list[str]:
    """The members of "{%r1, %r2}", or the single operand."""
    text = text.strip()
    return split(text[1:-1]) if text.startswith("{") else [text]
