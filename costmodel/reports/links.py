"""Pictures that lead somewhere: each dot and bar is a link to a row of the page, and says what it is when pointed at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from costmodel.reports.units import share, si


def tell(artist: Artist, target: str, words: str) -> None:
    """Adds to an artist a link to a row of the page, and the words that show when somebody points at it."""
    if isinstance(artist, PathCollection):
        artist.set_urls([f"#{target}"])
    else:
        artist.set_url(f"#{target}")
    artist.set_gid(f"{CAPTION}{target}-{id(artist)}")
    artist.set_label(f"_{words}")  # an underscore keeps it out of legends


#: The beginning of the ids of artists that have a caption.
CAPTION = "caption-"


def captions(figure: Figure) -> dict[str, str]:
    """What each id of a linked picture says. The ids are numbered, so that the same picture has the same bytes."""
    words: dict[str, str] = {}
    for artist in figure.findobj(lambda artist: str(artist.get_gid() or "").startswith(CAPTION)):
        artist.set_gid(f"{CAPTION}{len(words)}")
        words[f"{CAPTION}{len(words)}"] = str(artist.get_label()).removeprefix("_")
    return words


def words_of(members: Sequence[Any]) -> str:
    heaviest = max(members, key=lambda member: member.seconds)
    others = f" and {len(members) - 1} alike" if len(members) > 1 else ""
    rate = si(heaviest.useful_flops / heaviest.seconds, "FLOP/s")
    part = share(sum(member.share for member in members))
    return (
        f"{heaviest.name}{others}: {si(heaviest.seconds, 's')}, {rate}, {heaviest.intensity:.1f} FLOP/byte, {part} of the time"
    )
