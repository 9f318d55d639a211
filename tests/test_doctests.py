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

#: Where a name's meaning comes from: a paper, a specification, a page of docs, or the function of torch that it stands for.
SOURCE = r"arXiv|https?://|docs/[\w/-]+\.md|\b[Ss]ource\b|`torch\.(nn|convolution)\.?|torchvision\.ops|et al\.|of diffusers"
SHAPE = r"\[[NBKCm]\b|shape|\[batch, "
UNIT = r"[Ss]econds|[Bb]ytes|FLOP|multiply-adds|units"
#: The names of costmodel whose arguments or results are times, counts or sizes, and those that take a dtype.
WITH_UNITS = "Cost Device Forecast Layer Network Roofline SideBySide cost crossing_batch measure predict roofline".split()
WITH_UNITS += "to_csv to_json trace training_cost".split()
WITH_DTYPE = "Device Layer Network cost predict roofline trace training_cost".split()
#: The names of tritonconv that take models or open regions, and no tensors.
WITHOUT_TENSORS = {"batch_invariant", "convert", "decompositions", "forget_packed", "report", "revert", "use"}


def words_of(thing):
    """The docstring on one line; of a class its own, not that of torch's class."""
    own = vars(thing)["__doc__"] if isinstance(thing, type) else thing.__doc__
    return " ".join((own or "").split())


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
    words = words_of(thing)
    assert re.search(r"[Rr]aises?\b|[Ee]rrors( and the source)? are those of", words), "say what it raises"
    assert re.search(SOURCE, words) or "those of `to_csv`" in words, "say where it comes from"
    assert name not in WITH_UNITS or re.search(UNIT, words), "say in which units"
    assert name not in WITH_DTYPE or "dtype" in words, "say for which dtypes"
    assert "conv" not in name or re.search(SHAPE, words), "say which shapes"


@pytest.mark.parametrize("name", sorted(set(tritonconv.__all__) - {"__version__", "nn", "Explanation"}))
def test_a_public_function_of_tritonconv_says_all_and_its_example_runs(name, capsys):
    thing = getattr(tritonconv, name)
    words = inspect.cleandoc(thing.__doc__)
    assert "module's docstring" not in words
    assert "TypeError" in words or "Raises" in words, "say what it raises"
    assert re.search(SOURCE, words_of(thing)), "say where it comes from"
    if name not in WITHOUT_TENSORS:
        assert re.search(SHAPE, words), "say which shapes"
        assert re.search("dtype|float32", words), "say which dtypes"
    if "conv" in name and name != "convert":
        assert "float16, bfloat16, float32" in words or name == "causal_conv1d_update"
    (test,) = doctest.DocTestFinder(recurse=False).find(thing, name, importlib.import_module(thing.__module__))
    assert test.examples and doctest.DocTestRunner().run(test).failed == 0, capsys.readouterr().out


@pytest.mark.parametrize("name", ["Explanation", *(f"nn.{name}" for name in tritonconv.nn.__all__)])
def test_a_public_class_of_tritonconv_has_an_example_that_runs(name, capsys):
    thing = attrgetter(name)(tritonconv)
    words = words_of(thing)
    assert "Raises" in words, "say what it raises"
    assert re.search(SOURCE, words) or "`tritonconv." in words, "say where it comes from, or of which function it is the module"
    assert re.search(SHAPE, words), "say which shapes"
    assert name in ("Explanation", "nn.Fold", "nn.Unfold") or "type" in words, "say which dtypes"
    (test,) = doctest.DocTestFinder(recurse=False).find(thing, name, importlib.import_module(thing.__module__))
    assert test.examples and doctest.DocTestRunner().run(test).failed == 0, capsys.readouterr().out
