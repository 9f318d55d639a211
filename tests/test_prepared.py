"""Kernels compiled for a GPU that is not there, and filed on another machine: what ran here must not be compiled there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import triton

pytestmark = pytest.mark.aot
ROOT = Path(__file__).parent.parent

#: Calls of a few kernels on a GPU that is not there: one of rows, one of boxes, one of tiles and its reduction.
CALLS = """
import sys
from functools import partial
from pathlib import Path
import triton
from rich.console import Console
from bench.gpu import convolutions as c
from bench.gpu.functions import causal_update
from bench.gpu.item import launch_only
from bench.prepared import ahead, fill, store
from costmodel.device import find_device
from costmodel.problem import Pass

texts = {
    "fprop:tma:64x64x32:w4:s4": "conv2d n1 c32 8x8 -> 64 k1",
    "wgrad:gather:32x32x16:w4:s2:split2": "conv2d n1 c8 8x8 -> 8 k3 p1",
}
items = [causal_update("fp16")]
for plan, text in texts.items():
    work = c.work_of(text, Pass(plan.split(":")[0]), "fp16", "channels_last")
    items.append(c.pass_item(plan, work, partial(c.forced, plan)))
launches = [(item.name, partial(launch_only, item, ahead.DEVICE)) for item in items]
device = find_device("h200")
"""

FILL = (
    CALLS
    + """
compiled, failed = fill.fill(Path(sys.argv[1]), device, iter(launches), Console())
print("compiled", compiled, failed)
"""
)

#: On "another machine", whose Triton's key is not the one that compiled; the cache is where TRITON_CACHE_DIR says.
USE = (
    CALLS
    + """
from triton.runtime import cache
theirs = cache.triton_key()
cache.triton_key = lambda: f"another{theirs}"
if sys.argv[2] == "filed":
    print(store.install(Path(sys.argv[1])), "then", store.install(Path(sys.argv[1])))
hits = []
triton.knobs.compilation.listener = lambda **given: hits.append(given["cache_hit"])
with ahead.ahead(device):
    for _, call in launches:
        call()
print("compiled", hits.count(False), "read", hits.count(True))
"""
)


def said(script: str, *arguments: object, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "kernels"
    assert "compiled 4 []" in said(FILL, folder)
    return folder


def test_filling_goes_on_where_it_stopped(filled):
    with (filled / "index.jsonl").open("a") as index:
        index.write('{"name": "cut off')
    assert "compiled 0 []" in said(FILL, filled)
    assert len((filled / "index.jsonl").read_text().splitlines()) == 5  # nothing was added: the last line is still cut off
    folders = [path for path in filled.iterdir() if path.is_dir() and path.name != "launchers"]
    assert len(folders) == 4
    for folder in folders:
        assert sorted(path.suffix for path in folder.iterdir()) == [".cubin", ".json"]


def test_another_machine_compiles_nothing(filled, tmp_path):
    """Its key differs, as libtriton.so does from Python to Python, and so does the place of its cache."""
    cache = {"TRITON_CACHE_DIR": str(tmp_path / "there")}
    text = said(USE, filled, "filed", **cache)
    assert "4 kernels filed, 0 were there then 0 kernels filed, 4 were there\n" in text and "compiled 0 read 4" in text
    assert "compiled 4 read 0" in said(USE, filled, "not", TRITON_CACHE_DIR=str(tmp_path / "bare"))


def test_kernels_of_another_triton_stay_away(filled, tmp_path):
    lines = [json.loads(line) for line in (filled / "index.jsonl").read_text().splitlines(keepends=True) if line.endswith("\n")]
    from bench.prepared.store import Kernel, folder_of, hash_of, install

    kernels = [Kernel(**line) for line in lines]
    store = tmp_path / "store"
    store.mkdir()
    for kernel in kernels[:2]:
        (store / kernel.folder).symlink_to(filled / kernel.folder)
    foreign = lines[2] | {"triton": "0.0"}
    (store / Kernel(**foreign).folder).symlink_to(filled / kernels[2].folder)
    made = [lines[0], lines[1] | {"compiler": "another ptxas"}, foreign, lines[0]]
    (store / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in made))
    found = install(store, tmp_path / "cache")
    assert (found.filed, found.there, found.foreign, found.ptxas) == (2, 0, 1, True)
    assert "another Triton" in str(found) and "another ptxas" in str(found)
    group = tmp_path / "cache" / folder_of(hash_of(kernels[0].key()))
    files = json.loads((group / f"__grp__{kernels[0].name}.json").read_text())["child_paths"]
    assert all(Path(path).is_file() and Path(path).parent == group for path in files.values())


def test_the_key_is_tritons_own(filled):
    """The folder in which the filling process's own cache has the kernel is that of the key put together."""
    from bench.prepared.store import folder_of, hash_of, kernels

    own = {path.parent.name for path in filled.with_name(f"{filled.name}-compiling").glob("*/__grp__*")}
    assert {folder_of(hash_of(kernel.key())) for kernel in kernels(filled)} == own


def test_a_launchers_source_is_what_triton_would_compile(monkeypatch, filled):
    """Triton 3.6 has one for each signature; what its launcher compiles is the text that travels."""
    from triton.backends.nvidia import driver

    from bench.aot import Pointer, compile_ahead
    from bench.prepared.launchers import Launchers, source_of
    from bench.probe_kernels import empty_kernel

    made = compile_ahead(empty_kernel, {"out": Pointer("fp16")}, arch=90)
    if not hasattr(driver, "make_launcher"):
        assert source_of(made.src, made.metadata) is None and Launchers(filled).count() == 0
        return
    texts = []

    class Module:
        launch = None

    monkeypatch.setattr(driver, "library_dirs", lambda: [])
    monkeypatch.setattr(driver, "compile_module_from_src", lambda src, **_: texts.append(src) or Module)
    driver.CudaLauncher(made.src, made.metadata)
    assert texts == [source_of(made.src, made.metadata)]
    assert Launchers(filled).count() >= 3 and triton.__version__.startswith("3.6")


def test_the_first_stage_launches_every_kernel(monkeypatch):
    """On an H200; nothing is compiled. What a stage of it compiles is then what `bench warm` takes from the same calls."""
    from triton.runtime.jit import JITFunction

    from bench.gpu import calls
    from bench.gpu.item import launch_only
    from bench.prepared.ahead import DEVICE, ahead
    from costmodel.device import find_device

    found = (re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.M) for path in (ROOT / "tritonconv/kernels").glob("*.py"))
    every, launched = set().union(*found), set()
    monkeypatch.setattr(JITFunction, "run", lambda self, *_, **__: launched.add(self.fn.__name__))
    with ahead(find_device("h200")):
        for item in calls.items().values():
            launch_only(item, DEVICE)
    assert len(every) > 15 and launched == every
