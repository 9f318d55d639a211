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
    "≤": r"\leq",
    "≥": r"\geq",
    "·": r" \cdot ",
    "−": "-",
}


@dataclass(frozen=True)
class Line:
    """Mathematics, or prose with mathematics between dollar signs, for a typesetter and for a terminal."""

    latex: str
    plain: str

    @classmethod
    def of(cls, plain: str) -> Line:
        """Mathematics given in plain signs only, such as "3 ≤ ⌊(2·p + 1)/2⌋"."""
        return cls(re.sub("|".join(_TEX), lambda sign: _TEX[sign[0]], plain).replace("  ", " ").strip(), plain)

    @classmethod
    def prose(cls, text: str) -> Line:
        """Prose whose mathematics, between dollar signs, is the same in both."""
        return cls(text, text.replace("$", ""))


@dataclass(frozen=True)
class Step:
    """Prose and the displayed lines it leads to."""

    title: str
    text: Line
    lines: tuple[Line, ...] = ()


def latex(steps: Sequence[Step]) -> str:
    r"""A fragment to \input into a document that loads amsmath."""
    return (
        "\n\n".join("\n".join((rf"\paragraph{{{step.title}.}}", step.text.latex, *_aligned(step.lines))) for step in steps)
        + "\n"
    )


def _aligned(lines: Sequence[Line]) -> list[str]:
    if not lines:
        return []
    # the first relation of each line stands under that of the line before
    rows = [re.sub(r" (=|\\leq|\\geq|<|>)", r" &\1", line.latex, count=1) for line in lines]
    return [r"\begin{align*}", " \\\\\n".join("  " + row for row in rows), r"\end{align*}"]


def markdown(steps: Sequence[Step]) -> str:
    """Markdown with mathematics between dollar signs, as GitHub, Jupyter and pandoc read it."""
    parts = []
    for step in steps:
        parts += [f"**{step.title}.** {step.text.latex}".rstrip()] + [f"$$\n{line.latex}\n$$" for line in step.lines]
    return "\n\n".join(parts) + "\n"


def plain(steps: Sequence[Step]) -> str:
    """Text for a terminal."""
    rows = []
    for step in steps:
        rows.append(f"{step.title}. {step.text.plain}".rstrip())
        rows += [f"    {line.plain}" for line in step.lines]
    return "\n".join(rows) + "\n"
