"""Names of devices: which words mean the same part, and which are near. Standard library only.

A name means what is written, except for case, punctuation and the word NVIDIA, which older drivers leave out: "A100-SXM4-40GB"
is NVIDIA's, and an "RTX 3090 Ti" is no RTX 3090.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

#: What the driver puts behind a part's name where it is a slice of it: "MIG 1g.10gb", "MIG 1c.3g.20gb".
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
    """Words that offer the nearest of what is known; "" where none is near."""
    words = {plain(word): word for word in known}
    close = difflib.get_close_matches(plain(text), words, n=most)
    return f", did you mean {' or '.join(repr(words[word]) for word in close)}?" if close else ""
