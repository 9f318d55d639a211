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
PAGES = README + (ROOT / "docs" / "kernels.md").read_text()


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
    (words,) = re.findall(r"^costmodel (layer .* --device h100 .*)$", README, re.M)
    environment = os.environ | {"COLUMNS": "80", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "costmodel", *words.split()]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    lines = "\n".join(line.rstrip() for line in found.rstrip().splitlines())
    assert shown("layer") == f"```\n{lines}\n```"


@pytest.mark.parametrize("name", re.findall(r"\]\(((?!http)[^)]+)\)", README))
def test_every_link_leads_somewhere(name):
    assert (ROOT / name).exists()
