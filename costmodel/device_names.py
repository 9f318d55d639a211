"""Names of devices: which words mean the same part, and which are near. Standard library only.

A name means what is written, except for case, punctuation and the word NVIDIA, which older drivers leave out: "A100-SXM4-40GB"
is NVIDIA's, and an "RTX 3090 Ti" is no RTX 3090.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

#: What the driver appends to a part's name for a slice of the part: "MIG 1g.10gb", "MIG 1c.3g.20gb".
SLICE = re.compile(r"\s+MIG\s+(\d+c\.)?\d+g\.\d+gb\S*$", re.IGNORECASE)


def plain(name: str) -> str:
    """The letters and digits of a name, which are equal where two names mean one part.

    >>> plain("NVIDIA A100-SXM4-40GB") == plain("a100 sxm4 40gb")
    True
    """
    return "".join(letter for letter in name.lower() if letter.isalnum()).removeprefix("nvidia")


def whole(name: str) -> str:
    """The name of the part that a slice belongs to; any other name is returned as it is.

    >>> whole("NVIDIA H100 80GB HBM3 MIG 1g.10gb")
    'NVIDIA H100 80GB HBM3'
    """
    return SLICE.sub("", name)


def meant(text: str, known: Iterable[str], most: int = 3) -> str:
    """Words that offer the nearest known names; "" where none is near.

    >>> meant("h10", ["h100", "h20", "l4"])
    ", did you mean 'h100' or 'h20'?"
    """
    words = {plain(word): word for word in known}
    *others, last = [repr(words[word]) for word in difflib.get_close_matches(plain(text), words, n=most)] or [""]
    return f", did you mean {', '.join(others)}{' or ' if others else ''}{last}?" if last else ""


def unknown(text: str, known: Iterable[str], shown: Iterable[str], most: int = 3) -> str:
    """The end of a message about an unknown name: the nearest known names, and all that one may choose from.

    >>> unknown("h10", ["h100", "h20", "l4"], ["h100", "h20"])
    ", did you mean 'h100' or 'h20'? Known are h100, h20"
    """
    near = meant(text, known, most)
    return f"{near}{' Known' if near else '; known'} are {', '.join(shown)}"
