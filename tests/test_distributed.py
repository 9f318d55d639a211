"""DTensors, DDP and FSDP2 in two processes equal one."""

import doctest
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tritonconv import halo


@pytest.mark.interpreter
@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(here.parent), "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(here / "two_processes.py")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    store = str(tmp_path / "store")
    started = [subprocess.Popen([*command, str(rank), store], env=environment, **pipes) for rank in (0, 1)]
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    for rank, words in enumerate(said):
        assert f"process {rank}: 16 cases, DDP and FSDP2, slabs" in words


def test_the_example_of_a_halo_runs():
    assert doctest.testmod(halo).attempted == 4 and not doctest.testmod(halo).failed
