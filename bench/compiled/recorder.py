"""A pytest plugin that records what ran on compiled code: outcomes of tests, launches, kernels by family and type."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from bench.compiled.ptx import dtype_of, family_of, ptx_hash
from bench.executor.driver import Executor, Launched


class Recorder:
    """Listens to an executor and to pytest, and writes what happened to `path` as one JSON object, where `path` is given."""

    def __init__(self, executor: Executor, path: Path | None) -> None:
        self.path = path
        self.outcomes: Counter[str] = Counter()
        self.kernels: defaultdict[str, set[str]] = defaultdict(set)
        self.launches = self.instructions = 0
        self._known: dict[tuple[int, str], tuple[str, str]] = {}
        executor.listeners.append(self.hear)

    def hear(self, launched: Launched) -> None:
        """Counts a launch."""
        self.launches += 1
        self.instructions += launched.execution.executed
        name = f"{family_of(launched)} {dtype_of(launched)}"
        if (known := (id(launched.program), name)) not in self._known:
            self._known[known] = name, ptx_hash(launched.ptx)
            self.kernels[name].add(self._known[known][1])

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.outcome] += 1

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        kernels = sum(map(len, self.kernels.values()))
        terminalreporter.write_line(
            f"compiled code: {self.launches} launches of {kernels} kernels, {self.instructions} instructions"
        )

    def pytest_sessionfinish(self) -> None:
        if self.path is None:
            return
        counted = {name: self.outcomes[name] for name in ("passed", "failed", "skipped")}
        kernels = {name: " ".join(sorted(codes)) for name, codes in sorted(self.kernels.items())}
        record = counted | {"launches": self.launches, "instructions": self.instructions, "kernels": kernels}
        self.path.write_text(json.dumps(record))
