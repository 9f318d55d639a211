"""The libraries that tables and pictures are made with, which an installation may lack: the extra `report`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

REPORT = ("typer", "rich", "matplotlib")


@contextmanager
def needed() -> Iterator[None]:
    """A ModuleNotFoundError of one of them says how to install them."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in REPORT:
            raise
        words = f"{package} is not installed: pip install 'tritonconv[report]'"
        raise ModuleNotFoundError(words, name=package) from error
