"""The documentation builds without a warning, its reference has every public name, and every block of Python in it runs."""

import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

import costmodel
import tritonconv

ROOT = Path(__file__).parent.parent
#: The recipes of one page build on one another: `tests/test_drop_in_page.py` runs them in order.
PAGES = [
    ROOT / "README.md",
    *sorted({*(ROOT / "docs").rglob("*.md")} - {ROOT / "docs" / "drop-in.md"}),
    ROOT / "CONTRIBUTING.md",
]
BLOCK = re.compile(r"(<!-- run -->\n)?^```python\n(.*?)^```", re.S | re.M)
BLOCKS = [(path, n, bool(mark), text) for path in PAGES for n, (mark, text) in enumerate(BLOCK.findall(path.read_text()))]
#: What a block that is written for a GPU's tensors becomes where it runs here: small, on the CPU.
SMALL = {
    'device="cuda", ': "",
    '.to("cuda", ': ".to(",
    "32, 64, 56, 56": "1, 16, 6, 6",
    "128, 64, 3, 3": "16, 16, 3, 3",
    "64, 144, 56, 56": "1, 16, 6, 6",
    "144, 1, 3, 3": "16, 1, 3, 3",
    "24, 144, 1, 1": "8, 16, 1, 1",
    "8, 2048, 4096": "2, 9, 16",
    "4096": "16",
    "384": "8",
    "60, 104": "6, 6",
    "256, 256, 3, 3": "16, 16, 3, 3",
    "2, 256, 50, 76": "1, 16, 6, 6",
    "4, 256, 181, 360": "1, 16, 6, 6",
    "2, 18, 50, 76": "1, 18, 6, 6",
    "2, 9, 50, 76": "1, 9, 6, 6",
}
#: The one block that is a fragment: it shows names of bench.executor, and `tests/test_executor_instructions.py` calls them so.
FRAGMENT = "program = decode(ptx)"


@pytest.mark.parametrize("path, n, runs, text", BLOCKS, ids=[f"{path.name}-{n}" for path, n, *_ in BLOCKS])
def test_every_block_of_python_runs(path, n, runs, text, tmp_path, monkeypatch, capsys):
    """A block for a GPU takes what the blocks before it on the page imported, and a model that it does not name."""
    if text.startswith(FRAGMENT):
        pytest.skip("a fragment: tests/test_executor_instructions.py makes these calls")
    known = {"__name__": "__main__"}
    if not runs and "costmodel" not in text:
        import torch

        known |= {"torch": torch, "tritonconv": tritonconv, "model": torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3))}
        for there, here in SMALL.items():
            text = text.replace(there, here)
        assert "cuda" not in text
    monkeypatch.chdir(tmp_path)
    exec(compile(text, f"{path.name}, block {n}", "exec"), known)
    assert "print(" not in text or capsys.readouterr().out


@pytest.mark.parametrize("package", [costmodel, tritonconv], ids=lambda package: package.__name__)
def test_the_reference_has_every_public_name(package):
    page = (ROOT / "docs" / "api" / f"{package.__name__}.md").read_text()
    listed = {name.rpartition(".")[2] for name in re.findall(r"auto(?:function|class|module):: (\S+)", page)}
    assert {name for name in package.__all__ if name != "__version__"} <= listed


@pytest.mark.skipif(find_spec("sphinx") is None, reason="sphinx is not installed: the documentation was not built ('.[docs]')")
def test_the_site_builds_without_a_warning_in_a_minute(tmp_path):
    began = time.monotonic()
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "docs", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert time.monotonic() - began < 60
    reference = (tmp_path / "api" / "costmodel.html").read_text()
    assert "peak_activation_bytes" in reference and "Raises ValueError" in reference
    assert 'id="costmodel.reports.tables.Tables.to_csv"' in reference  # which networks, layers and reports inherit
    assert "CONTRIBUTING.md, which the site takes in" not in (tmp_path / "contributing.html").read_text()
