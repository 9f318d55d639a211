"""No name of the packages is one of the words that say nothing of the thing they name (CONTRIBUTING.md, "Rules").

A field of a row that is written as JSON is a name too; none of them is such a word.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("tritonconv", "costmodel", "bench")
WORDS = frozenset({"found", "lies", "lying", "roomy", "lent", "taken", "says", "told"})


def constructors(tree: ast.AST) -> set[int]:
    """The functions called `of` that make an instance of their class, as `Chunk.of` does, by their id."""
    return {
        id(member)
        for scope in ast.walk(tree)
        if isinstance(scope, ast.ClassDef)
        for member in scope.body
        if isinstance(member, ast.FunctionDef)
        and member.name == "of"
        and any(isinstance(d, ast.Name) and d.id == "classmethod" for d in member.decorator_list)
    }


def names(node: ast.AST) -> Iterator[str]:
    """The names that a node of a syntax tree gives to something."""
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
            yield name
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            yield name
        case ast.MatchMapping(rest=str(name)) | ast.alias(asname=str(name)) | ast.alias(name=str(name), asname=None):
            yield name.rpartition(".")[2]


def misnomers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The line and the name of everything that is called by one of the words, in any case."""
    allowed = constructors(tree)
    for node in ast.walk(tree):
        for name in names(node):
            word = name.lower().strip("_")
            if word in WORDS or (word == "of" and id(node) not in allowed):
                yield getattr(node, "lineno", 0), name


@pytest.mark.parametrize("package", PACKAGES)
def test_a_name_says_what_a_thing_is(package):
    wrong = []
    for path in sorted((ROOT / package).rglob("*.py")):
        wrong += [f"{path.relative_to(ROOT)}:{line}: {name}" for line, name in misnomers(ast.parse(path.read_text()))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "source",
    [
        "found = 1",
        "for i, taken in rows: pass",
        "with open(path) as told: pass",
        "call = lambda of: of",
        "def says(): pass",
        "def call(x, *, lent=None): pass",
        "class Row:\n    lies: int",
        "class Row:\n    def of(self): pass",
        "def of(x): pass",
        "self._roomy = 1",
        "class Of: pass",
        "import a as SAYS",
        "if (found := call()): pass",
        "x = [lying for lying in rows]",
        "match x:\n    case [1, found]: pass",
    ],
)
def test_every_way_to_give_a_name_is_seen(source):
    assert len(list(misnomers(ast.parse(source)))) == 1


def test_a_constructor_may_be_called_of():
    source = "class Chunk:\n    @classmethod\n    def of(cls, x): pass\n\nchunk = Chunk.of(1)\nrow = {'found': 1}\n"
    assert not list(misnomers(ast.parse(source)))
