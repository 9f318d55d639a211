"""What every result that knows its rows can be written as. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class Tables:
    """Methods of `Layer`, `Network`, `Forecast`, `SideBySide` and of a report: their rows as text, also written to a file
    where a path is given. Raises ValueError where that cannot be written, and then leaves the old file as it was.

    >>> import costmodel
    >>> costmodel.layer("conv1d 4x9 k3 s2 p1 c8").to_csv().splitlines()[1][:24]
    'fprop,1x8x5,416,480,,832'
    """

    def table_rows(self) -> Sequence[Any]:
        """One dataclass per row."""
        raise NotImplementedError

    def to_csv(self, path: str | Path | None = None) -> str:
        """One line per row, after a line of column names; times are in seconds, sizes in bytes."""
        from costmodel.reports.export import to_csv

        return self._kept(to_csv, path)

    def to_json(self, path: str | Path | None = None) -> str:
        """The rows, and what else is known of the whole: totals, notes, the device's figures."""
        from costmodel.reports.export import to_json

        return self._kept(to_json, path)

    def to_markdown(self, path: str | Path | None = None) -> str:
        """The rows as a pipe table."""
        from costmodel.reports.export import to_markdown

        return self._kept(to_markdown, path)

    def to_latex(self, path: str | Path | None = None) -> str:
        """The rows as a tabular for the booktabs package."""
        from costmodel.reports.export import to_latex

        return self._kept(to_latex, path)

    def _kept(self, form: Callable[[Any], str], path: str | Path | None) -> str:
        return kept(form(self), path)


def kept(text: str, path: str | Path | None) -> str:
    """The text, written where a path is given."""
    if path is not None:
        from costmodel.reports.export import write

        write(Path(path), text)
    return text
