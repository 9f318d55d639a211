"""Models by name: found, built without weights where possible, refused in one line otherwise."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from costmodel.networks.models import load

SOURCE = """
import torch
from torch import nn

class Net(nn.Linear):
    def __init__(self, width=4):
        super().__init__(width, 2)

class Reads(nn.Linear):
    def __init__(self):
        super().__init__(4, 2)
        self.largest = self.weight.max().item()

class Family:
    small = Net

built = Net()
number = 3

def broken():
    raise KeyError("first line\\nsecond line")

def downloads():
    with open(__file__ + ".calls", "a") as log:
        log.write("x")
    raise OSError("no network")

def plain():
    return [1]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "some_nets.py"
    path.write_text(SOURCE)
    return path


def test_a_file_is_run_and_its_model_built_without_weights(file: Path) -> None:
    model = load(f"{file}:Net")
    assert isinstance(model, nn.Linear) and model.weight.is_meta
    assert load(f"{file}:Family.small").weight.shape == (2, 4)
    assert load(f"{file}:Net", width=7).weight.shape == (2, 7)
    assert isinstance(load(f"{file}:built"), nn.Linear)


def test_a_model_that_reads_its_weights_is_built_with_them(file: Path) -> None:
    assert not load(f"{file}:Reads").weight.is_meta


def test_a_module_in_the_working_directory(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    before = list(sys.path)
    assert load("some_nets:Net").weight.shape == (2, 4)
    assert sys.path == before
    del sys.modules["some_nets"]


def test_a_missing_file_or_download_is_not_tried_twice(file: Path) -> None:
    with pytest.raises(ValueError, match="no network"):
        load(f"{file}:downloads")
    assert Path(f"{file}.calls").read_text() == "x"
    assert "some_nets" not in sys.modules  # a file is no module of the process


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "resnet50",
            "model must be package.module:callable or file.py:callable, got 'resnet50'; torchvision.models:resnet50 or "
            "timm:resnet50?",
        ),
        ("torch.nn:Conv2", "model 'torch.nn:Conv2': torch.nn has no 'Conv2', did you mean 'Conv2d', 'Conv3d' or 'Conv1d'?"),
        ("torhc.nn:Conv2d", "model: cannot import 'torhc.nn': No module named 'torhc', did you mean 'torch'?"),
        (":Net", "model must be package.module:callable or file.py:callable, got ':Net'"),
        ("no_such_package:Net", "model: cannot import 'no_such_package': No module named 'no_such_package'"),
        ("torch.nn:NoSuch", "model 'torch.nn:NoSuch': torch.nn has no 'NoSuch'"),
        ("no/such/file.py:Net", "model: no file 'no/such/file.py'"),
        (
            "torch.nn:Linear",
            "model 'torch.nn:Linear': calling it with () failed: Linear.__init__() missing 2 required positional arguments: "
            "'in_features' and 'out_features'",
        ),
    ],
)
def test_refusals(name: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        load(name)
    assert str(caught.value) == message


def test_refusals_in_a_file(file: Path, tmp_path: Path) -> None:
    for attribute, message in {
        "broken": "calling it with () failed: 'first line\\nsecond line'",
        "plain": "the call returned list, not an nn.Module",
        "number": "number is int, neither a model nor callable",
    }.items():
        with pytest.raises(ValueError) as caught:
            load(f"{file}:{attribute}")
        assert str(caught.value) == f"model '{file}:{attribute}': {message}"
    (tmp_path / "bad.py").write_text("1 +")
    with pytest.raises(ValueError, match=r"^model: cannot run '.*bad.py': invalid syntax"):
        load(f"{tmp_path}/bad.py:Net")


@pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
def test_torchvision_with_or_without_its_operators() -> None:
    model = load("torchvision.models:resnet18")
    assert sum(p.numel() for p in model.parameters()) == 11_689_512
    assert next(model.parameters()).is_meta
    assert next(load("torchvision.models:resnet18").parameters()).device == torch.device("meta")
