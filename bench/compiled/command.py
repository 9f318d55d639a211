"""`python -m bench compiled`: runs what is missing or stale of the record, then writes its tables."""

from __future__ import annotations

from rich.console import Console


def run(device: str, dtype: str, tests: bool, plans: bool, minutes: float | None, jobs: int, table: bool) -> None:
    """What the command does. Raises SystemExit(1) where something was wrong."""
    from bench.compiled import plans as chosen
    from bench.compiled import suite
    from bench.compiled import table as tables

    console, wrong = Console(), 0

    def report(text: str) -> None:
        console.print(text, soft_wrap=True, markup=False, highlight=False)

    if not table:
        if tests and not (device or dtype):
            wrong += suite.run(minutes, jobs, report)
        if plans:
            names = [(name, kind) for name, kind in chosen.ORDER if device.lower() in name.lower() and dtype in ("", kind)]
            if not names:
                raise SystemExit(f"no GPU and arithmetic match {device!r} and {dtype!r}: {chosen.ORDER}")
            wrong += chosen.run(names, minutes, report)
    tables.write()
    report(tables.summary())
    if wrong:
        raise SystemExit(1)
