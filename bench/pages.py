"""`python -m bench pages`: renews every block of README and docs that is made from the code and the committed results.

A block is between the lines <!-- name --> and <!-- /name -->. Nothing between them is written by hand.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


@dataclass(frozen=True)
class Block:
    """A block between two markers of a page, and the text that it should have."""

    name: str
    page: Path
    build: Callable[[], str]

    @property
    def shown(self) -> str:
        """The text that the block has now. Raises ValueError unless the markers occur exactly once."""
        blocks = re.findall(rf"<!-- {self.name} -->\n(.*?)\n<!-- /{self.name} -->", self.page.read_text(), re.S)
        if len(blocks) != 1:
            raise ValueError(f"{self.page.name} has not the lines <!-- {self.name} --> and <!-- /{self.name} --> once")
        return str(blocks[0])

    def renew(self) -> bool:
        """Writes the text that the block should have. Returns whether that changed anything."""
        before, now = self.shown, self.build()
        if before == now:
            return False
        text = self.page.read_text()
        first, last = f"<!-- {self.name} -->\n", f"\n<!-- /{self.name} -->"
        self.page.write_text(text.replace(first + before + last, first + now + last))
        return True


def counted() -> str:
    """The output of the README's lines of Python."""
    (block,) = re.findall(r"```python\n(import costmodel\n.*?)```", README.read_text(), re.S)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block, "README.md", "exec"), {})
    return f"```\n{out.getvalue()}```"


def layer() -> str:
    """What the first command of docs/cost-model.md prints, 80 columns wide."""
    import costmodel

    (words,) = re.findall(r"^costmodel layer (.*) --device h100 --dtype bf16$", README.read_text(), re.M)
    return f"```\n{costmodel.layer(words).table('h100', dtype='bf16', width=80)}\n```"


def measured() -> str:
    from bench.compared import committed
    from bench.report import tables

    return tables(committed())


def compiled() -> str:
    from bench.compiled.table import summary

    return summary()


def audit() -> str:
    from bench.audit import summary

    return summary()


def networks() -> str:
    from bench.networks import table

    return table()


def band() -> str:
    from bench.band import summary

    return summary()


def separable() -> str:
    from bench.separable import table

    return table()


def deform() -> str:
    from bench.deform import table

    return table()


def unfold() -> str:
    from bench.unfold import table

    return table()


def padded() -> str:
    from bench.padded import table

    return table()


def decoders() -> str:
    from bench.chains.blocks import summary

    return summary()


def chains() -> str:
    from bench.chains.run import summary

    return summary()


def images() -> str:
    from bench.chains.images import summary

    return summary()


def blocks() -> Iterator[Block]:
    """All blocks, each with its page."""
    docs = ROOT / "docs"
    yield from (Block("count", README, counted), Block("compiled", README, compiled), Block("measured", README, measured))
    yield from (Block("layer", docs / "cost-model.md", layer), Block("networks", docs / "cost-model.md", networks))
    yield from (Block(build.__name__, docs / "kernels.md", build) for build in (audit, band, separable))
    yield Block("blocks", docs / "kernels.md", decoders)
    yield Block("chains", docs / "kernels.md", chains)
    yield Block("images", docs / "kernels.md", images)
    yield from (Block(build.__name__, docs / "design" / f"{build.__name__}.md", build) for build in (deform, unfold, padded))


def command(show: Callable[[str], None]) -> None:
    """Renew every block and every page that is made as a whole, and say which ones were stale."""
    from bench.compiled import regret, table
    from bench.measured import validate

    stale = [block for block in blocks() if block.renew()]
    for block in stale:
        show(f"{block.page.relative_to(ROOT)}: {block.name} was stale")
    if table.PAGE.read_text() != table.page():
        table.write()
        show(f"{table.PAGE.relative_to(ROOT)} was stale")
    if regret.PAGE.read_text() != (choice := regret.page(regret.rows())):
        regret.PAGE.write_text(choice)
        show(f"{regret.PAGE.relative_to(ROOT)} was stale")
    if validate.PAGE.read_text().splitlines()[-1] != validate.stamp():
        show(f"{validate.PAGE.relative_to(ROOT)} is stale, and takes two minutes")
        validate.command(fit=False)
    if not stale:
        show("every block is of today")
