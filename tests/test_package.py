"""What an installed package promises: one version, types, and an import of `costmodel` that needs the standard library only."""

import subprocess
import sys
import tomllib
from pathlib import Path

import costmodel
import tritonconv

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


def test_costmodel_imports_without_torch_and_sympy():
    heavy = "{'torch', 'sympy', 'triton', 'numpy'}"
    code = f"import sys, costmodel; costmodel.cost, costmodel.__version__; print(*sorted({heavy} & {{*sys.modules}}))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.strip() == ""
