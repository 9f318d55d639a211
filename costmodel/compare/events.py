"""A trace's events one by one, from a file that may be larger than memory. Standard library only.

json.load of a trace of 200 MB takes several GB. Here a buffer holds a few events, each parsed by the same C scanner.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHUNK = 1 << 20
SPACE = " \t\r\n"


class Reader:
    """Iterates over the events of a trace. `properties` holds the file's other entries that have been read so far; after the
    last event, all of them. Raises ValueError for a file that is no trace."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.properties: dict[str, Any] = {}
        self._decoder = json.JSONDecoder()
        self._buffer, self._at, self._ended = "", 0, False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            packed = self.path.open("rb").read(2) == b"\x1f\x8b"
            with gzip.open(self.path) if packed else self.path.open("rb") as raw:
                self._text = io.TextIOWrapper(raw, "utf-8", errors="replace")
                yield from self._file()
        except (OSError, EOFError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ValueError(f"{self.path} cannot be read: {reason}") from error

    def _file(self) -> Iterator[dict[str, Any]]:
        first = self._next()
        if first == "[":
            yield from self._events()
            return
        if first != "{":
            raise ValueError(f"{self.path} is no trace: it begins with {first!r}, neither an object nor a list")
        while self._peek() != "}":
            name = self._value()
            if self._next() != ":":
                raise ValueError(f"{self.path} is no trace: no value follows {name!r}")
            if name == "traceEvents" and self._peek() == "[":
                self._next()
                yield from self._events()
            else:
                self.properties[str(name)] = self._value()
            if self._peek() == ",":
                self._next()

    def _events(self) -> Iterator[dict[str, Any]]:
        """The events up to the end of the list, whose bracket is consumed."""
        while (letter := self._peek()) != "]":
            if letter == ",":
                self._next()
                continue
            event = self._value()
            if isinstance(event, dict):
                yield event
        self._next()

    def _value(self) -> Any:
        """The next value. Where the buffer holds only its beginning, more is read."""
        self._peek()
        wanted = CHUNK
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
                if end < len(self._buffer) or self._ended:  # a number at the buffer's end may continue
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                if self._ended:
                    raise ValueError(f"{self.path} ends in the middle of an event, or is no JSON: {error}") from error
            if len(self._buffer) - self._at > 4 * CHUNK and self._broken():
                raise ValueError(f"{self.path} is no JSON near {self._buffer[self._at : self._at + 60]!r}")
            self._refill(wanted)
            wanted *= 2  # a large value is scanned again after every read

    def _broken(self) -> bool:
        """Whether an event is not complete although it is far longer than any. Other entries (a stack's text) may be long."""
        return len(self._buffer) - self._at > 512 * CHUNK

    def _peek(self) -> str:
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at] in SPACE:
                self._at += 1
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if self._ended:
                raise ValueError(f"{self.path} ends in the middle of an event: the profiler was cut off, or the copy was")
            self._refill(CHUNK)

    def _next(self) -> str:
        letter = self._peek()
        self._at += 1
        return letter

    def _refill(self, wanted: int) -> None:
        read = self._text.read(wanted)
        self._ended = not read
        self._buffer, self._at = self._buffer[self._at :] + read, 0
