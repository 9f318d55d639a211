"""What the README and the tables in docs show is what the committed results and the model say."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench.pages import Block, blocks

ROOT = Path(__file__).parent.parent
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = "\n".join(path.read_text() for path in FILES)
LINKS = [
    (path, link) for path in FILES for link in re.findall(r"\]\(((?!http)[^)]+)\)", re.sub(r"`[^`\n]*`", "", path.read_text()))
]


BLOCKS = {block.name: block for block in blocks()}


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_is_what_the_code_and_the_committed_results_say(name):
    """Also where kernels or plans have changed since rows were measured: they are then to be marked as older."""
    if name == "networks" and find_spec("torchvision") is None:
        pytest.skip("the networks are torchvision's")
    block = BLOCKS[name]
    if block.shown != block.build():
        pytest.fail(f"the block {name} of {block.page.name} is stale: make pages")


def test_every_marker_is_of_a_block():
    """But for the mark of a block of Python that a test runs, and the one that ends a page."""
    marks = set(re.findall(r"<!-- /?([a-z]+) -->", PAGES)) - {"run"}
    assert marks == set(BLOCKS)


def test_a_stale_block_is_renewed_and_nothing_else(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- x -->\nold\n<!-- /x -->\nafter\n<!-- y -->\nother\n<!-- /y -->\n")
    block = Block("x", page, lambda: "new\nlines")
    assert block.renew() and not block.renew() and block.shown == "new\nlines"
    assert page.read_text() == "before\n<!-- x -->\nnew\nlines\n<!-- /x -->\nafter\n<!-- y -->\nother\n<!-- /y -->\n"
    with pytest.raises(ValueError, match=r"page\.md has not the lines <!-- z --> and <!-- /z --> once"):
        Block("z", page, str).renew()


def test_the_layer_of_the_pages_is_what_the_command_prints():
    """Of both pages the same words; the block is made from Python."""
    (words,) = set(re.findall(r"^costmodel (layer .* --device h100 --dtype bf16)$", PAGES, re.M))
    environment = os.environ | {"COLUMNS": "80", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "costmodel", *words.split()]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    lines = "\n".join(line.rstrip() for line in found.rstrip().splitlines())
    assert BLOCKS["layer"].build() == f"```\n{lines}\n```"


@pytest.mark.parametrize(("page", "link"), LINKS, ids=lambda value: getattr(value, "name", value))
def test_every_link_leads_somewhere(page, link):
    name, _, heading = link.partition("#")
    target = page.parent / name if name else page
    assert target.exists()
    if heading:
        titles = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
        assert heading in {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}
