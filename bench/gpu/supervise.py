"""Runs items in processes of their own, so that a crash or a hang is only that item's failure and the others still run.

Each result is appended to a file and is on the disk before the next item begins, so a run that is ended loses nothing. A later
run tries what has no good result yet.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu.item import Result
from bench.gpu.worker import READY
from bench.provenance import ROOT

#: Most seconds of an item, including compilation, and of the start of a process.
ITEM_SECONDS, START_SECONDS = 40.0, 90.0
#: Last lines of a process's output that are searched for one worth reporting.
LAST_WORDS = 40


class Lost(Exception):
    """Says that a process gave no answer, and why."""


class Worker:
    """A process that tries items. `answers` receives its lines, then None."""

    def __init__(self, module: str, device: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.gpu.worker", module, device],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.answers: queue.Queue[str | None] = queue.Queue()
        self.words: collections.deque[str] = collections.deque(maxlen=LAST_WORDS)
        self.threads = [threading.Thread(target=loop, daemon=True) for loop in (self.read, self.listen)]
        for thread in self.threads:
            thread.start()
        self.ready = self.lost = False

    def read(self) -> None:
        for line in self.process.stdout or ():
            self.answers.put(line)
        self.answers.put(None)

    def listen(self) -> None:
        for line in self.process.stderr or ():
            self.words.append(line.rstrip())

    def next(self, seconds: float) -> dict[str, Any]:
        """The next answer. Raises `Lost` where none comes in time or the process has ended."""
        try:
            line = self.answers.get(timeout=max(0.0, seconds))
        except queue.Empty:
            self.end()
            raise Lost(f"no answer within {seconds:.0f} s") from None
        if line is None:
            self.answers.put(None)  # for later calls
            status = self.process.wait()
            self.threads[1].join(timeout=5)
            how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
            last_word = next((word for word in reversed(self.words) if word.strip()), "")
            raise Lost(f"the process ended with {how}: {last_word}"[:300])
        answer: dict[str, Any] = json.loads(line)
        return answer

    def begin(self) -> None:
        """Waits until the process is ready."""
        if not self.ready:
            if self.next(START_SECONDS).get("status") != READY:
                raise Lost("the process did not begin as it should")
            self.ready = True

    def tried(self, name: str, seconds: float) -> Result:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{name}\n")
            self.process.stdin.flush()
        except OSError:
            pass  # the process ended; `next` says how
        answer = self.next(seconds)
        self.lost = answer.pop("lost")
        return Result(**answer)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Workers:
    """A process that works, and one that has started and waits to take over."""

    def __init__(self, module: str, device: str) -> None:
        self.module, self.device = module, device
        self.all = [self.start(), self.start()]

    def start(self) -> Worker:
        return Worker(self.module, self.device)

    def tried(self, name: str, seconds: float) -> Result:
        """The result of an item, "failed" where its process was lost. Raises `Lost` where neither process starts."""
        try:
            self.all[0].begin()
        except Lost:
            self.replace()
            self.all[0].begin()
        worker = self.all[0]
        try:
            result = worker.tried(name, seconds)
        except Lost as why:
            result, worker.lost = Result(name, "failed", str(why)), True
        if worker.lost:
            self.replace()
        return result

    def replace(self) -> None:
        self.all.pop(0).end()
        self.all.append(self.start())

    def end(self) -> None:
        for worker in self.all:
            worker.end()


@dataclass(frozen=True)
class Row:
    """A result, and the sources, the GPU and the versions that it belongs to."""

    stage: str
    result: Result
    facts: Mapping[str, str]

    def to_json(self) -> str:
        return json.dumps({"stage": self.stage, **dataclasses.asdict(self.result), **self.facts}, allow_nan=False)


def append(path: Path, row: Row) -> None:
    """Adds a row, which is on the disk when this returns. A last line without its end, from a run that was cut off, is removed
    first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(row.to_json().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def load(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file; only whole lines count."""
    for line in path.read_text().splitlines(keepends=True) if path.is_file() else ():
        if line.endswith("\n"):
            yield json.loads(line)


def settled(path: Path, facts: Mapping[str, str]) -> set[str]:
    """The names of items that are right, or not served, on this GPU with these sources. The last row of each counts."""
    marks: dict[str, bool] = {}
    for row in load(path):
        if all(row.get(name) == value for name, value in facts.items()):
            marks[row["name"]] = row["status"] != "failed"
    return {name for name, good in marks.items() if good}


@dataclass
class Tally:
    """The outcome of a stage's items."""

    ok: int = 0
    unserved: int = 0
    before: int = 0  # items that were right in an earlier run
    left: int = 0  # items that there was no time for
    failed: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        words = [f"{self.ok} right", f"{len(self.failed)} failed"]
        words += [f"{count} {word}" for count, word in ((self.unserved, "not served"), (self.before, "right before")) if count]
        return ", ".join(words + ([f"{self.left} left: the time is up"] if self.left else []))


def line_of(result: Result) -> str:
    """A result in one line."""
    if result.status == "ok":
        error = 0.0 if result.error is None else result.error
        return f"{result.name}: {result.us:.1f} us, error {error:.2g} of 1, {result.plan or result.launched}"
    words = "not served, " if result.status == "unserved" else "FAILED, "
    return f"{result.name}: {words}{result.note} {result.plan}".rstrip()


def run(
    stage: str,
    module: str,
    names: Sequence[str],
    device: str,
    path: Path,
    facts: Mapping[str, str],
    seconds: float,
    say: Callable[[str], None],
    item_seconds: float = ITEM_SECONDS,
) -> Tally:
    """Tries the items that have no good result in `path` yet, within `seconds`."""
    end = time.monotonic() + seconds
    done = settled(path, facts)
    todo = [name for name in names if name not in done]
    tally = Tally(before=len(names) - len(todo))
    if not todo:
        return tally
    workers = Workers(module, device)
    try:
        for i, name in enumerate(todo):
            left = end - time.monotonic()
            if left <= 0:
                tally.left = len(todo) - i
                break
            try:
                result = workers.tried(name, min(item_seconds, left))
            except Lost as why:
                tally.failed.append(f"no process begins: {why}")
                tally.left = len(todo) - i
                break
            if result.status == "failed" and end <= time.monotonic():
                tally.left = len(todo) - i  # the stage's end cut it off, which says nothing about the item
                break
            append(path, Row(stage, result, facts))
            say(line_of(result))
            tally.ok += result.status == "ok"
            tally.unserved += result.status == "unserved"
            if result.status == "failed":
                tally.failed.append(name)
    finally:
        workers.end()
    return tally
