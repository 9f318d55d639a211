"""Tables of the compiled code that has been executed: `docs/compiled.md` and the README's line."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.compiled import store
from bench.compiled.plans import ORDER
from bench.compiled.source import SHARED, is_shared
from bench.compiled.store import Group, PlanRow, TestRow
from bench.report import put
from costmodel.families import FUNCTIONS
from costmodel.families import families as kernel_families

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "compiled.md"
README = ROOT / "README.md"
DTYPES = ("float16", "bfloat16", "tf32", "float32", "float64")


def grid(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def executed_kernels(
    plans: Iterable[PlanRow], tests: Iterable[TestRow], any_age: bool = False
) -> dict[tuple[str, int, str], set[str]]:
    """Distinct kernels whose results were right, by family, architecture and type. A test file with a failure has none; stale
    rows count only with `any_age`."""
    executed: defaultdict[tuple[str, int, str], set[str]] = defaultdict(set)
    for row in plans:
        if row.ok and (row.current or any_age):
            for name, code in row.kernels:
                executed[SHARED if is_shared(name) else row.family, row.arch, row.dtype].add(code)
    for test in tests:
        if not test.failed and (test.current or any_age):
            for name, codes in test.kernels.items():
                family, dtype = name.split()
                executed[family, test.arch, dtype] |= set(codes.split())
    return dict(executed)


def families() -> str:
    """The table of distinct executed kernels, by family, architecture and type."""
    executed = executed_kernels(store.plan_rows().values(), store.test_rows().values())
    archs = sorted({arch for _, arch, _ in executed})
    rows = []
    from bench.compiled.ptx import SHARED

    for family in (*kernel_families(), SHARED, *FUNCTIONS):
        for arch in archs:
            counts = [len(executed.get((family, arch, dtype), ())) for dtype in DTYPES]
            if any(counts):
                rows.append([f"`{family}`", f"sm_{arch}", *(n or "" for n in counts)])
    return grid(["family", "", *DTYPES], rows)


def state(group: Group, rows: dict[str, PlanRow]) -> tuple[int, int, int, int]:
    """How many of a group's codes there are, and how many are right and current, right but stale, and wrong."""
    have = [rows[key] for key in group.keys if key in rows]
    right = sum(row.ok and row.current for row in have)
    stale = sum(row.ok and not row.current for row in have)
    return len(group.keys), right, stale, sum(not row.ok for row in have)


def plans() -> str:
    """The table of codes that GPUs choose for the workloads, and how many of them have been executed."""
    rows, groups = store.plan_rows(), store.groups()
    lines = []
    for device, arithmetic in ORDER:
        if (device, arithmetic) in groups:
            every, right, stale, wrong = state(groups[device, arithmetic], rows)
            lines.append([device, arithmetic, every, right, stale or "", wrong or ""])
        else:
            lines.append([device, arithmetic, "not counted yet", "", "", ""])
    return grid(["GPU", "arithmetic", "codes chosen", "right", "right, stale", "wrong"], lines)


def tests() -> str:
    """The table of test files that ran on compiled code."""
    rows = store.test_rows()
    files = sorted({file for file, _ in rows})
    archs = sorted({arch for _, arch in rows})

    def cell(row: TestRow | None) -> str:
        if row is None:
            return "not run"
        wrong = f", **{row.failed} failed**" if row.failed else ""
        return f"{row.passed} passed{wrong}{'' if row.current else ' (stale)'}"

    lines = [[f"`{file}`", *(cell(rows.get((file, arch))) for arch in archs)] for file in files]
    return grid(["", *(f"sm_{arch}" for arch in archs)], lines)


def summary() -> str:
    """The README's block: how much compiled code has run, and how much there is."""
    rows, groups, tested = store.plan_rows(), store.groups(), store.test_rows()
    executed = executed_kernels(rows.values(), tested.values())
    kernels = len(set().union(*executed.values())) if executed else 0
    archs = ", ".join(f"sm_{arch}" for arch in sorted({arch for _, arch, _ in executed})) or "no architecture"
    passed = sum(row.passed for row in tested.values() if row.current)
    every = {key for group in groups.values() for key in group.keys}
    current = {key for key in every if key in rows and rows[key].ok and rows[key].current}
    missing = len(ORDER) - len(groups)
    text = (
        f"{kernels:,} distinct compiled kernels ({archs}), as their code is now, have been executed on a CPU, every access "
        f"checked and every result within its tolerance: {f'{passed:,} tests, and ' if passed else ''}{len(current):,} of the "
        f"{len(every):,} codes that GPUs choose for the workloads"
    )
    text += f", of which {missing} of {len(ORDER)} pairs of a GPU and an arithmetic were not counted." if missing else "."
    whole = [f"{device} in {kind}" for (device, kind), group in sorted(groups.items()) if current.issuperset(group.keys)]
    text += f" The record is whole for {', '.join(whole)}." if whole else ""
    return text + " [Which ones](docs/compiled.md)."


def page() -> str:
    """The whole of `docs/compiled.md`."""
    return f"""# Compiled code that has run

Triton's PTX, executed on a CPU by `bench/executor`, every access checked (bounds, races, uninitialised shared memory, barriers,
asynchronous copies, descriptors), every result held against float64. PTX, not machine code: what ptxas makes of it, registers
and spills stay with `python -m bench audit`. `make compiled` runs what is missing or stale, `python -m bench compiled --table`
writes this page. A row is stale where Triton or the code that its kernels are compiled from has changed since; comments,
docstrings and other kernels do not count.

## Distinct kernels, by family and type

{families()}

`reduce` is the second stage that gather, patch and tma share. A kernel of the tests and of a GPU's choice counts once.

## Codes that GPUs choose

For the 1,044 convolutions among the workloads, forward and both gradients. The plan is chosen for the layer's real size; batch
and image are then made smaller as long as the launch compiles to the same code.

{plans()}

## Test files

The interpreter's tests, and PyTorch's samples of its convolutions, with the plans of an A100 (sm_80) and an H200 (sm_90).

{tests()}
"""


def write() -> None:
    """Writes the page and the README's block."""
    PAGE.write_text(page())
    README.write_text(put(README.read_text(), summary(), "compiled"))
