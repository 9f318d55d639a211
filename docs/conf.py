"""Sphinx reads the Markdown of this folder and the docstrings of both packages: `make docs`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from costmodel.version import __version__  # noqa: E402

project, author = "tritonconv", "the tritonconv authors"
copyright = "2026 the tritonconv authors, MIT licence"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = f"tritonconv {__version__}"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_extra_path: list[str] = []

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": False}
autodoc_inherit_docstrings = False  # torch says of every forward that subclasses should override it
autodoc_preserve_defaults = True
nitpicky = False
default_role = "literal"

#: Pages of the project that stand outside this folder, by the name that they have here.
OUTSIDE = {"contributing": "CONTRIBUTING.md", "changes": "CHANGELOG.md"}
#: Letters that reStructuredText would read as markup, where a docstring means them as they are.
MARKUP = re.compile(r"([*|]|_(?=\W|$))")


def restructured(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with `names` in single backticks, indented code and doctests: what else looks like markup is
    escaped."""
    made: list[str] = []
    code = False
    for line in lines:
        if line.strip() and not line.startswith(" "):
            code = line.lstrip().startswith(">>>") or (code and bool(made) and bool(made[-1].strip()))
        if line.startswith("    ") and made and not made[-1].strip() and not code and not line.lstrip().startswith(">>>"):
            made[-1:] = ["", "::", ""]  # a block that stands alone and further in is code
            code = True
        if not code and not line.lstrip().startswith(">>>"):
            parts = re.split(r"(`+[^`]+`+)", line)
            line = "".join(part if part.startswith("`") else MARKUP.sub(r"\\\1", part) for part in parts)
        made.append(line)
    lines[:] = made


def outside(app: Any, name: str, source: list[str]) -> None:
    """A page that stands outside is taken in, its links made those of this folder."""
    if name in OUTSIDE:
        text = (ROOT / OUTSIDE[name]).read_text()
        source[0] = re.sub(r"\]\(docs/([^)]+)\)", r"](\1)", text)
    # what is no page of the site is named, not linked: the site may stand where no checkout is
    up = "../" * (name.count("/") + 1)
    source[0] = re.sub(rf"\[([^\]]+)\]\({re.escape(up)}(?!(?:CONTRIBUTING|CHANGELOG)\.md)[^)]+\)", r"\1", source[0])
    for page, file in OUTSIDE.items():
        source[0] = source[0].replace(f"](../{file}", f"]({page}.md").replace(f"]({file}", f"]({page}.md")


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", restructured)
    app.connect("source-read", outside)
