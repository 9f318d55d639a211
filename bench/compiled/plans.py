"""Executes every distinct code that GPUs choose for the workloads, on small problems, and compares results with float64."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
import triton

from bench.compiled import store
from bench.compiled.chosen import Chosen, chosen, far
from bench.compiled.ptx import ptx_hash
from bench.compiled.store import Group, PlanRow
from bench.executor.driver import Executor, ExecutorFault, Launched
from bench.tolerance import Expected, share
from bench.work import float32_in
from bench.workloads import load
from bench.workloads.lists import BOTH, line_of
from costmodel.device import DEVICES, Device
from costmodel.problem import Pass
from tritonconv import host, launch

#: (dtype, precision) of each arithmetic, by its short name.
ARITHMETICS = {
    "float16": ("float16", "ieee"),
    "tf32": ("float32", "tf32"),
    "bfloat16": ("bfloat16", "ieee"),
    "float32": ("float32", "ieee"),
    "float64": ("float64", "ieee"),
}
H200, A100, H100, RTX4090 = (
    "NVIDIA H200",
    "NVIDIA A100-SXM4-80GB",
    "NVIDIA H100 80GB HBM3",
    "NVIDIA GeForce RTX 4090",
)
#: Devices and arithmetics in the order in which they are run.
ORDER = (
    *((device, name) for name in ("float16", "tf32") for device in (H200, A100)),
    *((device, name) for name in ("bfloat16", "float32", "float64") for device in (H200, A100)),
    *((device, name) for device in (H100, RTX4090) for name in ARITHMETICS),
)
#: Most multiply-adds of a problem. Larger ones are left out, and reported.
MOST_MACS = 2 * 10**10


def enumerated(device: Device, arithmetic: str) -> dict[str, tuple[Chosen, str]]:
    """key -> (code, its first layer), for the distinct codes that a device chooses for all convolutions of the workloads,
    forward and both gradients."""
    dtype, precision = ARITHMETICS[arithmetic]
    codes: dict[str, tuple[Chosen, str]] = {}
    seen = set()
    for layer in load():
        if not layer.op.startswith("conv"):
            continue
        for which in BOTH:
            work, bias = line_of(layer, which, dtype, precision).work, layer.bias and which == Pass.FPROP
            if (work, bias) not in seen:
                seen.add((work, bias))
                code = chosen(work, bias, device)
                codes.setdefault(code.key, (code, f"{layer.suite}/{layer.layer}"))
    return codes


def executed(code: Chosen, layer: str, device: Device, executor: Executor) -> PlanRow:
    """Runs one code and compares its result with float64."""
    heard: list[Launched] = []
    executor.listeners.append(heard.append)
    error, note = None, ""
    try:
        with float32_in(code.work.precision), far() if code.far else nullcontext():
            error = error_of(code, device)
    except ExecutorFault as fault:
        note = str(fault)[:2000]
    except Exception as failure:  # one code must not end the run
        note = f"{type(failure).__name__}: {failure}"[:2000]
    finally:
        executor.listeners.remove(heard.append)
    kernels = tuple((one.program.name, ptx_hash(one.ptx)) for one in heard)
    return PlanRow(
        key=code.key,
        arch=code.arch,
        device=device.name,
        family=code.plan.family,
        which=str(code.work.which),
        dtype="tf32" if code.work.tf32 else code.work.dtype,
        plan=str(code.plan),
        problem=str(code.work.problem),
        layer=layer,
        triton=triton.__version__,
        source=store.source_of(kernels),
        kernels=kernels,
        programs=sum(one.grid[0] * one.grid[1] * one.grid[2] for one in heard),
        instructions=sum(one.execution.executed for one in heard),
        error=None if error is None else round(error, 4),
        note=note,
    )


def renewed(row: PlanRow, code: Chosen, device: Device, executor: Executor) -> PlanRow | None:
    """The row of today's sources made from a stale row that was right, if today's sources compile to exactly the code that ran;
    else None."""
    executor.skipped = []
    try:
        with float32_in(code.work.precision), far() if code.far else nullcontext():
            host.use(device)
            launch.execute(code.work.which, code.work.problem, *operands(code), str(code.plan))
        compiled = tuple(map(ptx_hash, executor.skipped))
    except Exception:  # what is wrong shows where it is executed
        return None
    finally:
        executor.skipped = None
    same = row.ok and compiled == tuple(digest for _, digest in row.kernels)
    return replace(row, triton=triton.__version__, source=store.source_of(row.kernels)) if same else None


def operands(code: Chosen) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(a, b, the result full of NaN, the bias or None)."""
    work = code.work
    ((a, b),) = work.inputs(1, "cpu")
    bias = (
        torch.randn(work.shapes[2][1], generator=torch.Generator().manual_seed(1)).to(work.torch_dtype) if code.bias else None
    )
    return a, b, launch.allocate(work.shapes[2], a, b).fill_(torch.nan), bias


def error_of(code: Chosen, device: Device) -> float:
    """The largest error of a result over the derived tolerance. Elements that no kernel wrote are NaN."""
    work = code.work
    problem = work.problem
    if problem.macs > MOST_MACS:
        raise ValueError(f"{problem.macs:.3g} multiply-adds are too many to execute")
    host.use(device)
    a, b, out, bias = operands(code)
    want = work.exact(a, b)
    if bias is not None:
        laid = bias.double().view(-1, *(1,) * problem.rank)
        want = Expected(want.value + laid, want.magnitude + laid.abs(), want.terms + 1)
    got = launch.execute(work.which, problem, a, b, out, bias, str(code.plan))
    return share(got, want, work.tf32)


def pending(names: Sequence[tuple[str, str]], report: Callable[[str], None]) -> Iterator[tuple[Device, Chosen, str]]:
    """The codes of devices and arithmetics that have no current row, group by group. It also renews the lists of codes. Codes
    come in the order of their keys, so that a run that is cut short has executed some of every family.
    """
    for name, arithmetic in names:
        device = DEVICES[name]
        codes, rows = enumerated(device, arithmetic), store.plan_rows()
        group = Group(name, arithmetic, tuple(sorted(codes)))
        if store.groups().get((name, arithmetic)) != group:
            store.append(store.GROUPS, [group])
        todo = [pair for key, pair in sorted(codes.items()) if key not in rows or not (rows[key].current and rows[key].ok)]
        report(f"{name}, {arithmetic}: {len(codes)} codes, {len(todo)} to execute")
        for code, layer in todo:
            yield device, code, layer


def run(names: Sequence[tuple[str, str]], minutes: float | None, report: Callable[[str], None]) -> int:
    """Executes what has no current row, until the time is up. Returns how many were wrong. Each row is kept as it is made."""
    from bench.executor.driver import install

    began, wrong, count = time.monotonic(), 0, 0
    executors: dict[int, Executor] = {}
    for device, code, layer in pending(names, report):
        if minutes is not None and time.monotonic() - began > 60 * minutes:
            report(f"the time is up after {count} codes: the same command goes on there")
            break
        if code.arch not in executors:
            executors[code.arch] = install(code.arch)
        executor = executors[code.arch]
        triton.runtime.driver.set_active(executor)
        start = time.monotonic()
        before = store.plan_rows().get(code.key)
        row = None if before is None else renewed(before, code, device, executor)
        row = row or executed(code, layer, device, executor)
        store.append(store.PLANS, [row])
        count, wrong = count + 1, wrong + (not row.ok)
        error = "no result" if row.error is None else f"{row.error:.2f} of the tolerance"
        report(f"{count} {code}: {error}, {row.instructions} instructions, {time.monotonic() - start:.1f} s {row.note[:300]}")
    return wrong
