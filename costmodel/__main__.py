"""The command `costmodel`, also `python -m costmodel`: errors of the user are one line on stderr and exit code 2."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from costmodel.reports.needed import REPORT, needed


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code is 0, or 2 for bad input."""
    try:
        with needed():
            import typer

            from costmodel.reports.commands import app
    except ModuleNotFoundError as error:
        return _missing(error)
    try:
        with _quiet(), needed():
            code = app(arguments, prog_name="costmodel", standalone_mode=False)
    except ModuleNotFoundError as error:
        return _missing(error)
    except ValueError as error:
        return _refuse(str(error))
    except typer.Abort:
        return 1
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's own exceptions for wrong options and arguments have it
            raise
        return _refuse(error.format_message())
    return code if isinstance(code, int) else 0


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences torch's log and warnings of libraries, unless Python was started with -W."""
    log = logging.getLogger("torch")
    level = log.level
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(level)


def _missing(error: ModuleNotFoundError) -> int:
    if error.name not in REPORT:
        raise error
    return _refuse(str(error))


def _refuse(reason: str) -> int:
    print("costmodel: " + " ".join(reason.split()), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
