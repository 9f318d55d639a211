"""Every public name of both packages says what it takes, what it raises and shows an example, and the examples run."""

import doctest
import importlib
import inspect
import re
from operator import attrgetter
from pathlib import Path

import pytest

import costmodel
import tritonconv

ROOT = Path(__file__).parent.parent
#: The lines of Python that the project's front door promises.
PROMISED = """
>>> import costmodel, torch
>>> layer = costmodel.conv2d((32, 64, 56, 56), (64, 64, 3, 3), padding=1)
>>> layer == costmodel.layer("conv2d 64x56x56 k3 p1 n32") == costmodel.layer(str(layer).splitlines()[0])
True
>>> print(layer)  # doctest: +ELLIPSIS
conv2d 64x56x56 k3 p1 c64 n32
input 32x64x56x56, weight 64x64x3x3, output 32x64x56x56
...
>>> layer.cost().dense_flops, layer.roofline("h100").seconds > 0, layer.predict("h100", dtype="bf16").seconds > 0
(7398752256, True, True)
>>> model, other = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(3, 16, 3)
>>> net = costmodel.trace(model, (1, 3, 224, 224))
>>> print(net)  # doctest: +ELLIPSIS
Conv2d, input 1x3x224x224, bf16
...
>>> net.on("h100").to_html("r.html")[:15]
'<!doctype html>'
>>> print(net.compare(costmodel.trace(other, (1, 3, 224, 224))))  # doctest: +ELLIPSIS, +NORMALIZE_WHITESPACE
 Conv2d Conv2d ratio
...
"""


def modules(package):
    """Every module of a package that has an example."""
    root = Path(package.__file__).parent
    for path in sorted(root.rglob("*.py")):
        if ">>> " in path.read_text() and path.stem != "documented":  # those are other modules' functions
            yield ".".join([package.__name__, *path.relative_to(root).with_suffix("").parts]).removesuffix(".__init__")


@pytest.mark.parametrize("name", [*modules(costmodel), *modules(tritonconv)])
def test_the_examples_of_a_module_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed


def test_what_a_new_user_types_does_what_is_promised(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    test = doctest.DocTestParser().get_doctest(PROMISED, {}, "promised", None, None)
    assert doctest.DocTestRunner().run(test).failed == 0 and (tmp_path / "r.html").stat().st_size > 10_000


@pytest.mark.parametrize("name", sorted(set(costmodel.__all__) - {"__version__"}))
def test_a_public_name_of_costmodel_has_an_example_that_is_run(name):
    thing = getattr(costmodel, name)
    assert ">>> " in thing.__doc__
    runner = doctest.DocTestFinder(recurse=False)
    home = importlib.import_module(thing.__module__)
    assert runner.find(thing, name, home)[0].examples
    words = " ".join(thing.__doc__.split())
    assert re.search(r"[Rr]aises?\b|[Ee]rrors( and the source)? are those of", words), "say what it raises"


@pytest.mark.parametrize("name", sorted(set(tritonconv.__all__) - {"__version__", "nn", "Explanation"}))
def test_a_public_function_of_tritonconv_says_all_and_its_example_runs(name, capsys):
    thing = getattr(tritonconv, name)
    words = inspect.cleandoc(thing.__doc__)
    assert "module's docstring" not in words
    assert "TypeError" in words or "Raises" in words, "say what it raises"
    if "conv" in name and name != "convert":
        assert "float16, bfloat16, float32" in words or name == "causal_conv1d_update"
    (test,) = doctest.DocTestFinder(recurse=False).find(thing, name, importlib.import_module(thing.__module__))
    assert test.examples and doctest.DocTestRunner().run(test).failed == 0, capsys.readouterr().out


@pytest.mark.parametrize("name", ["Explanation", *(f"nn.{name}" for name in tritonconv.nn.__all__)])
def test_a_public_class_of_tritonconv_has_an_example_that_runs(name, capsys):
    thing = attrgetter(name)(tritonconv)
    words = vars(thing)["__doc__"] or ""  # its own, not that of torch's class
    assert "Raises" in words, "say what it raises"
    (test,) = doctest.DocTestFinder(recurse=False).find(thing, name, importlib.import_module(thing.__module__))
    assert test.examples and doctest.DocTestRunner().run(test).failed == 0, capsys.readouterr().out
