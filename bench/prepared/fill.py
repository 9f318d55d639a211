"""`python -m bench warm`: compiles, without a GPU, what the stages of `bench gpu` launch on one, and keeps it in a folder.

A run goes on where the last one stopped. Kernels are compiled in the folder's own Triton cache, which does not travel.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import triton
from rich.console import Console
from triton.compiler import compiler

from bench.gpu import bits, calls
from bench.gpu.item import launch_only
from bench.measure import one_line
from bench.prepared import store
from bench.prepared.ahead import DEVICE, ahead
from bench.prepared.launchers import Launchers
from bench.probe import Sizes, repeated
from bench.providers.contender import Unserved
from bench.providers.ours import chosen, contender
from bench.work import Work, float32_in
from bench.workloads.lists import LISTS
from costmodel.device import Device, find_device
from costmodel.tiling import Plan

#: (name, call) of a launch to make ahead of time.
Launch = tuple[str, Callable[[], Any]]


def of_items(module: Any) -> Iterator[Launch]:
    for item in module.items().values():
        yield item.name, partial(launch_only, item, DEVICE)


def call_on_meta(work: Work, plan: Plan | None = None) -> None:
    with float32_in(work.precision):
        contender(work, plan or chosen(work)).call(*work.meta())


def of_goals() -> Iterator[Launch]:
    """Our rows of `bench run --list goals`."""
    for line in LISTS["goals"]():
        yield f"{line.suite} {line.layer} {line.work}", partial(call_on_meta, line.work)


def of_probe() -> Iterator[Launch]:
    """The kernels whose runs `bench probe` compares."""
    sizes = Sizes()
    for which, plan in repeated(sizes):
        work = Work(sizes.repeated, which, "float16")
        yield f"probe {plan}", partial(call_on_meta, work, plan)


#: The launches of each stage.
STAGES: dict[str, Callable[[], Iterator[Launch]]] = {
    "calls": lambda: of_items(calls),
    "bits": lambda: of_items(bits),
    "goals": of_goals,
    "probe": of_probe,
}


class Recorder:
    """Keeps what Triton compiles, or reads from its cache, in a store."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.launchers = folder, Launchers(folder)
        self.known = {kernel.tail for kernel in store.kernels(folder)}
        self.compiled = 0
        self.seconds = 0.0
        self.parts: dict[int, store.Kernel] = {}

    def key(self, source: Any, backend: Any, options: Any, env_vars: Any) -> str:
        """Replaces `get_cache_key`: returns the same key and records its parts."""
        self.parts[id(source)] = store.Kernel(
            source.name,
            backend.target.arch,
            source.hash(),
            options.hash(),
            str(sorted(env_vars.items())),
            triton.__version__,
            backend.hash(),
        )
        return self.get_cache_key(source, backend, options, env_vars=env_vars)

    def seen(self, *, src: Any, metadata: Any, metadata_group: Any, times: Any, cache_hit: bool, **_: Any) -> None:
        """Triton's listener."""
        kernel = self.parts.pop(id(src))
        self.compiled += not cache_hit
        if kernel.tail in self.known:
            return
        store.add(self.folder, kernel, map(Path, metadata_group.values()))
        self.launchers.add(src, metadata)
        self.known.add(kernel.tail)

    def __enter__(self) -> Recorder:
        self.get_cache_key = compiler.get_cache_key
        self.before = triton.knobs.compilation.listener, triton.knobs.cache.dir
        compiler.get_cache_key = self.key
        triton.knobs.compilation.listener = self.seen
        triton.knobs.cache.dir = str(self.folder.with_name(f"{self.folder.name}-compiling"))
        return self

    def __exit__(self, *_: object) -> None:
        compiler.get_cache_key = self.get_cache_key
        triton.knobs.compilation.listener, triton.knobs.cache.dir = self.before


def fill(folder: Path, device: Device, launches: Iterator[Launch], console: Console) -> tuple[int, list[str]]:
    """Compiles what the folder lacks for every launch. Returns (how many kernels were compiled, what failed)."""
    folder.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    with Recorder(folder) as recorder, ahead(device):
        for name, call in launches:
            began, before = time.monotonic(), recorder.compiled
            try:
                call()
            except Unserved as reason:
                console.print(f"{name}: {reason}", highlight=False, soft_wrap=True)
            except Exception as error:  # one call must not hide the others
                failed.append(f"{name}: {one_line(error)}")
                console.print(failed[-1], style="red", highlight=False, soft_wrap=True)
            if recorder.compiled > before:
                took = f"{recorder.compiled - before} compiled in {time.monotonic() - began:.1f} s"
                console.print(f"{name}: {took}", highlight=False, soft_wrap=True)
    return recorder.compiled, failed


def size_of(folder: Path) -> int:
    """The bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def command(device: str, stages: list[str], out: Path) -> None:
    """What `python -m bench warm` does. Raises ValueError for an unknown stage, SystemExit(1) where a call failed."""
    for name in stages:
        if name not in STAGES:
            raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {name!r}")
    model, console, began = find_device(device), Console(), time.monotonic()
    console.print(f"{model.name}, sm_{model.capability}, Triton {triton.__version__}: {out}", highlight=False)
    compiled = 0
    failed: list[str] = []
    for name in stages:
        new, wrong = fill(out, model, STAGES[name](), console)
        compiled, failed = compiled + new, failed + wrong
    held = len(store.kernels(out))
    console.print(
        f"{compiled} kernels compiled in {(time.monotonic() - began) / 60:.1f} minutes; the folder holds {held} and "
        f"{Launchers(out).count()} launchers, {size_of(out) / 2**20:.1f} MiB",
        highlight=False,
        soft_wrap=True,
    )
    if failed:
        raise SystemExit(1)
