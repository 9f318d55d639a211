"""The engine's machine code in the cache: what it depends on, and the command that compiles it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.executor import native


def test_a_routine_depends_on_what_its_file_imports() -> None:
    names = {path.name for path in native.sources_of(native.HERE / "engine" / "run.py")}
    assert names >= {"run.py", "layout.py", "native.py", "lanes.py", "floats.py", "arithmetic.py", "shared.py", "wgmma.py"}
    assert not names & {"program.py", "text.py", "launch.py", "decode_sync.py"}
    assert {path.name for path in native.sources_of(native.HERE / "engine" / "faults.py")} == {
        "faults.py",
        "layout.py",
        "native.py",
    }


def test_a_change_moves_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "first.py").write_text("from bench.executor.second import x\n")
    (tmp_path / "second.py").write_text("x = 1\n")
    monkeypatch.setattr(native, "HERE", tmp_path)

    def folder() -> Path:
        native.sources_of.cache_clear()
        native.cache_folder.cache_clear()
        return native.cache_folder(tmp_path / "first.py")

    before = folder()
    assert folder() == before
    (tmp_path / "second.py").write_text("x = 2\n")
    assert folder() != before
    native.sources_of.cache_clear()
    native.cache_folder.cache_clear()


def test_the_command_compiles_or_loads_every_routine() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-m", "bench.executor", "compile"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "routines in" in done.stdout, done.stderr


def test_forms_of_a_kernel() -> None:
    ptx = sorted((Path(__file__).parent / "ptx_kernels").glob("*.ptx"))
    done = subprocess.run([sys.executable, "-m", "bench.executor", "forms", *map(str, ptx)], capture_output=True, text=True)
    assert done.returncode == 0 and "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16" in done.stdout, done.stderr
