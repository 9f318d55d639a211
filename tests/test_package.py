"""What an installed package promises: one version, types, and an import of `costmodel` that needs the standard library only."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import costmodel
import tritonconv
from tritonconv.requirements import check_triton, installed

ROOT = Path(__file__).parent.parent


def test_both_packages_have_the_version_that_is_cited():
    assert tritonconv.__version__ == costmodel.__version__
    assert f"\nversion: {costmodel.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_wheel_holds_what_the_packages_read():
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package in ("tritonconv", "costmodel"):
        files = {path for path in (ROOT / package).rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
        matched = {path for pattern in shipped[package] for path in (ROOT / package).glob(pattern)}
        assert files == matched and (ROOT / package / "py.typed") in matched


@pytest.mark.parametrize(
    ("found", "words"), [(None, "there is none here"), ("3.5.1", "here is Triton 3.5.1"), ("2.3.0+git1", "2.3.0")]
)
def test_a_missing_or_old_triton_is_refused_in_words(found, words):
    with pytest.raises(ImportError, match=f"needs Triton 3.6 or newer, which torch .*{words}"):
        check_triton(found)


def test_a_triton_that_serves_is_taken():
    for found in ("3.6.0", "3.10.1", "4.0", "3.6.0+rocm7.1", installed()):
        check_triton(found)


def test_without_triton_the_import_says_what_is_missing():
    """And nothing of it is a dependency, which would put CUDA's Triton beside that of torch for ROCm."""
    code = "import sys; sys.modules['triton'] = None; import tritonconv"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode and ran.stderr.splitlines()[-1].startswith("ImportError: tritonconv needs Triton 3.6 or newer")
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert not any(name.startswith("triton") for name in needed)


def test_costmodel_imports_in_less_than_a_fifth_of_a_second():
    """Of the processor, the least of three tries, less an interpreter that imports nothing: others share the machine."""

    def seconds(code):
        before = os.times()
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds("import costmodel") for _ in range(3)) - min(seconds("pass") for _ in range(3)) < 0.2


def test_without_the_extra_a_layer_prints_its_words_and_the_rest_says_what_is_missing():
    code = """
import sys
sys.modules |= {"rich": None, "matplotlib": None}
import torch, costmodel
layer = costmodel.layer("conv2d 3x8x8 k3")
net = costmodel.trace(torch.nn.Conv2d(3, 4, 3), (1, 3, 8, 8))
assert str(layer) == layer.words and "parameters" in str(net) and layer.to_csv() and net.on("h100").to_csv()
for call in (layer.table, lambda: str(net.on("h100")), net.on("h100").to_html, net.on("h100").compare(net).to_html):
    try:
        call()
    except ModuleNotFoundError as error:
        print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    words = "{} is not installed: pip install 'tritonconv[report]'"
    assert ran.stdout.splitlines() == [words.format(name) for name in ("rich", "rich", "matplotlib", "matplotlib")]


def test_costmodel_imports_without_torch_and_sympy():
    heavy = "{'torch', 'sympy', 'triton', 'numpy'}"
    code = f"import sys, costmodel; costmodel.cost, costmodel.__version__; print(*sorted({heavy} & {{*sys.modules}}))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.strip() == ""
