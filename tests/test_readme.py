"""What the README and the tables in docs show is what the committed results and the model say."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = "\n".join(path.read_text() for path in FILES)
LINKS = [(path, link) for path in FILES for link in re.findall(r"\]\(((?!http)[^)]+)\)", path.read_text())]


def shown(name):
    """What stands between two markers."""
    (found,) = re.findall(rf"<!-- {name} -->\n(.*)\n<!-- /{name} -->", PAGES, re.S)
    return found


def test_the_table_is_the_committed_one():
    from bench.audit import summary

    assert shown("audit") == summary(), "python -m bench audit --summary"


def test_what_was_measured_is_what_the_committed_rows_say():
    """Also where kernels or plans have changed since: then rows are to be marked as older."""
    from bench.compared import committed
    from bench.report import tables

    assert shown("measured") == tables(committed()), "python -m bench report --readme"


@pytest.mark.skipif(find_spec("torchvision") is None, reason="the networks are torchvision's")
def test_the_networks_are_what_the_model_says():
    from bench.networks import table

    assert shown("networks") == table(), "python -m bench networks"


def test_the_large_filters_are_what_the_model_says():
    from bench.band import summary

    assert shown("band") == summary(), "python -m bench band"


def test_the_pairs_are_what_the_model_says():
    from bench.separable import table

    assert shown("separable") == table(), "python -m bench separable"


def test_the_layer_is_what_the_command_prints():
    (words,) = set(re.findall(r"^costmodel (layer .* --device h100 --dtype bf16)$", PAGES, re.M))
    environment = os.environ | {"COLUMNS": "80", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "costmodel", *words.split()]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    lines = "\n".join(line.rstrip() for line in found.rstrip().splitlines())
    assert shown("layer") == f"```\n{lines}\n```"


@pytest.mark.parametrize(("page", "link"), LINKS, ids=lambda value: getattr(value, "name", value))
def test_every_link_leads_somewhere(page, link):
    name, _, heading = link.partition("#")
    target = page.parent / name if name else page
    assert target.exists()
    if heading:
        titles = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
        assert heading in {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


def test_the_lines_of_python_that_count_run(capsys):
    """The README's second block. The first needs a GPU, and `tests/test_functions.py` has its calls."""
    (block,) = re.findall(r"```python\n(import costmodel\n.*?)```", README, re.S)
    exec(compile(block, "README.md", "exec"), {})
    assert shown("count") == f"```\n{capsys.readouterr().out}```"
