"""What the README shows is what the committed results say."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_table_is_the_committed_one():
    from bench.audit import summary

    (shown,) = re.findall(r"<!-- audit -->\n(.*)\n<!-- /audit -->", README, re.S)
    assert shown == summary(), "python -m bench audit --summary"


@pytest.mark.parametrize("name", re.findall(r"\]\(((?!http)[^)]+)\)", README))
def test_every_link_leads_somewhere(name):
    assert (Path(__file__).parent.parent / name).exists()
