"""Rows to JSON, CSV, Markdown and LaTeX. A row is any dataclass; the fields of a dataclass within it become columns too.

Numbers keep their full precision in JSON and CSV, and six significant digits in the two that are for reading.
Standard library only.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}
LATEX |= {sign: "\\" + sign for sign in "&%$#_{}"}
LATEX |= {"×": r"$\times$", "→": r"$\to$", "µ": r"\textmu{}", "…": r"\ldots{}", "–": "--", "≥": r"$\geq$", "≤": r"$\leq$"}


def flat(row: Any) -> dict[str, Any]:
    """Column name to value. A dataclass within a row gives columns `outer.inner`."""
    columns: dict[str, Any] = {}
    for field in fields(row):
        value = getattr(row, field.name)
        if is_dataclass(value) and "__str__" not in type(value).__dict__:
            columns |= {f"{field.name}.{name}": inner for name, inner in flat(value).items()}
        else:
            columns[field.name] = value
    return columns


def heading(name: str) -> str:
    """A column's name as words: `useful_macs` is "useful MAC"."""
    words = name.replace(".", " ").replace("_", " ")
    return re.sub(r"\bflops\b", "FLOP", re.sub(r"\bmacs\b", "MAC", words))


def plain(value: Any) -> Any:
    """What JSON can hold: numbers, words, lists and objects; anything else becomes its text, infinity and NaN null."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, Fraction):
        return int(value) if value.denominator == 1 else float(value)
    if is_dataclass(value) and not isinstance(value, type) and "__str__" not in type(value).__dict__:
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return str(value)


def cell(value: Any, digits: int | None = None) -> str:
    """One value as text: sizes as 32x64x56, lists with commas, floats with `digits` significant digits where given."""
    if value is None:
        return ""
    if isinstance(value, (tuple, list)):
        sizes = all(isinstance(inner, int) for inner in value)
        return ("x" if sizes else ", ").join(cell(inner, digits) for inner in value)
    if isinstance(value, Fraction):
        value = plain(value)
    if isinstance(value, float) and digits is not None:
        return f"{value:.{digits}g}"
    return str(plain(value)) if not isinstance(value, float) else repr(value)


class Tabular(Protocol):
    """An object that knows its own rows: a network, a layer, a forecast, a report, or two of them side by side."""

    def table_rows(self) -> Sequence[Any]: ...


def rows_of(value: Any) -> Sequence[Any]:
    """The rows of an argument: those of a `Tabular`, a dataclass as the only row, or a sequence of rows as it is."""
    if hasattr(value, "table_rows"):
        rows: Sequence[Any] = value.table_rows()
        return rows
    if is_dataclass(value) and not isinstance(value, type):
        return [value]
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)):
        rows = [*value]
        if all(is_dataclass(row) and not isinstance(row, type) for row in rows):
            return rows
    raise TypeError(f"value must be a network, a layer, a forecast, a report or a sequence of rows, got {type(value).__name__}")


def to_json(value: Any) -> str:
    """JSON of a network, a layer, a forecast or a report, or of any nest of dataclasses, dictionaries and lists.

    Times are seconds, sizes bytes; infinity and NaN become null, and anything else its text. Raises nothing. The format is JSON
    (RFC 8259, https://www.rfc-editor.org/rfc/rfc8259).

    >>> import costmodel
    >>> costmodel.to_json(costmodel.Cost(bytes=12)).splitlines()[1]
    '  "useful_macs": 0,'
    """
    value = value.document() if hasattr(value, "document") else value
    return json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(rows: Tabular | Any) -> str:
    """CSV: a line of column names, then one line per row. Numbers keep their full precision; times are seconds, sizes bytes.

    `rows` is a network (one row per operator), a layer (one row per pass), a forecast or a report, a dataclass, or a sequence
    of dataclasses. Raises TypeError for anything else; `to_markdown` and `to_latex` take and raise the same. The format is that
    of Python's `csv` module (RFC 4180, https://www.rfc-editor.org/rfc/rfc4180), with a newline at the end of each line.

    >>> import costmodel
    >>> print(costmodel.to_csv(costmodel.conv1d((1, 4, 8), (2, 4, 3))).splitlines()[1][:24])
    fprop,1x2x6,144,144,,288
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for line in _table(rows, str, cell):
        writer.writerow(line)
    return out.getvalue()


def to_markdown(rows: Tabular | Any) -> str:
    """A Markdown pipe table (https://github.github.com/gfm/#tables-extension-), numbers to the right and with six significant
    digits. Arguments and errors are those of `to_csv`.

    >>> import costmodel
    >>> print(costmodel.to_markdown(costmodel.conv1d((1, 4, 8), (2, 4, 3)))[:32])
    | what | output shape | useful M
    """
    lines = _table(rows, heading, lambda value: cell(value, 6).replace("|", r"\|").replace("\n", " "))
    if not lines:
        return ""
    rule = ["---:" if number else "---" for number in _numeric(rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in [lines[0], rule, *lines[1:]])


def to_latex(rows: Tabular | Any) -> str:
    r"""A LaTeX tabular for the booktabs package (https://ctan.org/pkg/booktabs), with six significant digits. Arguments and
    errors are those of `to_csv`.

    >>> import costmodel
    >>> print(costmodel.to_latex(costmodel.conv1d((1, 4, 8), (2, 4, 3))).splitlines()[1])
    \toprule
    """
    lines = _table(rows, lambda name: _latex(heading(name)), _latex)
    if not lines:
        return ""
    body = [" & ".join(line) + r" \\" for line in lines]
    columns = "".join("r" if number else "l" for number in _numeric(rows))
    parts = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", body[0], r"\midrule", *body[1:], r"\bottomrule", r"\end{tabular}"]
    return "\n".join(parts) + "\n"


#: The formats a table of rows can take, by the name of the command's option.
FORMATS: dict[str, Callable[[Any], str]] = {
    "json": to_json,
    "csv": to_csv,
    "markdown": to_markdown,
    "latex": to_latex,
}


def write(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content` in one step, so that an error leaves the old file and never half a new one.

    Raises ValueError where the file cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise ValueError(f"cannot write {path}: {error.strerror}; name a file in a folder that exists") from error


def _table(rows: Any, name: Callable[[str], str], text: Callable[[Any], str]) -> list[list[str]]:
    flattened = [flat(row) for row in rows_of(rows)]
    if not flattened:
        return []
    names = list(dict.fromkeys(column for row in flattened for column in row))
    return [[name(column) for column in names]] + [[text(row.get(column)) for column in names] for row in flattened]


def _numeric(rows: Any) -> list[bool]:
    columns: dict[str, bool] = {}
    for row in rows_of(rows):
        for name, value in flat(row).items():
            columns[name] = columns.get(name, True) and (value is None or isinstance(value, (int, float, Fraction)))
    return list(columns.values())


def _latex(value: Any) -> str:
    if hasattr(value, "free_symbols"):
        import sympy

        return f"${sympy.latex(value)}$"
    return "".join(LATEX.get(sign, sign) for sign in cell(value, 6))
