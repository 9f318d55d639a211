"""A derivation: steps of prose and displayed lines, printed as LaTeX, Markdown or plain text. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_TEX = {
    "⌊": r"\lfloor ",
    "⌋": r" \rfloor",
    "⌈": r"\lceil ",
    "⌉": r" \rceil",
    "≤": r"\le",
    "≥": r"\ge",
    "·": r" \cdot ",
    "−": "-",
}


@dataclass(frozen=True)
class Line:
    """One displayed line of mathematics, for a typesetter and for a terminal."""

    latex: str
    plain: str

    @classmethod
    def of(cls, plain: str) -> Line:
        """A line given in plain signs only, such as "3 ≤ ⌊(2·p + 1)/2⌋"."""
        return cls(re.sub("|".join(_TEX), lambda sign: _TEX[sign[0]], plain).replace("  ", " ").strip(), plain)


@dataclass(frozen=True)
class Step:
    """Prose, whose mathematics stands between dollar signs, and the lines it leads to."""

    title: str
    text: str
    lines: tuple[Line, ...] = ()


def latex(steps: Sequence[Step]) -> str:
    r"""A fragment to \input into a document that loads amsmath."""
    return "\n\n".join("\n".join((rf"\paragraph{{{step.title}.}}", step.text, *_aligned(step.lines))) for step in steps) + "\n"


def _aligned(lines: Sequence[Line]) -> list[str]:
    if not lines:
        return []
    # the first relation of each line stands under that of the line before
    rows = [re.sub(r" (=|\\le|\\ge|<|>)", r" &\1", line.latex, count=1) for line in lines]
    return [r"\begin{align*}", " \\\\\n".join("  " + row for row in rows), r"\end{align*}"]


def markdown(steps: Sequence[Step]) -> str:
    """Markdown with mathematics between dollar signs, as GitHub, Jupyter and pandoc read it."""
    parts = []
    for step in steps:
        parts += [f"**{step.title}.** {step.text}".rstrip()] + [f"$$\n{line.latex}\n$$" for line in step.lines]
    return "\n\n".join(parts) + "\n"


def plain(steps: Sequence[Step]) -> str:
    """Text for a terminal."""
    rows = []
    for step in steps:
        rows.append(f"{step.title}. {_untex(step.text)}".rstrip())
        rows += [f"    {line.plain}" for line in step.lines]
    return "\n".join(rows) + "\n"


def _untex(text: str) -> str:
    r"""Prose without the marks of inline mathematics: "$U_{h} \le 1$" is "U_h ≤ 1"."""
    signs = {tex.strip(): sign for sign, tex in _TEX.items()} | {r"\to": "->", r"\infty": "oo", r"\rho": "rho", r"\log": "log"}
    signs = dict(sorted(signs.items(), key=lambda item: -len(item[0])))  # "\lfloor" before "\l..."

    def spelled(found: re.Match[str]) -> str:
        inner = found[1]
        for tex, sign in signs.items():
            if tex.startswith("\\"):
                inner = inner.replace(tex, sign)
        return re.sub(r"\\[a-z]+|[{}]", "", inner)

    return re.sub(r"\$(.*?)\$", spelled, text)
